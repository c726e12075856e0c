"""The packets of MQTT 3.1.1 that the contract uses, read strictly: what §2 and §3 forbid is refused, never guessed at.

amqtt's parser lets much of it pass (flags, packet id 0, bytes behind a packet's end, NUL in topics), so it is not used.

Source: MQTT 3.1.1 §1.5.3 (strings), §2.2 (fixed header), §3 (packets).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vedette_schemas.errors import PeerError

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
UNSUBSCRIBE: Final = 10
PINGREQ: Final = 12
DISCONNECT: Final = 14

ACCEPTED: Final = 0
BAD_PROTOCOL: Final = 1
UNAVAILABLE: Final = 3
NOT_AUTHORISED: Final = 5
REFUSED: Final = 0x80
"""Return code of a SUBACK."""

LENGTH_BYTES_MAX: Final = 4
PINGRESP: Final = b"\xd0\x00"
_FLAGS: Final = {CONNECT: 0, PUBACK: 0, SUBSCRIBE: 2, UNSUBSCRIBE: 2, PINGREQ: 0, DISCONNECT: 0}
_VERSION: Final = b"\x00\x04MQTT\x04"
_NAMES: Final = (b"\x00\x04MQTT", b"\x00\x06MQIsdp")


@dataclass(frozen=True, slots=True)
class Will:
    """What is published for a client that vanishes."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """Who a client says that it is. User and password are read over: they mean nothing here."""

    client_id: str
    clean: bool
    keepalive_s: int
    will: Will | None


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; `packet_id` is 0 for QoS 0."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    packet_id: int


@dataclass(frozen=True, slots=True)
class Filters:
    """A SUBSCRIBE or UNSUBSCRIBE; the QoS of the latter's filters is 0."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


class OtherVersionError(PeerError):
    """A CONNECT of another version of MQTT."""


def check_header(first: int, length: int, bytes_max: int) -> int:
    """The type of a packet with this first byte.

    Args:
        first: the first byte.
        length: bytes that follow the fixed header.
        bytes_max: how many may.

    Raises:
        PeerError: a type that no client of the contract sends, wrong flags, or too long.
    """
    kind, flags = first >> 4, first & 15
    # QoS 0 is never a duplicate (§3.3.1.1).
    right = flags >> 1 in (0, 1, 5) if kind == PUBLISH else _FLAGS.get(kind) == flags
    if not right:
        raise _malformed(
            f"packet type {kind} with flags {flags:04b}", "one of the contract: CONNECT to DISCONNECT, QoS 0 or 1"
        )
    if length > bytes_max:
        raise _malformed(f"packet type {kind} of {length} bytes", f"at most {bytes_max}")
    return kind


def read_connect(body: bytes) -> Connect:
    """Read a CONNECT (§3.1).

    Raises:
        OtherVersionError: not MQTT 3.1.1.
        PeerError: malformed, without a client id, or with a will of QoS 2.
    """
    if not body.startswith(_VERSION):
        if body.startswith(_NAMES):
            raise OtherVersionError("CONNECT: found another protocol version, expected MQTT 3.1.1", reason="version")
        raise _malformed("a CONNECT of no known protocol", "MQTT 3.1.1")
    rest = _Rest(body, len(_VERSION))
    flags, keepalive_s = rest.byte(), rest.number()
    with_will, will_qos = bool(flags & 4), flags >> 3 & 3
    if flags & 1 or will_qos > 1 or (not with_will and flags & 0x38) or (flags & 0x40 and not flags & 0x80):
        raise _malformed(f"CONNECT flags {flags:08b}", "a will of QoS 0 or 1, no password without a user")
    client_id = rest.text()
    if not client_id:
        raise _malformed("a CONNECT without a client id", "the certificate's common name")
    will = Will(_name(rest.text()), rest.data(), will_qos, bool(flags & 0x20)) if with_will else None
    if flags & 0x80:
        rest.text()
    if flags & 0x40:
        rest.data()
    rest.end()
    return Connect(client_id, bool(flags & 2), keepalive_s, will)


def read_publish(first: int, body: bytes) -> Publish:
    """Read a PUBLISH (§3.3).

    Raises:
        PeerError: malformed.
    """
    rest, qos = _Rest(body), first >> 1 & 3
    topic = _name(rest.text())
    packet_id = rest.identifier() if qos else 0
    return Publish(topic, rest.remaining(), qos, bool(first & 1), packet_id)


def read_puback(body: bytes) -> int:
    """Read a PUBACK's packet id (§3.4).

    Raises:
        PeerError: malformed.
    """
    rest = _Rest(body)
    packet_id = rest.identifier()
    rest.end()
    return packet_id


def read_filters(kind: int, body: bytes) -> Filters:
    """Read a SUBSCRIBE (§3.8) or UNSUBSCRIBE (§3.10). Whether a filter is one is for the access table to say.

    Raises:
        PeerError: malformed.
    """
    rest, found = _Rest(body), list[tuple[str, int]]()
    packet_id = rest.identifier()
    while not rest.ended:
        topic_filter, qos = rest.text(), rest.byte() if kind == SUBSCRIBE else 0
        if qos > 2:
            raise _malformed(f"a SUBSCRIBE of QoS {qos}", "0, 1 or 2")
        found.append((topic_filter, qos))
    if not found:
        raise _malformed("no filter", "one or more")
    return Filters(packet_id, tuple(found))


def read_nothing(body: bytes) -> None:
    """Check that a packet without a body has none (§3.12, §3.14).

    Raises:
        PeerError: it has one.
    """
    _Rest(body).end()


def connack(code: int, *, session_present: bool = False) -> bytes:
    """A CONNACK (§3.2)."""
    return bytes([0x20, 2, int(session_present), code])


def publish(
    topic: str, payload: bytes, qos: int, *, packet_id: int | None = None, retain: bool = False, duplicate: bool = False
) -> bytes:
    """A PUBLISH (§3.3)."""
    name = topic.encode()
    head = struct.pack("!H", len(name)) + name + (struct.pack("!H", packet_id) if packet_id else b"")
    first = 0x30 | int(duplicate) << 3 | qos << 1 | int(retain)
    return bytes([first]) + _length(len(head) + len(payload)) + head + payload


def puback(packet_id: int) -> bytes:
    """A PUBACK (§3.4)."""
    return struct.pack("!BBH", 0x40, 2, packet_id)


def suback(packet_id: int, codes: Sequence[int]) -> bytes:
    """A SUBACK (§3.9)."""
    return b"\x90" + _length(2 + len(codes)) + struct.pack("!H", packet_id) + bytes(codes)


def unsuback(packet_id: int) -> bytes:
    """An UNSUBACK (§3.11)."""
    return struct.pack("!BBH", 0xB0, 2, packet_id)


def _length(count: int) -> bytes:
    out = bytearray()
    while True:
        count, digit = count >> 7, count & 127
        out.append(digit | (128 if count else 0))
        if not count:
            return bytes(out)


def _name(topic: str) -> str:
    if not topic or "+" in topic or "#" in topic:
        raise _malformed(f"topic name {topic[:80]!r}", "one without wildcards")
    return topic


def _malformed(found: str, expected: str) -> PeerError:
    return PeerError(f"packet: found {found}, expected {expected}", reason="packet")


class _Rest:
    """What is left of a packet's body; no field can run past its end."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes, at: int = 0) -> None:
        self._body, self._at = body, at

    @property
    def ended(self) -> bool:
        return self._at == len(self._body)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._body):
            raise _malformed("a field that runs past its packet's end", "complete fields")
        part = self._body[self._at : end]
        self._at = end
        return part

    def byte(self) -> int:
        return self._take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def identifier(self) -> int:
        packet_id = self.number()
        if not packet_id:
            raise _malformed("packet id 0", "1 to 65535")
        return packet_id

    def data(self) -> bytes:
        return self._take(self.number())

    def text(self) -> str:
        try:
            value = self.data().decode("utf-8")
        except UnicodeDecodeError as fault:
            raise _malformed("a string that is no UTF-8", "UTF-8") from fault
        if "\0" in value:
            raise _malformed("a string with NUL", "none")
        return value

    def remaining(self) -> bytes:
        part = self._body[self._at :]
        self._at = len(self._body)
        return part

    def end(self) -> None:
        if not self.ended:
            raise _malformed(f"{len(self._body) - self._at} bytes behind the last field", "none")
