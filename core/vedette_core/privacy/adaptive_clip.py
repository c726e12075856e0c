"""A clip norm that follows a quantile of the updates' norms, and what learning it costs.

Each device says in one bit whether it clipped. The sum of the bits gets noise of its own; the share moves the clip norm
of the next round by a factor. The norm is fixed within a round.

Source: Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv 1905.03871, algorithm 1 and theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_core.privacy.noise import Entropy, add_noise
from vedette_schemas.errors import RefusedError

TARGET_QUANTILE: Final = 0.5
"""Share of the updates that should not be clipped."""
LEARNING_RATE: Final = 0.2
"""Of the logarithm of the clip norm: it changes at most by a factor e^0.2 a round."""
COUNT_SIGMA_SHARE: Final = 0.05
"""Noise of the count over the number of devices, as the paper recommends."""
COUNT_SIGMA_MULTIPLIERS: Final = 2.0
"""Least noise of the count, in noise multipliers: then the sum needs at most 3.3 % more. Rules in small fleets."""
SHARE_SIGMAS: Final = 8.0
"""A noised share is taken as this many standard deviations below 0 or above 1 at most."""
COUNT_SCALE: Final = 2**10
"""The count is noised in steps of 1/1,024 of a device, so that rounding is small against its noise."""


@dataclass(frozen=True, slots=True)
class ClipBounds:
    """Between which a clip norm stays.

    Attributes:
        least: > 0.
        largest: ≥ `least`.
    """

    least: float
    largest: float

    def __post_init__(self) -> None:
        if not 0.0 < self.least <= self.largest < math.inf:
            raise ValueError(f"clip norm: found bounds {self.least} to {self.largest}, expected 0 < least ≤ largest")


def next_clip_norm(
    clip_norm: float,
    clipped_share: float,
    bounds: ClipBounds,
    target_quantile: float = TARGET_QUANTILE,
    learning_rate: float = LEARNING_RATE,
) -> float:
    """The clip norm of the next round: C · e^(−η (b − γ)), b the share that was not clipped.

    Args:
        clip_norm: C of this round, > 0.
        clipped_share: share of the devices that clipped, with its noise; taken as 0…1.
        bounds: where the result stays. A C outside of them moves to them at once.
        target_quantile: γ, share of the devices that should not clip, 0…1.
        learning_rate: η, 0…1: the factor is within e^±η.

    Raises:
        ValueError: an argument is out of its range, or not a number.
    """
    if not (clip_norm > 0.0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip norm: found {clip_norm}, expected more than 0")
    if math.isnan(clipped_share):
        raise ValueError(f"clipped share: found {clipped_share}, expected a number")
    if not (0.0 <= target_quantile <= 1.0 and 0.0 <= learning_rate <= 1.0):
        raise ValueError(f"found quantile {target_quantile} and learning rate {learning_rate}, expected 0 to 1")
    unclipped = 1.0 - min(1.0, max(0.0, clipped_share))
    moved = clip_norm * math.exp(-learning_rate * (unclipped - target_quantile))
    return min(bounds.largest, max(bounds.least, moved))


def count_sigma(devices: int, noise_multiplier: float) -> float:
    """Standard deviation of the noise of the count, in devices: a twentieth of them, but at least two multipliers.

    Args:
        devices: expected in a round, ≥ 1.
        noise_multiplier: z ≥ 0 of the whole round.

    Raises:
        ValueError: an argument is out of its range.
    """
    if devices < 1 or not noise_multiplier >= 0.0:
        raise ValueError(f"found {devices} devices and noise multiplier {noise_multiplier}, expected 1 and 0 at least")
    return max(COUNT_SIGMA_SHARE * devices, COUNT_SIGMA_MULTIPLIERS * noise_multiplier)


def sum_multiplier(noise_multiplier: float, count_sigma: float) -> float:
    """The multiplier z_Δ that the sum needs, so that sum and count together are one release with z.

    (z⁻² − (2σ_b)⁻²)^-½. A bit is counted from ½, as a zero update's bit would be: it moves the count by ½ at most.

    Args:
        noise_multiplier: z > 0 of the whole round: what the ledger counts.
        count_sigma: σ_b, standard deviation of the count's noise, in devices.

    Raises:
        RefusedError: the count alone gives away all that z allows.
        ValueError: z is not above 0.
    """
    if not (noise_multiplier > 0.0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise multiplier: found {noise_multiplier}, expected more than 0")
    ratio = noise_multiplier / (2.0 * count_sigma) if count_sigma > 0.0 else math.inf
    if not ratio < 1.0:
        raise RefusedError(
            f"adaptive clipping: found noise of {count_sigma:g} devices on the clipped count, expected more than "
            f"{noise_multiplier / 2:g} for a noise multiplier of {noise_multiplier:g}",
            rule="noise",
        )
    return noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))


def noisy_clipped_share(
    clipped: int, devices: int, count_sigma: float, entropy: Entropy, modulus: int = 2**32
) -> float:
    """The share of devices that clipped, with its noise: may be below 0 or above 1, by `SHARE_SIGMAS` of it at most.

    The count is a residue, and is noised as one: a liar can make it anything, and whether the exact one is possible
    would tell of the others. What such a liar can do is choose the share.

    Args:
        clipped: residue of how many clipped, 0…`modulus` − 1.
        devices: how many took part, ≥ 1.
        count_sigma: σ_b, in devices.
        entropy: asked once.
        modulus: of the ring that the count was summed in, > `devices`, even.

    Raises:
        RefusedError: the noise is too small or too large to be exact.
        ValueError: an argument is out of its range.
    """
    if not (0 <= clipped < modulus and 1 <= devices < modulus and modulus % 2 == 0):
        raise ValueError(f"found {clipped} of {devices} devices clipped modulo {modulus}, expected residues of devices")
    noised = int(add_noise(np.array([clipped * COUNT_SCALE], np.int64), count_sigma * COUNT_SCALE, entropy)[0])
    low = COUNT_SCALE * (devices - modulus) // 2
    share = ((noised - low) % (COUNT_SCALE * modulus) + low) / (COUNT_SCALE * devices)
    spare = SHARE_SIGMAS * count_sigma / devices
    return min(1.0 + spare, max(-spare, share))
