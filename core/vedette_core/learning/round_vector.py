"""What a plan makes of encoding, vector and ring: the one reading of it for participants and aggregator."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.encoding import EncodedUpdate, Encoding, encode, rotation_seed
from vedette_core.learning.layout import Float32
from vedette_core.learning.statistics_slots import LocalStatistics
from vedette_core.learning.update_vector import (
    GroupSum,
    RingSum,
    VectorLayout,
    frame_sum,
    pack_vector,
    ring_bits,
    unpack_sum,
)
from vedette_schemas.round import Plan, Roster

Ring = npt.NDArray[np.unsignedinteger[Any]]

NOISE_SPARE: Final = 1.05
"""The aggregator's noise is at most so many times z · W · C: 1.001 for rounding that lengthens an update, and 1.033
where the same z pays for the count of clipped updates."""


def encoding_of(plan: Plan, roster: Roster) -> Encoding:
    """The encoding that every participant of an attempt shares, whatever its group."""
    seed = rotation_seed(
        task=roster.task,
        round_number=roster.round,
        attempt=roster.attempt,
        model=roster.model,
        plan=roster.plan,
        beacon=roster.beacon,
    )
    return Encoding(plan.dimension, plan.update.clip_norm, seed, plan.update.bits)


def layout_of(plan: Plan) -> VectorLayout:
    """Where levels and control slots stand in a plan's vectors."""
    padded = Encoding(plan.dimension, plan.update.clip_norm, b"", plan.update.bits).padded
    return VectorLayout(padded, plan.update.tensors, plan.update.statistics)


def ring_of(plan: Plan) -> Literal[16, 32]:
    """Bits of the ring that a plan's sums are taken in, and noised in.

    Noise of the devices or of the aggregator has room in it beside the sum that it is added to: a group's, or that of
    all groups.

    Raises:
        RefusedError: no ring is wide enough.
    """
    update, groups = plan.update, plan.groups
    sigma = aggregator_sigma_max(plan)
    if sigma == 0.0:
        return ring_bits(groups.members_max, update.weight_max, update.bits, update.noise_sigma)
    most = groups.members_max
    if plan.privacy.scope == "total":
        most = max(most, min(groups.groups * groups.members_max, groups.checkins_max))
    return ring_bits(most, update.weight_max, update.bits, sigma, 1)


def aggregator_sigma_max(plan: Plan) -> float:
    """Largest standard deviation of the noise that the aggregator adds to a sum, in levels of the weighted sum; 0
    where there is none, or the devices bring it."""
    update = plan.update
    if plan.privacy.noise_multiplier == 0.0 or update.noise_sigma > 0.0:
        return 0.0
    step = Encoding(plan.dimension, update.clip_norm, b"", update.bits).step
    return NOISE_SPARE * plan.privacy.noise_multiplier * update.weight_max * update.clip_norm / step


def vector_bytes(plan: Plan) -> int:
    """Bytes of a plan's vectors."""
    return layout_of(plan).length * ring_of(plan) // 8


def make_vector(
    plan: Plan,
    roster: Roster,
    device: str,
    delta: Float32,
    *,
    loss_before: float,
    loss_after: float,
    ranges: dict[str, tuple[float, float]],
    rng: np.random.Generator,
) -> tuple[Ring, EncodedUpdate]:
    """A device's contribution to its group's sum, before masking.

    Args:
        plan: the roster's.
        roster: the group's; the device is a member.
        device: own id.
        delta: ``(dimension,)`` float32 change of the weights.
        loss_before: mean local loss of the model received.
        loss_after: mean local loss after training.
        ranges: smallest and largest value a tensor of the plan.
        rng: the device's own randomness, for the rounding.

    Returns:
        ``(layout_of(plan).length,)`` elements of the ring, and what the encoding made of the delta.

    Raises:
        RefusedError: something is not finite.
    """
    member = roster.member(device)
    if member is None:
        raise ValueError(f"round {roster.round}.{roster.attempt}: {device} is not in the roster")
    encoding = encoding_of(plan, roster)
    update = encode(delta, encoding, rng, noise_sigma=plan.update.noise_sigma)
    statistics = LocalStatistics(update.clipped, update.norm, loss_before, loss_after, ranges)
    vector = pack_vector(
        update.levels, member.weight, statistics, layout_of(plan), encoding, ring_of(plan), noise=update.noise
    )
    return vector, update


def read_sum(plan: Plan, roster: Roster, survivors: Collection[str], total: Ring) -> GroupSum:
    """What the sum of a group's vectors says, checked. Where noise is to hide it, see `read_frame`.

    Args:
        plan: the roster's.
        roster: the group's.
        survivors: ids of those whose vectors are in the sum.
        total: the sum, without masks.

    Raises:
        PeerError: it is none that so many encodings of these weights can have: the group is dropped.
    """
    weight = sum(m.weight for m in roster.members if m.device in survivors)
    return unpack_sum(
        total,
        weight,
        len(survivors),
        layout_of(plan),
        encoding_of(plan, roster),
        ring_of(plan),
        noise_sigma=plan.update.noise_sigma,
    )


def read_frame(plan: Plan, roster: Roster, survivors: Collection[str], total: Ring) -> RingSum:
    """The sum of a group's vectors, of which only canaries and weight were looked at: it can be noised as it is.

    Args:
        plan: the roster's.
        roster: the group's.
        survivors: ids of those whose vectors are in the sum.
        total: the sum, without masks.

    Raises:
        PeerError: a canary or the weight is wrong, whatever the updates are: the group is dropped.
    """
    weight = sum(m.weight for m in roster.members if m.device in survivors)
    return frame_sum(total, weight, len(survivors), layout_of(plan), ring_of(plan))
