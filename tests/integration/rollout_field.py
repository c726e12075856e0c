"""A site in which rollouts, a real repository, perhaps a validator, and the real machines of devices come together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_validator
from release_site import SCHEMA, START, describe, release_files

from vedette_aggregator import rollouts as shell_of_rollouts
from vedette_aggregator.countersigning import AwaitsValidatorError, Countersigning
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import retained_messages
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_files import RepositoryFiles
from vedette_aggregator.rollout_events import Requested, Verb
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import Phase, RolloutRecord
from vedette_aggregator.rollouts import RolloutParts, Rollouts
from vedette_core.machine import Effect, Persist, Publish
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.cohort_machine import Announce, CohortMachine, ReleasesListed, RolloutReceived
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_device.update_events import (
    Activate,
    Activated,
    ArtifactStaged,
    BootedWith,
    ReleaseAnnounced,
    ReleasesRevoked,
    SelfTest,
    SelfTestPassed,
    SlotsView,
    Stage,
    TrialConfirmed,
)
from vedette_device.update_machine import UpdateMachine
from vedette_device.update_state import Phase as UpdatePhase
from vedette_schemas.envelope import unseal
from vedette_schemas.model import Variant
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.telemetry import ActiveModel, DeviceState, RolloutProgress
from vedette_schemas.topics import Topics

TASK = "network"


class OpenKeys:
    """Signs with nothing, and believes everything: signatures of rollout states are other tests' business."""

    def sign(self, message: bytes) -> bytes:
        return bytes(64)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        return None


class Gateway:
    """A device: its trust, its cohort and its slots; `ran` is every release that it ever ran."""

    def __init__(self, field: Field, name: str) -> None:
        self.name, self._field = name, field
        self._trust = TrustClient(
            field.folder / name, field.root, Topics("plant"), [TASK], field.retained, lambda: field.now
        )
        self._cohort = CohortMachine(TASK, name)
        self._machine = UpdateMachine(TASK, name, ("litert", "numpy"), SCHEMA)
        self._machine.handle(BootedWith(SlotsView()), field.now)
        self.ran: list[int] = []

    @property
    def runs(self) -> int | None:
        """The release that it runs."""
        active = self._machine.active
        return None if active is None else active.version

    def refresh(self) -> None:
        """Read the retained metadata, in the order in which a node does it."""
        for release in self._trust.refresh():
            self._update(ReleasesRevoked(self._trust.revoked(TASK)))
            self._step(ReleasesListed(release, self._trust.listed(TASK)))

    def take(self, state: RolloutState) -> None:
        """A rollout state came in."""
        self._step(RolloutReceived(state))

    def state(self) -> DeviceState:
        """What it retains about itself."""
        known, version = self._cohort.state, self.runs
        progress = () if known is None else (
            RolloutProgress(
                task=TASK, seq=known.seq, candidate=known.candidate,
                outcome=self._machine.outcome(known.candidate),
            ),
        )  # fmt: skip
        models = () if version is None else (
            ActiveModel(task=TASK, version=version, variant="int8", digest="a" * 64, backend="litert"),
        )  # fmt: skip
        return DeviceState(
            device=self.name, status="online", session="0" * 16, seq=1, time="2026-01-01T00:00:00Z", software="0.1.0",
            models=models, rollouts=progress,
        )  # fmt: skip

    def _step(self, event: Any) -> None:
        for effect in self._cohort.handle(event, self._field.now):
            if isinstance(effect, Announce):
                self._update(ReleaseAnnounced(effect.release))

    def _tell(self, event: Any) -> list[Effect]:
        return self._machine.handle(event, self._field.now)

    def _update(self, event: Any) -> None:
        """Whatever is asked of the node succeeds at once."""
        effects = list(self._tell(event))
        while effects:
            match effects.pop(0):
                case Stage(model=model):
                    effects += self._tell(ArtifactStaged(model.sha256))
                case SelfTest(model=model):
                    effects += self._tell(SelfTestPassed(model.sha256))
                case Activate(model=model):
                    self.ran.append(model.version)
                    effects += self._tell(Activated(model.sha256))
                    assert self._machine.phase is UpdatePhase.TRIAL
                    effects += self._tell(TrialConfirmed(model.sha256))


class Field:
    """The site. Release 1 is active, and every device runs it; candidates are listed by `propose`.

    Args:
        folder: for everything.
        monkeypatch: gives rollouts the site's clock.
        validated: whether a validator must sign, too; it looks when it is told to (`look`).
        devices: how many.
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, validated: bool, devices: int = 6, **settings: Any
    ) -> None:
        self.folder, self.now, self.validated = folder, START, validated
        monkeypatch.setattr(shell_of_rollouts, "time", SimpleNamespace(time=lambda: self.now, monotonic=lambda: 0.0))
        monkeypatch.setattr(shell_of_rollouts, "RETRY_S", 0.01)
        if validated:
            site = test_validator.Site(folder)
            self.registry, self.root, self._validator = site.registry, site.root, site.validator
        else:
            self.registry = Registry.create(folder / "repository", "plant", (TASK,), START)
            self.root = folder / "root.json"
            self.root.write_bytes(self.registry.root)
        self.retained = RetainedMemory()
        quick: dict[str, Any] = {"enabled": True, "settle_s": 0.0, "check_s": 1.0, "devices_min": 1}
        self.settings = RolloutSettings(**{**quick, "stages": (20.0, 100.0), **settings})
        self.database = Database(folder / "state" / "aggregator.db")
        self.store = StateStore(self.database)
        self.lineage = Lineage(folder / "state" / "aggregator.db")
        self.said: list[RolloutState] = []
        self.promoted: list[int] = []
        self.jobs = Jobs()
        for version in (0, 1):
            self.publish(version)
        self.gateways = [Gateway(self, f"gw-{i:02}") for i in range(devices)]
        self.deliver()
        assert {g.runs for g in self.gateways} == {1}

    @property
    def record(self) -> RolloutRecord:
        """The rollouts as they are."""
        return self.rollouts._machines[TASK].record

    @property
    def waiting(self) -> int:
        """Proposals that wait for the validator."""
        return len(Countersigning(RepositoryFiles(self.registry._files.directory)).waiting())

    def publish(self, version: int, *, is_active: bool = True, parent: int | None = None) -> None:
        files = release_files(TASK, version)
        said = describe(TASK, version, files, "" if parent is None else self.digest(parent))
        try:
            self.registry.publish(TASK, version, files, said, self.now, is_active=is_active, keep=(1,))
        except AwaitsValidatorError:
            self.look()
            assert self.registry.complete(self.now)

    def digest(self, version: int) -> str:
        return self.registry.listed(TASK, version)[Variant.WEIGHTS].sha256

    def look(self) -> None:
        """The validator looks, and signs."""
        assert all(not each.refused for each in self._validator.look(self.now))

    def runs(self) -> list[int | None]:
        return [g.runs for g in self.gateways]

    def deliver(self) -> None:
        """The broker has what the repository holds, and every device has read it."""
        self.retained.clear()
        messages = retained_messages(Topics("plant"), self.registry.retained())
        self.retained.update({topic: payload for topic, payload in messages if payload})
        for gateway in self.gateways:
            gateway.refresh()

    # -- the aggregator's side ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """The aggregator starts, or starts again."""
        self.jobs = Jobs()
        parts = RolloutParts(
            registry=self.registry,
            store=self.store,
            shell=self,  # type: ignore[arg-type]
            metrics=Metrics(AGGREGATOR_METRICS),
            jobs=self.jobs,
            messages=RolloutMessages(Topics("plant"), "aggregator", OpenKeys()),
            put_out=lambda _: None,
            follow=self._follow,
            lineage=self.lineage,
            promoted=self._promoted,
        )
        self.rollouts = Rollouts({TASK: self.settings}, parts)
        await self.rollouts.start()
        await self.report()

    async def stop(self) -> None:
        await self.jobs.cancel()

    async def carry_out(self, effects: Sequence[Effect], special: Any = None, **_: Any) -> None:
        for effect in effects:
            match effect:
                case Persist(key=key, value=value):
                    self.store.put(key, value)
                case Publish(payload=payload):
                    self.said.append(unseal(RolloutState, payload, ROLLOUT_TYPE, OpenKeys(), sender="aggregator")[0])
                    for gateway in self.gateways:
                        gateway.take(self.said[-1])
                case _ if type(effect).__name__ == "ActivateRelease":
                    await special(effect)

    async def _follow(self, task: str) -> None:
        return None

    async def _promoted(self, task: str, version: int) -> None:
        self.promoted.append(version)

    async def report(self) -> None:
        for gateway in self.gateways:
            await self.rollouts.take_state(gateway.state())

    async def begin(self, version: int = 2) -> None:
        """A candidate is listed, and runs on its first stage."""
        self.publish(version, is_active=False, parent=1)
        self.deliver()
        await self.rollouts.look(TASK)
        self.now += 2.0
        await self.rollouts.tick()
        self.deliver()
        await self.report()
        assert self.record.phase is Phase.RUNNING

    async def ask(self, verb: Verb, **about: Any) -> None:
        self.now += 1.0
        await self.rollouts._handle(TASK, Requested(f"r{self.now}", verb, "somebody", self.now, **about))

    async def until(self, phase: Phase) -> None:
        """Let what runs beside it go on until the rollout is there."""
        for _ in range(6000):
            if self.record.phase is phase:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"found the rollout {self.record.phase}, expected {phase}: {self.record.reason}")

    async def until_proposed(self) -> None:
        for _ in range(6000):
            if self.waiting:
                async with self.rollouts._activations[TASK]:  # the try that proposed it is over
                    return
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was proposed")
