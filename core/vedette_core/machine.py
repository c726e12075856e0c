"""Events in, effects out: what every machine speaks with its shell.

A machine is a class with two methods and nothing else that its shell may call::

    def handle(self, event: Event, now: float) -> list[Effect]: ...
    def next_deadline(self) -> float | None: ...

`now` is seconds from a clock that the shell owns. The shell carries the effects out in the order in which they are
returned: a `Persist` is on disk before the `Publish` behind it leaves. A machine can be rebuilt from what it persisted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of everything that can happen to a machine."""


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """The deadline that the machine asked for has come (or time has passed)."""


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """A session with the broker has just begun: subscriptions and retained state may be gone."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of everything that a machine can ask of its shell."""


@dataclass(frozen=True, slots=True)
class Persist(Effect):
    """Write a value under a key, durably, before any later effect is carried out.

    Attributes:
        key: unique within the component, for example ``round/network/17``.
        value: the bytes; None deletes the key.
    """

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Publish(Effect):
    """Publish a message.

    Attributes:
        topic: topic name.
        payload: bytes.
        qos: 0 or 1.
        retain: whether the broker keeps it as the topic's last value.
        receipt_id: if set, the message is kept in the outbox and sent again until the application's receipt names
            this id.
        severity: what an outbox that runs full gives up last (0 least, 100 most).
    """

    topic: str
    payload: bytes = field(repr=False)
    qos: int = 1
    retain: bool = False
    receipt_id: str | None = None
    severity: int = 50


@dataclass(frozen=True, slots=True)
class Subscribe(Effect):
    """Subscribe to a topic filter."""

    topic_filter: str
    qos: int = 0


@dataclass(frozen=True, slots=True)
class Unsubscribe(Effect):
    """Leave a topic filter."""

    topic_filter: str


@dataclass(frozen=True, slots=True)
class Count(Effect):
    """Count something that happened, for the metrics.

    Attributes:
        metric: the metric's key in the component's metric table.
        outcome: a label value from a bounded set, for example ``accepted`` or ``discarded``.
        task: the task, where there is one.
        kind: what it happened to, for example an event's kind, where the metric has that label.
    """

    metric: str
    outcome: str
    task: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Note(Effect):
    """A line for the log.

    Attributes:
        level: ``debug info warning error``.
        text: what happened, with identity.
    """

    level: str
    text: str


E = TypeVar("E", bound=Event, contravariant=True)


class Machine(Protocol[E]):
    """What a shell can rely on."""

    def handle(self, event: E, now: float) -> Sequence[Effect]:
        """Take one event; return the effects in the order in which they must happen."""

    def next_deadline(self) -> float | None:
        """When to send a `Tick`, in the shell's seconds; None if nothing is waited for."""
