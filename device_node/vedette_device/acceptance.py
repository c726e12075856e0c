"""What a person accepted: the record that says so, and what follows from a change of the records.

The record is the truth: the command writes it (or deletes it), and the node makes its detector follow. Nothing is told
to the node, so that nothing is lost: it looks at the records every second, and at its start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from vedette_core.machine import Effect
from vedette_device.accepted_entities import ENTITIES_MAX, EntityProgress
from vedette_schemas.errors import PeerError

RECORDS: Final = "accept/"
PROGRESS: Final = "accept-progress/"
REASON_CHARACTERS_MAX: Final = 120
"""Of a person's words: they go into the alert's last message, whose summary has 200."""
LEVEL_MAX: Final = 1e9
RECORD_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A person said that what an entity does is fine.

    Attributes:
        id: random; another one when the entity is accepted again.
        task: the detector's.
        entity: its name.
        alert: id of the alert that it answers; empty where the entity was named.
        level: score of what was accepted over the largest benign one of its time, ≥ 1.
        reason: the person's words.
        uid: user id that the command ran as.
        at: epoch seconds.
    """

    id: str
    task: str
    entity: str
    alert: str
    level: float
    reason: str
    uid: int
    at: float

    @property
    def key(self) -> str:
        """Under which it is stored: one acceptance of an entity at a time."""
        return f"{RECORDS}{self.task}/{self.entity}"

    def to_bytes(self) -> bytes:
        """JSON of it."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Acceptance:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: it is another form.
        """
        try:
            if len(data) > RECORD_BYTES_MAX:
                raise ValueError(f"{len(data)} bytes")
            plain = json.loads(data)
            words = {name: plain.pop(name) for name in ("id", "task", "entity", "alert", "reason")}
            if not all(isinstance(word, str) for word in words.values()):
                raise TypeError("a word that is none")
            found = cls(**words, level=float(plain.pop("level")), uid=int(plain.pop("uid")), at=float(plain.pop("at")))
            if plain or not 1.0 <= found.level <= LEVEL_MAX or not math.isfinite(found.at):
                raise ValueError(f"level {found.level}, at {found.at}, {sorted(plain)}")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as fault:
            raise PeerError(f"acceptance: found {fault!r}, expected what `to_bytes` gives", reason="damaged") from fault
        return found


@dataclass(frozen=True, slots=True)
class LearnEntity(Effect):
    """Close the entity's alert, and learn it anew."""

    acceptance: Acceptance


@dataclass(frozen=True, slots=True)
class ForgetEntity(Effect):
    """Make the entity a newcomer again."""

    entity: str


def follow(
    wanted: Mapping[str, Acceptance], known: Mapping[str, str], unreadable: Collection[str] = ()
) -> list[LearnEntity | ForgetEntity]:
    """What makes a detector follow the records; what it follows already is left alone, so that it may be asked often.

    Args:
        wanted: records by entity; past `ENTITIES_MAX` the oldest count.
        known: id of the acceptance that the detector has, by entity.
        unreadable: entities whose record is damaged: they stay as they are, since nobody took it back.
    """
    oldest = sorted(wanted.values(), key=lambda record: record.at)[:ENTITIES_MAX]
    kept = {record.entity for record in oldest} | set(unreadable)
    forget = [ForgetEntity(entity) for entity in known if entity not in kept]
    return [*forget, *(LearnEntity(record) for record in oldest if known.get(record.entity) != record.id)]


def progress_key(task: str, entity: str) -> str:
    """Under which the node says how far it is."""
    return f"{PROGRESS}{task}/{entity}"


def progress_to_bytes(progress: EntityProgress) -> bytes:
    """JSON of how far an entity is."""
    return json.dumps(asdict(progress), separators=(",", ":")).encode()


def progress_from_bytes(data: bytes | None) -> EntityProgress | None:
    """Read `progress_to_bytes`'s form back; None for what is none: the node writes it again."""
    try:
        plain = json.loads(data or b"")
        found = EntityProgress(**plain)
        numbers = type(found.windows) is int and type(found.of) is int
    except (ValueError, TypeError, RecursionError):
        return None
    return found if numbers and found.stage in ("learning", "learnt", "lapsed") else None
