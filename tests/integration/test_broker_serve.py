"""The embedded broker as a process: it starts, says where, and stops quickly whatever its clients do."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage

WAIT_S = 60.0
"""How long a test waits for what must come, on a machine that has much else to do."""
SERVE = """
import asyncio, sys
from pathlib import Path
from vedette_broker.embedded import EmbeddedConfig, serve
asyncio.run(serve(EmbeddedConfig(Path(sys.argv[1]), port=0), ready=lambda port: print(port, flush=True)))
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory, now = tmp_path_factory.mktemp("site") / "ca", time.time()
    ca.init(directory, "lab", now=now)
    roles = {"broker": CertificateRole.BROKER, "aggregator": CertificateRole.AGGREGATOR}
    return {
        holder: ca.issue(directory, holder, roles.get(holder, CertificateRole.DEVICE), now=now)
        for holder in ("broker", "aggregator", "dev-1")
    }


@contextmanager
def serving(bundles: dict[str, Path]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(bundles["broker"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=WAIT_S)


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    return process.returncode, said


def secure(bundles: dict[str, Path], port: int) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), WAIT_S)
    return client_context(Bundle(bundles["dev-1"])).wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_on_a_signal(bundles: dict[str, Path], number: signal.Signals) -> None:
    with serving(bundles) as (process, _):
        assert stop(process, number) == (0, "")


def test_it_stops_whatever_its_clients_do(bundles: dict[str, Path]) -> None:
    """A connection that says nothing, one in its TLS handshake, and a subscriber that does not read."""
    topic = b"vedette/1/lab/device/dev-1/down/command"

    async def fill(port: int) -> None:
        async def ignore(_: MqttMessage) -> None: ...

        tls = client_context(Bundle(bundles["aggregator"]))
        async with MqttLink(LinkConfig("127.0.0.1", port, "aggregator", tls), ignore) as link:
            await link.wait_connected(WAIT_S)
            for _ in range(40):
                await link.publish(topic.decode(), bytes(200_000))

    with serving(bundles) as (process, port), secure(bundles, port) as deaf, secure(bundles, port) as silent:
        assert silent.version() is not None
        with socket.create_connection(("127.0.0.1", port)) as handshaking:
            handshaking.send(b"\x16\x03\x01")
            connect = b"\x00\x04MQTT\x04\x02\x00\x1e\x00\x05dev-1"
            subscribe = b"\x00\x01" + len(topic).to_bytes(2, "big") + topic + b"\x01"
            deaf.sendall(bytes([0x10, len(connect)]) + connect + bytes([0x82, len(subscribe)]) + subscribe)
            assert deaf.recv(4) == b"\x20\x02\x00\x00"
            asyncio.run(fill(port))
            assert stop(process)[0] == 0


def test_what_is_no_mqtt_ends_its_own_connection_only(bundles: dict[str, Path]) -> None:
    connect = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x1e\x00\x05dev-1"
    rubbish = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\xff\xff\xff\x7f",
        b"\x10\x02\x00\x04",
        b"\x10\x11\x00\x04MQTT\x04\x03\x00\x1e\x00\x05dev-1",  # reserved flag
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x1e\x00\x00",  # no client id
        connect + connect,
        connect + b"\xf0\x00",
        connect + b"\x30\x02\x00\x05",
        connect + b"\x30\x05\x00\x03a/#",
        connect + b"\x32\x05\x00\x01a\x00\x00",  # packet id 0
        connect + b"\x34\x05\x00\x01a\x00\x01",  # QoS 2
        connect + b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        connect + b"\x80\x06\x00\x01\x00\x01a\x00",  # flags
        connect + b"\x82\x02\x00\x01",  # no filters
        connect + b"\x82\x06\x00\x01\x00\xffa\x00",  # a field past the end
        connect + b"\xa2\x02\x00\x01",
        connect + b"\x62\x02\x00\x01",  # PUBREL
        connect + b"\x30\xff\xff\x7f",  # larger than any packet
    ]
    with serving(bundles) as (process, port):
        for data in rubbish:
            with secure(bundles, port) as client:
                client.settimeout(WAIT_S)
                client.sendall(data)
                while True:  # until the broker ends the connection
                    try:
                        if not client.recv(1000):
                            break
                    except (ConnectionError, ssl.SSLError):
                        break
        with secure(bundles, port) as client:
            client.sendall(connect)
            assert client.recv(4) == b"\x20\x02\x00\x00"
        code, said = stop(process)
    assert code == 0
    assert "Traceback" not in said
