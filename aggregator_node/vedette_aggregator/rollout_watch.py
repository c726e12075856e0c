"""What is known of a rollout's cohorts, and what the gates make of it.

Reports are not signed by what they report: a device can say what it likes about itself. So each device counts for at
most `SAMPLES_A_DEVICE` newest reports, only in its own cohort, and only with the release that it should run; what is
compared are ranks; and where two or more are exposed, no single one can make a rollout go back (two can, which is the
safe direction).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.rollout_events import DeviceReported, Measured
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import TALLIES_MAX, WATCHED, RolloutRecord, Tallies
from vedette_core.crypto.cohorts import bucket
from vedette_core.learning.rank_test import Tolerance, Verdict, compare
from vedette_schemas.rollout import PPM

DEVICES_MAX: Final = 100_000
SAMPLES_A_DEVICE: Final = 32
"""Newest reports of a device that count in a stage: two devices are enough for a comparison, and one alone is not."""
PEEK: Final = 0.01
"""Looks before the end of the soak ask for chance to be this much smaller again: there are many of them."""
CRITICAL: Final = frozenset({"errors", "alerts", "score"})
"""Gates whose failure rolls back at once; the others ask a person."""
_FIGURES: Final = ("alerts", "score", "latency", "memory")


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate's answer."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all gates say together.

    Attributes:
        gates: each of them.
        critical: why to go back at once; empty for no reason to.
    """

    gates: tuple[Gate, ...]
    critical: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of them."""
        found = {gate.verdict for gate in self.gates}
        return next((v for v in (Verdict.WORSE, Verdict.INCONCLUSIVE) if v in found), Verdict.PASS)

    @property
    def text(self) -> str:
        """Every gate that did not pass."""
        return "; ".join(gate.text for gate in self.gates if gate.verdict is not Verdict.PASS)


class RolloutWatch:
    """The devices of a task, as they say, and what they measured in this stage.

    Attributes:
        devices: the newest state of each.
        size: how many of them run some release.
        tallies: alerts that they opened.
    """

    def __init__(self) -> None:
        self.devices: dict[str, DeviceReported] = {}
        self.size = 0
        self.tallies = Tallies()
        self._samples: dict[tuple[bool, str], dict[str, deque[float]]] = {}
        self._buckets: dict[str, int] = {}
        self._salt = b""
        self._drawn: tuple[object, ...] = ()
        self._here: tuple[set[str], set[str]] = set(), set()
        self._unsorted: set[str] = set()

    def take_device(self, event: DeviceReported) -> None:
        """A device's newest state."""
        before = self.devices.get(event.device)
        if before is not None or len(self.devices) < DEVICES_MAX:
            self.devices[event.device] = event
            self._unsorted.add(event.device)
            self.size += (event.version is not None) - (before is not None and before.version is not None)

    def fleet(self, record: RolloutRecord) -> list[str]:
        """Devices that run some release, here now or not, and that nobody pinned; sorted.

        Those that are away count: they come back, and do what their share says.
        """
        pinned = {pin.device for pin in record.pins}
        return sorted(d.device for d in self.devices.values() if d.version is not None and d.device not in pinned)

    def cohorts(self, record: RolloutRecord) -> tuple[Set[str], Set[str]]:
        """Devices that are here now and exposed, and those that are here now in the control cohort.

        Good until the next call. It is asked at each alert, so that only devices that reported since the last call are
        looked at, unless cohorts are drawn otherwise now.
        """
        drawn = (record.salt, record.share_ppm, record.control_ppm, record.members, record.pins)
        exposed, control = self._here
        if drawn != self._drawn:
            self._drawn, self._unsorted = drawn, set(self.devices)
            exposed.clear()
            control.clear()
        pinned = {pin.device for pin in record.pins} if self._unsorted else ()
        for name in self._unsorted:
            exposed.discard(name)
            control.discard(name)
            device = self.devices[name]
            if device.is_online and device.version is not None and name not in pinned:
                place = self._is_exposed(record, name)
                if place is not None:
                    (exposed if place else control).add(name)
        self._unsorted.clear()
        return exposed, control

    def counts_in(self, record: RolloutRecord, device: str, version: int) -> bool | None:
        """Which cohort a report counts in: exposed (True) or control (False); None for neither.

        It must be of the release that the cohort should run.
        """
        if record.phase not in WATCHED or any(pin.device == device for pin in record.pins):
            return None
        is_exposed = self._is_exposed(record, device)
        return is_exposed if version == (record.candidate if is_exposed else record.baseline) else None

    def _is_exposed(self, record: RolloutRecord, device: str) -> bool | None:
        if not record.salt:
            return None
        place = self._bucket(record.salt, device)
        if place < record.share_ppm:
            return True if not record.members or device in record.members else None
        return False if place >= PPM - record.control_ppm else None

    def _bucket(self, salt: bytes, device: str) -> int:
        """A device's place in a rollout's cohorts; computed once a rollout."""
        if salt != self._salt:
            self._salt, self._buckets = salt, {}
        found = self._buckets.get(device)
        if found is None:
            found = bucket(salt, device)
            if len(self._buckets) < DEVICES_MAX:
                self._buckets[device] = found
        return found

    def begin(self, rollout: int) -> None:
        """A rollout begins: nothing is known of it."""
        self.tallies = Tallies(rollout=rollout)
        self.begin_stage()

    def begin_stage(self) -> None:
        """A stage begins: it is judged by what it shows itself."""
        self._samples = {}

    def measure(self, event: Measured, *, is_candidate: bool) -> None:
        """A report of a device that runs what its cohort should."""
        values = (event.alerts_per_hundred, event.surprise, event.latency_us, event.memory_bytes)
        for name, value in zip(_FIGURES, values, strict=True):
            of = self._samples.setdefault((is_candidate, name), {})
            if event.device in of or len(of) < DEVICES_MAX:
                of.setdefault(event.device, deque(maxlen=SAMPLES_A_DEVICE)).append(value)

    def alerted(self, device: str, *, is_candidate: bool) -> None:
        """A device opened an alert with the release that its cohort should run."""
        counts = self.tallies.candidate if is_candidate else self.tallies.control
        if device in counts or len(counts) < TALLIES_MAX:
            counts[device] = counts.get(device, 0) + 1

    def judge(
        self,
        settings: RolloutSettings,
        candidate: int,
        candidates: Set[str],
        controls: Set[str],
        *,
        exposed: int,
        compares: bool,
        peek: bool,
    ) -> Judgement:
        """Ask every gate.

        Args:
            settings: the limits.
            candidate: version of the release.
            candidates: exposed devices that are there.
            controls: devices of the control cohort that are there.
            exposed: how many devices are exposed, there or not.
            compares: whether there is a control cohort; the last stage has none.
            peek: whether the soak is not over: only what is critical, and beyond doubt, counts.
        """
        outcomes = self._outcomes(settings, candidate, candidates, exposed)
        figures = self._figures(settings, settings.alpha * PEEK if peek else settings.alpha) if compares else []
        gates = (*outcomes, *figures)
        mass = self.mass_alerts(settings, candidates, controls)
        critical = mass or "; ".join(
            gate.text for gate in gates if gate.name in CRITICAL and gate.verdict is Verdict.WORSE
        )
        return Judgement(gates, critical)

    def mass_alerts(self, settings: RolloutSettings, candidates: Set[str], controls: Set[str]) -> str:
        """Why alerts alone are reason enough to go back; empty if they are not."""
        flooding = _flooding(self.tallies.candidate, candidates, settings.mass_alerts)
        least = max(min(2, len(candidates)), math.ceil(settings.mass_share * len(candidates)))
        if not candidates or flooding < least:
            return ""
        quiet = _flooding(self.tallies.control, controls, settings.mass_alerts)
        if controls and quiet / len(controls) > flooding / len(candidates) / 2:
            return ""  # they alert everywhere: an attack, or the weather, and not the release
        return (
            f"{flooding} of {len(candidates)} exposed devices opened {settings.mass_alerts} alerts or more, "
            f"{quiet} of {len(controls)} in the control cohort"
        )

    def _outcomes(
        self, settings: RolloutSettings, candidate: int, candidates: Collection[str], exposed: int
    ) -> list[Gate]:
        asked = [self.devices[d] for d in candidates]
        about = [d for d in asked if d.candidate == candidate]
        confirmed = sum(d.outcome == "confirmed" and d.version == candidate for d in about)
        failed = sum(d.outcome == "failed" for d in about)
        # With half of the exposed devices away, those that are left are no sample of them.
        enough = asked and 2 * len(asked) >= exposed and confirmed >= settings.success_min * len(asked)
        success = Verdict.PASS if enough else Verdict.INCONCLUSIVE
        gates = [Gate("success", success, f"{confirmed} of {len(asked)} exposed devices that are here confirmed it")]
        text = f"it failed on {failed} of {len(asked)} exposed devices"
        many = failed > max(1, settings.errors_max * len(asked))
        some = failed > settings.errors_max * len(asked)
        # One device alone asks a person: it may be broken, or lie.
        gates.append(Gate("errors" if many else "error", Verdict.WORSE if some else Verdict.PASS, text))
        return gates

    def _figures(self, settings: RolloutSettings, alpha: float) -> list[Gate]:
        tolerances = {
            "alerts": Tolerance(settings.alerts_relative, settings.alerts_absolute),
            "score": Tolerance(absolute=settings.score_shift),
            "latency": Tolerance(settings.latency_relative),
            "memory": Tolerance(settings.memory_relative),
        }
        gates = []
        for name, tolerance in tolerances.items():
            ours, theirs = self.samples(name, is_candidate=True), self.samples(name, is_candidate=False)
            verdict = compare(ours, theirs, tolerance, alpha=alpha, samples_min=settings.samples_min)
            text = f"{name}: {_mean(ours)} in {len(ours)} reports, control {_mean(theirs)} in {len(theirs)}"
            gates.append(Gate(name, verdict, text))
        return gates

    def samples(self, name: str, *, is_candidate: bool) -> list[float]:
        """What a cohort reported of a figure in this stage."""
        return [value for values in self._samples.get((is_candidate, name), {}).values() for value in values]


def _flooding(counts: Mapping[str, int], devices: Set[str], least: int) -> int:
    """How many of these devices opened so many alerts: counts are of a few of them."""
    return sum(count >= least and device in devices for device, count in counts.items())


def _mean(values: Collection[float]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else "nothing"
