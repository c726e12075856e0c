"""Network and transport headers of a whole batch of frames at once.

Source: RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and 4443
(ICMP), RFC 826 (ARP).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.application import dns_name_lengths, mqtt_types
from vedette_device.sources.link import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    network_headers,
    rows_at,
)
from vedette_device.sources.packets import ARP, ICMP, ICMP6, TCP, UDP, Frames, PacketBatch

REFUSED_REASONS = ("short_header", "bad_header", "not_ip", "short_transport")
"""Why a frame gives no packet; ``short_transport`` packets are kept, but without ports and flags."""

EXTENSION_HEADERS_MAX = 8
"""IPv6 extension headers that are stepped over; RFC 8200 §4.1 recommends each at most once, which makes seven."""

SIZE_BYTES_MAX = 262_144
"""Most bytes of a packet whose own length field is 0 (segmentation offload): a jumbogram of that kind is smaller."""

_IPV4_HEADER_BYTES, _IPV6_HEADER_BYTES, _ARP_BYTES = 20, 40, 28
_TCP_HEADER_BYTES, _UDP_HEADER_BYTES = 20, 8
_TCP_LOOK_BYTES = 14
"""Bytes of a TCP header up to its flags, which a capture must hold."""

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS = 0, 43, 44, 51, 60
_MAPPED = np.uint64(0xFFFF_0000_0000)
"""Lower half of ::ffff:0:0/96, under which IPv4 addresses are kept."""


@dataclass(slots=True)
class _Network:
    """What the network headers said, one element a frame; the order of work fills it step by step."""

    protocol: NDArray[np.int64]
    size: NDArray[np.int64]
    transport: NDArray[np.int64]
    fragment: NDArray[np.bool_]
    source_hi: NDArray[np.uint64]
    source_lo: NDArray[np.uint64]
    target_hi: NDArray[np.uint64]
    target_lo: NDArray[np.uint64]


def dissect(frames: Frames) -> tuple[PacketBatch, dict[str, int]]:
    """Read the headers of all frames.

    Args:
        frames: frames of supported link types.

    Returns:
        The packets in the same order, without frames that hold none, and how many were refused or cut, by
        ``REFUSED_REASONS`` (only those above 0).
    """
    if not len(frames):
        return PacketBatch.empty(), {}
    network_start, ethertype = network_headers(frames)
    end = frames.start + frames.captured
    left = end - network_start
    wire = np.maximum(frames.wire, frames.captured) - (network_start - frames.start)
    header = rows_at(frames.data, network_start, 40)

    v4, v6, arp = ethertype == ETHERTYPE_IPV4, ethertype == ETHERTYPE_IPV6, ethertype == ETHERTYPE_ARP
    short = (
        (v4 & (left < _IPV4_HEADER_BYTES))
        | (v6 & (left < _IPV6_HEADER_BYTES))
        | (arp & (left < _ARP_BYTES))
        | (ethertype == -1)
    )
    network, bad = _ipv4(header, network_start, wire)
    other_rows = np.flatnonzero(v6 & ~short)
    if len(other_rows):
        bad[other_rows] = _ipv6(frames.data, header, network_start, wire, end, other_rows, network)
    other_rows = np.flatnonzero(arp & ~short)
    if len(other_rows):
        bad[other_rows] = _arp(header, other_rows, network)
    known = v4 | v6 | arp
    good = known & ~short & ~bad
    refused = {
        "short_header": int(short.sum()),
        "bad_header": int((known & ~short & bad).sum()),
        "not_ip": int((~known & ~short).sum()),
    }
    keep: NDArray[np.intp] | slice = slice(None) if bool(good.all()) else np.flatnonzero(good)
    kept = _Network(*(getattr(network, name)[keep] for name in _Network.__slots__))
    batch, cut = _transport(frames.data, kept, frames.time_ns[keep], network_start[keep], np.asarray(end[keep]))
    refused["short_transport"] = cut
    return batch, {reason: count for reason, count in refused.items() if count}


def _ipv4(
    header: NDArray[np.uint8], start: NDArray[np.int64], wire: NDArray[np.int64]
) -> tuple[_Network, NDArray[np.bool_]]:
    words = header.view(">u2")
    longs = header.view(">u4")
    first = header[:, 0]
    header_bytes = (first & 0x0F).astype(np.int64) * 4
    total = words[:, 1].astype(np.int64)
    bad = ((first >> 4) != 4) | (header_bytes < _IPV4_HEADER_BYTES)
    # A length of 0 is what a capture shows when the network card cuts the segments later.
    bad |= (total != 0) & (total < header_bytes)
    size = np.minimum(np.where(total == 0, SIZE_BYTES_MAX, total), wire)
    n = len(start)
    zeros = np.zeros(n, dtype=np.uint64)
    network = _Network(
        protocol=header[:, 9].astype(np.int64),
        size=size,
        transport=start + header_bytes,
        fragment=(words[:, 3] & 0x1FFF) != 0,
        source_hi=zeros,
        source_lo=longs[:, 3].astype(np.uint64) | _MAPPED,
        target_hi=zeros.copy(),
        target_lo=longs[:, 4].astype(np.uint64) | _MAPPED,
    )
    return network, bad


def _ipv6(
    data: NDArray[np.uint8],
    header: NDArray[np.uint8],
    start: NDArray[np.int64],
    wire: NDArray[np.int64],
    end: NDArray[np.int64],
    rows: NDArray[np.intp],
    network: _Network,
) -> NDArray[np.bool_]:
    fixed = header[rows]
    quads = fixed.view(">u8")
    length = fixed.view(">u2")[:, 2].astype(np.int64)
    protocol = fixed[:, 6].astype(np.int64)
    jumbo = (length == 0) & (protocol == _HOP_BY_HOP)
    size = np.where(jumbo, SIZE_BYTES_MAX, length + _IPV6_HEADER_BYTES)
    network.size[rows] = np.minimum(size, wire[rows])
    network.source_hi[rows], network.source_lo[rows] = quads[:, 1], quads[:, 2]
    network.target_hi[rows], network.target_lo[rows] = quads[:, 3], quads[:, 4]
    transport = start[rows] + _IPV6_HEADER_BYTES
    fragment = np.zeros(len(rows), dtype=np.bool_)
    _step_over_extensions(data, protocol, transport, fragment, end[rows])
    network.protocol[rows], network.transport[rows], network.fragment[rows] = protocol, transport, fragment
    return np.asarray((fixed[:, 0] >> 4) != 6)


def _step_over_extensions(
    data: NDArray[np.uint8],
    protocol: NDArray[np.int64],
    transport: NDArray[np.int64],
    fragment: NDArray[np.bool_],
    end: NDArray[np.int64],
) -> None:
    """Move ``protocol`` and ``transport`` (in place) to the first header that is no extension."""
    extensions = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS)
    for _ in range(EXTENSION_HEADERS_MAX):
        at = np.flatnonzero(np.isin(protocol, extensions) & ~fragment & (end - transport >= 8))
        if not len(at):
            return
        extension = rows_at(data, transport[at], 8)
        units = extension[:, 1].astype(np.int64)
        kind = protocol[at]
        length = np.select([kind == _FRAGMENT, kind == _AUTHENTICATION], [8, (units + 2) * 4], (units + 1) * 8)
        offset = extension.view(">u2")[:, 1] >> 3
        protocol[at] = extension[:, 0]
        transport[at] += length
        fragment[at] = (kind == _FRAGMENT) & (offset != 0)


def _arp(header: NDArray[np.uint8], rows: NDArray[np.intp], network: _Network) -> NDArray[np.bool_]:
    fixed = header[rows]
    words = fixed.view(">u2")
    # Only IPv4 over 6-byte hardware addresses; the IPv4 addresses then lie at 14 and 24, which u2 views can reach.
    bad = (words[:, 1] != ETHERTYPE_IPV4) | (words[:, 2] != 0x0604)
    quad = words.astype(np.uint64)
    network.source_lo[rows] = (quad[:, 7] << np.uint64(16)) | quad[:, 8] | _MAPPED
    network.target_lo[rows] = (quad[:, 12] << np.uint64(16)) | quad[:, 13] | _MAPPED
    network.protocol[rows] = ARP
    network.size[rows] = _ARP_BYTES
    network.transport[rows] = 0
    network.fragment[rows] = False
    return np.asarray(bad)


def _transport(
    data: NDArray[np.uint8],
    network: _Network,
    time_ns: NDArray[np.int64],
    network_start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> tuple[PacketBatch, int]:
    protocol, whole = network.protocol, ~network.fragment
    start = np.minimum(network.transport, end)
    left = end - start
    length = network.size - (network.transport - network_start)
    header = rows_at(data, start, 20)
    words = header.view(">u2")

    is_tcp, is_udp = (protocol == TCP) & whole, (protocol == UDP) & whole
    is_icmp = ((protocol == ICMP) | (protocol == ICMP6)) & whole
    tcp = is_tcp & (left >= _TCP_LOOK_BYTES) & (length >= _TCP_HEADER_BYTES)
    udp = is_udp & (left >= _UDP_HEADER_BYTES) & (length >= _UDP_HEADER_BYTES)
    icmp = is_icmp & (left >= 1) & (length >= 1)
    has_ports = tcp | udp
    cut = int(((is_tcp | is_udp | is_icmp) & ~has_ports & ~icmp).sum())

    source_port = np.where(has_ports, words[:, 0], 0).astype(np.int64)
    target_port = np.where(has_ports, words[:, 1], 0).astype(np.int64)
    tcp_bytes = np.maximum((header[:, 12] >> 4).astype(np.int64) * 4, _TCP_HEADER_BYTES)
    header_bytes = np.where(tcp, tcp_bytes, _UDP_HEADER_BYTES)
    payload = np.where(has_ports, np.maximum(length - header_bytes, 0), 0)
    payload_start = np.minimum(start + header_bytes, end)
    payload_captured = np.minimum(end - payload_start, payload)
    batch = PacketBatch(
        time_ns=time_ns,
        size=network.size.astype(np.int32),
        source_hi=network.source_hi,
        source_lo=network.source_lo,
        target_hi=network.target_hi,
        target_lo=network.target_lo,
        protocol=protocol.astype(np.uint16),
        has_ports=has_ports,
        source_port=source_port.astype(np.uint16),
        target_port=target_port.astype(np.uint16),
        tcp_flags=np.where(tcp, header[:, 13], 0).astype(np.uint8),
        sequence=np.where(tcp, header.view(">u4")[:, 1], 0).astype(np.uint32),
        payload=payload.astype(np.int32),
        icmp_type=np.where(icmp, header[:, 0].astype(np.int16), np.int16(-1)),
        dns_name_length=dns_name_lengths(
            data,
            protocol=protocol,
            target_port=target_port,
            payload=payload,
            payload_start=payload_start,
            payload_captured=payload_captured,
        ),
        mqtt_type=mqtt_types(
            data,
            protocol=protocol,
            source_port=source_port,
            target_port=target_port,
            payload_start=payload_start,
            payload_captured=payload_captured,
        ),
        fragment=network.fragment,
    )
    return batch, cut
