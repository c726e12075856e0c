"""Node reports of many devices as a few fleet metrics: sums and histograms, no series a device."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vedette_core.runtime.metrics import Metrics
from vedette_schemas.telemetry import DeviceState, Telemetry

DEVICES_MAX: Final = 100_000
"""Devices that are remembered; a site has fewer, and memory stays bounded (about 1 KB each)."""


class Fleet:
    """The newest state and report of every device, and the metrics made of them.

    Args:
        metrics: the aggregator's metrics.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.states: dict[str, DeviceState] = {}
        self._reports: dict[str, Telemetry] = {}

    def take_state(self, state: DeviceState) -> None:
        """A device is online, stopped or lost; or runs another release."""
        before = self.states.get(state.device)
        if before is None and len(self.states) >= DEVICES_MAX:
            return
        same = before is not None and before.session == state.session
        # A will was written when the session began, and has its first number.
        if same and before is not None and state.seq < before.seq and state.status != "lost":
            return
        self.states[state.device] = state
        self._metrics.forget("devices")
        for status, count in Counter(s.status for s in self.states.values()).items():
            self._metrics.set("devices", status, value=count)
        versions = Counter((m.task, str(m.version)) for s in self.states.values() for m in s.models)
        self._metrics.forget("release_devices")
        for (task, version), count in versions.items():
            self._metrics.set("release_devices", task, version, value=count)

    def take_report(self, report: Telemetry) -> None:
        """A node report; counters grow by what is new since the same session's last one."""
        before = self._reports.get(report.device)
        if before is None and len(self._reports) >= DEVICES_MAX:
            return
        if before is not None and before.session == report.session:
            if report.seq <= before.seq:
                return
        else:
            before = None
        self._reports[report.device] = report
        self._metrics.observe("fleet_resident_memory_bytes", value=report.rss_bytes)
        self._metrics.inc("fleet_cpu_seconds", by=max(0.0, report.cpu_s - (before.cpu_s if before else 0.0)))
        self._metrics.set("fleet_spool_messages", value=sum(r.spool_messages for r in self._reports.values()))
        earlier = {d.task: d.windows for d in before.detectors} if before else {}
        for detector in report.detectors:
            new = max(0, detector.windows - earlier.get(detector.task, 0))
            self._metrics.inc("fleet_windows_scored", detector.task, by=new)
            if detector.score_us_p50:
                self._metrics.observe("fleet_score_seconds", detector.task, value=detector.score_us_p50 / 1e6)
