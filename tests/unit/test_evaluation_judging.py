"""From scores to figures: what looks good for the wrong reason must not look good."""

from __future__ import annotations

import numpy as np
import pytest

from vedette.evaluation.behaviour_sets import behaviour_schema
from vedette.evaluation.datasets import Recording
from vedette.evaluation.judging import SCORES_BACKING, Calibrated, Outcome, figures, judge
from vedette.evaluation.stretches import Prepared, prepare
from vedette_device.detection_machine import DetectionSettings
from vedette_device.features.windows import Window

SCHEMA = behaviour_schema(("x",), 60.0)
ATTACK = 30


def device(benign: int, attack: int = ATTACK) -> Prepared:
    count = benign + attack
    rng = np.random.default_rng(0)
    windows = [Window("d", 60.0 * i, 60.0 * (i + 1), rng.normal(size=1).astype(np.float32)) for i in range(count)]
    labels = np.repeat([0, 1], [benign, attack]).astype(np.int8)
    return prepare(Recording("d", tuple(windows), labels), SCHEMA)


def judged(this: Prepared, test_scores: np.ndarray, *, timed: bool = True) -> Outcome:
    benign = np.abs(np.random.default_rng(1).normal(size=len(this.calibrate.windows)))
    known = Calibrated.of_scores(benign, this.calibrate)
    return judge(this, test_scores, known, SCHEMA, "behaviour", timed=timed)


def usual(this: Prepared, seed: int = 2) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(size=len(this.test.windows)))


def test_scores_like_the_calibrations_keep_the_promise_and_an_attack_is_found() -> None:
    this = device(4000)
    scores = usual(this)
    scores[this.test.labels == 1] += 20.0
    row = figures([judged(this, scores)])
    assert row["auc"] > 0.99
    assert row["fpr_realised"] == pytest.approx(0.01, abs=0.01)
    assert row["fpr_rolling"] == pytest.approx(0.01, abs=0.01)
    assert (row["events"], row["event_recall"], row["devices_backed"]) == (1, 1.0, 1)
    assert row["delay_s_p50"] == 60.0
    assert row["benign_device_days"] == pytest.approx(int((this.test.labels == 0).sum()) * 60 / 86_400, abs=1e-3)


def test_one_alert_that_never_closes_is_few_alerts_and_all_of_the_time() -> None:
    this = device(4000)
    row = figures([judged(this, usual(this) + 20.0)])
    assert row["false_alerts"] == 1
    assert row["fpr_realised"] == 1.0
    assert row["benign_share_in_alert"] > 0.95
    quiet = figures([judged(this, usual(this))])
    assert quiet["benign_share_in_alert"] < 0.05


def test_too_few_calibration_scores_back_no_promise() -> None:
    """Of forty scores none can be rarer than 1 in 41: no p-value below 1 % is no merit."""
    this = device(160)
    assert len(this.calibrate.windows) < SCORES_BACKING
    row = figures([judged(this, usual(this) + 3.0)])
    assert (row["devices"], row["devices_backed"]) == (1, 0)
    assert row["fpr_rolling"] is None
    assert row["fpr_realised"] > 0.5


def test_what_has_no_time_has_no_events_days_or_delays() -> None:
    this = device(800)
    row = figures([judged(this, usual(this), timed=False)])
    timeless = ("fpr_rolling", "events", "event_recall", "false_alerts", "false_alerts_per_device_day", "delay_s_p50")
    assert [row[name] for name in timeless] == [None] * len(timeless)
    assert row["auc"] is not None


def test_devices_without_attacks_count_for_rates_and_not_for_areas() -> None:
    attacked, quiet = device(2000), device(2000, attack=0)
    scores = usual(attacked)
    scores[attacked.test.labels == 1] = 50.0
    both = figures([judged(attacked, scores), judged(quiet, usual(quiet) + 5.0)])
    alone = figures([judged(attacked, scores)])
    assert both["auc"] == alone["auc"]
    assert both["fpr_realised"] > 0.4 > alone["fpr_realised"]
    assert figures([judged(quiet, usual(quiet))])["auc"] is None


def test_the_threshold_does_not_depend_on_what_is_judged() -> None:
    this = device(2000)
    first, second = judged(this, usual(this)), judged(this, usual(this, 9) * 7.0)
    assert first.threshold == second.threshold
    assert np.array_equal(first.calibration, second.calibration)


def test_two_captures_that_were_joined_are_two_incidents() -> None:
    """The device is anomalous to the last window of a capture and from the first of the next, an hour later."""
    rng = np.random.default_rng(0)
    starts = [60.0 * i for i in range(400)] + [60.0 * 400 + 3600.0 + 60.0 * i for i in range(20)]
    windows = tuple(Window("d", s, s + 60.0, rng.normal(size=1).astype(np.float32)) for s in starts)
    labels = np.repeat([0, 1], [380, 40]).astype(np.int8)
    found = {}
    for breaks in ((), (starts[400],)):
        this = prepare(Recording("d", windows, labels, breaks=breaks), SCHEMA)
        scores = usual(this)
        scores[this.test.labels == 1] += 20.0
        outcome = judged(this, scores)
        assert outcome.events is not None
        assert outcome.in_alert[this.test.labels == 1].mean() > 0.8
        found[breaks] = (outcome.events.events, len(outcome.events.delays_s))
    assert found == {(): (2, 1), (starts[400],): (2, 2)}


def test_an_alert_while_nothing_is_counted_is_no_false_alarm() -> None:
    """Windows that are neither benign nor anomalous, as those of hosts that an attack touches."""
    this = device(4000, attack=0)
    place = len(this.test.labels) // 2
    scores = usual(this)
    scores[place] += 50.0
    assert figures([judged(this, scores)])["false_alerts"] == 1
    this.test.labels[place] = -1
    assert figures([judged(this, scores)])["false_alerts"] == 0


def test_other_rules_are_judged_by_the_same_scores() -> None:
    this = device(4000)
    scores = usual(this)
    scores[this.test.labels == 1] += 1.0
    known = [Calibrated.of_scores(usual(this, 3)[: len(this.calibrate.windows)], this.calibrate) for _ in range(2)]
    deaf = DetectionSettings(magnitude_factor=1e9, magnitude_p=1e-300, sustained_p=1e-9)
    eager = DetectionSettings(sustained_p=0.2, sustained_margin=0.0, sustained_windows=1, sustained_span=1)
    rows = [
        figures([judge(this, scores, each, SCHEMA, "behaviour", timed=True, settings=rules)])
        for each, rules in zip(known, (deaf, eager), strict=True)
    ]
    assert [row["event_recall"] for row in rows] == [0.0, 1.0]
    assert rows[0]["auc"] == rows[1]["auc"]
