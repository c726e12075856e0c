"""Clock, network and release repository of a simulated site."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from fleet_simulator.violation import ViolationError

from vedette_device.verified_release import VerifiedRelease, VerifiedTarget
from vedette_schemas.model import ReleaseTarget, Variant

AT_ONCE_MAX: Final = 200_000
"""Events of one instant: every step of a gateway asks to be woken at its deadline, and all have that of one state."""
TASK: Final = "network"
SCHEMA: Final = "5c" * 32
KEPT: Final = 3
"""As the registry: the newest releases, besides those that must stay."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong while it may.

    Attributes:
        crash: chance of a power cut at a write.
        loss: chance that a message does not arrive.
        double: chance that it arrives twice.
        replay: chance that an old one comes again with a new one.
        away: part of the devices that come and go.
        liars: part of the devices whose reports are made up.
        person: whether a person asks for this and that.
    """

    crash: float
    loss: float
    double: float
    replay: float
    away: float
    liars: float
    person: bool

    @classmethod
    def draw(cls, random: Random) -> Faults:
        """Some of everything, often nothing of one kind."""

        def some(most: float) -> float:
            return random.choice((0.0, random.uniform(0, most)))

        return cls(some(0.03), some(0.3), some(0.3), some(0.3), some(0.5), some(0.2), random.random() < 0.5)


QUIET: Final = Faults(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False)


def digest(version: int) -> str:
    """Digest of a release's weights, and of its only variant."""
    return f"{version:064x}"


@dataclass
class Repository:
    """Signed releases: what is listed, and what is active; survives everything.

    Attributes:
        listed: parent by version.
        active: the active version.
        role: number of the metadata, by which devices refuse older ones.
        history: (listed, active) by number.
    """

    listed: dict[int, int] = field(default_factory=lambda: {1: 0})
    active: int = 1
    role: int = 1
    newest: int = 1
    history: dict[int, tuple[tuple[int, ...], int]] = field(default_factory=lambda: {1: ((1,), 1)})

    def publish(self, parent: int, keep: frozenset[int]) -> int:
        """List a candidate; older ones go, but for those that must stay."""
        self.newest += 1
        others = sorted(v for v in self.listed if v not in keep and v != self.active)
        fixed = [v for v in self.listed if v in keep or v == self.active]
        kept = [*fixed, *others[len(others) - max(0, KEPT - 1 - len(fixed)) :]]
        self.listed = {v: self.listed[v] for v in sorted(kept)} | {self.newest: parent}
        self._sign()
        return self.newest

    def activate(self, version: int) -> None:
        """Make a listed release the active one."""
        assert version in self.listed, f"release {version} is not listed any more: {sorted(self.listed)}"
        if version != self.active:
            self.active = version
            self._sign()

    def _sign(self) -> None:
        self.role += 1
        self.history[self.role] = (tuple(self.listed), self.active)


def release(version: int, role: int) -> VerifiedRelease:
    """A release as a device sees it."""
    custom = ReleaseTarget(
        task=TASK,
        version=version,
        parent="",
        round=version,
        variant=Variant.INT8,
        format="tflite",
        feature_schema=SCHEMA,
        runtime_min="",
        contributors=1,
        transcript="",
        plan="00" * 32,
        metrics={},
        active=True,
    )
    target = VerifiedTarget(f"{TASK}/{version}/int8", 100, digest(version), custom)
    return VerifiedRelease(TASK, version, (1, role), {Variant.INT8: target})


class World:
    """Time, chance, and what carries messages.

    Attributes:
        now: seconds.
        random: the seed's.
        faults: what goes wrong now.
        repository: signed releases.
        quality: what a release does to devices: ``good flood failing broken slow``.
        steps: events so far.
        is_busy: whether anybody still looks at reports.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(f"rollouts {seed}")
        self.now = 1_000.0
        self.faults = Faults.draw(self.random)
        self.repository = Repository()
        self.quality: dict[int, str] = {1: "good"}
        self.steps = 0
        self.is_busy = True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after some seconds."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, call))

    def send(self, call: Callable[[], None]) -> None:
        """Carry a message: late, twice, or not at all; so order is lost, too."""
        if self.random.random() < self.faults.loss:
            return
        for _ in range(2 if self.random.random() < self.faults.double else 1):
            self.later(self.random.uniform(0.01, 3.0), call)

    def run(self, until: float) -> None:
        """Let time pass."""
        at_once = 0
        while self._queue and self._queue[0][0] <= until:
            before = self.now
            self.now, _, call = heapq.heappop(self._queue)
            self.steps += 1
            at_once = at_once + 1 if self.now == before else 0
            if at_once > AT_ONCE_MAX:
                raise ViolationError(f"time stands still at {self.now}: somebody's deadline is over, and stays so")
            call()
        self.now = until
