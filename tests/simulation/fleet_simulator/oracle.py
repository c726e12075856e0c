"""What an aggregate must be, computed another way: from the devices' own vectors, as they were before any mask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vedette_aggregator.aggregation import OpenedGroup
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.robust.rule import Context
from vedette_core.learning.round_vector import ring_of
from vedette_schemas.round import Plan, Roster, hash_parts

BLOCK = 1024
NOISE_SIGMAS_MAX = 8.0
"""Once in 10^15 a coordinate's noise is larger."""


class WrongAggregateError(AssertionError):
    """The aggregate is not what the survivors' plain vectors give."""


@dataclass(frozen=True)
class Opening:
    """What the aggregator opened in an attempt, and what it knew when it did.

    Attributes:
        groups: their sums.
        running: usual norm of the groups' means.
        root: update of the clean root set.
    """

    groups: Sequence[OpenedGroup]
    running: float | None
    root: np.ndarray | None


def check_sum(group: OpenedGroup, plain: Mapping[str, np.ndarray], plan: Plan) -> None:
    """A group's sum must be that of exactly the survivors' plain vectors, to the last bit.

    Raises:
        WrongAggregateError: it is not.
    """
    expected = sum(int_vector(plain[device]) for device in group.digests) % 2 ** ring_of(plan)
    off = int(np.count_nonzero(int_vector(group.total) != expected))
    if off:
        raise WrongAggregateError(
            f"round {group.roster.round}.{group.roster.attempt} group {group.roster.gid}: {off} elements of the sum of "
            f"{', '.join(sorted(group.digests))} differ from the sum of their plain vectors"
        )


def int_vector(vector: np.ndarray) -> np.ndarray:
    """Elements of the ring as whole numbers."""
    return vector.astype(np.int64)


def mean_of(group: OpenedGroup, plain: Mapping[str, np.ndarray], plan: Plan) -> tuple[np.ndarray, int]:
    """The weighted mean of the survivors' updates, each decoded from its own plain vector, and the sum of weights."""
    assert plan.dimension <= BLOCK, "the oracle knows models of one block"
    assert plan.update.bits == 8, "at 8 bits"
    weights = [m.weight for m in group.roster.members if m.device in group.digests]
    devices = [m.device for m in group.roster.members if m.device in group.digests]
    half = 2 ** (ring_of(plan) - 1)
    levels = np.stack([int_vector(plain[device])[:BLOCK] for device in devices])
    levels = np.where(levels >= half + half // 2, levels - 2 * half, levels)  # a device's noise may take it below zero
    limit = 4.5 * plan.update.clip_norm / np.sqrt(BLOCK)
    step = 2 * limit / 255
    rotated = (levels * step - np.array(weights)[:, None] * limit).sum(axis=0) / sum(weights)
    first, second = _signs(_seed(group.roster))
    return (first * _hadamard(second * _hadamard(rotated)))[: plan.dimension], sum(weights)


def check_against_truth(
    mean: np.ndarray, deltas: Sequence[np.ndarray], weights: Sequence[int], plan: Plan
) -> np.ndarray | None:
    """A mean must be that of the true, clipped deltas, but for rounding.

    Returns:
        Where the devices bring the noise, what it did to each coordinate in standard deviations of the plan's; else
        None.

    Raises:
        WrongAggregateError: it is farther off than rounding every coordinate the wrong way could explain.
    """
    clip = plan.update.clip_norm
    clipped = [d.astype(float) * min(1.0, clip / max(float(np.linalg.norm(d)), 1e-12)) for d in deltas]
    expected = np.average(np.stack(clipped), axis=0, weights=np.array(weights, float))
    if plan.update.noise_sigma:
        return np.asarray((mean - expected) / _sigma(plan, sum(weights)))
    step = 2 * 4.5 * clip / np.sqrt(BLOCK) / 255
    worst = step * np.sqrt(BLOCK) + 1e-5
    found = float(np.linalg.norm(mean - expected))
    if found > worst:
        raise WrongAggregateError(f"off the plain mean by {found:.4f}, expected at most {worst:.4f}")
    return None


def check_update(
    update: np.ndarray, means: Sequence[np.ndarray], weights: Sequence[int], plan: Plan, defence: Defence, of: Opening
) -> np.ndarray | None:
    """The step that a candidate takes must be the one that the groups' plain means give.

    Args:
        update: the candidate's weights minus those that the round started from.
        means: of the groups, from plain vectors.
        weights: sums of weights of the groups.
        plan: the round's.
        defence: the robust rule.
        of: the opening.

    Returns:
        With noise on the sum of all groups, what it did to each coordinate in standard deviations; else None.

    Raises:
        WrongAggregateError: it is not.
    """
    by_aggregator = plan.privacy.noise_multiplier > 0 and plan.update.noise_sigma == 0
    if plan.privacy.noise_multiplier > 0 and plan.privacy.scope == "total":
        expected = np.average(np.stack(means), axis=0, weights=np.array(weights, float))
        if not by_aggregator:
            _same(update, expected)
            return None
        noise = (update - expected) / _sigma(plan, sum(weights))
        if float(np.abs(noise).max()) > NOISE_SIGMAS_MAX or float(np.abs(noise).max()) < 1e-3:
            raise WrongAggregateError(f"noise of {np.round(noise, 3)} standard deviations")
        return np.asarray(noise)
    if by_aggregator:
        return None  # a rule over noised groups: their sums before the noise were compared
    context = Context(root=of.root, running_norm=of.running)
    result = defence.aggregate(np.stack(means).astype(np.float32), np.array(weights, float), context)
    _same(update, result.delta)
    return None


def _sigma(plan: Plan, weight: int) -> float:
    """Standard deviation of the plan's noise on a coordinate of a mean: z times the most that one device can do."""
    return plan.privacy.noise_multiplier * plan.update.weight_max * plan.update.clip_norm * 1.001 / weight


def _same(update: np.ndarray, expected: np.ndarray) -> None:
    worst = float(np.abs(update - expected).max())
    # float32 weights of magnitude about 1: the difference of two of them is good to some 1e-7.
    if worst > 1e-5:
        raise WrongAggregateError(f"off by {worst:.2e}, expected what the groups' plain means give")


def _hadamard(vector: np.ndarray) -> np.ndarray:
    """The vector as a cube of side 2 in ten dimensions: along every one of them, sum and difference."""
    cube = vector.reshape((2,) * 10)
    for axis in range(10):
        low, high = np.take(cube, 0, axis), np.take(cube, 1, axis)
        cube = np.stack((low + high, low - high), axis)
    return np.asarray(cube.reshape(BLOCK) / np.sqrt(BLOCK))


def _signs(seed: bytes) -> tuple[np.ndarray, np.ndarray]:
    raw = hashlib.shake_256(b"vedette rotation 1" + len(seed).to_bytes(4, "big") + seed).digest(2 * BLOCK // 8)
    bits = "".join(f"{byte:08b}" for byte in raw)
    signs = np.array([1.0 if bit == "1" else -1.0 for bit in bits])
    return signs[:BLOCK], signs[BLOCK:]


def _seed(roster: Roster) -> bytes:
    return hash_parts(
        b"vedette-rotation-1",
        roster.task.encode(),
        str(roster.round).encode(),
        str(roster.attempt).encode(),
        bytes.fromhex(roster.model),
        bytes.fromhex(roster.plan),
        roster.beacon,
    )
