"""What happened, as lines that a person reads: event in → effects out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vedette_aggregator.round_events import (
    CheckInReceived,
    PublishCandidate,
    Released,
    ReleaseFailed,
    RootTrained,
    SharesReceived,
    TrainRoot,
    UploadReceived,
    VoteReceived,
)
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish, Subscribe, Unsubscribe
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.participant_events import (
    ExamplesAvailable,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import RoundOpen
from vedette_schemas.secagg import CLOSE_TYPE, Close, DeviceShares, Opening, Shares, Survivor, Vote
from vedette_schemas.telemetry import Receipt
from vedette_schemas.topics import FlStep, Topics


class Transcript:
    """Lines with their simulated time; the events that changed nothing are left out."""

    def __init__(self, topics: Topics, now: Callable[[], float]) -> None:
        self.lines: list[str] = []
        self._topics = topics
        self._now = now

    def line(self, text: str) -> None:
        """Add a line."""
        self.lines.append(f"{self._now():8.2f}  {text}")

    def handled(self, process: str, event: Event | str, effects: Sequence[Effect]) -> None:
        """Add an event with its effects."""
        shown = [text for effect in effects if (text := self.effect(effect))]
        if shown:
            self.line(f"{process:<10} ← {event if isinstance(event, str) else self.event(event)}")
            self.lines += [f"{'':21}→ {text}" for text in _together(shown)]

    def event(self, event: Event) -> str:
        """An event, in a few words."""
        match event:
            case CheckInReceived(body):
                return f"check-in of {body.device}"
            case UploadReceived(body):
                return f"upload of {body.device} for {body.round}.{body.attempt}"
            case VoteReceived(body):
                return f"vote of {body.member} for {_set(body.survivors)}" + _complaints(body)
            case SharesReceived(body):
                return f"shares of {body.member} of {_own_and_pairs(body.shares)}"
            case RootTrained(number, attempt):
                return f"trained on its own root set for {number}.{attempt}"
            case Released(version):
                return f"released {version}"
            case ReleaseFailed(reason):
                return f"not released: {reason}"
            case RoundOpened(body):
                return _round(body)
            case RosterReceived(body):
                return f"roster {body.round}.{body.attempt} of {len(body.members)}"
            case ReceiptReceived(body):
                return _receipt(body)
            case CloseReceived(body):
                return f"close {body.round}.{body.attempt} group {body.gid}: {_survivors(body.survivors)}"
            case OpeningReceived(body):
                votes = f"{len(body.votes)} votes for {_set(body.survivors)}"
                return f"opening {body.round}.{body.attempt} group {body.gid}: {votes}"
            case ExamplesAvailable(count):
                return f"{count} examples"
            case ReleaseVerified(version):
                return f"release {version}"
            case TrainingFinished(number, attempt):
                return f"trained for {number}.{attempt}"
            case TrainingFailed(number, attempt, reason):
                return f"did not train for {number}.{attempt}: {reason}"
        return type(event).__name__.lower()

    def effect(self, effect: Effect) -> str:
        """An effect, in a few words; empty for those that only count."""
        match effect:
            case Persist(key, value):
                return f"{'write' if value is not None else 'erase'} {key}"
            case Publish(topic, payload):
                return self._publish(topic, payload)
            case Subscribe(topic):
                return f"subscribe {self._short(topic)}"
            case Unsubscribe(topic):
                return f"leave {self._short(topic)}"
            case PublishCandidate(candidate):
                return f"CANDIDATE of {len(candidate.contributors)}"
            case Train(_, number, attempt):
                return f"TRAIN for {number}.{attempt}"
            case TrainRoot(_, number, attempt):
                return f"TRAIN on the root set for {number}.{attempt}"
            case Note(level, text) if level in ("warning", "error"):
                return f"note: {text}"
            case Count() | Note():
                return ""
        return repr(effect)

    def _publish(self, topic: str, payload: bytes) -> str:
        parsed = self._topics.parse(topic)
        if parsed.kind == "round":
            return f"say {_round(codec.unpack(RoundOpen, _body(payload)))}"
        if parsed.kind == "receipt":
            return f"tell {parsed.device} {_receipt(codec.unpack(Receipt, _body(payload)))}"
        if parsed.kind == "committee":
            return f"ask {parsed.device} {_asked(payload)}"
        if parsed.step is FlStep.VOTE:
            vote = codec.unpack(Vote, _body(payload))
            return f"say vote for {_set(vote.survivors)}{_complaints(vote)}"
        if parsed.step is FlStep.SHARES:
            return f"say shares of {_own_and_pairs(codec.unpack(Shares, _body(payload)).shares)}"
        return f"say {self._short(topic)}"

    def _short(self, topic: str) -> str:
        return topic.removeprefix(self._topics.root + "/")


_EACH = re.compile(r"(ask|write|erase) (\S*/)?(gw|helper)-(\d+)((?: .*)?)")


def _together(lines: Sequence[str]) -> list[str]:
    """Lines that say the same of one node after another, as one."""
    out: list[str] = []
    before: tuple[str, ...] = ()
    for line in lines:
        found = _EACH.fullmatch(line)
        what = (found[1], found[2] or "", found[3], found[5]) if found else ()
        if found and what == before:
            out[-1] = f"{out[-1].removesuffix(found[5])} {found[4]}{found[5]}"
        else:
            out.append(line)
        before = what
    return out


def _round(body: RoundOpen) -> str:
    return f"round {body.round}.{body.attempt} {body.phase.value}"


def _receipt(body: Receipt) -> str:
    items = [
        f"{item.outcome} {item.id.split('-')[0]}" + (f" ({item.reason})" if item.reason else "") for item in body.items
    ]
    return "receipt: " + ", ".join(items)


def _asked(payload: bytes) -> str:
    envelope = codec.unpack(Envelope, payload)
    if envelope.type == CLOSE_TYPE:
        return f"for a vote: {_survivors(codec.unpack(Close, envelope.body).survivors)}"
    opening = codec.unpack(Opening, envelope.body)
    return f"for shares: {len(opening.votes)} votes for {_set(opening.survivors)}"


def _set(survivors: bytes) -> str:
    """A survivor set's name: the first digits of what is voted for."""
    return f"set {survivors.hex()[:6]}"


def _survivors(survivors: Sequence[Survivor]) -> str:
    return f"{len(survivors)} survived, {' '.join(s.device.removeprefix('gw-') for s in survivors)}"


def _complaints(vote: Vote) -> str:
    return f", complains of {', '.join(vote.complaints)}" if vote.complaints else ""


def _own_and_pairs(rows: Sequence[DeviceShares]) -> str:
    pairs = sum(len(row.pairs) for row in rows)
    return f"{len(rows)} own masks and {pairs} pairs"


def _body(payload: bytes) -> bytes:
    return codec.unpack(Envelope, payload).body
