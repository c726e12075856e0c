"""What listening costs: packets a second on one core, from a capture file to anomaly scores.

The capture is synthesised, always the same for a number of devices: MQTT sensors, cameras, CoAP and Modbus devices and
web pollers with the packet sizes of such devices. The whole path is timed: file, headers, windows, scaling, and the
node's own judging (INT8 model, score, p-value), a call for the windows of each read. Beside it, in the same run and on
the same file, dpkt and scapy do nothing but parse.

Run: ``python bench/capture.py [--json]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one core means one thread

import argparse
import importlib
import json
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vedette_core.learning.spec import flow_spec
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.features import NetworkWindower, Window
from vedette_device.input_history import InputHistory
from vedette_device.sources import CaptureFile
from vedette_device.sources.interface import PACKETS_READ_DEFAULT
from vedette_schemas.features import NETWORK_FLOWS
from vedette_schemas.model import Variant

if TYPE_CHECKING or __package__:
    from bench.node_scoring import calibrated, judge_windows
    from bench.score import prepare
else:
    from node_scoring import calibrated, judge_windows
    from score import prepare

PACKETS: Final = 200_000
SECONDS: Final = 100.0
"""Twenty windows of each device."""

DEVICE_COUNTS: Final = (1, 10, 100)
HEADLINE_DEVICES: Final = 10
BATCH_PACKETS: Final = PACKETS_READ_DEFAULT
REPETITIONS: Final = 7
PEER_PACKETS: Final = {"dpkt": PACKETS, "scapy": 5_000}
"""Scapy gets a part of the file: at its pace the whole would take most of a minute a run."""

START_S: Final = 1_700_000_000
LOCAL_NETWORK: Final = "192.168.0.0/16"


@dataclass(frozen=True, slots=True)
class Habit:
    """What one kind of device sends and gets: (payload bytes out, payload bytes in), over UDP or TCP."""

    protocol: int
    port: int
    payloads: tuple[tuple[int, int], ...]
    weight: int


HABITS: Final = (
    Habit(6, 1883, ((64, 0), (0, 4), (2, 2), (180, 0)), 3),  # MQTT sensor: publish, ping
    Habit(6, 554, ((1440, 0), (1440, 0), (1440, 0), (880, 0), (0, 0)), 10),  # camera: full segments and bare ACKs
    Habit(17, 5683, ((40, 24), (80, 16)), 2),  # CoAP
    Habit(6, 502, ((12, 9), (12, 29)), 3),  # Modbus
    Habit(6, 443, ((517, 1440), (80, 1440), (0, 1440), (300, 700)), 4),  # web poller
    Habit(17, 53, ((36, 90),), 1),  # names
)


def write_capture(path: Path, devices: int) -> None:
    """Write ``PACKETS`` packets of ``devices`` devices as pcap (µs, little endian, Ethernet)."""
    rng = np.random.default_rng(devices)
    weights = np.array([HABITS[i % len(HABITS)].weight for i in range(devices)], dtype=float)
    who = rng.choice(devices, size=PACKETS, p=weights / weights.sum())
    times = np.sort(rng.uniform(0, SECONDS, PACKETS))
    pick, renew = rng.integers(0, 1 << 30, PACKETS), rng.random(PACKETS)
    sequence, client_port = [1] * devices, [40_000 + i % 20_000 for i in range(devices)]
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for i in range(PACKETS):
            device = int(who[i])
            habit = HABITS[device % len(HABITS)]
            out, back = habit.payloads[int(pick[i]) % len(habit.payloads)]
            outgoing = not back or bool(pick[i] & 1 << 20)
            payload = out if outgoing else back
            if renew[i] < 0.002:  # now and then a new connection
                client_port[device] = 32_768 + (client_port[device] + 7) % 28_000
            frame = _frame(device, habit, outgoing, payload, sequence[device], client_port[device])
            sequence[device] = (sequence[device] + payload) & 0xFFFF_FFFF
            second = int(times[i])
            file.write(struct.pack("<IIII", START_S + second, int((times[i] - second) * 1e6), len(frame), len(frame)))
            file.write(frame)


def _frame(device: int, habit: Habit, outgoing: bool, payload: int, sequence: int, client_port: int) -> bytes:
    local = bytes([192, 168, device >> 8, 10 + device % 240])
    remote = bytes([192, 168, 0, 2]) if habit.port in (1883, 502) else bytes([203, 0, 113, 1 + device % 200])
    source, target = (local, remote) if outgoing else (remote, local)
    ports = (client_port, habit.port) if outgoing else (habit.port, client_port)
    data = (b"\x30\x3e" if habit.port == 1883 else b"\x00\x01").ljust(payload, b"\x00")[:payload]
    if habit.protocol == 6:
        transport = struct.pack("!HHIIBBHHH", *ports, sequence, 1, 0x50, 0x18 if payload else 0x10, 4096, 0, 0) + data
    else:
        if habit.port == 53:
            data = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03net\x00\x00\x01\x00\x01".ljust(
                payload
            )
        transport = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(transport), 0, 0, 64, habit.protocol, 0, source, target)
    return (b"\x02" * 12 + b"\x08\x00" + ip + transport).ljust(60, b"\x00")


def windows_of(path: Path) -> Iterator[list[Window]]:
    """Batches of windows of a capture."""
    source = CaptureFile(path)
    windower = NetworkWindower([LOCAL_NETWORK])
    while (batch := source.read(BATCH_PACKETS)) is not None:
        yield windower.push(batch)
    yield windower.flush()
    source.close()


def capture_to_score(path: Path, model: CalibratedModel) -> tuple[int, int]:
    """The whole path; returns (windows, scores)."""
    history = InputHistory(NETWORK_FLOWS)
    windows = scores = 0
    for batch in windows_of(path):
        windows += len(batch)
        scores += judge_windows(model, history, batch)
    return windows, scores


def parse_only(path: Path) -> int:
    """Only the headers, as the peers do."""
    source, packets = CaptureFile(path), 0
    while (batch := source.read(BATCH_PACKETS)) is not None:
        packets += len(batch)
    source.close()
    return packets


def dpkt_parse(path: Path) -> int:
    """Addresses, ports and lengths with dpkt."""
    dpkt = importlib.import_module("dpkt")
    seen = 0
    with path.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            transport = ip.data
            seen += bool(ip.src and ip.dst and transport.sport and transport.dport)
            if seen >= PEER_PACKETS["dpkt"]:
                break
    return seen


def scapy_parse(path: Path) -> int:
    """Addresses, ports and lengths with scapy."""
    scapy = importlib.import_module("scapy.all")
    seen = 0
    with scapy.PcapReader(str(path)) as reader:
        for packet in reader:
            ip = packet["IP"]
            seen += bool(ip.src and ip.dst and ip.payload.sport and ip.payload.dport)
            if seen >= PEER_PACKETS["scapy"]:
                break
    return seen


def packets_per_second(packets: int, run: Callable[[], object]) -> float:
    """One timed run."""
    start = time.perf_counter()
    run()
    return packets / (time.perf_counter() - start)


def measure(folder: Path, repetitions: int) -> dict[str, Any]:
    """Every figure of this benchmark."""
    subject = prepare(flow_spec(*NETWORK_FLOWS.input_shape), NETWORK_FLOWS, Variant.INT8)
    captures = {devices: folder / f"{devices}.pcap" for devices in DEVICE_COUNTS}
    models, counts = {}, {}
    for devices, path in captures.items():
        write_capture(path, devices)
        models[devices] = calibrated(subject.backend, [window for batch in windows_of(path) for window in batch])
        counts[devices] = capture_to_score(path, models[devices])

    headline = captures[HEADLINE_DEVICES]
    peers: dict[str, Callable[[Path], int]] = {"dpkt": dpkt_parse, "scapy": scapy_parse}
    skipped: dict[str, str] = {}
    for name in list(peers):
        try:
            peers[name](headline)
        except ImportError as error:
            skipped[name] = f"not installed: {error}"
            del peers[name]

    ours: dict[int, list[float]] = {devices: [] for devices in DEVICE_COUNTS}
    parse: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repetitions):  # interleaved, so that a busy machine slows all sides alike
        for devices, path in captures.items():
            run = (lambda p, m: lambda: capture_to_score(p, m))(path, models[devices])
            ours[devices].append(packets_per_second(PACKETS, run))
        parse.append(packets_per_second(PACKETS, lambda: parse_only(headline)))
        for name, peer in peers.items():
            theirs[name].append(packets_per_second(PEER_PACKETS[name], (lambda f: lambda: f(headline))(peer)))

    headline_rate = median(ours[HEADLINE_DEVICES])
    result: dict[str, Any] = {
        "packets_per_second": round(headline_rate),
        "by_devices": {str(devices): round(median(rates)) for devices, rates in ours.items()},
        "parse_only_packets_per_second": round(median(parse)),
        "peers": {name: round(median(rates)) for name, rates in theirs.items()} | skipped,
    }
    for name, rates in theirs.items():
        result[f"ratio_{name}"] = round(median(a / b for a, b in zip(ours[HEADLINE_DEVICES], rates, strict=True)), 2)
    return result | {
        "windows_by_devices": {str(devices): windows for devices, (windows, _) in counts.items()},
        "scores_by_devices": {str(devices): scores for devices, (_, scores) in counts.items()},
        "packets": PACKETS,
        "bytes_per_packet": round(headline.stat().st_size / PACKETS),
        "backend": subject.backend.name,
        "repetitions": repetitions,
        "capture": "synthetic",
    }


def pin_to_one_core() -> int:
    """Bind this process to one of the cores it may use."""
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def machine_facts() -> dict[str, Any]:
    """What was measured on."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": platform.machine(),
        "cpu": models[0] if models else "unknown",
        "cores_used": 1,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="also write the JSON object to this file")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="timed runs of each side")
    arguments = parser.parse_args()
    pin_to_one_core()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), max(arguments.repetitions, 1)) | machine_facts()
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    if arguments.json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:<{width}}  {value}")


if __name__ == "__main__":
    main()
