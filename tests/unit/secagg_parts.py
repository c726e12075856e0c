"""What the tests of secure aggregation are made of: plans, rosters, uploads, groups, committee members with disks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from secagg_site import NOW, SITE, TASK, Person, digest, entropy_of, helper, person, the_ring

from vedette_core.crypto.signing import KeyRing
from vedette_core.learning.round_vector import ring_of
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.committee import CommitteeMember, Seated
from vedette_core.secagg.membership import check_members, committee_of, learn_members
from vedette_core.secagg.parameters import check_plan, find_committee
from vedette_core.secagg.participant import mask_update
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, pre_authentication_encoding, seal, unseal
from vedette_schemas.round import (
    HEADER_TYPE,
    GroupPlan,
    Plan,
    Roster,
    TrainingPlan,
    UpdatePlan,
    Upload,
    UploadHeader,
    group_of,
    header_of,
    plan_bytes,
    transcript_hash,
    upload_id,
)
from vedette_schemas.secagg import (
    SHARES_TYPE,
    VOTE_TYPE,
    Close,
    Opening,
    Shares,
    Survivor,
    Vote,
    survivors_hash,
    vote_id,
)
from vedette_schemas.topics import Topics

MODEL: Final = "a" * 64


BEACON: Final = b"b" * 32


LENGTH: Final = 48


TOPICS: Final = Topics(SITE)


Ring = npt.NDArray[np.unsignedinteger[Any]]


def make_plan(
    *,
    members_max: int = 8,
    survivors_min: int = 5,
    committee: Literal["none", "inline", "helpers"] = "inline",
    size: int | None = None,
    votes: int | None = None,
    groups: int = 1,
    task: str = TASK,
    update: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """A plan; by default eight devices that open their own sum: 6 votes, 3 may be corrupt."""
    found = find_committee(members_max if size is None else size, votes_min=votes)
    numbers: dict[str, Any] = {
        "group_size": members_max,
        "members_max": members_max,
        "groups": groups,
        "survivors_min": survivors_min,
        "quorum": survivors_min,
        "checkins_max": groups * members_max,
        "committee": committee,
        "committee_size": found.size,
        "votes_min": found.votes_min,
        "threshold": found.threshold,
        "corrupt_max": found.corrupt_max,
    }
    return Plan(
        task=task,
        version=1,
        feature_schema="1" * 64,
        network="2" * 64,
        dimension=LENGTH,
        training=TrainingPlan(local_epochs=1, batch_size=8, learning_rate=0.1, examples_min=1),
        update=UpdatePlan(**({"clip_norm": 1.0, "weight_max": 4, "examples_reference": 64} | dict(update or {}))),
        groups=GroupPlan(**(numbers | changes)),
    )


def names_in_group(gid: int, groups: int, count: int, task: str = TASK, beacon: bytes = BEACON) -> list[str]:
    """Devices that the beacon puts into a group, sorted."""
    candidates = (f"gw-{i:03}" for i in range(100_000))
    found: list[str] = []
    while len(found) < count:
        name = next(candidates)
        if group_of(beacon, task, name, groups) == gid:
            found.append(name)
    return sorted(found)


def make_roster(plan: Plan, devices: Sequence[Person], helpers: Sequence[Person] = (), /, **changes: Any) -> Roster:
    """A roster of these people."""
    values: dict[str, Any] = {
        "task": plan.task,
        "round": 1,
        "attempt": 1,
        "gid": 0,
        "model": MODEL,
        "model_version": 0,
        "plan": plan_bytes(plan)[1],
        "beacon": BEACON,
        "members": tuple(p.member(task=plan.task) for p in sorted(devices, key=lambda p: p.name)),
        "committee": tuple(p.member(task=plan.task) for p in sorted(helpers, key=lambda p: p.name)),
        "deadline_s": NOW + 300,
    }
    return Roster(**(values | changes))


def plain_vector(device: str, plan: Plan, length: int = LENGTH) -> Ring:
    """What a device wants to hide."""
    bits = ring_of(plan)
    rng = np.random.default_rng(int.from_bytes(digest(f"vector of {device}"), "big"))
    return rng.integers(0, 2**bits, length, dtype=np.uint64).astype(f"<u{bits // 8}")


def make_upload(
    roster: Roster, plan: Plan, who: Person, *, salt: str = "", vector: Ring | None = None, **changes: Any
) -> Upload:
    """A device's upload; `changes` replace fields before its header is signed."""
    vector = plain_vector(who.name, plan) if vector is None else vector.copy()
    transcript = transcript_hash(roster)
    masked = mask_update(vector, roster, plan, who.name, who.pair, entropy_of(f"{who.name} {transcript.hex()} {salt}"))
    values: dict[str, Any] = {
        "id": upload_id(roster.task, roster.round, roster.attempt, who.name),
        "task": roster.task,
        "round": roster.round,
        "attempt": roster.attempt,
        "gid": roster.gid,
        "device": who.name,
        "transcript": transcript,
        "vector": masked.vector,
        "boxes": masked.boxes,
        "commitments": masked.commitments,
        "header": bytes(64),
    }
    upload = Upload(**(values | changes))
    return upload.model_copy(update={"header": sign_header(header_of(upload), who)})


def device_agrees(roster: Roster, plan: Plan) -> None:
    """What a participant and a helper check of a roster before they say anything; raises what they would."""
    check_plan(plan)
    check_members(roster, plan)
    learn_members(roster, the_ring().fork(), NOW)


def sign_header(header: UploadHeader, who: Person) -> bytes:
    """A device's signature over a header."""
    return who.signer.sign(pre_authentication_encoding(HEADER_TYPE, header.device, codec.pack(header)))


class Node:
    """A committee member with its disk."""

    def __init__(self, who: Person, task: str = TASK, ring: KeyRing | None = None) -> None:
        self.who, self.task, self.ring = who, task, the_ring() if ring is None else ring  # an empty ring is false
        self.disk: dict[str, bytes] = {}
        self.said: list[Publish] = []
        self.machine: CommitteeMember
        self.restart()

    def restart(self) -> None:
        """Make the machine anew from its disk."""
        self.machine = CommitteeMember.restore(
            dict(self.disk),
            topics=TOPICS,
            task=self.task,
            member=self.who.name,
            signer=self.who.signer,
            peers=self.ring,
        )

    def tell(self, event: Event, now: float = NOW) -> Answer:
        """Give it an event, write what it persists, and keep what it says."""
        effects = self.machine.handle(event, now)
        for effect in effects:
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value
            elif isinstance(effect, Publish):
                self.said.append(effect)
        return Answer(effects)

    def seat(self, roster: Roster, plan: Plan) -> Answer:
        """It has checked this roster."""
        return self.tell(Seated(roster, plan, self.who.pair))


@dataclass(frozen=True)
class Answer:
    """What a machine made of an event."""

    effects: Sequence[Effect]

    @property
    def outcome(self) -> str:
        """As it was counted."""
        return next(e.outcome for e in self.effects if isinstance(e, Count))

    @property
    def notes(self) -> str:
        """What it wrote to its log."""
        return "\n".join(e.text for e in self.effects if isinstance(e, Note))

    @property
    def messages(self) -> list[bytes]:
        """What it said."""
        return [e.payload for e in self.effects if isinstance(e, Publish)]

    @property
    def votes(self) -> list[Vote]:
        """Votes that it gave."""
        return [b for b in map(body_of, self.messages) if isinstance(b, Vote)]

    @property
    def shares(self) -> list[Shares]:
        """Shares that it gave."""
        return [b for b in map(body_of, self.messages) if isinstance(b, Shares)]


def body_of(sealed: bytes) -> Vote | Shares:
    """What a member said, believed."""
    envelope = codec.unpack(Envelope, sealed)
    cls: type[Vote | Shares] = Vote if envelope.type == VOTE_TYPE else Shares
    return codec.unpack(cls, envelope.body)


def checked_body(sealed: bytes, sender: str, ring: KeyRing) -> Vote | Shares:
    """What a member said, if its signature holds."""
    if codec.unpack(Envelope, sealed).type == VOTE_TYPE:
        return unseal(Vote, sealed, VOTE_TYPE, ring, sender=sender)[0]
    return unseal(Shares, sealed, SHARES_TYPE, ring, sender=sender)[0]


class Group:
    """One attempt of one group with everybody in it; devices have uploaded.

    Args:
        plan: the plan.
        devices: members.
        helpers: committee, unless the members are it.
        roster: fields that differ from `make_roster`.
        uploads: devices that upload; all by default.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        devices: Sequence[Person] | None = None,
        helpers: Sequence[Person] | None = None,
        uploads: Iterable[str] | None = None,
        key: int = 1,
        **roster: Any,
    ) -> None:
        self.plan = plan or make_plan()
        groups = self.plan.groups
        gid = roster.get("gid", 0)
        if devices is None:
            names = names_in_group(gid, groups.groups, groups.members_max, self.plan.task)
            devices = [person(name, key=key) for name in names]
        if helpers is None:
            count = groups.committee_size if groups.committee == "helpers" else 0
            helpers = [helper(f"helper-{i:02}", key) for i in range(count)]
        self.devices = {p.name: p for p in sorted(devices, key=lambda p: p.name)}
        self.helpers = {p.name: p for p in sorted(helpers, key=lambda p: p.name)}
        self.roster = make_roster(self.plan, devices, helpers, **roster)
        self.transcript = transcript_hash(self.roster)
        self.people = self.helpers or self.devices
        self.committee = [m.device for m in committee_of(self.roster, self.plan)]
        wanted = self.devices if uploads is None else set(uploads)
        self.uploads = {n: make_upload(self.roster, self.plan, p) for n, p in self.devices.items() if n in wanted}

    def nodes(self, only: Iterable[str] | None = None) -> dict[str, Node]:
        """The committee, seated."""
        nodes = {}
        for name in self.committee if only is None else only:
            nodes[name] = Node(self.people[name], self.plan.task)
            assert nodes[name].seat(self.roster, self.plan).outcome == "accepted"
        return nodes

    def number(self, member: str) -> int:
        """A member's number in the committee."""
        return self.committee.index(member) + 1

    def survivor(self, device: str, member: str, upload: Upload | None = None) -> Survivor:
        """What a member is shown of an upload."""
        upload = upload or self.uploads[device]
        header = header_of(upload)
        return Survivor(
            device=device,
            vector=header.vector,
            boxes=header.boxes,
            commitments=header.commitments,
            header=upload.header,
            box=upload.boxes[self.number(member) - 1],
        )

    def close(self, member: str, survivors: Iterable[str] | None = None, **changes: Any) -> Close:
        """What the aggregator asks a member to vote for; all uploads by default."""
        chosen = sorted(self.uploads if survivors is None else survivors)
        values = self.names() | {"survivors": tuple(self.survivor(d, member) for d in chosen)}
        return Close(**(values | changes))

    def survivors_hash(self, survivors: Iterable[str] | None = None) -> bytes:
        """What a vote for these is for."""
        chosen = sorted(self.uploads if survivors is None else survivors)
        return survivors_hash(self.transcript, tuple(header_of(self.uploads[d]) for d in chosen))

    def opening(self, votes: Iterable[bytes], survivors: Iterable[str] | None = None, **changes: Any) -> Opening:
        """The aggregator shows votes for these."""
        values = self.names() | {"survivors": self.survivors_hash(survivors), "votes": tuple(votes)}
        return Opening(**(values | changes))

    def vote(self, who: Person, survivors: Iterable[str] | None = None, **changes: Any) -> bytes:
        """A vote as this person would sign it; corrupt members sign anything."""
        values = self.names() | {"member": who.name, "survivors": self.survivors_hash(survivors)}
        names = (self.plan.task, self.roster.round, self.roster.attempt, self.roster.gid, who.name)
        vote = Vote(**({"id": vote_id(*names)} | values | changes))
        return seal(vote, VOTE_TYPE, who.name, who.signer)

    def names(self) -> dict[str, Any]:
        """Where it belongs."""
        return {
            "task": self.roster.task,
            "round": self.roster.round,
            "attempt": self.roster.attempt,
            "gid": self.roster.gid,
            "transcript": self.transcript,
        }

    def unmasking(self, survivors: Iterable[str] | None = None) -> Unmasking:
        """An honest aggregator's view."""
        chosen = self.uploads if survivors is None else survivors
        return Unmasking(self.roster, self.plan, {d: UploadEvidence.of(self.uploads[d]) for d in chosen})

    def masked_sum(self, survivors: Iterable[str] | None = None) -> Ring:
        """Sum of these uploads."""
        kind = np.dtype(f"<u{ring_of(self.plan) // 8}")
        chosen = list(self.uploads if survivors is None else survivors)
        total = np.zeros(len(np.frombuffer(self.uploads[chosen[0]].vector, kind)), kind)
        for device in chosen:
            total += np.frombuffer(self.uploads[device].vector, kind)
        return total

    def plain_sum(self, survivors: Iterable[str] | None = None) -> Ring:
        """What it must be without masks: computed with Python's integers."""
        bits = ring_of(self.plan)
        vectors = [plain_vector(d, self.plan).tolist() for d in (self.uploads if survivors is None else survivors)]
        return np.array([sum(column) % 2**bits for column in zip(*vectors, strict=True)], dtype=f"<u{bits // 8}")
