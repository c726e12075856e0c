"""The rollouts of an aggregator at work: feeds their machines, carries out what they ask for."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry import Registry
from vedette_aggregator.releases import Releases
from vedette_aggregator.rollout_chronicle import write_down
from vedette_aggregator.rollout_events import (
    ActivateRelease,
    ActivationRefused,
    ActiveSeen,
    CandidateListed,
    DeviceAlerted,
    DeviceReported,
    FollowRounds,
    ReleaseUnlisted,
    Requested,
    Verb,
)
from vedette_aggregator.rollout_machine import RolloutMachine
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_reports import ReportPairs
from vedette_aggregator.rollout_requests import ALLOWED, RequestBody, request_key, request_prefix
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import TEXT_MAX, Phase
from vedette_aggregator.settings import TaskSection
from vedette_core.machine import Connected, Effect, Event, Tick
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import StateStore
from vedette_schemas import codec
from vedette_schemas.alert import Alert, AlertState
from vedette_schemas.errors import PeerError, RefusedError, VedetteError
from vedette_schemas.model import Variant
from vedette_schemas.telemetry import DeviceState, Telemetry

log = logging.getLogger("vedette.rollouts")

REQUESTS_S: Final = 1.0
"""How soon a request that a person wrote beside this process is seen."""
RETRY_S: Final = 5.0
ENDS: Final = (Phase.PROMOTED.value, Phase.ABORTED.value, Phase.ROLLED_BACK.value)


@dataclass(frozen=True, slots=True)
class RolloutParts:
    """What rollouts work with.

    Attributes:
        registry: the site's release repository.
        store: where machines persist, and where requests are written.
        shell: carries effects out.
        metrics: the aggregator's.
        jobs: what runs beside it.
        messages: seals what devices are told.
        put_out: publishes what changed in the repository.
        follow: makes a task's rounds start from where they should.
        lineage: where it is written down what happens to a release.
        promoted: told of a task and its candidate that is everybody's release from now on.
    """

    registry: Registry
    store: StateStore
    shell: Shell
    metrics: Metrics
    jobs: Jobs
    messages: RolloutMessages
    put_out: Callable[[Publication], None]
    follow: Callable[[str], Awaitable[None]]
    lineage: Lineage
    promoted: Callable[[str, int], Awaitable[None]]


class Rollouts:
    """The rollouts of every task that has them.

    Args:
        settings: by task, those that are enabled.
        parts: see `RolloutParts`.

    Raises:
        ConfigError: a damaged record.
    """

    def __init__(self, settings: Mapping[str, RolloutSettings], parts: RolloutParts) -> None:
        self._settings, self._parts = settings, parts
        self._machines: dict[str, RolloutMachine] = {}
        self._resume: dict[str, list[Effect]] = {}
        for task, wanted in settings.items():
            self._machines[task], self._resume[task] = RolloutMachine.restore(
                parts.store.all(f"rollout/{task}/"), task, wanted, parts.messages, os.urandom
            )
        self._pairs = {task: ReportPairs(task) for task in settings}
        self._turns = {task: asyncio.Lock() for task in settings}
        self._activations = {task: asyncio.Lock() for task in settings}
        self._requests_at = 0.0
        for task in settings:
            for outcome in ("created", "paused", "superseded", *ENDS):
                parts.metrics.inc("rollouts", task, outcome, by=0)
            self._show(task)

    @classmethod
    def of(cls, tasks: Iterable[TaskSection], parts: RolloutParts, releases: Mapping[str, Releases]) -> Rollouts:
        """The rollouts of an aggregator's tasks; their releases ask it from then on what is staged.

        Raises:
            ConfigError: a damaged record, or settings that do not fit each other.
        """
        wanted = {task.task: RolloutSettings(**task.rollout.model_dump()) for task in tasks}
        rollouts = cls({task: settings for task, settings in wanted.items() if settings.enabled}, parts)
        for of_task in releases.values():
            of_task.staging = rollouts
        return rollouts

    def is_staged(self, task: str, version: int) -> bool:
        """Whether a new release goes to the fleet in stages; else it is active at once."""
        return task in self._machines and version >= self._settings[task].from_version

    def kept(self, task: str) -> frozenset[int]:
        """Releases that the repository must keep: those that devices are told of."""
        if task not in self._machines:
            return frozenset()
        return self._machines[task].record.kept()

    def rounds_from(self, task: str) -> int | None:
        """Version that a task's next round starts from; None where its releases are not staged."""
        if task not in self._machines:
            return None
        return self._machines[task].record.rounds_from(self._parts.registry.versions(task))

    async def start(self) -> None:
        """Finish what a crash interrupted, and look at what the repository lists."""
        for task, effects in self._resume.items():
            await self._carry_out(task, effects)
            await self.look(task)

    async def look(self, task: str) -> None:
        """Tell a task's machine what the repository lists now."""
        if task not in self._machines:
            return
        # Read here and now: of a state that was read a while ago the machine would take a step back for a decision.
        state = self._parts.registry.state()
        active, versions = state.active(task), state.versions(task)
        if active is not None:
            await self._handle(task, ActiveSeen(active, state.listed(task, active)[Variant.WEIGHTS].sha256))
        record = self._machines[task].record
        if record.is_live and record.candidate not in versions:
            await self._handle(task, ReleaseUnlisted(record.candidate))
        for version in versions:
            if active is not None and version > active:
                target = state.listed(task, version)[Variant.WEIGHTS]
                await self._handle(task, CandidateListed(version, target.sha256, target.custom.parent))

    async def connected(self) -> None:
        """The broker may have forgotten what it retained."""
        for task in self._machines:
            await self._handle(task, Connected())

    async def take_state(self, state: DeviceState) -> None:
        """A device's newest state."""
        for task in self._machines:
            version = next((m.version for m in state.models if m.task == task), None)
            progress = next((p for p in state.rollouts if p.task == task), None)
            event = DeviceReported(
                state.device,
                state.status == "online",
                version,
                progress.candidate if progress else 0,
                progress.outcome if progress else "none",
            )
            await self._handle(task, event)

    async def take_report(self, report: Telemetry) -> None:
        """A node report."""
        for task, pairs in self._pairs.items():
            measured = pairs.take(report)
            if measured is not None:
                await self._handle(task, measured)

    async def take_alert(self, alert: Alert) -> None:
        """An alert that was not here before."""
        if alert.state is AlertState.OPEN and alert.model.task in self._machines:
            await self._handle(alert.model.task, DeviceAlerted(alert.device, alert.model.version))

    async def roll_back(self, task: str, version: int, reason: str, now: float) -> str | None:
        """Take a release back whose rollout is under way, or was the last one; called by automatic actions.

        Returns:
            ``done``, or ``nothing`` where it is on its way back already; None where it is no business of a rollout.
        """
        if task not in self._machines:
            return None
        record = self._machines[task].record
        if record.candidate != version or record.number == 0:
            return None
        if record.phase in (Phase.REVERTING, Phase.ROLLED_BACK):
            return "nothing"
        if record.phase not in ALLOWED[Verb.ROLLBACK] or (
            record.phase is Phase.PROMOTED and record.active != record.candidate
        ):
            return None
        by = f"an automatic action ({reason})"[:TEXT_MAX]
        await self._handle(task, Requested(f"action-{version}-{now:.0f}", Verb.ROLLBACK, by, now))
        return "done"

    async def tick(self) -> None:
        """Time has passed."""
        now = time.time()
        if time.monotonic() >= self._requests_at:
            self._requests_at = time.monotonic() + REQUESTS_S
            for task in self._machines:
                await self._take_requests(task)
        for task, machine in self._machines.items():
            deadline = machine.next_deadline()
            if deadline is not None and deadline <= now:
                await self._handle(task, Tick())

    async def _take_requests(self, task: str) -> None:
        prefix = request_prefix(task)
        for key, stored in sorted(self._parts.store.all(prefix).items()):
            request = key.removeprefix(prefix)
            try:
                body = codec.unpack_json(RequestBody, stored)
            except PeerError as fault:
                log.error("request %s of %s: %s", request, task, fault)
                self._parts.store.put(request_key(task, request), None)
                continue
            await self._handle(
                task, Requested(request, body.verb, body.by, body.at_s, device=body.device, version=body.version)
            )

    async def _handle(self, task: str, event: Event) -> None:
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turns[task]:
            before, now = self._machines[task].record, time.time()
            effects = self._machines[task].handle(event, now)
            if not effects:
                return
            await self._carry_out(task, [e for e in effects if not isinstance(e, FollowRounds)])
            after = self._machines[task].record
            write_down(self._parts.lineage, task, before, after, self._settings[task].stages, now)
        self._show(task)
        if after.phase is Phase.PROMOTED and before.phase is not Phase.PROMOTED:
            await self._parts.promoted(task, after.candidate)
        if any(isinstance(e, FollowRounds) for e in effects):
            await self._parts.follow(task)

    async def _carry_out(self, task: str, effects: list[Effect]) -> None:
        await self._parts.shell.carry_out(effects, self._special)

    async def _special(self, effect: Effect) -> None:
        assert isinstance(effect, ActivateRelease), f"nobody carries out {effect!r}"
        self._parts.jobs.start(self._activate(effect), f"activate-{effect.task}")

    async def _activate(self, effect: ActivateRelease) -> None:
        parts, task, version = self._parts, effect.task, effect.version
        while True:
            # One at a time: a promotion that is taken back must not be proposed again behind the way back.
            async with self._activations[task]:
                if self._machines[task].record.to_activate != version:
                    return
                try:
                    publication = await asyncio.to_thread(parts.registry.activate, task, version, time.time())
                    target = parts.registry.listed(task, version)[Variant.WEIGHTS]
                except RefusedError as error:
                    refusal: RefusedError | None = error
                    log.error("activation of release %d of %s: %s", version, task, error)
                except VedetteError as error:
                    # A missing key, a full disk, a validator that is away: all can be mended while the rollout waits.
                    refusal = None
                    log.error("activation of release %d of %s: %s; trying again", version, task, error)
                else:
                    break
            if refusal is not None and refusal.rule != "validator":
                await self._handle(task, ReleaseUnlisted(version))
                return
            if refusal is not None:
                # Of a way back nothing comes: devices are told already, and only a person can talk to the validator.
                await self._handle(task, ActivationRefused(version, str(refusal)))
            await asyncio.sleep(RETRY_S)
        parts.put_out(publication)
        await self._handle(task, ActiveSeen(version, target.sha256))

    def _show(self, task: str) -> None:
        record, metrics = self._machines[task].record, self._parts.metrics
        stages = self._settings[task].stages
        percent = stages[record.stage] if record.is_live and 0 <= record.stage < len(stages) else 0.0
        metrics.set("rollout_stage_ratio", task, value=percent / 100.0)
        metrics.set("rollout_exposed_devices", task, value=record.exposed if record.is_live else 0)
        for phase in Phase:
            metrics.set("rollout_phase", task, phase.value, value=float(record.phase is phase))
