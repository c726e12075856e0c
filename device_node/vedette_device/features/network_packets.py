"""The few numbers of each packet that the network features need, while its window is open."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vedette_device.features.addresses import LocalNetworks, address_keys, mix
from vedette_device.sources.application import MQTT_PUBLISH, MQTT_SUBSCRIBE
from vedette_device.sources.packets import (
    ACK,
    ARP,
    FIN,
    ICMP,
    ICMP6,
    NO_QUERY,
    RST,
    SYN,
    TCP,
    UDP,
    PacketBatch,
)

SOURCE_LOCAL, TARGET_LOCAL, SOURCE_INTERNAL, TARGET_INTERNAL = 1 << 0, 1 << 1, 1 << 2, 1 << 3
IS_TCP, IS_UDP, IS_SYN, IS_SYN_ACK, IS_RST = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
HAS_PORTS, IS_FLOW, IS_DNS_QUERY = 1 << 9, 1 << 10, 1 << 11
IS_PUBLISH, IS_SUBSCRIBE, IS_SEGMENT, IS_UNREACHABLE = 1 << 12, 1 << 13, 1 << 14, 1 << 15
ANSWERS_BEFORE = 1 << 16
"""A SYN-ACK so early in its window that it may answer a SYN of the window before."""

_ICMP_UNREACHABLE, _ICMP6_UNREACHABLE = 3, 1
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class OpenPackets:
    """Packets of windows that are not closed yet: 56 bytes each.

    Attributes:
        time_ns: ``(n,) int64``.
        source: ``(n,) uint64``, key of the source address.
        target: ``(n,) uint64``, key of the destination address.
        flow: ``(n,) uint64``, key of the flow, the same for both directions.
        segment: ``(n,) uint64``, key of flow, direction, sequence number and length: equal for a retransmission.
        size: ``(n,) int32``, bytes.
        flags: ``(n,) int32``, bits named above.
        service_port: ``(n,) int32``, the lower of both ports, -1 where there is none.
        dns_name_length: ``(n,) int32``, 0 where there is no query.
    """

    time_ns: NDArray[np.int64]
    source: NDArray[np.uint64]
    target: NDArray[np.uint64]
    flow: NDArray[np.uint64]
    segment: NDArray[np.uint64]
    size: NDArray[np.int32]
    flags: NDArray[np.int32]
    service_port: NDArray[np.int32]
    dns_name_length: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> OpenPackets:
        """Return the chosen packets, in that order."""
        columns: list[NDArray[Any]] = [getattr(self, field.name)[rows] for field in fields(self)]
        return OpenPackets(*columns)

    @classmethod
    def concatenate(cls, parts: list[OpenPackets]) -> OpenPackets:
        """Return the packets of all parts, of which there is at least one, one after another."""
        if len(parts) == 1:
            return parts[0]
        columns: list[NDArray[Any]] = [
            np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)
        ]
        return cls(*columns)


def locate(batch: PacketBatch, networks: LocalNetworks) -> NDArray[np.int32]:
    """Say which end of each packet is local and which internal, as bits."""
    flags = np.where(networks.local(batch.source_hi, batch.source_lo), SOURCE_LOCAL, 0)
    flags |= np.where(networks.local(batch.target_hi, batch.target_lo), TARGET_LOCAL, 0)
    flags |= np.where(networks.internal(batch.source_hi, batch.source_lo), SOURCE_INTERNAL, 0)
    flags |= np.where(networks.internal(batch.target_hi, batch.target_lo), TARGET_INTERNAL, 0)
    return flags.astype(np.int32)


def condense(batch: PacketBatch, flags: NDArray[np.int32], answers_before: NDArray[np.bool_]) -> OpenPackets:
    """Reduce packets to what the features need.

    Args:
        batch: packets.
        flags: ``(n,) int32``, what ``locate`` said of them.
        answers_before: ``(n,) bool``, whether a packet may answer one of the window before its own.
    """
    source, target = (
        address_keys(batch.source_hi, batch.source_lo),
        address_keys(batch.target_hi, batch.target_lo),
    )
    tcp, udp = batch.protocol == TCP, batch.protocol == UDP
    ports = batch.has_ports
    syn = tcp & ((batch.tcp_flags & (SYN | ACK)) == SYN)
    syn_ack = tcp & ((batch.tcp_flags & (SYN | ACK)) == (SYN | ACK))
    # A segment that carries nothing (a bare ACK) is repeated as a matter of course.
    segment = tcp & ports & ((batch.payload > 0) | ((batch.tcp_flags & (SYN | FIN)) != 0))
    query = batch.dns_name_length != NO_QUERY
    # Later fragments of TCP and UDP do not tell which flow they belong to.
    is_flow = (batch.protocol != ARP) & (ports | ~(tcp | udp))
    unreachable = ((batch.protocol == ICMP) & (batch.icmp_type == _ICMP_UNREACHABLE)) | (
        (batch.protocol == ICMP6) & (batch.icmp_type == _ICMP6_UNREACHABLE)
    )
    marks = (
        (tcp, IS_TCP),
        (udp, IS_UDP),
        (syn, IS_SYN),
        (syn_ack, IS_SYN_ACK),
        (syn_ack & answers_before, ANSWERS_BEFORE),
        (tcp & ((batch.tcp_flags & RST) != 0), IS_RST),
        (ports, HAS_PORTS),
        (is_flow, IS_FLOW),
        (query, IS_DNS_QUERY),
        (batch.mqtt_type == MQTT_PUBLISH, IS_PUBLISH),
        (batch.mqtt_type == MQTT_SUBSCRIBE, IS_SUBSCRIBE),
        (segment, IS_SEGMENT),
        (unreachable, IS_UNREACHABLE),
    )
    bits = flags.copy()
    for mask, bit in marks:
        bits |= mask.astype(np.int32) * np.int32(bit)
    flow, segment_key = _keys(batch, source, target)
    flow = np.where(is_flow, flow, ~flow)  # so that they never share a key with a flow between two ports 0
    return OpenPackets(
        time_ns=batch.time_ns,
        source=source,
        target=target,
        flow=flow,
        segment=segment_key,
        size=batch.size,
        flags=bits,
        service_port=np.where(ports, np.minimum(batch.source_port, batch.target_port).astype(np.int32), -1).astype(
            np.int32
        ),
        dns_name_length=np.where(query, batch.dns_name_length, 0).astype(np.int32),
    )


def _keys(
    batch: PacketBatch, source: NDArray[np.uint64], target: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Flow key (a symmetric mix of both ends) and segment key (with direction, sequence number and length)."""
    from_end = mix(source * _ODD + batch.source_port.astype(np.uint64))
    to_end = mix(target * _ODD + batch.target_port.astype(np.uint64))
    flow = mix(from_end + to_end + batch.protocol.astype(np.uint64) * _ODD)
    kind = (batch.tcp_flags & (SYN | FIN)).astype(np.uint64)
    what = (batch.sequence.astype(np.uint64) << np.uint64(32)) | batch.payload.astype(np.uint64)
    segment = mix(flow ^ mix(what + from_end)) + kind
    return flow, segment
