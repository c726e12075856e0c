"""The live interface on real interfaces, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

UNIT = Path(__file__).parents[1] / "unit"

PRELUDE = """
import json, os, select, socket, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import capture_writing as w
from vedette_device.features import NetworkWindower
from vedette_device.sources import LiveInterface, PacketBatch, SourceError
from vedette_schemas.errors import TransientError

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def wait(source, seconds):
    return bool(select.select([source], [], [], seconds)[0])

def read_for(source, wanted, seconds=30.0, protocol=None):
    batches, seen, end = [], 0, time.monotonic() + seconds
    while seen < wanted and time.monotonic() < end:
        wait(source, 0.2)
        batch = source.read(1000)
        if protocol is not None:
            batch = batch.take(batch.protocol == protocol)
        seen += len(batch)
        batches.append(batch)
    return PacketBatch.concatenate(batches)

def veth():
    ip("link", "add", "name", "near", "type", "veth", "peer", "name", "far")
    for name in ("near", "far"):
        open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w").write("1")
        ip("link", "set", name, "up")
    far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    far.bind(("far", 0))
    return far

def frame(i, payload=b""):
    return w.ethernet(w.ipv4("192.168.1.5", "203.0.113.7", 17, w.udp(10_000 + i, 53, payload)))
"""


def namespace() -> list[str]:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is not installed")
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    tried = subprocess.run(
        [*command, "ip", "link", "add", "near", "type", "veth"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no network namespace of our own: {tried.stderr.strip()[:200]}")
    return command


def run_inside(script: str) -> dict[str, Any]:
    done = subprocess.run(
        [*namespace(), sys.executable, "-c", PRELUDE + script, str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_packet_arrives_once_in_order_with_the_kernels_time() -> None:
    found = run_inside(
        """
far = veth()
source = LiveInterface("near", ring_bytes=8 << 20)
idle = len(source.read())
before = time.time()
for i in range(3000):
    far.send(frame(i, b"x" * (i % 900)))
batch = read_for(source, 3000)
after = time.time()
windows = NetworkWindower().push(batch)
print(json.dumps({
    "idle": idle, "ports": batch.source_port.tolist(), "sizes": batch.size.tolist(),
    "in_time": bool((batch.time_ns >= (before - 1) * 1e9).all() and (batch.time_ns <= (after + 1) * 1e9).all()),
    "ordered": bool((batch.time_ns[1:] >= batch.time_ns[:-1]).all()),
    "counters": dict(source.counters()),
}))
source.close()
source.close()
assert source.read() is None and source.fileno() == -1
"""
    )
    assert found["idle"] == 0
    assert found["ports"] == [10_000 + i for i in range(3000)]
    assert found["sizes"] == [28 + i % 900 for i in range(3000)]
    assert found["in_time"]
    assert found["ordered"]
    assert found["counters"]["packets"] == 3000
    assert found["counters"]["kernel_dropped"] == 0


def test_a_full_ring_drops_in_the_kernel_and_the_drops_are_counted() -> None:
    found = run_inside(
        """
far = veth()
source = LiveInterface("near", ring_bytes=1)
for i in range(3000):
    far.send(frame(i, b"x" * 1000))
time.sleep(0.3)
held = read_for(source, 3000, seconds=2)
for i in range(50):
    far.send(frame(i))
later = read_for(source, 50)
print(json.dumps({"held": len(held), "later": len(later), "counters": dict(source.counters())}))
"""
    )
    assert 0 < found["held"] < 3000
    assert found["held"] + found["counters"]["kernel_dropped"] == 3000
    assert found["later"] == 50


def test_the_loopback_shows_each_packet_once() -> None:
    found = run_inside(
        """
ip("link", "set", "lo", "up")
source = LiveInterface("lo", ring_bytes=1 << 20)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(20):
    udp.sendto(b"x" * i, ("127.0.0.1", 9))
mine = read_for(source, 20, protocol=17)  # the kernel answers each: nobody listens
print(json.dumps({"payloads": mine.payload.tolist(), "copies": source.counters()["outgoing_copies"]}))
"""
    )
    assert found["payloads"] == list(range(20))
    assert found["copies"] >= 20


def test_an_interface_that_goes_down_is_awaited() -> None:
    found = run_inside(
        """
far = veth()
source = LiveInterface("near", ring_bytes=1 << 20)
ip("link", "set", "near", "down")
words = ""
try:
    source.read()
except TransientError as error:
    words = str(error)
ip("link", "set", "near", "up")
again = []
for _ in range(100):  # what is sent before both ends know that the link is there is lost
    far.send(frame(1))
    again = read_for(source, 1, seconds=0.3).source_port.tolist()
    if again:
        break
print(json.dumps({"words": words, "again": again}))
"""
    )
    assert "interface near is down (ENETDOWN)" in found["words"]
    assert found["again"] == [10_001]


def test_wrong_names_sizes_and_missing_rights_are_said_in_words() -> None:
    found = run_inside(
        """
words = []
for name, size in (("nope", 1 << 20), ("lo", 0), ("lo", 1 << 40)):
    try:
        LiveInterface(name, ring_bytes=size)
    except SourceError as error:
        words.append(str(error))
try:
    os.setuid(65534)
except OSError:  # a user namespace maps only its own root
    words.append("")
else:
    try:
        LiveInterface("lo")
    except SourceError as error:
        words.append(str(error))
print(json.dumps({"words": words}))
"""
    )
    assert "interface 'nope' does not exist, found: lo" in found["words"][0]
    assert "ring of 0 bytes for lo, expected 1 to" in found["words"][1]
    assert "ring of 1099511627776 bytes" in found["words"][2]
    assert not found["words"][3] or "start with the capability CAP_NET_RAW" in found["words"][3]
