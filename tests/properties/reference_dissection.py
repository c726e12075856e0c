"""Reads one frame with plain Python, in the order of its bytes: the oracle for the vectorised parser."""

from __future__ import annotations

from typing import Any

LINKS = {1: "ethernet", 12: "raw", 14: "raw", 101: "raw", 113: "sll", 276: "sll2", 228: "v4", 229: "v6"}
EXTENSIONS = (0, 43, 44, 51, 60)


def be16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def network_header(frame: bytes, link: int) -> tuple[int, int] | None:
    """(offset, ethertype), or None where the frame is too short."""
    kind = LINKS[link]
    if kind == "raw":
        if not frame:
            return None
        return 0, {4: 0x0800, 6: 0x86DD}.get(frame[0] >> 4, 0)
    if kind in ("v4", "v6"):
        return (0, 0x0800 if kind == "v4" else 0x86DD) if frame else None
    if kind == "sll":
        return (16, be16(frame, 14)) if len(frame) >= 16 else None
    if kind == "sll2":
        return (20, be16(frame, 0)) if len(frame) >= 20 else None
    if len(frame) < 14:
        return None
    at, ethertype = 14, be16(frame, 12)
    for _ in range(4):
        if ethertype not in (0x8100, 0x88A8, 0x9100):
            break
        if len(frame) - at < 4:
            return None
        ethertype = be16(frame, at + 2)
        at += 4
    return at, ethertype


def dissect_one(frame: bytes, wire: int, link: int) -> dict[str, Any] | str:
    """The fields of a packet, or why there is none."""
    found = network_header(frame, link)
    if found is None:
        return "short_header"
    at, ethertype = found
    wire = max(wire, len(frame)) - at
    net = frame[at:]
    if ethertype == 0x0800:
        return _ipv4(net, wire)
    if ethertype == 0x86DD:
        return _ipv6(net, wire)
    if ethertype == 0x0806:
        if len(net) < 28:
            return "short_header"
        if be16(net, 2) != 0x0800 or net[4:6] != b"\6\4":
            return "bad_header"
        mapped = b"\0" * 10 + b"\xff\xff"
        return _packet(256, 28, mapped + net[14:18], mapped + net[24:28])
    return "not_ip"


def _ipv4(net: bytes, wire: int) -> dict[str, Any] | str:
    if len(net) < 20:
        return "short_header"
    header, total = (net[0] & 15) * 4, be16(net, 2)
    if net[0] >> 4 != 4 or header < 20 or (total and total < header):
        return "bad_header"
    size = min(total or 262_144, wire)
    mapped = b"\0" * 10 + b"\xff\xff"
    fragment = be16(net, 6) & 0x1FFF != 0
    packet = _packet(net[9], size, mapped + net[12:16], mapped + net[16:20], fragment=fragment)
    return _transport(packet, net[header:], size - header)


def _ipv6(net: bytes, wire: int) -> dict[str, Any] | str:
    if len(net) < 40:
        return "short_header"
    if net[0] >> 4 != 6:
        return "bad_header"
    length, protocol = be16(net, 4), net[6]
    size = min(262_144 if length == 0 and protocol == 0 else length + 40, wire)
    at, fragment = 40, False
    for _ in range(8):
        if protocol not in EXTENSIONS or fragment or len(net) - at < 8:
            break
        if protocol == 44:
            step, fragment = 8, be16(net, at + 2) >> 3 != 0
        else:
            step = (net[at + 1] + 2) * 4 if protocol == 51 else (net[at + 1] + 1) * 8
        protocol = net[at]
        at += step
    packet = _packet(protocol, size, net[8:24], net[24:40], fragment=fragment)
    return _transport(packet, net[at:], size - at)


def _packet(protocol: int, size: int, source: bytes, target: bytes, *, fragment: bool = False) -> dict[str, Any]:
    return {
        "size": size,
        "source_hi": int.from_bytes(source[:8], "big"),
        "source_lo": int.from_bytes(source[8:], "big"),
        "target_hi": int.from_bytes(target[:8], "big"),
        "target_lo": int.from_bytes(target[8:], "big"),
        "protocol": protocol,
        "has_ports": False,
        "source_port": 0,
        "target_port": 0,
        "tcp_flags": 0,
        "sequence": 0,
        "payload": 0,
        "icmp_type": -1,
        "dns_name_length": -1,
        "mqtt_type": 0,
        "fragment": fragment,
    }


def _transport(packet: dict[str, Any], body: bytes, length: int) -> dict[str, Any]:
    protocol = packet["protocol"]
    if packet["fragment"]:
        return packet
    if protocol in (1, 58) and body and length >= 1:
        packet["icmp_type"] = body[0]
    if protocol == 6 and len(body) >= 14 and length >= 20:
        header = max((body[12] >> 4) * 4, 20)
        packet["tcp_flags"], packet["sequence"] = body[13], int.from_bytes(body[4:8], "big")
    elif protocol == 17 and len(body) >= 8 and length >= 8:
        header = 8
    else:
        return packet
    payload = max(length - header, 0)
    packet |= {"has_ports": True, "source_port": be16(body, 0), "target_port": be16(body, 2), "payload": payload}
    data = body[header:][:payload]
    packet["dns_name_length"] = _dns(protocol, packet["target_port"], payload, data)
    ports = {packet["source_port"], packet["target_port"]}
    if protocol == 6 and ports & {1883, 8883} and data:
        packet["mqtt_type"] = _mqtt(data[0])
    return packet


def _mqtt(first: int) -> int:
    kind, flags = divmod(first, 16)
    if kind == 0:
        return 0
    if kind == 3:
        return 0 if flags & 6 == 6 else 3
    return kind if flags == (2 if kind in (6, 8, 10) else 0) else 0


def _dns(protocol: int, port: int, payload: int, data: bytes) -> int:
    if port != 53 or not payload:
        return -1
    message = data[2:] if protocol == 6 else data
    if len(message) < 12:
        return 0 if protocol == 17 and payload >= 12 else -1
    if message[2] & 0xF8:
        return -1
    at, encoded = 12, 0
    while at < len(message) and encoded < 255 and 0 < message[at] <= 63:
        encoded += message[at] + 1
        at += message[at] + 1
    return min(max(encoded - 1, 0), 255)
