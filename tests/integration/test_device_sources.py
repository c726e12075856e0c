"""A device node as a process on what lives: sensor topics, a growing capture, an interface, rows that are broken."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from test_source_live_interface import namespace

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage

DEVICE = "gw-1"
LIMIT_S = 60.0
START_S = 1_700_000_000
WINDOW_S = 5
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
CHANNELS = ("flow_l_s", "level_m")
SENSOR_TASK = {"task": "sensor", "use_case": "sensor", "channels": list(CHANNELS), "period_s": 30.0}
NETWORK_TASK = {"task": "network", "use_case": "network"}
TRAINING = 40
COUNTED = re.compile(r'^vedette_source_records_total\{outcome="(\w+)",task="\w+"\} (\S+)$', re.MULTILINE)


@dataclass
class Node:
    """A device node of a site of its own, without a broker where a test starts none."""

    site: Site
    port: int
    metrics_port: int
    fleet: Fleet

    def start(self) -> None:
        self.fleet.start(DEVICE, "device", "run", "-c", str(self.site.device_configs[DEVICE]), ends=True)

    def counters(self) -> dict[str, int]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
                return {name: int(float(n)) for name, n in COUNTED.findall(answer.read().decode())}
        except (OSError, http.client.HTTPException):  # it does not listen yet, takes its time, or ends meanwhile
            return {}

    def until_counted(self, name: str, least: int, **others: int) -> dict[str, int]:
        """Wait for counts; the node puts out one after the other, so that each has to be waited for.

        Returns:
            All counts as they were then.
        """
        found: dict[str, int] = {}

        def enough() -> bool:
            nonlocal found
            found = self.counters()
            return all(found.get(each, 0) >= n for each, n in {name: least, **others}.items())

        self.until(enough, f"{name} ≥ {least}, {others}")
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            self.fleet.check()
            assert time.monotonic() < limit, f"{what}: not within {LIMIT_S:.0f} s, found {self.counters()}"
            time.sleep(0.05)

    def stored(self, task: str) -> dict[str, Any] | None:
        """The detector's state as it would be found after a restart."""
        path = self.site.directory / "state" / DEVICE / "device.db"
        database = sqlite3.connect(path)
        try:
            row = database.execute("SELECT value FROM state WHERE key = ?", (f"detector/{task}",)).fetchone()
        finally:
            database.close()
        state: dict[str, Any] | None = msgpack.unpackb(row[0], strict_map_key=False) if row else None
        return state


def learning(state: dict[str, Any] | None) -> int:
    """Windows that a stored detector has learnt from so far."""
    assert state is not None
    return len(state["learning"]["bounds"]) // 16


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with Fleet(tmp_path / "logs") as fleet:

        def make(tasks: Sequence[dict[str, Any]], **tables: Any) -> Node:
            port, metrics_port = free_port(), free_port()
            device = {"telemetry_s": 0.5, "metrics": {"enabled": True, "port": metrics_port}, **tables}
            site = create(
                tmp_path / "site", "test-site", (DEVICE,), port=port, tasks=tasks, device_tables={DEVICE: device}
            )
            return Node(site, port, metrics_port, fleet)

        yield make


# --- sensor topics ---


async def nothing(message: MqttMessage) -> None:
    """Takes what nobody asked for."""


def topics(*, own_time: bool) -> list[dict[str, str]]:
    time_path = {"time_path": "$.t"} if own_time else {}
    return [
        {"channel": "flow_l_s", "topic": "plant/tank/flow", "path": "$.value", **time_path},
        {"channel": "level_m", "topic": "plant/tank/level", "path": '$["readings"][0]', **time_path},
    ]


def payloads(i: int) -> dict[str, bytes]:
    return {
        "plant/tank/flow": json.dumps({"t": START_S + 30 * i, "value": 5 + i % 7}).encode(),
        "plant/tank/level": json.dumps({"t": START_S + 30 * i, "readings": [1.5 + i % 5]}).encode(),
    }


def start_mosquitto(fleet: Fleet, directory: Path, port: int) -> None:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (Debian package mosquitto)")
    config = directory / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    fleet.start_program("sensor-broker", MOSQUITTO, "-c", str(config))
    fleet.wait_for_port(port)


def sensor_topics(port: int, *, own_time: bool, period_s: float) -> dict[str, Any]:
    return {
        "source": "mqtt",
        "channels": list(CHANNELS),
        "period_s": period_s,
        "topics": topics(own_time=own_time),
        "broker": {"host": "127.0.0.1", "port": port},
    }


@pytest.mark.timeout(120)
def test_readings_come_from_topics_also_after_the_sensors_broker_died(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    port = free_port()
    node = make_node([SENSOR_TASK], sensor=sensor_topics(port, own_time=True, period_s=30.0))

    async def counted(name: str, least: int, **others: int) -> dict[str, int]:
        return await asyncio.to_thread(lambda: node.until_counted(name, least, **others))

    async def scenario(first: Fleet) -> None:
        async with MqttLink(LinkConfig("127.0.0.1", port, "sensors", None), nothing) as sensors:
            await sensors.wait_connected(10.0)
            node.start()
            sent = 0

            async def publish(rows: int) -> None:
                nonlocal sent
                for i in range(sent, sent + rows):
                    for topic, payload in payloads(i).items():
                        await sensors.publish(topic, payload)
                sent += rows

            while not (await asyncio.to_thread(node.counters)).get("samples"):
                node.fleet.check()
                await publish(1)  # nobody keeps what came before the subscription
            before = (await counted("samples", 1))["samples"]
            await publish(20)
            found = await counted("samples", before + 40, window_windows=18)
            for topic, payload in (
                ("plant/tank/flow", b'{"t": 1, "value": NaN}'),
                ("plant/tank/flow", b'{"t": 1, "value": 1e999}'),
                ("plant/tank/flow", b'{"t": 1, "value": "warm"}'),
                ("plant/tank/level", b'{"t": 1, "readings": [null]}'),
                ("plant/tank/level", b'{"t": 1, "readings": []}'),
                ("plant/tank/level", b"1.5 m"),
                ("plant/tank/level", b"\xff\xfe"),
                ("plant/tank/level", b""),
            ):
                await sensors.publish(topic, payload)
            await publish(20)
            # Rows of the beginning may have come only now: the last of the broken ones is waited for, too.
            found = await counted("samples", found["samples"] + 40, window_windows=38, not_json=3)
            assert {n: found.get(n) for n in ("not_finite", "not_a_number", "path_missing", "not_json")} == {
                "not_finite": 2,
                "not_a_number": 2,
                "path_missing": 1,
                "not_json": 3,
            }

            first.kill()
            start_mosquitto(node.fleet, tmp_path, port)
            await sensors.wait_connected(20.0)
            windows, samples = found["window_windows"], found["samples"]
            while (found := await asyncio.to_thread(node.counters)).get("samples", 0) < samples + 20:
                node.fleet.check()
                await publish(1)
            found = await counted("window_windows", windows + 1)
            assert not found.get("row_late_samples")

    with Fleet(tmp_path / "logs") as first:
        start_mosquitto(first, tmp_path, port)
        asyncio.run(scenario(first))


@pytest.mark.timeout(120)
def test_readings_without_a_time_of_their_own_are_held_to_the_period(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    port = free_port()
    task = {**SENSOR_TASK, "period_s": 0.1}
    node = make_node([task], sensor=sensor_topics(port, own_time=False, period_s=0.1))

    async def scenario() -> None:
        async with MqttLink(LinkConfig("127.0.0.1", port, "sensors", None), nothing) as sensors:
            await sensors.wait_connected(10.0)
            node.start()
            i, found = 0, dict[str, int]()
            while found.get("window_windows", 0) < 5:
                node.fleet.check()
                for topic, payload in payloads(i).items():
                    await sensors.publish(topic, payload)
                i += 1
                await asyncio.sleep(0.02)
                found = await asyncio.to_thread(node.counters)
            await asyncio.to_thread(node.until_counted, "row_stale_rows", 5)  # sensors are silent: no row is made up

    start_mosquitto(node.fleet, tmp_path, port)
    asyncio.run(scenario())


# --- a growing capture ---


PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)


def frame(payload_bytes: int, last: int = 7) -> bytes:
    """UDP from the watched device to 203.0.113.`last`, in Ethernet."""
    body = struct.pack("!HHHH", 40_000, 53, 8 + payload_bytes, 0) + b"x" * payload_bytes
    addresses = bytes([192, 168, 1, 5, 203, 0, 113, last])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0) + addresses
    return b"\2" * 12 + b"\x08\0" + header + body


def traffic(first: int, windows: int) -> bytes:
    """Records of some windows of one device, without the file's header: three packets a window, a second apart."""
    return b"".join(
        struct.pack("<IIII", START_S + WINDOW_S * i + k, 0, len(data), len(data)) + data
        for i in range(first, first + windows)
        for k in range(3)
        for data in [frame(i % 9, 1 + (i + k) % 3)]
    )


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def following(path: Path) -> dict[str, Any]:
    return {
        "source": "follow",
        "path": path,
        "local_networks": ["192.168.1.0/24"],
        "training_windows": TRAINING,
        "calibration_windows": 1_000,
    }


@pytest.mark.timeout(120)
def test_a_capture_that_grows_is_followed_and_half_a_record_waits(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    path = tmp_path / "growing.pcap"
    path.write_bytes(PCAP_HEADER)
    node = make_node([NETWORK_TASK], network=following(path))
    node.start()
    append(path, traffic(0, 3))
    found = node.until_counted("packets", 9, window_windows=2)
    assert found["window_windows"] == 2, "the newest window is open until a later packet shows that it has passed"
    more = traffic(3, 2)
    cut = len(more) // 2 + 5
    append(path, more[:cut])
    found = node.until_counted("bytes_read", path.stat().st_size)
    assert 9 < found["packets"] < 15
    append(path, more[cut:])
    found = node.until_counted("packets", 15, frames=15, window_windows=4)
    assert found["frames"] == 15
    assert found["window_windows"] == 4
    assert not {"length", "timestamp", "link_type", "cut_tail_bytes", "rotations"} & set(found)


# --- a restart in the middle ---


@pytest.mark.timeout(120)
def test_a_device_that_restarts_goes_on_with_what_it_had_learnt(make_node: Callable[..., Node], tmp_path: Path) -> None:
    path = tmp_path / "growing.pcap"
    path.write_bytes(PCAP_HEADER + traffic(0, 21))
    node = make_node([NETWORK_TASK], network=following(path))
    with Fleet(tmp_path / "logs") as first:
        first.start(DEVICE, "device", "run", "-c", str(node.site.device_configs[DEVICE]), ends=True)
        node.until_counted("window_windows", 20)
    assert learning(node.stored("network")) == 20

    # The capture is read from its start again; what was learnt must neither be lost nor be learnt twice.
    append(path, traffic(21, 29))
    with Fleet(tmp_path / "logs") as second:
        second.start(DEVICE, "device", "run", "-c", str(node.site.device_configs[DEVICE]), ends=True)
        node.until(lambda: (node.stored("network") or {}).get("baseline") is not None, "the end of the learning phase")
        node.until_counted("window_windows", 49)
        learnt = node.stored("network")
        second.kill()  # no goodbye: what counts was on the disk when the phase ended
    assert learnt is not None
    assert learnt["training"]

    append(path, traffic(50, 20))
    node.start()
    node.until_counted("window_windows", 69)
    node.fleet.stop()
    again = node.stored("network")
    assert again is not None
    assert (again["baseline"], again["training"]) == (learnt["baseline"], learnt["training"])
    assert learning(again) == 0
    assert len(again["held_out_entities"]) == 69 - TRAINING, "every window behind the training stretch, each once"
    assert "learning starts anew" not in (tmp_path / "logs" / f"{DEVICE}.log").read_text()


# --- an interface ---

INSIDE = """
import json, os, signal, socket, subprocess, sys, time, urllib.request
sys.path.insert(0, sys.argv[1])

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("link", "set", "lo", "up")
ip("link", "add", "name", "near", "type", "veth", "peer", "name", "far")
for name in ("near", "far"):
    open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w").write("1")
    ip("link", "set", name, "up")
far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
far.bind(("far", 0))
node = subprocess.Popen([sys.executable, "-m", "vedette.main", "device", "run", "-c", sys.argv[2]], stdout=2)
found, sent, limit = "", 0, time.monotonic() + 60
try:
    while 'outcome="window_windows"' not in found and time.monotonic() < limit and node.poll() is None:
        far.send(bytes.fromhex(sys.argv[1]))
        sent += 1
        time.sleep(0.05)
        try:
            found = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[3]}/metrics", timeout=5).read().decode()
        except OSError:
            pass
finally:
    node.send_signal(signal.SIGTERM)
    status = node.wait(30)
print(json.dumps({"metrics": found, "sent": sent, "status": status}))
"""


@pytest.mark.timeout(120)
def test_a_live_interface_gives_windows(make_node: Callable[..., Node]) -> None:
    inside = namespace()
    section = {"source": "live", "interface": "near", "local_networks": ["192.168.1.0/24"]}
    node = make_node([NETWORK_TASK], network=section)
    config = str(node.site.device_configs[DEVICE])
    done = subprocess.run(
        [*inside, sys.executable, "-c", INSIDE, frame(10).hex(), config, str(node.metrics_port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    found = {name: int(float(n)) for name, n in COUNTED.findall(result["metrics"])}
    assert result["status"] == 0
    assert found["window_windows"] >= 1
    assert 0 < found["packets"] <= result["sent"]
    assert "kernel_dropped" not in found
    assert "window_not_local" not in found
    windows = learning(node.stored("network"))
    assert windows >= found["window_windows"]


# --- broken rows ---


@pytest.mark.timeout(120)
def test_broken_rows_are_refused_and_the_rest_is_used(make_node: Callable[..., Node], tmp_path: Path) -> None:
    broken = {
        10: "nan,1.5",
        20: "5.0,warm",
        21: "5.0,",
        30: "5.0",
        31: "inf,1.5",
        40: ",",
        45: "5.0,-inf",
    }
    path = tmp_path / "readings.csv"
    rows = [f"{START_S + 30 * i},{broken.get(i, f'{5 + i % 7},{1.5 + i % 5}')}" for i in range(60)]
    rows.insert(50, "yesterday,5.0,1.5")
    rows.insert(52, rows[5])
    path.write_text("\n".join([f"time_s,{','.join(CHANNELS)}", *rows]) + "\n")
    # It lasts 6 s: a node that ends before its broker has answered it has nobody to say farewell to.
    section = {"source": "file", "path": path, "channels": list(CHANNELS), "period_s": 30.0, "replay": {"speed": 300.0}}
    node = make_node([SENSOR_TASK], sensor=section)

    async def scenario() -> None:
        node.fleet.start("broker", "broker", "run", "-c", str(node.site.broker_config))
        node.fleet.wait_for_port(node.port)
        async with Observer(node.site.analytics_bundle, "127.0.0.1", node.port) as observer:
            node.start()
            await asyncio.to_thread(node.until, lambda: DEVICE in observer.states, "the node's state")
            await asyncio.to_thread(node.until, node.fleet.finished, "the end of the recording")
            await asyncio.to_thread(
                node.until, lambda: observer.states[DEVICE].status == "stopped", "the node's farewell"
            )
            (report,) = observer.reports[DEVICE].detectors
            assert report.refused == {"missing_value": 3, "not_a_number": 2, "not_finite": 3, "time_backwards": 1}
            assert report.phase == "learning"

    asyncio.run(scenario())
    assert learning(node.stored("sensor")) == 60 - len(broken) - 1
