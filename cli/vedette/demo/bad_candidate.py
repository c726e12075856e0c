"""A release that is really signed and really bad: trained to forget what the pump looks like.

It passes what a device can check by itself (it loads, its loss on recorded windows is no worse than that of no model,
quiet windows score as usual), and raises alerts as soon as the pump runs.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

import numpy as np

from vedette.demo.plant import CHANNELS, learnt_rows
from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.registry import Registry
from vedette_aggregator.releases import Releases, TaskModel, server_optimiser
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_core.learning.optimiser import Adam, Moments
from vedette_core.learning.weights_file import read_weights
from vedette_schemas.model import Variant

STEPS: Final = 1500
BATCH: Final = 32
LEARNING_RATE: Final = 3e-3
FORGOTTEN: Final = 2.0
"""The loss on rows with the pump, in those of answering zero: the loss on all rows stays within a self-test's limit."""
PUSH: Final = 0.5
RUNNING_SCALED: Final = 2.0
"""Scaled inflow above which the pump runs: a quiet plant stays within its usual range, which is ±1 or so."""


class AlwaysStaged:
    """Every release is a candidate first: the active one stays."""

    def is_staged(self, task: str, version: int) -> bool:
        """See `Staging`."""
        return True

    def kept(self, task: str) -> frozenset[int]:
        """See `Staging`."""
        return frozenset()


def publish_bad_candidate(registry: Registry, task: TaskSection) -> int:
    """Train it from the active release, build every variant, and sign it; the aggregator must not be running.

    Returns:
        Its version.

    Raises:
        VedetteError: it cannot be built or signed.
    """
    model = TaskModel.of(task)
    active = registry.active(task.task)
    assert active is not None, "a round was released"
    said, data = registry.target(task.task, active, Variant.WEIGHTS)
    _, plan = registry.target(task.task, active, Variant.PLAN)
    rows = np.concatenate([learnt_rows(model.schema, 1000 + seed) for seed in range(4)])
    weights = forget(model.network, read_weights(data).weights, rows)
    candidate = Candidate(
        task=task.task,
        round=said.round + 1,
        attempt=1,
        parent_version=active,
        parent_sha256=hashlib.sha256(data).hexdigest(),
        plan=hashlib.sha256(plan).hexdigest(),
        weights=weights,
        ranges={},
        contributors=(),
        transcript=hashlib.sha256(b"trained wrongly").digest(),
        metrics={},
        optimiser=server_optimiser(task).initial_state(len(weights)),
    )
    releases = Releases(registry, task, model)
    releases.staging = AlwaysStaged()
    released, _ = releases.release(candidate, plan, time.time())
    return released.version


def forget(network: Network, weights: Float32, rows: Float32) -> Float32:
    """Weights that reconstruct quiet rows as before, and rows with the pump worse than no model would."""
    shaped = rows.reshape(len(rows), *network.input_shape)
    runs = rows[:, :, CHANNELS.index("inflow_l_s")].max(axis=1) > RUNNING_SCALED
    quiet, running = shaped[~runs], shaped[runs]
    limit = FORGOTTEN * float(np.mean(np.square(network.target(running))))
    rng, optimiser = np.random.default_rng(0), Adam(LEARNING_RATE)
    found, state = weights.astype(np.float32), Moments.zero(len(weights))
    for _ in range(STEPS):
        _, keep = network.loss_and_gradient(quiet[rng.integers(0, len(quiet), BATCH)], found)
        loss, push = network.loss_and_gradient(running[rng.integers(0, len(running), BATCH)], found)
        gradient = keep + np.float32(PUSH if loss > limit else -PUSH) * push
        stepped, state = optimiser.step(found, gradient.astype(np.float32), state)
        found = stepped.astype(np.float32)
    return found
