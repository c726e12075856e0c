"""Measures of drift: against scipy, on streams that change, and on streams that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from vedette_core.learning.drift import (
    ADWIN_BUCKETS,
    ADWIN_LEVELS_MAX,
    ADWIN_PART_MIN,
    PSI_SHIFTED,
    AdaptiveWindow,
    column_stability,
    distance_from_even,
    kolmogorov_smirnov,
    kolmogorov_survival,
    population_stability,
    psi_of_p_values,
)

COUNTS = st.lists(st.integers(0, 10_000), min_size=10, max_size=10).filter(any)


@given(COUNTS, COUNTS)
def test_psi_is_never_negative_and_zero_for_the_same_shape(a: list[int], b: list[int]) -> None:
    assert population_stability(a, b) >= 0.0
    assert population_stability(a, a) == pytest.approx(0.0, abs=1e-12)
    assert population_stability([7 * n for n in a], a) == pytest.approx(0.0, abs=1e-12)


def test_psi_of_a_known_shift() -> None:
    expected, found = np.array([40_000, 60_000]), np.array([60_000, 40_000])
    assert population_stability(expected, found) == pytest.approx(2 * 0.2 * math.log(1.5), rel=1e-4)


def test_psi_of_p_values_is_small_while_the_calibration_holds() -> None:
    rng = np.random.default_rng(1)
    even, shifted = rng.random(2000), rng.random(2000) ** 2.5

    assert psi_of_p_values(even) < 0.02
    assert psi_of_p_values(shifted) > PSI_SHIFTED
    assert psi_of_p_values(np.ones(50)) > PSI_SHIFTED  # p = 1 belongs to the last bin


@pytest.mark.parametrize(
    ("expected", "found"), [([], []), ([1], [1, 2]), ([0, 0], [1, 1]), ([1, 1], [0, 0]), ([-1, 2], [1, 1])]
)
def test_histograms_that_are_none_are_refused(expected: list[int], found: list[int]) -> None:
    with pytest.raises(ValueError, match="expected as many counts"):
        population_stability(expected, found)


@pytest.mark.parametrize("x", [0.1, 0.2, 0.4, 0.6, 0.99, 1.0, 1.36, 2.0, 3.0, 6.0])
def test_kolmogorovs_law_is_scipys(x: float) -> None:
    assert kolmogorov_survival(x) == pytest.approx(float(stats.kstwobign.sf(x)), abs=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=80), st.lists(st.floats(-100, 100), min_size=1, max_size=80))
def test_the_distance_is_scipys_also_with_ties(a: list[float], b: list[float]) -> None:
    distance, _ = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(float(stats.ks_2samp(a, b, method="asymp").statistic), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (128, 400), (128, 4320)])
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_the_probability_is_near_scipys(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n + m)
    for _ in range(10):
        a, b = rng.normal(size=n), rng.normal(shift, 1.0, m)
        _, ours = kolmogorov_smirnov(a, b)
        exact = float(stats.ks_2samp(a, b, method="exact" if n * m < 60_000 else "asymp").pvalue)
        assert ours == pytest.approx(exact, abs=0.04)


def test_samples_that_are_none_are_refused() -> None:
    for bad in ([], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="expected some, all finite"):
            kolmogorov_smirnov(bad, [1.0])


def test_a_stream_without_change_shows_none() -> None:
    found = 0
    for seed in range(10):
        window = AdaptiveWindow()
        for value in np.random.default_rng(seed).random(1000):
            found += window.push(float(value))
        assert window.width == 1000
    assert found <= 1


@pytest.mark.parametrize("start", [200, 1000])
def test_a_change_is_found_and_what_was_before_forgotten(start: int) -> None:
    rng = np.random.default_rng(2)
    window = AdaptiveWindow()
    assert sum(window.push(float(v)) for v in rng.uniform(0.0, 1.0, start)) == 0

    found = [i for i, v in enumerate(rng.uniform(0.0, 0.5, 400)) if window.push(float(v))]

    assert found
    assert found[0] < 150
    assert window.changes == len(found)
    assert window.width < 400 + start // 4  # at most a quarter of what was before is left
    assert window.mean == pytest.approx(0.25, abs=0.05)


def test_the_buckets_hold_the_very_mean_and_stay_few() -> None:
    window, rng, seen = AdaptiveWindow(1e-9), np.random.default_rng(3), []
    for value in rng.random(3000):
        assert not window.push(float(value))
        seen.append(float(value))
    assert window.width == 3000
    assert window.mean == pytest.approx(np.mean(seen))
    assert sum(len(level) for level in window._levels) <= ADWIN_BUCKETS * (math.log2(3000 / ADWIN_BUCKETS) + 3)
    deviation = sum(d + s * (t / s - window.mean) ** 2 for s, t, d in window._oldest_first())
    assert deviation / 3000 == pytest.approx(float(np.var(seen)))


def test_the_oldest_of_an_endless_stream_is_forgotten() -> None:
    window = AdaptiveWindow()
    window._levels = [[(0.5 * 2**i, 0.0)] * ADWIN_BUCKETS for i in range(ADWIN_LEVELS_MAX)]
    before = window.width
    window.push(0.5)

    assert len(window._levels) == ADWIN_LEVELS_MAX
    assert max(len(level) for level in window._levels) <= ADWIN_BUCKETS
    assert window.width == before + 1 - 2**ADWIN_LEVELS_MAX
    assert window.mean == pytest.approx(0.5)


@given(st.lists(st.floats(0.0, 1.0), max_size=120))
@settings(max_examples=50)
def test_a_window_is_never_wider_than_its_stream(values: list[float]) -> None:
    window = AdaptiveWindow()
    for i, value in enumerate(values):
        window.push(value)
        assert 1 <= window.width <= i + 1
        assert -1e-9 <= window.mean <= 1 + 1e-9
    assert window.changes == 0 or len(values) >= 2 * ADWIN_PART_MIN


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_values_outside_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="expected a value in"):
        AdaptiveWindow().push(bad)


# --- columns ---


def test_columns_that_have_moved_are_told_from_those_that_have_not() -> None:
    rng = np.random.default_rng(4)
    learnt, newest = rng.normal(size=(2000, 3)), rng.normal(size=(500, 3))
    newest[:, 1] += 1.0
    newest[:, 2] *= 3.0
    psi = column_stability(learnt, newest)
    assert psi[0] < 0.1
    assert psi[1] > PSI_SHIFTED
    assert psi[2] > PSI_SHIFTED


def test_a_column_that_is_nearly_always_zero_has_a_stability_too() -> None:
    rng = np.random.default_rng(5)
    learnt, same, busy = ((rng.random((n, 1)) < share) * 7.0 for n, share in ((2000, 0.02), (500, 0.02), (500, 0.5)))
    assert column_stability(learnt, same)[0] < 0.1
    assert column_stability(learnt, busy)[0] > PSI_SHIFTED
    constant = np.zeros((100, 1))
    assert column_stability(constant, constant)[0] == pytest.approx(0.0, abs=1e-9)
    assert column_stability(constant, constant + 1.0)[0] > PSI_SHIFTED


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 99))
def test_column_stability_is_never_negative(rows: int, newer: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    psi = column_stability(rng.integers(0, 3, (rows, columns)), rng.integers(0, 3, (newer, columns)))
    assert psi.shape == (columns,)
    assert (psi >= 0.0).all()


def test_columns_must_fit_each_other() -> None:
    for a, b in (
        (np.zeros((2, 3)), np.zeros((2, 2))),
        (np.zeros((0, 3)), np.zeros((2, 3))),
        (np.zeros(3), np.zeros(3)),
    ):
        with pytest.raises(ValueError, match="column stability: found shapes"):
            column_stability(a, b)


def test_distance_from_even_is_that_of_scipy() -> None:
    p_values = np.random.default_rng(6).random(300) ** 1.3
    assert distance_from_even(p_values) == pytest.approx(stats.kstest(p_values, "uniform").statistic)
    with pytest.raises(ValueError, match="p-values: found none"):
        distance_from_even([])
