"""A device's training step of a round: from its own benign rows to the fields of its upload."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vedette_core.learning.encoding import Encoding, encode, update_weight
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import ActivationRange, Plan


@dataclass(frozen=True, slots=True)
class Contribution:
    """What leaves the device, apart from who and which round: the fields of an `Upload` by their names there.

    Attributes:
        levels: the clipped, rotated and rounded delta, one byte a coordinate, padded to a multiple of 1,024.
        weight: what it counts.
        num_examples: rows it was trained on.
        clipped: whether the clip norm bit.
        loss_before: mean squared reconstruction error of the round's model on these rows.
        loss_after: the same after local training.
        ranges: smallest and largest value of every tensor of the float forward pass, for the quantiser.
    """

    levels: bytes
    weight: int
    num_examples: int
    clipped: bool
    loss_before: float
    loss_after: float
    ranges: tuple[ActivationRange, ...]


def contribute(
    plan: Plan, network: Network, weights: Float32, x: Float32, *, seed: bytes, rng: np.random.Generator
) -> Contribution:
    """Train on the rows as the plan says, and encode the change of the weights.

    Args:
        plan: the round's; its task and schema have been checked against this device's.
        network: the round's network.
        weights: ``(dimension,)`` float32 that the round starts from.
        x: ``(n, *input_shape)`` float32 scaled rows that are taken to be benign.
        seed: the rotation's, from `vedette_core.learning.encoding.rotation_seed`.
        rng: the device's own randomness, seeded by nothing that anyone else knows.

    Raises:
        PeerError: the plan is for another network.
        RefusedError: fewer rows than the plan asks for, rows that are not finite, or training that diverged: this
            device sits the round out.
    """
    if plan.dimension != network.layout.size or plan.network != network.spec.digest:
        raise PeerError(
            f"plan of {plan.task}: found network {plan.network[:12]} with {plan.dimension} weights, "
            f"expected {network.spec.digest[:12]} with {network.layout.size}",
            reason="schema",
        )
    if len(x) < plan.training.examples_min:
        raise RefusedError(
            f"round of {plan.task}: found {len(x)} examples, expected at least {plan.training.examples_min}",
            rule="examples",
        )
    result = train(
        network,
        weights,
        x,
        epochs=plan.training.local_epochs,
        batch_size=plan.training.batch_size,
        learning_rate=plan.training.learning_rate,
        prox_mu=plan.training.prox_mu,
        rng=rng,
    )
    update = encode(result.delta, Encoding(plan.dimension, plan.update.clip_norm, seed), rng)
    return Contribution(
        levels=update.levels.tobytes(),
        weight=update_weight(result.num_examples, plan.update.examples_reference, plan.update.weight_max),
        num_examples=result.num_examples,
        clipped=update.clipped,
        loss_before=result.loss_before,
        loss_after=result.loss_after,
        ranges=tuple(
            ActivationRange(tensor=name, low=low, high=high)
            for name, (low, high) in sorted(result.activation_ranges.items())
        ),
    )
