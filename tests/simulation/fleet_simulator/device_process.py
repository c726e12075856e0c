"""A device: the real participant machine and intake, an outbox with the product's rule, and a training step."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Final

import msgpack
import numpy as np

from vedette_core.machine import Connected, Effect, Publish
from vedette_device.intake import Intake
from vedette_device.participant_events import (
    ExamplesAvailable,
    KeyPair,
    ReceiptReceived,
    ReleaseVerified,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_schemas.errors import PeerError
from vedette_schemas.round import read_plan
from vedette_schemas.topics import Role

from .aggregator_process import digest, model_digest
from .problem import TASK, Local
from .process import Process
from .site import AGGREGATOR, key_pair

RESEND_S: Final = 20.0
REFRESH_S: Final = 60.0
TRAINING_S: Final = 10.0
_OUTBOX: Final = "outbox/"


class DeviceProcess(Process):
    """A device node.

    Attributes:
        local: its data.
        feature_schema: digest of the feature schema that it computes.
        training_s: how long it trains.
    """

    def __init__(self, name: str, *parts: Any, local: Local, feature_schema: str, seed: int) -> None:
        super().__init__(name, Role.DEVICE, *parts, keeps_session=False)
        self.local = local
        self.feature_schema = feature_schema
        self.training_s = TRAINING_S
        self.refused: Counter[str] = Counter()
        self._random = Random(seed)
        self._rounding = np.random.default_rng(seed)
        self.machine: ParticipantMachine
        self.intake: Intake

    def start(self) -> None:
        me = self.site.node(self.name)
        ring = self.site.ring()
        ring.learn(self.site.node(AGGREGATOR).certificate, self.now() - self.clock_offset_s, sender=AGGREGATOR)
        self.intake = Intake(self.topics, self.name, AGGREGATOR, [TASK], ring)
        self.machine, effects = ParticipantMachine.restore(
            self.disk.below(f"participant/{TASK}/"),
            topics=self.topics,
            task=TASK,
            identity=DeviceIdentity(self.name, me.certificate, self.site.intermediate, me.signer, self.feature_schema),
            new_key=self._new_key,
        )
        self.observer.restored(self.name, effects)
        self.carry_out(effects)
        self.handle(ExamplesAvailable(self.local.examples))
        if "release" in self.disk.data:
            self._verified()
        self._resend()
        self.later(REFRESH_S, self._refresh)

    def connected(self) -> None:
        self.link.subscribe(self.topics.receipt(self.name), 0)
        self.link.subscribe(self.topics.rollout(TASK), 0)
        self.handle(Connected())
        self._flush()

    def take(self, topic: str, payload: bytes) -> None:
        if topic == self.topics.rollout(TASK):
            self._stage(payload)
            return
        try:
            event = self.intake.take(topic, payload)
        except PeerError as fault:
            self.refused[fault.reason] += 1
            return
        if isinstance(event, ReceiptReceived):
            for item in event.body.items:
                self.observer.receipt_arrived(self.name, item)
                if _OUTBOX + item.id in self.disk.data:
                    self.disk.put(_OUTBOX + item.id, None)
        self.handle(event)

    def special(self, effect: Effect) -> None:
        assert isinstance(effect, Train)
        self.later(self.training_s, lambda: self._train(effect))

    def send(self, publish: Publish) -> None:
        assert publish.receipt_id is not None, "whatever a device says in a round waits for its receipt"
        key = _OUTBOX + publish.receipt_id
        if key not in self.disk.data:
            self.disk.put(key, msgpack.packb([publish.topic, publish.payload]))
        super().send(publish)

    @property
    def outbox(self) -> list[str]:
        """Ids that wait for their receipt."""
        return sorted(key.removeprefix(_OUTBOX) for key in self.disk.below(_OUTBOX))

    def _resend(self) -> None:
        self._flush()
        self.later(RESEND_S, self._resend)

    def _refresh(self) -> None:
        # As the product's trust client does, which asks for newer metadata now and then.
        self.link.subscribe(self.topics.rollout(TASK), 0)
        self.later(REFRESH_S, self._refresh)

    def _flush(self) -> None:
        for topic, payload in (msgpack.unpackb(value) for value in self.disk.below(_OUTBOX).values()):
            self.observer.resent(self.name, topic, payload)
            self.link.publish(topic, payload, 1, False)

    def _stage(self, payload: bytes) -> None:
        # The signed repository is not part of this simulation: here a checksum keeps flipped bits out.
        try:
            release = msgpack.unpackb(payload)
            version, weights, plan = release["version"], release["weights"], read_plan(release["plan"])
        except (ValueError, KeyError, TypeError, PeerError, msgpack.UnpackException):
            return
        if not self.observer.is_release(version, weights, release["plan"]) or plan.task != TASK:
            return
        stored = self.disk.data.get("release")
        if stored is None or msgpack.unpackb(stored)["version"] < version:
            self.disk.put("release", payload)
            self._verified()

    def _verified(self) -> None:
        release = msgpack.unpackb(self.disk.data["release"])
        plan = read_plan(release["plan"])
        self.handle(
            ReleaseVerified(release["version"], model_digest(release["weights"]), digest(release["plan"]), plan)
        )

    def _train(self, effect: Train) -> None:
        release = msgpack.unpackb(self.disk.data["release"])
        if release["version"] != effect.model_version:
            self.handle(TrainingFailed(effect.round, effect.attempt, "the model has been replaced"))
            return
        weights = np.frombuffer(release["weights"], "<f4")
        self.observer.trained(self.name, effect, self.local.delta(weights, effect.plan))
        made = self.local.contribute(weights, effect.plan, effect.seed, self._rounding)
        self.handle(TrainingFinished(effect.round, effect.attempt, made))

    def _new_key(self) -> KeyPair:
        pair = key_pair(self._random.randbytes(32))
        self.observer.key_made(self.name, pair)
        return pair
