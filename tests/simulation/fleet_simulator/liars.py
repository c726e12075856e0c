"""Nodes that lie with real keys: corrupt devices and committee members, and an aggregator that asks two questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any, Final

from vedette_aggregator.round_events import UploadReceived, VoteReceived
from vedette_core.learning.local_training import TrainingResult
from vedette_core.machine import Event, Publish
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.committee import CloseReceived
from vedette_core.secagg.membership import committee_of
from vedette_device.participant_events import Train
from vedette_device.training import Contribution
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, Signer, seal
from vedette_schemas.round import COMMITTEE_MAX, ROSTER_TYPE, Plan, Roster, read_plan, transcript_hash
from vedette_schemas.secagg import (
    CLOSE_TYPE,
    OPENING_TYPE,
    SECRET_BYTES,
    SHARES_TYPE,
    VOTE_TYPE,
    Close,
    Opening,
    Shares,
    Vote,
    survivors_hash,
    vote_id,
)
from vedette_schemas.topics import FlStep

from .aggregator_process import AggregatorProcess
from .device_process import DeviceProcess
from .helper_process import HelperProcess
from .problem import TASK
from .site import AGGREGATOR, DEVICES_MAX, device_names

DEVICE_LIES: Final = ("garbage", "boxes", "commitments", "shares", "votes", "complaints")
HELPER_LIES: Final = ("shares", "votes", "complaints")
KEPT: Final = 200
"""Committee messages that a lying aggregator keeps for replay."""
LIE_EVERY_S: Final = 0.5
"""Mean time between two of its lies: each is answered, and if each answer led to the next there would be no end."""
GROUPS_LIED_TO: Final = 4
"""Newest groups that it asks about: some of an attempt that is over, too."""
SECOND_ROSTER_SHARE: Final = 0.15


class Liar:
    """What lying nodes have in common.

    Attributes:
        lies: which ones it tells.
        lying: whether it does now.
        told: how many it told, by kind.
    """

    name: str
    random: Random
    site: Any
    lies: frozenset[str] = frozenset()
    lying = True

    def tell_lies(self, lies: Iterable[str]) -> None:
        """Tell these lies from now on."""
        self.lies = frozenset(lies)
        self.told: defaultdict[str, int] = defaultdict(int)
        self._forged: dict[str, bytes] = {}
        self._voted: set[bytes] = set()

    def lies_about(self, what: str) -> bool:
        """Whether it lies about this now; counts it."""
        found = self.lying and what in self.lies
        if found:
            self.told[what] += 1
        return found

    def forged(self, publish: Publish) -> Publish:
        """What it says in place of what its machine says: the same lie every time."""
        assert publish.receipt_id is not None
        kind = publish.receipt_id.split("-")[0]
        if publish.receipt_id not in self._forged:
            payload = publish.payload
            if kind == "sh" and self.lies_about("shares"):
                payload = self._wrong_shares(codec.unpack(Shares, _body(payload)))
            elif kind == "vo" and self.lies_about("complaints"):
                payload = self._complaints(codec.unpack(Vote, _body(payload)))
            self._forged[publish.receipt_id] = payload
        return replace(publish, payload=self._forged[publish.receipt_id])

    def double_vote(self, event: Event, topic: str) -> list[Publish]:
        """A vote for whatever set it is asked to vote for."""
        if not isinstance(event, CloseReceived) or not self.lies_about("votes"):
            return []
        close = event.body
        wanted = survivors_hash(close.transcript, tuple(s.statement(close.transcript) for s in close.survivors))
        if wanted in self._voted:
            return []
        self._voted.add(wanted)
        vote = Vote(
            id=vote_id(close.task, close.round, close.attempt, close.gid, self.name),
            task=close.task,
            round=close.round,
            attempt=close.attempt,
            gid=close.gid,
            member=self.name,
            transcript=close.transcript,
            survivors=wanted,
        )
        return [Publish(topic, seal(vote, VOTE_TYPE, self.name, self._signer))]

    def _wrong_shares(self, body: Shares) -> bytes:
        rows = tuple(
            row.model_copy(
                update={
                    "own": self.random.randbytes(SECRET_BYTES),
                    "pairs": tuple(self.random.randbytes(SECRET_BYTES) for _ in row.pairs),
                }
            )
            for row in body.shares
        )
        return seal(body.model_copy(update={"shares": rows}), SHARES_TYPE, self.name, self._signer)

    def _complaints(self, vote: Vote) -> bytes:
        everybody = tuple(device_names(DEVICES_MAX))
        return seal(vote.model_copy(update={"complaints": everybody}), VOTE_TYPE, self.name, self._signer)

    @property
    def _signer(self) -> Signer:
        return self.site.node(self.name).signer  # type: ignore[no-any-return]


class LyingDevice(Liar, DeviceProcess):
    """A corrupt device, which is a corrupt committee member, too."""

    def contribution(self, effect: Train, result: TrainingResult) -> Contribution:
        made = super().contribution(effect, result)
        boxes = list(made.boxes)
        if self.lies_about("garbage"):
            self.observer.spoilt.add((self.name, effect.round, effect.attempt))
            made = replace(made, vector=self.random.randbytes(len(made.vector)))
        if boxes and self.lies_about("boxes"):
            for place in self.random.sample(range(len(boxes)), self.random.randint(1, len(boxes))):
                boxes[place] = self.random.randbytes(len(boxes[place]))
            made = replace(made, boxes=tuple(boxes))
        if boxes and self.lies_about("commitments"):
            made = replace(made, commitments=tuple(self.random.randbytes(16) for _ in made.commitments))
        return made

    def send(self, publish: Publish) -> None:
        super().send(self.forged(publish))

    def handle(self, event: Event) -> None:
        super().handle(event)
        for vote in self.double_vote(event, self.topics.fl(self.name, TASK, FlStep.VOTE)):
            self.link.publish(vote.topic, vote.payload, 1, False)


class LyingHelper(Liar, HelperProcess):
    """A corrupt committee helper."""

    def send(self, publish: Publish) -> None:
        super().send(self.forged(publish))

    def handle(self, event: Event) -> None:
        super().handle(event)
        for vote in self.double_vote(event, self.topics.fl(self.name, TASK, FlStep.VOTE)):
            self.link.publish(vote.topic, vote.payload, 1, False)


class LyingAggregator(AggregatorProcess):
    """An aggregator that keeps everything, asks committees about other survivor sets, and shows votes for others.

    Attributes:
        lying: whether it does now.
        told: lies told, by kind.
    """

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self.lying = True
        self.told: defaultdict[str, int] = defaultdict(int)
        self._chance = Random(f"lies of {more['seed'].hex()}")
        self._rosters: dict[bytes, tuple[Roster, Plan]] = {}
        self._kept: dict[bytes, dict[str, UploadEvidence]] = defaultdict(dict)
        self._votes: dict[bytes, dict[bytes, dict[str, bytes]]] = defaultdict(lambda: defaultdict(dict))
        self._sets: dict[bytes, Unmasking] = {}
        self._said: list[tuple[str, bytes]] = []
        self._next_lie_at = 0.0

    def handle(self, event: Event) -> None:
        if isinstance(event, UploadReceived):  # also what comes too late: that is the point
            self._kept[event.body.transcript][event.body.device] = UploadEvidence.of(event.body)
        if isinstance(event, VoteReceived):
            self._votes[event.body.transcript][event.body.survivors][event.body.member] = event.sealed
        super().handle(event)
        if self.lying and self._rosters and self.scheduler.now >= self._next_lie_at:
            self._next_lie_at = self.scheduler.now + self._chance.expovariate(1 / LIE_EVERY_S)
            transcript = self._chance.choice(list(self._rosters)[-GROUPS_LIED_TO:])
            self._chance.choice((self._ask_for_another_set, self._show_votes, self._replay))(transcript)

    def send(self, publish: Publish) -> None:
        parsed = self.topics.parse(publish.topic)
        if parsed.kind == "committee":
            self._said.append((publish.topic, publish.payload))
            del self._said[:-KEPT]
            if self.lying and self._chance.random() < 0.5:
                self._ask_something_else(parsed.device or "", codec.unpack(Envelope, publish.payload))
                return
        if parsed.kind == "group":
            roster = self._keep(codec.unpack(Roster, _body(publish.payload)))
            if self.lying and self._chance.random() < SECOND_ROSTER_SHARE:
                self._second_roster(roster)
        super().send(publish)

    def _keep(self, roster: Roster) -> Roster:
        self._rosters[transcript_hash(roster)] = (roster, read_plan(self.machine._book.record.plan))
        return roster

    def _second_roster(self, roster: Roster) -> None:
        """The same group without one of its members, for whoever sees it first."""
        left_out = self._chance.choice(roster.members)
        members = tuple(m for m in roster.members if m is not left_out)
        other = self._keep(roster.model_copy(update={"members": members}))
        self.told["second roster"] += 1
        sealed = seal(other, ROSTER_TYPE, AGGREGATOR, self.site.node(AGGREGATOR).signer)
        super().send(Publish(self.topics.group(TASK, roster.gid), sealed, retain=True))

    def _ask_something_else(self, member: str, envelope: Envelope) -> None:
        """Half of a committee is asked about another set at once, before it can have voted for the right one."""
        if envelope.type == CLOSE_TYPE:
            asked = self._another_set(codec.unpack(Close, envelope.body).transcript)
            if asked is not None and member in asked.committee:
                self.told["another set"] += 1
                self._say(member, asked.close_for(member), CLOSE_TYPE)

    def _another_set(self, transcript: bytes) -> Unmasking | None:
        """Another subset of all uploads that ever came: mostly the same one, so that it gets votes enough."""
        kept, (roster, plan) = self._kept[transcript], self._rosters[transcript]
        if kept and (transcript not in self._sets or self._chance.random() < 0.2):
            least = max(1, len(kept) - 3)  # the least of them is too small to be opened
            chosen = self._chance.sample(sorted(kept), self._chance.randint(least, max(least, len(kept) - 1)))
            self._sets[transcript] = Unmasking(roster, plan, {device: kept[device] for device in chosen})
        return self._sets.get(transcript)

    def _ask_for_another_set(self, transcript: bytes) -> None:
        asked = self._another_set(transcript)
        if asked is None:
            return
        for member in asked.committee:
            if self._chance.random() < 0.6:
                self.told["another set"] += 1
                self._say(member, asked.close_for(member), CLOSE_TYPE)

    def _show_votes(self, transcript: bytes) -> None:
        """Votes for a set, stretched with votes for others, some of them several times."""
        sets, (roster, plan) = self._votes[transcript], self._rosters[transcript]
        if not sets:
            return
        wanted = self._chance.choice(list(sets))
        others = [sealed for by_member in sets.values() for sealed in by_member.values()]
        votes = [*sets[wanted].values(), *self._chance.sample(others, self._chance.randint(0, len(others)))]
        opening = Opening(
            task=TASK,
            round=roster.round,
            attempt=roster.attempt,
            gid=roster.gid,
            transcript=transcript,
            survivors=wanted,
            votes=tuple(votes[:COMMITTEE_MAX]),
        )
        for member in committee_of(roster, plan):
            if self._chance.random() < 0.7:
                self.told["mixed votes"] += 1
                self._say(member.device, opening, OPENING_TYPE)

    def _replay(self, _transcript: bytes) -> None:
        for topic, payload in self._chance.sample(self._said, min(len(self._said), 4)):
            self.told["replay"] += 1
            super().send(Publish(topic, payload, qos=0))

    def _say(self, member: str, body: Close | Opening, kind: str) -> None:
        sealed = seal(body, kind, AGGREGATOR, self.site.node(AGGREGATOR).signer)
        super().send(Publish(self.topics.committee(member), sealed, qos=0))


def _body(payload: bytes) -> bytes:
    return codec.unpack(Envelope, payload).body
