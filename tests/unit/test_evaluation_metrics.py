"""Figures of detection quality: by hand, by counting pairs, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from vedette.evaluation.metrics import (
    Event,
    Report,
    area,
    events_of,
    judge_events,
    precision_area,
    range_precision_area,
    roc_curve,
    tpr_at,
    volume_under_surface,
)


def test_a_small_curve_by_hand() -> None:
    curve = roc_curve([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    assert curve is not None
    assert curve.fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.tpr.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert area(curve) == pytest.approx(0.875)  # pairs: 3 won, 1 tied of 4
    assert tpr_at(curve, 0.0) == 0.5
    assert tpr_at(curve, 0.49) == 0.5
    assert tpr_at(curve, 0.5) == 1.0


@pytest.mark.parametrize("decimals", [1, 6])
def test_the_area_is_the_statistic_of_mann_and_whitney(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    benign, bad = rng.normal(size=300).round(decimals), rng.normal(0.7, size=90).round(decimals)
    curve = roc_curve(np.concatenate([benign, bad]), np.repeat([False, True], [300, 90]))
    assert curve is not None
    expected = mannwhitneyu(bad, benign).statistic / (300 * 90)
    assert area(curve) == pytest.approx(expected)
    assert np.all(np.diff(curve.fpr) >= 0)
    assert (curve.fpr[-1], curve.tpr[-1]) == (1.0, 1.0)


def test_precision_at_the_recordings_own_prevalence_is_average_precision() -> None:
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.normal(size=190), rng.normal(1.5, size=10)])
    labels = np.repeat([False, True], [190, 10])
    curve = roc_curve(scores, labels)
    assert curve is not None
    ranked = labels[np.argsort(-scores)]
    precision = np.cumsum(ranked) / np.arange(1, 201)
    assert precision_area(curve, 0.05) == pytest.approx(float(precision[ranked].mean()))


def test_precision_does_not_depend_on_how_many_attacks_a_recording_has() -> None:
    few = roc_curve([3.0, 2.0, 1.0, 0.0], [True, False, True, False])
    many = roc_curve([3.0, 2.0, 1.0, 0.0] + [3.0, 1.0] * 20, [True, False, True, False] + [True, True] * 20)
    assert few is not None
    assert many is not None
    assert precision_area(few) == pytest.approx(precision_area(many))
    with pytest.raises(ValueError, match="prevalence"):
        precision_area(few, 0.0)


def test_a_random_score_is_worth_a_half_and_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    curve = roc_curve(rng.uniform(size=40_000), rng.uniform(size=40_000) < 0.3)
    assert curve is not None
    assert area(curve) == pytest.approx(0.5, abs=0.02)
    assert precision_area(curve, 0.05) == pytest.approx(0.05, abs=0.01)
    assert tpr_at(curve, 0.01) == pytest.approx(0.01, abs=0.01)


def test_one_class_alone_has_no_curve_and_bad_input_is_refused() -> None:
    assert roc_curve([1.0, 2.0], [False, False]) is None
    assert roc_curve([1.0, 2.0], [True, True]) is None
    with pytest.raises(ValueError, match="not finite"):
        roc_curve([1.0, np.nan], [True, False])
    with pytest.raises(ValueError, match="shapes"):
        roc_curve([1.0, 2.0], [True])


def test_events_are_an_entitys_anomalous_windows_joined_over_short_pauses() -> None:
    bounds = [(float(10 * i), float(10 * i + 10)) for i in range(8)]
    labels = [0, 1, 0, 1, -1, 0, 0, 1]
    assert events_of(labels, ["a"] * 8, bounds, 10.0) == [Event("a", 10.0, 40.0), Event("a", 70.0, 80.0)]
    assert len(events_of(labels, ["a"] * 8, bounds, 0.0)) == 3
    mixed = ["a", "a", "a", "b", "a", "a", "a", "a"]
    assert events_of(labels, mixed, bounds, 10.0) == [
        Event("a", 10.0, 20.0),
        Event("b", 30.0, 40.0),
        Event("a", 70.0, 80.0),
    ]


def test_alerts_are_judged_by_time_and_entity() -> None:
    events = [Event("a", 100.0, 200.0), Event("a", 1000.0, 1100.0), Event("b", 100.0, 200.0)]
    reports = [
        Report("a", 50.0, 100.0, opened=True),  # ends where the event begins: false
        Report("a", 150.0, 160.0, opened=False),  # within: found after 60 s
        Report("a", 170.0, 180.0, opened=True),
        Report("b", 205.0, 215.0, opened=True),  # within the grace: found
        Report("a", 1121.0, 1131.0, opened=True),  # behind the grace: false, and not found
        Report("a", 5000.0, 5010.0, opened=False),  # an old alert goes on: no new false one
    ]
    figures = judge_events(events, reports, 20.0)
    assert figures.events == 3
    assert sorted(figures.delays_s) == [60.0, 115.0]
    assert figures.false_alerts == 2


def reference_range_area(scores: np.ndarray, anomalous: np.ndarray, buffer: int) -> float:
    """By the definition, row by row, at every distinct score."""
    soft = anomalous.astype(float)
    n, half = len(soft), buffer // 2
    pieces, i = [], 0
    while i < n:
        if anomalous[i]:
            first = i
            while i < n and anomalous[i]:
                i += 1
            pieces.append((max(0, first - half), min(n, i + half)))
            for x in range(max(0, first - half), first):
                soft[x] += (1 - (first - x) / buffer) ** 0.5
            for x in range(i, min(n, i + half)):
                soft[x] += (1 - (x - i + 1) / buffer) ** 0.5
        else:
            i += 1
    soft = np.minimum(soft, 1)
    positives = (anomalous.sum() + soft.sum()) / 2
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        predicted = scores >= threshold
        hits = float((soft * predicted).sum())
        existing = sum(bool(predicted[a:b].any()) for a, b in pieces) / len(pieces)
        recall = min(hits / positives, 1.0) * existing
        area += (recall - before) * hits / predicted.sum()
        before = recall
    return area


@pytest.mark.parametrize("buffer", [0, 4, 10])
def test_range_precision_is_that_of_its_definition(buffer: int) -> None:
    rng = np.random.default_rng(buffer)
    anomalous = np.zeros(120, bool)
    anomalous[[0, 1, 2, 40, 41, 42, 43, 110, 119]] = True
    scores = rng.normal(size=120) + 2.0 * anomalous
    found = range_precision_area(scores, anomalous, buffer)
    # 120 scores, of which 250 quantiles miss none by more than interpolation does.
    assert found == pytest.approx(reference_range_area(scores, anomalous, buffer), abs=0.02)


def test_a_perfect_series_is_near_one_and_a_blind_one_near_the_share_of_anomalies() -> None:
    anomalous = np.zeros(4000, bool)
    anomalous[1000:1100] = anomalous[3000:3100] = True
    assert range_precision_area(anomalous + 0.0, anomalous, 0) == pytest.approx(1.0)
    blind = volume_under_surface(np.random.default_rng(1).normal(size=4000), anomalous, 32)
    assert blind == pytest.approx(0.05, abs=0.03)
    assert range_precision_area(np.zeros(10), np.zeros(10, bool), 4) is None


def test_a_hit_just_before_an_anomaly_counts_with_a_buffer_and_not_without() -> None:
    anomalous = np.zeros(200, bool)
    anomalous[100:110] = True
    early = np.zeros(200)
    early[97:100] = 1.0
    without, with_buffer = (range_precision_area(early, anomalous, b) for b in (0, 16))
    assert without is not None
    assert with_buffer is not None
    assert with_buffer > 3 * without
