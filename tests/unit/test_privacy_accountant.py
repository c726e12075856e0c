"""The accountant against published values, against dp-accounting, and against its own definition."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import integrate, special, stats

from vedette_core.privacy import accountant, renyi
from vedette_core.privacy.accountant import (
    SIGMA_MAX,
    SIGMA_MIN,
    composed_multiplier,
    epsilon_after,
    epsilon_of_composed,
    gaussian_delta,
    gaussian_epsilon,
    noise_multiplier_for,
)

SIGMAS = (0.3, 0.8, 1.0, 2.0, 3.9, 4.1, 10.0, 50.0)
DELTAS = (1e-9, 1e-6, 1e-5, 1e-2)


@pytest.mark.parametrize(
    ("sigma", "delta", "epsilon"),
    [(1.0, 1e-5, 4.377178), (2.0, 1e-5, 1.993091), (5.0, 1e-6, 0.834118)],
)
def test_published_values_of_one_release(sigma: float, delta: float, epsilon: float) -> None:
    assert gaussian_epsilon(sigma, delta) == pytest.approx(epsilon, abs=5e-7)


def test_a_hundred_releases_at_ten_are_one_at_one() -> None:
    assert epsilon_after(10.0, 100, 1e-5) == pytest.approx(4.377178, abs=5e-7)


@pytest.mark.parametrize(
    ("z", "participations", "epsilon"),
    [
        (2, 1, 2.254), (2, 5, 5.551), (2, 10, 8.306),
        (4, 1, 1.061), (4, 5, 2.549), (4, 10, 3.747), (4, 20, 5.551),
        (8, 1, 0.504), (8, 5, 1.197), (8, 10, 1.743), (8, 50, 4.249),
    ],
)  # fmt: skip
def test_participations_at_one_in_a_million(z: float, participations: int, epsilon: float) -> None:
    assert epsilon_after(z, participations, 1e-6) == pytest.approx(epsilon, abs=5.1e-4)


@pytest.mark.parametrize(
    ("epsilon", "participations", "z"),
    [(4, 1, 1.194), (4, 5, 2.669), (4, 10, 3.774), (4, 20, 5.338), (4, 50, 8.439), (2, 10, 7.053), (8, 10, 2.065)],
)
def test_noise_that_a_budget_needs(epsilon: float, participations: int, z: float) -> None:
    found = noise_multiplier_for(epsilon, 1e-6, participations)
    assert found == pytest.approx(z, abs=5.1e-4)
    assert epsilon * (1 - 1e-8) < epsilon_after(found, participations, 1e-6) <= epsilon


@pytest.mark.parametrize(("sigma", "delta"), list(itertools.product(SIGMAS, DELTAS)))
def test_one_release_agrees_with_dp_accounting(sigma: float, delta: float) -> None:
    oracle = dp_accounting.get_epsilon_gaussian(sigma, delta, tol=1e-12)
    assert gaussian_epsilon(sigma, delta) == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize(
    ("sigma", "count", "delta"), [(1.0, 1, 1e-5), (4.0, 10, 1e-6), (2.0, 5, 1e-6), (8.0, 50, 1e-6)]
)
def test_participations_agree_with_a_privacy_loss_distribution(sigma: float, count: int, delta: float) -> None:
    oracle = pld.PLDAccountant(value_discretization_interval=1e-5)
    oracle.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma), count))
    assert epsilon_after(sigma, count, delta) == pytest.approx(oracle.get_epsilon(delta), abs=1e-6)


def test_releases_of_unlike_noise_agree_with_a_privacy_loss_distribution() -> None:
    multipliers = (3.0, 5.0, 2.0, 8.0)
    oracle = pld.PLDAccountant(value_discretization_interval=1e-5)
    for z in multipliers:
        oracle.compose(dp_accounting.GaussianDpEvent(z))
    assert epsilon_of_composed(composed_multiplier(multipliers), 1e-6) == pytest.approx(
        oracle.get_epsilon(1e-6), abs=1e-6
    )


@pytest.mark.parametrize(
    ("sigma", "epsilon"),
    [(s, e) for s in (0.5, 1.0, 3.0, 5.0, 40.0) for e in (0.0, 0.01, 0.1, 1.0, 3.0) if s * e < 25],
)
def test_delta_is_the_largest_gap_that_the_definition_allows(sigma: float, epsilon: float) -> None:
    """max over sets S of P(S) − e^ε Q(S): the integral of the positive part of the densities' difference."""
    crossing = 0.5 + epsilon * sigma**2
    gap, _ = integrate.quad(
        lambda x: max(0.0, stats.norm.pdf(x, 1, sigma) - math.exp(epsilon) * stats.norm.pdf(x, 0, sigma)),
        crossing, crossing + 45 * sigma, epsabs=1e-14, epsrel=1e-9, limit=400,
    )  # fmt: skip
    assert gaussian_delta(epsilon, sigma) == pytest.approx(gap, abs=1e-11, rel=1e-7)


def test_mills_ratio_holds_on_both_sides_of_the_change_of_formula() -> None:
    points = np.concatenate([np.linspace(-0.1, 40, 801), [5.999999, 6.0, 6.000001, 1e3, 1e8]])
    expected = math.sqrt(math.pi / 2) * special.erfcx(points / math.sqrt(2))
    assert [accountant._mills(float(x)) for x in points] == pytest.approx(expected, rel=2e-14)


def test_the_change_of_formula_leaves_no_step() -> None:
    below, above = math.nextafter(4.0, 0.0), 4.0
    for epsilon in (0.0, 0.1, 1.0, 3.0):
        assert gaussian_delta(epsilon, below) == pytest.approx(gaussian_delta(epsilon, above), rel=1e-11)


@pytest.mark.parametrize("sigma", [SIGMA_MIN, 0.01, 0.05, 1e4, 1e8, SIGMA_MAX])
def test_extreme_noise_neither_overflows_nor_vanishes(sigma: float) -> None:
    epsilon = gaussian_epsilon(sigma, 1e-12)
    assert 0.0 < epsilon < math.inf
    assert gaussian_delta(epsilon, sigma) == pytest.approx(1e-12, rel=1e-6)
    assert gaussian_delta(epsilon * 1e4 + 1e6, sigma) == 0.0


def test_without_noise_epsilon_is_infinite_and_without_a_release_zero() -> None:
    assert epsilon_after(0.0, 3, 1e-5) == math.inf
    assert epsilon_after(0.0, 0, 1e-5) == 0.0
    assert epsilon_after(2.0, 0, 1e-5) == 0.0
    assert composed_multiplier([4.0, 0.0]) == 0.0
    assert composed_multiplier([]) == math.inf
    assert composed_multiplier([3.0, 4.0]) == pytest.approx(12 / 5)


def test_so_much_noise_that_delta_alone_covers_it_is_epsilon_zero() -> None:
    assert gaussian_epsilon(1000.0, 0.01) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_delta(-0.1, 1.0),
        lambda: gaussian_delta(math.nan, 1.0),
        lambda: gaussian_delta(1.0, 0.0),
        lambda: gaussian_epsilon(math.nan, 1e-5),
        lambda: gaussian_epsilon(1.0, 0.0),
        lambda: gaussian_epsilon(1.0, 1.0),
        lambda: epsilon_after(1.0, -1, 1e-5),
        lambda: epsilon_after(-1.0, 1, 1e-5),
        lambda: composed_multiplier([1.0, math.nan]),
        lambda: composed_multiplier([math.inf]),
        lambda: epsilon_of_composed(-1.0, 1e-5),
        lambda: noise_multiplier_for(0.0, 1e-5, 1),
        lambda: noise_multiplier_for(1.0, 1e-5, 0),
        lambda: noise_multiplier_for(1e-12, 1e-15, 1),
    ],
)
def test_what_is_no_privacy_parameter_is_a_fault(call: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()  # type: ignore[operator]


# --- Rényi ---


def oracle_of(sigma: float, sampling: float, rounds: int, delta: float) -> float:
    oracle = rdp.RdpAccountant(orders=list(renyi.ORDERS))
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(sigma)
    if sampling < 1:
        event = dp_accounting.PoissonSampledDpEvent(sampling, event)
    oracle.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    return float(oracle.get_epsilon(delta))


@pytest.mark.parametrize(
    ("sigma", "sampling", "rounds", "epsilon"),
    [(1.1, 0.01, 1000, 1.725291), (1, 0.05, 200, 5.371115), (2, 0.1, 500, 6.089503), (1.5, 1, 10, 11.468358)],
)
def test_sampled_releases_agree_with_dp_accounting(sigma: float, sampling: float, rounds: int, epsilon: float) -> None:
    found = renyi.sampled_gaussian_epsilon(sigma, sampling, rounds, 1e-5)
    assert found == pytest.approx(epsilon, abs=1e-6)
    assert found == pytest.approx(oracle_of(sigma, sampling, rounds, 1e-5), abs=1e-6)


@pytest.mark.parametrize(
    ("sigma", "sampling", "rounds", "delta"),
    [(0.5, 0.001, 10, 1e-6), (0.8, 0.5, 3, 1e-9), (6.0, 0.2, 2000, 1e-5), (30.0, 1.0, 1, 0.3), (1.0, 0.0, 50, 1e-5)],
)
def test_other_samples_agree_with_dp_accounting(sigma: float, sampling: float, rounds: int, delta: float) -> None:
    found = renyi.sampled_gaussian_epsilon(sigma, sampling, rounds, delta)
    assert found == pytest.approx(oracle_of(sigma, sampling, rounds, delta), abs=1e-6)


@pytest.mark.parametrize(
    ("sigma", "epochs", "old", "modern"),
    [
        (1.12, 60, 2.922, 2.521), (0.6, 30, 9.773, 8.819), (1.2, 10, 1.198, 0.932),
        (1.3, 20, 1.350, 1.106), (0.7, 70, 8.948, 8.078),
    ],
)  # fmt: skip
def test_the_conversion_is_the_modern_one(sigma: float, epochs: int, old: float, modern: float) -> None:
    """Published figures of TF-Privacy's tutorials and of Bu et al. were made with the older conversion."""
    sampling, delta = 256 / 60_000, 1e-5
    rounds = epochs * 60_000 // 256
    divergences = {a: rounds * renyi.sampled_gaussian_divergence(sigma, sampling, a) for a in renyi.ORDERS}
    assert renyi.epsilon_of_divergences(divergences, delta) == pytest.approx(modern, abs=1.5e-3)
    older = min(divergence + math.log(1 / delta) / (order - 1) for order, divergence in divergences.items())
    assert older == pytest.approx(old, abs=1.5e-3)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 9.0])
def test_the_bound_is_never_below_the_exact_value(sigma: float) -> None:
    exact, bound = gaussian_epsilon(sigma, 1e-6), renyi.sampled_gaussian_epsilon(sigma, 1.0, 1, 1e-6)
    assert exact <= bound < 1.5 * exact


@pytest.mark.parametrize(
    "call",
    [
        lambda: renyi.gaussian_divergence(0.0, 2),
        lambda: renyi.gaussian_divergence(1.0, 1),
        lambda: renyi.sampled_gaussian_divergence(1.0, 1.1, 2),
        lambda: renyi.sampled_gaussian_divergence(math.inf, 0.1, 2),
        lambda: renyi.epsilon_of_divergences({}, 1e-5),
        lambda: renyi.epsilon_of_divergences({2: 1.0}, 0.0),
        lambda: renyi.sampled_gaussian_epsilon(1.0, 0.1, -1, 1e-5),
    ],
)
def test_what_is_no_renyi_parameter_is_a_fault(call: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()  # type: ignore[operator]
