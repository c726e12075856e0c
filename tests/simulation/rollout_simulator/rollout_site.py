"""A simulated site: one aggregator with the real rollout machine, its fleet, and a person who interferes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from fleet_simulator.disk import Disk, PowerLost

from vedette_aggregator.rollout_events import (
    ActivateRelease,
    ActiveSeen,
    CandidateListed,
    DeviceReported,
    Requested,
    Verb,
)
from vedette_aggregator.rollout_machine import RolloutMachine
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import Phase, read_record, record_key
from vedette_core.machine import Effect, Event, Persist, Publish, Tick
from vedette_schemas.envelope import unseal
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.topics import Topics

from .gateway import Gateway
from .rollout_observer import Observer
from .world import TASK, World, digest

QUALITIES: Final = ("good", "good", "flood", "failing", "broken", "slow")


class OpenKeys:
    """Signs with nothing, and believes everything: here nobody forges."""

    def sign(self, message: bytes) -> bytes:
        return bytes(64)

    def verify(self, sender: str, message: bytes, signature: bytes) -> None:
        return None


def settings_of(random: Random) -> RolloutSettings:
    """Settings of a site: minutes where a real one has hours."""
    return RolloutSettings(
        enabled=True,
        stages=random.choice(((5.0, 20.0, 50.0, 100.0), (10.0, 100.0), (100.0,))),
        devices_min=random.randint(1, 4),
        soak_s=60.0,
        patience_s=random.choice((0.0, 60.0)),
        settle_s=random.choice((0.0, 10.0)),
        check_s=2.0,
        approve=random.choice(((), (), (), (0.0,), (100.0,))),
        exposed_per_hour=random.choice((0, 0, 30)),
        pause_s_max=600.0,
        samples_min=20,
        state_life_s=random.choice((300.0, 3600.0)),
    )


class Site:
    """One site.

    Attributes:
        world: its clock, network and repository.
        gateways: by id.
        machine: the aggregator's, as long as it lives.
        crashes: how often the aggregator's power went.
        asked: what a person asked for.
    """

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed)
        self.random = Random(f"site {seed}")
        self.settings = settings_of(self.random)
        self.observer = Observer(self)
        self.disk = Disk()
        self.disk.power_switch = self._power
        self.crashes = 0
        self.asked: list[Verb] = []
        self._life = self._woken = 0
        self._is_up = False
        self._retained: RolloutState | None = None
        self._old: list[RolloutState] = []
        self._states: dict[str, DeviceReported] = {}
        self._messages = RolloutMessages(Topics("site"), "aggregator", OpenKeys())
        self.gateways: dict[str, Gateway] = {}
        for number in range(self.random.randint(3, 24)):
            gateway = Gateway(world, self, number)
            self.gateways[gateway.id] = gateway

    def start(self) -> None:
        """Everybody starts."""
        self.boot()
        for gateway in self.gateways.values():
            gateway.boot()
            if gateway.comes_and_goes:
                self._come_and_go(gateway)

    # -- the aggregator -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """The aggregator starts, or starts again."""
        self._life += 1
        self._is_up = True
        persisted = self.disk.below(f"rollout/{TASK}/")
        self.machine, effects = RolloutMachine.restore(
            persisted, TASK, self.settings, self._messages, self.random.randbytes
        )
        self._do(lambda: self._carry_out(effects))
        self.look()
        for state in list(self._states.values()):
            self.world.later(self.random.uniform(0.0, 2.0), lambda state=state: self.take(state))  # type: ignore[misc]
        self._wake()

    def look(self) -> None:
        """Tell the machine what the repository lists."""
        repository = self.world.repository
        self.take(ActiveSeen(repository.active, digest(repository.active)))
        for version, parent in list(repository.listed.items()):
            if version > repository.active:
                self.take(CandidateListed(version, digest(version), digest(parent)))

    def take(self, event: Event) -> None:
        """Give the machine an event, if there is one."""
        if self._is_up:
            self._do(lambda: self._carry_out(self.machine.handle(event, self.world.now)))

    def take_state(self, state: DeviceReported) -> None:
        """A device's retained state."""
        self._states[state.device] = state
        self.world.send(lambda: self.take(self._states[state.device]))

    def round_ends(self) -> None:
        """A round's result is listed as a candidate; the power may go before the machine hears of it."""
        if not self._is_up:
            return
        record, repository = self.machine.record, self.world.repository
        parent = record.rounds_from(repository.listed)
        version = repository.publish(parent, record.kept())
        self.world.quality[version] = self.random.choice(QUALITIES)
        self._announce_metadata()
        if self.random.random() < self.world.faults.crash * 10:
            self._crash()
        else:
            self.take(CandidateListed(version, digest(version), digest(parent)))

    def ask(self, verb: Verb) -> None:
        """A person asks; the request lies in the store until it is answered, and may be read twice."""
        record = self.machine.record
        device = self.random.choice(sorted(self.gateways)) if verb in (Verb.PIN, Verb.UNPIN) else ""
        choices = [r.version for r in record.known] or [1]
        version = self.random.choice(choices) if verb in (Verb.PIN, Verb.CREATE) else 0
        if verb is Verb.CREATE and version not in self.world.repository.listed:
            return
        request = Requested(f"r{self.world.now}", verb, "somebody", self.world.now, device=device, version=version)
        self.asked.append(verb)
        for _ in range(self.random.randint(1, 2)):
            self.world.later(self.random.uniform(0.0, 2.0), lambda: self.take(request))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(key, value):
                    self.disk.put(key, value)
                case Publish(payload=payload):
                    state = unseal(RolloutState, payload, ROLLOUT_TYPE, OpenKeys(), sender="aggregator")[0]
                    stored = self.disk.data.get(record_key(TASK))
                    self.observer.said(state, read_record(stored, TASK))
                    self._publish(state)
                case ActivateRelease(version=version):
                    self._activate_later(version)

    def _activate_later(self, version: int) -> None:
        life = self._life
        delay_s = self.random.uniform(0.1, 3.0)
        self.world.later(delay_s, lambda: self._activate(version) if life == self._life else None)

    def _activate(self, version: int) -> None:
        self.world.repository.activate(version)
        self._announce_metadata()
        if self.random.random() < self.world.faults.crash * 10:
            self._crash()
        else:
            self.take(ActiveSeen(version, digest(version)))

    def _wake(self) -> None:
        """Send a tick when the machine wants one; asked for again after every step."""
        self._woken += 1
        deadline, mine = self.machine.next_deadline(), (self._life, self._woken)
        if deadline is not None:
            wait_s = max(0.1, deadline - self.world.now)
            self.world.later(wait_s, lambda: self.take(Tick()) if mine == (self._life, self._woken) else None)

    def _power(self, number: int, key: str) -> str | None:
        if self.random.random() >= self.world.faults.crash:
            return None
        return self.random.choice(("before", "after"))

    def _do(self, call: Any) -> None:
        try:
            call()
            self._wake()
        except PowerLost:
            self._crash()

    def _crash(self) -> None:
        self.crashes += 1
        self._life += 1
        self._is_up = False
        self.world.later(self.random.uniform(1.0, 60.0), self.boot)

    def attend(self) -> None:
        """A person who looks now and then, and decides what waits for one."""
        record = self.machine.record
        if self._is_up and record.awaits >= 0:
            self.ask(Verb.APPROVE)
        elif self._is_up and record.phase is Phase.PAUSED:
            self.ask(self.random.choice((Verb.RESUME, Verb.RESUME, Verb.ABORT, Verb.ROLLBACK)))
        self.world.later(self.random.uniform(20.0, 200.0), self.attend)

    # -- the broker ---------------------------------------------------------------------------------------------------

    def _publish(self, state: RolloutState) -> None:
        self._retained = state
        self._old.append(state)
        for gateway in self.gateways.values():
            self._deliver(gateway, state)

    def _deliver(self, gateway: Gateway, state: RolloutState) -> None:
        self.world.send(lambda: gateway.take_rollout(state))
        if self.random.random() < self.world.faults.replay:
            old = self.random.choice(self._old)
            self.world.send(lambda: gateway.take_rollout(old))

    def subscribe(self, gateway: Gateway) -> None:
        """A subscription makes the broker send what it retains; or something older, if it is hostile."""
        if self._retained is not None:
            self._deliver(gateway, self._retained)

    def _announce_metadata(self) -> None:
        for gateway in self.gateways.values():
            self.world.send(gateway.refresh)

    def _come_and_go(self, gateway: Gateway) -> None:
        def toggle() -> None:
            if self.world.faults.away == 0.0 and gateway.is_online:
                return
            if gateway.is_online:
                gateway.disconnect()
            else:
                gateway.connect()
            self.world.later(self.random.uniform(5.0, 300.0), toggle)

        self.world.later(self.random.uniform(5.0, 300.0), toggle)
