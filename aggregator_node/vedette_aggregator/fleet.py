"""Node reports of many devices as a few fleet metrics: sums and histograms, no series a device."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from typing import Final

from vedette_aggregator.fleet_drift import drift_kinds
from vedette_aggregator.fleet_event_machine import (
    AlertOpened,
    DeviceGone,
    DeviceKnown,
    FleetEventMachine,
    FleetEventSettings,
)
from vedette_aggregator.fleet_sketch import merge_sketches
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.machine import Count, Event, Note, Tick
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.alert import Alert, AlertState
from vedette_schemas.telemetry import DetectorReport, DeviceState, Telemetry

log = logging.getLogger("vedette.fleet")

DEVICES_MAX: Final = 100_000
"""Devices that are remembered; a site has fewer, and memory stays bounded (about 2 KB each)."""


class Fleet:
    """The newest state and report of every device, and the metrics made of them.

    Args:
        metrics: the aggregator's metrics.
        events: when devices that fire together are a fleet event.
    """

    def __init__(self, metrics: Metrics, events: FleetEventSettings | None = None) -> None:
        self._metrics = metrics
        self._events = FleetEventMachine(events or FleetEventSettings())
        self._cohorts: dict[str, str] = {}
        self._drifting: dict[str, frozenset[tuple[str, str]]] = {}
        self._drifting_now: Counter[tuple[str, str]] = Counter()
        self.states: dict[str, DeviceState] = {}
        self._reports: dict[str, Telemetry] = {}

    def take_state(self, state: DeviceState) -> bool:
        """A device is online, stopped or lost; or runs another release. Tells whether that is news."""
        before = self.states.get(state.device)
        if before is None and len(self.states) >= DEVICES_MAX:
            return False
        same = before is not None and before.session == state.session
        # A will was written when the session began, and has its first number.
        if same and before is not None and state.seq < before.seq and state.status != "lost":
            return False
        self.states[state.device] = state
        if state.status != "online":
            self._tell(DeviceGone(state.device), 0.0)
            self._show_drift(state.device, frozenset())
        self._metrics.forget("devices")
        for status, count in Counter(s.status for s in self.states.values()).items():
            self._metrics.set("devices", status, value=count)
        versions = Counter((m.task, str(m.version)) for s in self.states.values() for m in s.models)
        self._metrics.forget("release_devices")
        for (task, version), count in versions.items():
            self._metrics.set("release_devices", task, version, value=count)
        return True

    def take_report(self, report: Telemetry) -> bool:
        """A node report; counters grow by what is new since the same session's last one. Tells whether it is news.

        Raises:
            PeerError: a sketch that is none.
        """
        for detector in report.detectors:
            if detector.sketch:
                ScoreSketch.from_bytes(detector.sketch)
        before = self._reports.get(report.device)
        if before is None and len(self._reports) >= DEVICES_MAX:
            return False
        if before is not None and before.session == report.session:
            if report.seq <= before.seq:
                return False
        else:
            before = None
        self._reports[report.device] = report
        self._metrics.observe("fleet_resident_memory_bytes", value=report.rss_bytes)
        self._metrics.inc("fleet_cpu_seconds", by=max(0.0, report.cpu_s - (before.cpu_s if before else 0.0)))
        self._metrics.set("fleet_spool_messages", value=sum(r.spool_messages for r in self._reports.values()))
        earlier = {d.task: d for d in before.detectors} if before else {}
        self._show_drift(report.device, frozenset((d.task, kind) for d in report.detectors for kind in drift_kinds(d)))
        for detector in report.detectors:
            last = earlier.get(detector.task)
            self._tell(DeviceKnown(report.device, detector.task, self._cohorts.get(report.device, "")), report.time_s)
            self._take_drift(detector, last)
            new = max(0, detector.windows - (last.windows if last else 0))
            self._metrics.inc("fleet_windows_scored", detector.task, by=new)
            if detector.score_us_p50:
                self._metrics.observe("fleet_score_seconds", detector.task, value=detector.score_us_p50 / 1e6)
        return True

    def take_cohort(self, device: str, cohort: str) -> None:
        """What kind of device one says it is, when it checks in; its next report puts it there."""
        if device in self._cohorts or len(self._cohorts) < DEVICES_MAX:
            self._cohorts[device] = cohort

    def cohort(self, device: str) -> str:
        """What kind of device it says it is; empty where it has not."""
        return self._cohorts.get(device, "")

    def take_alert(self, alert: Alert, now: float) -> None:
        """An alert that was not here before."""
        if alert.state is AlertState.OPEN:
            at_s = datetime.fromisoformat(alert.window_end).timestamp()
            self._tell(AlertOpened(alert.device, alert.model.task, at_s), now)

    def tick(self, now: float) -> None:
        """Time has passed: fleet events end by silence."""
        self._tell(Tick(), now)

    def merged_sketch(self, task: str, version: int) -> ScoreSketch | None:
        """What benign windows score with a release, over the devices that run it; see `merge_sketches`.

        Returns:
            The sketch that a new device can take its first threshold from; None while too few devices say.
        """
        return merge_sketches(
            {
                device: ScoreSketch.from_bytes(detector.sketch)
                for device, report in self._reports.items()
                for detector in report.detectors
                if detector.sketch and (detector.task, detector.model_version) == (task, version)
            }
        )

    def _take_drift(self, detector: DetectorReport, before: DetectorReport | None) -> None:
        if detector.drift is None:
            return
        self._metrics.observe("fleet_drift_psi", detector.task, value=detector.drift.psi)
        known = before.drift.changes if before and before.drift else 0
        # A model's change begins the count anew.
        new = detector.drift.changes - known if detector.drift.changes >= known else detector.drift.changes
        self._metrics.inc("fleet_drift_changes", detector.task, by=new)

    def _show_drift(self, device: str, drifting: frozenset[tuple[str, str]]) -> None:
        before = self._drifting.pop(device, frozenset())
        if drifting:
            self._drifting[device] = drifting
        self._drifting_now.subtract(before)
        self._drifting_now.update(drifting)
        for key in before ^ drifting:
            self._metrics.set("drifting_devices", *key, value=self._drifting_now[key])

    def _tell(self, event: Event, now: float) -> None:
        for effect in self._events.handle(event, now):
            if isinstance(effect, Count):
                self._metrics.count(effect.metric, task=effect.task, kind=effect.kind, outcome=effect.outcome)
            elif isinstance(effect, Note):
                log.log(logging.WARNING if effect.level == "warning" else logging.INFO, "%s", effect.text)
