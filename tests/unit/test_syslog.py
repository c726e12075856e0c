"""Syslog over real sockets: every transport, receivers that go away, and a backlog that is bounded and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from export_parts import SAMPLES, VERSION, an_alert
from export_validators import read_cef, read_syslog
from hypothesis import given
from hypothesis import strategies as st
from syslog_receiver import WAIT_S, Authority, DatagramReceiver, StreamReceiver, make_authority

from vedette.demo.fleet import free_port
from vedette_core.export import cef, rfc5424
from vedette_core.runtime.syslog import SyslogSender, SyslogTarget, Transport, tls_context
from vedette_core.runtime.syslog_backlog import RANKS, Backlog, Waiting
from vedette_schemas.errors import ConfigError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def tcp(port: int) -> SyslogTarget:
    return SyslogTarget(Transport.TCP, "127.0.0.1", port)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"message %d" % n for n in range(start, start + count)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("transport", Transport)
def test_messages_arrive_whole_and_in_order(transport: Transport, authority: Authority) -> None:
    async def test() -> None:
        tls = authority.server() if transport is Transport.TLS else None
        receiver = DatagramReceiver() if transport is Transport.UDP else StreamReceiver(tls)
        await receiver.start()
        context = tls_context(authority.ca) if transport is Transport.TLS else None
        target = SyslogTarget(transport, "localhost" if context else "127.0.0.1", receiver.port, context)
        alerts = list(SAMPLES.values())
        messages = [
            rfc5424.message(a, cef.line(a, VERSION).encode(), n, VERSION) for n, a in enumerate(alerts)
        ]  # one with a line end in its text, one with ä
        async with SyslogSender(target) as sender:
            for alert, message in zip(alerts, messages, strict=True):
                sender.offer(message, alert.severity.rank)
            assert await sender.drain(WAIT_S) == 0
            await receiver.until(lambda: len(receiver.messages) == len(messages))
            assert (sender.counters.sent, sender.counters.dropped) == (len(messages), 0)
        assert receiver.messages == messages
        read = [read_syslog(m) for m in receiver.messages]
        assert [r.sd["meta"]["sequenceId"] for r in read] == ["1", "2", "3", "4", "5"]
        assert read_cef(read[3].msg)["msg"] == SAMPLES["nasty"].summary
        await receiver.stop()

    run(test())


def test_what_was_written_before_a_goodbye_arrives() -> None:
    async def test() -> None:
        receiver = StreamReceiver()
        await receiver.start()
        async with SyslogSender(tcp(receiver.port)) as sender:
            for message in numbered(500):
                sender.offer(message, 0)
            await sender.drain(WAIT_S)
        await receiver.until(lambda: len(receiver.messages) == 500)
        await receiver.stop()

    run(test())


def test_a_receiver_that_is_not_there_yet_gets_everything() -> None:
    async def test() -> None:
        receiver = StreamReceiver()
        receiver.port = free_port()
        async with SyslogSender(tcp(receiver.port)) as sender:
            for message in numbered(20):
                sender.offer(message, 0)
            await until(lambda: sender.counters.failures > 0)
            assert (sender.waiting, sender.counters.sent) == (20, 0)
            assert sender.failure
            await receiver.start()
            assert await sender.drain(WAIT_S) == 0
            await receiver.until(lambda: receiver.messages == numbered(20))
            assert sender.failure == ""
        await receiver.stop()

    run(test())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_receiver_that_restarts_misses_nothing(encrypted: bool, authority: Authority) -> None:
    async def test() -> None:
        receiver = StreamReceiver(authority.server() if encrypted else None)
        await receiver.start()
        context = tls_context(authority.ca) if encrypted else None
        target = SyslogTarget(
            Transport.TLS if encrypted else Transport.TCP,
            "localhost" if encrypted else "127.0.0.1",
            receiver.port,
            context,
        )
        wanted = set[bytes]()
        async with SyslogSender(target) as sender:
            for turn in range(3):
                for message in numbered(10, turn * 10):
                    sender.offer(message, 0)
                wanted.update(numbered(10, turn * 10))
                await receiver.until(lambda: wanted <= set(receiver.messages))
                await receiver.stop()
                for message in numbered(3, 1000 + turn * 3):
                    sender.offer(message, 0)  # nobody listens now
                await asyncio.sleep(0.05)
                await receiver.start()
            await receiver.until(lambda: len(set(receiver.messages)) == 39)
            assert sender.counters.connects == 4
            assert sender.counters.repeated > 0
        assert set(receiver.messages) == {*numbered(30), *numbered(9, 1000)}
        await receiver.stop()

    run(test())


def test_a_full_backlog_drops_the_least_severe_and_counts() -> None:
    async def test() -> None:
        receiver = StreamReceiver()
        receiver.port = free_port()
        async with SyslogSender(tcp(receiver.port), backlog_max=4) as sender:
            for n, rank in enumerate([0, 3, 1, 0, 2, 0, 3]):
                sender.offer(b"%d" % n, rank)
            assert (sender.waiting, sender.counters.dropped) == (4, 3)
            await receiver.start()
            await receiver.until(lambda: len(receiver.messages) == 4)
        assert receiver.messages == [b"1", b"2", b"4", b"6"]
        await receiver.stop()

    run(test())


def test_a_sender_that_may_wait_displaces_nothing() -> None:
    async def test() -> None:
        receiver = StreamReceiver()
        receiver.port = free_port()
        async with SyslogSender(tcp(receiver.port), backlog_max=2) as sender:
            for message in numbered(2):
                assert await sender.wait_for_room(WAIT_S)
                sender.offer(message, 0)
            assert not await sender.wait_for_room(0.1)
            await receiver.start()
            for message in numbered(8, 2):
                assert await sender.wait_for_room(WAIT_S)
                sender.offer(message, 0)
            await receiver.until(lambda: len(receiver.messages) == 10)
            assert sender.counters.dropped == 0
        assert receiver.messages == numbered(10)
        await receiver.stop()

    run(test())


def test_drain_tells_what_could_not_be_sent() -> None:
    async def test() -> None:
        async with SyslogSender(tcp(free_port())) as sender:
            sender.offer(b"x", 0)
            assert await sender.drain(0.2) == 1

    run(test())


def test_a_datagram_that_is_too_large_is_counted() -> None:
    async def test() -> None:
        receiver = DatagramReceiver()
        await receiver.start()
        async with SyslogSender(SyslogTarget(Transport.UDP, "127.0.0.1", receiver.port)) as sender:
            sender.offer(b"x" * (rfc5424.DATAGRAM_BYTES_MAX + 1), 3)
            sender.offer(b"small", 0)
            await receiver.until(lambda: bool(receiver.messages))
            assert (sender.counters.oversize, sender.counters.sent) == (1, 1)
        assert receiver.messages == [b"small"]
        await receiver.stop()

    run(test())


def test_datagrams_go_on_when_the_receiver_was_away() -> None:
    async def test() -> None:
        receiver = DatagramReceiver()
        await receiver.start()
        async with SyslogSender(SyslogTarget(Transport.UDP, "127.0.0.1", receiver.port)) as sender:
            sender.offer(b"first", 0)
            await receiver.until(lambda: receiver.messages == [b"first"])
            await receiver.stop()
            sender.offer(b"lost", 0)
            await until(lambda: sender.counters.failures > 0)  # loopback says so
            await receiver.start()
            sender.offer(b"last", 0)
            await receiver.until(lambda: receiver.messages[-1] == b"last")
            assert sender.counters.dropped == 0
        await receiver.stop()

    run(test())


def test_a_server_of_another_name_or_authority_gets_nothing(authority: Authority, tmp_path: Path) -> None:
    async def refused(receiver: StreamReceiver, ca: Path) -> str:
        target = SyslogTarget(Transport.TLS, "localhost", receiver.port, tls_context(ca))
        async with SyslogSender(target) as sender:
            sender.offer(b"secret", 3)
            await until(lambda: sender.counters.failures > 0)
            assert (sender.counters.sent, sender.waiting) == (0, 1)
            return sender.failure

    async def test() -> None:
        wrong_name, right = StreamReceiver(authority.server(name="elsewhere")), StreamReceiver(authority.server())
        await wrong_name.start()
        await right.start()
        assert "Hostname mismatch" in await refused(wrong_name, authority.ca)
        other = make_authority(tmp_path / "other")
        assert "certificate is refused here" in await refused(right, other.ca)
        assert not wrong_name.messages + right.messages
        await wrong_name.stop()
        await right.stop()

    run(test())


def test_a_receiver_may_ask_for_a_certificate(authority: Authority) -> None:
    async def test() -> None:
        receiver = StreamReceiver(authority.server(mutual=True))
        await receiver.start()
        known = SyslogTarget(
            Transport.TLS, "localhost", receiver.port, tls_context(authority.ca, *authority.certificates["client"])
        )
        async with SyslogSender(known) as sender:
            sender.offer(b"hello", 0)
            await receiver.until(lambda: receiver.messages == [b"hello"])
        unknown = SyslogTarget(Transport.TLS, "localhost", receiver.port, tls_context(authority.ca))
        async with SyslogSender(unknown) as sender:
            sender.offer(b"not this", 0)
            await until(lambda: sender.counters.failures > 1)
            assert sender.waiting == 1
        assert receiver.messages == [b"hello"]
        await receiver.stop()

    run(test())


def test_files_that_are_no_certificates_are_the_operators_fault(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="missing.pem"):
        tls_context(tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match="text.pem"):
        tls_context(tmp_path / "text.pem")


def test_a_context_belongs_to_tls_only() -> None:
    with pytest.raises(ValueError, match="TLS"):
        SyslogTarget(Transport.TLS, "localhost", 6514)
    assert an_alert().severity.rank < RANKS


# --- the backlog against a plain list ---


@given(st.integers(1, 6), st.lists(st.integers(0, RANKS - 1) | st.none(), max_size=40))
def test_the_backlog_is_a_list_that_loses_its_least_severe_oldest(room: int, steps: list[int | None]) -> None:
    backlog, model = Backlog(room), list[Waiting]()
    for number, rank in enumerate(steps):
        if rank is None:
            assert backlog.pop() == (model.pop(0) if model else None)
            continue
        item = Waiting(number, rank, b"")
        model.append(item)
        lost = min(model, key=lambda w: (w.rank, w.number)) if len(model) > room else None
        if lost is not None:
            model.remove(lost)
        assert backlog.push(item) == lost
        assert len(backlog) == len(model)
    assert [backlog.pop() for _ in model] == model


@given(st.integers(1, 6), st.lists(st.integers(0, RANKS - 1), max_size=12), st.integers(0, 6))
def test_what_is_put_back_comes_first_again(room: int, ranks: list[int], taken: int) -> None:
    backlog = Backlog(room)
    for number, rank in enumerate(ranks):
        backlog.push(Waiting(number, rank, b""))
    out = [item for _ in range(taken) if (item := backlog.pop()) is not None]
    assert backlog.put_back(out) == []
    rest = [item for _ in range(room) if (item := backlog.pop()) is not None]
    assert rest == sorted(rest, key=lambda w: w.number)
    assert rest[: len(out)] == out


def test_what_is_put_back_into_a_full_backlog_counts_as_dropped() -> None:
    backlog = Backlog(2)
    backlog.push(Waiting(0, 0, b""))
    backlog.push(Waiting(1, 1, b""))
    first = backlog.pop()
    assert first is not None
    backlog.push(Waiting(2, 2, b""))
    assert backlog.put_back([first]) == [first]
    with pytest.raises(ValueError, match="1 or more"):
        Backlog(0)
