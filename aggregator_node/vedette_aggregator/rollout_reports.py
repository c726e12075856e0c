"""From two node reports of a device to what it measured in between, with one release all the time."""

from __future__ import annotations

from typing import Final

from vedette_aggregator.rollout_events import Measured
from vedette_schemas.telemetry import DetectorReport, Telemetry

DEVICES_MAX: Final = 100_000
"""As many as `vedette_aggregator.fleet` remembers."""


class ReportPairs:
    """Remembers the last report of every device, of one task.

    Args:
        task: the task.
    """

    def __init__(self, task: str) -> None:
        self._task = task
        self._last: dict[str, tuple[str, int, DetectorReport]] = {}

    def take(self, report: Telemetry) -> Measured | None:
        """What is new since the device's last report; None for the first, for a repeated one, or after a change.

        A report in which nothing was scored says nothing. Counters that went back (a device that lies, or whose state
        was lost within a session) say nothing, either.
        """
        found = next((d for d in report.detectors if d.task == self._task), None)
        before = self._last.get(report.device)
        if before is not None and before[0] == report.session and report.seq <= before[1]:
            return None
        if found is None or (before is None and len(self._last) >= DEVICES_MAX):
            return None
        self._last[report.device] = (report.session, report.seq, found)
        if before is None or before[0] != report.session or found.model_version == 0:
            return None
        earlier = before[2]
        windows, alerts = found.windows - earlier.windows, found.alerts_opened - earlier.alerts_opened
        if found.model_version != earlier.model_version or windows <= 0 or alerts < 0:
            return None
        surprise = _surprise(found, earlier)
        if surprise is None:
            return None
        return Measured(
            device=report.device,
            version=found.model_version,
            alerts_per_hundred=100.0 * alerts / windows,
            surprise=surprise,
            latency_us=found.score_us_p50,
            memory_bytes=float(report.rss_bytes),
        )


def _surprise(found: DetectorReport, earlier: DetectorReport) -> float | None:
    """Mean −log10(p) of the windows in between, from the histogram's buckets of a quarter; None if it says nothing."""
    if len(found.p_histogram) != len(earlier.p_histogram):
        return None
    new = [now - then for now, then in zip(found.p_histogram, earlier.p_histogram, strict=True)]
    total = sum(new)
    if total <= 0 or min(new) < 0:
        return None
    return sum(count * (i + 0.5) / 4.0 for i, count in enumerate(new)) / total
