"""What the aggregator does by itself about drift and bad releases of one task, and what keeps it from doing too much.

Three brakes stand in front of every action. It takes several reports in a row to count as drifting, and as many to stop
(hysteresis); each action has a least distance in time and a most number, which a restart does not forget; and each
happens once for one cause: a device that still drifts after its recalibration, or a fleet that still does after its
extra round, is a person's business.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

from vedette_aggregator.action_settings import ActionsSection, Mode
from vedette_core.machine import Effect, Event, Note, Persist

DEVICES_MAX: Final = 100_000
"""Devices that are remembered; a site has fewer."""
ALERTS_MAX: Final = 10_000
"""Openings that are remembered for what was usual before a release."""
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
USUAL_FACTOR: Final = 2.0
"""How many times as many devices as in the same time before a release must be unwell for a rollback. Only devices
that scored with an earlier release count. After a restart within the time nobody counts, and nothing is rolled back."""


@dataclass(frozen=True, slots=True)
class DeviceReported(Event):
    """A node report: which release scores on the device, and whether its scores or calibration drift."""

    device: str
    version: int
    drifting: bool


@dataclass(frozen=True, slots=True)
class DeviceLeft(Event):
    """A device is stopped or lost: it counts no more until it reports again."""

    device: str


@dataclass(frozen=True, slots=True)
class AlertOpened(Event):
    """A device opened an alert with a release."""

    device: str
    version: int


@dataclass(frozen=True, slots=True)
class ReleaseActivated(Event):
    """Another release is the active one; `fresh` tells a new one from one that was gone back to.

    `promoted`: it was a rollout's candidate, has been told of as that, and is everybody's release from now on.
    """

    version: int
    fresh: bool
    promoted: bool = False


@dataclass(frozen=True, slots=True)
class Act(Effect):
    """Do it, or where `mode` is ``watch`` only write it down.

    Attributes:
        task: the task.
        kind: ``recalibrate``, ``extra-round`` or ``rollback``.
        mode: ``watch`` or ``on``.
        device: whom to ask; empty for the whole task.
        version: release that it is about.
        reason: for a person.
    """

    task: str
    kind: str
    mode: Mode
    device: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Device:
    """Reports in a row that say the same, and what they made of the device."""

    version: int = 0
    streak: int = 0
    drifts: bool = False
    last: bool = False


class ActionMachine:
    """Decides for one task.

    Args:
        task: the task.
        settings: when, and how often at most.
        saved: what it persisted under `key`; what cannot be read counts as none.
    """

    def __init__(self, task: str, settings: ActionsSection, saved: bytes | None = None) -> None:
        self.task, self._settings = task, settings
        self._devices: dict[str, _Device] = {}
        self._drifting: set[str] = set()
        self._fired: set[str] = set()
        self._scored_before: frozenset[str] = frozenset()
        self._on_it: set[str] = set()
        self._openings: deque[tuple[float, str]] = deque(maxlen=ALERTS_MAX)
        self._usual = 0.0
        self._round_armed = True
        plain = _restored(saved)
        self._recalibrated: dict[str, float] = plain["recalibrated"]
        self._round_s: float = plain["round_s"]
        self._rollbacks: list[float] = plain["rollbacks"]
        self._active: tuple[int, float, bool] = plain["active"]

    @property
    def key(self) -> str:
        """Where it persists."""
        return f"actions/{self.task}"

    @property
    def drifting(self) -> int:
        """Devices that count as drifting."""
        return len(self._drifting)

    def next_deadline(self) -> float | None:
        """Nothing is waited for: every action follows a report or an alert."""
        return None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: `DeviceReported`, `DeviceLeft`, `AlertOpened` or `ReleaseActivated`.
            now: epoch seconds.
        """
        out: list[Effect] = []
        match event:
            case DeviceReported():
                self._on_report(event, now, out)
                self._look_at_fleet(now, out)
                self._look_at_release(now, out)
            case DeviceLeft(device):
                self._devices.pop(device, None)
                self._drifting.discard(device)
                self._on_it.discard(device)
            case AlertOpened(device, version):
                self._openings.append((now, device))
                active, _, fresh = self._active
                if fresh and version == active:
                    self._fired.add(device)
                self._look_at_release(now, out)
            case ReleaseActivated():
                self._on_release(event, now, out)
        return out

    # -- a device -----------------------------------------------------------------------------------------------------

    def _on_report(self, event: DeviceReported, now: float, out: list[Effect]) -> None:
        before = self._devices.get(event.device)
        if before is None:
            if len(self._devices) >= DEVICES_MAX:
                return
            before = _Device()
        if event.version != before.version:
            before = _Device(event.version)  # measured anew with another model
        streak = before.streak + 1 if event.drifting is before.last else 1
        settled = streak >= self._settings.reports_min
        device = replace(
            before, streak=streak, last=event.drifting, drifts=event.drifting if settled else before.drifts
        )
        self._devices[event.device] = device
        on_it = event.device in self._scored_before and event.version == self._active[0]
        (self._on_it.add if on_it else self._on_it.discard)(event.device)
        (self._drifting.add if device.drifts else self._drifting.discard)(event.device)
        if device.drifts and not before.drifts:
            self._recalibrate(event, now, out)

    def _recalibrate(self, event: DeviceReported, now: float, out: list[Effect]) -> None:
        mode = self._settings.recalibrate
        if mode == "off":
            return
        since = now - self._settings.recalibrate_interval_s
        # A time from ahead is a clock that was set back: it must not stop everything for ever.
        self._recalibrated = {d: at for d, at in self._recalibrated.items() if since < at <= now}
        in_hour = sum(at > now - HOUR_S for at in self._recalibrated.values())
        if event.device in self._recalibrated:
            out.append(self._note(f"{event.device} drifts again within recalibrate_interval_s: look at it"))
            return
        if in_hour >= self._settings.recalibrations_per_hour:
            out.append(self._note(f"{event.device} drifts, and recalibrations_per_hour is used up"))
            return
        self._recalibrated[event.device] = now
        self._persist(out)
        reason = f"drifting in {self._settings.reports_min} reports in a row"
        out.append(Act(self.task, "recalibrate", mode, event.device, event.version, reason))

    # -- a fleet ------------------------------------------------------------------------------------------------------

    def _look_at_fleet(self, now: float, out: list[Effect]) -> None:
        settings, known = self._settings, len(self._devices)
        if settings.extra_round == "off" or known < settings.devices_min:
            return
        share = self.drifting / known
        if share < settings.drift_share / 2:
            self._round_armed = True
        if share < settings.drift_share or not self._round_armed:
            return
        if self._round_s <= now < self._round_s + settings.round_interval_s:
            return
        self._round_armed, self._round_s = False, now
        self._persist(out)
        reason = f"{self.drifting} of {known} reporting devices drift"
        out.append(Act(self.task, "extra-round", settings.extra_round, "", self._active[0], reason))

    # -- a release ----------------------------------------------------------------------------------------------------

    def _on_release(self, event: ReleaseActivated, now: float, out: list[Effect]) -> None:
        if event.version == self._active[0] and not event.promoted:
            return  # said again after a restart
        since = now - self._settings.rollback_window_s
        self._usual = float(len({device for at, device in self._openings if since <= at <= now}))
        self._usual += self.drifting
        self._fired, self._on_it = set(), set()
        # Who scored nothing before it could not have been unwell before it, and says nothing of what changed.
        self._scored_before = frozenset(n for n, d in self._devices.items() if d.version != event.version)
        self._active = (event.version, now, event.fresh)
        self._persist(out)

    def _look_at_release(self, now: float, out: list[Effect]) -> None:
        settings = self._settings
        version, since, fresh = self._active
        if settings.rollback == "off" or not fresh or not since <= now < since + settings.rollback_window_s:
            return
        known = len(self._on_it)
        least = settings.rollback_share * max(known, settings.devices_min)
        if known < settings.devices_min or len(self._fired) + len(self._drifting) < least:
            return  # too few, whoever they are: every report comes by here
        unwell = sum(name in self._fired or name in self._drifting for name in self._on_it)
        if unwell < least:
            return
        if unwell < USUAL_FACTOR * self._usual:
            return
        self._active = (version, since, False)
        self._rollbacks = [at for at in self._rollbacks if now - DAY_S < at <= now]
        if len(self._rollbacks) >= settings.rollbacks_per_day:
            self._persist(out)
            out.append(self._note(f"release {version} makes devices unwell, and rollbacks_per_day is used up"))
            return
        self._rollbacks.append(now)
        self._persist(out)
        reason = f"{unwell} of {known} devices on release {version} fire or drift, {self._usual:.0f} did before it"
        out.append(Act(self.task, "rollback", settings.rollback, "", version, reason))

    def _persist(self, out: list[Effect]) -> None:
        plain = {
            "recalibrated": self._recalibrated,
            "round_s": self._round_s,
            "rollbacks": self._rollbacks,
            "active": list(self._active),
        }
        out.append(Persist(self.key, json.dumps(plain).encode()))

    def _note(self, text: str) -> Note:
        return Note("warning", f"{self.task}: {text}")


def _restored(saved: bytes | None) -> dict[str, Any]:
    nothing: dict[str, Any] = {"recalibrated": {}, "round_s": 0.0, "rollbacks": [], "active": (-1, 0.0, False)}
    if saved is None:
        return nothing
    try:
        plain = json.loads(saved)
        version, since, fresh = plain["active"]
        return {
            "recalibrated": {str(d): float(at) for d, at in plain["recalibrated"].items()},
            "round_s": float(plain["round_s"]),
            "rollbacks": [float(at) for at in plain["rollbacks"]],
            "active": (int(version), float(since), bool(fresh)),
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return nothing
