"""The conversation of a federated round: plan, check-in, roster, upload.

See `docs/protocol.md` §5. What a committee says is in `vedette_schemas.secagg`.
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
"""Parameters a model may have here: with two bytes each an upload of half of them fits one message of 256 KiB."""
VECTOR_BYTES_MAX: Final = 240 * 1024
"""Largest masked vector; beside the boxes of a large committee less fits a message of 256 KiB (`check_plan`)."""
GROUP_MEMBERS_MAX: Final = 64
GROUPS_MAX: Final = 512
COMMITTEE_MAX: Final = 64
TENSORS_MAX: Final = 64
SKETCH_BYTES_MAX: Final = 32
DIGEST_BYTES: Final = 16
"""Commitments and digests of boxes are cut to 128 bits: no second preimage is found, and 32 cost 512 bytes."""

OPEN_TYPE: Final = "round.open"
ROSTER_TYPE: Final = "round.roster"
CHECKIN_TYPE: Final = "round.checkin"
UPLOAD_TYPE: Final = "round.upload"
"""Envelope types of `RoundOpen`, `Roster`, `CheckIn` and `Upload`."""
OFFER_TYPE: Final = "round.offer"
HEADER_TYPE: Final = "round.header"
"""Types under which a check-in's offer and an upload's header are signed apart, to be shown to others."""

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Task = Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Digest16 = Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Signature = Annotated[bytes, Field(min_length=64, max_length=64)]
Certificate = Annotated[bytes, Field(min_length=1, max_length=2048)]
RoundNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Attempt = Annotated[int, Field(ge=1, le=16)]
Seconds = Annotated[float, Field(ge=0, le=4e10)]


class TrainingPlan(Message):
    """How a participant trains: absolute numbers only.

    Attributes:
        local_epochs: passes over the local data.
        batch_size: examples a step.
        learning_rate: of local training.
        prox_mu: FedProx pull towards the model received; 0 is none.
        examples_min: fewest examples with which a device takes part.
        staleness_max: releases that an update may be behind: a device whose training came too late for its round gives
            it, discounted, to a later one; 0 is never.
    """

    local_epochs: Annotated[int, Field(ge=1, le=100)]
    batch_size: Annotated[int, Field(ge=1, le=1024)]
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    prox_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    examples_min: Annotated[int, Field(ge=1)]
    staleness_max: Annotated[int, Field(ge=0, le=100)] = 0


class UpdatePlan(Message):
    """How an update is encoded.

    Attributes:
        clip_norm: largest L2 norm of a delta.
        bits: of the levels a coordinate.
        weight_max: largest weight of an update.
        examples_reference: examples that make weight 1.
        protection: ``masked`` (only a group's sum can be opened) or ``none`` (the aggregator sees every update).
        tensors: names whose activation ranges ride in the vector, sorted.
        statistics: whether norms, losses and activation ranges ride in the vector.
        noise_sigma: standard deviation of a device's own share of the noise, in levels of the weighted sum; 0 is none.
    """

    clip_norm: Annotated[float, Field(gt=0, le=1e6)]
    bits: Literal[4, 8, 16] = 8
    weight_max: Annotated[int, Field(ge=1, le=255)]
    examples_reference: Annotated[int, Field(ge=1)]
    protection: Literal["none", "masked"] = "masked"
    tensors: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=60)], ...], Field(max_length=TENSORS_MAX)
    ] = ()
    statistics: bool = True
    noise_sigma: Annotated[float, Field(ge=0, le=1e9)] = 0.0

    @model_validator(mode="after")
    def _sorted(self) -> UpdatePlan:
        if list(self.tensors) != sorted(set(self.tensors)):
            raise ValueError("tensors are not sorted and unique")
        return self


class GroupPlan(Message):
    """Absolute sizes of a round: never shares of what the aggregator says is there.

    Attributes:
        group_size: members that a group should have (m).
        members_max: most members that a roster may have; fixes the ring.
        groups: number of groups that a device's hash is taken modulo (G); the same through an epoch.
        survivors_min: fewest uploads of a group that are aggregated (U_min).
        quorum: fewest uploads over all groups that make a round.
        checkins_max: most devices that are selected.
        epoch_rounds: rounds for which a beacon, and with it the assignment to groups, stays.
        committee: who opens a group's sum: its own members (``inline``), helper services (``helpers``), nobody (without
            masking).
        committee_size: most committee members listed (L); 0 without masking.
        votes_min: votes that open a group (q); 0 without masking.
        threshold: shares that open a secret (t); 0 without masking.
        corrupt_max: corrupt members tolerated (c).
    """

    group_size: Annotated[int, Field(ge=1, le=GROUP_MEMBERS_MAX)]
    members_max: Annotated[int, Field(ge=1, le=GROUP_MEMBERS_MAX)]
    groups: Annotated[int, Field(ge=1, le=GROUPS_MAX)] = 1
    survivors_min: Annotated[int, Field(ge=1, le=GROUP_MEMBERS_MAX)]
    quorum: Annotated[int, Field(ge=1)]
    checkins_max: Annotated[int, Field(ge=1, le=GROUPS_MAX * GROUP_MEMBERS_MAX)]
    epoch_rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    committee: Literal["none", "inline", "helpers"] = "inline"
    committee_size: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    votes_min: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    threshold: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0
    corrupt_max: Annotated[int, Field(ge=0, le=COMMITTEE_MAX)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> GroupPlan:
        if self.group_size > self.members_max:
            raise ValueError(f"group_size {self.group_size} exceeds members_max {self.members_max}")
        if self.survivors_min > self.group_size:
            raise ValueError(f"survivors_min {self.survivors_min} exceeds group_size {self.group_size}")
        if self.quorum > self.checkins_max:
            raise ValueError(f"quorum {self.quorum} exceeds checkins_max {self.checkins_max}")
        return self


class PrivacyPlan(Message):
    """What a participant is promised about the content of its updates; zeros promise nothing.

    Attributes:
        noise_multiplier: z: the noise's standard deviation over the largest that one update can do; 0 is no noise.
        delta: δ of the guarantee.
        epsilon_max: ε that a device spends at most in a period; rounds beyond are refused.
        participations_max: attempts that a device contributes to in a period at most (k_max); 0 is without end.
        period_rounds: rounds of a period; a device counts by itself.
        scope: ``total``: the sum of all groups is noised once; ``group``: each group's, before a rule compares them.
    """

    noise_multiplier: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    epsilon_max: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    participations_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    period_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    scope: Literal["total", "group"] = "total"


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
    privacy: PrivacyPlan = PrivacyPlan()

    @property
    def masked(self) -> bool:
        """Whether only sums of groups can be opened."""
        return self.update.protection == "masked"


class Phase(StrEnum):
    """Where a round is."""

    CHECKIN = "checkin"
    COLLECT = "collect"
    UNMASK = "unmask"
    DONE = "done"
    FAILED = "failed"


class RoundOpen(Message):
    """Retained state of a task's round, signed by the aggregator.

    Attributes:
        model: sha256 of the weights file that the round starts from.
        model_version: its release version; 0 is the initial model.
        plan: sha256 of the plan.
        phase: check-in, collect, unmask, done or failed.
        checkin_until_s: epoch seconds; later check-ins count for the next round.
        deadline_s: epoch seconds; later uploads are rejected. 0 while checking in.
        groups: number of groups, as in the plan, once formed.
        beacon: revealed value of the round's epoch, which assigns devices to groups (`group_of`); empty before.
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
        offer: signature over `offer_statement`: what a roster shows to the others, who do not believe the aggregator.
        role: ``contribute``, or ``unmask`` for a helper that only sits in committees.
        examples_bucket: floor(log2) of the examples that it has.
        feature_schema: digest of its feature schema.
        cohort: what kind of device it is, in the operator's words; empty if it does not say.
        sketch: coarse summary of its recent behaviour, for a diverse selection; empty if it does not say.
        attestation: attestation result, where policy asks for one.
    """

    id: Annotated[str, Field(min_length=1, max_length=100)]
    task: Task
    device: Id
    seq: Annotated[int, Field(ge=1, le=2**53)] = 1
    certificate: Certificate
    intermediate: Certificate
    epk: Key32
    offer: Signature
    role: Literal["contribute", "unmask"] = "contribute"
    examples_bucket: Annotated[int, Field(ge=0, le=40)]
    feature_schema: Digest
    model_version: Annotated[int, Field(ge=0)]
    cohort: Annotated[str, Field(pattern=f"^({ID_PATTERN})?$")] = ""
    sketch: Annotated[bytes, Field(max_length=SKETCH_BYTES_MAX)] = b""
    attestation: Annotated[bytes, Field(max_length=4096)] = b""


class Member(Message):
    """Somebody in a roster, with the key that it checked in with and its own signature over it.

    Attributes:
        device: its id.
        epk: its key.
        seq: the check-in's.
        certificate: DER of its signing certificate, issued by an authority of the site.
        offer: the check-in's.
        weight: what its update counts, 1…`weight_max`; the same for everybody to see. 0 for a committee member.
    """

    device: Id
    epk: Key32
    seq: Annotated[int, Field(ge=1, le=2**53)]
    certificate: Certificate
    offer: Signature
    weight: Annotated[int, Field(ge=0, le=255)]


class Roster(Message):
    """One group of one attempt of a round (`GROUP` of the protocol).

    Attributes:
        beacon: revealed value of the epoch.
        members: sorted by device id; the index is the member's number.
        committee: helpers that open the group's sum, sorted by id; empty if the members do it, or nobody.
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
    committee: Annotated[tuple[Member, ...], Field(max_length=COMMITTEE_MAX)] = ()
    deadline_s: Seconds

    @model_validator(mode="after")
    def _sorted(self) -> Roster:
        for what, listed in (("members", self.members), ("committee", self.committee)):
            devices = [m.device for m in listed]
            if devices != sorted(set(devices)):
                raise ValueError(f"{what} are not sorted by unique device id")
        return self

    def member(self, device: str) -> Member | None:
        """A member by its id."""
        return next((m for m in self.members if m.device == device), None)


class UploadHeader(Message):
    """What a committee is shown of an upload; signed apart from it (`HEADER_TYPE`).

    Attributes:
        transcript: `transcript_hash` of the roster.
        device: whose it is.
        vector: SHA-256 of the masked vector.
        boxes: `box_digest` of each box, in the committee's order.
        commitments: `hash_parts` over the commitments.
    """

    transcript: Key32
    device: Id
    vector: Key32
    boxes: Annotated[tuple[Digest16, ...], Field(max_length=COMMITTEE_MAX)]
    commitments: Key32


class Upload(Message):
    """A participant's only message after its check-in.

    Attributes:
        id: unique a (task, round, attempt, device).
        transcript: `transcript_hash` of the roster: binds the upload to model, plan, beacon and members.
        vector: weighted levels and control slots as little-endian elements of the ring, masked if the plan says so.
        boxes: shares of the secrets, sealed to each committee member in its order; empty without masking.
        commitments: to the secrets: own mask's, then each other member's; empty without masking.
        header: signature over `header_of` this upload.
    """

    id: Annotated[str, Field(min_length=1, max_length=120)]
    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
    device: Id
    transcript: Key32
    vector: Annotated[bytes, Field(max_length=VECTOR_BYTES_MAX)]
    boxes: Annotated[tuple[Annotated[bytes, Field(max_length=8192)], ...], Field(max_length=COMMITTEE_MAX)] = ()
    commitments: Annotated[tuple[Digest16, ...], Field(max_length=GROUP_MEMBERS_MAX)] = ()
    header: Signature


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


def epoch_of(number: int, epoch_rounds: int) -> int:
    """The epoch of a round, from 1: rounds of one epoch share a beacon."""
    return (number - 1) // epoch_rounds + 1


def offer_statement(task: str, device: str, seq: int, epk: bytes, role: str) -> bytes:
    """What a check-in signs apart: this key is this device's, in this task and role."""
    return hash_parts(b"vedette-offer-1", task.encode(), device.encode(), str(seq).encode(), epk, role.encode())


def header_of(upload: Upload) -> UploadHeader:
    """The header that belongs to an upload."""
    return UploadHeader(
        transcript=upload.transcript,
        device=upload.device,
        vector=hashlib.sha256(upload.vector).digest(),
        boxes=tuple(box_digest(box) for box in upload.boxes),
        commitments=hash_parts(*upload.commitments),
    )


def box_digest(box: bytes) -> bytes:
    """Digest of a sealed box as a header lists it."""
    return hashlib.sha256(b"vedette-box-1" + box).digest()[:DIGEST_BYTES]


def roster_hash(roster: Roster) -> bytes:
    """SHA-256 over the number of members, and everybody's id, key and weight, each length-prefixed."""
    parts = [
        p for m in (*roster.members, *roster.committee) for p in (m.device.encode(), m.epk, str(m.weight).encode())
    ]
    # With the number of members in front, no committee can be read as members, whatever the ids and keys are.
    return hash_parts(b"roster", str(len(roster.members)).encode(), *parts)


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
