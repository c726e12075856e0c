"""A helper's side of a task's rounds: offer a fresh key, believe only rosters that hold, sit in their committees.

A helper sees no data and trains nothing: it belongs to somebody who is not the aggregator, and opens the sums of groups
whose own members need not stay awake. Pure; what it says in a committee is `vedette_core.secagg.committee`.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from vedette_core.crypto.agreement import KeyPair
from vedette_core.machine import Connected, Count, Effect, Event, Note, Persist, Subscribe, Tick
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, PlaceOver, Seated
from vedette_core.secagg.membership import PeerSource
from vedette_core.secagg.parameters import check_plan
from vedette_device.participant_events import (
    Answer,
    KeyFactory,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
)
from vedette_device.participant_messages import DeviceIdentity, ParticipantMessages
from vedette_device.participant_state import ParticipantRecord, Place, RoundKey, first_after, state_key
from vedette_device.roster_check import PHASE_RANK, check_against_plan
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import Phase, Roster, RoundOpen
from vedette_schemas.topics import FlStep, Topics

KINDS: Final = {
    Tick: "tick",
    Connected: "connected",
    RoundOpened: "round",
    RosterReceived: "roster",
    ReceiptReceived: "receipt",
    ReleaseVerified: "release",
    CloseReceived: "close",
    OpeningReceived: "opening",
}
"""Every event of the machine, with its label in the metrics."""


class HelperMachine:
    """One task of one helper.

    Args:
        topics: the site's topics.
        task: the task.
        identity: who helps; its feature schema is the plan's.
        new_key: makes fresh X25519 key pairs.
        peers: the site's anchors, to believe the certificates in a roster by.
    """

    def __init__(
        self, *, topics: Topics, task: str, identity: DeviceIdentity, new_key: KeyFactory, peers: PeerSource
    ) -> None:
        self.task = task
        self._topics, self._identity, self._new_key, self._peers = topics, identity, new_key, peers
        self._committee = CommitteeMember(
            topics=topics, task=task, member=identity.device, signer=identity.signer, peers=peers
        )
        self._record = ParticipantRecord()
        self._dirty = False
        self._open: RoundOpen | None = None
        self._release: ReleaseVerified | None = None
        self._rosters: dict[int, Roster] = {}
        self._refused_at: tuple[int, int, int] | None = None

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        *,
        topics: Topics,
        task: str,
        identity: DeviceIdentity,
        new_key: KeyFactory,
        peers: PeerSource,
    ) -> tuple[HelperMachine, list[Effect]]:
        """Go on from what was persisted; with nothing persisted, begin.

        Args:
            persisted: every key below ``participant/{task}/`` and ``committee/{task}/`` with its value.
            topics: see `HelperMachine`.
            task: see `HelperMachine`.
            identity: see `HelperMachine`.
            new_key: see `HelperMachine`.
            peers: see `HelperMachine`.

        Raises:
            ConfigError: the store holds something else than this machine's records.
        """
        machine = cls(topics=topics, task=task, identity=identity, new_key=new_key, peers=peers)
        machine._committee = CommitteeMember.restore(
            persisted, topics=topics, task=task, member=identity.device, signer=identity.signer, peers=peers
        )
        out: list[Effect] = []
        stored = persisted.get(state_key(task))
        if stored is not None:
            machine._record = ParticipantRecord.from_bytes(stored, state_key(task))
        key = machine._record.key
        if key is not None and key.unacknowledged:
            out.append(machine._say().publication(FlStep.CHECKIN, key.id, key.unacknowledged))
        return machine, out

    @property
    def seats(self) -> tuple[int, ...]:
        """Groups in whose committee it sits now."""
        return self._committee.seats

    def take_certificate(self, certificate: bytes, intermediate: bytes) -> None:
        """A newer certificate of the same key: shown from the next check-in on."""
        self._identity = replace(self._identity, certificate=certificate, intermediate=intermediate)

    def next_deadline(self) -> float | None:
        """A helper waits for messages only."""
        return None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of `KINDS`.
            now: epoch seconds, for certificates.
        """
        out: list[Effect] = []
        answer = Answer.ACCEPT
        match event:
            case Connected():
                out += [Subscribe(self._topics.round(self.task)), Subscribe(self._topics.groups(self.task))]
            case RoundOpened(body):
                answer = self._on_open(body, now, out)
            case RosterReceived(body):
                self._keep(body)
                answer = self._take_seat(body, now, out)
            case ReceiptReceived(body):
                self._on_receipt(event, out)
            case ReleaseVerified():
                answer = self._on_release(event, now, out)
            case CloseReceived() | OpeningReceived():
                said = self._committee.handle(event, now)
                self._give_up_key(out)
                out += said
        self._save(out)
        out.append(Count("machine_events", answer.value, self.task, KINDS[type(event)]))
        return out

    def _on_open(self, body: RoundOpen, now: float, out: list[Effect]) -> Answer:
        position = (body.round, body.attempt, PHASE_RANK[body.phase])
        if position < self._record.seen:
            return Answer.DISCARD
        if position == self._record.seen:
            self._refused_at = None  # said again: trying again is welcome
        else:
            self._put(replace(self._record, seen=position))
        self._open = body
        self._follow(now, out)
        return Answer.ACCEPT

    def _follow(self, now: float, out: list[Effect]) -> None:
        if self._open is None:
            return
        here, over = (self._open.round, self._open.attempt), self._open.phase in (Phase.DONE, Phase.FAILED)
        next_place = (here[0], here[1] + 1) if over else here
        if next_place > self._committee.floor:
            out += self._committee.handle(PlaceOver(next_place), now)
        self._rosters = {gid: r for gid, r in self._rosters.items() if (r.round, r.attempt) >= next_place}
        key = self._record.key
        if key is not None and (key.earliest < here or (over and key.earliest == here)):
            self._put(replace(self._record, key=None))
        elif key is not None and over and key.earliest > here:
            # It was made for the next attempt, and there is none: the next round is the first that can have it.
            self._put(replace(self._record, key=replace(key, earliest=first_after(here, self._open.phase))))
        if self._record.key is None:
            self._check_in(first_after(here, self._open.phase), now, out)
        for roster in list(self._rosters.values()):
            self._take_seat(roster, now, out)

    def _check_in(self, earliest: Place, now: float, out: list[Effect]) -> None:
        release = self._release
        if release is None or release.plan.groups.committee != "helpers" or self._refused_at == self._record.seen:
            return
        if self._identity.awaits_attestation:
            return
        pair = self._new_key()
        seq = max(self._record.seq + 1, int(now))
        message_id, sealed = self._say().checkin(pair, seq=seq, examples=1, model_version=release.version)
        self._put(replace(self._record, seq=seq, key=RoundKey(message_id, pair.private, pair.public, earliest, sealed)))
        self._save(out)
        out.append(self._say().publication(FlStep.CHECKIN, message_id, sealed))

    def _keep(self, roster: Roster) -> None:
        """Remember a roster that names this helper until its round's state is here: the broker may say it later.

        One a group, the newest: what the broker still retains of an attempt that is over is let fall.
        """
        place, pending = (roster.round, roster.attempt), self._rosters.get(roster.gid)
        if place < max(self._record.seen[:2], self._committee.floor):
            return
        if pending is not None and place < (pending.round, pending.attempt):
            return
        if any(m.device == self._identity.device for m in roster.committee):
            self._rosters[roster.gid] = roster

    def _forget(self, roster: Roster) -> None:
        if self._rosters.get(roster.gid) is roster:
            del self._rosters[roster.gid]

    def _take_seat(self, roster: Roster, now: float, out: list[Effect]) -> Answer:
        opened, release, key = self._open, self._release, self._record.key
        if opened is None or release is None or key is None:
            return Answer.DISCARD
        place = (roster.round, roster.attempt)
        if place != (opened.round, opened.attempt) or opened.phase not in (Phase.COLLECT, Phase.UNMASK):
            return Answer.DISCARD
        if place < key.earliest or not key.private:  # it is for a later attempt, or its shares have been released
            return Answer.DISCARD
        signed = (release.version, release.model_sha256, release.plan_sha256)
        if signed != (roster.model_version, roster.model, roster.plan) or roster.gid in self._committee.seats:
            return Answer.DISCARD
        own = [m for m in roster.committee if m.device == self._identity.device]
        if not own or place < self._committee.floor:
            return Answer.DISCARD
        try:
            if own[0].epk != key.public:
                raise PeerError(f"round {place[0]}.{place[1]}: found another key for this helper", reason="key")
            if roster.beacon != opened.beacon:
                raise PeerError(f"round {place[0]}.{place[1]}: found two beacons", reason="beacon")
            check_against_plan(roster, release.plan, release.anchor, self._peers.fork(), now)
        except (PeerError, RefusedError) as fault:
            self._forget(roster)
            out.append(Note("warning", f"{self.task}: {fault}"))
            return Answer.REJECT
        out += self._committee.handle(Seated(roster, release.plan, KeyPair(key.private, key.public)), now)
        self._forget(roster)  # the seat has it
        return Answer.ACCEPT

    def _give_up_key(self, out: list[Effect]) -> None:
        """Once shares are released under the key, the collection is over, and no seat is added: those that there are
        have copies, until their own shares leave. The key goes from this record before the shares leave."""
        key = self._record.key
        place = self._committee.released_with(key.public) if key is not None and key.private else None
        if place is not None:
            self._put(self._record.with_used(place, self._record.spent))
            self._save(out)

    def _on_receipt(self, event: ReceiptReceived, out: list[Effect]) -> None:
        for item in event.body.items:
            key = self._record.key
            if key is None or item.id != key.id:
                continue
            if item.outcome == "rejected":
                self._put(replace(self._record, key=None))
                self._refused_at = self._record.seen
                out.append(Note("warning", f"{self.task}: {item.id} rejected: {item.reason}"))
            elif key.unacknowledged:
                self._put(replace(self._record, key=replace(key, unacknowledged=b"")))

    def _on_release(self, event: ReleaseVerified, now: float, out: list[Effect]) -> Answer:
        try:
            check_plan(event.plan)
        except RefusedError as fault:
            self._release = None
            out.append(Note("error", f"{self.task}: release {event.version}: {fault}; this helper does not take part"))
            return Answer.REJECT
        self._release = event
        self._follow(now, out)
        return Answer.ACCEPT

    def _say(self) -> ParticipantMessages:
        schema = self._release.plan.feature_schema if self._release is not None else self._identity.feature_schema
        return ParticipantMessages(self._topics, self.task, replace(self._identity, feature_schema=schema))

    def _put(self, record: ParticipantRecord) -> None:
        self._record, self._dirty = record, True

    def _save(self, out: list[Effect]) -> None:
        if self._dirty:
            out.append(Persist(state_key(self.task), self._record.to_bytes()))
            self._dirty = False
