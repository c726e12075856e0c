"""The shipped recordings are what their manifest, labels and README say."""

from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
import lzma
import struct
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "cli" / "vedette" / "recordings"
GATEWAYS = [f"gw-{number:02d}" for number in range(1, 9)]
SIZE_BYTES_MAX = 8_000_000
BENIGN_PREFIX_S = {"network": 15 * 60, "sensor": 4 * 86_400}
BENIGN_BETWEEN_S = {"network": 90, "sensor": 3_600}
BENIGN_AFTER_S = {"network": 2 * 60, "sensor": 12 * 3_600}
DURATION_S = {"network": (10, 70), "sensor": (20 * 60, 3 * 3_600)}
NETWORK_KINDS = {
    "port_scan",
    "syn_flood",
    "udp_flood",
    "brute_force",
    "slow_http",
    "rogue_subscriber",
    "rogue_publisher",
    "dns_exfiltration",
    "lateral_movement",
}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((RECORDINGS / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entries(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gateway["id"]: gateway for gateway in manifest["gateways"]}


@pytest.fixture(scope="module")
def labels() -> list[dict[str, str]]:
    with (RECORDINGS / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def simulate_sensors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.lab.simulate_sensors")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.lab.captures")


def spans(labels: list[dict[str, str]], gateway: str, source: str) -> list[tuple[float, float]]:
    return [
        (float(row["start_s"]), float(row["end_s"]))
        for row in labels
        if (row["gateway"], row["source"]) == (gateway, source)
    ]


def test_the_manifest_names_eight_gateways(manifest: dict[str, Any]) -> None:
    assert manifest["format"] == 1
    assert [gateway["id"] for gateway in manifest["gateways"]] == GATEWAYS


def test_the_set_is_small_enough_for_the_wheel() -> None:
    assert sum(path.stat().st_size for path in RECORDINGS.rglob("*") if path.is_file()) <= SIZE_BYTES_MAX


def test_no_file_is_left_out_of_the_manifest(entries: dict[str, dict[str, Any]]) -> None:
    named = {entry[source]["file"] for entry in entries.values() for source in ("network", "sensor")}
    assert named == {path.relative_to(RECORDINGS).as_posix() for path in RECORDINGS.glob("*/*.xz")}


@pytest.mark.parametrize("source", ["network", "sensor"])
@pytest.mark.parametrize("gateway", GATEWAYS)
def test_hashes_match(entries: dict[str, dict[str, Any]], gateway: str, source: str) -> None:
    entry = entries[gateway][source]
    content = (RECORDINGS / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_captures_hold_what_the_manifest_counts(entries: dict[str, dict[str, Any]], gateway: str) -> None:
    entry = entries[gateway]["network"]
    raw = lzma.decompress((RECORDINGS / entry["file"]).read_bytes())
    assert len(raw) == entry["bytes"]
    assert struct.unpack_from("<IHHiIII", raw) == (0xA1B2C3D4, 2, 4, 0, 0, entry["snaplen"], 1)
    offset, times = 24, []
    while offset < len(raw):
        seconds, micros, captured, original = struct.unpack_from("<IIII", raw, offset)
        assert captured <= min(original, entry["snaplen"])
        times.append(seconds + micros / 1e6)
        offset += 16 + captured
    assert offset == len(raw)
    assert len(times) == entry["packets"]
    assert times == sorted(times)
    assert (times[0], times[-1]) == pytest.approx((entry["start_s"], entry["end_s"]), abs=1e-5)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_devices_speak_from_their_addresses(entries: dict[str, dict[str, Any]], gateway: str) -> None:
    entry = entries[gateway]
    raw = lzma.decompress((RECORDINGS / entry["network"]["file"]).read_bytes())
    seen = set()
    offset = 24
    while offset < len(raw):
        captured = struct.unpack_from("<I", raw, offset + 8)[0]
        frame = raw[offset + 16 : offset + 16 + captured]
        if frame[12:14] == b"\x08\x00":
            seen.add((frame[6:12].hex(":"), ".".join(map(str, frame[26:30]))))
        offset += 16 + captured
    devices = {(device["mac"], device["ip"]) for device in entry["devices"]}
    assert len(devices) == 2
    assert devices <= seen
    # Locally administered addresses: no vendor's, nobody's.
    assert all(int(mac[:2], 16) & 2 for mac, _ in devices)


def test_there_are_enough_devices_of_enough_kinds(entries: dict[str, dict[str, Any]]) -> None:
    kinds = [device["kind"] for entry in entries.values() for device in entry["devices"]]
    assert len(kinds) == 16
    assert len(set(kinds)) >= 6


@pytest.mark.parametrize("source", ["network", "sensor"])
@pytest.mark.parametrize("gateway", GATEWAYS)
def test_labels_leave_benign_stretches(
    entries: dict[str, dict[str, Any]], labels: list[dict[str, str]], gateway: str, source: str
) -> None:
    entry = entries[gateway][source]
    mine = spans(labels, gateway, source)
    assert len(mine) >= 3
    assert mine == sorted(mine)
    assert entry["benign_until_s"] == pytest.approx(mine[0][0], abs=0.001)
    assert mine[0][0] - entry["start_s"] >= BENIGN_PREFIX_S[source]
    assert entry["end_s"] - mine[-1][1] >= BENIGN_AFTER_S[source]
    for (_, end_s), (start_s, _) in itertools.pairwise(mine):
        assert start_s - end_s >= BENIGN_BETWEEN_S[source]


def test_episodes_last_as_long_as_the_readme_says(labels: list[dict[str, str]]) -> None:
    for row in labels:
        if row["kind"] == "lateral_movement" and row["attacker"] != row["entity"]:
            continue  # the second segment sees a part of it only
        low_s, high_s = DURATION_S[row["source"]]
        assert low_s <= float(row["end_s"]) - float(row["start_s"]) <= high_s, row


def test_every_network_kind_occurs_twice_and_gateways_see_different_ones(labels: list[dict[str, str]]) -> None:
    network = [row for row in labels if row["source"] == "network"]
    # The same attack on two gateways counts once: it has one start of its tool.
    episodes = {(row["kind"], row["attacker"], row["end_s"]) for row in network}
    assert len(episodes) >= 24
    count = Counter(kind for kind, *_ in episodes)
    assert all(count[kind] >= 2 for kind in NETWORK_KINDS), count
    kinds = defaultdict(set)
    for row in network:
        kinds[row["gateway"]].add(row["kind"])
    assert all(len(kinds[gateway]) >= 3 for gateway in GATEWAYS)


def test_attacks_come_from_outside_and_from_inside(
    entries: dict[str, dict[str, Any]], labels: list[dict[str, str]]
) -> None:
    devices = {device["ip"] for entry in entries.values() for device in entry["devices"]}
    network = [row for row in labels if row["source"] == "network"]
    assert {row["entity"] for row in network} <= devices
    attackers = {row["attacker"] for row in network}
    assert attackers & devices
    assert attackers - devices == {"203.0.113.66"}


def test_every_sensor_kind_occurs(entries: dict[str, dict[str, Any]], labels: list[dict[str, str]]) -> None:
    sensor = [row for row in labels if row["source"] == "sensor"]
    assert len(sensor) >= 24
    assert len({row["kind"] for row in sensor}) >= 6
    assert all(row["entity"] in entries[row["gateway"]]["sensor"]["columns"] for row in sensor)
    assert all(entry["sensor"]["simulated"] is True for entry in entries.values())


@pytest.mark.parametrize("gateway", [1, 6])
def test_the_simulation_gives_the_shipped_bytes(
    simulate_sensors: Any, entries: dict[str, dict[str, Any]], labels: list[dict[str, str]], gateway: int
) -> None:
    entry = entries[GATEWAYS[gateway - 1]]["sensor"]
    made = simulate_sensors.record(gateway, entry["seed"])
    assert made.content == lzma.decompress((RECORDINGS / entry["file"]).read_bytes())
    told = [(label.kind, label.start_s, label.end_s, label.entity, label.tool) for label in made.labels]
    shipped = [
        (row["kind"], float(row["start_s"]), float(row["end_s"]), row["entity"], row["tool"])
        for row in labels
        if (row["gateway"], row["source"]) == (GATEWAYS[gateway - 1], "sensor")
    ]
    assert told == shipped


def test_another_seed_gives_other_readings(simulate_sensors: Any, entries: dict[str, dict[str, Any]]) -> None:
    entry = entries["gw-01"]["sensor"]
    shipped = lzma.decompress((RECORDINGS / entry["file"]).read_bytes())
    assert simulate_sensors.record(1, entry["seed"] + 1).content != shipped


def frame(protocol: int, source: int, destination: int, payload: bytes) -> bytes:
    transport = struct.pack(">HH", source, destination)
    transport += struct.pack(">IIBBHHH", 0, 0, 0x50, 0x18, 0, 0, 0) if protocol == 6 else bytes(4)
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, protocol, 0, bytes(4), bytes(4))
    return bytes(12) + b"\x08\x00" + header + transport + payload


def test_trimming_keeps_headers_and_text_and_drops_the_rest(captures: Any) -> None:
    video = frame(6, 8080, 40_000, bytes(100))
    dns = frame(17, 40_000, 53, bytes(100))
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    assert captures.kept_bytes(video) == 14 + 20 + 20 + 16
    assert captures.kept_bytes(dns) == len(dns)
    assert captures.kept_bytes(arp) == len(arp)
    assert captures.kept_bytes(frame(6, 1883, 40_000, bytes(600))) == captures.SNAPLEN
    assert captures.kept_bytes(video[:30]) == 30


def test_trimming_sorts_by_time_and_leaves_out_a_torn_record(captures: Any) -> None:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 160, 1)
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    late = struct.pack("<IIII", 9, 0, len(arp), len(arp)) + arp
    early = struct.pack("<IIII", 8, 500_000, len(arp), len(arp)) + arp
    made = captures.trim(header + late + early + late[:-1])
    assert (made.packets, made.start_s, made.end_s) == (2, 8.5, 9.0)
    assert made.content == header + early + late


@pytest.mark.parametrize("raw", [bytes(24), struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 160, 101), b""])
def test_trimming_refuses_what_is_no_ethernet_capture(captures: Any, raw: bytes) -> None:
    with pytest.raises(ValueError, match="found"):
        captures.trim(raw)
