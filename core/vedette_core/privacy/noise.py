"""Gaussian noise on sums of levels, in whole numbers.

``rint(S + N(0, σ))`` of a whole S is ``S + rint(N(0, σ))``: rounding comes after the Gaussian and cannot undo it, so
the exact accounting of the continuous Gaussian holds for what leaves here, and the last bits of floating-point numbers,
by which noise has been told from its sum, are rounded away.

The bits come from SHAKE-256 under a seed of 32 bytes of the caller's entropy, the normal deviates from those by Box and
Muller's transform. So the draws are as unpredictable as the seed: whoever knows many of them, because the sum behind
them is known, learns nothing of the others. numpy's generators do not promise that. The seed is used once and never
stored, nor is the noise.

Source: Mironov 2012, "On significance of the least significant bits for differential privacy"; Box and Muller 1958,
"A note on the generation of random normal deviates"; FIPS 202 (SHAKE-256).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import RefusedError

ROUNDING_SLACK: Final = 1e-3
"""By this part an encoded update may be longer than C: stochastic rounding lengthens it, and is redrawn beyond."""
SIGMA_MIN: Final = 8.0
"""Least σ in levels. Below, rounding is no longer small against the noise, and what rounded shares add up to is no
Gaussian any more; from here on it differs from one by about e^(−π²σ²) < 10⁻²⁷⁰."""
SIGMA_MAX: Final = float(2**28)
"""Largest σ in levels: the grid of float64 draws stays far finer than one level."""
SUM_MAX: Final = 2**52
"""Largest magnitude of a sum: with its noise it stays below 2⁵³, exact in int64 and in the float64 of decoding."""
SEED_BYTES: Final = 32

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes."""
Sums = npt.NDArray[np.int64]


def sensitivity(clip_norm: float, weight_max: int, step: float) -> float:
    """What one device's encoded update can add to a weighted sum at most, as L2 norm in levels.

    Measured from the centre of the range of levels, which is what a zero update means.

    Args:
        clip_norm: C > 0.
        weight_max: largest weight, ≥ 1.
        step: distance of two levels, in the unit of C, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    for name, value in (("clip norm", clip_norm), ("step", step)):
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"{name}: found {value}, expected more than 0")
    if weight_max < 1:
        raise ValueError(f"weight_max: found {weight_max}, expected at least 1")
    return weight_max * clip_norm * (1.0 + ROUNDING_SLACK) / step


def noise_sigma(noise_multiplier: float, clip_norm: float, weight_max: int, step: float) -> float:
    """Standard deviation of the noise for a multiplier, in levels of the weighted sum.

    Args:
        noise_multiplier: z > 0.
        clip_norm: C > 0.
        weight_max: largest weight, ≥ 1.
        step: distance of two levels, in the unit of C, > 0.

    Raises:
        RefusedError: the result is outside of `SIGMA_MIN`…`SIGMA_MAX`.
        ValueError: an argument is out of its range.
    """
    if not (noise_multiplier > 0.0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise multiplier: found {noise_multiplier}, expected more than 0")
    return _checked(noise_multiplier * sensitivity(clip_norm, weight_max, step))


def device_share_sigma(sigma: float, honest_min: int) -> float:
    """Standard deviation of each device's share, so that any `honest_min` shares have at least σ together.

    The guarantee counts only devices that do add their share: corrupt ones may add none, and know what they added.

    Args:
        sigma: σ of the whole, in levels.
        honest_min: fewest honest devices whose shares are in a sum that is opened, ≥ 1.

    Raises:
        RefusedError: a share is outside of `SIGMA_MIN`…`SIGMA_MAX`.
        ValueError: `honest_min` is below 1.
    """
    if honest_min < 1:
        raise ValueError(f"honest_min: found {honest_min}, expected at least 1")
    return _checked(sigma / math.sqrt(honest_min))


def add_noise(sums: Sums, sigma: float, entropy: Entropy) -> Sums:
    """The sums with independent rounded Gaussian noise on each: what may be read.

    Called twice on the same sums it gives two releases, and their mean has less noise: whoever retries a release hands
    out the first result again.

    Args:
        sums: int64, any shape, each within ±`SUM_MAX`.
        sigma: standard deviation in levels, `SIGMA_MIN`…`SIGMA_MAX`.
        entropy: asked once, for `SEED_BYTES`.

    Returns:
        int64 of the same shape; `sums` stays as it is.

    Raises:
        RefusedError: σ is out of its range, or a sum is: nothing is released.
        ValueError: `sums` is not int64, or `entropy` returned another number of bytes.
    """
    if sums.dtype != np.int64:
        raise ValueError(f"sums: found {sums.dtype}, expected int64")
    _checked(sigma)
    if sums.size and (int(sums.min()) < -SUM_MAX or int(sums.max()) > SUM_MAX):
        raise RefusedError(
            f"sums: found {sums.min()} to {sums.max()}, expected within ±{SUM_MAX}: noise would not be exact",
            rule="noise",
        )
    seed = entropy(SEED_BYTES)
    if len(seed) != SEED_BYTES:
        raise ValueError(f"entropy: found {len(seed)} bytes, expected {SEED_BYTES}")
    noise = np.rint(_normal(sums.size, seed) * sigma).astype(np.int64)
    return sums + noise.reshape(sums.shape)


def _normal(count: int, seed: bytes) -> npt.NDArray[np.float64]:
    """Standard normal deviates ``(count,)``; the largest that can come is 9.5."""
    pairs = -(-count // 2)
    raw = hashlib.shake_256(b"vedette noise 1" + seed).digest(16 * pairs)
    uniform = (np.frombuffer(raw, "<u8").astype(np.float64) + 0.5) * 2.0**-64  # above 0, and may round to 1
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = (2.0 * np.pi) * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _checked(sigma: float) -> float:
    if not SIGMA_MIN <= sigma <= SIGMA_MAX:
        raise RefusedError(
            f"noise: found a standard deviation of {sigma:g} levels, expected {SIGMA_MIN:g} to {SIGMA_MAX:g}: below, "
            "rounding is not small against it; raise the noise multiplier, or the levels that the clip norm spans",
            rule="noise",
        )
    return sigma
