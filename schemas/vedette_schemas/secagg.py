"""What an unmasking committee is asked and says: close, vote, open, shares (`docs/protocol.md` §5)."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from vedette_schemas.codec import Message
from vedette_schemas.round import (
    COMMITTEE_MAX,
    GROUP_MEMBERS_MAX,
    GROUPS_MAX,
    Attempt,
    Digest16,
    Id,
    Key32,
    RoundNumber,
    Signature,
    Task,
    UploadHeader,
    hash_parts,
)

CLOSE_TYPE: Final = "committee.close"
OPENING_TYPE: Final = "committee.opening"
VOTE_TYPE: Final = "committee.vote"
SHARES_TYPE: Final = "committee.shares"
"""Envelope types of `Close`, `Opening`, `Vote` and `Shares`."""
SECRET_BYTES: Final = 16
"""Of a mask's seed, and so of a share of one."""
BOX_BYTES_MAX: Final = SECRET_BYTES * GROUP_MEMBERS_MAX + 28

Gid = Annotated[int, Field(ge=0, lt=GROUPS_MAX)]
MessageId = Annotated[str, Field(min_length=1, max_length=140)]


class Survivor(Message):
    """A device of the survivor set, with what its upload says and the box that it sealed to the one who is asked.

    Attributes:
        device: its id.
        vector: as in `UploadHeader`.
        boxes: as in `UploadHeader`.
        commitments: as in `UploadHeader`.
        header: the device's signature over its header.
        box: shares for the member that this message goes to; its digest is in `boxes`.
    """

    device: Id
    vector: Key32
    boxes: Annotated[tuple[Digest16, ...], Field(max_length=COMMITTEE_MAX)]
    commitments: Key32
    header: Signature
    box: Annotated[bytes, Field(max_length=BOX_BYTES_MAX)]

    def statement(self, transcript: bytes) -> UploadHeader:
        """The header that `header` signs."""
        return UploadHeader(
            transcript=transcript,
            device=self.device,
            vector=self.vector,
            boxes=self.boxes,
            commitments=self.commitments,
        )


class Close(Message):
    """The aggregator asks a committee member for its vote (`CLOSE`).

    Attributes:
        transcript: of the group.
        survivors: the survivor set, sorted by device id.
    """

    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Gid
    transcript: Key32
    survivors: Annotated[tuple[Survivor, ...], Field(min_length=1, max_length=GROUP_MEMBERS_MAX)]

    @model_validator(mode="after")
    def _sorted(self) -> Close:
        devices = [s.device for s in self.survivors]
        if devices != sorted(set(devices)):
            raise ValueError("survivors are not sorted by unique device id")
        return self


class Vote(Message):
    """A member's one vote a (task, round, attempt, group), for one survivor set (`VOTE`).

    Attributes:
        id: unique a (task, round, attempt, group, member).
        survivors: `survivors_hash` of the set.
        complaints: survivors whose box for this member did not open, sorted.
    """

    id: MessageId
    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Gid
    member: Id
    transcript: Key32
    survivors: Key32
    complaints: Annotated[tuple[Id, ...], Field(max_length=GROUP_MEMBERS_MAX)] = ()


class Opening(Message):
    """The aggregator shows a member enough votes for one set and asks for the shares that open it.

    Attributes:
        survivors: `survivors_hash` that was voted for.
        votes: sealed `Vote` messages of distinct members.
    """

    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Gid
    transcript: Key32
    survivors: Key32
    votes: Annotated[
        tuple[Annotated[bytes, Field(max_length=8192)], ...], Field(min_length=1, max_length=COMMITTEE_MAX)
    ]


class DeviceShares(Message):
    """A member's shares of one survivor's secrets: of its own mask's, then of those with each dropped member, by id."""

    device: Id
    own: Digest16
    pairs: Annotated[tuple[Digest16, ...], Field(max_length=GROUP_MEMBERS_MAX)]


class Shares(Message):
    """What a member releases, once, for the set that it voted for (`SHARES`).

    Attributes:
        id: unique a (task, round, attempt, group, member).
        survivors: `survivors_hash` of the set.
        shares: a row a survivor whose box opened, sorted by device id.
    """

    id: MessageId
    task: Task
    round: RoundNumber
    attempt: Attempt
    gid: Gid
    member: Id
    transcript: Key32
    survivors: Key32
    shares: Annotated[tuple[DeviceShares, ...], Field(max_length=GROUP_MEMBERS_MAX)]

    @model_validator(mode="after")
    def _sorted(self) -> Shares:
        devices = [s.device for s in self.shares]
        if devices != sorted(set(devices)):
            raise ValueError("shares are not sorted by unique device id")
        return self


def survivors_hash(transcript: bytes, survivors: tuple[UploadHeader, ...]) -> bytes:
    """What a vote is for: SHA-256 over the group's transcript and every survivor's id and vector, by id."""
    parts = [p for s in sorted(survivors, key=lambda s: s.device) for p in (s.device.encode(), s.vector)]
    return hash_parts(b"vedette-survivors-1", transcript, *parts)


def vote_id(task: str, number: int, attempt: int, gid: int, member: str) -> str:
    """The id of a member's vote: the same for every retry."""
    return f"vo-{task}-{number}-{attempt}-{gid}-{member}"


def shares_id(task: str, number: int, attempt: int, gid: int, member: str) -> str:
    """The id of a member's shares: the same for every retry."""
    return f"sh-{task}-{number}-{attempt}-{gid}-{member}"
