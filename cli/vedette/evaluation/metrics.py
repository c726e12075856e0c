"""Figures of detection quality, from scores and labels alone. Higher scores mean more anomalous.

Point-adjusted and best-threshold figures are left out on purpose: a random score gets 0.81 with the first on SMD, and
the second picks its threshold with the test's labels.

Source: Kim et al. 2021, arXiv 2109.05257 (point adjustment); Davis and Goadrich 2006 (precision and recall);
Paparrizos et al. 2022 (series).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
RANGE_THRESHOLDS: Final = 250
RANGE_BUFFERS: Final = 9


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve, one point a distinct score, from (0, 0) to (1, 1).

    Attributes:
        fpr: ``(n,)`` share of benign windows at or above each threshold, rising.
        tpr: ``(n,)`` share of anomalous ones.
    """

    fpr: Float64
    tpr: Float64


def roc_curve(scores: npt.ArrayLike, anomalous: npt.ArrayLike) -> Curve | None:
    """The curve of scores ``(n,)`` and labels ``(n,)`` bool; None where one of the classes is missing.

    Raises:
        ValueError: lengths differ, or a score is not finite.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    if s.shape != y.shape or s.ndim != 1:
        raise ValueError(f"scores and labels: found shapes {s.shape} and {y.shape}, expected two equal rows")
    if not np.isfinite(s).all():
        raise ValueError(f"scores: found {int((~np.isfinite(s)).sum())} that are not finite")
    positives = int(y.sum())
    if positives in (0, len(y)):
        return None
    order = np.argsort(-s, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    hits = np.cumsum(y[order])[last_of_tie]
    alarms = last_of_tie + 1 - hits
    return Curve(np.append(0.0, alarms / (len(y) - positives)), np.append(0.0, hits / positives))


def area(curve: Curve) -> float:
    """Area under the ROC curve: the chance that an anomalous window scores above a benign one, ties counting half."""
    return float(np.sum(np.diff(curve.fpr) * (curve.tpr[1:] + curve.tpr[:-1]) / 2.0))


def precision_area(curve: Curve, prevalence: float = 0.05) -> float:
    """Average precision as if this share of all windows were anomalous, whatever it is in the recording.

    Args:
        curve: ROC curve; precision follows from it for any prevalence π: π·TPR / (π·TPR + (1 − π)·FPR).
        prevalence: in (0, 1).
    """
    if not 0.0 < prevalence < 1.0:
        raise ValueError(f"prevalence: found {prevalence}, expected between 0 and 1")
    hits, alarms = prevalence * curve.tpr[1:], (1.0 - prevalence) * curve.fpr[1:]
    return float(np.sum(np.diff(curve.tpr) * hits / (hits + alarms)))


def tpr_at(curve: Curve, fpr: float) -> float:
    """Largest share of anomalous windows found by a threshold that lets at most this share of benign ones through."""
    return float(curve.tpr[np.searchsorted(curve.fpr, fpr, side="right") - 1])


def range_precision_area(scores: npt.ArrayLike, anomalous: npt.ArrayLike, buffer: int) -> float | None:
    """Area under range-based precision and recall, with a buffer of this many rows around each anomaly.

    A row of the buffer counts as anomalous the less, the further it is from the anomaly (a square root), and recall is
    multiplied by the share of anomalies of which any row was found: detecting shortly before or after is worth
    something, and missing one of several anomalies costs.

    Args:
        scores: ``(n,)`` of one series, in the order of time; higher is more anomalous.
        anomalous: ``(n,)`` bool.
        buffer: rows, ≥ 0; half of them before and half behind each anomaly.

    Returns:
        None where one of the classes is missing.

    Source: Paparrizos et al. 2022, "Volume Under the Surface", PVLDB 15(11), §3.
    """
    areas = _range_areas(scores, anomalous, (buffer,))
    return areas[0] if areas else None


def volume_under_surface(scores: npt.ArrayLike, anomalous: npt.ArrayLike, buffer_max: int) -> float | None:
    """VUS-PR: the mean of `range_precision_area` over buffers from 0 to ``buffer_max`` rows, in `RANGE_BUFFERS` steps.

    Source: as there, §4.
    """
    buffers = np.unique(np.linspace(0, buffer_max, RANGE_BUFFERS).round().astype(int))
    areas = _range_areas(scores, anomalous, buffers.tolist())
    return float(np.mean(areas)) if areas else None


def _range_areas(scores: npt.ArrayLike, anomalous: npt.ArrayLike, buffers: Sequence[int]) -> list[float]:
    """`range_precision_area` of several buffers; none where one of the classes is missing."""
    s, y = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    if y.all() or not y.any():
        return []
    thresholds = np.unique(np.quantile(s, np.linspace(1.0, 0.0, RANGE_THRESHOLDS)))[::-1]
    order = np.argsort(-s, kind="stable")
    counts = np.searchsorted(-s[order], -thresholds, side="right")
    areas = []
    for buffer in buffers:
        soft, pieces = _softened(y, buffer)
        positives = (float(y.sum()) + float(soft.sum())) / 2.0
        found = np.concatenate([[0.0], np.cumsum(soft[order])])[counts]
        largest = np.array([s[first:last].max() for first, last in pieces])
        existing = (largest[None, :] >= thresholds[:, None]).mean(axis=1)
        recall = np.minimum(found / positives, 1.0) * existing
        areas.append(float(np.sum(np.diff(recall, prepend=0.0) * found / counts)))
    return areas


def _softened(anomalous: Bools, buffer: int) -> tuple[Float64, list[tuple[int, int]]]:
    """Labels in [0, 1] with buffers, and the (first, behind last) of each stretch with its own."""
    soft = anomalous.astype(np.float64)
    edges = np.flatnonzero(np.diff(anomalous.astype(np.int8), prepend=0, append=0))
    half, pieces = buffer // 2, []
    for first, behind in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        start, end = max(0, first - half), min(len(soft), behind + half)
        pieces.append((start, end))
        before, after = np.arange(start, first), np.arange(behind, end)
        soft[before] += np.sqrt(1.0 - (first - before) / buffer) if half else 0.0
        soft[after] += np.sqrt(1.0 - (after - behind + 1) / buffer) if half else 0.0
    return np.minimum(soft, 1.0), pieces


@dataclass(frozen=True, slots=True)
class Event:
    """An attack in the test stretch: what one entity did or suffered from ``start_s`` to ``end_s``."""

    entity: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """One alert message: its entity, the bounds of its window, and whether it opened the alert."""

    entity: str
    start_s: float
    end_s: float
    opened: bool


@dataclass(frozen=True, slots=True)
class EventFigures:
    """What alerts say about events.

    Attributes:
        events: how many there were.
        delays_s: of those that were found, from their start to the end of the window that was first reported.
        false_alerts: alerts that opened outside of every event and its grace.
    """

    events: int
    delays_s: tuple[float, ...]
    false_alerts: int


def events_of(
    labels: Sequence[int], entities: Sequence[str], bounds: Sequence[tuple[float, float]], joined_s: float
) -> list[Event]:
    """Anomalous windows of an entity, joined where no more than ``joined_s`` seconds lie between two of them.

    Args:
        labels: 1 is anomalous; everything else is not.
        entities: whose window each is.
        bounds: (start, end) of each, in the order of time.
        joined_s: seconds.
    """
    open_events: dict[str, Event] = {}
    found: list[Event] = []
    for label, entity, (start_s, end_s) in zip(labels, entities, bounds, strict=True):
        if label != 1:
            continue
        last = open_events.get(entity)
        if last is not None and 0.0 <= start_s - last.end_s <= joined_s:
            open_events[entity] = Event(entity, last.start_s, end_s)
            continue
        if last is not None:
            found.append(last)
        open_events[entity] = Event(entity, start_s, end_s)
    return sorted([*found, *open_events.values()], key=lambda e: (e.start_s, e.entity))


def judge_events(events: Sequence[Event], reports: Sequence[Report], grace_s: float) -> EventFigures:
    """Compare alerts with events.

    Args:
        events: what happened.
        reports: what was said, closings left out.
        grace_s: how long behind an event an alert still belongs to it: as far back as one input looks.
    """
    delays = []
    for event in events:
        hits = [r.end_s for r in reports if _belongs(r, event, grace_s)]
        if hits:
            delays.append(max(0.0, min(hits) - event.start_s))
    false = sum(r.opened and not any(_belongs(r, e, grace_s) for e in events) for r in reports)
    return EventFigures(len(events), tuple(delays), false)


def _belongs(report: Report, event: Event, grace_s: float) -> bool:
    return report.entity == event.entity and report.end_s > event.start_s and report.start_s < event.end_s + grace_s
