"""What devices and helpers have in common: an outbox with the product's rule, verified releases, and fresh keys."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Final, Literal

import msgpack

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.machine import Connected, Effect, Publish
from vedette_device.intake import Intake
from vedette_device.participant_events import ReceiptReceived, ReleaseVerified
from vedette_device.participant_messages import DeviceIdentity
from vedette_schemas.errors import PeerError
from vedette_schemas.round import read_plan
from vedette_schemas.topics import Role
from vedette_schemas.trust import BeaconAnchor

from .aggregator_process import digest, model_digest
from .problem import FEATURE_SCHEMA, TASK
from .process import Process
from .site import AGGREGATOR

RESEND_S: Final = 20.0
REFRESH_S: Final = 60.0
_OUTBOX: Final = "outbox/"


class GatewayProcess(Process):
    """A node below the aggregator.

    Attributes:
        feature_schema: digest of the feature schema that it computes.
        anchor: of the beacon, as the offline keys signed it.
        refused: messages that its intake refused, by reason.
    """

    role_in_rounds: Literal["contribute", "unmask"] = "contribute"

    def __init__(self, name: str, *parts: Any, seed: int, anchor: BeaconAnchor) -> None:
        super().__init__(name, Role.DEVICE, *parts, keeps_session=False)
        self.feature_schema = FEATURE_SCHEMA
        self.anchor = anchor
        self.refused: Counter[str] = Counter()
        self.random = Random(seed)
        self.intake: Intake

    def make_machine(self, persisted: dict[str, bytes]) -> list[Effect]:
        """Make the machine from what was persisted; return what it asks for at once."""
        raise NotImplementedError

    def started(self) -> None:
        """The machine is there."""

    def start(self) -> None:
        ring = self.site.ring()
        ring.learn(self.site.node(AGGREGATOR).certificate, self.now() - self.clock_offset_s, sender=AGGREGATOR)
        self.intake = Intake(self.topics, self.name, AGGREGATOR, [TASK], ring)
        persisted = self.disk.below(f"participant/{TASK}/") | self.disk.below(f"committee/{TASK}/")
        effects = self.make_machine(persisted)
        self.observer.restored(self.name, effects)
        self.carry_out(effects)
        self.started()
        if "release" in self.disk.data:
            self._verified()
        self._resend()
        self.later(REFRESH_S, self._refresh)

    @property
    def identity(self) -> DeviceIdentity:
        """Who this is."""
        me = self.site.node(self.name)
        return DeviceIdentity(
            self.name, me.certificate, self.site.intermediate, me.signer, self.feature_schema, role=self.role_in_rounds
        )

    def connected(self) -> None:
        self.link.subscribe(self.topics.receipt(self.name), 0)
        self.link.subscribe(self.topics.committee(self.name), 0)
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
            self.observer.resent(self.name, Publish(topic, payload))
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
        weights, packed = model_digest(release["weights"]), digest(release["plan"])
        self.handle(ReleaseVerified(release["version"], weights, packed, plan, self.anchor))

    def new_key(self) -> KeyPair:
        """A fresh key pair."""
        pair = key_pair(self.random.randbytes(32))
        self.observer.key_made(self.name, pair)
        return pair
