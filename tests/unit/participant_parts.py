"""A participant with its disk, and an aggregator's messages to push it along."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from round_parts import FEATURE_SCHEMA, NOW, SITE, TASK, TOPICS, plan_of, settings

from vedette_core.learning.encoding import Encoding, encode, update_weight
from vedette_core.machine import Effect, Persist, Publish, Subscribe
from vedette_device.participant_events import (
    ExamplesAvailable,
    KeyPair,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_device.training import Contribution
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import CheckIn, Member, Phase, Roster, RoundOpen, Upload, plan_bytes
from vedette_schemas.telemetry import Receipt, ReceiptItem

ME = "gw-00"
PLAN = plan_of(settings(4, quorum=2))
PLAN_DIGEST = plan_bytes(PLAN)[1]
MODEL = "a" * 64
BEACON = b"b" * 32


def opened(phase: Phase, number: int = 1, attempt: int = 1, **changes: Any) -> RoundOpen:
    """The round's state."""
    formed = phase is not Phase.CHECKIN
    values: dict[str, Any] = {
        "task": TASK,
        "round": number,
        "attempt": attempt,
        "model": MODEL,
        "model_version": 0,
        "plan": PLAN_DIGEST,
        "phase": phase,
        "checkin_until_s": 0.0,
        "deadline_s": NOW + 300.0 if formed else 0.0,
        "groups": 1 if formed else 0,
        "beacon": BEACON if formed else b"",
    }
    return RoundOpen(**(values | changes))


def contribution(seed: bytes = b"", **changes: Any) -> Contribution:
    """What training makes: a small delta of 128 examples."""
    delta = np.full(PLAN.dimension, 0.01, np.float32)
    update = encode(delta, Encoding(PLAN.dimension, PLAN.update.clip_norm, seed), np.random.default_rng(1))
    values: dict[str, Any] = {
        "levels": update.levels.tobytes(),
        "weight": update_weight(128, PLAN.update.examples_reference, PLAN.update.weight_max),
        "num_examples": 128,
        "clipped": False,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "ranges": (),
    }
    return Contribution(**(values | changes))


class Gateway:
    """A participant machine with its disk and outbox."""

    def __init__(self, feature_schema: str = FEATURE_SCHEMA) -> None:
        self.feature_schema = feature_schema
        self.disk: dict[str, bytes] = {}
        self.now = NOW
        self.keys: list[KeyPair] = []
        self.effects: list[Effect] = []
        self.machine: ParticipantMachine
        self.restart()

    def restart(self) -> list[Effect]:
        """Make the machine anew from its disk."""
        self.machine, effects = ParticipantMachine.restore(
            dict(self.disk),
            topics=TOPICS,
            task=TASK,
            identity=DeviceIdentity(
                ME, SITE.node(ME).certificate, SITE.intermediate, SITE.node(ME).signer, self.feature_schema
            ),
            new_key=self._new_key,
        )
        self._carry_out(effects)
        return effects

    def handle(self, event: Any, after_s: float = 0.0) -> list[Effect]:
        """Let time pass, give the machine an event, and write what it persists."""
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        self._carry_out(effects)
        return effects

    def ready(self, examples: int = 128, **release: Any) -> None:
        """The model is verified and there are examples."""
        values: dict[str, Any] = {"version": 0, "model_sha256": MODEL, "plan_sha256": PLAN_DIGEST, "plan": PLAN}
        self.handle(ReleaseVerified(**(values | release)))
        self.handle(ExamplesAvailable(examples))

    def open(self, phase: Phase, number: int = 1, attempt: int = 1, **changes: Any) -> list[Effect]:
        """The aggregator says where the round is."""
        return self.handle(RoundOpened(opened(phase, number, attempt, **changes)))

    def roster(self, number: int = 1, attempt: int = 1, **changes: Any) -> Roster:
        """The roster of this device's group, with one other member."""
        members = [Member(device=ME, epk=self.keys[-1].public), Member(device="gw-01", epk=b"o" * 32)]
        values: dict[str, Any] = {
            "task": TASK,
            "round": number,
            "attempt": attempt,
            "gid": 0,
            "model": MODEL,
            "model_version": 0,
            "plan": PLAN_DIGEST,
            "beacon": BEACON,
            "members": tuple(members),
            "deadline_s": NOW + 300.0,
        }
        return Roster(**(values | changes))

    def to_checked_in(self) -> None:
        """A check-in is on its way."""
        self.ready()
        self.open(Phase.CHECKIN)

    def to_collecting(self) -> None:
        """Groups are formed; the roster is waited for."""
        self.to_checked_in()
        self.open(Phase.COLLECT)

    def to_training(self) -> Train:
        """The roster holds."""
        self.to_collecting()
        effects = self.handle(RosterReceived(self.roster()))
        return next(e for e in effects if isinstance(e, Train))

    def to_uploaded(self) -> Publish:
        """The upload is on its way."""
        train = self.to_training()
        effects = self.handle(TrainingFinished(train.round, train.attempt, contribution(train.seed)))
        return uploads(effects)[0]

    def receipt(self, message_id: str, reason: str = "") -> list[Effect]:
        """The aggregator's receipt."""
        item = ReceiptItem(id=message_id, outcome="rejected" if reason else "accepted", reason=reason)
        return self.handle(ReceiptReceived(Receipt(device=ME, items=(item,))))

    @property
    def private_keys_on_disk(self) -> int:
        """How many of the private keys ever made are still anywhere on the disk."""
        return sum(any(k.private in value for value in self.disk.values()) for k in self.keys)

    def _new_key(self) -> KeyPair:
        number = len(self.keys).to_bytes(4, "big")
        self.keys.append(
            KeyPair(hashlib.sha256(b"private" + number).digest(), hashlib.sha256(b"epk" + number).digest())
        )
        return self.keys[-1]

    def _carry_out(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value


def checkins(effects: Sequence[Effect]) -> list[CheckIn]:
    """Check-ins that were published."""
    found = [e for e in effects if isinstance(e, Publish) and e.topic.endswith("/checkin")]
    return [codec.unpack(CheckIn, codec.unpack(Envelope, e.payload).body) for e in found]


def uploads(effects: Sequence[Effect]) -> list[Publish]:
    """Uploads that were published."""
    return [e for e in effects if isinstance(e, Publish) and e.topic.endswith("/upload")]


def upload_body(publish: Publish) -> Upload:
    """What is in an upload."""
    return codec.unpack(Upload, codec.unpack(Envelope, publish.payload).body)


def subscriptions(effects: Sequence[Effect]) -> list[str]:
    """Filters that were subscribed to, below the site's root."""
    return [e.topic_filter.removeprefix(TOPICS.root + "/") for e in effects if isinstance(e, Subscribe)]
