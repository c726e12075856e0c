"""What a device has been exposed to: the sum that composition adds up, kept exactly.

1/z² is what Gaussian releases add (`accountant`). Here it is counted in whole units, each release rounded up, so that
sums depend neither on their order nor on what was added up before: folding a history cannot lose anything to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from vedette_core.privacy.accountant import SIGMA_MIN, epsilon_of_composed

UNIT_BITS: Final = 64
"""A unit is 2⁻⁶⁴: at z = 1,000 the rounding up is one part in 10¹³."""
NOISE_MULTIPLIER_MAX: Final = 1e6
"""Larger ones are a slip of the pen: nothing could be learnt under them."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """Releases that one device was in.

    Attributes:
        releases: how many.
        units: Σ 1/z² over those with noise, in units of 2⁻⁶⁴, each rounded up.
        bare: how many had no noise: one is enough for an infinite ε.
    """

    releases: int = 0
    units: int = 0
    bare: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bare <= self.releases or self.units < 0:
            raise ValueError(f"exposure: found {self}, expected 0 ≤ bare ≤ releases and units ≥ 0")

    def __add__(self, other: Exposure) -> Exposure:
        return Exposure(self.releases + other.releases, self.units + other.units, self.bare + other.bare)

    @property
    def multiplier(self) -> float:
        """The noise multiplier of the one release that they are worth: 0 without noise, infinity without releases."""
        if self.bare:
            return 0.0
        return math.inf if self.units == 0 else math.sqrt(2**UNIT_BITS / self.units)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sorts by how much was given away, then by how often."""
        return self.bare, self.units, self.releases

    def epsilon(self, delta: float) -> float:
        """ε at δ: 0 without releases, infinity if one of them had no noise.

        Raises:
            ValueError: δ is out of the accountant's range.
        """
        return epsilon_of_composed(self.multiplier, delta)


NOTHING: Final = Exposure()
"""Of a device that was in no release."""


def exposure_of(noise_multiplier: float) -> Exposure:
    """Of one release.

    Args:
        noise_multiplier: z, 0…`NOISE_MULTIPLIER_MAX`; below the accountant's least σ it counts as no noise.

    Raises:
        ValueError: z is out of its range.
    """
    if not 0.0 <= noise_multiplier <= NOISE_MULTIPLIER_MAX:
        raise ValueError(f"noise multiplier: found {noise_multiplier}, expected 0 to {NOISE_MULTIPLIER_MAX:g}")
    if noise_multiplier < SIGMA_MIN:
        return Exposure(1, 0, 1)
    return Exposure(1, math.ceil(Fraction(2**UNIT_BITS) / Fraction(noise_multiplier) ** 2), 0)


def epsilon_text(epsilon: float) -> str:
    """ε for people: three decimals, rounded up, or ``unbounded``."""
    return "unbounded" if math.isinf(epsilon) else f"{math.ceil(epsilon * 1000) / 1000:.3f}"
