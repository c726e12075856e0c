"""Packets as columns: what a capture holds (``Frames``) and what its headers say (``PacketBatch``).

One array a field instead of one object a packet: the parser and the windower then cost some hundred nanoseconds a
packet, where an object alone costs more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARP = 256
"""``protocol`` of an ARP packet: IP protocol numbers end at 255."""

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
"""IP protocol numbers that the features name (IANA registry *Assigned Internet Protocol Numbers*)."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
"""TCP flag bits. Source: RFC 9293 §3.1."""

NO_QUERY = -1
"""``dns_name_length`` of a packet that is no DNS query."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Undissected frames, as indices into the bytes they were read from.

    Attributes:
        data: the bytes, followed by at least ``PADDING_BYTES`` zeros.
        start: ``(n,) int64``, index of a frame's first byte.
        captured: ``(n,) int64``, bytes of it that are in ``data``.
        wire: ``(n,) int64``, bytes that it had on the wire.
        time_ns: ``(n,) int64``, nanoseconds since the epoch.
        link: ``(n,) int64``, link types (see ``link.LINK_TYPES``).
    """

    data: NDArray[np.uint8]
    start: NDArray[np.int64]
    captured: NDArray[np.int64]
    wire: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    link: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


PADDING_BYTES = 128
"""Zeros behind the data, so that a fixed-size look at the last header never leaves the array."""


def padded(data: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    """Copy bytes into an array with the zeros that ``Frames`` asks for."""
    array = np.zeros(len(data) + PADDING_BYTES, dtype=np.uint8)
    array[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return array


@dataclass(frozen=True, slots=True)
class PacketBatch:
    """Dissected IP and ARP packets, in the order of arrival.

    An IPv4 address is kept as its IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2), so that one pair of columns holds both.

    Attributes:
        time_ns: ``(n,) int64``, nanoseconds since the epoch.
        size: ``(n,) int32``, bytes from the network header on (28 for ARP): the same on every kind of link.
        source_hi: ``(n,) uint64``, upper half of the source address.
        source_lo: ``(n,) uint64``, lower half of it.
        target_hi: ``(n,) uint64``, upper half of the destination address.
        target_lo: ``(n,) uint64``, lower half of it.
        protocol: ``(n,) uint16``, IP protocol number, or ``ARP``.
        has_ports: ``(n,) bool``, whether both ports could be read (not in later fragments, not when cut off).
        source_port: ``(n,) uint16``, 0 where there is none.
        target_port: ``(n,) uint16``, 0 where there is none.
        tcp_flags: ``(n,) uint8``, 0 for anything but TCP.
        sequence: ``(n,) uint32``, TCP sequence number, else 0.
        payload: ``(n,) int32``, bytes behind the transport header as the lengths in the headers say.
        icmp_type: ``(n,) int16``, type of an ICMP or ICMPv6 message, else -1.
        dns_name_length: ``(n,) int16``, characters of the name that a DNS query asks for, else ``NO_QUERY``.
        mqtt_type: ``(n,) uint8``, control packet type of the segment's first byte on an MQTT port, else 0.
        fragment: ``(n,) bool``, whether it is a later fragment, which has no transport header.
    """

    time_ns: NDArray[np.int64]
    size: NDArray[np.int32]
    source_hi: NDArray[np.uint64]
    source_lo: NDArray[np.uint64]
    target_hi: NDArray[np.uint64]
    target_lo: NDArray[np.uint64]
    protocol: NDArray[np.uint16]
    has_ports: NDArray[np.bool_]
    source_port: NDArray[np.uint16]
    target_port: NDArray[np.uint16]
    tcp_flags: NDArray[np.uint8]
    sequence: NDArray[np.uint32]
    payload: NDArray[np.int32]
    icmp_type: NDArray[np.int16]
    dns_name_length: NDArray[np.int16]
    mqtt_type: NDArray[np.uint8]
    fragment: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> PacketBatch:
        """Return the chosen packets, in that order."""
        return PacketBatch(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def empty(cls) -> PacketBatch:
        """Return a batch without packets."""
        nothing: list[NDArray[Any]] = [np.zeros(0, dtype=dtype) for dtype in _DTYPES]
        return cls(*nothing)

    @classmethod
    def concatenate(cls, batches: list[PacketBatch]) -> PacketBatch:
        """Return the packets of all batches, one after another."""
        if not batches:
            return cls.empty()
        columns: list[NDArray[Any]] = [
            np.concatenate([getattr(batch, field.name) for batch in batches]) for field in fields(cls)
        ]
        return cls(*columns)


_DTYPES = (
    np.int64,
    np.int32,
    np.uint64,
    np.uint64,
    np.uint64,
    np.uint64,
    np.uint16,
    np.bool_,
    np.uint16,
    np.uint16,
    np.uint8,
    np.uint32,
    np.int32,
    np.int16,
    np.int16,
    np.uint8,
    np.bool_,
)
