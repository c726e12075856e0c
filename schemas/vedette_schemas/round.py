"""The conversation of a federated round: plan, check-in, roster, upload.

The shapes are those of the masked protocol (`docs/protocol.md` §5): masking adds values to fields that are here, and
reshapes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN

DIMENSION_MAX: Final = 244 * 1024
"""Parameters a model may have here: one byte each, padded to a multiple of 1,024, an upload stays within 256 KiB."""
GROUP_MEMBERS_MAX: Final = 64
GROUPS_MAX: Final = 512
COMMITTEE_MAX: Final = 60

OPEN_TYPE: Final = "round.open"
ROSTER_TYPE: Final = "round.roster"
CHECKIN_TYPE: Final = "round.checkin"
UPLOAD_TYPE: Final = "round.upload"
"""Envelope types of `RoundOpen`, `Roster`, `CheckIn` and `Upload`."""

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Task = Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Commitment = Annotated[bytes, Field(min_length=1, max_length=64)]
RoundNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Attempt = Annotated[int, Field(ge=1, le=16)]
Seconds = Annotated[float, Field(ge=0, le=4e10)]


class TrainingPlan(Message):
    """How a participant trains: absolute numbers only."""

    local_epochs: Annotated[int, Field(ge=1, le=100)]
    batch_size: Annotated[int, Field(ge=1, le=1024)]
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    prox_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    examples_min: Annotated[int, Field(ge=1)]


class UpdatePlan(Message):
    """How an update is encoded.

    Attributes:
        clip_norm: largest L2 norm of a delta.
        bits: levels a coordinate.
        weight_max: largest weight; the weight is clamp(round(n / examples_reference), 1, weight_max).
        examples_reference: examples that make weight 1.
        protection: ``none`` (signed, in the clear to the aggregator) or ``masked`` (only sums can be opened).
    """

    clip_norm: Annotated[float, Field(gt=0, le=1e6)]
    bits: Literal[8] = 8
    weight_max: Annotated[int, Field(ge=1, le=255)]
    examples_reference: Annotated[int, Field(ge=1)]
    protection: Literal["none", "masked"] = "none"


class GroupPlan(Message):
    """Absolute sizes of a round.

    Attributes:
        group_size: members a group (m).
        survivors_min: fewest uploads of a group that are aggregated (U_min).
        quorum: fewest uploads over all groups that make a round.
        checkins_max: most devices that are selected.
        committee_size: listed committee members (L); 0 without masking.
        votes_min: votes that open a group (q); 0 without masking.
        threshold: shares that open a secret (t); 0 without masking.
        corrupt_max: corrupt members tolerated (c).
    """

    group_size: Annotated[int, Field(ge=1, le=GROUP_MEMBERS_MAX)]
    survivors_min: Annotated[int, Field(ge=1, le=GROUP_MEMBERS_MAX)]
    quorum: Annotated[int, Field(ge=1)]
    checkins_max: Annotated[int, Field(ge=1, le=GROUPS_MAX * GROUP_MEMBERS_MAX)]
    committee_size: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    votes_min: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    threshold: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    corrupt_max: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> GroupPlan:
        if self.survivors_min > self.group_size:
            raise ValueError(f"survivors_min {self.survivors_min} exceeds group_size {self.group_size}")
        if self.quorum > self.checkins_max:
            raise ValueError(f"quorum {self.quorum} exceeds checkins_max {self.checkins_max}")
        return self


class Plan(Message):
    """Everything that a round's participants must agree on; a signed, content-addressed artifact.

    Attributes:
        task: the task.
        version: counts up when the plan changes.
        feature_schema: digest of the feature schema that a participant must have.
        network: digest of the network's specification.
        dimension: parameters of the model.
    """

    task: Task
    version: Annotated[int, Field(ge=1)]
    feature_schema: Digest
    network: Digest
    dimension: Annotated[int, Field(ge=1, le=DIMENSION_MAX)]
    training: TrainingPlan
    update: UpdatePlan
    groups: GroupPlan


class Phase(StrEnum):
    """Where a round is."""

    CHECKIN = "checkin"
    COLLECT = "collect"
    DONE = "done"
    FAILED = "failed"


class RoundOpen(Message):
    """Retained state of a task's round, signed by the aggregator.

    Attributes:
        model: sha256 of the weights file that the round starts from.
        model_version: its release version; 0 is the initial model.
        plan: sha256 of the plan.
        phase: check-in, collect, done or failed.
        checkin_until_s: epoch seconds; later check-ins count for the next round.
        deadline_s: epoch seconds; later uploads are rejected. 0 while checking in.
        groups: number of groups, once formed.
        beacon: randomness that assigns devices to groups (`group_of`), once formed; empty before.
        next_round_s: epoch seconds before which the next round will not open, or 0.
    """

    task: Task
    round: RoundNumber
    attempt: Attempt
    model: Digest
    model_version: Annotated[int, Field(ge=0)]
    plan: Digest
    phase: Annotated[Phase, Field(strict=False)]
    checkin_until_s: Seconds
    deadline_s: Seconds
    groups: Annotated[int, Field(ge=0, le=GROUPS_MAX)]
    beacon: Annotated[bytes, Field(max_length=32)] = b""
    next_round_s: Seconds = 0.0


class CheckIn(Message):
    """A device offers to take part; any time, hours early is fine.

    Attributes:
        id: unique, for the receipt (`checkin_id`).
        seq: counts up with every fresh key of the device in this task, so that an old check-in never replaces a newer.
        certificate: DER of the device's signing certificate.
        intermediate: DER of the certificate that issued it.
        epk: fresh X25519 public key, used for one round only.
        examples_bucket: floor(log2) of the examples that it has.
        feature_schema: digest of its feature schema.
        attestation: attestation result, where policy asks for one.
    """

    id: Annotated[str, Field(min_length=1, max_length=100)]
    task: Task
    device: Id
    seq: Annotated[int, Field(ge=1, le=2**53)] = 1
    certificate: Annotated[bytes, Field(min_length=1, max_length=2048)]
    intermediate: Annotated[bytes, Field(min_length=1, max_length=2048)]
    epk: Key32
    examples_bucket: Annotated[int, Field(ge=0, le=40)]
    feature_schema: Digest
    model_version: Annotated[int, Field(ge=0)]
    attestation: Annotated[bytes, Field(max_length=4096)] = b""


class Member(Message):
    """A device in a roster, with the key that it checked in with."""

    device: Id
    epk: Key32


class Roster(Message):
    """One group of one attempt of a round (`GROUP` of the protocol).

    Attributes:
        beacon: randomness that assigned devices to groups.
        members: sorted by device id; the index is the member's number.
        committee: devices that may open the group's sum; empty without masking.
    """

    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
    model: Digest
    model_version: Annotated[int, Field(ge=0)]
    plan: Digest
    beacon: Key32
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=GROUP_MEMBERS_MAX)]
    committee: Annotated[tuple[Id, ...], Field(max_length=COMMITTEE_MAX)] = ()
    deadline_s: Seconds

    @model_validator(mode="after")
    def _sorted(self) -> Roster:
        devices = [m.device for m in self.members]
        if devices != sorted(set(devices)):
            raise ValueError("members are not sorted by unique device id")
        return self


class ActivationRange(Message):
    """Smallest and largest value that a tensor of the float model took on local data."""

    tensor: Annotated[str, Field(min_length=1, max_length=60)]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> ActivationRange:
        if self.low > self.high:
            raise ValueError(f"range of {self.tensor}: low {self.low} exceeds high {self.high}")
        return self


class EncryptedShare(Message):
    """A secret's share for one committee member, sealed to it (masking)."""

    member: Id
    box: Annotated[bytes, Field(max_length=8192)]


class Upload(Message):
    """A participant's only message after its check-in.

    Attributes:
        id: unique a (task, round, attempt, device).
        transcript: `transcript_hash` of the roster: binds the upload to model, plan, beacon and members.
        levels: encoded delta: one unsigned byte a coordinate, `bits` = 8 (masked: a ring element a coordinate).
        weight: what the vector counts; 0 in a masked upload, where it travels inside the vector.
        num_examples: local examples behind it; 0 in a masked upload.
        clipped: whether clipping bit.
        loss_before: mean local loss of the model received.
        loss_after: mean local loss after training.
        ranges: activation ranges, for the quantiser.
        shares: encrypted shares (masking).
        commitments: commitments to the secrets (masking).
    """

    id: Annotated[str, Field(min_length=1, max_length=120)]
    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
    device: Id
    transcript: Key32
    levels: Annotated[bytes, Field(max_length=DIMENSION_MAX)]
    weight: Annotated[int, Field(ge=0, le=255)]
    num_examples: Annotated[int, Field(ge=0, le=2**31 - 1)]
    clipped: bool
    loss_before: float
    loss_after: float
    ranges: Annotated[tuple[ActivationRange, ...], Field(max_length=64)]
    shares: Annotated[tuple[EncryptedShare, ...], Field(max_length=COMMITTEE_MAX)] = ()
    commitments: Annotated[tuple[Commitment, ...], Field(max_length=COMMITTEE_MAX * 2)] = ()


def group_of(beacon: bytes, task: str, device: str, groups: int) -> int:
    """The group that a device belongs to: HMAC-SHA256 of its id under the beacon, so that nobody assigns it by hand.

    A device computes its own group and refuses a roster of another.

    Raises:
        PeerError: there are no groups (yet).
    """
    if groups < 1:
        raise PeerError(f"round of {task}: found {groups} groups, expected at least 1", reason="schema")
    mac = hmac.new(beacon, hash_parts(b"group", task.encode(), device.encode()), hashlib.sha256).digest()
    return int.from_bytes(mac[:8], "big") % groups


def roster_hash(roster: Roster) -> bytes:
    """SHA-256 over the number of members, their ids and keys, and the committee, each length-prefixed."""
    parts = [p for m in roster.members for p in (m.device.encode(), m.epk)]
    # With the number of members in front, no committee can be read as members, whatever the ids and keys are.
    size = str(len(roster.members)).encode()
    return hash_parts(b"roster", size, *parts, b"committee", *(c.encode() for c in roster.committee))


def transcript_hash(roster: Roster) -> bytes:
    """``th`` of the protocol: binds everything that a round's messages belong to.

    SHA-256 over length-prefixed task, round, attempt, model sha256, plan hash, beacon, gid and roster hash.
    """
    return hash_parts(
        b"vedette-th-1",
        roster.task.encode(),
        str(roster.round).encode(),
        str(roster.attempt).encode(),
        bytes.fromhex(roster.model),
        bytes.fromhex(roster.plan),
        roster.beacon,
        str(roster.gid).encode(),
        roster_hash(roster),
    )


def hash_parts(*parts: bytes) -> bytes:
    """SHA-256 over parts, each prefixed with its length as 8 bytes big-endian: no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def upload_id(task: str, number: int, attempt: int, device: str) -> str:
    """The id of a device's upload: the same for every retry, so that it counts once."""
    return f"up-{task}-{number}-{attempt}-{device}"


def checkin_id(task: str, epk: bytes) -> str:
    """The id of a check-in: the same for every retry of one key."""
    return f"ci-{task}-{hash_parts(b'checkin', epk).hex()[:24]}"


def plan_bytes(plan: Plan) -> tuple[bytes, str]:
    """The plan as the artifact that travels, and its sha256 (hex)."""
    data = codec.pack(plan)
    return data, hashlib.sha256(data).hexdigest()


def read_plan(data: bytes) -> Plan:
    """A plan from its artifact.

    Raises:
        PeerError: not a plan.
    """
    return codec.unpack(Plan, data)
