"""Tells a device that has no calibration yet what benign windows score on the others."""

from __future__ import annotations

from typing import Final

from vedette_aggregator.command_post import CommandPost
from vedette_aggregator.fleet import Fleet
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.telemetry import Telemetry

AGAIN_S: Final = 600.0
"""Least seconds between two to one device and task: a device that restarts has forgotten it."""
MERGED_S: Final = 60.0
"""How long a merge of the fleet's sketches is used again: each reads those of all devices."""
DEVICES_MAX: Final = 100_000


class ColdStarts:
    """Watches for devices that collect their calibration.

    Args:
        fleet: knows what devices run and score.
        post: sends commands.
        metrics: the aggregator's.
    """

    def __init__(self, fleet: Fleet, post: CommandPost, metrics: Metrics) -> None:
        self._fleet, self._post, self._metrics = fleet, post, metrics
        self._sent: dict[tuple[str, str], float] = {}
        self._merged: dict[str, tuple[int, float, ScoreSketch | None]] = {}

    def take(self, report: Telemetry, now: float) -> None:
        """A device's report; one that is new to a release is told.

        Raises:
            TransientError: the disk is full.
        """
        state = self._fleet.states.get(report.device)
        running = {model.task: model.version for model in state.models} if state is not None else {}
        for detector in report.detectors:
            key, version = (report.device, detector.task), running.get(detector.task)
            if detector.phase != "calibrating" or version is None:
                continue
            last = self._sent.get(key)
            if last is not None and last <= now < last + AGAIN_S:
                continue
            sketch = self._sketch(detector.task, version, now)
            if sketch is None or (last is None and len(self._sent) >= DEVICES_MAX):
                continue
            self._sent[key] = now
            self._post.send(
                report.device,
                now,
                action="cold-start",
                task=detector.task,
                version=version,
                sketch=sketch.to_bytes(),
            )
            self._metrics.inc("cold_starts_sent", detector.task)

    def _sketch(self, task: str, version: int, now: float) -> ScoreSketch | None:
        known = self._merged.get(task)
        if known is None or known[0] != version or not known[1] <= now < known[1] + MERGED_S:
            known = (version, now, self._fleet.merged_sketch(task, version))
            self._merged[task] = known
        return known[2]
