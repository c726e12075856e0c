"""A device's training step of a round: from its own benign rows to the masked fields of its upload."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vedette_core.crypto.agreement import KeyPair
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import TrainingResult, train
from vedette_core.learning.network import Network
from vedette_core.learning.round_vector import make_vector
from vedette_core.secagg.participant import Entropy, mask_update
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import Plan, Roster


@dataclass(frozen=True, slots=True)
class Contribution:
    """What leaves the device, apart from who and which round, and what its own log says about it.

    Attributes:
        vector: levels and control slots as elements of the ring, masked if the plan says so.
        boxes: shares of the masks' secrets, sealed to each committee member; empty without masking.
        commitments: to those secrets; empty without masking.
        num_examples: rows it was trained on. For local use.
        clipped: whether the clip norm bit. For local use.
        loss_before: mean squared reconstruction error of the round's model on these rows. For local use.
        loss_after: the same after local training. For local use.
    """

    vector: bytes = field(repr=False)
    boxes: tuple[bytes, ...] = field(repr=False)
    commitments: tuple[bytes, ...] = field(repr=False)
    num_examples: int
    clipped: bool
    loss_before: float
    loss_after: float


def train_locally(
    plan: Plan, network: Network, weights: Float32, x: Float32, rng: np.random.Generator
) -> TrainingResult:
    """Train on the rows as the plan says.

    Args:
        plan: the round's; its task and schema have been checked against this device's.
        network: the round's network.
        weights: ``(dimension,)`` float32 that the round starts from.
        x: ``(n, *input_shape)`` float32 scaled rows that are taken to be benign.
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
    return train(
        network,
        weights,
        x,
        epochs=plan.training.local_epochs,
        batch_size=plan.training.batch_size,
        learning_rate=plan.training.learning_rate,
        prox_mu=plan.training.prox_mu,
        rng=rng,
    )


def contribute(
    plan: Plan,
    roster: Roster,
    device: str,
    keys: KeyPair,
    result: TrainingResult,
    *,
    rng: np.random.Generator,
    entropy: Entropy,
) -> Contribution:
    """Encode the change of the weights, and mask it for the group.

    Args:
        plan: the roster's.
        roster: the group's, checked.
        device: own id.
        keys: those of the own entry in the roster.
        result: what training made.
        rng: the device's own randomness, for the rounding.
        entropy: the device's own randomness, for the masks.

    Raises:
        PeerError: a member's key is no point that a secret can be shared with.
        RefusedError: something is not finite.
    """
    vector, update = make_vector(
        plan,
        roster,
        device,
        result.delta,
        loss_before=result.loss_before,
        loss_after=result.loss_after,
        ranges=dict(result.activation_ranges),
        rng=rng,
    )
    figures = (result.num_examples, update.clipped, result.loss_before, result.loss_after)
    if not plan.masked:
        return Contribution(vector.tobytes(), (), (), *figures)
    masked = mask_update(vector, roster, plan, device, keys, entropy)
    return Contribution(masked.vector, masked.boxes, masked.commitments, *figures)
