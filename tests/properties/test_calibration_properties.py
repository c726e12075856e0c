"""What a p-value promises, for any scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.learning.calibration import RollingCalibration, calibrate
from vedette_core.learning.tail import fit_tail

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
SCORES = st.lists(FINITE, min_size=20, max_size=300)


@given(SCORES, st.lists(st.floats(allow_nan=False), min_size=1, max_size=50))
def test_p_values_lie_in_the_unit_interval_and_fall_with_the_score(benign: list[float], scores: list[float]) -> None:
    calibration = calibrate(benign)
    p = calibration.p_values(sorted(scores))

    assert (p > 0).all()
    assert (p <= 1).all()
    assert (np.diff(p) <= 0).all()
    assert (p >= calibration.floor * (1 - 1e-12)).all()


@given(st.lists(FINITE, min_size=21, max_size=120))
@settings(max_examples=60)
def test_p_values_are_super_uniform_under_exchangeability(scores: list[float]) -> None:
    """Whichever of n + 1 exchangeable scores is the new one is equally likely: count over all choices, exactly."""
    size = len(scores)
    p = np.array([calibrate(scores[:i] + scores[i + 1 :]).p_values([scores[i]])[0] for i in range(size)])

    for k in range(1, size + 1):
        assert (p <= k / size + 1e-12).sum() <= k


@given(SCORES, st.floats(1e-6, 0.999))
def test_threshold_separates_what_is_significant(benign: list[float], alpha: float) -> None:
    calibration = calibrate(benign)
    threshold = calibration.threshold(alpha)

    if np.isfinite(threshold):
        at = float(calibration.p_values([threshold])[0])
        above = float(calibration.p_values([np.nextafter(threshold, np.inf)])[0])
        effective = max(alpha, calibration.floor)
        # Within the benign range exact; beyond it up to the rounding of a power and its inverse.
        assert above <= effective * (1 + 1e-4)
        assert at > effective * (1 - 1e-4)


@given(SCORES, st.lists(st.tuples(FINITE, st.floats(1e-6, 1.0)), max_size=300))
def test_rolling_calibration_stays_in_order_and_keeps_its_size(
    benign: list[float], offered: list[tuple[float, float]]
) -> None:
    rolling = RollingCalibration(benign)
    kept = np.array(benign, float)
    for score, p_value in offered:
        place = rolling.observe(score, p_value)
        if place is not None:
            kept[place] = score

    assert np.array_equal(rolling.current.ordered, np.sort(kept))
    assert rolling.current.tail == fit_tail(np.sort(kept))
