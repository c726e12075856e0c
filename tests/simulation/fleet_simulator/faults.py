"""What goes wrong in a run, all of it from the seed; after `quiet_from_s` nothing does any more."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from .device_process import TRAINING_S
from .network import Weather
from .process import Process
from .simulation import Fleet

FAULTY_S: Final = 1_500.0
"""How long things go wrong: a handful of rounds."""
CLOCK_JUMP_S: Final = 4 * 3600.0


@dataclass(frozen=True)
class Faults:
    """How bad a run is.

    Attributes:
        loss: share of packets lost.
        duplicate: share that arrives twice.
        jitter_s: mean extra delay; reorders.
        corrupt: share of messages with a flipped bit.
        replay: share of messages that bring an old one back.
        power: chance that the power goes at a write.
        kills: processes killed at any time.
        cuts: partitions.
        outages: times the broker goes away; half of them lose what it retained.
        jumps: clocks that jump.
        slow: devices that train for longer than a round may last, now and then.
        refusals: candidates that are not released.
        failing: chance that a training fails.
    """

    loss: float
    duplicate: float
    jitter_s: float
    corrupt: float
    replay: float
    power: float
    kills: int
    cuts: int
    outages: int
    jumps: int
    slow: int
    refusals: int
    failing: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of fault that there are."""
        return tuple(name for name in self.__dataclass_fields__ if getattr(self, name))

    @classmethod
    def draw(cls, random: Random) -> Faults:
        """Draw a mixture: most kinds of fault are absent from most runs, so that each is also seen alone."""

        def sometimes(most: float, share: float = 0.5) -> float:
            return random.random() * most if random.random() < share else 0.0

        return cls(
            loss=sometimes(0.6),
            duplicate=sometimes(0.4),
            jitter_s=sometimes(60.0),
            corrupt=sometimes(0.2, 0.3),
            replay=sometimes(0.4, 0.3),
            power=sometimes(0.15),
            kills=int(sometimes(20)),
            cuts=int(sometimes(20)),
            outages=int(sometimes(5)),
            jumps=int(sometimes(8, 0.3)),
            slow=int(sometimes(12)),
            refusals=int(sometimes(4, 0.3)),
            failing=sometimes(0.3, 0.2),
        )


SLOW_ONLY: Final = Faults(
    loss=0.0,
    duplicate=0.0,
    jitter_s=1.0,
    corrupt=0.0,
    replay=0.0,
    power=0.0,
    kills=0,
    cuts=0,
    outages=0,
    jumps=0,
    slow=8,
    refusals=0,
    failing=0.0,
)
"""A network that does what its aggregator wants: uploads that come late are what a lying one needs."""


def inflict(fleet: Fleet, faults: Faults, random: Random) -> float:
    """Schedule the faults of a run, and their end.

    Returns:
        The simulated time from which nothing goes wrong any more.
    """
    at = fleet.scheduler.after
    set_weather(
        fleet,
        Weather(faults.loss, faults.duplicate, 0.05, faults.jitter_s, corrupt=faults.corrupt, replay=faults.replay),
    )

    def moment() -> float:
        return random.random() * FAULTY_S

    for process in fleet.processes:
        chance = Random(random.random())
        process.disk.power_switch = lambda _number, _key, chance=chance: (
            chance.choice(("before", "after")) if chance.random() < faults.power else None
        )
        process.restart_s = random.uniform(1.0, 120.0)
    for _ in range(faults.kills):
        at(moment(), random.choice(fleet.processes).crash)
    for _ in range(faults.cuts):
        link, duration = random.choice(fleet.processes).link, random.expovariate(1 / 200)
        at(moment(), lambda link=link, duration=duration: link.cut(duration))
    for _ in range(faults.outages):
        begin, forget = moment(), random.random() < 0.5
        at(begin, lambda forget=forget: fleet.broker.stop(forget=forget))
        at(begin + random.expovariate(1 / 300), fleet.broker.start)
    for _ in range(faults.jumps):
        process, jump = random.choice(fleet.processes), random.uniform(-CLOCK_JUMP_S, CLOCK_JUMP_S)
        at(moment(), lambda process=process, jump=jump: _jump(process, jump))
    for _ in range(faults.slow):
        gateway = random.choice(list(fleet.gateways.values()))
        begin = moment()
        at(begin, lambda gateway=gateway: setattr(gateway, "training_s", random.uniform(100.0, 900.0)))
        at(begin + 400.0, lambda gateway=gateway: setattr(gateway, "training_s", TRAINING_S))
    for gateway in fleet.gateways.values():
        gateway.failing = faults.failing
    fleet.policy.refused_rounds.update(random.sample(range(1, 8), faults.refusals))
    at(FAULTY_S, lambda: calm(fleet))
    return FAULTY_S


def calm(fleet: Fleet) -> None:
    """End all faults. Clocks stay as they are: nobody sets them right."""
    set_weather(fleet, Weather())
    fleet.broker.start()
    fleet.policy.refused_rounds.clear()
    fleet.stop_lying()
    for process in fleet.processes:
        process.disk.power_switch = lambda _number, _key: None
        process.restart_s = 5.0
        process.link._cut_until = 0.0
    for gateway in fleet.gateways.values():
        gateway.training_s = TRAINING_S
        gateway.failing = 0.0


def set_weather(fleet: Fleet, weather: Weather) -> None:
    """Change what the network does."""
    fleet.broker.weather = weather


def _jump(process: Process, jump_s: float) -> None:
    process.observer.tell(f"{process.name}: CLOCK jumps by {jump_s:.0f} s")
    process.clock_offset_s += jump_s
