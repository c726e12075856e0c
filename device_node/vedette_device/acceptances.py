"""Makes a running detector follow what a person accepted; see `vedette_device.acceptance`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from vedette_core.machine import Effect
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import StateStore
from vedette_device.acceptance import (
    LEVEL_MAX,
    PROGRESS,
    RECORDS,
    Acceptance,
    LearnEntity,
    follow,
    progress_key,
    progress_to_bytes,
)
from vedette_device.accepted_entities import Stage
from vedette_device.alert_record import AlertRecord
from vedette_device.detection_machine import DetectionMachine, EntityAccepted
from vedette_device.detector import Detector
from vedette_schemas.errors import PeerError, RefusedError, TransientError

log = logging.getLogger("vedette.accept")

LOOK_S: Final = 1.0
PROGRESS_S: Final = 10.0
"""Seconds between two writes of how far an entity is, but for its end: flash memory wears."""

CarryOut = Callable[[Sequence[Effect]], Awaitable[None]]


class Acceptances:
    """The accepted entities of one detector, in its node.

    Args:
        task: the detector's.
        detector: the detector.
        machine: its alerts.
        store: where the records are.
        metrics: the device's.
        save: keeps the detector's state.
    """

    def __init__(
        self,
        task: str,
        detector: Detector,
        machine: DetectionMachine,
        store: StateStore,
        metrics: Metrics,
        save: Callable[[], None],
    ) -> None:
        self._task, self._detector, self._machine = task, detector, machine
        self._store, self._metrics, self._save = store, metrics, save
        self._stages: dict[str, tuple[str, Stage]] = {p.entity: (p.id, p.stage) for p in detector.accepted.progress()}
        self._written: dict[str, bytes] = dict(store.all(f"{PROGRESS}{task}/"))
        self._written_at = float("-inf")
        self._said: set[str] = set()
        self.turn = asyncio.Lock()
        """Held while windows are fed, and while a detector is changed: a tick is judged by one state of it."""

    async def run(self, carry_out: CarryOut) -> None:
        """Look at the records every second, until cancelled; ends at once if the detector accepts nobody."""
        while self._detector.accepts_entities:
            await asyncio.sleep(LOOK_S)
            await self.look(carry_out)

    async def look(self, carry_out: CarryOut) -> None:
        """Follow the records, and say how far each entity is; whatever fails is said, and detection goes on."""
        try:
            async with self.turn:
                changed = await self._follow(carry_out) if self._detector.phase != "learning" else False
                if self._take_ends() or changed:
                    self._save()
                self._tell(now=changed)
        except TransientError as fault:
            self._say_once(f"{self._task}: {fault}")
        except Exception:
            log.exception("%s: what was accepted could not be followed", self._task)

    async def _follow(self, carry_out: CarryOut) -> bool:
        wanted, unreadable = self._records()
        steps = follow(wanted, self._detector.accepted.known(), unreadable)
        changed = False
        for step in steps:
            if isinstance(step, LearnEntity):
                changed |= await self._learn(step.acceptance, carry_out)
                continue
            self._detector.forget(step.entity)
            self._stages.pop(step.entity, None)
            self._metrics.inc("acceptances", self._task, "undone")
            log.warning("%s: %s is a newcomer again: its acceptance was taken back", self._task, step.entity)
            changed = True
        return changed

    async def _learn(self, record: Acceptance, carry_out: CarryOut) -> bool:
        entity = record.entity
        level = min(max(record.level, level_of(self._machine.open_alert(entity))), LEVEL_MAX)
        try:
            self._detector.accept(entity, record.id, level)
        except RefusedError as fault:
            self._say_once(f"{self._task}: {fault}")
            return False
        # Nothing is fed meanwhile. A crash from here on finds the record, and does both again.
        await carry_out(self._machine.handle(EntityAccepted(entity, record.reason), time.time()))
        self._stages[entity] = (record.id, "learning")
        self._metrics.inc("acceptances", self._task, "begun")
        log.warning(
            "%s: %s was accepted by uid %d (alert %s): it is learnt for %d windows, and only loud ones are reported",
            self._task,
            entity,
            record.uid,
            record.alert or "none",
            self._detector.settings.stretch_windows,
        )
        return True

    def _take_ends(self) -> bool:
        """Say which stretches have ended; returns whether any has."""
        ended = False
        for each in self._detector.accepted.progress():
            if self._stages.get(each.entity) == (each.id, each.stage):
                continue
            self._stages[each.entity] = (each.id, each.stage)
            ended = True
            self._metrics.inc("acceptances", self._task, each.stage)
            if each.stage == "learnt":
                log.info("%s: %s was learnt from %d windows", self._task, each.entity, each.windows)
            else:
                log.warning(
                    "%s: %s was not learnt: %d quiet windows of %d in the time that there is; accept it again, or find "
                    "out what it does",
                    self._task,
                    each.entity,
                    each.windows,
                    each.of,
                )
        return ended

    def _tell(self, *, now: bool) -> None:
        found = self._detector.accepted.progress()
        learning = sum(each.stage == "learning" for each in found)
        self._metrics.set("entities_learning", self._task, value=learning)
        told = {progress_key(self._task, each.entity): each for each in found}
        is_due = now or time.monotonic() - self._written_at >= PROGRESS_S
        for key, each in told.items():
            value = progress_to_bytes(each)
            if value != self._written.get(key) and (is_due or each.stage != "learning"):
                self._store.put(key, value)
                self._written[key] = value
        for key in [key for key in self._written if key not in told]:
            self._store.put(key, None)
            del self._written[key]
        if is_due:
            self._written_at = time.monotonic()

    def _records(self) -> tuple[dict[str, Acceptance], set[str]]:
        """By entity, and the entities whose record is damaged."""
        found, unreadable = {}, set()
        for key, value in self._store.all(f"{RECORDS}{self._task}/").items():
            try:
                record = Acceptance.from_bytes(value)
                if record.key != key:
                    raise PeerError(f"acceptance: found one of {record.key}", reason="damaged")
            except PeerError as fault:
                unreadable.add(key.removeprefix(f"{RECORDS}{self._task}/"))
                if self._say_once(f"{key}: {fault}; the entity stays as it is: accept it again"):
                    self._metrics.inc("acceptances", self._task, "damaged")
                continue
            found[record.entity] = record
        return found, unreadable

    def _say_once(self, text: str) -> bool:
        is_news = text not in self._said
        if is_news:
            self._said.add(text)
            log.warning("%s", text)
        return is_news


def level_of(alert: AlertRecord | None) -> float:
    """Score of an open alert's strongest window over the largest benign one of its time; 1 without an alert."""
    if alert is None:
        return 1.0
    bar = max(alert.strongest.threshold, alert.strongest.benign_max)
    return max(alert.strongest.score / bar, 1.0) if bar > 0.0 else 1.0
