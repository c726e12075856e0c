"""What a device says about drift: nothing while all is as it was, and the right thing when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.drift import PSI_SHIFTED
from vedette_device.baseline import Baseline
from vedette_device.drift_watch import INDEPENDENT_MIN, REPORTS_KEPT, ROWS_KEPT, STRETCH, DriftWatch
from vedette_device.features.windows import Window
from vedette_schemas import codec
from vedette_schemas.features import FeatureSchema
from vedette_schemas.telemetry import DRIFT_COLUMNS_MAX, DriftReport

HISTORY = 4
COLUMNS = tuple(f"column_{i}" for i in range(12))
SCHEMA = FeatureSchema(use_case="sensor", version=1, columns=COLUMNS, window_s=30, history=HISTORY)
CALIBRATION = np.sort(np.random.default_rng(0).gamma(4.0, 0.1, 400))


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(5.0, 1.0, (count, len(COLUMNS))).astype(np.float32)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    learnt = [Window("tank", 30.0 * i, 30.0 * (i + 1), row) for i, row in enumerate(rows(600, 1))]
    return Baseline.fit(SCHEMA, learnt)


def watched(baseline: Baseline, values: np.ndarray, *, shift: float = 1.0, power: float = 1.0) -> DriftWatch:
    """A watch that has seen rows, with benign scores times `shift` and even p-values to the `power`."""
    watch, rng = DriftWatch(SCHEMA), np.random.default_rng(2)
    for row in values:
        score, p_value = shift * rng.gamma(4.0, 0.1), max(float(rng.random()) ** power, 1e-12)
        watch.observe(score, p_value, row, baseline.scale("tank", row), baseline)
    return watch


def reported(watch: DriftWatch, baseline: Baseline) -> DriftReport:
    report = watch.report(CALIBRATION, baseline)
    assert report is not None
    assert codec.unpack(DriftReport, codec.pack(report)) == report
    return report


def test_nothing_has_changed(baseline: Baseline) -> None:
    report = reported(watched(baseline, rows(HISTORY * ROWS_KEPT + 1000, 3)), baseline)

    assert report.windows == min(STRETCH, HISTORY * ROWS_KEPT + 1000)
    assert report.psi < 0.1
    assert report.ks_p > 0.01
    assert report.changes == 0
    assert (report.constant, report.shifted) == ((), ())


def test_too_little_says_nothing(baseline: Baseline) -> None:
    count = HISTORY * (INDEPENDENT_MIN - 1)
    assert watched(baseline, rows(count, 3)).report(CALIBRATION, baseline) is None
    assert watched(baseline, rows(count + 1, 3)).report(CALIBRATION, baseline) is not None


def test_scores_that_have_moved(baseline: Baseline) -> None:
    report = reported(watched(baseline, rows(1000, 3), shift=1.5, power=3.0), baseline)

    assert report.psi > PSI_SHIFTED
    assert report.ks > 0.2
    assert report.ks_p < 0.001


def test_a_change_of_level_is_counted_and_a_new_model_begins_anew(baseline: Baseline) -> None:
    watch = watched(baseline, rows(2000, 3))
    for row in rows(2000, 4):
        watch.observe(0.5, 0.05, row, baseline.scale("tank", row), baseline)
    assert reported(watch, baseline).changes >= 1

    watch.restart()
    assert watch.report(CALIBRATION, baseline) is None


def test_columns_that_stand_still_or_lie_elsewhere_are_named(baseline: Baseline) -> None:
    values = rows(HISTORY * ROWS_KEPT, 5)
    values[:, 2] = 5.0
    values[:, 7] *= 1000.0  # metres became millimetres

    report = reported(watched(baseline, values), baseline)

    assert report.constant == ("column_2",)
    assert report.shifted == ("column_7",)


def test_a_column_that_never_moved_is_not_stuck() -> None:
    still = rows(600, 1)
    still[:, 2] = 1.0
    learnt = Baseline.fit(SCHEMA, [Window("tank", 30.0 * i, 30.0 * (i + 1), row) for i, row in enumerate(still)])

    assert reported(watched(learnt, still), learnt).constant == ()


def test_no_more_columns_are_named_than_a_report_holds(baseline: Baseline) -> None:
    report = reported(watched(baseline, np.full((HISTORY * ROWS_KEPT, len(COLUMNS)), 5.0, np.float32)), baseline)

    assert report.constant == COLUMNS[:DRIFT_COLUMNS_MAX]


def test_shares_of_bad_records_are_those_of_the_newest_reports(baseline: Baseline) -> None:
    watch = watched(baseline, rows(400, 3))
    assert reported(watch, baseline).unreadable_share == 0.0

    counters = {"rows": 60, "not_a_number": 25, "not_finite": 5, "missing_value": 10, "rotations": 99}
    watch.take_records(counters)
    report = reported(watch, baseline)
    assert (report.unreadable_share, report.missing_share) == (0.3, 0.1)

    for i in range(REPORTS_KEPT):
        watch.take_records(counters | {"rows": 60 + 10 * i})
    assert reported(watch, baseline).unreadable_share == 0.0


def test_a_source_that_counts_anew_is_no_fault(baseline: Baseline) -> None:
    watch = watched(baseline, rows(400, 3))
    for _ in range(REPORTS_KEPT + 1):
        watch.take_records({"rows": 1000, "not_json": 500})
    watch.take_records({"rows": 3, "not_json": 0})

    assert reported(watch, baseline).unreadable_share == 0.0


def test_columns_that_drift_are_named_the_strongest_first(baseline: Baseline) -> None:
    learnt = baseline.scale("tank", rows(600, 1))
    moved = rows(HISTORY * ROWS_KEPT, 7)
    moved[:, 3] += 1.0
    moved[:, 8] += 2.0
    still = watched(baseline, rows(HISTORY * ROWS_KEPT, 7)).report(CALIBRATION, baseline, learnt)
    found = watched(baseline, moved).report(CALIBRATION, baseline, learnt)
    assert still is not None
    assert found is not None
    assert {c.name for c in still.columns if c.psi >= PSI_SHIFTED} == set()
    assert [c.name for c in found.columns if c.psi >= PSI_SHIFTED] == ["column_8", "column_3"]
    assert codec.unpack(DriftReport, codec.pack(found)) == found


def test_a_calibration_that_holds_no_more_shows_as_an_error(baseline: Baseline) -> None:
    holds, broken = (reported(watched(baseline, rows(1000, 3), power=p), baseline) for p in (1.0, 3.0))
    assert holds.calibration_error < 0.06
    assert broken.calibration_error > 0.3
