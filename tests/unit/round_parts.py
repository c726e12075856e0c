"""What the tests of the aggregator's rounds are made of: keys, check-ins, plain uploads, and a machine in any state.

Masked uploads and the committees that open their sums are in `round_fleet`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from fleet_simulator.site import AGGREGATOR as AGGREGATOR
from fleet_simulator.site import EPOCH, the_site
from fleet_simulator.site import helper_names as helper_names
from round_effects import one, rosters, write

from vedette_aggregator.aggregation import Entropy, GlobalModel
from vedette_aggregator.round_events import (
    CheckInReceived,
    PublishCandidate,
    Released,
    RootTrained,
    UploadReceived,
)
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_setup import RoundParts
from vedette_aggregator.round_state import RoundState
from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.learning.layout import Float32
from vedette_core.learning.optimiser import FedAvg
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.round_vector import Ring, make_vector
from vedette_core.machine import Effect, Tick
from vedette_schemas import codec
from vedette_schemas.envelope import pre_authentication_encoding, seal
from vedette_schemas.round import (
    HEADER_TYPE,
    OFFER_TYPE,
    UPLOAD_TYPE,
    CheckIn,
    Plan,
    Roster,
    Upload,
    checkin_id,
    group_of,
    hash_parts,
    header_of,
    offer_statement,
    plan_bytes,
    read_plan,
    transcript_hash,
    upload_id,
)

TASK = "network"
DIMENSION = 12
FEATURE_SCHEMA = "f" * 64
NETWORK = "e" * 64
OPTIMISER = FedAvg()
NOW = EPOCH
SITE = the_site()
TOPICS = SITE.topics
GATEWAYS = ("gw-00", "gw-01", "gw-02")


def settings(devices: int, **changes: Any) -> RoundSettings:
    """Settings without masks for a fleet of that size: half of it makes a quorum, two devices are a group."""
    values: dict[str, Any] = {
        "checkin_s": 60.0,
        "collect_s": 300.0,
        "unmask_s": 120.0,
        "interval_s": 120.0,
        "rounds_max": 0,
        "attempts_max": 3,
        "quorum": max(2, devices // 2),
        "checkins_max": devices,
        "group_size": 4,
        "survivors_min": 2,
        "masked": False,
        "clip_norm": 2.0,
        "weight_max": 8,
        "examples_reference": 64,
        "local_epochs": 1,
        "batch_size": 32,
        "learning_rate": 0.2,
        "examples_min": 64,
    }
    return RoundSettings(**(values | changes))


def masked_settings(groups: int = 1, **changes: Any) -> RoundSettings:
    """Settings with masks: groups of up to eight that open their own sums, of which six must vote."""
    values: dict[str, Any] = {"groups": groups, "group_size": 8, "survivors_min": 5, "quorum": 5, "masked": True}
    return settings(8 * groups, **(values | changes))


def plan_of(rounds: RoundSettings, version: int = 1, **changes: Any) -> Plan:
    """The plan that comes of them."""
    return rounds.plan(
        TASK, version=version, feature_schema=FEATURE_SCHEMA, network=NETWORK, dimension=DIMENSION, **changes
    )


def model_of(plan: Plan, version: int = 0, number: int = 0) -> GlobalModel:
    """A global model of zeros."""
    packed, _ = plan_bytes(plan)
    weights = np.zeros(DIMENSION, np.float32)
    return GlobalModel(version, "a" * 64, packed, number, weights, OPTIMISER.initial_state(DIMENSION))


def beacon(epoch: int) -> bytes:
    """The value of an epoch."""
    return hash_parts(b"beacon of the tests", str(epoch).encode())


def devices_in(sizes: Sequence[int], epoch: int = 1) -> tuple[tuple[str, ...], ...]:
    """Ids of devices that the beacon puts into each group, as many as asked for."""
    found: list[list[str]] = [[] for _ in sizes]
    names = (f"gw-{i:02}" for i in range(10_000))
    while any(len(group) < size for group, size in zip(found, sizes, strict=True)):
        name = next(names)
        gid = group_of(beacon(epoch), TASK, name, len(sizes))
        if len(found[gid]) < sizes[gid]:
            found[gid].append(name)
    return tuple(tuple(group) for group in found)


# -- who --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def keys_of(device: str, number: int = 1) -> KeyPair:
    """The key pair of a device's n-th check-in."""
    return key_pair(hashlib.sha256(f"{device} {number}".encode()).digest())


def checkin(device: str, number: int = 1, **changes: Any) -> CheckIn:
    """A device's n-th check-in."""
    node, epk = SITE.node(device), keys_of(device, number).public
    role = changes.get("role", "unmask" if device.startswith("helper") else "contribute")
    statement = offer_statement(TASK, device, number, epk, role)
    values: dict[str, Any] = {
        "id": checkin_id(TASK, epk),
        "task": TASK,
        "device": device,
        "seq": number,
        "certificate": node.certificate,
        "intermediate": SITE.intermediate,
        "epk": epk,
        "offer": node.signer.sign(pre_authentication_encoding(OFFER_TYPE, device, statement)),
        "role": role,
        "examples_bucket": 8,
        "feature_schema": FEATURE_SCHEMA,
        "model_version": 0,
    }
    return CheckIn(**(values | changes))


# -- uploads ----------------------------------------------------------------------------------------------------------


def delta_of(device: str) -> Float32:
    """What a device learnt: shorter than the clip norm of the settings."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(device.encode()).digest(), "big"))
    return np.asarray(0.5 + rng.normal(scale=0.1, size=DIMENSION), np.float32) / np.float32(2.0)


def plain_vector(
    roster: Roster,
    device: str,
    plan: Plan,
    delta: Float32 | None = None,
    *,
    loss_before: float = 2.0,
    loss_after: float = 1.0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Ring:
    """A device's vector before masks."""
    vector, _ = make_vector(
        plan,
        roster,
        device,
        delta_of(device) if delta is None else delta,
        loss_before=loss_before,
        loss_after=loss_after,
        ranges=dict(ranges or {}),
        rng=np.random.default_rng(int.from_bytes(hash_parts(transcript_hash(roster), device.encode())[:8], "big")),
    )
    return vector


def upload_of(roster: Roster, device: str, **fields: Any) -> Upload:
    """An upload of these fields with the header that belongs to it."""
    values: dict[str, Any] = {
        "id": upload_id(TASK, roster.round, roster.attempt, device),
        "task": TASK,
        "round": roster.round,
        "attempt": roster.attempt,
        "gid": roster.gid,
        "device": device,
        "transcript": transcript_hash(roster),
        "header": bytes(64),
    }
    body = Upload(**(values | fields))
    statement = codec.pack(header_of(body))
    signature = SITE.node(device).signer.sign(pre_authentication_encoding(HEADER_TYPE, device, statement))
    return body if "header" in fields else body.model_copy(update={"header": signature})


def upload(roster: Roster, device: str, plan: Plan | None = None, **changes: Any) -> Upload:
    """A device's plain upload for its group; what belongs to the vector goes there, the rest replaces fields."""
    plan = plan or plan_of(settings(4, quorum=2))
    inner = {k: changes.pop(k) for k in ("delta", "loss_before", "loss_after", "ranges") if k in changes}
    if "vector" not in changes:
        member = device if roster.member(device) else roster.members[0].device
        changes["vector"] = plain_vector(roster, member, plan, **inner).tobytes()
    return upload_of(roster, device, **changes)


def sealed(body: Upload) -> bytes:
    """An upload as it travels."""
    return seal(body, UPLOAD_TYPE, body.device, SITE.node(body.device).signer)


# -- a machine --------------------------------------------------------------------------------------------------------


class Fresh:
    """Entropy that never says the same twice, also not after a restart, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, count: int) -> bytes:
        """So many bytes."""
        self.asked += 1
        return hashlib.shake_256(f"fresh {self.asked}".encode()).digest(count)


class Stage:
    """A round machine with its disk, and a clock to push it along.

    Args:
        rounds: settings; by default two devices make a quorum, without masks.
        persisted: what is on the disk already.
        has_root: whether the shell says that it has a root set.
        entropy: for the noise.
        beacons: values of the epochs.
    """

    def __init__(
        self,
        rounds: RoundSettings | None = None,
        persisted: Mapping[str, bytes] | None = None,
        *,
        has_root: bool = False,
        entropy: Entropy | None = None,
        beacons: Callable[[int], bytes] = beacon,
    ) -> None:
        self.rounds = rounds or settings(4, quorum=2)
        self.plan = plan_of(self.rounds)
        self.has_root, self.entropy, self.beacons = has_root, entropy or Fresh(), beacons
        self.disk = dict(persisted or {})
        self.now = NOW
        self.effects: list[Effect] = []
        self.machine: RoundMachine
        self.restart()

    def parts(self) -> RoundParts:
        """What the machine is made with."""
        return RoundParts(
            topics=TOPICS,
            aggregator=AGGREGATOR,
            signer=SITE.node(AGGREGATOR).signer,
            settings=self.rounds,
            plan=self.plan,
            optimiser=OPTIMISER,
            defence=Defence.configured(self.rounds.robust_rule, has_root=self.has_root),
            has_root=self.has_root,
            beacon=self.beacons,
            seed=bytes(32),
            entropy=self.entropy,
        )

    def restart(self) -> list[Effect]:
        """Make the machine anew from its disk."""
        self.machine, effects = RoundMachine.restore(dict(self.disk), self.parts(), model_of(self.plan))
        self.carry_out(effects)
        return effects

    @property
    def running(self) -> Plan:
        """The plan that the current round runs under."""
        return read_plan(self.machine._book.record.plan)

    def handle(self, event: Any, after_s: float = 0.0) -> list[Effect]:
        """Let time pass, give the machine an event, and write what it persists."""
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        self.carry_out(effects)
        return effects

    def to_deadline(self) -> list[Effect]:
        """Let time pass until the state ends by itself."""
        deadline = self.machine._book.record.deadline
        assert deadline is not None, "it waits for a message"
        self.now = max(self.now, deadline)
        return self.handle(Tick())

    def to_checkin(self) -> None:
        """A round is open."""
        if self.machine.state is not RoundState.CHECKIN:
            self.to_deadline()

    def check_in(self, devices: Iterable[str]) -> list[Effect]:
        """These check in, each with its next key."""
        effects: list[Effect] = []
        for device in devices:
            known = self.machine._book.devices.get(device)
            effects += self.handle(CheckInReceived(checkin(device, known.checkin.seq + 1 if known else 1)))
        return effects

    def to_collect(self, devices: Sequence[str] = GATEWAYS) -> list[Effect]:
        """These devices are in groups."""
        self.to_checkin()
        self.check_in(devices)
        return self.to_deadline()

    def roster_of(self, device: str) -> Roster:
        """The newest roster that a device is in."""
        return next(r for r in rosters(self.effects) if r.member(device) is not None)

    def upload(self, device: str, **changes: Any) -> list[Effect]:
        """A device uploads without masks."""
        body = upload(self.roster_of(device), device, self.running, **changes)
        return self.handle(UploadReceived(body, sealed(body)))

    def to_releasing(self, devices: Sequence[str] = GATEWAYS) -> PublishCandidate:
        """Everybody has uploaded, without masks."""
        self.to_collect(devices)
        before = len(self.effects)
        for device in devices:
            self.upload(device)
        return one(self.effects[before:], PublishCandidate)

    def released(self, candidate: PublishCandidate) -> Released:
        """The shell's answer."""
        version = candidate.candidate.parent_version + 1
        return Released(version, "b" * 64, hashlib.sha256(candidate.plan).hexdigest())

    def release(self, devices: Sequence[str] = GATEWAYS) -> PublishCandidate:
        """A whole round without masks."""
        candidate = self.to_releasing(devices)
        self.handle(self.released(candidate))
        return candidate

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the shell does."""
        self.effects += effects
        write(self.disk, effects)


def stage_in(state: RoundState) -> Stage:
    """A machine in a state without masks, at a moment when no deadline is due; in UNMASK it waits for its root set."""
    unmasking = state is RoundState.UNMASK
    stage = Stage(settings(4, quorum=2, rounds_max=1 if state is RoundState.FINISHED else 0), has_root=unmasking)
    if state in (RoundState.INTERVAL, RoundState.FINISHED):
        stage.release()
    elif state is RoundState.CHECKIN:
        stage.to_checkin()
    elif state is RoundState.RELEASING:
        stage.to_releasing()
    else:
        stage.to_collect()
        for device in GATEWAYS if unmasking else ():
            stage.upload(device)
    assert stage.machine.state is state
    return stage


def root_answer(stage: Stage, delta: Float32 | None) -> RootTrained:
    """The shell's answer for the current attempt."""
    return RootTrained(stage.machine.round, stage.machine.attempt, delta)
