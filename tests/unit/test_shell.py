"""The shell keeps the order of effects: what must be on disk is there before anything that depends on it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vedette_core.machine import Effect, Note, Persist, Publish, Subscribe, Unsubscribe
from vedette_core.runtime import shell as shell_module
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, Outbox, StateStore
from vedette_device.service import DeviceService
from vedette_schemas.errors import PeerError, TransientError


class Link:
    def __init__(self) -> None:
        self.connected = True
        self.said: list[tuple[str, str]] = []
        self.refuse = False

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.refuse:
            raise PeerError("found too much, expected less", reason="limit")
        self.said.append(("publish", topic))

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.said.append(("subscribe", topic_filter))

    async def unsubscribe(self, topic_filter: str) -> None:
        self.said.append(("unsubscribe", topic_filter))


def made(tmp_path: Path, resend_s: float = 30.0) -> tuple[Shell, Link, StateStore, Outbox]:
    database = Database(tmp_path / "state.db")
    link, store, outbox = Link(), StateStore(database), Outbox(database)
    return Shell(link, store, Metrics(DEVICE_METRICS), outbox, resend_s), link, store, outbox


async def settle(shell: Shell, seconds: float = 0.05, until: Callable[[], bool] = lambda: True) -> None:
    worker = asyncio.create_task(shell.run())
    await asyncio.sleep(seconds)
    async with asyncio.timeout(60):
        while not until():
            await asyncio.sleep(0.01)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


def test_effects_are_carried_out_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        shell, link, store, _ = made(tmp_path)
        seen: list[bytes | None] = []

        async def special(effect: Effect) -> None:
            seen.append(store.get("k"))

        class Own(Effect):
            pass

        await shell.carry_out(
            [Persist("k", b"1"), Own(), Persist("k", None), Own(), Subscribe("a"), Unsubscribe("a"), Note("info", "x")],
            special,
        )
        assert seen == [b"1", None]
        assert link.said == [("subscribe", "a"), ("unsubscribe", "a")]

    asyncio.run(scenario())


def test_nothing_leaves_before_it_is_persisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "DISK_RETRY_S", 0.01)

    async def scenario() -> None:
        shell, link, store, _ = made(tmp_path)
        full = True
        put = store.put

        def put_if_there_is_room(key: str, value: bytes | None) -> None:
            if full:
                raise TransientError("disk full")
            put(key, value)

        monkeypatch.setattr(store, "put", put_if_there_is_room)
        job = asyncio.create_task(shell.carry_out([Persist("k", b"1"), Publish("t", b"x")]))
        await settle(shell)
        assert link.said == []
        full = False
        await job
        await settle(shell)
        assert link.said == [("publish", "t")]
        assert store.get("k") == b"1"

    asyncio.run(scenario())


def test_state_that_may_be_lost_does_not_hold_an_alert_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        shell, link, store, _ = made(tmp_path)

        def no_room(key: str, value: bytes | None) -> None:
            raise TransientError("disk full")

        monkeypatch.setattr(store, "put", no_room)
        await shell.carry_out([Persist("k", b"1"), Publish("t", b"x", receipt_id="a.0")], must_persist=False)
        await settle(shell)
        assert link.said == [("publish", "t")]

    asyncio.run(scenario())


def test_a_message_is_sent_again_until_its_receipt(tmp_path: Path) -> None:
    async def scenario() -> None:
        shell, link, _, outbox = made(tmp_path, resend_s=0.04)
        await shell.carry_out([Publish("t", b"x", receipt_id="a.0"), Publish("once", b"y")])
        await settle(shell, until=lambda: link.said.count(("publish", "t")) > 1)
        assert link.said.count(("publish", "once")) == 1
        taken = shell.receipt("a.0")
        assert taken is not None
        assert taken.topic == "t"
        await settle(shell)  # what was on its way when the receipt came may still leave
        sent = len(link.said)
        await settle(shell, 0.2)
        assert len(link.said) == sent
        assert outbox.messages == 0
        assert await shell.drained(0.1)

    asyncio.run(scenario())


def test_what_was_said_while_away_is_sent_after_the_reconnect(tmp_path: Path) -> None:
    async def scenario() -> None:
        shell, link, _, outbox = made(tmp_path)
        link.connected = False
        await shell.carry_out([Publish("t", b"x", receipt_id="a.0"), Publish("lost", b"y")])
        await settle(shell)
        assert link.said == []
        assert outbox.messages == 1
        assert not await shell.drained(0.05)
        link.connected = True
        shell.flush()
        await settle(shell)
        assert link.said == [("publish", "t")]

    asyncio.run(scenario())


def test_a_refused_publication_does_not_stop_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        shell, link, _, _ = made(tmp_path)
        link.refuse = True
        await shell.carry_out([Publish("t", b"x")])
        await settle(shell)
        link.refuse = False
        await shell.carry_out([Publish("u", b"x")])
        await settle(shell)
        assert link.said == [("publish", "u")]

    asyncio.run(scenario())


def test_what_is_given_up_leaves_nothing_in_memory(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    outbox = Outbox(database, messages_max=3)
    shell = Shell(Link(), StateStore(database), Metrics(DEVICE_METRICS), outbox)
    for i in range(20):
        shell.publish(Publish("t", b"x", receipt_id=f"m{i}"))
    assert outbox.messages == 3
    assert len(shell._sent_at) == 3


def test_last_words_are_waited_for_although_the_broker_is_slow_and_receipts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, link, _, outbox = made(tmp_path)
    acknowledged = asyncio.Event()

    async def slow(topic: str, payload: bytes, **_: object) -> None:
        await acknowledged.wait()
        link.said.append(("publish", topic))

    monkeypatch.setattr(link, "publish", slow)

    async def scenario() -> None:
        worker = asyncio.create_task(shell.run())
        shell.publish(Publish("alert", b"1", receipt_id="a-1"))
        shell.publish(Publish("report", b"2"))
        shell.publish(Publish("stopped", b"3"))
        assert not await shell.said(0.1), "the first has not left yet"
        ending = asyncio.create_task(shell.said(60.0))
        acknowledged.set()
        assert await ending
        assert ("publish", "stopped") in link.said
        assert outbox.messages == 1, "its receipt may come another time"
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(scenario())


def test_a_node_that_ends_says_so_although_the_broker_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell, link, _, _ = made(tmp_path)
    connected: Any = link

    async def slow(topic: str, payload: bytes, **_: object) -> None:
        await asyncio.sleep(0.5)
        link.said.append(("publish", topic))

    monkeypatch.setattr(link, "publish", slow)

    class Device(DeviceService):
        def __init__(self) -> None:
            self._shell, self._link = shell, connected

        def _publish_telemetry(self, qos: int = 0) -> None:
            shell.publish(Publish("report", b"", qos=qos))

        def _publish_state(self, status: str = "online") -> None:
            shell.publish(Publish(status, b"", retain=True))

    async def scenario() -> None:
        worker = asyncio.create_task(shell.run())
        await Device()._leave(60.0)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(scenario())
    assert link.said == [("publish", "report"), ("publish", "report"), ("publish", "stopped")]
