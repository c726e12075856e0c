from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vedette_core.privacy.accountant import (
    composed_multiplier,
    epsilon_after,
    epsilon_of_composed,
    gaussian_delta,
    gaussian_epsilon,
    noise_multiplier_for,
)
from vedette_core.privacy.adaptive_clip import ClipBounds, count_sigma, next_clip_norm, sum_multiplier
from vedette_core.privacy.clipping import clip
from vedette_core.privacy.exposure import NOTHING, exposure_of
from vedette_core.privacy.noise import SUM_MAX, add_noise
from vedette_schemas.errors import RefusedError

# --- clipping ---

wild = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1e38, -1e38, 1e308, -1e308, 5e-324, 0.0])


@given(
    vector=hnp.arrays(np.float64, st.integers(0, 40), elements=wild),
    clip_norm=st.floats(1e-12, 1e12) | st.sampled_from([5e-324, 1e308]),
)
@settings(max_examples=400)
def test_whatever_goes_in_at_most_the_clip_norm_comes_out(vector: np.ndarray, clip_norm: float) -> None:
    before = vector.copy()
    if not np.isfinite(vector).all():
        with pytest.raises(RefusedError) as refusal:
            clip(vector, clip_norm)
        assert refusal.value.rule == "finite"
        return
    out, norm, clipped = clip(vector, clip_norm)
    assert np.array_equal(vector, before)
    assert out.dtype == np.float64
    assert out.shape == vector.shape
    assert np.isfinite(out).all()
    exact = math.hypot(*out.tolist()) if len(out) else 0.0  # scaled within, unlike numpy's
    assert exact <= clip_norm * (1 + 1e-6) or clip_norm < 1e-300
    assert 0.0 <= norm < math.inf
    expected = math.hypot(*vector.tolist()) if len(vector) else 0.0
    assert norm == pytest.approx(min(expected, sys.float_info.max), rel=1e-12)
    assert clipped == (norm > clip_norm)
    if not clipped:
        assert np.array_equal(out, vector)


@given(
    vector=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**126), 2.0**126, width=32)),
    clip_norm=st.floats(1e-3, 1e3),
)
@settings(max_examples=100)
def test_clipping_keeps_the_direction_and_twice_is_once(vector: np.ndarray, clip_norm: float) -> None:
    out, _, clipped = clip(vector, clip_norm)
    if clipped:
        assert np.linalg.norm(out) == pytest.approx(clip_norm, rel=1e-12)
        unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
        assert out == pytest.approx(unit * clip_norm, rel=1e-9, abs=1e-300)
    again = clip(out, clip_norm).vector
    assert again == pytest.approx(out, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_norm_that_is_none_is_a_fault(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip norm"):
        clip(np.ones(3), clip_norm)


def test_a_matrix_is_a_fault() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        clip(np.ones((2, 2)), 1.0)


# --- accountant ---

sigmas = st.floats(0.05, 1e4)
deltas = st.floats(1e-12, 0.1)


@given(sigma=sigmas, delta=deltas)
@settings(max_examples=200)
def test_epsilon_and_delta_are_each_others_inverse(sigma: float, delta: float) -> None:
    epsilon = gaussian_epsilon(sigma, delta)
    if epsilon == 0.0:
        assert gaussian_delta(0.0, sigma) <= delta
    else:
        assert gaussian_delta(epsilon, sigma) <= delta
        assert gaussian_delta(epsilon * (1 - 1e-9), sigma) > delta * (1 - 1e-12)


@given(sigma=sigmas, delta=deltas, more=st.floats(1.001, 3.0))
@settings(max_examples=200)
def test_more_noise_or_a_larger_delta_never_costs_more(sigma: float, delta: float, more: float) -> None:
    epsilon = gaussian_epsilon(sigma, delta)
    assert gaussian_epsilon(sigma * more, delta) <= epsilon
    assert gaussian_epsilon(sigma, min(0.5, delta * more)) <= epsilon
    assert epsilon_after(sigma, 2, delta) >= epsilon


@given(epsilon=st.floats(0.01, 50), delta=deltas, participations=st.integers(1, 10_000))
@settings(max_examples=200)
def test_the_noise_for_a_budget_keeps_it_and_is_no_more_than_needed(
    epsilon: float, delta: float, participations: int
) -> None:
    z = noise_multiplier_for(epsilon, delta, participations)
    assert epsilon_after(z, participations, delta) <= epsilon
    assert gaussian_delta(epsilon, z * (1 - 1e-8) / math.sqrt(participations)) > delta * (1 - 1e-6)
    total = NOTHING
    for _ in range(min(participations, 50)):
        total = total + exposure_of(z)
    if participations <= 50:
        assert total.epsilon(delta) <= epsilon


@given(multipliers=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30), seed=st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_exact_units_agree_with_composition_and_know_no_order(multipliers: list[float], seed: object) -> None:
    total = sum((exposure_of(z) for z in multipliers), NOTHING)
    assert total.multiplier == pytest.approx(composed_multiplier(multipliers), rel=1e-9)
    assert total.multiplier <= composed_multiplier(multipliers) * (1 + 1e-13)
    shuffled = list(multipliers)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sum((exposure_of(z) for z in shuffled), NOTHING) == total
    assert total.epsilon(1e-6) >= epsilon_of_composed(composed_multiplier(multipliers), 1e-6) * (1 - 1e-9)


# --- noise and adaptive clipping ---


@given(
    sums=hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(-(2**63), 2**63 - 1)),
    sigma=st.floats(8, 2.0**28),
    seed=st.binary(min_size=32, max_size=32),
)
@settings(max_examples=200)
def test_noise_never_wraps_around(sums: np.ndarray, sigma: float, seed: bytes) -> None:
    if len(sums) and any(abs(int(value)) > SUM_MAX for value in sums):
        with pytest.raises(RefusedError):
            add_noise(sums, sigma, lambda _n: seed)
        return
    noised = add_noise(sums, sigma, lambda _n: seed)
    assert all(abs(int(after) - int(before)) <= 10 * sigma for after, before in zip(noised, sums, strict=True))


@given(
    clip_norm=st.floats(1e-3, 1e3),
    share=st.floats(allow_nan=False),
    quantile=st.floats(0, 1),
    low=st.floats(1e-3, 10),
    width=st.floats(1, 100),
)
@settings(max_examples=200)
def test_the_clip_norm_moves_slowly_and_stays_in_its_bounds(
    clip_norm: float, share: float, quantile: float, low: float, width: float
) -> None:
    bounds = ClipBounds(low, low * width)
    inside = min(bounds.largest, max(bounds.least, clip_norm))
    moved = next_clip_norm(inside, share, bounds, target_quantile=quantile)
    assert bounds.least <= moved <= bounds.largest
    assert abs(math.log(moved / inside)) <= 0.2 + 1e-9


@given(z=st.floats(0.01, 100), devices=st.integers(1, 100_000))
@settings(max_examples=200)
def test_count_and_sum_never_cost_more_than_was_said(z: float, devices: int) -> None:
    sigma = count_sigma(devices, z)
    assert composed_multiplier([sum_multiplier(z, sigma), 2 * sigma]) >= z * (1 - 1e-12)
