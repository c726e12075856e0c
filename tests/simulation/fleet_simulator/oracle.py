"""What an aggregate must be, computed another way: every update decoded by itself, and then the mean of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from vedette_schemas.round import Plan, Roster, Upload, hash_parts

BLOCK = 1024


class WrongAggregateError(AssertionError):
    """The aggregate is not the mean of what was accepted."""


def check_mean(update: np.ndarray, uploads: Sequence[Upload], plan: Plan, roster: Roster) -> None:
    """The update must be the weighted mean of the uploads' decoded deltas.

    Raises:
        WrongAggregateError: it is not.
    """
    weights = np.array([u.weight for u in uploads], float)
    decoded = _decode([u.levels for u in uploads], plan, roster)
    expected = (weights[:, None] * decoded).sum(axis=0) / weights.sum()
    worst = float(np.abs(expected - update).max())
    # float32 weights of magnitude about 1: the difference of two of them is good to some 1e-7.
    if worst > 1e-5:
        raise WrongAggregateError(
            f"round {roster.round}: off by {worst:.2e}, expected the mean of {len(uploads)} uploads"
        )


def check_against_plaintext(
    update: np.ndarray, deltas: Sequence[np.ndarray], weights: Sequence[int], plan: Plan
) -> None:
    """The update must be the weighted mean of the true, clipped deltas, but for rounding.

    Raises:
        WrongAggregateError: it is farther off than rounding every coordinate the wrong way could explain.
    """
    clip = plan.update.clip_norm
    clipped = [d.astype(float) * min(1.0, clip / max(float(np.linalg.norm(d)), 1e-12)) for d in deltas]
    expected = np.average(np.stack(clipped), axis=0, weights=np.array(weights, float))
    step = 2 * 4.5 * clip / np.sqrt(BLOCK) / 255
    worst = step * np.sqrt(BLOCK) + 1e-5
    found = float(np.linalg.norm(update - expected))
    if found > worst:
        raise WrongAggregateError(f"off the plain mean by {found:.4f}, expected at most {worst:.4f}")


def _decode(levels: Sequence[bytes], plan: Plan, roster: Roster) -> np.ndarray:
    assert plan.dimension <= BLOCK, "the oracle knows models of one block"
    assert all(len(each) == BLOCK for each in levels)
    limit = 4.5 * plan.update.clip_norm / np.sqrt(BLOCK)
    rotated = np.stack([np.frombuffer(each, np.uint8) for each in levels], axis=1) * (2 * limit / 255) - limit
    first, second = _signs(_seed(roster))
    vectors = first[:, None] * _hadamard(second[:, None] * _hadamard(rotated))
    return vectors[: plan.dimension].T


def _hadamard(columns: np.ndarray) -> np.ndarray:
    """Each column as a cube of side 2 in ten dimensions: along every one of them, sum and difference."""
    cube = columns.reshape((2,) * 10 + (-1,))
    for axis in range(10):
        low, high = np.take(cube, 0, axis), np.take(cube, 1, axis)
        cube = np.stack((low + high, low - high), axis)
    return cube.reshape(BLOCK, -1) / np.sqrt(BLOCK)


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
