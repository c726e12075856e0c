"""A committee member: one vote a group and attempt, and shares once, for the set that enough members voted for.

Pure. Rules that hold whatever the aggregator, the network or a crash does: a vote is on disk before it leaves, and
there is never a second one for the same (task, round, attempt, group); shares are released only for the set that this
member voted for, against enough valid votes of distinct members; of a survivor that is the share of its own mask, of
its pairs only those with members who are not in the set, so that nobody's two secrets ever meet; the key is erased with
the release. Places (round, attempt) only go up.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vedette_core.crypto.agreement import KeyPair, open_box
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish
from vedette_core.secagg.membership import Peers, PeerSource, committee_of, learn_members
from vedette_core.secagg.parameters import votes_needed
from vedette_core.secagg.seat import Place, Seat, floor_bytes, read_floor
from vedette_core.secagg.secrets import box_context, box_key, others
from vedette_schemas import codec
from vedette_schemas.envelope import Signer, pre_authentication_encoding, seal, unseal
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import HEADER_TYPE, Member, Plan, Roster, box_digest, transcript_hash
from vedette_schemas.secagg import (
    SECRET_BYTES,
    SHARES_TYPE,
    VOTE_TYPE,
    Close,
    DeviceShares,
    Opening,
    Shares,
    Survivor,
    Vote,
    shares_id,
    survivors_hash,
    vote_id,
)
from vedette_schemas.topics import FlStep, Topics

SEVERITY: Final = 20
"""In the outbox: below every alert, as uploads."""


@dataclass(frozen=True, slots=True)
class Seated(Event):
    """This node is in the committee of a group whose roster it has checked, with its own key in it."""

    roster: Roster
    plan: Plan
    key: KeyPair


@dataclass(frozen=True, slots=True)
class CloseReceived(Event):
    """The aggregator, who signed this, asks for a vote."""

    body: Close


@dataclass(frozen=True, slots=True)
class OpeningReceived(Event):
    """The aggregator, who signed this, shows votes and asks for shares."""

    body: Opening


@dataclass(frozen=True, slots=True)
class PlaceOver(Event):
    """Attempts before this place are over: what is kept of them is erased, and nothing is said about them any more."""

    place: Place


class CommitteeMember:
    """One node's seats in the committees of one task.

    Args:
        topics: the site's topics.
        task: the task.
        member: own id.
        signer: own signing key.
        peers: the site's anchors, to believe certificates in rosters by.
    """

    def __init__(self, *, topics: Topics, task: str, member: str, signer: Signer, peers: PeerSource) -> None:
        self.task = task
        self._topics = topics
        self._member = member
        self._signer = signer
        self._peers = peers
        self._seats: dict[int, Seat] = {}
        self._floor: Place = (0, 0)
        self._left_over: list[int] = []

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        *,
        topics: Topics,
        task: str,
        member: str,
        signer: Signer,
        peers: PeerSource,
    ) -> CommitteeMember:
        """Go on from what was persisted below ``committee/{task}/``; with nothing persisted, begin.

        Raises:
            ConfigError: the store holds something else than this machine's records.
        """
        machine = cls(topics=topics, task=task, member=member, signer=signer, peers=peers)
        for key, data in persisted.items():
            if key == machine._floor_key:
                machine._floor = read_floor(data, key)
            elif key.startswith(machine._seat_prefix):
                seat = Seat.from_bytes(data, key)
                machine._seats[seat.roster.gid] = seat
        # A crash between the floor and the records behind it: what is over stays over, and goes with the next word.
        machine._left_over = [gid for gid, seat in machine._seats.items() if seat.place < machine._floor]
        for gid in machine._left_over:
            del machine._seats[gid]
        return machine

    @property
    def floor(self) -> Place:
        """Nothing is said about places before this one any more."""
        return self._floor

    @property
    def seats(self) -> tuple[int, ...]:
        """Groups in whose committee this node sits now."""
        return tuple(sorted(self._seats))

    def released_with(self, public: bytes) -> Place | None:
        """The attempt in which this node released its shares under this key of its own; None if it did not."""
        for seat in self._seats.values():
            own = {m.epk for m in committee_of(seat.roster, seat.plan) if m.device == self._member}
            if seat.shares and public in own:
                return seat.place
        return None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of this module's.
            now: epoch seconds, for certificates.
        """
        out: list[Effect] = [Persist(self._seat_key(gid), None) for gid in self._left_over]
        self._left_over = []
        kind = type(event).__name__
        try:
            match event:
                case Seated(roster, plan, key):
                    outcome = self._on_seated(roster, plan, key, out)
                case CloseReceived(body):
                    outcome = self._on_close(body, now, out)
                case OpeningReceived(body):
                    outcome = self._on_opening(body, now, out)
                case PlaceOver(place):
                    outcome = self._on_over(place, out)
                case _:
                    raise ValueError(f"a committee member takes no {kind}")
        except (PeerError, RefusedError) as fault:
            out.append(Note("warning", f"{self.task}: committee: {fault}"))
            outcome = "rejected"
        out.append(Count("committee_events", outcome, self.task, _KINDS[type(event)]))
        return out

    # -- seats --------------------------------------------------------------------------------------------------------

    def _on_seated(self, roster: Roster, plan: Plan, key: KeyPair, out: list[Effect]) -> str:
        place = (roster.round, roster.attempt)
        if place < self._floor:
            return "discarded"
        own = next((m for m in committee_of(roster, plan) if m.device == self._member), None)
        if roster.task != self.task or own is None or own.epk != key.public:
            raise PeerError(
                f"{_at(roster)}: found no seat for {self._member} in {self.task} with this key", reason="member"
            )
        known = self._seats.get(roster.gid)
        if known is not None and known.place == place:
            if transcript_hash(known.roster) != transcript_hash(roster):
                raise PeerError(f"{_at(roster)}: found a second roster; the first one counts", reason="roster")
            return "accepted"
        self._erase(place, out)
        self._put(Seat(roster, plan, key), out)
        return "accepted"

    def _on_over(self, place: Place, out: list[Effect]) -> str:
        if place <= self._floor:
            return "discarded"
        self._erase(place, out)
        return "accepted"

    def _erase(self, place: Place, out: list[Effect]) -> None:
        """Nothing is said about places before this one any more: first the floor, then the records."""
        if place > self._floor:
            self._floor = place
            out.append(Persist(self._floor_key, floor_bytes(place)))
        for gid, seat in sorted(self._seats.items()):
            if seat.place < place:
                del self._seats[gid]
                out.append(Persist(self._seat_key(gid), None))

    # -- vote ---------------------------------------------------------------------------------------------------------

    def _on_close(self, body: Close, now: float, out: list[Effect]) -> str:
        seat = self._find(body)
        if seat is None:
            return "discarded"
        statements = tuple(s.statement(body.transcript) for s in body.survivors)
        wanted = survivors_hash(body.transcript, statements)
        if seat.survivors:
            if wanted != seat.survivors:
                raise PeerError(f"{_at(seat.roster)}: found a second survivor set to vote for", reason="equivocation")
            out.append(self._publication(FlStep.VOTE, vote_id(*self._names(seat)), seat.vote))
            return "accepted"
        peers = self._peers.fork()
        listed = {s.device for s in body.survivors}
        # Only theirs: a certificate that ended with a device that dropped out must not cost the group.
        learn_members(seat.roster, peers, now, only=listed & {m.device for m in seat.roster.members})
        for survivor in body.survivors:
            self._check_survivor(survivor, seat, peers, body.transcript)
        if len(body.survivors) < seat.plan.groups.survivors_min:
            raise PeerError(
                f"{_at(seat.roster)}: found {len(body.survivors)} survivors, "
                f"expected {seat.plan.groups.survivors_min} or more",
                reason="survivors",
            )
        boxes = tuple((s.device, s.box) for s in body.survivors)
        complaints = tuple(
            device for device, box in boxes if self._shares_in(seat, device, box, body.transcript) is None
        )
        number, attempt = seat.place
        vote = Vote(
            id=vote_id(*self._names(seat)),
            task=self.task,
            round=number,
            attempt=attempt,
            gid=seat.roster.gid,
            member=self._member,
            transcript=body.transcript,
            survivors=wanted,
            complaints=complaints,
        )
        sealed = seal(vote, VOTE_TYPE, self._member, self._signer)
        self._put(replace(seat, survivors=wanted, boxes=boxes, vote=sealed), out)
        out.append(self._publication(FlStep.VOTE, vote.id, sealed))
        return "accepted"

    def _check_survivor(self, survivor: Survivor, seat: Seat, peers: Peers, transcript: bytes) -> None:
        who = f"{_at(seat.roster)}: survivor {survivor.device}"
        if seat.roster.member(survivor.device) is None:
            raise PeerError(f"{who}: found a device that is not in the roster", reason="member")
        committee = committee_of(seat.roster, seat.plan)
        if len(survivor.boxes) != len(committee):
            raise PeerError(f"{who}: found {len(survivor.boxes)} boxes, expected {len(committee)}", reason="boxes")
        statement = survivor.statement(transcript)
        encoded = pre_authentication_encoding(HEADER_TYPE, survivor.device, codec.pack(statement))
        peers.verify(survivor.device, survivor.header, encoded)
        if box_digest(survivor.box) != survivor.boxes[self._number(committee) - 1]:
            # The device signed another box: this one is the aggregator's doing, no reason to complain of the device.
            raise PeerError(f"{who}: found a box that it did not sign", reason="boxes")

    # -- shares -------------------------------------------------------------------------------------------------------

    def _on_opening(self, body: Opening, now: float, out: list[Effect]) -> str:
        seat = self._find(body)
        if seat is None or not seat.survivors:
            return "discarded"
        if body.survivors != seat.survivors:
            raise PeerError(
                f"{_at(seat.roster)}: found votes for another survivor set than this member's", reason="equivocation"
            )
        name = shares_id(*self._names(seat))
        if seat.shares:
            out.append(self._publication(FlStep.SHARES, name, seat.shares))
            return "accepted"
        self._check_votes(body, seat, now)
        number, attempt = seat.place
        shares = Shares(
            id=name,
            task=self.task,
            round=number,
            attempt=attempt,
            gid=seat.roster.gid,
            member=self._member,
            transcript=body.transcript,
            survivors=body.survivors,
            shares=self._release(seat),
        )
        sealed = seal(shares, SHARES_TYPE, self._member, self._signer)
        self._put(replace(seat, key=None, boxes=(), shares=sealed), out)
        out.append(self._publication(FlStep.SHARES, name, sealed))
        return "accepted"

    def _check_votes(self, body: Opening, seat: Seat, now: float) -> None:
        peers = self._peers.fork()
        committee = committee_of(seat.roster, seat.plan)
        listed = {m.device for m in committee}
        for name in listed:
            # Whoever's certificate has ended has no vote; the others' count.
            with suppress(PeerError):
                learn_members(seat.roster, peers, now, only={name})
        valid, fault = set[str](), ""
        for sealed in body.votes:
            try:
                vote, sender = unseal(Vote, sealed, VOTE_TYPE, peers)
                _check_vote(vote, sender, seat, listed)
            except PeerError as found:
                fault = f"; {found}"
            else:
                valid.add(sender)
        needed = votes_needed(seat.plan.groups, len(committee))
        if len(valid) < needed:
            raise PeerError(
                f"{_at(seat.roster)}: found {len(valid)} valid votes, expected {needed} or more{fault}", reason="votes"
            )

    def _release(self, seat: Seat) -> tuple[DeviceShares, ...]:
        alive, transcript = {device for device, _ in seat.boxes}, transcript_hash(seat.roster)
        rows = []
        for device, box in seat.boxes:
            shares = self._shares_in(seat, device, box, transcript)
            if shares is None:
                continue
            pairs = tuple(
                share for peer, share in zip(others(seat.roster, device), shares[1:], strict=True) if peer not in alive
            )
            rows.append(DeviceShares(device=device, own=shares[0], pairs=pairs))
        return tuple(rows)

    def _shares_in(self, seat: Seat, device: str, box: bytes, transcript: bytes) -> list[bytes] | None:
        """A survivor's shares for this member: of its own mask, then its pairs; None if the box does not hold them."""
        assert seat.key is not None, "the key is there until the shares are released"
        member = seat.roster.member(device)
        assert member is not None, "survivors are members"
        number = self._number(committee_of(seat.roster, seat.plan))
        try:
            key = box_key(seat.key, member.epk, transcript, sealing=False)
            plain = open_box(key, box, box_context(transcript, device, number))
        except PeerError:
            return None
        if len(plain) != SECRET_BYTES * len(seat.roster.members):
            return None
        return [plain[i : i + SECRET_BYTES] for i in range(0, len(plain), SECRET_BYTES)]

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _find(self, body: Close | Opening) -> Seat | None:
        seat = self._seats.get(body.gid)
        if seat is None or (body.round, body.attempt) != seat.place:
            return None
        transcript = transcript_hash(seat.roster)
        if body.transcript != transcript:
            raise PeerError(
                f"{_at(seat.roster)}: found transcript {body.transcript.hex()[:16]}, expected {transcript.hex()[:16]}",
                reason="transcript",
            )
        return seat

    def _number(self, committee: tuple[Member, ...]) -> int:
        return next(i for i, m in enumerate(committee, start=1) if m.device == self._member)

    def _names(self, seat: Seat) -> tuple[str, int, int, int, str]:
        return self.task, *seat.place, seat.roster.gid, self._member

    def _publication(self, step: FlStep, message_id: str, sealed: bytes) -> Publish:
        topic = self._topics.fl(self._member, self.task, step)
        return Publish(topic, sealed, receipt_id=message_id, severity=SEVERITY)

    def _put(self, seat: Seat, out: list[Effect]) -> None:
        self._seats[seat.roster.gid] = seat
        out.append(Persist(self._seat_key(seat.roster.gid), seat.to_bytes()))

    @property
    def _seat_prefix(self) -> str:
        return f"committee/{self.task}/seat/"

    def _seat_key(self, gid: int) -> str:
        return f"{self._seat_prefix}{gid}"

    @property
    def _floor_key(self) -> str:
        return f"committee/{self.task}/floor"


_KINDS: Final = {Seated: "seated", CloseReceived: "close", OpeningReceived: "opening", PlaceOver: "over"}


def _check_vote(vote: Vote, sender: str, seat: Seat, listed: set[str]) -> None:
    found = (vote.task, vote.round, vote.attempt, vote.gid, vote.transcript, vote.survivors, vote.member)
    roster = seat.roster
    expected = (
        roster.task,
        roster.round,
        roster.attempt,
        roster.gid,
        transcript_hash(roster),
        seat.survivors,
        sender,
    )
    if found != expected:
        raise PeerError(f"vote of {sender}: found one for another group or set", reason="votes")
    if sender not in listed:
        raise PeerError(f"vote of {sender}: found somebody who is not in the committee", reason="votes")


def _at(roster: Roster) -> str:
    return f"round {roster.round}.{roster.attempt} group {roster.gid}"
