"""What an aggregate must be, computed another way: dense matrices instead of fast transforms, one update at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

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
    decoded = np.stack([_back(plan.dimension, _seed(roster)) @ _rotated(u.levels, plan) for u in uploads])
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


def _rotated(levels: bytes, plan: Plan) -> np.ndarray:
    assert plan.dimension <= BLOCK, "the oracle knows models of one block"
    assert len(levels) == BLOCK
    limit = 4.5 * plan.update.clip_norm / np.sqrt(BLOCK)
    return np.frombuffer(levels, np.uint8).astype(float) * (2 * limit / 255) - limit


@lru_cache(maxsize=4)
def _back(dimension: int, seed: bytes) -> np.ndarray:
    """The rows of the inverse rotation's matrix that give the model's coordinates."""
    first, second = _signs(seed)
    half = _hadamard()
    return first[:dimension, None] * ((half[:dimension] * second) @ half)


@lru_cache(maxsize=1)
def _hadamard() -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(BLOCK)


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
