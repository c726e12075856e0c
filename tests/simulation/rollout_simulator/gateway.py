"""A simulated gateway: the real machines of its rollout and its updates, two slots, and a detector that is made up."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

from fleet_simulator.disk import Disk, PowerLost

from vedette_aggregator.rollout_events import DeviceAlerted, DeviceReported, Measured
from vedette_core.machine import Effect, Event, Persist, Tick
from vedette_device.cohort_machine import Announce, CohortMachine, LookAgain, ReleasesListed, RolloutReceived
from vedette_device.update_events import (
    Activate,
    Activated,
    ArtifactStaged,
    BootedWith,
    Confirm,
    FallBack,
    FetchFailed,
    InstalledModel,
    ReleaseAnnounced,
    ReportState,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    SlotsView,
    Stage,
    TrialConfirmed,
    TrialFailed,
)
from vedette_device.update_machine import UpdateMachine
from vedette_schemas.rollout import RolloutState

from .world import SCHEMA, TASK, World, digest, release

if TYPE_CHECKING:
    from .rollout_site import Site

TRIAL_S: Final = 20.0
REPORT_S: Final = 4.0
REFRESH_S: Final = 60.0


@dataclass(frozen=True)
class Slots:
    """What the slots hold, as on disk."""

    active: InstalledModel | None = None
    spare: InstalledModel | None = None
    trial: bool = False
    spare_good: bool = False


class Gateway:
    """One gateway.

    Attributes:
        id: its id.
        lies: whether its reports are made up.
        crashes: how often its power went.
    """

    def __init__(self, world: World, site: Site, number: int) -> None:
        self.id = f"gw-{number:03}"
        self._world, self._site = world, site
        self._random = Random(f"{self.id} {world.random.random()}")
        self.disk = Disk()
        self.disk.power_switch = self._power
        self.lies = self._random.random() < world.faults.liars
        self.comes_and_goes = self._random.random() < world.faults.away
        self.crashes = 0
        self.is_online = False
        self._life = self._woken = 0
        self._role = 0
        first = InstalledModel(
            task=TASK,
            version=1,
            variant="int8",
            backend="litert",
            sha256=digest(1),
            length=100,
            metadata_version=(1, 1),
        )
        self.disk.data["slots"] = pickle.dumps(Slots(active=first))

    @property
    def slots(self) -> Slots:
        """What is in the slots."""
        found: Slots = pickle.loads(self.disk.data["slots"])
        return found

    def boot(self) -> None:
        """Start, or start again."""
        self._life += 1
        self.is_online = True
        self.cohorts = CohortMachine(TASK, self.id, self.disk.data.get(f"rollout/{TASK}"))
        saved = self.disk.data.get(f"update/{TASK}")
        self.updates = UpdateMachine(TASK, self.id, ("litert", "numpy"), SCHEMA, saved)
        slots = self.slots
        view = SlotsView(slots.active, slots.spare, slots.trial, slots.spare_good)
        self._do(lambda: self._carry_out(self.updates.handle(BootedWith(view), self._world.now)))
        if slots.trial and slots.active is not None:
            self._answer(TRIAL_S, TrialConfirmed(slots.active.sha256))
        self.connect()
        self._every(REPORT_S, self._report)
        self._every(REFRESH_S, self.refresh)
        self._wake()

    def connect(self) -> None:
        """A session begins: what is retained comes."""
        self.is_online = True
        self.say_state()
        self.refresh()
        self._site.subscribe(self)

    def disconnect(self) -> None:
        """The network is gone; the gateway works on."""
        self.is_online = False
        self.say_state()

    def take_rollout(self, state: RolloutState) -> None:
        """A signed state arrives."""
        if self.is_online:
            self._do(lambda: self._cohort_step(RolloutReceived(state)))

    def refresh(self) -> None:
        """Look at the signed metadata; whoever shows them may show older ones, which are refused."""
        if not self.is_online or self._random.random() < self._world.faults.loss:
            return
        repository = self._world.repository
        role = repository.role
        if self._random.random() < self._world.faults.replay:
            role = self._random.randint(1, role)
        if role < self._role:
            return
        self._role = role
        versions, active = repository.history[role]
        listed = {v: release(v, role) for v in versions}
        self._do(lambda: self._cohort_step(ReleasesListed(listed[active], listed)))

    def say_state(self) -> None:
        """The retained state, or the will."""
        active, state = self.slots.active, self.cohorts.state
        outcome: Any = "none" if state is None else self.updates.outcome(state.candidate)
        if self.lies:
            outcome = self._random.choice(("none", "pending", "trial", "confirmed", "failed"))
        candidate = 0 if state is None else state.candidate
        version = None if active is None else active.version
        if self.lies and candidate and outcome == "confirmed":
            version = candidate
        self._site.take_state(DeviceReported(self.id, self.is_online, version, candidate, outcome))

    # -- machines -----------------------------------------------------------------------------------------------------

    def _cohort_step(self, event: Event) -> None:
        self._carry_out(self.cohorts.handle(event, self._world.now))
        if isinstance(event, RolloutReceived):
            assert self.cohorts.state is not None, "it has taken this state, or a newer one"
            self._site.observer.took(self.id, self.cohorts.state)
            self.say_state()

    def _update_step(self, event: Event) -> None:
        self._carry_out(self.updates.handle(event, self._world.now))

    def _wake(self) -> None:
        """Send a tick when a machine wants one; asked for again after every step."""
        self._woken += 1
        deadlines = [d for m in (self.cohorts, self.updates) if (d := m.next_deadline()) is not None]
        if deadlines:
            mine = (self._life, self._woken)
            wait_s = max(0.0, min(deadlines) - self._world.now)
            self._world.later(wait_s, lambda: self._do(self._tick) if mine == (self._life, self._woken) else None)

    def _tick(self) -> None:
        for machine in (self.cohorts, self.updates):
            deadline = machine.next_deadline()
            if deadline is not None and deadline <= self._world.now:
                self._carry_out(machine.handle(Tick(), self._world.now))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(key, value):
                    self.disk.put(key, value)
                case Announce(found):
                    self._answer(0.0, ReleaseAnnounced(found))
                case LookAgain():
                    self._answer(0.5, None)
                case Stage(model=model):
                    self._stage(model)
                case SelfTest(model=model):
                    failing = self._world.quality[model.version] == "failing"
                    passed = SelfTestFailed(model.sha256, "no") if failing else SelfTestPassed(model.sha256)
                    self._answer(1.0, passed)
                case Activate(model=model):
                    self._activate(model)
                case Confirm(model=model):
                    self._write(replace(self.slots, trial=False))
                    self._site.observer.confirmed(self.id, model)
                case FallBack():
                    self._fall_back()
                case ReportState():
                    self.say_state()

    def _stage(self, model: InstalledModel) -> None:
        slots = self.slots
        if self._random.random() < self._world.faults.loss or not self.is_online or slots.trial:
            self._answer(1.0, FetchFailed(model.sha256, "away", transient=True))
            return
        again = slots.spare is not None and slots.spare.sha256 == model.sha256 and slots.spare_good
        self._write(replace(slots, spare=model, spare_good=again))
        self._answer(1.0, ArtifactStaged(model.sha256))

    def _activate(self, model: InstalledModel) -> None:
        slots = self.slots
        assert slots.spare is not None
        assert slots.spare.sha256 == model.sha256
        self._site.observer.activates(self.id, model)
        self._write(Slots(active=model, spare=slots.active, trial=True, spare_good=slots.active is not None))
        self._answer(0.1, Activated(model.sha256))
        broken = self._world.quality[model.version] == "broken"
        verdict = TrialFailed(model.sha256, "no") if broken else TrialConfirmed(model.sha256)
        self._answer(TRIAL_S, verdict)

    def _fall_back(self) -> None:
        slots = self.slots
        if slots.active is not None and not slots.trial:
            return
        self._write(Slots(active=slots.spare if slots.spare_good else None))

    def _write(self, slots: Slots) -> None:
        self.disk.put("slots", pickle.dumps(slots))

    # -- what it sees -------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        active = self.slots.active
        if active is None or not self.is_online or not self._site.machine.record.is_live:
            return  # nobody would look at it
        quality, random = self._world.quality[active.version], self._random
        alerts = 5.0 if quality == "flood" and random.random() < 0.8 else float(random.random() < 0.02)
        if self.lies:
            alerts = random.choice((0.0, 50.0))
        for _ in range(int(alerts)):
            self._world.send(lambda: self._site.take(DeviceAlerted(self.id, active.version)))
        measured = Measured(
            self.id,
            active.version,
            alerts,
            random.gauss(0.43, 0.02),
            random.gauss(100.0, 3.0) * (2.0 if quality == "slow" else 1.0),
            random.gauss(8e7, 1e5),
        )
        self._world.send(lambda: self._site.take(measured))

    # -- power --------------------------------------------------------------------------------------------------------

    def _power(self, number: int, key: str) -> str | None:
        if self._random.random() >= self._world.faults.crash:
            return None
        return self._random.choice(("before", "after"))

    def _do(self, call: Any) -> None:
        try:
            call()
            self._wake()
        except PowerLost:
            self.crashes += 1
            self._life += 1
            self.is_online = False
            self.say_state()
            self._world.later(self._random.uniform(1.0, 60.0), self.boot)

    def _answer(self, seconds: float, event: Event | None) -> None:
        life = self._life
        step = (lambda: self.refresh()) if event is None else (lambda: self._do(lambda: self._update_step(event)))
        self._world.later(seconds, lambda: step() if life == self._life else None)

    def _every(self, seconds: float, call: Any) -> None:
        life = self._life

        def again() -> None:
            if life == self._life:
                self._do(call)
                self._world.later(seconds if self._world.is_busy else seconds * 20.0, again)

        self._world.later(self._random.uniform(0.0, seconds), again)
