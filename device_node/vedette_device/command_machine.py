"""What a device does about commands: each once, none that is stale, and none more often than it may be."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from vedette_core.machine import Count, Effect, Event, Note, Persist
from vedette_schemas.command import LIFETIME_S_MAX, Command

KEY: Final = "command/state"
RECALIBRATE_S_MIN: Final = 3600.0
"""Least time between two recalibrations of a task: whoever holds the aggregator cannot move a threshold quicker than
the benign windows behind it come in."""

COLD_START_S_MIN: Final = 60.0
"""Least time between two cold starts of a task: each scores the training rows once."""


@dataclass(frozen=True, slots=True)
class CommandReceived(Event):
    """A command whose signature holds, for this device."""

    body: Command


@dataclass(frozen=True, slots=True)
class Recalibrate(Effect):
    """Measure the active model of a task anew, if that may be now."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class ColdStart(Effect):
    """Score a release with the fleet's scores until there is an own calibration, if it still is needed."""

    task: str
    version: int
    sketch: bytes = field(repr=False)


class CommandMachine:
    """Takes commands.

    Args:
        device: own id.
        tasks: the tasks of this device.
        saved: what it persisted under `KEY`; None at the first start, and what cannot be read counts as none.
    """

    def __init__(self, device: str, tasks: Collection[str], saved: bytes | None = None) -> None:
        self._device, self._tasks = device, frozenset(tasks)
        self._seq, self._recalibrated = _restored(saved)
        self._cold_started: dict[str, float] = {}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: `CommandReceived`; anything else changes nothing.
            now: epoch seconds.
        """
        if not isinstance(event, CommandReceived):
            return []
        command = event.body
        outcome = self._outcome(command, now)
        out: list[Effect] = []
        if outcome in ("accepted", "too_soon", "unknown_task"):
            self._seq = command.seq
            if outcome == "accepted" and command.action == "recalibrate":
                self._recalibrated[command.task] = now
            state = {"seq": self._seq, "recalibrated": self._recalibrated}
            out.append(Persist(KEY, json.dumps(state).encode()))
        if outcome == "accepted" and command.action == "recalibrate":
            out.append(Recalibrate(command.task, command.reason))
        elif outcome == "accepted":
            self._cold_started[command.task] = now
            out.append(ColdStart(command.task, command.version, command.sketch))
        out.append(Count("commands", outcome, command.task, command.action))
        level = "info" if outcome in ("accepted", "repeated") else "warning"
        out.append(Note(level, f"command {command.seq} ({command.action} {command.task}): {outcome.replace('_', ' ')}"))
        return out

    def next_deadline(self) -> float | None:
        """Nothing is waited for."""
        return None

    def _outcome(self, command: Command, now: float) -> str:
        if command.seq <= self._seq:
            return "repeated"
        if not 0 < command.expires_s - command.issued_s <= LIFETIME_S_MAX or command.expires_s <= now:
            return "expired"
        if command.issued_s > now + LIFETIME_S_MAX:
            return "early"  # a number from far ahead would make every later one a repetition
        if command.task not in self._tasks:
            return "unknown_task"
        times, least = self._recalibrated, RECALIBRATE_S_MIN
        if command.action == "cold-start":
            times, least = self._cold_started, COLD_START_S_MIN
        last = times.get(command.task)
        if last is not None and last <= now < last + least:
            return "too_soon"
        return "accepted"


def _restored(saved: bytes | None) -> tuple[int, dict[str, float]]:
    if saved is None:
        return 0, {}
    try:
        plain = json.loads(saved)
        return int(plain["seq"]), {str(task): float(at) for task, at in plain["recalibrated"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, {}  # repetitions are then bounded by their expiry
