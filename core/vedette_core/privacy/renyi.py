"""Rényi accounting: a bound that also covers random samples of participants.

Vedette claims no amplification by sampling and its ledger never uses this module. It is here to compare with figures
that others publish, and for an operator whose sampling *is* random and secret.

Source: Mironov 2017, arXiv 1702.07476, proposition 7 (Gaussian); Mironov, Talwar and Zhang 2019, arXiv 1908.10530,
section 3.3 (Poisson sample, whole orders); Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12
(conversion to ε: tighter than the older ε = r + ln(1/δ)/(α−1)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

ORDERS: Final = tuple(range(2, 512))
"""Whole orders: only for these the divergence of a sampled Gaussian is a finite sum, without cancellation."""


def gaussian_divergence(sigma: float, order: int) -> float:
    """Rényi divergence of order α of one Gaussian release: α/(2σ²).

    Args:
        sigma: noise over sensitivity, > 0.
        order: α ≥ 2.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(sigma, 1.0, order)
    return order / (2.0 * sigma**2)


def sampled_gaussian_divergence(sigma: float, sampling: float, order: int) -> float:
    """Rényi divergence of order α of one Gaussian release of a Poisson sample.

    ln(Σₖ C(α, k) qᵏ (1−q)^(α−k) e^((k²−k)/(2σ²))) / (α−1), summed as logarithms.

    Args:
        sigma: noise over sensitivity, > 0.
        sampling: q, probability with which each participant is in the sample, 0…1.
        order: α ≥ 2.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(sigma, sampling, order)
    if sampling == 0.0:
        return 0.0
    if sampling == 1.0:
        return gaussian_divergence(sigma, order)
    inside, outside, spread = math.log(sampling), math.log1p(-sampling), 1.0 / (2.0 * sigma**2)
    terms = [
        _log_choose(order, k) + k * inside + (order - k) * outside + k * (k - 1) * spread for k in range(order + 1)
    ]
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return max(0.0, total) / (order - 1)


def epsilon_of_divergences(divergences: Mapping[int, float], delta: float) -> float:
    """The best ε that any of the orders gives.

    Args:
        divergences: Rényi divergence by order α; for several releases, the sums.
        delta: δ, 0…1 exclusive.

    Raises:
        ValueError: δ out of its range, or no order.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: found {delta}, expected 0 to 1, both excluded")
    if not divergences:
        raise ValueError("divergences: found none, expected at least one order")
    return min(_epsilon(order, divergence, delta) for order, divergence in divergences.items())


def sampled_gaussian_epsilon(
    sigma: float, sampling: float, rounds: int, delta: float, orders: Sequence[int] = ORDERS
) -> float:
    """ε of `rounds` Gaussian releases, each of a Poisson sample of its own.

    Args:
        sigma: noise over sensitivity of each, > 0.
        sampling: q, 0…1; 1 is everyone in each.
        rounds: ≥ 0.
        delta: δ, 0…1 exclusive.
        orders: α to try.

    Raises:
        ValueError: an argument is out of its range.
    """
    if rounds < 0:
        raise ValueError(f"rounds: found {rounds}, expected at least 0")
    return epsilon_of_divergences(
        {order: rounds * sampled_gaussian_divergence(sigma, sampling, order) for order in orders}, delta
    )


def _epsilon(order: int, divergence: float, delta: float) -> float:
    if delta**2 + math.expm1(-divergence) > 0.0:  # then δ alone covers it: δ ≥ √(1 − e^−KL)
        return 0.0
    return max(0.0, divergence + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check(sigma: float, sampling: float, order: int) -> None:
    if not (sigma > 0.0 and math.isfinite(sigma)):
        raise ValueError(f"sigma: found {sigma}, expected more than 0")
    if not 0.0 <= sampling <= 1.0:
        raise ValueError(f"sampling: found {sampling}, expected 0 to 1")
    if order < 2:
        raise ValueError(f"order: found {order}, expected at least 2")
