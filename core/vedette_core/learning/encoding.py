"""How an update travels: clipped, rotated, rounded to a few bits a coordinate, and summed as whole numbers.

The rotation spreads whatever an update has over all coordinates alike, so that one range, known beforehand from the
clip norm alone, fits every coordinate of every participant: nobody has to tell anybody a scale, and sums of levels can
be taken in an integer ring (under masks, later) and decoded once.

What leaves a device has a norm that is bounded for certain, and not only on average: where rounding would push an
update past ``clip_norm · (1 + rounding_slack(bits))`` it is drawn again, and at last rounded towards the centre.

Source: Suresh et al. 2017, arXiv 1611.00429, section 3 (random rotation); stochastic rounding as in its section 2;
Kairouz et al. 2021, arXiv 2102.06387, section 4.1 (rounding that is conditioned on a bounded norm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32, FloatArray
from vedette_core.learning.rotation import BLOCK as BLOCK
from vedette_core.learning.rotation import rotate, rotate_back
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import hash_parts

RANGE_SIGMAS: Final = 4.5
"""After the rotation a coordinate is nearly normal with σ ≤ C/√d: 7 in a million lie beyond and are clamped."""
REDRAWS_MAX: Final = 8
"""Draws of the rounding before it gives up chance. At 8 bits and 1,024 coordinates about 2 in 100 draws exceed the
bound for an update at the clip norm; with more coordinates practically none does."""
FLOAT32_BITS_MAX: Final = 8
"""Up to here a device rotates in float32: at 8 bits that is off by at most 2e-5 of a step, far below what rounding
adds. At 16 bits it would be 6e-3 of a step, so that float64 is used."""

Bits = Literal[4, 8, 16]

ROUNDING_SLACKS: Final[Mapping[int, float]] = {4: 0.05, 8: 1e-3, 16: 1e-5}
"""By how much, relatively, an encoded update may exceed the clip norm, by its width in bits; see `rounding_slack`."""

Levels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Sums = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """What all participants of a round encode with.

    Attributes:
        dimension: weights of the model.
        clip_norm: C, largest L2 norm of a delta, > 0.
        seed: bytes that the round's transcript gives; the same rotation for everyone in the round, another in the next.
        bits: width of a level: 4, 8 or 16.
    """

    dimension: int
    clip_norm: float
    seed: bytes
    bits: Bits = 8

    def __post_init__(self) -> None:
        if self.bits not in ROUNDING_SLACKS:
            raise ValueError(f"encoding: found {self.bits} bits, expected one of {sorted(ROUNDING_SLACKS)}")

    @property
    def level_max(self) -> int:
        """Levels are 0…2^bits − 1. The number is odd: a coordinate of zero lies between the two middle levels."""
        return int(2**self.bits) - 1

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
        return 2.0 * self.limit / self.level_max

    @property
    def centred_square_max(self) -> int:
        """Largest Σ (2 · level − `level_max`)² of an update: the bound of its norm, in whole half-steps.

        It does not depend on the clip norm: (2 / step)² · C² (1 + slack)² = padded · level_max² (1 + slack)² / 4.5².
        """
        bound = self.padded * self.level_max**2 * (1.0 + rounding_slack(self.bits)) ** 2 / RANGE_SIGMAS**2
        return math.floor(bound)


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """A delta, ready to travel.

    Attributes:
        levels: ``(padded,)`` uint8, or uint16 at 16 bits.
        clipped: whether the norm was above the clip norm.
        norm: L2 norm before clipping. For local use: it is not sent.
        noise: ``(padded,)`` int64, the device's share of the noise, to be added to its **weighted** levels, or none.
    """

    levels: Levels
    clipped: bool
    norm: float
    noise: Sums | None = field(default=None, repr=False)


def rounding_slack(bits: Bits) -> float:
    """What `encode` keeps to: the norm of the decoded update is at most ``clip_norm · (1 + rounding_slack(bits))``.

    Always, and for any input; it belongs into the sensitivity of a privacy mechanism. That it can be kept: rounding
    towards the centre lengthens no coordinate, but those within half a step of zero, which become half a step. So an
    update of norm C gets a squared norm of at most C² + padded · (step / 2)² = C² (1 + 4.5² / level_max²), that is, a
    norm of at most 1.0441 C at 4 bits, 1.000156 C at 8 and 1.0000000024 C at 16. What the slacks add to this leaves
    room for unbiased rounding, whose norm varies by about 4.5 / (level_max √padded).
    """
    return ROUNDING_SLACKS[bits]


def encode(delta: Float32, encoding: Encoding, rng: np.random.Generator, *, noise_sigma: float = 0.0) -> EncodedUpdate:
    """Clip, rotate and round one delta, and draw the device's share of the noise if there is to be one.

    The noise is not added to the levels: it belongs to the weighted sum, and would there count weight times. One unit
    of it is one `Encoding.step` of a delta of weight 1. A mechanism with noise multiplier z, updates of at least U
    devices and weights up to W has each device add ``z · W · clip_norm · (1 + rounding_slack) / (step · √U)``.

    Args:
        delta: ``(dimension,)`` float32.
        encoding: the round's.
        rng: the device's own randomness, for rounding and noise; never to be derived from the seed. The rounding is
            unbiased, but for the draws that are discarded to keep the norm in its bound.
        noise_sigma: standard deviation of the normal law that each coordinate's noise is rounded from, in levels of
            the weighted sum, ≥ 0; 0 for none.

    Raises:
        RefusedError: the delta is not finite: it is not contributed.
        ValueError: the delta has another shape, or the noise no meaning.
    """
    if delta.shape != (encoding.dimension,):
        raise ValueError(f"delta: found shape {delta.shape}, expected ({encoding.dimension},)")
    if not 0.0 <= noise_sigma < 2.0**32:
        raise ValueError(f"noise: found a standard deviation of {noise_sigma} levels, expected 0 to 2^32")
    bad = len(delta) - int(np.count_nonzero(np.isfinite(delta)))
    if bad:
        raise RefusedError(f"delta: found {bad} of {len(delta)} values that are not finite", rule="finite")
    norm = math.sqrt(np.square(delta, dtype=np.float64).sum())  # np.linalg.norm wakes BLAS threads, which cost more
    centre = encoding.level_max / 2.0
    # In levels from the centre: one factor clips, and turns C into padded^0.5 · level_max / 9.
    scale = centre * encoding.padded**0.5 / (RANGE_SIGMAS * max(norm, encoding.clip_norm))
    vector: FloatArray = np.zeros(encoding.padded, np.float32 if encoding.bits <= FLOAT32_BITS_MAX else np.float64)
    np.multiply(delta, scale, out=vector[: encoding.dimension], dtype=np.float64, casting="same_kind")
    place = rotate(vector, encoding.seed)
    place += centre
    np.clip(place, 0.0, encoding.level_max, out=place)
    rounded = _round(place, encoding, rng)
    levels = rounded.astype(np.uint8) if encoding.bits <= 8 else rounded.astype(np.uint16)
    noise = np.rint(rng.normal(0.0, noise_sigma, len(levels))).astype(np.int64) if noise_sigma > 0.0 else None
    return EncodedUpdate(levels, norm > encoding.clip_norm, norm, noise)


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


def weigh(levels: Levels, weight: int) -> Sums:
    """One update's contribution to the sum: levels × weight, as whole numbers.

    Args:
        levels: ``(padded,)`` uint8 or uint16.
        weight: ≥ 1.

    Raises:
        PeerError: the weight is below 1, or the levels are of another type.
    """
    if weight < 1:
        raise PeerError(f"update: found weight {weight}, expected at least 1", reason="limit")
    if levels.dtype not in (np.uint8, np.uint16):
        raise PeerError(f"update: found levels of type {levels.dtype}, expected uint8 or uint16", reason="schema")
    return levels.astype(np.int64) * weight


def weighted_sum(updates: Levels, weights: npt.NDArray[np.int64]) -> Sums:
    """Exact sum of many updates: what masks will cancel to.

    Args:
        updates: ``(k, padded)`` uint8 or uint16, k ≥ 1.
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
    if weight_sum < 1 or total.min() < 0 or total.max() > weight_sum * encoding.level_max:
        raise PeerError(
            f"sum: found {total.min()} to {total.max()} for a weight of {weight_sum}, "
            f"expected 0 to {max(weight_sum, 0) * encoding.level_max}",
            reason="limit",
        )
    return decode_checked(total, weight_sum, encoding)


def decode_checked(total: Sums, weight_sum: int, encoding: Encoding) -> Float32:
    """`decode_mean` of a sum whose range was checked before, or that noise was added to: any values are decoded.

    Args:
        total: ``(padded,)`` int64 sum.
        weight_sum: sum of their weights.
        encoding: the round's.

    Returns:
        ``(dimension,)`` float32.

    Raises:
        ValueError: another length, or a weight below 1.
    """
    if total.shape != (encoding.padded,) or weight_sum < 1:
        raise ValueError(
            f"sum: found shape {total.shape} of weight {weight_sum}, expected ({encoding.padded},) of weight 1 or more"
        )
    place = total / weight_sum
    rotated = place * encoding.step - encoding.limit
    return rotate_back(rotated, encoding.seed)[: encoding.dimension].astype(np.float32)


def aggregate(updates: Levels, weights: npt.NDArray[np.int64], encoding: Encoding) -> Float32:
    """Weighted mean delta ``(dimension,)`` float32 of ``(k, padded)`` encoded updates.

    Raises:
        PeerError: see `weighted_sum` and `decode_mean`.
    """
    return decode_mean(weighted_sum(updates, weights), int(np.sum(weights)), encoding)


def _round(place: FloatArray, encoding: Encoding, rng: np.random.Generator) -> FloatArray:
    """Whole levels next to each place in [0, `level_max`], at random, without bias, and within the norm's bound."""
    below = np.floor(place)
    share = place - below
    for _ in range(REDRAWS_MAX):
        levels: FloatArray = below + (rng.random(len(place)) < share)
        if _centred_square(levels, encoding) <= encoding.centred_square_max:
            return levels
    return _shrink(levels, np.where(place > encoding.level_max / 2.0, below, np.ceil(place)), encoding)


def _shrink(levels: FloatArray, inner: FloatArray, encoding: Encoding) -> FloatArray:
    """Replace levels by their inner neighbours, from the first coordinate on, until the norm is within its bound."""
    squares = (levels.astype(np.float64) - encoding.level_max / 2.0) ** 2
    saved = np.cumsum(4.0 * (squares - (inner.astype(np.float64) - encoding.level_max / 2.0) ** 2))
    excess = _centred_square(levels, encoding) - encoding.centred_square_max
    count = int(np.searchsorted(saved, excess)) + 1
    shrunk = np.concatenate((inner[:count], levels[count:]))
    if _centred_square(shrunk, encoding) > encoding.centred_square_max:
        raise AssertionError("rounding: the norm is above its bound even towards the centre")
    return shrunk


def _centred_square(levels: FloatArray, encoding: Encoding) -> float:
    """Σ (2 · level − level_max)²: whole, and exact in float64 below 2^53, which is 2 million coordinates of 16 bits."""
    centred = np.subtract(levels, encoding.level_max / 2.0, dtype=np.float64)
    return 4.0 * float(np.square(centred, out=centred).sum())
