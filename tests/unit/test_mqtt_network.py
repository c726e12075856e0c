"""The MQTT network thread: acknowledgements, and what it makes of servers that are not a broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest

from vedette.demo.fleet import free_port
from vedette_core.runtime import mqtt_network
from vedette_core.runtime.mqtt_network import Ended, Failure, LinkConfig, NetworkThread, Report


def make_thread(port: int, report: Callable[[Report], None], loop: asyncio.AbstractEventLoop) -> NetworkThread:
    config = LinkConfig("127.0.0.1", port, "dev-1", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return NetworkThread(config, loop, report)


def test_an_acknowledgement_does_not_cross_into_the_next_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Message ids begin anew with each connection: an old one would acknowledge somebody else."""

    async def scenario() -> list[int]:
        thread = make_thread(1, lambda _: None, asyncio.get_running_loop())
        sent: list[int] = []
        monkeypatch.setattr(thread._client, "ack", lambda mid, _qos: sent.append(mid))
        thread._generation = 2
        thread.acknowledge(1, 10)
        thread.acknowledge(2, 11)
        return sent

    assert asyncio.run(scenario()) == [11]


def test_a_port_where_nobody_listens_is_unreachable_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_network, "RECONNECT_MIN_S", 0.01)

    async def scenario() -> list[Report]:
        reports: list[Report] = []
        twice = asyncio.Event()

        def take(report: Report) -> None:
            reports.append(report)
            if len(reports) == 2:
                twice.set()

        thread = make_thread(free_port(), take, asyncio.get_running_loop())
        thread.start()
        async with asyncio.timeout(60):
            await twice.wait()
        assert await asyncio.to_thread(thread.stop, 60)
        return reports[:2]

    reports = asyncio.run(scenario())
    assert [(type(r), r.failure) for r in reports if isinstance(r, Ended)] == [(Ended, Failure.UNREACHABLE)] * 2


def test_a_server_that_does_not_speak_tls_is_told() -> None:
    async def scenario() -> Report:
        first: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        def take(report: Report) -> None:
            if not first.done():
                first.set_result(report)

        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            thread = make_thread(port, take, asyncio.get_running_loop())
            thread.start()
            async with asyncio.timeout(60):
                report = await first
            assert await asyncio.to_thread(thread.stop, 60)
        return report

    report = asyncio.run(scenario())
    assert isinstance(report, Ended)
    assert report.failure is Failure.TLS
    assert "WRONG_VERSION_NUMBER" in report.text
