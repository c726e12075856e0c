"""What a committee member keeps on disk of one group: a key, until it is used; one vote; one release of shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from vedette_core.crypto.agreement import KeyPair
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, VedetteError
from vedette_schemas.round import Plan, Roster

FORMAT: Final = 1

Place = tuple[int, int]
"""(round, attempt)."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A member's part in one group of one attempt.

    Attributes:
        roster: the group's.
        plan: the roster's.
        key: the pair of the own entry in the roster; None once the shares are released.
        survivors: hash of the set that it voted for; empty before.
        boxes: (device, box) of that set, whose digests the devices signed; empty once the shares are released.
        vote: sealed vote: a retry sends these bytes.
        shares: sealed shares: a retry sends these bytes.
    """

    roster: Roster
    plan: Plan
    key: KeyPair | None = field(repr=False)
    survivors: bytes = b""
    boxes: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    vote: bytes = field(default=b"", repr=False)
    shares: bytes = field(default=b"", repr=False)

    @property
    def place(self) -> Place:
        """(round, attempt) that it is for."""
        return self.roster.round, self.roster.attempt

    def to_bytes(self) -> bytes:
        """msgpack."""
        plain = {
            "format": FORMAT,
            "roster": codec.pack(self.roster),
            "plan": codec.pack(self.plan),
            "key": None if self.key is None else [self.key.private, self.key.public],
            "survivors": self.survivors,
            "boxes": self.boxes,
            "vote": self.vote,
            "shares": self.shares,
        }
        return bytes(msgpack.packb(plain))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> Seat:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = read_record(data, key)
        try:
            return cls(
                codec.unpack(Roster, plain["roster"]),
                codec.unpack(Plan, plain["plan"]),
                KeyPair(*plain["key"]) if plain["key"] else None,
                plain["survivors"],
                plain["boxes"],
                plain["vote"],
                plain["shares"],
            )
        except (KeyError, TypeError, ValueError, VedetteError) as fault:
            raise unreadable(key, str(fault)) from fault


def floor_bytes(place: Place) -> bytes:
    """The place before which a member says nothing any more, as it is kept."""
    return bytes(msgpack.packb({"format": FORMAT, "floor": place}))


def read_floor(data: bytes, key: str) -> Place:
    """Read it back.

    Raises:
        ConfigError: the store holds something else.
    """
    try:
        number, attempt = read_record(data, key)["floor"]
    except (KeyError, TypeError, ValueError) as fault:
        raise unreadable(key, str(fault)) from fault
    return int(number), int(attempt)


def read_record(data: bytes, key: str) -> dict[str, Any]:
    """A stored map of this format.

    Raises:
        ConfigError: the store holds something else.
    """
    try:
        plain = msgpack.unpackb(data, use_list=False)
    except (msgpack.UnpackException, ValueError, TypeError) as fault:
        raise unreadable(key, str(fault)) from fault
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise unreadable(key, "another format")
    return plain


def unreadable(key: str, found: str) -> ConfigError:
    """What is said of a record that cannot be read."""
    return ConfigError(
        f"stored {key}: found {found}, expected format {FORMAT}; delete the node's state directory: "
        "it then takes part again from the next round on"
    )
