"""How an update travels: clipped, rotated, rounded to one unsigned byte a coordinate, and summed as whole numbers.

The rotation spreads whatever an update has over all coordinates alike, so that one range, known beforehand from the
clip norm alone, fits every coordinate of every participant: nobody has to tell anybody a scale, and sums of levels can
be taken in an integer ring (under masks, later) and decoded once.

Two passes of random signs and a block Hadamard transform, with the blocks interleaved between them, are one more than
usual: a single pass leaves an update whose weight lies in one block there, where it would overrun the range.

Source: Suresh et al. 2017, arXiv 1611.00429, section 3 (random rotation); stochastic rounding as in its section 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32, FloatArray
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import hash_parts

BLOCK: Final = 1024
"""Coordinates of one Hadamard transform; vectors are padded to a multiple of it."""
LEVEL_MAX: Final = 255
"""Levels are 0…255: one unsigned byte."""
RANGE_SIGMAS: Final = 4.5
"""After the rotation a coordinate is nearly normal with σ ≤ C/√d: 7 in a million lie beyond and are clamped."""
UINT16_WEIGHT_MAX: Final = 257
"""Largest sum of weights whose weighted levels still fit 16 bits: 257 · 255 = 65,535."""

Levels = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """What all participants of a round encode with.

    Attributes:
        dimension: weights of the model.
        clip_norm: C, largest L2 norm of a delta, > 0.
        seed: bytes that the round's transcript gives; the same rotation for everyone in the round, another in the next.
    """

    dimension: int
    clip_norm: float
    seed: bytes

    @property
    def padded(self) -> int:
        """Coordinates that travel: `dimension` rounded up to a multiple of `BLOCK`."""
        return -(-self.dimension // BLOCK) * BLOCK

    @property
    def limit(self) -> float:
        """Largest coordinate that the levels can say: ±4.5 C/√padded."""
        return float(RANGE_SIGMAS * self.clip_norm / self.padded**0.5)

    @property
    def step(self) -> float:
        """Distance of two levels."""
        return 2.0 * self.limit / LEVEL_MAX


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """A delta, ready to travel.

    Attributes:
        levels: ``(padded,)`` uint8.
        clipped: whether the norm was above the clip norm.
        norm: L2 norm before clipping. For local use: it is not sent.
    """

    levels: Levels
    clipped: bool
    norm: float


def encode(delta: Float32, encoding: Encoding, rng: np.random.Generator) -> EncodedUpdate:
    """Clip, rotate and round one delta.

    Args:
        delta: ``(dimension,)`` float32.
        encoding: the round's.
        rng: the device's own randomness, for the rounding; unbiased, and never to be derived from the seed.

    Raises:
        RefusedError: the delta is not finite: it is not contributed.
        ValueError: the delta has another shape.
    """
    if delta.shape != (encoding.dimension,):
        raise ValueError(f"delta: found shape {delta.shape}, expected ({encoding.dimension},)")
    vector = delta.astype(np.float64)
    bad = int((~np.isfinite(vector)).sum())
    if bad:
        raise RefusedError(f"delta: found {bad} of {len(delta)} values that are not finite", rule="finite")
    norm = float(np.linalg.norm(vector))
    clipped = norm > encoding.clip_norm
    if clipped:
        vector *= encoding.clip_norm / norm
    place = (_rotate(vector, encoding) + encoding.limit) / encoding.step
    np.clip(place, 0.0, LEVEL_MAX, out=place)
    below = np.floor(place)
    levels = below + (rng.random(len(place)) < place - below)
    return EncodedUpdate(levels.astype(np.uint8), clipped, norm)


def rotation_seed(*, task: str, round_number: int, attempt: int, model: str, plan: str, beacon: bytes) -> bytes:
    """The seed that every group of one attempt of a round shares, so that sums of groups can be summed again.

    Args:
        task: the task.
        round_number: the round.
        attempt: the attempt of it.
        model: sha256 of the weights file that the round starts from, hex.
        plan: sha256 of the plan, hex.
        beacon: the round's randomness.
    """
    numbers = (str(round_number).encode(), str(attempt).encode())
    return hash_parts(b"vedette-rotation-1", task.encode(), *numbers, bytes.fromhex(model), bytes.fromhex(plan), beacon)


def update_weight(num_examples: int, examples_reference: int, weight_max: int) -> int:
    """What an update counts: clamp(round(n / n_ref), 1, W_max). Bounds what one device can do by claiming examples."""
    return max(1, min(weight_max, round(num_examples / examples_reference)))


def sum_bits(weight_sum_max: int) -> int:
    """Bits of the ring that sums of weighted levels need: 16 iff at most `UINT16_WEIGHT_MAX` of weight, else 32."""
    return 16 if weight_sum_max <= UINT16_WEIGHT_MAX else 32


def weigh(levels: Levels, weight: int) -> Sums:
    """One update's contribution to the sum: levels × weight, as whole numbers.

    Args:
        levels: ``(padded,)`` uint8.
        weight: ≥ 1.

    Raises:
        PeerError: the weight is below 1, or the levels are not bytes.
    """
    if weight < 1:
        raise PeerError(f"update: found weight {weight}, expected at least 1", reason="limit")
    if levels.dtype != np.uint8:
        raise PeerError(f"update: found levels of type {levels.dtype}, expected uint8", reason="schema")
    return levels.astype(np.int64) * weight


def weighted_sum(updates: Levels, weights: npt.NDArray[np.int64]) -> Sums:
    """Exact sum of many updates: what masks will cancel to.

    Args:
        updates: ``(k, padded)`` uint8, k ≥ 1.
        weights: ``(k,)`` int64 ≥ 1.

    Returns:
        ``(padded,)`` int64.

    Raises:
        PeerError: no updates, another number of weights, a weight below 1.
    """
    if updates.ndim != 2 or len(updates) == 0 or len(weights) != len(updates):
        raise PeerError(
            f"updates: found shape {updates.shape} with {len(weights)} weights, expected (k, coordinates) with k ≥ 1",
            reason="schema",
        )
    total = np.zeros(updates.shape[1], np.int64)
    for levels, weight in zip(updates, weights, strict=True):  # one row at a time: k × d int64 would be 8 × the input
        total += weigh(levels, int(weight))
    return total


def decode_mean(total: Sums, weight_sum: int, encoding: Encoding) -> Float32:
    """The weighted mean of the deltas behind a sum of weighted levels.

    Args:
        total: ``(padded,)`` int64 sum.
        weight_sum: sum of their weights, ≥ 1.
        encoding: the round's.

    Returns:
        ``(dimension,)`` float32.

    Raises:
        PeerError: another length, or a sum that `weight_sum` updates cannot have: someone's vector was no encoding.
    """
    if total.shape != (encoding.padded,):
        raise PeerError(f"sum: found shape {total.shape}, expected ({encoding.padded},)", reason="schema")
    if weight_sum < 1 or total.min() < 0 or total.max() > weight_sum * LEVEL_MAX:
        raise PeerError(
            f"sum: found {total.min()} to {total.max()} for a weight of {weight_sum}, "
            f"expected 0 to {max(weight_sum, 0) * LEVEL_MAX}",
            reason="limit",
        )
    place = total / weight_sum
    return _rotate_back(place * encoding.step - encoding.limit, encoding).astype(np.float32)


def aggregate(updates: Levels, weights: npt.NDArray[np.int64], encoding: Encoding) -> Float32:
    """Weighted mean delta ``(dimension,)`` float32 of ``(k, padded)`` encoded updates.

    Raises:
        PeerError: see `weighted_sum` and `decode_mean`.
    """
    return decode_mean(weighted_sum(updates, weights), int(np.sum(weights)), encoding)


def _rotate(vector: npt.NDArray[np.float64], encoding: Encoding) -> FloatArray:
    padded = np.zeros(encoding.padded)
    padded[: encoding.dimension] = vector
    first, second = _signs(encoding)
    mixed = _hadamard((padded * first).reshape(-1, BLOCK))
    return _hadamard((mixed.T.reshape(-1) * second).reshape(-1, BLOCK)).reshape(-1)


def _rotate_back(rotated: npt.NDArray[np.float64], encoding: Encoding) -> FloatArray:
    first, second = _signs(encoding)
    mixed: FloatArray = _hadamard(rotated.reshape(-1, BLOCK)).reshape(-1) * second
    vector: FloatArray = _hadamard(np.ascontiguousarray(mixed.reshape(BLOCK, -1).T)).reshape(-1) * first
    return vector[: encoding.dimension]


def _hadamard(blocks: FloatArray) -> FloatArray:
    """Orthonormal Walsh–Hadamard transform of each row of ``(k, BLOCK)``; it is its own inverse."""
    out = blocks.copy()
    half = 1
    while half < BLOCK:
        pairs = out.reshape(len(out), BLOCK // (2 * half), 2, half)
        left, right = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
        pairs[:, :, 0], pairs[:, :, 1] = left, right
        half *= 2
    out *= BLOCK**-0.5
    return out


def _signs(encoding: Encoding) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Two vectors of ±1 from the seed, by SHAKE-256: numpy does not promise its streams from version to version."""
    label = b"vedette rotation 1" + len(encoding.seed).to_bytes(4, "big") + encoding.seed
    raw = hashlib.shake_256(label).digest(2 * encoding.padded // 8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).astype(np.float64)
    first, second = (2.0 * bits - 1.0).reshape(2, -1)
    return first, second
