"""What Gaussian noise is worth: the exact trade of ε, δ and the noise multiplier.

σ is the standard deviation of the noise over the sensitivity throughout (the *noise multiplier* z, for one release).
Nothing here is a bound: for the Gaussian mechanism, δ(ε) is known exactly, and any sequence of Gaussian releases, each
chosen in view of those before, is as good as one.

Source: Balle and Wang 2018, arXiv 1805.06530, theorem 8 (δ of ε); Dong, Roth and Su 2019, arXiv 1905.02383, corollary 2
(composition: 1/σ² adds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

SIGMA_MIN: Final = 1e-3
"""Least σ that is computed: ε is then half a million, which protects nobody."""
SIGMA_MAX: Final = 1e9
"""Largest σ that is computed: far beyond any noise under which something could still be learnt."""
DELTA_MIN: Final = 1e-100
"""Least δ that is computed; below, the densities come close to where float64 ends."""
SAFETY: Final = 1e-9
"""By this part a noise multiplier is rounded up, so that rounding never breaks the budget that it was made for."""

_MILLS_SERIES_FROM: Final = 6.0
"""From here on the continued fraction of Mills' ratio has settled after `_MILLS_TERMS` terms."""
_MILLS_TERMS: Final = 120
_CLOSE_FROM: Final = 4.0
"""From this σ on, five points integrate Mills' ratio over a width of 1/σ to the last digit of float64."""
_NEAR: Final = math.sqrt(5.0 - 2.0 * math.sqrt(10.0 / 7.0)) / 3.0
_FAR: Final = math.sqrt(5.0 + 2.0 * math.sqrt(10.0 / 7.0)) / 3.0
_NEAR_WEIGHT: Final = (322.0 + 13.0 * math.sqrt(70.0)) / 900.0
_FAR_WEIGHT: Final = (322.0 - 13.0 * math.sqrt(70.0)) / 900.0
_LEGENDRE: Final = (
    (0.0, 128.0 / 225.0),
    (-_NEAR, _NEAR_WEIGHT),
    (_NEAR, _NEAR_WEIGHT),
    (-_FAR, _FAR_WEIGHT),
    (_FAR, _FAR_WEIGHT),
)
"""Points and weights of the Gauss–Legendre rule on −1…1."""
_BISECTIONS: Final = 200
"""More than float64 can use: the loops end when the bracket cannot shrink."""


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """The least δ for which one Gaussian release is (ε, δ)-private: 0…1.

    Φ(a) − e^ε Φ(−b) with a = 1/(2σ) − εσ, b = 1/(2σ) + εσ. As e^ε φ(b) = φ(a), this is φ(a) · (R(−a) − R(b)) with
    Mills' ratio R: no power of e is formed that could overflow, and nothing cancels, also where σ is large.

    Args:
        epsilon: ε ≥ 0.
        sigma: σ, within `SIGMA_MIN`…`SIGMA_MAX`.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (epsilon >= 0.0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: found {epsilon}, expected at least 0")
    _check_sigma(sigma)
    half, shift = 0.5 / sigma, epsilon * sigma
    a, b = half - shift, half + shift
    density = math.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)
    if sigma >= _CLOSE_FROM:  # −a and b are close: integrate the difference instead of taking it
        middle, reach = shift, half
        return density * reach * math.fsum(w * _mills_fall(middle + reach * x) for x, w in _LEGENDRE)
    if a > 0.0:
        return max(0.0, 0.5 * math.erfc(-a / math.sqrt(2.0)) - density * _mills(b))
    return max(0.0, density * (_mills(-a) - _mills(b)))


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The least ε for which one Gaussian release is (ε, δ)-private, to about 1e-14 of itself.

    Args:
        sigma: σ, within `SIGMA_MIN`…`SIGMA_MAX`.
        delta: δ, `DELTA_MIN`…1, 1 excluded.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_sigma(sigma)
    _check_delta(delta)
    if gaussian_delta(0.0, sigma) <= delta:
        return 0.0
    # Φ(a) ≤ δ is enough, and Φ(−√(2 ln 1/δ)) ≤ δ: this is always on the far side.
    low, high = 0.0, 0.5 / sigma**2 + math.sqrt(-2.0 * math.log(delta)) / sigma
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if gaussian_delta(middle, sigma) <= delta:
            high = middle
        else:
            low = middle
    return high


def epsilon_after(noise_multiplier: float, participations: int, delta: float) -> float:
    """ε of a device that was in `participations` releases; infinity if there was no noise.

    Args:
        noise_multiplier: z ≥ 0 of each.
        participations: k ≥ 0.
        delta: δ, `DELTA_MIN`…1, 1 excluded.

    Raises:
        ValueError: an argument is out of its range.
    """
    if participations < 0:
        raise ValueError(f"participations: found {participations}, expected at least 0")
    _check_delta(delta)
    return epsilon_of_composed(composed_multiplier([noise_multiplier] * min(participations, 1), participations), delta)


def composed_multiplier(multipliers: Iterable[float], times: int = 1) -> float:
    """The multiplier of the one release that these are worth together: (Σ 1/zᵢ²)^-½.

    Args:
        multipliers: z ≥ 0 of each; 0 is a release without noise.
        times: how often the whole list happened.

    Returns:
        0 if any of them had no noise, infinity if there were none.

    Raises:
        ValueError: a multiplier is negative or not finite.
    """
    listed = list(multipliers)
    for z in listed:
        if not (z >= 0.0 and math.isfinite(z)):
            raise ValueError(f"noise multiplier: found {z}, expected at least 0")
    if not listed or times == 0:
        return math.inf
    least = min(listed)
    if least == 0.0:
        return 0.0
    return least / math.sqrt(times * math.fsum((least / z) ** 2 for z in listed))  # relative to the least: no overflow


def epsilon_of_composed(multiplier: float, delta: float) -> float:
    """ε of a multiplier as `composed_multiplier` gives it: 0 is no noise (ε infinite), infinity no release (ε 0).

    Raises:
        ValueError: an argument is out of its range.
    """
    if multiplier < SIGMA_MIN:
        if multiplier < 0.0:
            raise ValueError(f"noise multiplier: found {multiplier}, expected at least 0")
        return math.inf
    return 0.0 if multiplier == math.inf else gaussian_epsilon(min(multiplier, SIGMA_MAX), delta)


def noise_multiplier_for(epsilon: float, delta: float, participations: int) -> float:
    """The least z with which `participations` releases stay within (ε, δ), rounded up by `SAFETY`.

    Args:
        epsilon: ε > 0.
        delta: δ, `DELTA_MIN`…1, 1 excluded.
        participations: k ≥ 1.

    Raises:
        ValueError: an argument is out of its range, or no σ up to `SIGMA_MAX` is enough.
    """
    if not (epsilon > 0.0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: found {epsilon}, expected more than 0")
    if participations < 1:
        raise ValueError(f"participations: found {participations}, expected at least 1")
    _check_delta(delta)
    low, high = SIGMA_MIN, SIGMA_MAX
    if gaussian_delta(epsilon, high) > delta:
        raise ValueError(f"epsilon {epsilon} at delta {delta}: expected to be reached by a σ of {SIGMA_MAX:g}")
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)  # ε runs over many decades: halve them, not the distance
        if not low < middle < high:
            break
        if gaussian_delta(epsilon, middle) <= delta:
            high = middle
        else:
            low = middle
    return high * math.sqrt(participations) * (1.0 + SAFETY)


def _mills(x: float) -> float:
    """Mills' ratio R(x) = Φ(−x)/φ(x): √(π/2) at 0, about 1/x far out. For x that is not far below 0."""
    if x < _MILLS_SERIES_FROM:
        return math.sqrt(math.pi / 2.0) * math.exp(0.5 * x * x) * math.erfc(x / math.sqrt(2.0))
    return 1.0 / (x + _mills_tail(x))


def _mills_fall(x: float) -> float:
    """−R′(x) = 1 − x R(x), > 0."""
    if x < _MILLS_SERIES_FROM:
        return 1.0 - x * _mills(x)
    tail = _mills_tail(x)
    return tail / (x + tail)


def _mills_tail(x: float) -> float:
    """t in R(x) = 1/(x + t), by Laplace's continued fraction 1/(x + 2/(x + 3/…)), from the inside."""
    tail = 0.0
    for term in range(_MILLS_TERMS, 0, -1):
        tail = term / (x + tail)
    return tail


def _check_sigma(sigma: float) -> None:
    if not SIGMA_MIN <= sigma <= SIGMA_MAX:
        raise ValueError(f"sigma: found {sigma}, expected {SIGMA_MIN:g} to {SIGMA_MAX:g}")


def _check_delta(delta: float) -> None:
    if not DELTA_MIN <= delta < 1.0:
        raise ValueError(f"delta: found {delta}, expected {DELTA_MIN:g} to 1, 1 excluded")
