"""The network columns counted by hand, and the rules around a window."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import capture_writing as w
import numpy as np
import pytest

from vedette_device.features import NetworkWindower, Window
from vedette_device.features.addresses import LocalNetworks
from vedette_device.features.flows import FlowTable
from vedette_device.features.network import STEP_PACKETS
from vedette_device.sources import CaptureFile, PacketBatch
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS

ME, HUB, CLOUD = "192.168.1.5", "192.168.1.1", "203.0.113.7"
NET = ["192.168.1.0/24"]
START = 1_700_000_000
"""A multiple of 5 s."""


def packets(tmp_path: Path, *described: tuple[float, bytes]) -> PacketBatch:
    path = tmp_path / "a.pcap"
    path.write_bytes(
        w.pcap([w.Record(round((START + t) * 1e6) * 1_000, net) for t, net in described], link=w.RAW, nanoseconds=True)
    )
    batch = CaptureFile(path).read()
    assert batch is not None
    assert len(batch) == len(described)
    return batch


def tcp(source: str, target: str, sport: int, dport: int, flags: int, seq: int = 1, payload: bytes = b"") -> bytes:
    return w.ipv4(source, target, 6, w.tcp(sport, dport, flags, seq=seq, payload=payload))


def udp(source: str, target: str, sport: int, dport: int, payload: bytes = b"") -> bytes:
    return w.ipv4(source, target, 17, w.udp(sport, dport, payload))


def row(window: Window) -> dict[str, float]:
    return dict(zip(NETWORK_FLOWS.columns, window.values.tolist(), strict=True))


def run(tmp_path: Path, *described: tuple[float, bytes], **settings: object) -> list[Window]:
    windower = NetworkWindower(NET, **settings)  # type: ignore[arg-type]
    return windower.push(packets(tmp_path, *described)) + windower.flush()


def test_one_window_counted_by_hand(tmp_path: Path) -> None:
    query = w.dns_query("cam.example.net")  # 15 characters
    windows = run(
        tmp_path,
        (0.0, udp(ME, HUB, 50_000, 53, query)),
        (0.5, udp(HUB, ME, 53, 50_000, w.dns_query("cam.example.net", flags=0x8180))),
        (1.0, tcp(ME, CLOUD, 40_000, 1883, w.SYN)),
        (1.1, tcp(CLOUD, ME, 1883, 40_000, w.SYN | w.ACK)),
        (1.2, tcp(ME, CLOUD, 40_000, 1883, w.ACK, 2, b"\x82\x04abcd")),
        (1.3, tcp(ME, CLOUD, 40_000, 1883, w.ACK, 8, b"\x30\x02ab")),
        (1.4, tcp(ME, CLOUD, 40_000, 1883, w.ACK, 8, b"\x30\x02ab")),
        (1.5, tcp(CLOUD, ME, 1883, 40_000, w.RST)),
        (2.0, tcp(ME, CLOUD, 40_001, 8443, w.SYN)),
        (2.5, w.ipv4(CLOUD, ME, 1, w.icmp(3))),
    )
    assert [(x.entity, x.start_s, x.end_s) for x in windows] == [(ME, START, START + 5), (HUB, START, START + 5)]
    sizes = [28 + len(query)] * 2 + [40, 40, 46, 44, 44, 40, 40, 32]
    gaps = [0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.5]
    shares = [2 / 9, 6 / 9, 1 / 9]  # packets on the ports 53, 1883, 8443
    expected = {
        "packets_in": 4,
        "packets_out": 6,
        "bytes_in": sizes[1] + 40 + 40 + 32,
        "bytes_out": sizes[0] + 40 + 46 + 44 + 44 + 40,
        "size_mean_bytes": np.mean(sizes),
        "size_std_bytes": np.std(sizes),
        "size_max_bytes": max(sizes),
        "interarrival_mean_s": np.mean(gaps),
        "interarrival_std_s": np.std(gaps),
        "tcp_share": 0.7,
        "udp_share": 0.2,
        "syn_count": 2,
        "rst_count": 1,
        "flows_new": 4,
        "peers_distinct": 2,
        "service_ports_distinct": 3,
        "internal_share": 0.2,
        "dns_queries": 1,
        "dns_name_length_mean": 15,
        "mqtt_publishes": 2,
        "mqtt_subscribes": 1,
        "connects_failed": 2,  # the second SYN, and the ICMP message
        "retransmissions": 1,
        "service_port_entropy_bits": -sum(s * math.log2(s) for s in shares),
    }
    assert row(windows[0]) == pytest.approx(expected, rel=1e-6)
    hub = row(windows[1])
    assert (hub["packets_in"], hub["dns_queries"], hub["internal_share"]) == (1, 0, 1)


def test_windows_are_aligned_and_touch(tmp_path: Path) -> None:
    windows = run(tmp_path, *((4.9 + 2.6 * i, udp(ME, CLOUD, 1, 2)) for i in range(8)))
    assert [x.start_s for x in windows] == [START + 5 * i for i in range(5)]
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(windows))
    assert [row(x)["packets_out"] for x in windows] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(("answer_at", "failed"), [(5.1, 0), (5.6, 1), (None, 1)])
@pytest.mark.parametrize("together", [True, False])
def test_an_answer_shortly_behind_the_window_still_counts(
    tmp_path: Path, answer_at: float | None, failed: int, together: bool
) -> None:
    syn = (4.9, tcp(ME, CLOUD, 40_000, 443, w.SYN))
    rest = [(answer_at, tcp(CLOUD, ME, 443, 40_000, w.SYN | w.ACK))] if answer_at else []
    rest.append((11.0, udp(ME, CLOUD, 1, 2)))
    windower = NetworkWindower(NET)
    if together:
        windows = windower.push(packets(tmp_path, syn, *rest))
    else:
        windows = [x for one in (syn, *rest) for x in windower.push(packets(tmp_path, one))]
    assert row(windows[0])["connects_failed"] == failed


def test_silence_gives_rows_of_zeros_for_a_while(tmp_path: Path) -> None:
    windower = NetworkWindower(NET, idle_windows=3)
    windows = windower.push(packets(tmp_path, (0.0, udp(ME, CLOUD, 1, 2)), (100.0, udp(HUB, CLOUD, 1, 2))))
    assert [(x.entity, x.start_s - START) for x in windows] == [(ME, 0), (ME, 5), (ME, 10), (ME, 15)]
    assert not any(x.values.any() for x in windows[1:])
    assert windower.counters()["zero_windows"] == 3
    assert windower.entities == ()
    assert [x.entity for x in windower.advance(START + 111.0)] == [HUB, HUB]
    assert windower.entities == (HUB,)


def test_time_alone_closes_windows_of_a_live_source(tmp_path: Path) -> None:
    windower = NetworkWindower(NET)
    assert windower.advance(START) == []
    assert windower.push(packets(tmp_path, (1.0, udp(ME, CLOUD, 1, 2)))) == []
    assert windower.advance(START + 5.4) == []
    assert [x.start_s for x in windower.advance(START + 5.5)] == [START]
    assert windower.push(packets(tmp_path, (4.0, udp(ME, CLOUD, 1, 2)))) == []
    assert windower.counters()["late"] == 1
    assert windower.advance(START) == []
    assert windower.flush() == []


def test_reordered_packets_within_the_tolerance_are_not_lost(tmp_path: Path) -> None:
    windower = NetworkWindower(NET)
    order = (4.8, 5.3, 4.95, 5.4, 4.99)
    windows = windower.push(packets(tmp_path, *((t, udp(ME, CLOUD, 1, 2)) for t in order))) + windower.flush()
    assert [row(x)["packets_out"] for x in windows] == [3, 2]
    assert windower.counters()["late"] == 0


def test_an_address_that_never_speaks_is_no_device(tmp_path: Path) -> None:
    scan = [(0.01 * i, tcp(ME, f"192.168.1.{i}", 40_000, 22, w.SYN)) for i in range(10, 40)]
    windower = NetworkWindower(NET)
    windows = windower.push(packets(tmp_path, *scan)) + windower.flush()
    assert [x.entity for x in windows] == [ME]
    assert row(windows[0])["peers_distinct"] == 30
    assert row(windows[0])["connects_failed"] == 30
    assert windower.counters()["silent_target"] == 30


def test_an_arp_scan_shows_its_targets(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    frames = [w.ethernet(w.arp(ME, f"192.168.1.{i}"), ethertype=0x0806) for i in range(10, 30)]
    path.write_bytes(w.pcap([w.Record(START * 10**9 + i, frame) for i, frame in enumerate(frames)]))
    batch = CaptureFile(path).read()
    assert batch is not None
    windower = NetworkWindower(NET)
    windower.push(batch)
    values = row(windower.flush()[0])
    assert (values["peers_distinct"], values["flows_new"], values["tcp_share"], values["bytes_out"]) == (20, 0, 0, 560)


def test_the_number_of_devices_is_bounded(tmp_path: Path) -> None:
    many = [(0.001 * i, udp(f"192.168.1.{i}", CLOUD, 1, 2)) for i in range(10, 30)]
    windower = NetworkWindower(NET, entities_max=4)
    windows = windower.push(packets(tmp_path, *many)) + windower.flush()
    assert [x.entity for x in windows] == [f"192.168.1.{i}" for i in range(10, 14)]
    assert windower.counters()["entity_limit"] == 16


def test_forged_ipv6_senders_do_not_fill_the_memory(tmp_path: Path) -> None:
    windower = NetworkWindower(["fd00::/8"], entities_max=4)
    for turn in range(4):
        many = [
            (turn * 6.0 + i / 1e3, w.ipv6(f"fd00::{turn}:{i:x}", "2001:db8::1", 17, w.udp(1, 2))) for i in range(500)
        ]
        windower.push(packets(tmp_path, *many))
        assert len(windower._ipv6_halves) <= 1_000
    assert len(windower.entities) == 4
    assert windower.entities[0] == "fd00::"


def test_a_window_keeps_a_bounded_number_of_packets(tmp_path: Path) -> None:
    windower = NetworkWindower(NET, packets_window_max=10)
    many = packets(tmp_path, *((0.001 * i, udp(ME, CLOUD, 1, 2)) for i in range(25)))
    windows = windower.push(many.take(slice(0, 7))) + windower.push(many.take(slice(7, None))) + windower.flush()
    assert row(windows[0])["packets_out"] == 10
    assert windower.counters()["window_full"] == 15


def test_one_packet_from_the_future_costs_some_packets_and_not_the_rest(tmp_path: Path) -> None:
    """A damaged time stamp first closes everything; the run of old packets behind it then proves it wrong."""
    normal = [(0.1 * i, udp(ME, CLOUD, 1, 2)) for i in range(200)]
    windower = NetworkWindower(NET)
    windows = windower.push(packets(tmp_path, normal[0], (1e7, udp(ME, CLOUD, 1, 2)), *normal[1:])) + windower.flush()
    counters = windower.counters()
    assert (counters["clock_steps"], counters["late"]) == (1, STEP_PACKETS - 1)
    assert sum(row(x)["packets_out"] for x in windows) == 201 - (STEP_PACKETS - 1)


def test_fragments_do_not_pass_for_flows(tmp_path: Path) -> None:
    fragment = w.ipv4(ME, CLOUD, 17, b"x" * 64, fragment=0x0010)
    values = row(run(tmp_path, (0.0, udp(ME, CLOUD, 0, 0)), (0.1, fragment), (0.2, fragment))[0])
    assert (values["flows_new"], values["service_ports_distinct"], values["packets_out"]) == (1, 1, 3)
    assert row(run(tmp_path, (0.0, fragment))[0])["flows_new"] == 0


def test_the_flow_table_forgets_by_age_and_is_bounded() -> None:
    table = FlowTable(idle_windows=2, flows_max=3)

    def mark(flows: list[int], windows: list[int]) -> list[bool]:
        return table.mark(np.array(flows, dtype=np.uint64), np.array(windows, dtype=np.int64)).tolist()

    assert mark([7, 7, 9, 7], [1, 2, 2, 5]) == [True, False, True, True]
    assert mark([7, 9], [7, 7]) == [False, True]
    assert mark([], []) == []
    assert mark([1, 2, 3, 4, 5], [7, 8, 8, 8, 8]) == [True] * 5
    assert len(table) == 3
    assert mark([5, 1], [9, 9]) == [False, True]


@pytest.mark.parametrize(
    ("address", "local", "internal"),
    [
        ("192.168.1.5", True, True),
        ("192.168.1.255", False, True),
        ("192.168.1.0", False, True),
        ("192.168.2.1", False, False),
        ("10.0.0.4", True, True),
        ("10.0.0.5", False, False),
        ("224.0.0.251", False, True),
        ("255.255.255.255", False, True),
        ("169.254.3.4", False, True),
        ("fd00::5", True, True),
        ("fe80::1", False, True),
        ("ff02::fb", False, True),
        ("2001:db8::1", False, False),
        ("::1", False, False),
    ],
)
def test_which_addresses_are_local_and_internal(address: str, local: bool, internal: bool) -> None:
    networks = LocalNetworks(["192.168.1.0/24", "10.0.0.4/32", "fd00::/64"])
    number = int.from_bytes(w.packed(address), "big")
    number |= 0xFFFF << 32 if "." in address else 0
    hi, lo = np.array([number >> 64], dtype=np.uint64), np.array([number & (1 << 64) - 1], dtype=np.uint64)
    assert (networks.local(hi, lo).item(), networks.internal(hi, lo).item()) == (local, internal)


@pytest.mark.parametrize("networks", [[], ["192.168.1.5/24"], ["home"], ["10.0.0.0/8"] * 65])
def test_networks_that_cannot_be_are_refused(networks: list[str]) -> None:
    with pytest.raises(ConfigError, match="local network"):
        NetworkWindower(networks)


@pytest.mark.parametrize(
    "settings", [{"tolerance_s": -1}, {"tolerance_s": 6}, {"entities_max": 0}, {"idle_windows": -1}]
)
def test_numbers_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        NetworkWindower(NET, **settings)  # type: ignore[arg-type]
