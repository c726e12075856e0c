"""What a participant keeps on disk: where it is, its key for one round, and its upload until the receipt has come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack

from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, Plan

FORMAT: Final = 2
"""1 counted by the number of a budget period, which says nothing under a plan with periods of another length."""
SPENT_MAX: Final = 256
"""Stretches of rounds that are remembered; a plan's `participations_max` may be a million, which is too much to write
down with every step of a round."""

Place = tuple[int, int]
"""(round, attempt): places are ordered, and a device never goes back."""

Spent = tuple[tuple[int, int, int], ...]
"""(first round, last round, attempts contributed to in them), in order: absolute, so that no plan can reset it."""


def first_after(here: Place, phase: Phase) -> Place:
    """The first attempt whose roster can have a key that is made now."""
    if phase is Phase.CHECKIN:
        return here
    return (here[0], here[1] + 1) if phase in (Phase.COLLECT, Phase.UNMASK) else (here[0] + 1, 1)


def state_key(task: str) -> str:
    """Where a task's state is."""
    return f"participant/{task}/state"


def upload_key(task: str) -> str:
    """Where a task's last upload is, until its receipt has come."""
    return f"participant/{task}/upload"


@dataclass(frozen=True, slots=True)
class RoundKey:
    """A key that was offered in a check-in; for one roster only.

    Attributes:
        id: the check-in's id.
        private: X25519 private key, 32 bytes; empty once the upload is written down, or shares are released under it: a
            committee's seat has its own.
        public: X25519 public key, 32 bytes.
        earliest: the first attempt whose roster can have it.
        unacknowledged: the sealed check-in, until its receipt has come; then empty.
    """

    id: str
    private: bytes = field(repr=False)
    public: bytes
    earliest: Place
    unacknowledged: bytes = field(repr=False)

    def is_spent(self, used: Place, here: Place, phase: Phase) -> bool:
        """Whether it may have been in the roster of an attempt that is over; such a key is not offered again.

        Args:
            used: the last attempt that this device gave its upload to.
            here: the attempt that the aggregator is at.
            phase: where in it.
        """
        if phase is Phase.COLLECT:
            return self.earliest <= used < here
        return self.earliest < here or (phase is not Phase.CHECKIN and self.earliest == here)


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """A participant, as it is written down.

    Attributes:
        seen: (round, attempt, phase's rank) of the newest round state; older ones are replays.
        used: the last attempt for which an upload was made; there is never a second one.
        seq: of the last check-in.
        key: the key that is on offer or in use.
        spent: rounds that it contributed to, with every attempt counted.
    """

    seen: tuple[int, int, int] = (0, 0, 0)
    used: Place = (0, 0)
    seq: int = 0
    key: RoundKey | None = None
    spent: Spent = ()

    def is_exhausted(self, plan: Plan, number: int) -> bool:
        """Whether this device has contributed as often as the plan allows in a round's budget period."""
        allowed = plan.privacy.participations_max
        return 0 < allowed <= self.count(plan, number)

    def count(self, plan: Plan, number: int) -> int:
        """Attempts that this device contributed to in a round's budget period, as this plan cuts periods.

        A stretch that reaches into the period counts as a whole: more than was given, never less.
        """
        first = _period(number, plan) * plan.privacy.period_rounds + 1
        last = first + plan.privacy.period_rounds - 1
        return sum(count for since, until, count in self.spent if since <= last and first <= until)

    def spent_after(self, plan: Plan, number: int) -> Spent:
        """`spent`, once this device has contributed to an attempt of a round.

        Where that is more than `SPENT_MAX`, the oldest two neighbours within one of the plan's periods become one
        stretch, which costs nothing while the periods stay as they are; else the oldest two, of periods that are over.
        """
        kept = list(self.spent)
        if kept and kept[-1][:2] == (number, number):
            kept[-1] = (number, number, kept[-1][2] + 1)
        else:
            kept.append((number, number, 1))
        while len(kept) > SPENT_MAX:
            together = (i for i in range(len(kept) - 1) if _period(kept[i][0], plan) == _period(kept[i + 1][1], plan))
            at = next(together, 0)
            (first, until, one), (since, last, other) = kept[at : at + 2]
            kept[at : at + 2] = [(min(first, since), max(until, last), one + other)]
        return tuple(kept)

    def with_used(self, place: Place, spent: Spent) -> ParticipantRecord:
        """The record once an attempt is used up: its private key is needed here no more."""
        key = None if self.key is None else replace(self.key, private=b"")
        return replace(self, used=place, key=key, spent=spent)

    def to_bytes(self) -> bytes:
        """msgpack."""
        key = self.key
        plain = {
            "format": FORMAT,
            "seen": self.seen,
            "used": self.used,
            "seq": self.seq,
            "key": None if key is None else [key.id, key.private, key.public, key.earliest, key.unacknowledged],
            "spent": self.spent,
        }
        return bytes(msgpack.packb(plain))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> ParticipantRecord:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key)
        try:
            offered = RoundKey(*plain["key"]) if plain["key"] else None
            return cls(plain["seen"], plain["used"], plain["seq"], offered, _spent(plain["spent"]))
        except (KeyError, TypeError, ValueError) as fault:
            raise _unreadable(key, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """The exact bytes of an upload: a retry sends these and no others.

    Attributes:
        place: the attempt that it is for.
        id: its id.
        sealed: the sealed message.
        spent: the record's, with this upload counted: a crash before the record is written must not make it free.
    """

    place: Place
    id: str
    sealed: bytes = field(repr=False)
    spent: Spent

    def to_bytes(self) -> bytes:
        """msgpack."""
        plain = {"place": self.place, "id": self.id, "sealed": self.sealed, "spent": self.spent}
        return bytes(msgpack.packb({"format": FORMAT, **plain}))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> StoredUpload:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key)
        try:
            return cls(plain["place"], plain["id"], plain["sealed"], _spent(plain["spent"]))
        except (KeyError, TypeError, ValueError) as fault:
            raise _unreadable(key, str(fault)) from fault


def _period(number: int, plan: Plan) -> int:
    return (number - 1) // plan.privacy.period_rounds


def _spent(plain: Any) -> Spent:
    """What was written down of `ParticipantRecord.spent`: nothing that would count less than was given passes."""
    for first, last, count in plain:
        if not all(type(n) is int for n in (first, last, count)) or not (1 <= first <= last and count >= 1):
            raise ValueError(f"{count!r} contributions in rounds {first!r} to {last!r}")
    return tuple(plain)


def _read(data: bytes, key: str) -> dict[str, Any]:
    try:
        plain = msgpack.unpackb(data, use_list=False)
    except (msgpack.UnpackException, ValueError, TypeError) as fault:
        raise _unreadable(key, str(fault)) from fault
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise _unreadable(key, "another format")
    return plain


def _unreadable(key: str, found: str) -> ConfigError:
    return ConfigError(
        f"stored {key}: found {found}, expected format {FORMAT}; delete the device's state directory: "
        "it then takes part again from the next round on, and counts what it gives from nothing"
    )
