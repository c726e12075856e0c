"""Carries out what the action machines decide, and writes each of it down first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.action_machine import (
    Act,
    ActionMachine,
    AlertOpened,
    DeviceLeft,
    DeviceReported,
    ReleaseActivated,
)
from vedette_aggregator.command_post import CommandPost
from vedette_aggregator.device_book import Action, DeviceBook
from vedette_aggregator.fleet_drift import has_drifted
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry import Registry
from vedette_aggregator.round_events import RoundAsked
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.machine import Effect, Event, Publish
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.errors import VedetteError
from vedette_schemas.model import Variant
from vedette_schemas.telemetry import DetectorReport

log = logging.getLogger("vedette.actions")

KINDS: Final = ("recalibrate", "extra-round", "rollback")

CarryOut = Callable[[list[Effect]], Awaitable[None]]
TakeBack = Callable[[str, int, str, float], Awaitable[str | None]]
"""Takes a task, the release to take back, why, and epoch seconds; returns what came of it, or None if that release is
no business of a rollout."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What the service lends to actions.

    Attributes:
        carry_out: carries out ordinary effects, in order.
        publish: puts a message on its way.
        put_out: puts retained files out.
        handle: gives a task's rounds an event.
        follow: lets a task's rounds go on from the registry's active release.
    """

    carry_out: CarryOut
    publish: Callable[[Publish], None]
    put_out: Callable[[Publication], None]
    handle: Callable[[str, Event], Awaitable[None]]
    follow: Callable[[str], Awaitable[None]]


class Actions:
    """The actions of all tasks.

    Args:
        settings: the aggregator's.
        database: its state.
        book: where each action is written down.
        metrics: its metrics.
        registry: where releases are taken back that are no business of a rollout; see `take_back`.
        post: sends commands.
        hands: what actions are done with.

    Attributes:
        take_back: asked first. A release that a rollout brought out is taken back by the rollout machine alone: two who
            both make releases active would undo each other's work.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        database: Database,
        book: DeviceBook,
        metrics: Metrics,
        registry: Registry,
        post: CommandPost,
        hands: Hands,
    ) -> None:
        self._store, self._lineage = StateStore(database), Lineage(database.path)
        self._book, self._metrics, self._registry, self._hands = book, metrics, registry, hands
        self._post = post
        self.take_back: TakeBack | None = None
        self._machines = {
            task.task: ActionMachine(task.task, settings.actions, self._store.get(f"actions/{task.task}"))
            for task in settings.tasks
        }
        for kind in KINDS:
            self._metrics.inc("actions", kind, "done", by=0)

    async def took_report(self, device: str, detectors: tuple[DetectorReport, ...], now: float) -> None:
        """A node report came in."""
        for detector in detectors:
            if detector.task in self._machines and detector.phase == "armed" and detector.windows:
                event = DeviceReported(device, detector.model_version, has_drifted(detector))
                await self._handle(detector.task, event, now)

    async def device_left(self, device: str, now: float) -> None:
        """A device is stopped or lost."""
        for task in self._machines:
            await self._handle(task, DeviceLeft(device), now)

    async def alert_opened(self, device: str, task: str, version: int, now: float) -> None:
        """A device opened an alert."""
        if task in self._machines:
            await self._handle(task, AlertOpened(device, version), now)

    async def released(self, task: str, version: int, now: float, *, fresh: bool, promoted: bool = False) -> None:
        """Another release is the active one, or (promoted) is everybody's from now on."""
        await self._handle(task, ReleaseActivated(version, fresh, promoted), now)

    async def _handle(self, task: str, event: Event, now: float) -> None:
        effects = self._machines[task].handle(event, now)
        await self._hands.carry_out([e for e in effects if not isinstance(e, Act)])
        for effect in effects:
            if isinstance(effect, Act):
                await self._act(effect, now)

    async def _act(self, act: Act, now: float) -> None:
        subject = f" {act.device}" if act.device else ""
        if act.mode == "watch":
            log.info("%s: would %s%s: %s", act.task, act.kind, subject, act.reason)
            self._done(act, now, "watched")
            return
        # Written down before it is done: a crash leaves a word too many rather than a deed too many.
        self._write(act, now, "begun")
        try:
            match act.kind:
                case "recalibrate":
                    self._post.send(act.device, now, action="recalibrate", task=act.task, reason=act.reason[:200])
                    outcome = "done"
                case "extra-round":
                    await self._hands.handle(act.task, RoundAsked())
                    outcome = "done"
                case _:
                    outcome = await self._roll_back(act.task, act.version, act.reason, now)
        except VedetteError as fault:
            log.error("%s: %s%s failed: %s", act.task, act.kind, subject, fault)
            self._done(act, now, "failed")
            return
        log.warning("%s: %s%s: %s (%s)", act.task, act.kind, subject, outcome, act.reason)
        self._done(act, now, outcome)

    async def _roll_back(self, task: str, version: int, reason: str, now: float) -> str:
        """Go back to the release that one was made from, as a person would.

        The one with the number before it may be what was gone back from the last time.
        """
        answer = None if self.take_back is None else await self.take_back(task, version, reason, now)
        if answer is not None:
            return answer
        state = self._registry.state()
        older = [v for v in state.versions(task) if v < version]
        if not older or state.active(task) != version:
            return "nothing"
        parent = state.listed(task, version)[Variant.WEIGHTS].custom.parent
        made_from = [v for v in older if state.listed(task, v)[Variant.WEIGHTS].sha256 == parent]
        to = (made_from or older)[-1]
        self._hands.put_out(await asyncio.to_thread(self._registry.rollback, task, to, now))
        self._lineage.record(task, version, "rolled back", now, f"to {to}: {reason}")
        await self._hands.follow(task)
        return "done"

    def _done(self, act: Act, now: float, outcome: str) -> None:
        self._metrics.inc("actions", act.kind, outcome)
        self._write(act, now, outcome)

    def _write(self, act: Act, now: float, outcome: str) -> None:
        try:
            self._book.record(Action(now, act.task, act.kind, act.device, outcome, act.reason))
        except VedetteError as fault:
            log.error("%s", fault)  # an alert and a rollback are worth more than the record of them
