"""From what tcpdump wrote to what is shipped: bounded payload, one clock order, checked packet by packet."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SNAPLEN = 160
"""Bytes kept of a packet: all headers, and of the payload the name in a DNS query, an MQTT fixed header and topic."""
OPAQUE_PAYLOAD_BYTES = 16
"""Payload kept where it is video, an encrypted login or noise of a flood: enough to tell that there was some."""
TEXT_PORTS = frozenset({53, 80, 123, 502, 1883, 5683})
"""Ports of DNS, HTTP, NTP, Modbus, MQTT and CoAP, whose payload is kept up to :data:`SNAPLEN`."""

_ETHERNET = 14
_MAGIC = 0xA1B2C3D4
_LINKTYPE_ETHERNET = 1


@dataclass(frozen=True, slots=True)
class Capture:
    """A classic pcap file with its particulars.

    Attributes:
        content: The file.
        packets: Number of packets.
        start_s: Time stamp of the first packet, epoch seconds.
        end_s: Time stamp of the last.
    """

    content: bytes
    packets: int
    start_s: float
    end_s: float


def kept_bytes(packet: bytes) -> int:
    """How much of a captured Ethernet frame is shipped.

    Args:
        packet: The frame as captured.

    Returns:
        Number of leading bytes to keep, at most :data:`SNAPLEN`.
    """
    limit = min(len(packet), SNAPLEN)
    if len(packet) < _ETHERNET + 20 or packet[12:14] != b"\x08\x00":
        return limit
    transport = _ETHERNET + 4 * (packet[14] & 0x0F)
    protocol = packet[23]
    if protocol == 6 and len(packet) >= transport + 20:
        payload = transport + 4 * (packet[transport + 12] >> 4)
    elif protocol == 17 and len(packet) >= transport + 8:
        payload = transport + 8
    else:
        return limit
    source, destination = struct.unpack_from(">HH", packet, transport)
    if source in TEXT_PORTS or destination in TEXT_PORTS:
        return limit
    return min(limit, payload + OPAQUE_PAYLOAD_BYTES)


def trim(raw: bytes) -> Capture:
    """Rewrites a capture with less payload.

    Args:
        raw: Little-endian microsecond pcap of Ethernet frames, as tcpdump writes it here.

    Returns:
        The same packets, each cut to :func:`kept_bytes`, in order of time. A last record that was cut off is left out.

    Raises:
        ValueError: It is no such file, or holds no packet.
    """
    if len(raw) < 24:
        raise ValueError(f"capture: found {len(raw)} bytes, expected a header of 24 at least")
    magic, major, minor, zone, figures, _, link = struct.unpack_from("<IHHiIII", raw)
    if (magic, link) != (_MAGIC, _LINKTYPE_ETHERNET):
        raise ValueError(f"capture: found magic {magic:#x} and link type {link}, expected {_MAGIC:#x} and 1")
    records: list[tuple[int, int, int, bytes]] = []
    offset = 24
    while offset + 16 <= len(raw):
        seconds, micros, captured, original = struct.unpack_from("<IIII", raw, offset)
        packet = raw[offset + 16 : offset + 16 + captured]
        if len(packet) < captured:
            break
        records.append((seconds, micros, original, packet[: kept_bytes(packet)]))
        offset += 16 + captured
    if not records:
        raise ValueError("capture: found no packet, expected some")
    records.sort(key=lambda record: record[:2])
    parts = [struct.pack("<IHHiIII", magic, major, minor, zone, figures, SNAPLEN, link)]
    for seconds, micros, original, packet in records:
        parts += [struct.pack("<IIII", seconds, micros, len(packet), original), packet]
    first, last = records[0], records[-1]
    return Capture(b"".join(parts), len(records), first[0] + first[1] / 1e6, last[0] + last[1] / 1e6)
