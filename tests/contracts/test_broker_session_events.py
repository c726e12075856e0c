"""What a broker's log tells a gateway of its sessions: each broker as a process, read by the device's own stream."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import broker_parties
import pytest
from broker_parties import MOSQUITTO, NATS, SITE, WAIT_S, Authority, Mosquitto, Nats, free_port, wait_for_port
from raw_mqtt import DISCONNECT, ClosedError, RawClient

from vedette_device.behaviour_stream import LiveBehaviourStream
from vedette_device.settings import BehaviourSection
from vedette_device.sources.broker_log import CLIENTS, SessionEvent
from vedette_device.sources.log_lines import LogLineCounts

OPENED, ENDED, LOST, REFUSED, TAKEN_OVER = SessionEvent


class LoggingBroker(Protocol):
    """A broker that logs to a file."""

    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...


class EmbeddedProcess:
    """The embedded broker as people run it, its standard error in a file."""

    def __init__(self, authority: Authority, directory: Path, form: str) -> None:
        self.port, self._directory = free_port(), directory
        directory.mkdir()
        (directory / "broker.toml").write_text(
            f'site = "{SITE}"\nbundle = "{authority.bundles["broker"]}"\n'
            f'[listen]\nport = {self.port}\n[log]\nformat = "{form}"\n'
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "vedette.main", "broker", "run", "-c", str(self._directory / "broker.toml")]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_port(self.port, self._process, self._directory / "log")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)


@pytest.fixture(params=["embedded", "embedded-json", "mosquitto", "nats"])
def logging_broker(
    request: pytest.FixtureRequest, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoggingBroker]:
    made: LoggingBroker
    if request.param == "mosquitto":
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (Debian package mosquitto)")
        made = Mosquitto(authority, tmp_path / "broker")
    elif request.param == "nats":
        if NATS is None:
            pytest.skip("nats-server is not installed (Debian package nats-server)")
        render = broker_parties.render_nats
        monkeypatch.setattr(broker_parties, "render_nats", lambda config: render(config) + "debug: true\n")
        made = Nats(authority, tmp_path / "broker")
    else:
        made = EmbeddedProcess(authority, tmp_path / "broker", "json" if request.param.endswith("json") else "plain")
    made.start()
    yield made
    made.stop()


def refused_in(log: Path) -> int:
    """Refused connections in a log."""
    counter = LogLineCounts()
    for line in log.read_bytes().splitlines():
        counter.push(line)
    return counter.take().get(REFUSED, 0)


class Gateway:
    """A behaviour stream on a clock of its own, whose minute is over when a test has seen enough.

    Args:
        log: the broker's log.
    """

    def __init__(self, log: Path) -> None:
        # Somebody looked whether the broker listens: that is in its log when we begin, and not later.
        limit = time.monotonic() + WAIT_S
        while not refused_in(log):
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.02)
        key = log.parent / "hash.key"
        key.write_text("01" * 32)
        self._now_s = 1_700_000_040.0
        section = BehaviourSection(source="live", host=False, logs=(log,), key_file=key)
        self.stream = LiveBehaviourStream(section, clock=lambda: self._now_s)
        self.minute()

    def minute(self) -> Mapping[str, int]:
        """End a minute; its counts."""

        async def look() -> Mapping[str, int]:
            await self.stream.read()
            self._now_s += 60
            windows = await self.stream.read() or []
            return dict(self.stream.names._waiting[windows[0].end_s]) if windows else {}

        return asyncio.run(look())

    def until(self, wanted: Callable[[Mapping[str, int]], bool]) -> dict[str, int]:
        """Session counts of as many minutes as it takes."""
        total: dict[str, int] = {}
        limit = time.monotonic() + WAIT_S
        while not wanted(total):
            assert time.monotonic() < limit, total
            time.sleep(0.05)
            for name, count in self.minute().items():
                if name.startswith("broker_"):
                    total[name] = max(total.get(name, 0), count) if name == CLIENTS else total.get(name, 0) + count
        return total


@pytest.fixture
def gateway(logging_broker: LoggingBroker, tmp_path: Path) -> Iterator[Gateway]:
    watching = Gateway(tmp_path / "broker" / "log")
    yield watching
    asyncio.run(watching.stream.close())


def test_sessions_are_counted_as_they_went(
    logging_broker: LoggingBroker, gateway: Gateway, authority: Authority
) -> None:
    def client(name: str) -> RawClient:
        made = RawClient(logging_broker.port, authority.context(name))
        assert made.connect(name)[0] == 0
        return made

    leaver, crasher, older = client("dev-a"), client("dev-b"), client("dev-c")
    leaver.send(DISCONNECT)
    crasher.reset()
    with client("dev-c"), older:
        assert older.closed()
        found = gateway.until(
            lambda seen: seen.get(OPENED) == 4 and sum(seen.get(each, 0) for each in (ENDED, LOST, TAKEN_OVER)) == 3
        )
        assert {each: found.get(each, 0) for each in (OPENED, ENDED, LOST, TAKEN_OVER)} == {
            OPENED: 4,
            ENDED: 1,
            LOST: 1,
            TAKEN_OVER: 1,
        }
        assert 1 <= found[CLIENTS] <= 3
    leaver.socket.close()


def test_each_refused_connection_counts_once(
    logging_broker: LoggingBroker, gateway: Gateway, authority: Authority
) -> None:
    port = logging_broker.port
    with pytest.raises((ClosedError, OSError)):
        RawClient(port, None).connect("dev-a")  # no TLS
    with RawClient(port, authority.context("dev-a")) as malformed:
        malformed.send(b"\x10\x05hello")
        assert malformed.closed()
    with pytest.raises((ClosedError, OSError)):  # a certificate that is the broker's
        RawClient(port, authority.context("broker")).connect("broker")
    with RawClient(port, authority.context("dev-a")) as last:
        assert last.connect("dev-a")[0] == 0
        # Lines come in the order of what happened: after this one nothing of the others is missing.
        found = gateway.until(lambda seen: seen.get(OPENED) == 1 and seen.get(REFUSED, 0) >= 3)
    assert found == {REFUSED: 3, OPENED: 1, CLIENTS: 1}


def test_other_ids_are_refused_by_the_embedded_broker(tmp_path: Path, authority: Authority) -> None:
    broker = EmbeddedProcess(authority, tmp_path / "broker", "plain")
    broker.start()
    try:
        gateway = Gateway(tmp_path / "broker" / "log")
        with RawClient(broker.port, authority.context("dev-a")) as client:
            assert client.connect("dev-b") == (5, False)
        assert gateway.until(lambda seen: REFUSED in seen) == {REFUSED: 1}
        asyncio.run(gateway.stream.close())
    finally:
        broker.stop()
