"""A limit for a budget of false alarms, against simulated sums."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from vedette_core.learning.cusum import (
    REFERENCE,
    SPREAD_MAX,
    average_run_length,
    limit_for,
    long_run_spread,
)

RUNS = 600


def run_lengths(limit: float, draw: Callable[[], np.ndarray], steps: int) -> np.ndarray:
    """Steps until each of `RUNS` sums passes the limit; `steps` for those that do not."""
    total, passed = np.zeros(RUNS), np.full(RUNS, steps, float)
    for step in range(steps):
        total = np.maximum(total + draw() - REFERENCE, 0.0)
        passed[(total > limit) & (passed == steps)] = step + 1
        if (passed < steps).all():
            break
    return passed


@pytest.mark.parametrize(("limit", "run_length"), [(3.0, 118.0), (4.0, 336.0), (5.0, 930.0)])
def test_the_approximation_agrees_with_published_run_lengths(limit: float, run_length: float) -> None:
    """One-sided, k = ½: twice the two-sided ones of Montgomery, *Statistical Quality Control*, and Page's tables."""
    assert average_run_length(limit) == pytest.approx(run_length, rel=0.03)


@pytest.mark.parametrize("run_length", [50.0, 336.0, 1000.0])
def test_independent_windows_fire_as_often_as_the_budget_says(run_length: float) -> None:
    rng = np.random.default_rng(1)
    found = run_lengths(limit_for(run_length), lambda: rng.normal(size=RUNS), int(20 * run_length))

    # The mean of 600 geometric lengths has a standard error of 4 %; the approximation is within 3 %.
    assert found.mean() == pytest.approx(run_length, rel=0.15)


@pytest.mark.parametrize("windows", [4, 16])
def test_windows_that_share_their_data_fire_no_more_often(windows: int) -> None:
    rng, run_length = np.random.default_rng(2), 400.0
    past = deque([rng.normal(size=RUNS) for _ in range(windows)], maxlen=windows)

    def draw() -> np.ndarray:
        past.append(rng.normal(size=RUNS))
        return np.asarray(sum(past) / math.sqrt(windows))

    naive = run_lengths(limit_for(run_length), draw, 8000).mean()
    with_spread = run_lengths(limit_for(run_length, spread=math.sqrt(windows)), draw, 8000).mean()

    assert naive < 0.6 * run_length
    assert with_spread > run_length


def test_a_small_lasting_shift_is_found_soon() -> None:
    rng = np.random.default_rng(3)
    limit = limit_for(100_000.0)
    found = run_lengths(limit, lambda: rng.normal(1.0, 1.0, RUNS), 1000)

    assert found.max() < 1000
    assert found.mean() == pytest.approx((limit + 0.583) / 0.5, rel=0.15)  # it climbs by ½ a window


def test_a_limit_and_its_run_length_belong_together() -> None:
    for run_length in (10.0, 1e3, 1e6, 1e12):
        for spread in (1.0, 4.0, SPREAD_MAX):
            limit = limit_for(run_length, spread=spread)
            assert limit == 0.0 or average_run_length(limit, spread=spread) == pytest.approx(run_length, rel=1e-6)
    assert limit_for(1.0) == 0.0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="expected all above 0"):
        limit_for(bad)
    with pytest.raises(ValueError, match="expected all above 0"):
        limit_for(10.0, spread=bad)


def test_the_spread_of_independent_windows_is_one_and_of_overlapping_ones_its_root() -> None:
    rng = np.random.default_rng(4)
    independent = rng.normal(size=20_000)
    overlapping = np.convolve(rng.normal(size=40_015), np.ones(16) / 4.0, "valid")

    assert long_run_spread(independent, ["a"] * 20_000, 16) == pytest.approx(1.0, abs=0.1)
    # Bartlett's weights with as many lags as the overlap leave out a third of the variance.
    assert long_run_spread(overlapping, ["a"] * 40_000, 16) == pytest.approx(4.0 * math.sqrt(2 / 3), rel=0.1)
    assert long_run_spread(np.full(5000, 3.0), ["a"] * 5000, 5000) == SPREAD_MAX
    assert long_run_spread(np.zeros(10), ["a"] * 10, 16) == 1.0


def test_entities_are_not_each_others_neighbours() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=4000)
    both = np.stack([a, -a], axis=1).reshape(-1)  # interleaved, they would cancel out

    assert long_run_spread(both, ["a", "b"] * 4000, 4) == pytest.approx(long_run_spread(a, ["a"] * 4000, 4))
    with pytest.raises(ValueError, match="found 2 entities of 3 windows"):
        long_run_spread(np.zeros(3), ["a", "b"], 4)
