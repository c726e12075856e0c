"""The 24 network columns, for all entities and windows of a batch at once.

What each column counts, from the entity's point of view (``peer`` is the other end of a packet):

====================================  =====================================================================
``packets_in``, ``packets_out``       packets to and from the entity
``bytes_in``, ``bytes_out``           their bytes, from the network header on
``size_mean_bytes``, ``_std``, ``_max``  moments of the packet sizes, both directions
``interarrival_mean_s``, ``_std_s``   moments of the time between successive packets, both directions
``tcp_share``, ``udp_share``          shares of the packets; the rest is ICMP, ARP and others
``syn_count``                         connection requests (SYN without ACK), both directions
``rst_count``                         resets, both directions
``flows_new``                         flows (both addresses, both ports, protocol) not seen for two minutes
``peers_distinct``                    distinct peers
``service_ports_distinct``            distinct service ports; the lower of a flow's two ports, so that the
                                      short-lived ports of a server's clients do not count
``internal_share``                    share of packets whose peer is on the site, or is a group address
``dns_queries``                       DNS queries that the entity sent
``dns_name_length_mean``              mean length of the names that they ask for, in characters
``mqtt_publishes``, ``mqtt_subscribes``  MQTT control packets of these types, both directions
``connects_failed``                   flows in which the entity sent a SYN and no SYN-ACK came back, and ICMP
                                      *destination unreachable* messages that it got
``retransmissions``                   TCP segments that repeat one of the window, both directions
``service_port_entropy_bits``         Shannon entropy of the packets' service ports
====================================  =====================================================================

All sums are of integers and exact, so that the same packets give the same values however they were cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vedette_device.features.addresses import mix
from vedette_device.features.flows import FlowTable
from vedette_device.features.network_packets import (
    ANSWERS_BEFORE,
    HAS_PORTS,
    IS_DNS_QUERY,
    IS_FLOW,
    IS_PUBLISH,
    IS_RST,
    IS_SEGMENT,
    IS_SUBSCRIBE,
    IS_SYN,
    IS_SYN_ACK,
    IS_TCP,
    IS_UDP,
    IS_UNREACHABLE,
    SOURCE_INTERNAL,
    SOURCE_LOCAL,
    TARGET_INTERNAL,
    TARGET_LOCAL,
    OpenPackets,
)
from vedette_schemas.features import NETWORK_FLOWS

NS_PER_US = 1_000
_US_PER_S = 1e6

ROWS_AT_ONCE = 1 << 17
"""Rows (packets a local end) that are worked on together; about 25 MB of intermediate arrays."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Values of each (window, entity) pair that has packets, sorted by window.

    Attributes:
        window: ``(g,) int64``, index of the window since the epoch.
        entity: ``(g,) uint64``, key of the entity's address.
        sent: ``(g,) int64``, packets that the entity sent.
        received: ``(g,) int64``, packets sent to it.
        first: ``(g,) int64``, index of the first packet that it sent, -1 where it sent none.
        values: ``(g, 24) float32``.
    """

    window: NDArray[np.int64]
    entity: NDArray[np.uint64]
    sent: NDArray[np.int64]
    received: NDArray[np.int64]
    first: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Context:
    """What all rows are computed from."""

    packets: OpenPackets
    window: NDArray[np.int64]
    window_ns: int
    answered: NDArray[np.uint64]
    new_flow: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Rows:
    """One row for each end of a packet that is local: those of senders first."""

    packet: NDArray[np.intp]
    outgoing: NDArray[np.bool_]
    group: NDArray[np.int64]
    peer: NDArray[np.uint64]
    flags: NDArray[np.int32]
    internal: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """One row for each (group, flow): everything distinct is counted on these few."""

    group: NDArray[np.int64]
    row: NDArray[np.intp]
    packets: NDArray[np.int64]


def aggregate(
    packets: OpenPackets,
    window: NDArray[np.int64],
    *,
    window_ns: int,
    early_answers: NDArray[np.uint64],
    flows: FlowTable,
) -> Groups:
    """Compute the columns.

    Args:
        packets: packets of whole windows, each with a local end.
        window: ``(n,) int64``, index of each packet's window.
        window_ns: length of a window.
        early_answers: ``(m,) uint64``, what ``answer_keys`` returned for SYN-ACKs just behind these windows.
        flows: which flows were seen before; learns those of these packets.
    """
    answers = [answer_keys(packets, window, before=False), answer_keys(packets, window, before=True), early_answers]
    context = _Context(
        packets=packets,
        window=window,
        window_ns=window_ns,
        answered=np.concatenate(answers),
        new_flow=_in_new_flow(packets, window, flows),
    )
    sends = (packets.flags & SOURCE_LOCAL) != 0
    # A packet of an address to itself (a gratuitous ARP) is one that it sent.
    receives = ((packets.flags & TARGET_LOCAL) != 0) & (packets.source != packets.target)
    parts = -(-int(sends.sum() + receives.sum()) // ROWS_AT_ONCE)
    if parts <= 1:
        return _groups(context, np.flatnonzero(sends), np.flatnonzero(receives))
    # A flood is worked off entity by entity, so that its memory stays bounded.
    sender_part, receiver_part = mix(packets.source) % np.uint64(parts), mix(packets.target) % np.uint64(parts)
    ends = [
        (np.flatnonzero(sends & (sender_part == i)), np.flatnonzero(receives & (receiver_part == i)))
        for i in range(parts)
    ]
    return _joined([_groups(context, *each) for each in ends if len(each[0]) or len(each[1])])


def _joined(parts: list[Groups]) -> Groups:
    """All groups of the parts, sorted by window."""
    columns: list[NDArray[Any]] = [np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Groups)]
    order = np.argsort(columns[0], kind="stable")
    return Groups(*(column[order] for column in columns))


def _groups(context: _Context, senders: NDArray[np.intp], receivers: NDArray[np.intp]) -> Groups:
    packets, window, window_ns = context.packets, context.window, context.window_ns
    rows, group_window, group_entity = _expand(packets, window, senders, receivers)
    count = len(group_window)
    pairs = _flow_pairs(packets, rows)

    def per_group(mask: NDArray[np.bool_], weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        chosen = rows.group[mask]
        if weights is None:
            return _counts(chosen, count)
        return _sums(chosen, weights[mask], count)

    def flagged(bit: int) -> NDArray[np.bool_]:
        return np.asarray((rows.flags & bit) != 0)

    everything = np.ones(len(rows.group), dtype=np.bool_)
    size = packets.size[rows.packet].astype(np.float64)
    total = per_group(everything)
    sent, received = per_group(rows.outgoing), per_group(~rows.outgoing)
    bytes_in, bytes_out = per_group(~rows.outgoing, size), per_group(rows.outgoing, size)
    size_mean = (bytes_in + bytes_out) / total
    size_std = _std(per_group(everything, size * size), size_mean, total)
    gap_mean, gap_std = _interarrival(packets.time_ns[rows.packet] % window_ns, rows.group, count, window_ns, total)
    query = rows.outgoing & flagged(IS_DNS_QUERY)
    queries = per_group(query)
    name_lengths = per_group(query, packets.dns_name_length[rows.packet])
    ports_distinct, port_entropy = _service_ports(packets, rows, pairs, count)
    columns = {
        "packets_in": received,
        "packets_out": sent,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "size_mean_bytes": size_mean,
        "size_std_bytes": size_std,
        "size_max_bytes": _largest(packets.size[rows.packet], rows.group),
        "interarrival_mean_s": gap_mean,
        "interarrival_std_s": gap_std,
        "tcp_share": per_group(flagged(IS_TCP)) / total,
        "udp_share": per_group(flagged(IS_UDP)) / total,
        "syn_count": per_group(flagged(IS_SYN)),
        "rst_count": per_group(flagged(IS_RST)),
        "flows_new": _counts(pairs.group[context.new_flow[rows.packet[pairs.row]]], count),
        "peers_distinct": _distinct(pairs.group, rows.peer[pairs.row], count),
        "service_ports_distinct": ports_distinct,
        "internal_share": per_group(rows.internal) / total,
        "dns_queries": queries,
        "dns_name_length_mean": name_lengths / np.maximum(queries, 1),
        "mqtt_publishes": per_group(flagged(IS_PUBLISH)),
        "mqtt_subscribes": per_group(flagged(IS_SUBSCRIBE)),
        "connects_failed": _failed_connects(context, rows, count) + per_group(~rows.outgoing & flagged(IS_UNREACHABLE)),
        "retransmissions": _repeated_segments(packets, rows, count),
        "service_port_entropy_bits": port_entropy,
    }
    first = np.full(count, -1, dtype=np.int64)
    backwards = np.flatnonzero(rows.outgoing)[::-1]
    first[rows.group[backwards]] = rows.packet[backwards]  # the last assignment, which is the first packet, stays
    return Groups(
        window=group_window,
        entity=group_entity,
        sent=sent.astype(np.int64),
        received=received.astype(np.int64),
        first=first,
        values=np.stack([columns[name] for name in NETWORK_FLOWS.columns], axis=1).astype(np.float32),
    )


def answer_keys(packets: OpenPackets, window: NDArray[np.int64], *, before: bool) -> NDArray[np.uint64]:
    """Keys of the (flow, window) pairs in which a SYN was answered.

    Args:
        packets: packets.
        window: ``(n,) int64``, index of each packet's window.
        before: whether early SYN-ACKs answer the window before their own, instead of all answering their own.
    """
    chosen = np.flatnonzero((packets.flags & (ANSWERS_BEFORE if before else IS_SYN_ACK)) != 0)
    return _combined(packets.flow[chosen], window[chosen] - int(before))


def _counts(group: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """How often each of ``count`` groups occurs."""
    return np.bincount(group, minlength=count).astype(np.float64)


def _sums(group: NDArray[np.int64], weights: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Sum of the weights of each group; exact, because the weights are integers and the sums below 2⁵³."""
    return np.asarray(np.bincount(group, weights=weights, minlength=count), dtype=np.float64)


def _combined(key: NDArray[np.uint64], number: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One key for a key and a small number."""
    return mix(key ^ mix(number.astype(np.uint64)))


def _expand(
    packets: OpenPackets, window: NDArray[np.int64], senders: NDArray[np.intp], receivers: NDArray[np.intp]
) -> tuple[_Rows, NDArray[np.int64], NDArray[np.uint64]]:
    packet = np.concatenate([senders, receivers])
    outgoing = np.zeros(len(packet), dtype=np.bool_)
    outgoing[: len(senders)] = True
    entity = np.concatenate([packets.source[senders], packets.target[receivers]])
    entities = np.unique(entity)
    windows = np.unique(window[packet])
    code = np.searchsorted(windows, window[packet]) * len(entities) + np.searchsorted(entities, entity)
    present, group = _dense(code, len(windows) * len(entities))
    flags = packets.flags[packet]
    rows = _Rows(
        packet=packet,
        outgoing=outgoing,
        group=group,
        peer=np.concatenate([packets.target[senders], packets.source[receivers]]),
        flags=flags,
        internal=(flags & np.where(outgoing, TARGET_INTERNAL, SOURCE_INTERNAL)) != 0,
    )
    return rows, windows[present // len(entities)], entities[present % len(entities)]


def _dense(code: NDArray[np.int64], codes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes that occur, sorted, and for each element which of them it is."""
    if codes > 4 * len(code) + 1_024:
        present, group = np.unique(code, return_inverse=True)
        return present, group
    occurs = np.bincount(code, minlength=codes) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[code]


def _runs(keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order that sorts the keys, and where in it each run of equal keys starts."""
    order = np.argsort(keys)
    in_order = keys[order]
    starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1])) if len(keys) else np.zeros(0, dtype=np.intp)
    return order, starts


def _flow_pairs(packets: OpenPackets, rows: _Rows) -> _Pairs:
    order, starts = _runs(_combined(packets.flow[rows.packet], rows.group))
    row = order[starts]
    return _Pairs(group=rows.group[row], row=row, packets=np.diff(np.append(starts, len(order))))


def _distinct(group: NDArray[np.int64], key: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    order, starts = _runs(_combined(key, group))
    return _counts(group[order[starts]], count)


def _std(square_sum: NDArray[np.float64], mean: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.maximum(square_sum / n - mean * mean, 0.0)))


def _largest(size: NDArray[np.int32], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest size of each group; every group has a row."""
    in_order = np.sort((group << 32) | size)
    last = np.append(in_order[1:] >> 32 != in_order[:-1] >> 32, True)
    largest: NDArray[np.int64] = in_order[last] & 0xFFFF_FFFF
    return largest.astype(np.float64)


def _interarrival(
    offset_ns: NDArray[np.int64], group: NDArray[np.int64], count: int, window_ns: int, total: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation, in seconds, of the gaps between a group's packets; 0 where there is no gap."""
    bits = (window_ns // NS_PER_US).bit_length()
    in_order = np.sort((group << bits) | (offset_ns // NS_PER_US))
    sorted_group, offset_us = in_order >> bits, in_order & ((1 << bits) - 1)
    inside = sorted_group[1:] == sorted_group[:-1]
    gap = np.diff(offset_us)[inside].astype(np.float64)
    of = sorted_group[1:][inside]
    gaps = np.maximum(total - 1, 1)
    mean = _sums(of, gap, count) / gaps
    std = _std(_sums(of, gap * gap, count), mean, gaps)
    return mean / _US_PER_S, std / _US_PER_S


def _service_ports(
    packets: OpenPackets, rows: _Rows, pairs: _Pairs, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Number of distinct service ports, and the entropy in bits of the packets' service ports."""
    with_ports = (rows.flags[pairs.row] & HAS_PORTS) != 0
    group, row, n = pairs.group[with_ports], pairs.row[with_ports], pairs.packets[with_ports]
    if not len(group):
        return np.zeros(count), np.zeros(count)
    code = (group << 16) | packets.service_port[rows.packet[row]]
    order, starts = _runs(code.view(np.uint64))
    of = code[order[starts]] >> 16
    times = np.add.reduceat(n[order], starts).astype(np.float64)
    distinct = _counts(of, count)
    total = np.maximum(_sums(of, times, count), 1.0)
    entropy = np.log2(total) - _sums(of, times * np.log2(times), count) / total
    # Rounding must not leave a trace where a single port gives exactly 0.
    return distinct, np.where(distinct > 1, np.maximum(entropy, 0.0), 0.0)


def _in_new_flow(packets: OpenPackets, window: NDArray[np.int64], flows: FlowTable) -> NDArray[np.bool_]:
    """Whether each packet belongs to a flow that is new in its window."""
    chosen = np.flatnonzero((packets.flags & IS_FLOW) != 0)
    order, starts = _runs(_combined(packets.flow[chosen], window[chosen]))
    one_of_each = chosen[order[starts]]
    new = flows.mark(packets.flow[one_of_each], window[one_of_each])
    in_new = np.zeros(len(packets), dtype=np.bool_)
    in_new[chosen[order]] = np.repeat(new, np.diff(np.append(starts, len(order))))
    return in_new


def _failed_connects(context: _Context, rows: _Rows, count: int) -> NDArray[np.float64]:
    flow = context.packets.flow
    tried = np.flatnonzero(rows.outgoing & ((rows.flags & IS_SYN) != 0))
    order, starts = _runs(_combined(flow[rows.packet[tried]], rows.group[tried]))
    tried = tried[order[starts]]
    packet = rows.packet[tried]
    answered = np.isin(_combined(flow[packet], context.window[packet]), context.answered)
    return _counts(rows.group[tried][~answered], count)


def _repeated_segments(packets: OpenPackets, rows: _Rows, count: int) -> NDArray[np.float64]:
    segments = np.flatnonzero((rows.flags & IS_SEGMENT) != 0)
    group = rows.group[segments]
    distinct = _distinct(group, packets.segment[rows.packet[segments]], count)
    return _counts(group, count) - distinct
