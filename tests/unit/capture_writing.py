"""Writes frames and captures byte by byte, for tests only; knows nothing of the parser."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ETHERNET, RAW, SLL, SLL2, WIFI = 1, 101, 113, 276, 105
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Record:
    time_ns: int
    frame: bytes
    wire: int | None = None


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def tcp(sport: int, dport: int, flags: int = ACK, *, seq: int = 1, payload: bytes = b"", options: bytes = b"") -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack("!HHIIBBHHH", sport, dport, seq, 1, offset, flags, 1024, 0, 0) + options + payload


def udp(sport: int, dport: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def icmp(kind: int, payload: bytes = b"\0" * 8) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + payload


def dns_query(name: str, *, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack("!HHHHHH", 7, flags, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def ipv4(
    source: str,
    target: str,
    protocol: int,
    body: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    total: int | None = None,
) -> bytes:
    header_bytes = 20 + len(options)
    length = header_bytes + len(body) if total is None else total
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | header_bytes // 4,
        0,
        length,
        1,
        fragment,
        64,
        protocol,
        0,
        packed(source),
        packed(target),
    )
    return header + options + body


def ipv6(
    source: str, target: str, protocol: int, body: bytes, *, extensions: Sequence[tuple[int, bytes]] = ()
) -> bytes:
    """``extensions`` are (header number, body without its first byte) pairs."""
    kinds = [kind for kind, _ in extensions] + [protocol]
    chain = b"".join(bytes([following]) + rest for (_, rest), following in zip(extensions, kinds[1:], strict=True))
    return (
        struct.pack("!IHBB", 6 << 28, len(chain) + len(body), kinds[0], 64)
        + packed(source)
        + packed(target)
        + chain
        + body
    )


def arp(sender: str, target: str, *, operation: int = 1) -> bytes:
    return struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, b"\2" * 6, packed(sender), b"\0" * 6, packed(target)
    )


def ethernet(network: bytes, *, ethertype: int | None = None, vlans: Sequence[int] = ()) -> bytes:
    if ethertype is None:
        ethertype = {4: 0x0800, 6: 0x86DD}[network[0] >> 4]
    tags = b"".join(struct.pack("!HH", kind, 5) for kind in vlans)
    return b"\2" * 12 + tags + struct.pack("!H", ethertype) + network


def sll(network: bytes, ethertype: int) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, b"\2" * 8, ethertype) + network


def sll2(network: bytes, ethertype: int) -> bytes:
    return struct.pack("!HHIHBB8s", ethertype, 0, 2, 1, 0, 6, b"\2" * 8) + network


def pcap(records: Sequence[Record], *, order: str = "<", nanoseconds: bool = False, link: int = ETHERNET) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    unit = 1 if nanoseconds else 1_000
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link)]
    for record in records:
        seconds, part = divmod(record.time_ns, 1_000_000_000)
        wire = len(record.frame) if record.wire is None else record.wire
        parts.append(struct.pack(order + "IIII", seconds, part // unit, len(record.frame), wire) + record.frame)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += b"\0" * (-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = ETHERNET, order: str = "<", *, resolution: int | None = None, offset_s: int = 0) -> bytes:
    options = b""
    if resolution is not None:
        options += option(9, bytes([resolution]), order)
    if offset_s:
        options += option(14, struct.pack(order + "q", offset_s), order)
    return block(
        1, struct.pack(order + "HHI", link, 0, 0) + options + (option(0, b"", order) if options else b""), order
    )


def enhanced(frame: bytes, ticks: int, order: str = "<", *, interface_id: int = 0, wire: int | None = None) -> bytes:
    high, low = divmod(ticks, 1 << 32)
    wire = len(frame) if wire is None else wire
    padded = frame + b"\0" * (-len(frame) % 4)
    return block(6, struct.pack(order + "IIIII", interface_id, high, low, len(frame), wire) + padded, order)


def simple(frame: bytes, order: str = "<", *, wire: int | None = None) -> bytes:
    return block(3, struct.pack(order + "I", len(frame) if wire is None else wire) + frame, order)
