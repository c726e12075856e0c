"""kill -9 of the embedded broker as a process: what it acknowledged is delivered, what was retained is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import raw_mqtt as raw
from broker_parties import Authority, free_port, make_authority, path
from raw_mqtt import ClosedError, RawClient

from vedette_broker.limits import INFLIGHT_MAX
from vedette_broker.store import FILE

SERVE = """
import asyncio, sys
from pathlib import Path
from vedette_broker.embedded import EmbeddedConfig, serve
from vedette_broker.store import Durability
bundle, port, state, durability = sys.argv[1:]
config = EmbeddedConfig(Path(bundle), port=int(port), state_dir=Path(state), durability=Durability(durability))
asyncio.run(serve(config, ready=lambda port: print(port, flush=True)))
"""
UP, MODEL = path("device/dev-a/up/alert"), path("public/round/network")


class Process:
    """A broker in a process of its own, always on the same port and state."""

    def __init__(self, site: Authority, state: Path, durability: str = "power") -> None:
        self._arguments = [str(site.bundles["broker"]), str(free_port()), str(state), durability]
        self.port = int(self._arguments[1])
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *self._arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]

    def end(self, number: signal.Signals) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("restart") / "ca", ["dev-a", "dev-b"])


@pytest.fixture(params=["power", "process"])
def broker(request: pytest.FixtureRequest, site: Authority, tmp_path: Path) -> Iterator[Process]:
    running = Process(site, tmp_path / "state", request.param)
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGTERM)


def client(broker: Process, site: Authority, who: str, *, clean: bool = True) -> tuple[RawClient, bool]:
    made = RawClient(broker.port, site.context(who))
    code, present = made.connect(who, clean=clean)
    assert code == 0
    return made, present


def test_kill_9_loses_nothing_that_was_acknowledged(broker: Process, site: Authority) -> None:
    """The aggregator is away, then slow, while a device publishes and the broker is killed three times."""
    aggregator, _ = client(broker, site, "aggregator", clean=False)
    assert aggregator.subscribe(path("device/+/up/#"))[0] == [1]
    acknowledged: set[bytes] = set()
    heard: list[bytes] = []
    for life in range(3):
        device, _ = client(broker, site, "dev-a")
        payloads = [b"%d-%d-" % (life, i) + bytes(1000) for i in range(300)]
        device.send(b"".join(raw.publish(UP, p, 1, packet_id=i + 1) for i, p in enumerate(payloads)))
        for number in range(150):  # the kill comes while the rest is under way
            answer = device.receive()
            assert answer is not None
            assert answer[0] == raw.PUBACK
            acknowledged.add(payloads[number])
        broker.end(signal.SIGKILL)
        try:
            while (answer := device.receive(0.2)) is not None:
                acknowledged.add(payloads[int.from_bytes(answer[2], "big") - 1])
        except ClosedError:
            pass
        aggregator.socket.close()
        broker.start()
        aggregator, present = client(broker, site, "aggregator", clean=False)
        assert present
        if life == 1:  # it takes what the window lets through, and dies before it acknowledges
            unread = aggregator.until(b"", acknowledge=False, count=INFLIGHT_MAX)
            assert len(unread) == INFLIGHT_MAX
            continue
        limit = time.monotonic() + 30
        while not acknowledged <= set(heard):
            assert time.monotonic() < limit, f"{len(acknowledged - set(heard))} acknowledged messages are lost"
            answer = aggregator.receive(1.0)
            if answer is not None:
                heard += [m.payload for m in aggregator.message(answer)]
    assert len(acknowledged) >= 450
    first = {p: i for i, p in reversed(list(enumerate(heard)))}
    in_order = [first[p] for p in sorted(acknowledged, key=lambda p: tuple(map(int, p.split(b"-")[:2])))]
    assert in_order == sorted(in_order), "first deliveries are in the order of their publishing"


def test_what_is_acknowledged_to_the_broker_does_not_come_again_after_a_stop(broker: Process, site: Authority) -> None:
    aggregator, _ = client(broker, site, "aggregator", clean=False)
    aggregator.subscribe(path("device/+/up/#"))
    device, _ = client(broker, site, "dev-a")
    for number in range(50):
        device.publish(UP, b"%d" % number, packet_id=number + 1)
    aggregator.until(b"49")
    assert aggregator.alive()  # its PUBACKs were read before this PINGREQ
    assert "Traceback" not in broker.end(signal.SIGTERM)
    broker.start()
    back, present = client(broker, site, "aggregator", clean=False)
    assert present
    device, _ = client(broker, site, "dev-a")
    device.publish(UP, b"after")
    assert [m.payload for m in back.until(b"after")] == [b"after"]


def test_retained_messages_survive_and_cleared_ones_stay_cleared(broker: Process, site: Authority) -> None:
    aggregator, _ = client(broker, site, "aggregator")
    aggregator.publish(MODEL, b"old", retain=True)
    aggregator.publish(MODEL, b"\x93\xff" * 50_000, packet_id=2, retain=True)
    aggregator.publish(path("public/intel"), b"gone", packet_id=3, retain=True)
    aggregator.publish(path("public/intel"), b"", packet_id=4, retain=True)
    device, _ = client(broker, site, "dev-a")
    device.publish(path("device/dev-a/up/state"), b"online", retain=True)
    broker.end(signal.SIGKILL)
    broker.start()
    late, _ = client(broker, site, "dev-b")
    late.send(raw.subscribe(path("public/intel"), MODEL))
    assert [m.payload for m in late.until(b"\x93\xff" * 50_000)] == [b"\x93\xff" * 50_000]
    reader, _ = client(broker, site, "aggregator")
    reader.send(raw.subscribe(path("device/+/up/state")))
    assert reader.until(b"online")[-1].retain


def test_a_damaged_store_is_set_aside_and_the_broker_serves(broker: Process, site: Authority, tmp_path: Path) -> None:
    aggregator, _ = client(broker, site, "aggregator")
    aggregator.publish(MODEL, b"model", retain=True)
    broker.end(signal.SIGTERM)
    path_of_store = tmp_path / "state" / FILE
    path_of_store.write_bytes(b"\xa5" * 20_000)
    broker.start()
    again, _ = client(broker, site, "aggregator")
    again.publish(MODEL, b"model", retain=True)
    said = broker.end(signal.SIGTERM)
    assert "damaged store" in said
    assert [p.read_bytes() for p in path_of_store.parent.glob("*.damaged-*")] == [b"\xa5" * 20_000]
