"""What happened, as lines that a person reads: event in → effects out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vedette_aggregator.round_events import CheckInReceived, PublishCandidate, Released, ReleaseFailed, UploadReceived
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish, Subscribe, Unsubscribe
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
from vedette_schemas.telemetry import Receipt
from vedette_schemas.topics import Topics


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
            self.lines += [f"{'':21}→ {text}" for text in shown]

    def event(self, event: Event) -> str:
        """An event, in a few words."""
        match event:
            case CheckInReceived(body):
                return f"check-in of {body.device}"
            case UploadReceived(body):
                return f"upload of {body.device} for {body.round}.{body.attempt}"
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
        return f"say {self._short(topic)}"

    def _short(self, topic: str) -> str:
        return topic.removeprefix(self._topics.root + "/")


def _round(body: RoundOpen) -> str:
    return f"round {body.round}.{body.attempt} {body.phase.value}"


def _receipt(body: Receipt) -> str:
    items = [
        f"{item.outcome} {item.id.split('-')[0]}" + (f" ({item.reason})" if item.reason else "") for item in body.items
    ]
    return "receipt: " + ", ".join(items)


def _body(payload: bytes) -> bytes:
    return codec.unpack(Envelope, payload).body
