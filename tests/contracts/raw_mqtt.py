"""An MQTT 3.1.1 client of bytes: says what no client library would say, and sees every packet that comes back.

Source: MQTT 3.1.1 §2, §3.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from dataclasses import dataclass
from types import TracebackType

WAIT_S = 60.0
CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 2, 3, 4, 9, 13
REFUSED = 0x80
DISCONNECT, PINGREQ = b"\xe0\x00", b"\xc0\x00"


class ClosedError(Exception):
    """The broker ended the connection."""


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def length(count: int) -> bytes:
    out = bytearray()
    while True:
        count, digit = divmod(count, 128)[0], count % 128
        out.append(digit | (128 if count else 0))
        if not count:
            return bytes(out)


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + length(len(body)) + body


def connect(
    client_id: str | bytes,
    *,
    clean: bool = True,
    keepalive: int = 60,
    will: tuple[str, bytes, int, bool] | None = None,
    user: str | None = None,
    password: str | None = None,
) -> bytes:
    flags, rest = (2 if clean else 0), text(client_id)
    if will is not None:
        topic, payload, qos, retain = will
        flags |= 4 | qos << 3 | (0x20 if retain else 0)
        rest += text(topic) + text(payload)
    if user is not None:
        flags |= 0x80
        rest += text(user)
    if password is not None:
        flags |= 0x40
        rest += text(password)
    return packet(0x10, text("MQTT") + bytes([4, flags]) + struct.pack("!H", keepalive) + rest)


def publish(
    topic: str | bytes, payload: bytes, qos: int = 0, *, packet_id: int = 1, retain: bool = False, dup: bool = False
) -> bytes:
    head = text(topic) + (struct.pack("!H", packet_id) if qos else b"")
    return packet(0x30 | (8 if dup else 0) | qos << 1 | int(retain), head + payload)


def subscribe(*filters: str | bytes, qos: int = 1, packet_id: int = 1) -> bytes:
    return packet(0x82, struct.pack("!H", packet_id) + b"".join(text(f) + bytes([qos]) for f in filters))


def unsubscribe(*filters: str, packet_id: int = 1) -> bytes:
    return packet(0xA2, struct.pack("!H", packet_id) + b"".join(text(f) for f in filters))


def puback(packet_id: int) -> bytes:
    return packet(0x40, struct.pack("!H", packet_id))


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    packet_id: int


class RawClient:
    """One connection.

    Args:
        port: of the broker, on loopback.
        tls: context; None speaks plain TCP.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None, receive_bytes: int = 0) -> None:
        self.socket: socket.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._data = bytearray()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.settimeout(WAIT_S)  # what `receive` left is the rest of its own time
        try:
            self.socket.sendall(data)
        except (ConnectionError, ssl.SSLError) as fault:
            raise ClosedError(str(fault)) from fault

    def receive(self, timeout_s: float = WAIT_S) -> tuple[int, int, bytes] | None:
        """The next packet as type, flags and body; None if none comes in time."""
        limit = time.monotonic() + timeout_s
        while True:
            if (found := self._parse()) is not None:
                return found
            left = limit - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(262_144)
            except TimeoutError:
                return None
            except (ConnectionError, ssl.SSLError) as fault:
                raise ClosedError(str(fault)) from fault
            if not data:
                raise ClosedError("end of stream")
            self._data += data

    def _parse(self) -> tuple[int, int, bytes] | None:
        count, shift = 0, 0
        for at in range(1, len(self._data)):
            count |= (self._data[at] & 127) << shift
            shift += 7
            if not self._data[at] & 128:
                end = at + 1 + count
                if len(self._data) < end:
                    return None
                found = self._data[0] >> 4, self._data[0] & 15, bytes(self._data[at + 1 : end])
                del self._data[:end]
                return found
        return None

    def connect(self, client_id: str, **options: object) -> tuple[int, bool]:
        """Say CONNECT; the return code, and whether there was a session."""
        self.send(connect(client_id, **options))  # type: ignore[arg-type]
        answer = self.receive()
        assert answer is not None, "no CONNACK"
        assert answer[0] == CONNACK
        return answer[2][1], bool(answer[2][0])

    def subscribe(self, *filters: str | bytes, qos: int = 1) -> tuple[list[int], list[Message]]:
        """Subscribe; the codes of the SUBACK, and what came before it."""
        self.send(subscribe(*filters, qos=qos))
        before: list[Message] = []
        while True:
            answer = self.receive()
            assert answer is not None, "no SUBACK"
            if answer[0] == SUBACK:
                return list(answer[2][2:]), before
            before += self.message(answer)

    def publish(self, topic: str, payload: bytes, *, packet_id: int = 1, retain: bool = False) -> None:
        """Publish with QoS 1 and wait for the PUBACK."""
        self.send(publish(topic, payload, 1, packet_id=packet_id, retain=retain))
        answer = self.receive()
        assert answer is not None, "no PUBACK"
        assert answer[0] == PUBACK, answer
        assert answer[2] == struct.pack("!H", packet_id)

    def until(
        self, payload: bytes, *, acknowledge: bool = True, timeout_s: float = WAIT_S, count: int = 0
    ) -> list[Message]:
        """Every message up to and with the one of this payload, or `count` messages."""
        heard: list[Message] = []
        while True:
            answer = self.receive(timeout_s)
            assert answer is not None, f"{payload!r} did not come, heard {[m.payload[:40] for m in heard][-5:]}"
            found = self.message(answer, acknowledge=acknowledge)
            heard += found
            if (found and found[0].payload == payload) or len(heard) == (count or -1):
                return heard

    def message(self, answer: tuple[int, int, bytes], *, acknowledge: bool = True) -> list[Message]:
        """The message of a PUBLISH; nothing of another packet."""
        kind, flags, body = answer
        if kind != PUBLISH:
            return []
        qos, (size,) = flags >> 1 & 3, struct.unpack("!H", body[:2])
        topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
        packet_id = 0
        if qos:
            (packet_id,), rest = struct.unpack("!H", rest[:2]), rest[2:]
            if acknowledge:
                self.send(puback(packet_id))
        return [Message(topic, rest, qos, bool(flags & 1), bool(flags & 8), packet_id)]

    def alive(self) -> bool:
        """Whether the broker answers a PINGREQ."""
        try:
            self.send(PINGREQ)
            while True:
                answer = self.receive()
                if answer is None:
                    return False
                if answer[0] == PINGRESP:
                    return True
        except (ClosedError, OSError):
            return False

    def closed(self, timeout_s: float = WAIT_S) -> bool:
        """Whether the broker ends the connection in time."""
        limit = time.monotonic() + timeout_s
        try:
            while self.receive(max(0.0, limit - time.monotonic())) is not None:
                pass
        except (ClosedError, OSError):
            return True
        return False

    def reset(self) -> None:
        """End it as a crash would: RST, no goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
