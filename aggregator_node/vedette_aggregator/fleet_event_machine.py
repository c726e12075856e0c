"""Many devices of one kind that fire together are one event: news of a change, or of an attack on all of them.

=======  =================================================  =========================================================
state    what happens                                       answer
=======  =================================================  =========================================================
calm     a device opens an alert, few others of its kind    remember it for a window
calm     … and as many others as the share asks for         open a fleet event: count it, say it once
open     a device of the kind opens an alert                count it as part of the event
open     less than half of that share is left, or silence   close the event: count it, say it
any      an alert that is older than the window             it says nothing about now
=======  =================================================  =========================================================

Alerts are kept and answered whatever happens here: an event only says that they belong together. Their own times
count, so that what devices kept during an outage is no event when it arrives at once; a time ahead of the aggregator's
clock is taken for now. A kind is a task and a cohort, the operator's word for devices that are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from vedette_core.machine import Count, Effect, Event, Note, Tick

DEVICES_MAX: Final = 100_000
"""Devices that are remembered, all kinds together; a site has fewer."""
CLEAR_SHARE: Final = 0.5
"""Hysteresis: an event stays open until fewer than this part of the devices that it takes are firing."""


@dataclass(frozen=True, slots=True)
class FleetEventSettings:
    """When devices of a kind fire together.

    Attributes:
        share: part of a kind's devices, 0–1.
        devices_min: fewest devices, however small the share of them.
        window_s: seconds within which they do.
    """

    share: float = 0.3
    devices_min: int = 5
    window_s: float = 600.0


@dataclass(frozen=True, slots=True)
class DeviceKnown(Event):
    """A device runs a detector of a task.

    Attributes:
        cohort: what kind it says it is; empty if it does not say.
    """

    device: str
    task: str
    cohort: str


@dataclass(frozen=True, slots=True)
class DeviceGone(Event):
    """A device stopped, or was lost: it is no longer one of those that could fire."""

    device: str


@dataclass(frozen=True, slots=True)
class AlertOpened(Event):
    """A device opened an alert.

    Attributes:
        at_s: end of the window that triggered it, epoch seconds by the device.
    """

    device: str
    task: str
    at_s: float


@dataclass(slots=True)
class _Kind:
    devices: set[str] = field(default_factory=set)
    firing: dict[str, float] = field(default_factory=dict)
    newest_s: float = -math.inf
    heard_at: float = 0.0
    is_open: bool = False
    alerts: int = 0


class FleetEventMachine:
    """The fleet events of a site.

    Args:
        settings: see `FleetEventSettings`.
    """

    def __init__(self, settings: FleetEventSettings) -> None:
        self._settings = settings
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._cohorts: dict[tuple[str, str], str] = {}

    @property
    def open_events(self) -> tuple[tuple[str, str], ...]:
        """Task and cohort of each event that is open, sorted."""
        return tuple(sorted(key for key, kind in self._kinds.items() if kind.is_open))

    def next_deadline(self) -> float | None:
        """When the first open event closes by silence."""
        return min((k.heard_at + self._settings.window_s for k in self._kinds.values() if k.is_open), default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; `now` in epoch seconds."""
        match event:
            case DeviceKnown(device, task, cohort):
                self._place(device, task, cohort)
            case DeviceGone(device):
                return [effect for key in self._keys(device) for effect in self._leave(device, key)]
            case AlertOpened(device, task, at_s):
                return self._fire(device, task, min(at_s, now), now)
            case Tick():
                late = now - self._settings.window_s
                silent = [key for key, kind in self._kinds.items() if kind.is_open and kind.heard_at <= late]
                return [effect for key in silent for effect in self._close(key, "silence")]
        return []

    def _place(self, device: str, task: str, cohort: str) -> bool:
        before = self._cohorts.get((device, task))
        if before == cohort:
            return True
        if before is not None:
            old = self._kinds[task, before]
            old.devices.discard(device)
            old.firing.pop(device, None)
            self._forget_empty(task, before)
        elif len(self._cohorts) >= DEVICES_MAX:
            return False
        self._cohorts[device, task] = cohort
        self._kinds.setdefault((task, cohort), _Kind()).devices.add(device)
        return True

    def _fire(self, device: str, task: str, at_s: float, now: float) -> list[Effect]:
        if (device, task) not in self._cohorts and not self._place(device, task, ""):
            return [Count("machine_events", "discarded", task, "fleet_event")]
        key = (task, self._cohorts[device, task])
        kind = self._kinds[key]
        kind.newest_s = max(kind.newest_s, at_s)
        start_s = kind.newest_s - self._settings.window_s
        kind.firing[device] = max(at_s, kind.firing.get(device, -math.inf))
        kind.firing = {each: last_s for each, last_s in kind.firing.items() if last_s >= start_s}
        if at_s < start_s:
            return [Count("machine_events", "discarded", task, "fleet_event")]
        kind.heard_at = now
        effects: list[Effect] = []
        if kind.is_open and len(kind.firing) < CLEAR_SHARE * self._needed(kind):
            effects += self._close(key, "fewer devices")
        elif kind.is_open:
            kind.alerts += 1
            effects.append(Count("fleet_event_alerts", "part", task))
        if not kind.is_open and len(kind.firing) >= self._needed(kind):
            kind.is_open, kind.alerts = True, len(kind.firing)
            found = f"{len(kind.firing)} of {len(kind.devices)} devices within {self._settings.window_s:.0f} s"
            effects += [
                Count("fleet_events", "opened", task),
                Note(
                    "warning", f"fleet event: {_named(key)}: {found} opened alerts; look for what changed for them all"
                ),
            ]
        return effects

    def _needed(self, kind: _Kind) -> int:
        return max(self._settings.devices_min, math.ceil(self._settings.share * len(kind.devices)))

    def _close(self, key: tuple[str, str], why: str) -> list[Effect]:
        kind = self._kinds[key]
        kind.is_open = False
        kind.firing.clear()
        text = f"fleet event: {_named(key)}: over ({why}) after {kind.alerts} alerts"
        return [Count("fleet_events", "closed", key[0]), Note("info", text)]

    def _leave(self, device: str, key: tuple[str, str]) -> list[Effect]:
        task, cohort = key
        kind = self._kinds[key]
        kind.devices.discard(device)
        kind.firing.pop(device, None)
        del self._cohorts[device, task]
        effects: list[Effect] = []
        if kind.is_open and not kind.firing:
            effects = self._close(key, "its devices left")
        self._forget_empty(task, cohort)
        return effects

    def _forget_empty(self, task: str, cohort: str) -> None:
        kind = self._kinds[task, cohort]
        if not kind.devices and not kind.is_open:
            del self._kinds[task, cohort]

    def _keys(self, device: str) -> list[tuple[str, str]]:
        tasks = {task for task, _ in self._kinds}
        return [(t, self._cohorts[device, t]) for t in sorted(tasks) if (device, t) in self._cohorts]


def _named(key: tuple[str, str]) -> str:
    task, cohort = key
    return f"{task}, {cohort}" if cohort else task
