"""A light node: a participant over real MQTT with keys, outbox and machine of its own, and without sources.

It trains and masks as a device node does (`vedette_device.participation`). Two things can be wrong with it: it vanishes
in the middle of rounds, as after a power cut, and comes back from its own disk; or it lies about its update.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vedette.demo.lies import attack_on_deltas, contribute_unclipped, poisoned
from vedette.demo.light_rows import LightRows
from vedette.demo.swarm_settings import NodeSection, SwarmSettings
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.poisoning import Attack
from vedette_core.learning.staleness import BufferedDelta
from vedette_core.machine import Effect, Event
from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_core.secagg.committee import CloseReceived
from vedette_device.budget_book import BudgetBook
from vedette_device.participant_events import RoundOpened, Train
from vedette_device.participation import Participation
from vedette_device.participation_budget import ParticipationLimits
from vedette_device.round_session import RoundSession, SessionParts
from vedette_device.training import Contribution
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import ConfigError
from vedette_schemas.model import Variant
from vedette_schemas.round import Phase, RoundOpen

Say = Callable[..., None]
"""Writes a line about something that happened: its kind, then fields by name."""
Vanishes = Callable[[str, int], bool]
"""Whether a device vanishes in a round."""


@dataclass(slots=True)
class RoundWatch:
    """How far the rounds are, as any node of the swarm heard.

    Attributes:
        over: last (round, attempt) that has ended.
    """

    over: tuple[int, int] = (0, 0)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, body: RoundOpen) -> None:
        """A round's state came in."""
        ended = body.phase in (Phase.DONE, Phase.FAILED)
        over = (body.round, body.attempt) if ended else (body.round, body.attempt - 1)
        if over > self.over:
            self.over = over
            self._moved.set()
            self._moved = asyncio.Event()

    async def wait_over(self, place: tuple[int, int]) -> None:
        """Wait until an attempt has ended."""
        while self.over < place:
            await self._moved.wait()


class LightNode:
    """One light node.

    Args:
        section: who it is, and whether it lies.
        settings: the swarm's.
        rows: what it trains on.
        training: held while a model trains.
        watch: the swarm's.
        vanishes: when it vanishes.
        say: tells what happens.

    Raises:
        ConfigError: a bundle of another node, or an attack that it cannot do.
    """

    def __init__(
        self,
        section: NodeSection,
        settings: SwarmSettings,
        rows: LightRows,
        *,
        training: asyncio.Lock,
        watch: RoundWatch,
        vanishes: Vanishes,
        say: Say,
    ) -> None:
        self._node = load_node(section.bundle, time.time())
        if (self._node.id, self._node.site) != (section.device, settings.site):
            raise ConfigError(
                f"{section.bundle}: found a bundle of {self._node.id} at {self._node.site}, expected "
                f"{section.device} at {settings.site}"
            )
        self._lie = attack_on_deltas(section.attack)
        self._settings, self._rows, self._training = settings, rows, training
        self._watch, self._vanishes, self._say = watch, vanishes, say

    async def run(self, stop: asyncio.Event) -> None:
        """Take part until `stop` is set."""
        while not stop.is_set():
            life = _Life(self._node, self._settings, self._rows, self._lie, self._training, self._vanishes, self._say)
            life.on_round = self._watch.take
            await life.run(stop)
            if life.vanished_in is None:
                return
            await _first_of(stop.wait(), self._watch.wait_over(life.vanished_in))
            self._say("back", device=self._node.id)


class _Life:
    """A node from one start to the next: everything that a power cut takes away."""

    def __init__(
        self,
        node: NodeIdentity,
        settings: SwarmSettings,
        rows: LightRows,
        lie: Attack,
        training: asyncio.Lock,
        vanishes: Vanishes,
        say: Say,
    ) -> None:
        self._node, self._settings, self._rows, self._lie = node, settings, rows, lie
        self._training, self._vanishes, self._say = training, vanishes, say
        own = settings.state_dir / node.id
        parts = SessionParts(
            broker=settings.broker,
            spool=settings.spool,
            trust_root=settings.trust_root,
            database=own / "node.db",
            trust_dir=own / "trust",
            tasks=(settings.task,),
            attestation=settings.attestation,
            settings=settings,
        )
        self._session = RoundSession(node, parts)
        self._session.credentials.on_list = lambda number: self._say("revocations", device=node.id, number=number)
        self._participation: LightParticipation | None = None
        self._gone = asyncio.Event()
        self.on_round: Callable[[RoundOpen], None] | None = None
        self.vanished_in: tuple[int, int] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        ended = asyncio.Event()
        ending = asyncio.create_task(_then(_first_of(stop.wait(), self._gone.wait()), ended.set))
        try:
            await self._session.run(self, ended, drain_s=0.0)
        finally:
            ending.cancel()

    async def start(self) -> None:
        """See `RoundMember.start`."""
        session = self._session
        budget = BudgetBook(session.store, ParticipationLimits(), 0.0)
        self._participation = LightParticipation(
            self._rows,
            self._node,
            session.topics,
            session.store,
            session.trust,
            self._training,
            peers=session.peers,
            budget=budget,
            passport=None if session.attestation is None else session.attestation.passport,
            plain_allowed=self._settings.insecure_plain_updates,
        )
        self._participation.lie, self._participation.say = self._lie, self._say
        await self._participation.start(self._carry_out)
        await self._participation.collected()

    async def handle(self, task: str, event: Event) -> None:
        """See `RoundMember.handle`."""
        assert self._participation is not None
        match event:
            case RoundOpened(body) if self.on_round is not None:
                self.on_round(body)
            case CloseReceived(body):
                self._say("close", **_place(body), device=self._node.id, survivors=[s.device for s in body.survivors])
        await self._participation.handle(event)

    def next_deadline(self, task: str) -> float | None:
        """See `RoundMember.next_deadline`."""
        return None if self._participation is None else self._participation.machine.next_deadline()

    def renewed(self, node: NodeIdentity) -> None:
        """See `RoundMember.renewed`."""
        self._node = node
        if self._participation is not None:
            self._participation.machine.take_certificate(node.certificate, node.intermediate)

    async def take_release(self, release: VerifiedRelease) -> None:
        """See `RoundMember.take_release`."""
        assert self._participation is not None
        await self._participation.take_release(release)
        weights = release.targets[Variant.WEIGHTS]
        self._say("release", device=self._node.id, version=release.version, sha256=weights.sha256)

    async def attested(self) -> None:
        """See `RoundMember.attested`."""
        assert self._participation is not None
        self._say("attested", device=self._node.id)
        await self._participation.attested()

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        await self._session.shell.carry_out(effects, self._special)

    async def _special(self, effect: Effect) -> None:
        assert isinstance(effect, Train), f"nobody carries out {effect!r}"
        assert self._participation is not None
        place = _place(effect.roster)
        self._say(
            "joined",
            **place,
            device=self._node.id,
            members=len(effect.roster.members),
            committee=len(effect.roster.committee),
        )
        if self._vanishes(self._node.id, effect.round):
            self._say("vanished", **place, device=self._node.id)
            self.vanished_in = (effect.round, effect.attempt)
            self._gone.set()
            return
        self._session.jobs.start(self._participation.train(effect), f"train-{self._node.id}")


class LightParticipation(Participation):
    """A participation that may lie.

    Attributes:
        lie: what it does with its update.
        say: tells when an upload is written down.
    """

    lie: Attack
    say: Say
    _masked: tuple[int, int] = (0, 0)

    async def train(self, effect: Train) -> None:
        """Train, and say so if it led to an upload."""
        await super().train(effect)
        if self._masked == self.machine.used == (effect.round, effect.attempt):
            self.say("uploaded", **_place(effect.roster), device=self._device)

    async def _result(self, effect: Train) -> tuple[TrainingResult, BufferedDelta | None]:
        result, late = await super()._result(effect)
        if self.lie.name == "none":
            return result, late
        return poisoned(result, self.lie, effect.plan.update.clip_norm, np.random.default_rng()), late

    def _mask(self, effect: Train, result: TrainingResult) -> Contribution:
        if self.lie.clips:
            made = super()._mask(effect, result)
        else:
            rng = np.random.default_rng()
            made = contribute_unclipped(
                effect.plan, effect.roster, self._device, effect.key, result, rng=rng, entropy=os.urandom
            )
        self._masked = (effect.round, effect.attempt)
        return made


def _place(body: Any) -> dict[str, int]:
    return {"round": body.round, "attempt": body.attempt, "gid": body.gid}


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _then(wait: Any, call: Callable[[], None]) -> None:
    await wait
    call()
