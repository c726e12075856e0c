"""The first two releases of a task, signed as rounds would have them, for tests that begin with a model that runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.registry import Registry
from vedette_aggregator.releases import Releases, TaskModel, server_optimiser
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.network import ActivationRanges
from vedette_schemas.round import plan_bytes

Learn = Callable[[TaskModel, np.ndarray], tuple[np.ndarray, ActivationRanges, float]]
"""From a model and the weights that it starts from to new weights, their ranges, and the loss after."""


def sign_two_releases(trust: Path, task: dict[str, Any], learn: Learn) -> None:
    """Sign the initial release of a task and the one that a round made of what `learn` says."""
    registry, section, now = Registry(trust), TaskSection.model_validate(task), time.time()
    model = TaskModel.of(section)
    releases = Releases(registry, section, model)
    settings = RoundSettings(**section.round.model_dump(), **section.training.model_dump(), masked=True)
    plan = model.plan(settings, section.task)
    packed, digest = plan_bytes(plan)
    start = releases.initial(plan, now)
    weights, ranges, loss = learn(model, start.weights)
    candidate = Candidate(
        task=section.task,
        round=1,
        attempt=1,
        parent_version=0,
        parent_sha256=start.sha256,
        plan=digest,
        weights=weights,
        ranges=ranges,
        contributors=("gw-1", "gw-2", "gw-3", "gw-4", "gw-5"),
        transcript=bytes(range(32)),
        metrics={"loss_after": loss},
        optimiser=server_optimiser(section).initial_state(len(weights)),
    )
    releases.release(candidate, packed, now)
