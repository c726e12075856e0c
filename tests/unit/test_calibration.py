"""The calibration's arithmetic, its tail, and what an attacker can do to a rolling one."""

from __future__ import annotations

import math

import msgpack
import numpy as np
import pytest

from vedette_core.learning.calibration import (
    BRAKE_P,
    BRAKE_RATE,
    EXTRAPOLATION_MAX,
    SCORES_MIN,
    Z_MAX,
    Z_MIN,
    RollingCalibration,
    calibrate,
    smoothing,
    z_score,
)
from vedette_core.learning.tail import fit_tail
from vedette_schemas.errors import PeerError


def test_p_value_is_the_rank_among_benign_scores() -> None:
    calibration = calibrate(np.arange(1.0, 100.0))  # 99 scores: 1 … 99

    p = calibration.p_values([0.5, 1.0, 50.0, 98.5, 99.0])

    assert p == pytest.approx([1.0, 1.0, 0.51, 0.02, 0.02])


def test_without_a_tail_no_p_value_is_below_one_in_n_plus_one() -> None:
    calibration = calibrate(np.arange(79.0))  # seven exceedances, too few for a law

    assert calibration.tail is None
    assert calibration.p_values([1e9, math.inf]) == pytest.approx([0.0125, 0.0125])
    assert calibration.floor == pytest.approx(0.0125)


def test_a_tail_of_few_exceedances_is_exponential() -> None:
    heavy = np.sort((np.random.default_rng(1).random(150) ** -0.45 - 1.0) / 0.45)
    few, many = fit_tail(heavy), fit_tail(np.sort(np.tile(heavy, 3)))

    assert few is not None
    assert many is not None
    assert few.shape == 0.0
    assert many.shape > 0.0


def test_tail_recovers_an_exponential_law() -> None:
    scores = np.random.default_rng(1).exponential(2.0, 20_000)
    calibration = calibrate(scores)

    assert calibration.tail is not None
    assert calibration.tail.shape == pytest.approx(0.0, abs=0.06)
    assert calibration.tail.scale == pytest.approx(2.0, rel=0.08)
    far = 2.0 * math.log(1e6)  # the score whose true p-value is one in a million
    assert 1e-7 < calibration.p_values([far])[0] < 1e-5


def test_tail_recovers_a_heavy_law() -> None:
    uniform = np.random.default_rng(2).random(20_000)
    tail = fit_tail(np.sort((uniform**-0.3 - 1.0) / 0.3))  # generalised Pareto, ξ = 0.3, σ = 1

    assert tail is not None
    assert tail.shape == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("size", [160, 500, 5000])
def test_extrapolation_is_bounded_however_far_out_a_score_is(size: int) -> None:
    calibration = calibrate(np.random.default_rng(3).normal(size=size))

    assert calibration.tail is not None
    assert calibration.p_values([1e12, math.inf]) == pytest.approx([1 / (size + 1) / EXTRAPOLATION_MAX] * 2)


def test_equal_scores_have_no_tail_and_are_still_ranked() -> None:
    calibration = calibrate(np.ones(500))

    assert calibration.tail is None
    assert calibration.p_values([1.0, 1.1]) == pytest.approx([1.0, 1 / 501])


@pytest.mark.parametrize("alpha", [0.2, 0.01, 1e-3, 1e-4, 2e-5])
def test_threshold_is_where_the_p_value_becomes_significant(alpha: float) -> None:
    calibration = calibrate(np.random.default_rng(4).gamma(2.0, size=999))
    threshold = calibration.threshold(alpha)

    above, at = calibration.p_values([threshold * (1 + 1e-6), threshold * (1 - 1e-6)])
    assert above <= alpha * (1 + 1e-3) < at * (1 + 2e-3)


def test_threshold_at_one_per_cent_of_999_scores_is_the_tenth_largest() -> None:
    scores = np.random.default_rng(5).permutation(999).astype(float)

    assert calibrate(scores).threshold(0.01) == 989.0  # ten of 999 are at least as large, and 10 / 1000 = α


def test_refuses_what_cannot_be_a_calibration() -> None:
    with pytest.raises(ValueError, match=f"found 19 scores, expected {SCORES_MIN}"):
        calibrate(np.ones(19))
    with pytest.raises(ValueError, match="2 scores of 30 that are not finite"):
        calibrate([math.nan, math.inf, *range(28)])
    with pytest.raises(ValueError, match="found 1 NaN of 2"):
        calibrate(np.arange(30.0)).p_values([1.0, math.nan])


def test_z_score_is_the_standard_normal_quantile_within_bounds() -> None:
    assert z_score(0.5) == pytest.approx(0.0)
    assert z_score(0.01) == pytest.approx(2.326, abs=1e-3)
    assert z_score(1e-5) == pytest.approx(4.265, abs=1e-3)
    assert z_score(1.0) == Z_MIN
    assert z_score(1e-300) == Z_MAX


def test_smoothing_forgets_half_after_a_half_life() -> None:
    assert smoothing(4.0, 4.0) == pytest.approx(0.5)
    assert smoothing(0.0, 4.0) == 0.0
    assert smoothing(-1.0, 4.0) == 0.0


def test_rolling_calibration_follows_slow_benign_change() -> None:
    rng = np.random.default_rng(6)
    rolling = RollingCalibration(rng.normal(0.0, 1.0, 400))
    first = rolling.current.threshold(0.5)

    for step in range(20_000):
        score = float(rng.normal(step / 20_000, 1.0))
        rolling.observe(score, float(rolling.current.p_values([score])[0]))

    moved = rolling.current.threshold(0.5) - first
    assert 0.4 < moved < 1.0  # it lags behind: the brake holds the upper end, and the bulk cannot pass it


def test_rolling_calibration_keeps_its_false_positive_rate_over_many_turns() -> None:
    """With one queue for all, 0.01 becomes 1 within a few turns: rare benign scores leave and do not come back."""
    rng = np.random.default_rng(7)
    rolling = RollingCalibration(rng.gamma(2.0, size=500))
    hits = 0
    for turn in range(40):
        for score in rng.gamma(2.0, size=500):
            p_value = float(rolling.current.p_values([score])[0])
            rolling.observe(float(score), p_value)
            hits += turn >= 20 and p_value <= 0.01

    assert hits / 10_000 < 0.03


def test_brake_takes_in_one_rare_score_of_a_hundred() -> None:
    rolling = RollingCalibration(np.random.default_rng(8).normal(size=500))

    taken = [rolling.observe(50.0, 1e-4) for _ in range(3 * BRAKE_RATE)]

    assert sum(place is not None for place in taken) == 3
    assert (rolling.current.ordered == 50.0).sum() == 3
    assert rolling.current.size == 500


def test_attacker_cannot_raise_the_threshold_with_a_burst() -> None:
    rng = np.random.default_rng(9)
    rolling = RollingCalibration(rng.normal(size=1000))
    before = rolling.current.threshold(0.05)

    for _ in range(1000):  # as many windows as the calibration holds
        score = float(rng.normal(10.0))
        rolling.observe(score, float(rolling.current.p_values([score])[0]))

    assert rolling.current.threshold(0.05) == pytest.approx(before, abs=0.1)


def test_common_scores_replace_common_ones_oldest_first() -> None:
    scores = np.array([100.0, *range(99)])
    rolling = RollingCalibration(scores)

    places = [rolling.observe(50.0, 0.5) for _ in range(3)]

    rare = {0, 96, 97, 98, 99}  # the five largest of 100
    assert len(rare) == int(BRAKE_P * 101)
    assert places == [1, 2, 3]
    assert rolling.current.largest == 100.0


def test_scores_that_are_not_finite_are_never_taken_in() -> None:
    rolling = RollingCalibration(np.arange(100.0))

    assert rolling.observe(math.inf, 0.5) is None
    assert rolling.observe(math.nan, 0.5) is None


def test_rolling_calibration_survives_storage() -> None:
    rng = np.random.default_rng(10)
    rolling = RollingCalibration(rng.normal(size=300))
    for score in rng.normal(size=777):
        rolling.observe(float(score), float(rolling.current.p_values([score])[0]))

    again = RollingCalibration.from_state(msgpack.unpackb(msgpack.packb(rolling.to_state())))

    assert np.array_equal(again.current.ordered, rolling.current.ordered)
    for score in rng.normal(size=500):
        p_value = float(rolling.current.p_values([score])[0])
        assert again.observe(float(score), p_value) == rolling.observe(float(score), p_value)
    assert np.array_equal(again.current.ordered, rolling.current.ordered)


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": b"\x00" * 7},
        {"scores": np.full(50, np.nan).tobytes()},
        {"rare": b""},
        {"rare": np.array([1, 1, 1, 1, 1], "<u4").tobytes()},
        {"next": [10_000, 0]},
        {"next": [0]},
        {"rare_seen": -1},
        {"rare_seen": None},
    ],
)
def test_damaged_storage_is_refused(damage: dict[str, object]) -> None:
    state = RollingCalibration(np.arange(100.0)).to_state() | damage

    with pytest.raises(PeerError, match="calibration state"):
        RollingCalibration.from_state(state)
