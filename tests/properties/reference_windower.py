"""Counts one packet after the other with sets and dictionaries: the oracle for the vectorised windower."""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache

WINDOW_NS = 5_000_000_000
FIN, SYN, RST, ACK = 1, 2, 4, 16
INTERNAL = ("224.0.0.0/4", "255.255.255.255/32", "169.254.0.0/16", "0.0.0.0/32", "ff00::/8", "fe80::/10")


@dataclass(frozen=True)
class Packet:
    time_ns: int
    source: str
    target: str
    protocol: int = 6
    size: int = 60
    sport: int | None = 40_000
    dport: int | None = 443
    flags: int = ACK
    sequence: int = 0
    payload: int = 0
    icmp_type: int = -1
    dns_name_length: int = -1
    mqtt_type: int = 0
    fragment: bool = False

    @property
    def flow(self) -> object:
        ends = frozenset({(self.source, self.sport or 0), (self.target, self.dport or 0)})
        return ends, self.protocol


@lru_cache(maxsize=256)
def inside(address: str, networks: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in net for net in map(ipaddress.ip_network, networks) if net.version == ip.version)


@lru_cache(maxsize=256)
def stands_for_all(address: str, networks: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(address)
    v4 = [net for net in map(ipaddress.ip_network, networks) if net.version == 4 and net.prefixlen < 31]
    return any(ip in (net.network_address, net.broadcast_address) for net in v4)


def moments(numbers: list[float]) -> tuple[float, float]:
    if not numbers:
        return 0.0, 0.0
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers))


class ReferenceWindower:
    def __init__(
        self,
        networks: tuple[str, ...],
        *,
        tolerance_ns: int = 500_000_000,
        idle: int = 120,
        entities_max: int = 1_024,
        window_max: int = 1 << 19,
        flow_idle: int = 24,
    ) -> None:
        self.networks, self.tolerance_ns, self.idle = networks, tolerance_ns, idle
        self.entities_max, self.window_max, self.flow_idle = entities_max, window_max, flow_idle
        self.counters: Counter[str] = Counter()
        self.out: list[tuple[str, int, list[float]]] = []
        self.forget()

    def forget(self) -> None:
        self.newest: int | None = None
        self.boundary = -(10**15)
        self.open: dict[int, list[tuple[Packet, bool]]] = defaultdict(list)
        self.devices: dict[str, int] = {}
        self.flows: dict[object, int] = {}
        self.next_window: int | None = None
        self.far_run = 0

    def local(self, address: str) -> bool:
        return inside(address, self.networks) and not stands_for_all(address, self.networks)

    def push(self, packet: Packet) -> None:
        if self.newest is not None and packet.time_ns < self.newest - 60_000_000_000:
            self.far_run += 1
            if self.far_run >= 32:
                self.flush()
                self.counters["clock_steps"] += 1
                self.forget()
        else:
            self.far_run = 0
        self.counters["packets"] += 1
        window = packet.time_ns // WINDOW_NS
        before = self.newest
        closed_before = -(10**15) if before is None else (before - self.tolerance_ns) // WINDOW_NS
        if window < closed_before or window < self.boundary:
            self.counters["late"] += 1
        elif not self.local(packet.source) and not self.local(packet.target):
            self.counters["not_local"] += 1
        elif len(self.open[window]) >= self.window_max:
            self.counters["window_full"] += 1
        else:
            start = window * WINDOW_NS
            early = packet.time_ns - start < self.tolerance_ns
            early = early and (before is None or before < start + self.tolerance_ns)
            self.open[window].append((packet, early))
        self.newest = packet.time_ns if before is None else max(before, packet.time_ns)
        self.close_until((self.newest - self.tolerance_ns) // WINDOW_NS)

    def advance(self, now_ns: int) -> None:
        if self.newest is not None:
            self.newest = max(self.newest, now_ns)
            self.close_until((self.newest - self.tolerance_ns) // WINDOW_NS)

    def flush(self) -> None:
        if self.newest is not None:
            self.close_until(max((w for w, kept in self.open.items() if kept), default=self.boundary - 1) + 1)

    def close_until(self, boundary: int) -> None:
        if boundary <= self.boundary:
            return
        self.boundary = boundary
        for window in sorted(w for w, kept in self.open.items() if kept and w < boundary):
            self.silence(window)
            self.close(window)
        for window in [w for w in self.open if w < boundary]:
            del self.open[window]
        self.silence(boundary)

    def silence(self, until: int) -> None:
        while self.next_window is not None and self.next_window < until:
            self.drop_idle(self.next_window)
            if not self.devices:
                self.next_window = None
                return
            self.emit(self.next_window, {})

    def drop_idle(self, window: int) -> None:
        self.devices = {e: last for e, last in self.devices.items() if window - last <= self.idle}

    def emit(self, window: int, rows: dict[str, list[float]]) -> None:
        for entity in self.devices:
            self.out.append((entity, window, rows.get(entity, [0.0] * 24)))
        self.next_window = window + 1

    def close(self, window: int) -> None:
        packets = [packet for packet, _ in self.open[window]]
        # Only segments whose flags could be read are marked so, and they have ports.
        answers = {p.flow for p in packets if p.flags & (SYN | ACK) == SYN | ACK and p.protocol == 6}
        answers |= {
            p.flow
            for p, early in self.open.get(window + 1, [])
            if early and p.flags & (SYN | ACK) == SYN | ACK and p.protocol == 6
        }
        new_flows = set()
        for packet in packets:
            if self.is_flow(packet):
                if window - self.flows.get(packet.flow, -(10**9)) > self.flow_idle:
                    new_flows.add(packet.flow)
                self.flows[packet.flow] = window
        self.drop_idle(window)
        by_entity: dict[str, list[Packet]] = defaultdict(list)
        senders: list[str] = []
        for packet in packets:
            if self.local(packet.source):
                by_entity[packet.source].append(packet)
                if packet.source not in senders:
                    senders.append(packet.source)
            if self.local(packet.target) and packet.target != packet.source:
                by_entity[packet.target].append(packet)
        rows = {}
        for entity in [*senders, *(e for e in by_entity if e not in senders)]:
            if entity not in self.devices:
                if entity not in senders:
                    self.counters["silent_target"] += len(by_entity[entity])
                    continue
                if len(self.devices) >= self.entities_max:
                    self.counters["entity_limit"] += len(by_entity[entity])
                    continue
            self.devices[entity] = window
            rows[entity] = self.row(entity, by_entity[entity], answers, new_flows)
        self.emit(window, rows)

    @staticmethod
    def is_flow(packet: Packet) -> bool:
        return packet.protocol != 256 and (packet.sport is not None or packet.protocol not in (6, 17))

    def row(self, entity: str, packets: list[Packet], answers: set[object], new_flows: set[object]) -> list[float]:
        sent = [p for p in packets if p.source == entity]
        received = [p for p in packets if p.source != entity]
        n = len(packets)
        sizes = [float(p.size) for p in packets]
        times = sorted((p.time_ns % WINDOW_NS) // 1_000 for p in packets)
        gaps = [(b - a) / 1e6 for a, b in itertools.pairwise(times)]
        tcp = [p for p in packets if p.protocol == 6]
        peers = [p.target if p.source == entity else p.source for p in packets]
        ports = Counter(min(p.sport, p.dport) for p in packets if p.sport is not None and p.dport is not None)
        total = sum(ports.values())
        entropy = -sum(c / total * math.log2(c / total) for c in ports.values())
        queries = [p.dns_name_length for p in sent if p.dns_name_length >= 0]
        requests = [p for p in tcp if p.flags & (SYN | ACK) == SYN]
        tried = {p.flow for p in requests if p.source == entity}
        segments = [
            (p.source, p.sport, p.target, p.dport, p.sequence, p.payload, p.flags & (SYN | FIN))
            for p in tcp
            if p.sport is not None and (p.payload > 0 or p.flags & (SYN | FIN))
        ]
        unreachable = [p for p in received if (p.protocol, p.icmp_type) in ((1, 3), (58, 1))]
        size_mean, size_std = moments(sizes)
        gap_mean, gap_std = moments(gaps)
        return [
            len(received),
            len(sent),
            sum(p.size for p in received),
            sum(p.size for p in sent),
            size_mean,
            size_std,
            max(sizes),
            gap_mean,
            gap_std,
            len(tcp) / n,
            sum(p.protocol == 17 for p in packets) / n,
            len(requests),
            sum(bool(p.flags & RST) for p in tcp),
            len({p.flow for p in packets if self.is_flow(p)} & new_flows),
            len(set(peers)),
            len(ports),
            sum(inside(peer, (*self.networks, *INTERNAL)) for peer in peers) / n,
            len(queries),
            sum(queries) / max(len(queries), 1),
            sum(p.mqtt_type == 3 for p in packets),
            sum(p.mqtt_type == 8 for p in packets),
            len(tried - answers) + len(unreachable),
            len(segments) - len(set(segments)),
            entropy,
        ]
