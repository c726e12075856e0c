"""A device: the real participant machine, and a training step whose result is masked as the product masks it."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import numpy as np

from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.round_vector import make_vector
from vedette_core.learning.staleness import BufferedDelta, discounted, usable
from vedette_core.machine import Effect
from vedette_device.participant_events import ExamplesAvailable, Train, TrainingFailed, TrainingFinished
from vedette_device.participant_machine import ParticipantMachine
from vedette_device.training import Contribution, contribute

from .gateway_process import GatewayProcess
from .problem import TASK, Local

TRAINING_S: Final = 10.0
_LATE: Final = f"late/{TASK}"


class DeviceProcess(GatewayProcess):
    """A device node.

    Attributes:
        local: its data.
        training_s: how long it trains.
        failing: chance that a training fails.
        plain_allowed: whether an update may leave that the aggregator can read.
    """

    def __init__(self, *parts: Any, local: Local, plain_allowed: bool = False, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.local = local
        self.training_s = TRAINING_S
        self.failing = 0.0
        self.plain_allowed = plain_allowed
        self.machine: ParticipantMachine

    def make_machine(self, persisted: dict[str, bytes]) -> list[Effect]:
        self.machine, effects = ParticipantMachine.restore(
            persisted,
            topics=self.topics,
            task=TASK,
            identity=self.identity,
            new_key=self.new_key,
            peers=self.site.ring(),
            plain_allowed=self.plain_allowed,
        )
        return effects

    def started(self) -> None:
        self.handle(ExamplesAvailable(self.local.examples))

    def special(self, effect: Effect) -> None:
        assert isinstance(effect, Train)
        result = self._late_result(effect)
        if result is None:
            release = msgpack.unpackb(self.disk.data["release"])
            assert release["version"] == effect.model_version, "it trains on the release that it verified"
            result = self.local.train(np.frombuffer(release["weights"], "<f4"), effect.plan)
        self.later(self.training_s, lambda: self._trained(effect, result))

    def contribution(self, effect: Train, result: TrainingResult) -> Contribution:
        """What leaves this device; the observer is told what is under the masks."""
        plan, roster = effect.plan, effect.roster
        seed = self.random.randrange(2**63)
        plain, _ = make_vector(
            plan,
            roster,
            self.name,
            result.delta,
            loss_before=result.loss_before,
            loss_after=result.loss_after,
            ranges=dict(result.activation_ranges),
            rng=np.random.default_rng(seed),
        )
        self.observer.trained(self.name, effect, result.delta, plain)
        return contribute(
            plan,
            roster,
            self.name,
            effect.key,
            result,
            rng=np.random.default_rng(seed),
            entropy=self.random.randbytes,
        )

    def _trained(self, effect: Train, result: TrainingResult) -> None:
        if self.random.random() < self.failing:
            self.handle(TrainingFailed(effect.round, effect.attempt, "the weights are not finite"))
            return
        made = self.contribution(effect, result)
        self.handle(TrainingFinished(effect.round, effect.attempt, effect.plan, made))
        if self.machine.used != (effect.round, effect.attempt) and effect.plan.training.staleness_max:
            self._keep_late(effect, result)

    # As in `vedette_device.participation`, which does it with files and threads.

    def _keep_late(self, effect: Train, result: TrainingResult) -> None:
        late = BufferedDelta(
            effect.plan.network,
            effect.model_version,
            result.delta,
            result.num_examples,
            result.loss_before,
            result.loss_after,
            tuple((name, low, high) for name, (low, high) in result.activation_ranges.items()),
        )
        self.disk.put(_LATE, late.to_bytes())
        self.observer.tell(f"{self.name}: keeps its update of {effect.round}.{effect.attempt}, which is late")

    def _late_result(self, effect: Train) -> TrainingResult | None:
        stored = self.disk.data.get(_LATE)
        if stored is None:
            return None
        late, plan = BufferedDelta.from_bytes(stored), effect.plan
        self.disk.put(_LATE, None)
        if not usable(late, effect.model_version, plan.training.staleness_max):
            return None
        delta = discounted(
            late,
            network=plan.network,
            model_version=effect.model_version,
            staleness_max=plan.training.staleness_max,
            clip_norm=plan.update.clip_norm,
        )
        self.observer.late_updates += 1
        self.observer.tell(f"{self.name}: gives its update of release {late.model_version}")
        ranges = {name: (low, high) for name, low, high in late.ranges}
        return TrainingResult(delta, late.loss_before, late.loss_after, late.num_examples, ranges)
