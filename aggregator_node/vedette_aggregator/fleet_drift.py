"""Drift of a fleet: what a report says about one device, and how many of a kind of device say so."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vedette_core.learning.drift import PSI_SHIFTED
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.telemetry import DetectorReport, Telemetry

BAD_RECORDS_SHARE: Final = 0.05
"""Share of unreadable or incomplete records from which a device's schema counts as drifting."""
CHANCE_MAX: Final = 0.01
"""Scores count as drifting only where chance alone gives such a distance less often. The stability index does not know
how few windows it is made of: on the shipped captures' benign parts, 18 independent windows each, it passed its limit
for three gateways of eight, and Kolmogorov's test for none."""
CALIBRATION_ERROR_MAX: Final = 0.25
"""From here on a calibration does not hold any more; an even stretch of 128 independent p-values is above 0.14 once in
a hundred times."""
COLUMN_PSI_SHIFTED: Final = 2.5
"""A column counts as drifting from here on. Columns have a daily course that the newest 17 hours do not show whole:
over 40 benign stretches of the shipped tanks the most drifted column had 0.69 in the median, 1.77 in one of twenty and
2.32 at most. The customary limit of 0.25 would have called nearly all of them drifting."""
DRIFT_KINDS: Final = ("score", "schema", "feature", "calibration")
COHORTS_MAX: Final = 64
"""Cohorts of a task that are told apart; devices name themselves, and further ones are one cohort."""
COHORT_DEVICES_MIN: Final = 3
"""Fewest devices of a cohort whose share means something."""
DEVICES_MAX: Final = 100_000
OTHERS: Final = "other cohorts"


def drift_kinds(detector: DetectorReport) -> frozenset[str]:
    """Which of `DRIFT_KINDS` a report shows; a device that rests at one value has a schema fault, not a new world."""
    drift = detector.drift
    if drift is None:
        return frozenset()
    schema = drift.unreadable_share + drift.missing_share > BAD_RECORDS_SHARE or drift.constant or drift.shifted
    found = {
        "score": drift.psi >= PSI_SHIFTED and drift.ks_p < CHANCE_MAX,
        "schema": bool(schema),
        "feature": any(column.psi >= COLUMN_PSI_SHIFTED for column in drift.columns),
        "calibration": drift.calibration_error >= CALIBRATION_ERROR_MAX and drift.ks_p < CHANCE_MAX,
    }
    return frozenset(kind for kind, is_so in found.items() if is_so)


def has_drifted(detector: DetectorReport) -> bool:
    """Whether scores or their calibration have drifted: what a recalibration or a round can mend."""
    return bool(drift_kinds(detector) & {"score", "calibration"})


class CohortDrift:
    """How many devices of each cohort drift.

    Args:
        metrics: the aggregator's.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._said: dict[str, dict[str, tuple[str, bool]]] = {}
        self._devices: dict[str, Counter[str]] = {}
        self._drifting: dict[str, Counter[str]] = {}

    def take(self, report: Telemetry, cohort: str) -> None:
        """The newest report of a device that says of itself that it is of a cohort."""
        if report.device not in self._said and len(self._said) >= DEVICES_MAX:
            return
        self.forget(report.device)
        said: dict[str, tuple[str, bool]] = {}
        for detector in report.detectors:
            if detector.drift is None:
                continue
            devices = self._devices.setdefault(detector.task, Counter())
            named = cohort if cohort in devices or len(devices) < COHORTS_MAX else OTHERS
            said[detector.task] = (named, has_drifted(detector))
            devices[named] += 1
            self._drifting.setdefault(detector.task, Counter())[named] += said[detector.task][1]
            strongest = max((column.psi for column in detector.drift.columns), default=0.0)
            self._metrics.observe("fleet_feature_psi", detector.task, value=strongest)
            self._metrics.observe("fleet_calibration_error", detector.task, value=detector.drift.calibration_error)
            self._show(detector.task)
        if said:
            self._said[report.device] = said

    def forget(self, device: str) -> None:
        """A device is stopped or lost."""
        for task, (cohort, drifting) in self._said.pop(device, {}).items():
            self._devices[task][cohort] -= 1
            self._drifting[task][cohort] -= drifting
            if not self._devices[task][cohort]:
                del self._devices[task][cohort], self._drifting[task][cohort]
            self._show(task)

    def share(self, task: str, cohort: str) -> float | None:
        """Share of a cohort's devices that drift; None for fewer than `COHORT_DEVICES_MIN`."""
        devices = self._devices.get(task, Counter())[cohort]
        return self._drifting[task][cohort] / devices if devices >= COHORT_DEVICES_MIN else None

    def _show(self, task: str) -> None:
        shares = (self.share(task, cohort) for cohort in list(self._devices[task]))
        self._metrics.set("drifting_cohort_share", task, value=max((s for s in shares if s is not None), default=0.0))
