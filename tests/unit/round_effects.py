"""What a round machine's effects say: what was written, counted, noted and published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from vedette_core.machine import Count, Effect, Note, Persist, Publish
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import Roster, RoundOpen
from vedette_schemas.telemetry import Receipt, ReceiptItem
from vedette_schemas.topics import Topics

TOPICS = Topics("plant-1")

E = TypeVar("E", bound=Effect)


def write(disk: dict[str, bytes], effects: Iterable[Effect]) -> None:
    """What effects leave on a disk."""
    for effect in effects:
        if isinstance(effect, Persist):
            if effect.value is None:
                disk.pop(effect.key, None)
            else:
                disk[effect.key] = effect.value


def every(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    """The effects of a kind."""
    return [e for e in effects if isinstance(e, kind)]


def one(effects: Iterable[Effect], kind: type[E]) -> E:
    """The one effect of a kind."""
    (found,) = every(effects, kind)
    return found


def notes(effects: Iterable[Effect]) -> str:
    """What was written to the log."""
    return "\n".join(e.text for e in every(effects, Note))


def persisted(effects: Sequence[Effect]) -> list[str]:
    """Keys that were written or erased, in order."""
    return [effect.key for effect in effects if isinstance(effect, Persist)]


def outcome(effects: Sequence[Effect]) -> str:
    """What the machine's table made of the event."""
    counts = [e for e in effects if isinstance(e, Count) and e.metric == "machine_events"]
    assert len(counts) == 1, "every event is counted once"
    return counts[0].outcome


def receipts(effects: Sequence[Effect]) -> list[ReceiptItem]:
    """Receipts that were published."""
    found = [e for e in effects if isinstance(e, Publish) and e.topic.endswith("/down/receipt")]
    return [item for e in found for item in codec.unpack(Receipt, body_of(e)).items]


def opened(effects: Sequence[Effect]) -> list[RoundOpen]:
    """Round states that were published."""
    found = [e for e in effects if isinstance(e, Publish) and TOPICS.parse(e.topic).kind == "round"]
    return [codec.unpack(RoundOpen, body_of(e)) for e in found]


def rosters(effects: Sequence[Effect]) -> list[Roster]:
    """Rosters of the newest attempt that were published."""
    found = [e for e in effects if isinstance(e, Publish) and TOPICS.parse(e.topic).kind == "group"]
    bodies = [codec.unpack(Roster, body_of(e)) for e in found]
    newest = max(((r.round, r.attempt) for r in bodies), default=(0, 0))
    return list({r.gid: r for r in bodies if (r.round, r.attempt) == newest}.values())


def body_of(publish: Publish) -> bytes:
    """The signed body of a sealed message."""
    return codec.unpack(Envelope, publish.payload).body
