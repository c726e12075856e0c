"""From scores to figures: the device's own thresholds, smoothing and alert rules, for every detector alike."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np

from vedette.evaluation import metrics
from vedette.evaluation.datasets import Suite
from vedette.evaluation.stretches import Prepared, Stretch
from vedette_core.learning.calibration import RollingCalibration, smoothing, z_score
from vedette_core.machine import Publish
from vedette_device.alert_record import ScoredWindow
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, WindowScored
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import FeatureSchema

ALPHA: Final = 0.01
"""The promised false-positive rate."""
SCORES_BACKING: Final = round(1 / ALPHA) - 1
"""Calibration scores from which ranks can promise `ALPHA`: of fewer, no p-value is as small, and none being so small
says nothing about the detector."""
PREVALENCE: Final = 0.05
DAY_S: Final = 86_400.0
MODEL: Final = AlertModel(task="evaluate", version=1, digest="0" * 16)
SETTINGS: Final = DetectionSettings()
"""The product's defaults."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """What a detector knows of a device's calibration stretch.

    Attributes:
        rolling: benign scores.
        benign_average: largest moving average of z among them.
        spread: of z in the long run, ≥ 1.
    """

    rolling: RollingCalibration
    benign_average: float
    spread: float = 1.0

    @classmethod
    def of_model(cls, model: CalibratedModel) -> Calibrated:
        """Of the product's detector."""
        return cls(model.rolling, model.benign_average, model.spread)

    @classmethod
    def of_scores(cls, scores: metrics.Float64, stretch: Stretch) -> Calibrated:
        """Of any other detector, by the same rules."""
        rolling = RollingCalibration(scores)
        weight, averages, largest = (
            smoothing(1.0, SETTINGS.half_life_windows),
            dict.fromkeys(stretch.entities, 0.0),
            0.0,
        )
        for entity, p in zip(stretch.entities, rolling.current.p_values(scores).tolist(), strict=True):
            averages[entity] += weight * (z_score(p) - averages[entity])
            largest = max(largest, averages[entity])
        return cls(rolling, largest)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One detector on one device.

    Attributes:
        device: name.
        labels: of the test stretch, guarded.
        raw_labels: the same as recorded.
        scores: of the test stretch.
        threshold: for `ALPHA`, fixed before the first of them.
        calibration: the benign scores that it was fixed by.
        p_values: by the calibration that rolls on; empty without time.
        in_alert: windows at whose end their entity had an open alert; empty without time.
        events: None without time.
        benign_days: watched time outside of attacks, in days of one entity.
        volume: VUS-PR, buffers up to twice what one input covers; None of several entities, and without time.
    """

    device: str
    labels: np.ndarray
    raw_labels: np.ndarray
    scores: metrics.Float64
    threshold: float
    calibration: metrics.Float64
    p_values: metrics.Float64
    in_alert: metrics.Bools
    events: metrics.EventFigures | None
    benign_days: float
    volume: float | None = None

    @property
    def counted(self) -> metrics.Bools:
        """Windows that are benign or anomalous."""
        return np.asarray(self.labels >= 0)


def judge(
    device: Prepared,
    scores: metrics.Float64,
    known: Calibrated,
    schema: FeatureSchema,
    suite: Suite,
    *,
    timed: bool,
    settings: DetectionSettings = SETTINGS,
) -> Outcome:
    """Judge a detector's test scores on one device.

    Args:
        device: the device.
        scores: of its test stretch.
        known: what its detector knows of benign windows; ``known.rolling`` rolls on as it does on a gateway.
        schema: of its windows.
        suite: the use case.
        timed: whether windows have a time, so that there are events and alerts.
        settings: when an alert is raised.
    """
    start = known.rolling.current
    threshold, calibration = max(start.threshold(ALPHA), 0.0), start.ordered.copy()
    windows, labels = device.test.windows, device.test.labels
    p_values, in_alert, events, days = np.zeros(0), np.zeros(0, bool), None, 0.0
    if timed:
        p_values, in_alert, reports = _run(device, scores, known, suite, settings)
        grace_s = schema.history * schema.window_s
        bounds = [(w.start_s, w.end_s) for w in windows]
        happened = metrics.events_of(labels.tolist(), device.test.entities, bounds, grace_s)
        events = metrics.judge_events(happened, reports, grace_s)
        days = float((labels == 0).sum()) * schema.window_s / DAY_S
    volume = None
    if timed and len(set(device.test.entities)) == 1:
        counted = labels >= 0
        volume = metrics.volume_under_surface(scores[counted], labels[counted] == 1, 2 * schema.history)
    return Outcome(
        device.device,
        labels,
        device.raw_labels,
        scores,
        threshold,
        calibration,
        p_values,
        in_alert,
        events,
        days,
        volume,
    )


def _run(
    device: Prepared, scores: metrics.Float64, known: Calibrated, suite: Suite, settings: DetectionSettings
) -> tuple[metrics.Float64, metrics.Bools, list[metrics.Report]]:
    machine = DetectionMachine(
        "evaluation", "device", "network" if suite == "network" else "sensor", "evaluate", settings
    )
    reports: list[metrics.Report] = []
    p_values, in_alert = np.ones(len(scores)), np.zeros(len(scores), bool)
    breaks = deque(device.breaks)
    for i, (window, score) in enumerate(zip(device.test.windows, scores.tolist(), strict=True)):
        current = known.rolling.current
        while breaks and breaks[0] <= window.start_s:
            machine.handle(WindowScored(_bystander(breaks.popleft(), current.size)), 0.0)
        p_values[i] = p = float(current.p_values(np.array([score]))[0])
        scored = ScoredWindow(
            entity=window.entity,
            start_s=window.start_s,
            end_s=window.end_s,
            score=score,
            p_value=p,
            threshold=max(current.threshold(ALPHA), 0.0),
            benign_max=current.largest,
            benign_average=known.benign_average,
            calibration_size=current.size,
            features=(),
            model=MODEL,
            spread=known.spread,
        )
        frozen = bool(machine.open_entities)
        for effect in machine.handle(WindowScored(scored), 0.0):
            if isinstance(effect, Publish):
                report = _report(json.loads(effect.payload), window.end_s - window.start_s)
                if report is not None:  # what counts as neither can find an event, and is no false alarm
                    reports.append(replace(report, opened=report.opened and bool(device.test.labels[i] >= 0)))
        in_alert[i] = window.entity in machine.open_entities
        if not frozen:
            known.rolling.observe(score, p)
    return p_values, in_alert, reports


def _bystander(time_s: float, calibration_size: int) -> ScoredWindow:
    """An ordinary window of another device, which ends at this time: nothing comes of it but that time has passed."""
    return ScoredWindow(
        entity="bystander",
        start_s=time_s - 1.0,
        end_s=time_s,
        score=0.0,
        p_value=1.0,
        threshold=0.0,
        benign_max=0.0,
        benign_average=0.0,
        calibration_size=calibration_size,
        features=(),
        model=MODEL,
    )


def _report(document: Mapping[str, Any], length_s: float) -> metrics.Report | None:
    if document["state"] == "closed":
        return None
    end_s = datetime.fromisoformat(document["window_end"]).timestamp()
    return metrics.Report(document["entity"], end_s - length_s, end_s, document["state"] == "open")


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures of one detector on all devices of a set; None where nothing can be said.

    Areas and shares of a curve are means over the devices that have both classes; rates, events and alerts are of all
    devices together. False alerts are to be read beside the share of benign time that was spent in an open one:
    an alert that never closes is counted once.
    """
    curves = [
        c for o in outcomes if (c := metrics.roc_curve(o.scores[o.counted], o.labels[o.counted] == 1)) is not None
    ]
    benign = sum(int((o.labels == 0).sum()) for o in outcomes)
    above = sum(int((o.scores[o.labels == 0] > o.threshold).sum()) for o in outcomes)
    raw = [(o.raw_labels == 0, o.raw_labels == 1, o.scores > o.threshold) for o in outcomes]
    raw_benign, raw_bad = (sum(int(r[k].sum()) for r in raw) for k in (0, 1))
    found: dict[str, Any] = {
        "auc": _mean([metrics.area(c) for c in curves]),
        "auc_pr5": _mean([metrics.precision_area(c, PREVALENCE) for c in curves]),
        "tpr_at_1": _mean([metrics.tpr_at(c, ALPHA) for c in curves]),
        "tpr_at_01": _mean([metrics.tpr_at(c, ALPHA / 10) for c in curves]),
        "vus_pr": None,
        "fpr_promised": ALPHA,
        "fpr_realised": _ratio(above, benign),
        "fpr_rolling": None,
        "devices": len(outcomes),
        "devices_backed": sum(len(o.calibration) >= SCORES_BACKING for o in outcomes),
        "far": _ratio(sum(int((r[0] & r[2]).sum()) for r in raw), raw_benign),
        "mar": _ratio(sum(int((r[1] & ~r[2]).sum()) for r in raw), raw_bad),
        "events": None,
        "event_recall": None,
        "false_alerts": None,
        "benign_device_days": None,
        "benign_share_in_alert": None,
        "false_alerts_per_device_day": None,
        "delay_s_p50": None,
        "delay_s_p95": None,
    }
    series = [volume for o in outcomes if (volume := o.volume) is not None]
    found["vus_pr"] = _mean(series)
    judged = [o.events for o in outcomes if o.events is not None]
    if judged:
        days = sum(o.benign_days for o in outcomes)
        delays = [d for e in judged for d in e.delays_s]
        events, false = sum(e.events for e in judged), sum(e.false_alerts for e in judged)
        backed = [o for o in outcomes if len(o.calibration) >= SCORES_BACKING]
        rolling = sum(int((o.p_values[o.labels == 0] <= ALPHA).sum()) for o in backed)
        alerted = sum(int(o.in_alert[o.labels == 0].sum()) for o in outcomes)
        found |= {
            "fpr_rolling": _ratio(rolling, sum(int((o.labels == 0).sum()) for o in backed)),
            "benign_share_in_alert": _ratio(alerted, benign),
            "events": events,
            "event_recall": _ratio(len(delays), events),
            "false_alerts": false,
            "benign_device_days": round(days, 4),
            "false_alerts_per_device_day": _ratio(false, days),
            "delay_s_p50": float(np.median(delays)) if delays else None,
            "delay_s_p95": float(np.quantile(delays, 0.95)) if delays else None,
        }
    return {name: round(v, 5) if isinstance(v, float) else v for name, v in found.items()}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
