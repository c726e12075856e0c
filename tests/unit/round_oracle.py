"""What an aggregate must be, computed another way: every vector decoded by itself, and then the mean of them.

The rotation is undone with a matrix that is written down, and not with the butterflies of the product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette_schemas.round import Plan, Roster, hash_parts

BLOCK = 1024


def mean_of(
    vectors: Sequence[npt.NDArray[Any]], weights: Sequence[int], plan: Plan, roster: Roster
) -> npt.NDArray[np.float64]:
    """The weighted mean ``(dimension,)`` of the deltas in these vectors."""
    assert plan.dimension <= BLOCK, "the oracle knows models of one block"
    assert plan.update.bits == 8, "and levels of one byte"
    levels = np.stack([v[:BLOCK] / w for v, w in zip(vectors, weights, strict=True)])
    assert (levels == np.round(levels)).all(), "every level is multiplied by the weight"
    limit = 4.5 * plan.update.clip_norm / BLOCK**0.5
    rotated = levels * (2 * limit / 255) - limit
    first, second = _signs(_seed(roster))
    hadamard = _hadamard()
    deltas = (rotated @ hadamard * second) @ hadamard * first
    mean: npt.NDArray[np.float64] = np.average(deltas, axis=0, weights=weights)[: plan.dimension]
    return mean


def check_mean(
    update: npt.NDArray[Any], vectors: Sequence[npt.NDArray[Any]], weights: Sequence[int], plan: Plan, roster: Roster
) -> None:
    """The update must be the weighted mean of the deltas in these vectors.

    Raises:
        AssertionError: it is not.
    """
    worst = float(np.abs(mean_of(vectors, weights, plan, roster) - update).max())
    # float32 weights of magnitude about 1: the difference of two of them is good to some 1e-7.
    assert worst < 1e-5, f"off by {worst:.2e}, expected the mean of {len(vectors)} updates"


def _hadamard() -> npt.NDArray[np.float64]:
    """Sylvester's construction."""
    matrix: npt.NDArray[np.float64] = np.ones((1, 1))
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / BLOCK**0.5)


def _signs(seed: bytes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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
