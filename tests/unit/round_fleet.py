"""A fleet with masks for the aggregator's tests: real keys, real committee members, and whatever they ever said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from round_effects import body_of, every, rosters, write
from round_parts import SITE, TASK, TOPICS, Stage, devices_in, keys_of, masked_settings, plain_vector, sealed, upload_of

from vedette_aggregator.round_events import PublishCandidate, SharesReceived, UploadReceived, VoteReceived
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_state import RoundState
from vedette_core.crypto.agreement import key_pair
from vedette_core.learning.layout import Float32
from vedette_core.learning.round_vector import Ring, ring_of
from vedette_core.machine import Connected, Effect, Event, Publish
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, Seated
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.participant import mask_update
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.round import Plan, Roster, Upload, plan_bytes, transcript_hash
from vedette_schemas.secagg import CLOSE_TYPE, SHARES_TYPE, VOTE_TYPE, Close, Opening, Shares, Vote, survivors_hash

Answer = VoteReceived | SharesReceived


def entropy_of(text: str) -> Callable[[int], bytes]:
    """A stream of bytes that is made from a name: a device that is asked twice must say the same."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")).bytes


def masked_upload(
    roster: Roster, device: str, plan: Plan, *, delta: Float32 | None = None, vector: Ring | None = None, **changes: Any
) -> Upload:
    """A device's masked upload for its group, the same whenever it is made; `vector` is masked instead of a delta's."""
    if vector is None and not changes:
        packed = None if delta is None else delta.tobytes()
        return _usual_upload(codec.pack(roster), device, plan_bytes(plan)[0], packed)
    return _masked(
        roster, device, plan, vector if vector is not None else plain_vector(roster, device, plan, delta), changes
    )


@lru_cache(maxsize=4096)
def _usual_upload(roster: bytes, device: str, plan: bytes, delta: bytes | None) -> Upload:
    found, rules = codec.unpack(Roster, roster), codec.unpack(Plan, plan)
    given = None if delta is None else np.frombuffer(delta, np.float32)
    return _masked(found, device, rules, plain_vector(found, device, rules, given), {})


def _masked(roster: Roster, device: str, plan: Plan, vector: Ring, changes: Mapping[str, Any]) -> Upload:
    entry = roster.member(device)
    assert entry is not None, "it is in the roster"
    entropy = entropy_of(f"{device} {transcript_hash(roster).hex()}")
    masked = mask_update(vector.copy(), roster, plan, device, keys_of(device, entry.seq), entropy)
    fields = {"vector": masked.vector, "boxes": masked.boxes, "commitments": masked.commitments}
    return upload_of(roster, device, **(fields | dict(changes)))


def garbage(plan: Plan, length: int) -> Ring:
    """A vector that encodes nothing."""
    bits = ring_of(plan)
    found: Ring = np.random.default_rng(5).integers(0, 2**bits, length, dtype=np.uint64).astype(f"<u{bits // 8}")
    return found


def wrong_boxes(roster: Roster, device: str, plan: Plan) -> tuple[bytes, ...]:
    """Boxes that nobody can open: sealed to other keys than the roster's."""
    strangers = {m.device: key_pair(hashlib.sha256(m.device.encode()).digest()).public for m in roster.members}
    members = [m.model_copy(update={"epk": strangers[m.device]}) if m.device != device else m for m in roster.members]
    other = roster.model_copy(update={"members": tuple(members)})
    return masked_upload(other, device, plan).boxes


class Fleet:
    """Devices with keys and seats in committees, and whatever they ever said.

    Args:
        stage: the aggregator.
        silent: ids of committee members that do not answer.
    """

    def __init__(self, stage: Stage, silent: Collection[str] = ()) -> None:
        self.stage = stage
        self.silent = set(silent)
        self.asked: dict[tuple[int, int, int], set[bytes]] = {}
        self._members: dict[str, CommitteeMember] = {}
        self._disks: dict[str, dict[str, bytes]] = {}
        self._seated: set[tuple[str, bytes]] = set()

    def collect(self, devices: Sequence[str], helpers: Sequence[str] = ()) -> None:
        """These check in, and groups are formed."""
        self.stage.to_checkin()
        self.stage.check_in([*helpers, *devices])
        self.stage.to_deadline()
        self.seat()

    def seat(self) -> None:
        """Every committee member has seen the newest rosters."""
        for roster in rosters(self.stage.effects):
            for entry in committee_of(roster, self.stage.running):
                place = (entry.device, transcript_hash(roster))
                if place not in self._seated:
                    self._tell(entry.device, Seated(roster, self.stage.running, keys_of(entry.device, entry.seq)))
                    self._seated.add(place)

    def upload(self, device: str, **changes: Any) -> list[Effect]:
        """A device gives its update."""
        return self.stage.handle(self.upload_event(device, **changes))

    def upload_event(self, device: str, **changes: Any) -> UploadReceived:
        """Its update as it arrives."""
        body = masked_upload(self.stage.roster_of(device), device, self.stage.running, **changes)
        return UploadReceived(body, sealed(body))

    def upload_all(self, devices: Iterable[str], **changes: Mapping[str, Any]) -> list[Effect]:
        """These give their updates; `changes` is by device, with underscores."""
        effects: list[Effect] = []
        for device in devices:
            effects += self.upload(device, **changes.get(device.replace("-", "_"), {}))
        return effects

    def answers(self, effects: Iterable[Effect]) -> list[Answer]:
        """What the committees say to what they are asked in these effects."""
        said: list[Answer] = []
        for publish in every(effects, Publish):
            if not publish.topic.endswith("/down/committee"):
                continue
            member = TOPICS.parse(publish.topic).device or ""
            question = question_of(publish)
            if isinstance(question, Close):
                place = (question.round, question.attempt, question.gid)
                statements = tuple(s.statement(question.transcript) for s in question.survivors)
                self.asked.setdefault(place, set()).add(survivors_hash(question.transcript, statements))
            if member not in self.silent:
                event = CloseReceived(question) if isinstance(question, Close) else OpeningReceived(question)
                said += [answer_of(p) for p in every(self._tell(member, event), Publish)]
        return said

    def open_sums(self, effects: Iterable[Effect]) -> list[Effect]:
        """Carry questions and answers to and fro until nothing more is said; returns all that the aggregator did."""
        done = list(effects)
        waiting = self.answers(done)
        while waiting:
            effects = self.stage.handle(waiting.pop(0))
            done += effects
            waiting += self.answers(effects)
        return done

    def run(
        self, devices: Sequence[str], without: Collection[str] = (), helpers: Sequence[str] = ()
    ) -> PublishCandidate:
        """A whole round up to its candidate; `without` drop out before they upload."""
        self.collect(devices, helpers)
        effects = self.upload_all(d for d in devices if d not in without)
        if without:
            effects += self.stage.to_deadline()
        (candidate,) = every(self.open_sums(effects), PublishCandidate)
        return candidate

    def _tell(self, member: str, event: Event) -> list[Effect]:
        disk = self._disks.setdefault(member, {})
        if member not in self._members:
            self._members[member] = CommitteeMember.restore(
                disk, topics=TOPICS, task=TASK, member=member, signer=SITE.node(member).signer, peers=SITE.ring()
            )
        effects = self._members[member].handle(event, self.stage.now)
        write(disk, effects)
        return effects


def fleet_of(groups: int = 1, sizes: int = 6, **changes: Any) -> tuple[Fleet, list[tuple[str, ...]]]:
    """A fleet with settings for so many groups, and devices for each of them."""
    return Fleet(Stage(masked_settings(groups, **changes))), list(devices_in([sizes] * groups))


def question_of(publish: Publish) -> Close | Opening:
    """What a committee member is asked."""
    envelope = codec.unpack(Envelope, publish.payload)
    if envelope.type == CLOSE_TYPE:
        return codec.unpack(Close, envelope.body)
    return codec.unpack(Opening, envelope.body)


def questions(effects: Iterable[Effect]) -> list[tuple[str, type[Close] | type[Opening]]]:
    """Who is asked for what."""
    asked = [e for e in every(effects, Publish) if e.topic.endswith("/down/committee")]
    return [(TOPICS.parse(e.topic).device or "", type(question_of(e))) for e in asked]


def answer_of(publish: Publish) -> Answer:
    """What a committee member says, as the intake hands it on."""
    body = body_of(publish)
    if codec.unpack(Envelope, publish.payload).type == VOTE_TYPE:
        return VoteReceived(codec.unpack(Vote, body), publish.payload)
    return SharesReceived(codec.unpack(Shares, body), publish.payload)


def resealed(event: Answer, **changes: Any) -> Answer:
    """An answer with other fields, signed again by the member that it then names."""
    body = event.body.model_copy(update=changes)
    signer = SITE.node(body.member).signer
    if isinstance(body, Vote):
        return VoteReceived(body, seal(body, VOTE_TYPE, body.member, signer))
    assert isinstance(body, Shares)
    return SharesReceived(body, seal(body, SHARES_TYPE, body.member, signer))


# -- a masked machine in any state ------------------------------------------------------------------------------------

SIX: tuple[str, ...] = devices_in([6])[0]
"""A group with masks."""


@dataclass(frozen=True)
class Snapshot:
    """A machine with masks at a moment when no deadline is due."""

    rounds: RoundSettings
    disk: Mapping[str, bytes]
    effects: tuple[Effect, ...]
    now: float


@dataclass(frozen=True)
class Recording:
    """What the devices say in the first round of `SIX`: the same in every run."""

    uploads: Mapping[str, UploadReceived]
    votes: Mapping[str, VoteReceived]
    shares: Mapping[str, SharesReceived]


@lru_cache(maxsize=1)
def recording() -> Recording:
    """The first round with masks, everybody there."""
    fleet = Fleet(Stage(masked_settings()))
    fleet.collect(SIX)
    uploads = {device: fleet.upload_event(device) for device in SIX}
    effects = [e for event in uploads.values() for e in fleet.stage.handle(event)]
    votes = [a for a in fleet.answers(effects) if isinstance(a, VoteReceived)]
    for vote in votes:
        fleet.stage.handle(vote)
    effects = fleet.stage.handle(Connected())  # who voted last has not been asked yet
    shares = [a for a in fleet.answers(effects) if isinstance(a, SharesReceived)]
    return Recording(uploads, {v.body.member: v for v in votes}, {s.body.member: s for s in shares})


@lru_cache(maxsize=16)
def _snapshot(state: RoundState) -> Snapshot:
    stage = Stage(masked_settings(rounds_max=1 if state is RoundState.FINISHED else 0))
    fleet = Fleet(stage)
    if state in (RoundState.INTERVAL, RoundState.FINISHED):
        stage.handle(stage.released(fleet.run(SIX)))
    elif state is RoundState.CHECKIN:
        stage.to_checkin()
    elif state is RoundState.RELEASING:
        fleet.run(SIX)
    else:
        fleet.collect(SIX)
        for device in SIX if state is RoundState.UNMASK else ():
            fleet.upload(device)
    assert stage.machine.state is state
    return Snapshot(stage.rounds, dict(stage.disk), tuple(stage.effects), stage.now)


def masked_stage_in(state: RoundState) -> Stage:
    """A machine with masks in a state, made again from what one had persisted there."""
    found = _snapshot(state)
    stage = Stage(found.rounds, found.disk)
    stage.effects, stage.now = list(found.effects), found.now
    return stage
