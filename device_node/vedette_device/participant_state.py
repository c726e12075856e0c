"""What a participant keeps on disk: where it is, its key for one round, and its upload until the receipt has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from vedette_schemas.errors import ConfigError

FORMAT: Final = 1

Place = tuple[int, int]
"""(round, attempt): places are ordered, and a device never goes back."""


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
        private: X25519 private key, 32 bytes.
        public: X25519 public key, 32 bytes.
        earliest: the first attempt whose roster can have it.
        unacknowledged: the sealed check-in, until its receipt has come; then empty.
    """

    id: str
    private: bytes = field(repr=False)
    public: bytes
    earliest: Place
    unacknowledged: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """A participant, as it is written down.

    Attributes:
        seen: (round, attempt, phase's rank) of the newest round state; older ones are replays.
        used: the last attempt for which an upload was made; there is never a second one.
        seq: of the last check-in.
        key: the key that is on offer or in use.
    """

    seen: tuple[int, int, int] = (0, 0, 0)
    used: Place = (0, 0)
    seq: int = 0
    key: RoundKey | None = None

    def to_bytes(self) -> bytes:
        """msgpack."""
        key = self.key
        plain = {
            "format": FORMAT,
            "seen": self.seen,
            "used": self.used,
            "seq": self.seq,
            "key": None if key is None else [key.id, key.private, key.public, key.earliest, key.unacknowledged],
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
            return cls(plain["seen"], plain["used"], plain["seq"], RoundKey(*plain["key"]) if plain["key"] else None)
        except (KeyError, TypeError) as fault:
            raise _unreadable(key, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """The exact bytes of an upload: a retry sends these and no others.

    Attributes:
        place: the attempt that it is for.
        id: its id.
        sealed: the sealed message.
    """

    place: Place
    id: str
    sealed: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """msgpack."""
        return bytes(msgpack.packb({"format": FORMAT, "place": self.place, "id": self.id, "sealed": self.sealed}))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> StoredUpload:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key)
        try:
            return cls(plain["place"], plain["id"], plain["sealed"])
        except (KeyError, TypeError) as fault:
            raise _unreadable(key, str(fault)) from fault


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
        "it then takes part again from the next round on"
    )
