from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from vedette_core.privacy.noise import (
    ROUNDING_SLACK,
    SIGMA_MAX,
    SIGMA_MIN,
    SUM_MAX,
    add_noise,
    device_share_sigma,
    noise_sigma,
    sensitivity,
)
from vedette_schemas.errors import RefusedError

DRAWS = 1_000_000


def entropy_of(seed: int) -> Callable[[int], bytes]:
    """Other bytes at each call, the same ones at each run."""
    calls = itertools.count()
    return lambda size: hashlib.shake_256(b"%d/%d" % (seed, next(calls))).digest(size)


def rounded_gaussian_distance(values: np.ndarray, sigma: float) -> float:
    """Kolmogorov–Smirnov distance from a rounded Gaussian, whose distribution function at whole k is Φ((k + ½)/σ)."""
    found, counts = np.unique(values, return_counts=True)
    after = np.cumsum(counts) / len(values)
    expected = stats.norm.cdf((found + 0.5) / sigma)
    # Between two values that were seen the empirical function is flat; its largest gap below is just before the next.
    before = np.concatenate([[0.0], after[:-1]])
    return float(max(np.abs(after - expected).max(), np.abs(before - stats.norm.cdf((found - 0.5) / sigma)).max()))


@pytest.mark.parametrize("sigma", [SIGMA_MIN, 100.3, 3_000.0, SIGMA_MAX])
def test_a_million_draws_are_a_rounded_gaussian(sigma: float) -> None:
    noise = add_noise(np.zeros(DRAWS, np.int64), sigma, entropy_of(1))
    assert noise.dtype == np.int64
    assert noise.std() == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.01)
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(DRAWS)
    assert stats.kstwobign.sf(rounded_gaussian_distance(noise, sigma) * math.sqrt(DRAWS)) > 1e-3


def test_the_distance_tells_another_distribution() -> None:
    """The check above can fail: on noise that is 1 % narrower, and on noise that is not normal."""
    narrower = add_noise(np.zeros(DRAWS, np.int64), 99.0, entropy_of(2))
    assert stats.kstwobign.sf(rounded_gaussian_distance(narrower, 100.0) * math.sqrt(DRAWS)) < 1e-3
    laplace = np.rint(np.random.default_rng(0).laplace(0, 100 / math.sqrt(2), DRAWS)).astype(np.int64)
    assert stats.kstwobign.sf(rounded_gaussian_distance(laplace, 100.0) * math.sqrt(DRAWS)) < 1e-3


def test_the_tails_are_there() -> None:
    """At 4σ and beyond 63 in a million are expected; a mean of many uniforms, for one, would have fewer."""
    noise = add_noise(np.zeros(DRAWS, np.int64), 1000.0, entropy_of(3))
    beyond = int((np.abs(noise) >= 4000).sum())
    low, high = stats.poisson.interval(1 - 1e-6, DRAWS * 2 * stats.norm.sf(3.9995))
    assert low <= beyond <= high


def test_draws_do_not_depend_on_each_other() -> None:
    noise = add_noise(np.zeros(DRAWS, np.int64), 1000.0, entropy_of(4)).astype(float)
    pairs = DRAWS // 2
    for lag in (1, 2, pairs, pairs - 1, pairs + 1):  # a draw and its partner of Box and Muller's lie half apart
        for left, right in ((noise[:-lag], noise[lag:]), (noise[:-lag] ** 2, noise[lag:] ** 2)):
            assert abs(np.corrcoef(left, right)[0, 1]) < 4.5 / math.sqrt(len(left)), lag


def test_the_sum_itself_is_kept_exactly_under_the_noise() -> None:
    sums = np.array([[0, 65_535], [-SUM_MAX, SUM_MAX]], np.int64)
    before = sums.copy()
    noised = add_noise(sums, 20.0, entropy_of(5))
    assert np.array_equal(noised - sums, add_noise(np.zeros((2, 2), np.int64), 20.0, entropy_of(5)))
    assert np.array_equal(sums, before)
    assert noised.shape == (2, 2)


def test_other_entropy_is_other_noise_and_the_same_is_the_same() -> None:
    zeros = np.zeros(1001, np.int64)  # odd: half of the last pair is left over
    first, again, other = (add_noise(zeros, 50.0, entropy_of(seed)) for seed in (6, 6, 7))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9
    one = entropy_of(8)
    assert (add_noise(zeros, 50.0, one) != add_noise(zeros, 50.0, one)).mean() > 0.9
    flipped = add_noise(zeros, 50.0, lambda n: bytes(n - 1) + b"\x01")
    assert abs(np.corrcoef(add_noise(zeros, 50.0, bytes), flipped)[0, 1]) < 0.15


def test_entropy_is_asked_once_for_32_bytes_and_not_believed_to_be_that_long() -> None:
    asked: list[int] = []

    def count(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    add_noise(np.zeros(10, np.int64), 50.0, count)
    assert asked == [32]
    with pytest.raises(ValueError, match="found 31 bytes"):
        add_noise(np.zeros(10, np.int64), 50.0, lambda size: bytes(size - 1))


def test_an_empty_sum_stays_empty() -> None:
    assert add_noise(np.zeros(0, np.int64), 50.0, entropy_of(9)).shape == (0,)


@pytest.mark.parametrize("sigma", [0.0, -8.0, 7.999, 2 * SIGMA_MAX, math.nan, math.inf])
def test_noise_that_is_too_small_or_too_large_is_refused(sigma: float) -> None:
    with pytest.raises(RefusedError, match="rounding is not small") as refusal:
        add_noise(np.zeros(4, np.int64), sigma, entropy_of(0))
    assert refusal.value.rule == "noise"


@pytest.mark.parametrize("value", [SUM_MAX + 1, -SUM_MAX - 1, 2**63 - 1, -(2**63)])
def test_sums_that_noise_could_overrun_are_refused(value: int) -> None:
    with pytest.raises(RefusedError, match="would not be exact") as refusal:
        add_noise(np.array([0, value], np.int64), 50.0, entropy_of(0))
    assert refusal.value.rule == "noise"


def test_sums_that_are_not_whole_are_a_fault() -> None:
    with pytest.raises(ValueError, match="expected int64"):
        add_noise(np.zeros(4), 50.0, entropy_of(0))  # type: ignore[arg-type]


# --- how much ---


def test_the_noise_is_the_multiplier_times_what_one_device_can_do() -> None:
    assert sensitivity(2.0, 4, 0.001) == pytest.approx(8000 * (1 + ROUNDING_SLACK))
    assert noise_sigma(1.5, 2.0, 4, 0.001) == pytest.approx(12_000 * (1 + ROUNDING_SLACK))


def test_a_device_at_the_largest_weight_and_norm_moves_the_sum_by_the_sensitivity_at_most() -> None:
    """Levels as devices send them: bytes around the centre 127.5, norm within the slack."""
    rng = np.random.default_rng(11)
    dimension, clip_norm, weight = 4096, 1.7, 8
    step = 9.0 * clip_norm / math.sqrt(dimension) / 255
    largest = 0.0
    for _ in range(20):
        update = rng.standard_normal(dimension)
        update *= clip_norm / np.linalg.norm(update)
        levels = np.floor(update / step + 127.5 + rng.random(dimension))
        encoded = (levels - 127.5) * step
        if np.linalg.norm(encoded) > clip_norm * (1 + ROUNDING_SLACK):
            continue
        largest = max(largest, float(np.linalg.norm(weight * (levels - 127.5))))
    assert 0.99 * sensitivity(clip_norm, weight, step) < largest <= sensitivity(clip_norm, weight, step)


@pytest.mark.parametrize("survivors", [1, 5, 18])
def test_the_shares_of_the_fewest_survivors_make_the_whole_noise(survivors: int) -> None:
    whole = 400.0
    share = device_share_sigma(whole, survivors)
    entropy = entropy_of(12)
    total = sum((add_noise(np.zeros(200_000, np.int64), share, entropy) for _ in range(survivors)), np.int64(0))
    assert np.std(total) == pytest.approx(whole, rel=0.01)
    assert share * math.sqrt(survivors) >= whole * (1 - 1e-12)
    assert stats.kstest(np.asarray(total)[:50_000] / whole, "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    "call",
    [
        lambda: noise_sigma(0.01, 1.0, 1, 0.01),
        lambda: device_share_sigma(30.0, 18),
        lambda: noise_sigma(1e4, 1e6, 255, 1e-9),
    ],
)
def test_settings_whose_noise_rounding_would_spoil_are_refused(call: Callable[[], float]) -> None:
    with pytest.raises(RefusedError) as refusal:
        call()
    assert refusal.value.rule == "noise"


@pytest.mark.parametrize(
    "call",
    [
        lambda: noise_sigma(0.0, 1.0, 1, 0.001),
        lambda: noise_sigma(1.0, math.nan, 1, 0.001),
        lambda: noise_sigma(1.0, 1.0, 0, 0.001),
        lambda: noise_sigma(1.0, 1.0, 1, 0.0),
        lambda: device_share_sigma(100.0, 0),
    ],
)
def test_what_is_no_setting_is_a_fault(call: Callable[[], float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
