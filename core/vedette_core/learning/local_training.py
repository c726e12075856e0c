"""One device's share of a round: a few passes over its own rows, and the change of the weights that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.network import ActivationRanges, Network
from vedette_core.learning.optimiser import Adam, LocalOptimiser, Moments, Sgd
from vedette_schemas.errors import ConfigError, RefusedError

LOCAL_OPTIMISERS: Final = ("adam", "sgd")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What local training made of the global weights.

    Attributes:
        delta: local − global weights, ``(size,)`` float32; finite.
        loss_before: mean squared reconstruction error of the global weights on the rows.
        loss_after: the same with the local weights.
        num_examples: rows that were trained on.
        activation_ranges: (min, max) a tensor of the float forward pass with the local weights.
    """

    delta: Float32
    loss_before: float
    loss_after: float
    num_examples: int
    activation_ranges: ActivationRanges


def local_optimiser(name: str, learning_rate: float) -> LocalOptimiser:
    """The optimiser that a plan or a setting names.

    Raises:
        ConfigError: no such optimiser.
    """
    if name == "adam":
        return Adam(learning_rate)
    if name == "sgd":
        return Sgd(learning_rate)
    raise ConfigError(f"optimiser: found {name!r}, expected one of {', '.join(LOCAL_OPTIMISERS)}")


def train(
    network: Network,
    weights: Float32,
    x: Float32,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    prox_mu: float,
    rng: np.random.Generator,
    optimiser: str = "adam",
) -> TrainingResult:
    """Train a copy of the weights on the rows, in shuffled batches.

    Args:
        network: what is trained.
        weights: ``(size,)`` float32 global weights; not changed.
        x: ``(n, *input_shape)`` float32 rows, n ≥ 1, finite.
        epochs: passes over the rows, ≥ 1.
        batch_size: rows a step, ≥ 1; the last batch of a pass may be smaller.
        learning_rate: > 0.
        prox_mu: FedProx: adds μ/2·‖w − w_global‖² to the loss; 0 turns it off.
        rng: shuffles the rows.
        optimiser: one of `LOCAL_OPTIMISERS`; its state starts fresh, so that nothing outlives the round.

    Raises:
        RefusedError: no rows, rows that are not finite, or training that diverged: the device sits this round out.
        ConfigError: no such optimiser.

    Source: the proximal term is Li et al. 2020, arXiv 1812.06127, eq. 2.
    """
    if len(x) == 0:
        raise RefusedError("training: found 0 rows, expected at least 1", rule="examples")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=tuple(range(1, x.ndim))).sum())
        raise RefusedError(f"training: found {bad} rows of {len(x)} with NaN or infinity", rule="finite")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"training: found epochs={epochs}, batch_size={batch_size}, expected at least 1 each")
    step = local_optimiser(optimiser, learning_rate).step
    state = Moments.zero(len(weights))
    loss_before = network.loss(x, weights)
    local = weights.astype(np.float32, copy=True)
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is found by its result, below
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), batch_size):
                _, gradient = network.loss_and_gradient(x[order[start : start + batch_size]], local)
                if prox_mu:
                    gradient = gradient + np.float32(prox_mu) * (local - weights)
                stepped, state = step(local, gradient, state)
                local = stepped.astype(np.float32, copy=False)
        delta = local - weights
        loss_after = network.loss(x, local)
    if not np.isfinite(delta).all() or not np.isfinite(loss_after):
        raise RefusedError(
            f"training: found weights that are not finite after {epochs} epochs at learning rate {learning_rate}, "
            "expected finite ones; the global weights stay",
            rule="diverged",
        )
    return TrainingResult(delta, loss_before, loss_after, len(x), network.activation_ranges(x, local))
