"""A fleet, and a run of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.round_settings import RoundSettings
from vedette_core.crypto.beacon import BeaconChain
from vedette_schemas.round import Phase, plan_bytes

from .aggregator_process import AggregatorProcess, ReleasePolicy, model_digest
from .device_process import DeviceProcess
from .helper_process import HelperProcess
from .liars import LyingAggregator, LyingDevice, LyingHelper
from .network import Broker, Weather
from .observer import Observer
from .problem import DIMENSION, OPTIMISER, Local, plan_of, settings
from .process import Process
from .schedule import Scheduler
from .site import device_names, helper_names, the_site
from .transcript import Transcript

EPOCHS = 128


@dataclass
class Fleet:
    """An aggregator, devices and helpers, on one broker.

    Attributes:
        seed: everything random comes from it.
        devices: how many.
        rounds: the task's settings; by default those of `problem.settings`.
        helpers: how many.
        liars: by node id, the lies that it tells.
        lying_aggregator: whether the aggregator lies.
        has_root: whether the aggregator has a clean root set.
        weather: what the network does.
        policy: what becomes of candidates.
    """

    seed: int
    devices: int = 6
    rounds: RoundSettings | None = None
    helpers: int = 0
    liars: Mapping[str, frozenset[str]] = field(default_factory=dict)
    lying_aggregator: bool = False
    has_root: bool = False
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
        self.observer = Observer(
            self.site.topics, self.transcript, model, self.liars, honest_aggregator=not self.lying_aggregator
        )
        self.broker = Broker(self.scheduler, Random(self.random.random()), self.site.topics, self.weather)
        parts = (self.scheduler, self.broker, self.site, self.observer)
        beacon = BeaconChain(self.random.randbytes(32), EPOCHS)
        locals_ = {name: self._local(numbers) for name in device_names(self.devices)}
        centre = np.stack([local.centre for local in locals_.values()]).mean(axis=0)
        kind = LyingAggregator if self.lying_aggregator else AggregatorProcess
        self.aggregator = kind(
            *parts,
            rounds=rounds,
            plan=plan,
            model=model,
            seed=self.random.randbytes(32),
            beacon=beacon.value,
            policy=self.policy,
            root=Local(centre.astype(np.float32), 500) if self.has_root else None,
        )
        self.gateways = {
            name: (LyingDevice if name in self.liars else DeviceProcess)(
                name,
                *parts,
                local=local,
                plain_allowed=not rounds.masked,
                seed=self.random.randrange(2**32),
                anchor=beacon.anchor,
            )
            for name, local in locals_.items()
        }
        self.helping = {
            name: (LyingHelper if name in self.liars else HelperProcess)(
                name, *parts, seed=self.random.randrange(2**32), anchor=beacon.anchor
            )
            for name in helper_names(self.helpers)
        }
        for name, lies in self.liars.items():
            liar = self.gateways.get(name) or self.helping[name]
            assert isinstance(liar, LyingDevice | LyingHelper)
            liar.tell_lies(lies)
        self.processes: list[Process] = [self.aggregator, *self.gateways.values(), *self.helping.values()]
        self.observer.processes = {p.name: p for p in self.processes}
        self.aggregator.disk.on_written = self.observer.aggregator_wrote
        self.scheduler.after_step = self.observer.after_step

    @staticmethod
    def _local(numbers: np.random.Generator) -> Local:
        return Local(numbers.normal(size=DIMENSION).astype(np.float32), int(numbers.integers(64, 800)))

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

    @property
    def told(self) -> Counter[str]:
        """Lies that were told, by kind."""
        everybody = [p for p in self.processes if isinstance(p, LyingDevice | LyingHelper | LyingAggregator)]
        return sum((Counter(liar.told) for liar in everybody), Counter())

    def stop_lying(self) -> None:
        """Every liar keeps to the protocol from now on."""
        for process in self.processes:
            if isinstance(process, LyingDevice | LyingHelper | LyingAggregator):
                process.lying = False

    @property
    def spent_up(self) -> bool:
        """Whether too few devices have anything left to give in this budget period for a round."""
        plan, number = self.observer.plan, self.aggregator.machine.round
        left = sum(
            not self.observer.accounts.spent_up(number, plan, gateway.disk) for gateway in self.gateways.values()
        )
        return left < plan.groups.quorum
