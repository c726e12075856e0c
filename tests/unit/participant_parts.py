"""A participant with its disk, and an aggregator's messages to push it along."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from fleet_simulator.site import EPOCH, the_site

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.beacon import BeaconChain
from vedette_core.learning.local_training import TrainingResult
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish, Subscribe
from vedette_core.secagg.parameters import find_committee
from vedette_device.participant_events import (
    ExamplesAvailable,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_device.participant_state import ParticipantRecord, state_key
from vedette_device.training import Contribution, contribute
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, pre_authentication_encoding
from vedette_schemas.round import (
    OFFER_TYPE,
    CheckIn,
    GroupPlan,
    Member,
    Phase,
    Plan,
    PrivacyPlan,
    Roster,
    RoundOpen,
    TrainingPlan,
    UpdatePlan,
    Upload,
    epoch_of,
    offer_statement,
    plan_bytes,
)
from vedette_schemas.telemetry import Receipt, ReceiptItem

SITE = the_site()
TOPICS = SITE.topics
PEERS = SITE.ring()
NOW = EPOCH
TASK = "network"
FEATURE_SCHEMA = "f" * 64
DIMENSION = 12
ME = "gw-00"
OTHERS = tuple(f"gw-{i:02}" for i in range(1, 8))
MODEL = "a" * 64
EXAMPLES_MIN = 64
SURVIVORS_MIN = 5
CHAIN = BeaconChain(hashlib.sha256(b"the participant's tests").digest(), 64)
ANCHOR = CHAIN.anchor


def plan_of(
    *,
    masked: bool = True,
    groups: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    update: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """Eight devices that open their own sum: 6 votes, 3 may be corrupt, 5 survivors at least."""
    committee = find_committee(8)
    sizes: dict[str, Any] = {
        "committee": "inline",
        "committee_size": committee.size,
        "votes_min": committee.votes_min,
        "threshold": committee.threshold,
        "corrupt_max": committee.corrupt_max,
    }
    values: dict[str, Any] = {
        "group_size": 8,
        "members_max": 8,
        "survivors_min": SURVIVORS_MIN,
        "quorum": SURVIVORS_MIN,
        "checkins_max": 64,
    }
    train: dict[str, Any] = {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.2, "examples_min": EXAMPLES_MIN}
    encode: dict[str, Any] = {"clip_norm": 2.0, "weight_max": 8, "examples_reference": 64}
    fields: dict[str, Any] = {
        "task": TASK,
        "version": 1,
        "feature_schema": FEATURE_SCHEMA,
        "network": "e" * 64,
        "dimension": DIMENSION,
        "training": TrainingPlan(**(train | (training or {}))),
        "update": UpdatePlan(**(encode | {"protection": "masked" if masked else "none"} | (update or {}))),
        "groups": GroupPlan(**(values | (sizes if masked else {"committee": "none"}) | (groups or {}))),
    }
    return Plan(**(fields | changes))


PLAN = plan_of()
PLAN_DIGEST = plan_bytes(PLAN)[1]
SCARCE = plan_of(privacy=PrivacyPlan(participations_max=2, period_rounds=3))
"""A plan that takes a device twice in three rounds."""


def beacon_of(number: int, plan: Plan = PLAN) -> bytes:
    """What the aggregator opens for a round's epoch."""
    return CHAIN.value(epoch_of(number, plan.groups.epoch_rounds))


BEACON = beacon_of(1)


def release_of(plan: Plan = PLAN, **changes: Any) -> ReleaseVerified:
    """The active release, with this plan."""
    values: dict[str, Any] = {
        "version": 0,
        "model_sha256": MODEL,
        "plan_sha256": plan_bytes(plan)[1],
        "plan": plan,
        "anchor": ANCHOR,
    }
    return ReleaseVerified(**(values | changes))


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
        "beacon": beacon_of(number) if formed else b"",
    }
    return RoundOpen(**(values | changes))


def identity_of(device: str, feature_schema: str = FEATURE_SCHEMA) -> DeviceIdentity:
    """A device of the site."""
    node = SITE.node(device)
    return DeviceIdentity(device, node.certificate, SITE.intermediate, node.signer, feature_schema)


def key_of(device: str, number: int = 1) -> KeyPair:
    """The key of another device's n-th check-in."""
    return key_pair(hashlib.sha256(f"{device} {number}".encode()).digest())


def member(
    device: str,
    *,
    number: int = 1,
    weight: int = 2,
    task: str = TASK,
    role: Literal["contribute", "unmask"] = "contribute",
    **changes: Any,
) -> Member:
    """Somebody's entry in a roster, with what it signed; `changes` are the forger's."""
    pair, node = key_of(device, number), SITE.node(device)
    statement = offer_statement(task, device, number, pair.public, role)
    values: dict[str, Any] = {
        "device": device,
        "epk": pair.public,
        "seq": number,
        "certificate": node.certificate,
        "offer": node.signer.sign(pre_authentication_encoding(OFFER_TYPE, device, statement)),
        "weight": weight,
    }
    return Member(**(values | changes))


def result(seed: int = 1, **changes: Any) -> TrainingResult:
    """What training makes: a small delta of 128 examples."""
    delta = np.random.default_rng(seed).normal(0, 0.1, DIMENSION).astype(np.float32)
    values: dict[str, Any] = {
        "delta": delta,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "num_examples": 128,
        "activation_ranges": {},
    }
    return TrainingResult(**(values | changes))


def contribution(
    train: Train | None = None,
    *,
    seed: int = 1,
    device: str = ME,
    made_of: Callable[[int], TrainingResult] = result,
    **changes: Any,
) -> Contribution:
    """What a device encodes and masks for a training; without one, something of the same shape for nobody."""
    made = Contribution(bytes(64), (), (), 128, False, 2.0, 1.0)
    if train is not None:
        rng = np.random.default_rng(seed)
        made = contribute(train.plan, train.roster, device, train.key, made_of(seed), rng=rng, entropy=rng.bytes)
    return replace(made, **changes)


class Gateway:
    """A participant machine with its disk and outbox.

    Args:
        feature_schema: the one that it computes.
        plan: that of its releases.
        plain_allowed: whether it gives updates that the aggregator can read.
        may_join: its own budget.
    """

    def __init__(
        self,
        feature_schema: str = FEATURE_SCHEMA,
        *,
        plan: Plan = PLAN,
        plain_allowed: bool = False,
        may_join: Callable[[float, int], str] | None = None,
    ) -> None:
        self.feature_schema, self.plan, self.plain_allowed, self.may_join = (
            feature_schema,
            plan,
            plain_allowed,
            may_join,
        )
        self.disk: dict[str, bytes] = {}
        self.now = NOW
        self.keys: list[KeyPair] = []
        self.effects: list[Effect] = []
        self.crash_after: int | None = None
        self.machine: ParticipantMachine
        self.restart()

    def restart(self) -> list[Effect]:
        """Make the machine anew from its disk."""
        self.machine, effects = ParticipantMachine.restore(
            dict(self.disk),
            topics=TOPICS,
            task=TASK,
            identity=identity_of(ME, self.feature_schema),
            new_key=self._new_key,
            peers=PEERS,
            plain_allowed=self.plain_allowed,
            may_join=self.may_join,
        )
        self._carry_out(effects)
        return effects

    def handle(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        """Let time pass, give the machine an event, and write what it persists."""
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        self._carry_out(effects)
        return effects

    def ready(self, examples: int = 128, **release: Any) -> None:
        """The model is verified and there are examples."""
        self.handle(release_of(release.pop("plan", self.plan), **release))
        self.handle(ExamplesAvailable(examples))

    def open(self, phase: Phase, number: int = 1, attempt: int = 1, **changes: Any) -> list[Effect]:
        """The aggregator says where the round is."""
        values = {"plan": plan_bytes(self.plan)[1]} | changes
        return self.handle(RoundOpened(opened(phase, number, attempt, **values)))

    def own_entry(self, **changes: Any) -> Member:
        """This device's entry in a roster: what it said in its newest check-in."""
        said = checkins(self.effects)[-1]
        values: dict[str, Any] = {
            "device": ME,
            "epk": said.epk,
            "seq": said.seq,
            "certificate": said.certificate,
            "offer": said.offer,
            "weight": 2,
        }
        return Member(**(values | changes))

    def roster(self, number: int = 1, attempt: int = 1, **changes: Any) -> Roster:
        """The roster of this device's group, with seven other members."""
        values: dict[str, Any] = {
            "task": TASK,
            "round": number,
            "attempt": attempt,
            "gid": 0,
            "model": MODEL,
            "model_version": 0,
            "plan": plan_bytes(self.plan)[1],
            "beacon": beacon_of(number),
            "members": (self.own_entry(), *(member(device) for device in OTHERS)),
            "deadline_s": NOW + 300.0,
        }
        return Roster(**(values | changes))

    def to_checked_in(self) -> None:
        """A check-in is on its way."""
        self.ready()
        self.open(Phase.CHECKIN)

    def to_collecting(self, number: int = 1, attempt: int = 1) -> None:
        """Groups are formed; the roster is waited for."""
        self.ready()
        self.open(Phase.CHECKIN, number, attempt)
        self.open(Phase.COLLECT, number, attempt)

    def to_training(self, number: int = 1, attempt: int = 1) -> Train:
        """The roster holds."""
        self.to_collecting(number, attempt)
        effects = self.handle(RosterReceived(self.roster(number, attempt)))
        return next(e for e in effects if isinstance(e, Train))

    def finished(self, train: Train, seed: int = 1) -> TrainingFinished:
        """The shell's answer."""
        return TrainingFinished(train.round, train.attempt, train.plan, contribution(train, seed=seed))

    def to_uploaded(self, number: int = 1, attempt: int = 1) -> Publish:
        """The upload is on its way."""
        return uploads(self.handle(self.finished(self.to_training(number, attempt))))[0]

    def receipt(self, message_id: str, reason: str = "") -> list[Effect]:
        """The aggregator's receipt."""
        item = ReceiptItem(id=message_id, outcome="rejected" if reason else "accepted", reason=reason)
        return self.handle(ReceiptReceived(Receipt(device=ME, items=(item,))))

    @property
    def private_keys_on_disk(self) -> int:
        """How many of the private keys ever made are still anywhere on the disk."""
        return sum(any(k.private in value for value in self.disk.values()) for k in self.keys)

    @property
    def record(self) -> ParticipantRecord:
        """What it has written down of itself."""
        return ParticipantRecord.from_bytes(self.disk[state_key(TASK)], state_key(TASK))

    def _new_key(self) -> KeyPair:
        self.keys.append(key_of(ME, len(self.keys)))
        return self.keys[-1]

    def _carry_out(self, effects: list[Effect]) -> None:
        """Carry effects out in their order; the power may fail after any of them."""
        for effect in effects:
            if self.crash_after is not None:
                if self.crash_after == 0:
                    raise PowerCutError
                self.crash_after -= 1
            self.effects.append(effect)
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value


class PowerCutError(Exception):
    """The power failed: what was not carried out never happened, and the machine's memory is gone."""


def said(effects: Sequence[Effect]) -> list[bytes]:
    """Payloads that were published."""
    return [e.payload for e in effects if isinstance(e, Publish)]


def of_step(effects: Sequence[Effect], step: str) -> list[Publish]:
    """What was published in a step of a round."""
    return [e for e in effects if isinstance(e, Publish) and e.topic.endswith(f"/{step}")]


def body_of(sealed: bytes, cls: type[Any]) -> Any:
    """The body of a sealed message."""
    return codec.unpack(cls, codec.unpack(Envelope, sealed).body)


def checkins(effects: Sequence[Effect]) -> list[CheckIn]:
    """Check-ins that were published."""
    return [body_of(e.payload, CheckIn) for e in of_step(effects, "checkin")]


def uploads(effects: Sequence[Effect]) -> list[Publish]:
    """Uploads that were published."""
    return of_step(effects, "upload")


def upload_body(publish: Publish) -> Upload:
    """What is in an upload."""
    body: Upload = body_of(publish.payload, Upload)
    return body


def subscriptions(effects: Sequence[Effect]) -> list[str]:
    """Filters that were subscribed to, below the site's root."""
    return [e.topic_filter.removeprefix(TOPICS.root + "/") for e in effects if isinstance(e, Subscribe)]


def notes(effects: Sequence[Effect]) -> str:
    """Lines for the log."""
    return "\n".join(e.text for e in effects if isinstance(e, Note))


def answer_of(effects: Sequence[Effect]) -> str:
    """What the machine's table made of the event."""
    (count,) = [e for e in effects if isinstance(e, Count) and e.metric == "machine_events"]
    return count.outcome


def written(effects: Sequence[Effect]) -> list[str]:
    """Keys that were written or erased, in order."""
    return [e.key for e in effects if isinstance(e, Persist)]
