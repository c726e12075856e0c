"""The aggregator: the real round machine and intake, and a registry in place of the signed repository."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgpack
import numpy as np

from vedette_aggregator.aggregation import Aggregate, Candidate, GlobalModel, OpenedGroup
from vedette_aggregator.intake import Intake
from vedette_aggregator.round_events import PublishCandidate, Released, ReleaseFailed, RootTrained, TrainRoot
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_setup import RoundParts
from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.defence import Defence
from vedette_core.machine import Connected, Effect, Publish
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Plan
from vedette_schemas.topics import Role

from .problem import OPTIMISER, TASK, Local
from .process import Process
from .site import AGGREGATOR

REFRESH_S: Final = 300.0
"""How often what is retained of releases is published again, as the product does with its timestamp."""
BUILD_S: Final = 3.0
"""Time that building, validating and signing a release takes."""
ROOT_TRAINING_S: Final = 5.0


@dataclass
class ReleasePolicy:
    """What becomes of candidates.

    Attributes:
        refused_rounds: rounds whose candidates are not released.
    """

    refused_rounds: set[int] = field(default_factory=set)


class AggregatorProcess(Process):
    """The aggregator node.

    Args:
        rounds: the task's settings.
        plan: the plan that they lead to.
        model: what the first round starts from.
        seed: for the selection, and for the noise.
        beacon: reveals the value of an epoch.
        policy: what becomes of candidates.
        root: the clean root set, where there is one.
    """

    def __init__(
        self,
        *parts: Any,
        rounds: RoundSettings,
        plan: Plan,
        model: GlobalModel,
        seed: bytes,
        beacon: Callable[[int], bytes],
        policy: ReleasePolicy,
        root: Local | None = None,
    ) -> None:
        super().__init__(AGGREGATOR, Role.AGGREGATOR, *parts, keeps_session=True)
        self.rounds = rounds
        self.plan = plan
        self.first_model = model
        self.seed = seed
        self.beacon = beacon
        self.policy = policy
        self.root = root
        self.defence = Defence.configured(rounds.robust_rule, has_root=root is not None)
        self.entropy = Random(seed)
        self.refused: Counter[str] = Counter()
        self.machine: RoundMachine
        self.intake: Intake

    def start(self) -> None:
        parts = RoundParts(
            topics=self.topics,
            aggregator=AGGREGATOR,
            signer=self.site.node(AGGREGATOR).signer,
            settings=self.rounds,
            plan=self.plan,
            optimiser=OPTIMISER,
            defence=self.defence,
            has_root=self.root is not None,
            beacon=self.beacon,
            seed=self.seed,
            entropy=self.entropy.randbytes,
        )
        persisted = self.disk.below(f"round/{TASK}/") | self.disk.below(f"privacy/{TASK}/")
        self.machine, effects = RoundMachine.restore(persisted, parts, self.first_model)
        self._watch(self.machine)
        self.intake = Intake(self.topics, self.site.ring(), [TASK])
        self.intake.remember(self.machine.certificates, self.now())
        self.observer.restored(self.name, effects)
        self.carry_out(effects)
        self.set_timer()
        self.later(REFRESH_S, self._refresh)

    def _watch(self, machine: RoundMachine) -> None:
        """Let the observer see the sums that were opened, before anything is made of them."""
        memory, honest = machine.memory, machine.memory.aggregate

        def aggregate(
            groups: Sequence[OpenedGroup],
            model: GlobalModel,
            parts: RoundParts,
            root: Float32 | None,
            out: list[Effect],
        ) -> Aggregate:
            self.observer.opened(groups, memory.norms.running, root)
            return honest(groups, model, parts, root, out)

        memory.aggregate = aggregate  # type: ignore[method-assign]

    def connected(self) -> None:
        self.link.subscribe(f"{self.topics.root}/device/+/up/#", 1)
        self._publish_release()
        self.handle(Connected())

    def take(self, topic: str, payload: bytes) -> None:
        try:
            event = self.intake.take(topic, payload, self.now())
        except PeerError as fault:
            self.refused[fault.reason] += 1
            return
        self.handle(event)

    def special(self, effect: Effect) -> None:
        if isinstance(effect, TrainRoot):
            self.later(ROOT_TRAINING_S, lambda: self._train_root(effect))
            return
        assert isinstance(effect, PublishCandidate)
        self.observer.candidate(effect, self.machine.model, self.disk, self.defence)
        self.later(BUILD_S, lambda: self._release(effect.candidate, effect.plan))

    def _train_root(self, effect: TrainRoot) -> None:
        assert self.root is not None
        delta = self.root.train(np.asarray(effect.weights), effect.plan).delta
        self.handle(RootTrained(effect.round, effect.attempt, delta))

    def _release(self, candidate: Candidate, plan: bytes) -> None:
        key = f"registry/{candidate.round}"
        if key not in self.disk.data:
            if candidate.round in self.policy.refused_rounds:
                self.handle(ReleaseFailed("the validation gate said no"))
                return
            release = {
                "version": candidate.parent_version + 1,
                "weights": candidate.weights.astype("<f4").tobytes(),
                "plan": plan,
            }
            self.disk.put(key, msgpack.packb(release))
        release = msgpack.unpackb(self.disk.data[key])
        self.disk.put("registry/newest", self.disk.data[key])
        self.observer.registered(release["version"], release["weights"], release["plan"])
        self._publish_release()
        event = Released(release["version"], model_digest(release["weights"]), digest(release["plan"]))
        self.observer.released(event)
        self.handle(event)

    def _refresh(self) -> None:
        self._publish_release()
        self.later(REFRESH_S, self._refresh)

    def _publish_release(self) -> None:
        newest = self.disk.data.get("registry/newest")
        if newest is None:
            first = self.first_model
            newest = msgpack.packb({"version": first.version, "weights": first.weights.tobytes(), "plan": first.plan})
        self.send(Publish(self.topics.rollout(TASK), newest, retain=True))


def digest(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def model_digest(weights: bytes) -> str:
    """What stands for the digest of the weights file here."""
    return digest(b"weights file" + weights)
