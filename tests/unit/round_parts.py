"""What the tests of both sides of a round are made of: one aggregator, devices with keys, and machines in any state."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from fleet_simulator.oracle import check_mean
from fleet_simulator.problem import DIMENSION, FEATURE_SCHEMA, OPTIMISER, TASK, plan_of, settings
from fleet_simulator.site import AGGREGATOR, EPOCH, key_pair, the_site

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.round_events import CheckInReceived, PublishCandidate, Released, UploadReceived
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Count, Effect, Persist, Publish, Tick
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.round import (
    UPLOAD_TYPE,
    CheckIn,
    Plan,
    Roster,
    RoundOpen,
    Upload,
    checkin_id,
    plan_bytes,
    transcript_hash,
    upload_id,
)
from vedette_schemas.telemetry import Receipt, ReceiptItem

NOW = EPOCH
SITE = the_site()
TOPICS = SITE.topics

__all__ = [
    "AGGREGATOR",
    "DIMENSION",
    "FEATURE_SCHEMA",
    "NOW",
    "OPTIMISER",
    "SITE",
    "TASK",
    "TOPICS",
    "Stage",
    "check_mean",
    "checkin",
    "model_of",
    "opened",
    "persisted",
    "plan_of",
    "receipts",
    "rosters",
    "settings",
    "upload",
]


def key_of(device: str, number: int = 1) -> bytes:
    """The private key of a device's n-th check-in."""
    return hashlib.sha256(f"{device} {number}".encode()).digest()


def checkin(device: str, number: int = 1, **changes: Any) -> CheckIn:
    """A device's n-th check-in."""
    epk = key_pair(key_of(device, number)).public
    values: dict[str, Any] = {
        "id": checkin_id(TASK, epk),
        "task": TASK,
        "device": device,
        "seq": number,
        "certificate": SITE.node(device).certificate,
        "intermediate": SITE.intermediate,
        "epk": epk,
        "examples_bucket": 8,
        "feature_schema": FEATURE_SCHEMA,
        "model_version": 0,
    }
    return CheckIn(**(values | changes))


def upload(roster: Roster, device: str, **changes: Any) -> Upload:
    """A device's upload for its group: 128 examples, which is weight 2."""
    values: dict[str, Any] = {
        "id": upload_id(TASK, roster.round, roster.attempt, device),
        "task": TASK,
        "round": roster.round,
        "attempt": roster.attempt,
        "gid": roster.gid,
        "device": device,
        "transcript": transcript_hash(roster),
        "levels": np.random.default_rng(len(device)).integers(0, 256, 1024, dtype=np.uint8).tobytes(),
        "weight": 2,
        "num_examples": 128,
        "clipped": False,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "ranges": (),
    }
    return Upload(**(values | changes))


def sealed(body: Upload) -> bytes:
    """An upload as it travels."""
    return seal(body, UPLOAD_TYPE, body.device, SITE.node(body.device).signer)


def model_of(plan: Plan, version: int = 0, number: int = 0) -> GlobalModel:
    """A global model of zeros."""
    packed, _ = plan_bytes(plan)
    weights = np.zeros(DIMENSION, np.float32)
    return GlobalModel(version, "a" * 64, packed, number, weights, OPTIMISER.initial_state(DIMENSION))


class Stage:
    """A round machine with its disk, and a clock to push it along.

    Args:
        rounds: settings; by default two devices make a quorum.
        persisted: what is on the disk already.
    """

    def __init__(self, rounds: RoundSettings | None = None, persisted: dict[str, bytes] | None = None) -> None:
        self.rounds = rounds or settings(4, quorum=2)
        self.plan = plan_of(self.rounds)
        self.disk = dict(persisted or {})
        self.now = NOW
        self.effects: list[Effect] = []
        self.machine: RoundMachine
        self.restart()

    def restart(self) -> list[Effect]:
        """Make the machine anew from its disk."""
        self.machine, effects = RoundMachine.restore(
            dict(self.disk),
            topics=TOPICS,
            aggregator=AGGREGATOR,
            signer=SITE.node(AGGREGATOR).signer,
            settings=self.rounds,
            plan=self.plan,
            optimiser=OPTIMISER,
            model=model_of(self.plan),
            seed=bytes(32),
        )
        self._carry_out(effects)
        return effects

    def handle(self, event: Any, after_s: float = 0.0) -> list[Effect]:
        """Let time pass, give the machine an event, and write what it persists."""
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        self._carry_out(effects)
        return effects

    def to_checkin(self) -> None:
        """A round is open."""
        self.handle(Tick())

    def to_collect(self, devices: Sequence[str] = ("gw-00", "gw-01", "gw-02")) -> None:
        """These devices are in groups."""
        self.to_checkin()
        number = 1 + max((r.checkin.seq for r in self.machine._book.devices.values()), default=0)
        for device in devices:
            self.handle(CheckInReceived(checkin(device, number)))
        self.handle(Tick(), self.rounds.checkin_s)

    def upload(self, device: str, **changes: Any) -> list[Effect]:
        """A device uploads."""
        roster = next(r for r in rosters(self.effects) if any(m.device == device for m in r.members))
        body = upload(roster, device, **changes)
        return self.handle(UploadReceived(body, sealed(body)))

    def to_releasing(self) -> PublishCandidate:
        """Everybody has uploaded."""
        self.to_collect()
        for device in ("gw-00", "gw-01", "gw-02"):
            effects = self.upload(device)
        return next(e for e in effects if isinstance(e, PublishCandidate))

    def released(self, candidate: PublishCandidate) -> Released:
        """The shell's answer."""
        return Released(candidate.candidate.parent_version + 1, "b" * 64, hashlib.sha256(candidate.plan).hexdigest())

    def _carry_out(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value


def stage_in(state: RoundState) -> Stage:
    """A machine in a state, at a moment when no deadline is due."""
    stage = Stage(settings(4, quorum=2, rounds_max=1 if state is RoundState.FINISHED else 0))
    if state is RoundState.INTERVAL or state is RoundState.FINISHED:
        stage.handle(stage.released(stage.to_releasing()))
    elif state is RoundState.CHECKIN:
        stage.to_checkin()
    elif state is RoundState.COLLECT:
        stage.to_collect()
    else:
        stage.to_releasing()
    assert stage.machine.state is state
    return stage


def persisted(effects: Sequence[Effect]) -> list[str]:
    """Keys that were written or erased, in order."""
    return [effect.key for effect in effects if isinstance(effect, Persist)]


def outcome(effects: Sequence[Effect]) -> str:
    """What the machine's table made of the event."""
    counts = [e for e in effects if isinstance(e, Count) and e.metric == "machine_events"]
    assert len(counts) == 1, "every event is counted once"
    return counts[0].outcome


def receipts(effects: Sequence[Effect]) -> list[ReceiptItem]:
    """Receipts that were published."""
    found = [e for e in effects if isinstance(e, Publish) and e.topic.endswith("/down/receipt")]
    return [item for e in found for item in codec.unpack(Receipt, body_of(e)).items]


def opened(effects: Sequence[Effect]) -> list[RoundOpen]:
    """Round states that were published."""
    found = [e for e in effects if isinstance(e, Publish) and TOPICS.parse(e.topic).kind == "round"]
    return [codec.unpack(RoundOpen, body_of(e)) for e in found]


def rosters(effects: Sequence[Effect]) -> list[Roster]:
    """Rosters of the newest attempt that were published."""
    found = [e for e in effects if isinstance(e, Publish) and TOPICS.parse(e.topic).kind == "group"]
    bodies = [codec.unpack(Roster, body_of(e)) for e in found]
    newest = max(((r.round, r.attempt) for r in bodies), default=(0, 0))
    return list({r.gid: r for r in bodies if (r.round, r.attempt) == newest}.values())


def body_of(publish: Publish) -> bytes:
    """The signed body of a sealed message."""
    return codec.unpack(Envelope, publish.payload).body
