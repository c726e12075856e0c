"""A rollout machine on a clock of its own, with a fleet that reports what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vedette_aggregator.rollout_events import (
    ActivateRelease,
    ActiveSeen,
    CandidateListed,
    DeviceAlerted,
    DeviceReported,
    Measured,
    Requested,
    Verb,
)
from vedette_aggregator.rollout_machine import RolloutMachine
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_requests import request_key
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import Phase
from vedette_core.crypto.cohorts import cohort
from vedette_core.machine import Effect, Event, Persist, Publish, Tick
from vedette_schemas.envelope import unseal
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.topics import Topics

TASK = "network"


class OpenKeys:
    """Signs with nothing, and believes everything: signatures are other tests' business."""

    def sign(self, message: bytes) -> bytes:
        return bytes(64)

    def verify(self, sender: str, message: bytes, signature: bytes) -> None:
        return None


def digest(version: int) -> str:
    return f"{version:064x}"


def fast(**changes: Any) -> RolloutSettings:
    values: dict[str, Any] = {"enabled": True, "soak_s": 100.0, "patience_s": 100.0, "settle_s": 0.0, "check_s": 1.0}
    return RolloutSettings(**{**values, **changes})


class RolloutBench:
    """Release 1 is active."""

    def __init__(self, devices: int = 100, settings: RolloutSettings | None = None) -> None:
        self.settings = settings or fast()
        self.devices = [f"gw-{i:03}" for i in range(devices)]
        self.now, self.stored = 1000.0, dict[str, bytes]()
        self.said: list[RolloutState] = []
        self.effects: list[Effect] = []
        self.activations: list[int] = []
        self.salts = 0
        self.messages = RolloutMessages(Topics("site"), "aggregator", OpenKeys())
        self.machine = RolloutMachine(TASK, self.settings, self.messages, self.entropy)
        self.send(ActiveSeen(1, digest(1)))
        self.report_fleet()

    def entropy(self, count: int) -> bytes:
        self.salts += 1
        return self.salts.to_bytes(count, "big")

    @property
    def phase(self) -> Phase:
        return self.machine.record.phase

    @property
    def state(self) -> RolloutState:
        return self.said[-1]

    def restart(self) -> None:
        self.machine, effects = RolloutMachine.restore(
            dict(self.stored), TASK, self.settings, self.messages, self.entropy
        )
        self.take(effects)
        self.report_fleet()

    def send(self, event: Event) -> list[Effect]:
        effects = self.machine.handle(event, self.now)
        self.take(effects)
        return effects

    def take(self, effects: Sequence[Effect]) -> None:
        persisted = False
        for effect in effects:
            match effect:
                case Persist(key, value):
                    persisted = True
                    if value is None:
                        self.stored.pop(key, None)
                    else:
                        self.stored[key] = value
                case Publish(payload=payload):
                    state = unseal(RolloutState, payload, ROLLOUT_TYPE, OpenKeys(), sender="aggregator")[0]
                    assert persisted or state == self.machine.record.said, "said before it was written down"
                    self.said.append(state)
                case ActivateRelease(version=version):
                    self.activations.append(version)
        self.effects += effects

    def listed(self, version: int, parent: int | None = None) -> None:
        self.send(CandidateListed(version, digest(version), digest(version - 1 if parent is None else parent)))

    def activated(self) -> None:
        self.send(ActiveSeen(self.activations[-1], digest(self.activations[-1])))

    def ask(self, verb: Verb, **fields: Any) -> list[Effect]:
        request = f"r{self.now}-{verb.value}-{len(self.effects)}"
        self.stored[request_key(TASK, request)] = b"{}"
        return self.send(Requested(request, verb, "someone", self.now, **fields))

    def report_fleet(self) -> None:
        for device in self.devices:
            self.send(DeviceReported(device, True, 1))

    def exposed(self) -> list[str]:
        return [d for d in self.devices if cohort(self.state, d) == "candidate"]

    def control(self) -> list[str]:
        return [d for d in self.devices if cohort(self.state, d) == "control"]

    def confirm(self, devices: Sequence[str] | None = None, outcome: Any = "confirmed") -> None:
        candidate = self.state.candidate
        for device in self.exposed() if devices is None else devices:
            version = candidate if outcome in ("confirmed", "trial") else self.state.baseline
            self.send(DeviceReported(device, True, version, candidate, outcome))

    def measure(
        self, reports: int = 32, worse: Callable[[float], float] = lambda value: value, name: str = "alerts_per_hundred"
    ) -> None:
        """Every device of both cohorts reports; `worse` is what the candidate does to one figure."""
        for i in range(reports):
            for group, is_candidate in ((self.exposed(), True), (self.control(), False)):
                for device in group:
                    figures = {
                        "alerts_per_hundred": 0.1 * (i % 3 == 0),
                        "surprise": 0.43 + 0.01 * (i % 7),
                        "latency_us": 100.0 + i % 5,
                        "memory_bytes": 8e7 + 1e5 * (i % 4),
                    }
                    if is_candidate:
                        figures[name] = worse(figures[name])
                    version = self.state.candidate if is_candidate else self.state.baseline
                    self.send(Measured(device, version, **figures))

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.send(Tick())

    def begin(self, version: int = 2) -> None:
        """A candidate is listed, and its first stage begins."""
        self.listed(version)
        self.tick()

    def pass_stage(self) -> None:
        self.confirm()
        self.measure()
        self.tick(self.settings.soak_s + 1.0)

    def alert(self, devices: Sequence[str], times: int, version: int) -> None:
        for device in devices:
            for _ in range(times):
                self.send(DeviceAlerted(device, version))
