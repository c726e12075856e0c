"""A fleet, and a run of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.round_settings import RoundSettings
from vedette_schemas.round import Phase, plan_bytes

from .aggregator_process import AggregatorProcess, ReleasePolicy, model_digest
from .device_process import DeviceProcess
from .network import Broker, Weather
from .observer import Observer
from .problem import DIMENSION, FEATURE_SCHEMA, OPTIMISER, Local, plan_of, settings
from .process import Process
from .schedule import Scheduler
from .site import device_names, the_site
from .transcript import Transcript


@dataclass
class Fleet:
    """An aggregator and devices, on one broker.

    Attributes:
        seed: everything random comes from it.
        devices: how many.
        rounds: the task's settings; by default those of `problem.settings`.
        weather: what the network does.
        policy: what becomes of candidates.
    """

    seed: int
    devices: int = 5
    rounds: RoundSettings | None = None
    weather: Weather = field(default_factory=Weather)
    policy: ReleasePolicy = field(default_factory=ReleasePolicy)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.scheduler = Scheduler()
        self.site = the_site()
        rounds = self.rounds or settings(self.devices)
        plan = plan_of(rounds)
        numbers = np.random.default_rng(self.seed)
        weights = numbers.normal(size=DIMENSION).astype(np.float32)
        model = GlobalModel(
            0, model_digest(weights.tobytes()), plan_bytes(plan)[0], 0, weights, OPTIMISER.initial_state(DIMENSION)
        )
        self.transcript = Transcript(self.site.topics, lambda: self.scheduler.now)
        self.observer = Observer(self.site.topics, self.transcript, model)
        self.broker = Broker(self.scheduler, Random(self.random.random()), self.site.topics, self.weather)
        parts = (self.scheduler, self.broker, self.site, self.observer)
        self.aggregator = AggregatorProcess(
            *parts, rounds=rounds, plan=plan, model=model, seed=self.random.randbytes(32), policy=self.policy
        )
        self.gateways = {
            name: DeviceProcess(
                name,
                *parts,
                local=Local(numbers.normal(size=DIMENSION).astype(np.float32), int(numbers.integers(64, 800))),
                feature_schema=FEATURE_SCHEMA,
                seed=self.random.randrange(2**32),
            )
            for name in device_names(self.devices)
        }
        self.processes: list[Process] = [self.aggregator, *self.gateways.values()]
        self.observer.processes = {p.name: p for p in self.processes}
        self.aggregator.disk.on_written = self.observer.aggregator_wrote
        self.scheduler.after_step = self.observer.after_step

    def start(self) -> None:
        """Start every process."""
        for process in self.processes:
            process.boot()

    def run(self, until_s: float) -> None:
        """Let time pass until `until_s`."""
        self.scheduler.run(until_s)

    def run_until_ended(self, rounds: int, limit_s: float) -> None:
        """Let time pass until so many rounds have ended.

        Raises:
            AssertionError: they have not by then.
        """
        self.scheduler.run(limit_s, lambda: len(self.observer.ended) >= rounds)
        found = len(self.observer.ended)
        assert found >= rounds, f"found {found} ended rounds at {self.scheduler.now:.0f} s, expected {rounds}"

    @property
    def released(self) -> int:
        """Rounds that ended with a release."""
        return sum(phase is Phase.DONE for _, phase in self.observer.ended)
