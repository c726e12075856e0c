"""The vectorised windower counts what a plain one counts, however the packets are cut into batches."""

from __future__ import annotations

import ipaddress
import random
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_windower import WINDOW_NS, Packet, ReferenceWindower

from vedette_device.features import network_columns
from vedette_device.features.network import NetworkWindower
from vedette_device.features.windows import Window
from vedette_device.sources.packets import PacketBatch
from vedette_schemas.features import NETWORK_FLOWS

NETWORKS = ("192.168.1.0/24", "fd00::/64")
HOSTS = ("192.168.1.2", "192.168.1.3", "192.168.1.4", "192.168.1.255", "fd00::7", "fd00::8")
AWAY = ("203.0.113.9", "192.168.2.9", "224.0.0.251", "2001:db8::1", "ff02::fb", "0.0.0.0")
START_NS = 340_000_000 * WINDOW_NS


def batch_of(packets: list[Packet]) -> PacketBatch:
    def halves(address: str) -> tuple[int, int]:
        ip = ipaddress.ip_address(address)
        number = int(ip) | (0xFFFF << 32 if ip.version == 4 else 0)
        return number >> 64, number & (1 << 64) - 1

    source, target = [halves(p.source) for p in packets], [halves(p.target) for p in packets]
    return PacketBatch(
        time_ns=np.array([p.time_ns for p in packets], dtype=np.int64),
        size=np.array([p.size for p in packets], dtype=np.int32),
        source_hi=np.array([hi for hi, _ in source], dtype=np.uint64),
        source_lo=np.array([lo for _, lo in source], dtype=np.uint64),
        target_hi=np.array([hi for hi, _ in target], dtype=np.uint64),
        target_lo=np.array([lo for _, lo in target], dtype=np.uint64),
        protocol=np.array([p.protocol for p in packets], dtype=np.uint16),
        has_ports=np.array([p.sport is not None for p in packets], dtype=np.bool_),
        source_port=np.array([p.sport or 0 for p in packets], dtype=np.uint16),
        target_port=np.array([p.dport or 0 for p in packets], dtype=np.uint16),
        tcp_flags=np.array([p.flags for p in packets], dtype=np.uint8),
        sequence=np.array([p.sequence for p in packets], dtype=np.uint32),
        payload=np.array([p.payload for p in packets], dtype=np.int32),
        icmp_type=np.array([p.icmp_type for p in packets], dtype=np.int16),
        dns_name_length=np.array([p.dns_name_length for p in packets], dtype=np.int16),
        mqtt_type=np.array([p.mqtt_type for p in packets], dtype=np.uint8),
        fragment=np.array([p.fragment for p in packets], dtype=np.bool_),
    )


STEPS_NS = (0, 1_000, 3_000_000, 400_000_000, 700_000_000, 4_900_000_000, -300_000_000, -5_000_000_000)
PORTS = ((40_000, 443), (443, 40_000), (50_000, 53), (1, 2), (0, 0), (None, None))


@st.composite
def streams(draw: st.DrawFn) -> list[Packet]:
    """Packets of a seed: many more examples a second than drawing each field, and the length still shrinks."""
    return stream_of(random.Random(draw(st.integers(0, 2**32))), draw(st.integers(1, 60)), draw(st.booleans()))


def stream_of(rng: random.Random, length: int, handshakes: bool) -> list[Packet]:
    now, packets = START_NS, []
    for _ in range(length):
        now += rng.choice(STEPS_NS) + rng.choice([0] * 12 + [31, 150]) * WINDOW_NS
        if handshakes:  # requests and answers of one flow, often across the edge of a window
            asks = rng.random() < 0.5
            ends, ports = [HOSTS[0], AWAY[0]][:: 1 if asks else -1], PORTS[0 if asks else 1]
            packets.append(Packet(max(now, 0), *ends, 6, 60, *ports, flags=2 if asks else rng.choice([18, 20, 16])))
            continue
        protocol, ports = rng.choice([6, 6, 6, 17, 1, 58, 256, 47]), rng.choice(PORTS)
        if protocol not in (6, 17):
            ports = (None, None)
        with_ports = ports[0] is not None
        tcp = protocol == 6 and with_ports
        ends = [rng.choice(HOSTS), rng.choice(HOSTS + AWAY)]
        rng.shuffle(ends)
        packets.append(
            Packet(
                max(now, 0),
                *ends,
                protocol,
                rng.randint(20, 65_535),
                *ports,
                flags=rng.choice([2, 18, 16, 17, 4, 20, 24]) if tcp else 0,
                sequence=rng.randint(0, 2) if tcp else 0,
                payload=rng.choice([0, 0, 10]) if with_ports else 0,
                icmp_type=rng.choice([0, 1, 3, 8]) if protocol in (1, 58) else -1,
                dns_name_length=rng.randint(0, 200) if ports[1] == 53 else -1,
                mqtt_type=rng.choice([0, 3, 8]) if tcp else 0,
                fragment=not with_ports and rng.random() < 0.5 and protocol != 256,
            )
        )
    return packets


def compare(found: list[Window], expected: list[tuple[str, int, list[float]]]) -> None:
    assert [(w.entity, w.start_s) for w in found] == [(entity, window * 5.0) for entity, window, _ in expected]
    assert [w.end_s for w in found] == [(window + 1) * 5.0 for _, window, _ in expected]
    if not found:
        return
    values, wanted = np.stack([w.values for w in found]), np.array([row for _, _, row in expected])
    wrong = np.argwhere(~np.isclose(values, wanted, rtol=2e-6, atol=2e-6))
    assert not len(wrong), [
        (found[row].entity, found[row].start_s, NETWORK_FLOWS.columns[column], values[row, column], wanted[row, column])
        for row, column in wrong.tolist()
    ]


@settings(max_examples=200)
@given(
    streams(),
    st.lists(st.integers(1, 20), max_size=10),
    st.sampled_from([(120, 1_024, 1 << 18), (3, 2, 6)]),
    st.sampled_from([network_columns.ROWS_AT_ONCE, 7]),
)
def test_equals_the_plain_windower_in_any_batches_and_parts(
    packets: list[Packet], cuts: list[int], limits: tuple[int, int, int], rows_at_once: int
) -> None:
    with patch.object(network_columns, "ROWS_AT_ONCE", rows_at_once):
        check_against_the_plain_windower(packets, cuts, limits)


def check_against_the_plain_windower(packets: list[Packet], cuts: list[int], limits: tuple[int, int, int]) -> None:
    idle, entities_max, window_max = limits
    reference = ReferenceWindower(NETWORKS, idle=idle, entities_max=entities_max, window_max=window_max)
    windower = NetworkWindower(NETWORKS, idle_windows=idle, entities_max=entities_max, packets_window_max=window_max)
    for packet in packets:
        reference.push(packet)
    reference.flush()
    found: list[Window] = []
    rest = packets
    for cut in [*cuts, len(packets)]:
        found += windower.push(batch_of(rest[:cut]))
        rest = rest[cut:]
    found += windower.flush()
    compare(found, reference.out)
    counters = dict(windower.counters())
    for name in ("packets", "late", "not_local", "window_full", "silent_target", "entity_limit", "clock_steps"):
        assert counters[name] == reference.counters[name], name
    assert counters["windows"] == len(found)
    assert all(np.isfinite(window.values).all() and window.values.dtype == np.float32 for window in found)


@settings(max_examples=100)
@given(streams(), st.integers(0, 200), st.integers(1, 59))
def test_time_that_passes_without_packets_equals_the_plain_windower(
    packets: list[Packet], quiet_windows: int, at: int
) -> None:
    reference, windower = ReferenceWindower(NETWORKS), NetworkWindower(NETWORKS)
    for packet in packets[:at]:
        reference.push(packet)
    found = windower.push(batch_of(packets[:at]))
    now_ns = max(packet.time_ns for packet in packets[:at]) + quiet_windows * WINDOW_NS
    reference.advance(now_ns)
    found += windower.advance(now_ns / 1e9)
    for packet in packets[at:]:
        reference.push(packet)
    found += windower.push(batch_of(packets[at:]))
    reference.flush()
    found += windower.flush()
    compare(found, reference.out)


@settings(max_examples=60)
@given(streams(), streams(), st.integers(1, 60))
def test_a_clock_that_was_set_back_starts_anew(before: list[Packet], after: list[Packet], cut: int) -> None:
    shifted = [Packet(**{**_fields(p), "time_ns": p.time_ns - 4_000 * WINDOW_NS}) for p in after for _ in range(3)]
    packets = before + shifted
    reference, windower = ReferenceWindower(NETWORKS), NetworkWindower(NETWORKS)
    for packet in packets:
        reference.push(packet)
    found = windower.push(batch_of(packets[:cut])) + windower.push(batch_of(packets[cut:]))
    reference.flush()
    found += windower.flush()
    compare(found, reference.out)
    assert windower.counters()["clock_steps"] == reference.counters["clock_steps"]


def _fields(packet: Packet) -> dict[str, object]:
    return {name: getattr(packet, name) for name in Packet.__dataclass_fields__}
