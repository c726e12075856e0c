"""The aggregator's side of one group's unmasking: ask for votes, show them, gather shares, open, subtract the masks.

Pure, and can be made again from what was persisted: the roster, the uploads of the survivor set, and the votes and
shares as they came. It sees what the committee releases and nothing else: of every survivor its own mask, and of pairs
only those with members who are not in the set.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vedette_core.crypto.masks import MaskExpander
from vedette_core.learning.round_vector import ring_of
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import shares_needed, votes_needed
from vedette_core.secagg.reconstruction import Claim, Reconstruction
from vedette_core.secagg.secrets import others
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Plan, Roster, Upload, UploadHeader, header_of, transcript_hash
from vedette_schemas.secagg import Close, Opening, Shares, Survivor, Vote, shares_id, survivors_hash, vote_id

Ring = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class UploadEvidence:
    """What is kept of an accepted upload beside its vector: enough to close and open its group."""

    header: UploadHeader
    signature: bytes
    boxes: tuple[bytes, ...] = field(repr=False)
    commitments: tuple[bytes, ...]

    @classmethod
    def of(cls, upload: Upload) -> Self:
        """The evidence in an upload."""
        return cls(header_of(upload), upload.header, upload.boxes, upload.commitments)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What was opened: each survivor's own secret, and its pairs with dropped members."""

    own: Mapping[str, bytes] = field(repr=False)
    pairs: Mapping[tuple[str, str], bytes] = field(repr=False)


class Unmasking:
    """One group, from the survivor set on.

    Args:
        roster: the group's.
        plan: the roster's.
        uploads: evidence of every survivor, at least `survivors_min`: the set is theirs, and does not change.
    """

    def __init__(self, roster: Roster, plan: Plan, uploads: Mapping[str, UploadEvidence]) -> None:
        self.roster = roster
        self._plan = plan
        self._uploads = {device: uploads[device] for device in sorted(uploads)}
        self._transcript = transcript_hash(roster)
        self._committee = committee_of(roster, plan)
        self._numbers = {m.device: i for i, m in enumerate(self._committee, start=1)}
        self.survivors = survivors_hash(self._transcript, tuple(u.header for u in self._uploads.values()))
        self._dropped = tuple(m.device for m in roster.members if m.device not in self._uploads)
        self._votes: dict[str, bytes] = {}
        self._complaints: dict[str, set[str]] = {device: set() for device in self._uploads}
        self._shares: dict[str, Shares] = {}
        self._secrets: Secrets | None = None
        self._reconstruction = self._begin()

    # -- what is asked ------------------------------------------------------------------------------------------------

    @property
    def committee(self) -> tuple[str, ...]:
        """Ids of the members."""
        return tuple(self._numbers)

    @property
    def certified(self) -> bool:
        """Whether enough members have voted."""
        return len(self._votes) >= votes_needed(self._plan.groups, len(self._committee))

    @property
    def opened(self) -> bool:
        """Whether every secret that is needed is there."""
        return self._secrets is not None

    @property
    def voted(self) -> tuple[str, ...]:
        """Members whose vote is there."""
        return tuple(self._votes)

    @property
    def answered(self) -> tuple[str, ...]:
        """Members whose shares are there."""
        return tuple(self._shares)

    @property
    def silent(self) -> tuple[str, ...]:
        """Members that are waited for: for their vote, or for their shares."""
        heard = self._shares if self.certified else self._votes
        return tuple(m for m in self._numbers if m not in heard)

    def has_voted(self, member: str) -> bool:
        """Whether a member voted: whoever did not cannot answer an opening, and is asked for its vote even later."""
        return member in self._votes

    @property
    def blamed(self) -> tuple[str, ...]:
        """Survivors that provably dealt wrong shares: more members complain than can be corrupt, or no polynomial that
        opens to what the device committed to has enough members' shares on it."""
        loud = {device for device, members in self._complaints.items() if len(members) > self._plan.groups.corrupt_max}
        return tuple(sorted(loud | self._reconstruction.dealt_wrong))

    @property
    def liars(self) -> tuple[str, ...]:
        """Members whose shares contradict most devices: a suspicion (`vedette_core.secagg.reconstruction`)."""
        return tuple(m for m, number in self._numbers.items() if number in self._reconstruction.liars)

    @property
    def hopeless(self) -> bool:
        """Whether no further share can open it: everybody has answered, or a survivor is to blame."""
        return not self.opened and (bool(self.blamed) or len(self._shares) == len(self._committee))

    def close_for(self, member: str) -> Close:
        """What a member is asked to vote on, with the boxes that are for it."""
        place = self._numbers[member] - 1
        survivors = tuple(
            Survivor(
                device=device,
                vector=u.header.vector,
                boxes=u.header.boxes,
                commitments=u.header.commitments,
                header=u.signature,
                box=u.boxes[place],
            )
            for device, u in self._uploads.items()
        )
        return Close(**self._names(), survivors=survivors)

    def opening(self) -> Opening:
        """What a member is shown to release its shares."""
        return Opening(**self._names(), survivors=self.survivors, votes=tuple(self._votes.values()))

    # -- what is answered ---------------------------------------------------------------------------------------------

    def take_vote(self, vote: Vote, sealed: bytes) -> bool:
        """Take a vote whose signature holds.

        Returns:
            Whether it is new.

        Raises:
            PeerError: it is not for this set, or not of a member.
        """
        self._check(vote, vote_id)
        if vote.member in self._votes:
            return False
        self._votes[vote.member] = sealed
        for device in self._uploads.keys() & set(vote.complaints):
            self._complaints[device].add(vote.member)
        return True

    def take_shares(self, shares: Shares) -> bool:
        """Take a member's shares whose signature holds.

        Returns:
            Whether they are new.

        Raises:
            PeerError: they are not for this set, not of a member, or not of the shape that was asked for.
        """
        self._check(shares, shares_id)
        for row in shares.shares:
            if row.device not in self._uploads or len(row.pairs) != len(self._dropped):
                raise PeerError(
                    f"{self._where}: shares of {shares.member}: found {len(row.pairs)} pairs of {row.device}, "
                    f"expected {len(self._dropped)} of a survivor",
                    reason="shares",
                )
        if shares.member in self._shares:
            return False
        self._shares[shares.member] = shares
        return True

    def try_open(self) -> bool:
        """Open every secret, if the shares that are there suffice; tells whether it is done."""
        if self._secrets is not None:
            return True
        needed = shares_needed(self._plan.groups, len(self._committee))
        if len(self._shares) < needed:
            return False
        self._reconstruction = self._begin()
        opened = self._reconstruction.open([self._claim(device) for device in self._uploads])
        if self._reconstruction.failed:
            return False
        pairs = {
            (device, peer): secret
            for device, secrets in opened.items()
            for peer, secret in zip(self._dropped, secrets[1:], strict=True)
        }
        self._secrets = Secrets({device: secrets[0] for device, secrets in opened.items()}, pairs)
        return True

    def unmask(self, total: Ring) -> None:
        """Subtract every mask that is left in the sum of the survivors' vectors, in place."""
        assert self._secrets is not None, "it is open"
        expander = MaskExpander(len(total), ring_of(self._plan))
        for secret in self._secrets.own.values():
            expander.subtract(total, secret, self._transcript)
        keys = {m.device: m.epk for m in self.roster.members}
        for (device, peer), secret in self._secrets.pairs.items():
            # What the survivor added is subtracted, and the other way round; the dropped one's half never came.
            (expander.subtract if keys[device] < keys[peer] else expander.add)(total, secret, self._transcript)

    # -- details ------------------------------------------------------------------------------------------------------

    def _begin(self) -> Reconstruction:
        groups = self._plan.groups
        return Reconstruction(self._transcript, shares_needed(groups, len(self._committee)), groups.corrupt_max)

    def _claim(self, device: str) -> Claim:
        peers = others(self.roster, device)
        indices = (0, *(1 + peers.index(peer) for peer in self._dropped))
        complaining = self._complaints[device]
        shares = {
            self._numbers[member]: row.own + b"".join(row.pairs)
            for member, given in self._shares.items()
            for row in given.shares
            if row.device == device and member not in complaining
        }
        commitments = self._uploads[device].commitments
        return Claim(device, indices, tuple(commitments[i] for i in indices), shares, len(complaining))

    def _check(self, body: Vote | Shares, name: Any) -> None:
        number, attempt, gid = self.roster.round, self.roster.attempt, self.roster.gid
        if body.member not in self._numbers:
            raise PeerError(f"{self._where}: found {body.member}, who is not in the committee", reason="member")
        expected = (name(self.roster.task, number, attempt, gid, body.member), self._transcript, self.survivors)
        if (body.id, body.transcript, body.survivors) != expected:
            raise PeerError(
                f"{self._where}: found {body.id} for another group or survivor set, expected this one's",
                reason="survivors",
            )

    def _names(self) -> dict[str, Any]:
        return {
            "task": self.roster.task,
            "round": self.roster.round,
            "attempt": self.roster.attempt,
            "gid": self.roster.gid,
            "transcript": self._transcript,
        }

    @property
    def _where(self) -> str:
        return f"round {self.roster.round}.{self.roster.attempt} group {self.roster.gid}"
