"""The MQTT session's rules, on a network that the test plays."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from vedette_core.runtime import mqtt, mqtt_subscriptions
from vedette_core.runtime.mqtt import (
    AuthenticationError,
    LinkConfig,
    MqttLink,
    MqttMessage,
    UnreachableError,
)
from vedette_core.runtime.mqtt_network import (
    Accepted,
    Answered,
    Arrived,
    Ended,
    Failure,
    Report,
    Sent,
)
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import PeerError, TransientError


class PlayedNetwork:
    """Stands where the network thread stands; what it was asked to do is in `done`."""

    newest: PlayedNetwork

    def __init__(self, config: LinkConfig, _loop: Any, report: Callable[[Report], None]) -> None:
        self.config, self.report = config, report
        self.done: list[tuple[Any, ...]] = []
        self._last_mid = 0
        PlayedNetwork.newest = self

    def start(self) -> None:
        self.done.append(("start",))

    def stop(self, _timeout_s: float) -> bool:
        self.done.append(("stop",))
        return True

    def _mid(self) -> int:
        self._last_mid += 1
        return self._last_mid

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> int | None:
        self.done.append(("publish", topic, payload, qos, retain))
        return self._mid()

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        self.done.append(("subscribe", tuple(f for f, _ in filters)))
        return self._mid()

    def unsubscribe(self, topic_filter: str) -> None:
        self.done.append(("unsubscribe", topic_filter))

    def acknowledge(self, generation: int, mid: int) -> None:
        self.done.append(("acknowledge", generation, mid))


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "NetworkThread", PlayedNetwork)


class Bench:
    """A link on a played network, and what its shell was told."""

    def __init__(self, handler: Callable[[MqttMessage], Coroutine[Any, Any, None]] | None = None) -> None:
        self.told: list[Any] = []
        self.received: list[bytes] = []

        async def take(message: MqttMessage) -> None:
            self.received.append(message.payload)
            if handler is not None:
                await handler(message)

        config = LinkConfig("broker.example", 8883, "dev-1", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.link = MqttLink(config, take, on_connect=self.told.append, on_disconnect=self.told.append)

    @property
    def network(self) -> PlayedNetwork:
        return PlayedNetwork.newest

    def accept(self, generation: int = 1) -> None:
        self.network.report(Accepted(generation, session_present=False))

    def arrive(self, payload: bytes, qos: int = 1, mid: int = 7, generation: int = 1) -> None:
        self.network.report(Arrived(generation, mid, "t", payload, qos, retain=False))


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]], bench: Bench | None = None) -> Bench:
    async def whole() -> Bench:
        used = bench or Bench()
        async with used.link:
            await scenario(used)
        return used

    return asyncio.run(whole())


def test_it_is_connected_when_every_filter_was_answered() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.link.subscribe("a", 1)
        await bench.link.subscribe("b")
        bench.accept()
        assert not bench.link.connected
        assert bench.told == []
        assert bench.network.done[-1] == ("subscribe", ("a", "b"))
        bench.network.report(Answered(1, 1, (True, True)))
        assert bench.link.connected
        assert bench.told == [False]
        await bench.link.wait_subscribed(1)

    run(scenario)


def test_a_refused_filter_is_asked_for_again_and_does_not_hold_the_rest_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_subscriptions, "RETRY_MIN_S", 0.0)

    async def scenario(bench: Bench) -> None:
        await bench.link.subscribe("a")
        await bench.link.subscribe("b")
        bench.accept()
        bench.network.report(Answered(1, 1, (False, True)))
        assert bench.link.connected
        with pytest.raises(TransientError, match="no grant of a within"):
            await bench.link.wait_subscribed(0)
        while bench.network.done[-1] != ("subscribe", ("a",)):
            await asyncio.sleep(0)
        bench.network.report(Answered(1, 2, (True,)))
        await bench.link.wait_subscribed(1)
        assert bench.link.counters.subscriptions_refused == 1

    run(scenario)


def test_a_subscribe_without_an_answer_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_subscriptions, "SUBACK_TIMEOUT_S", 0.0)

    async def scenario(bench: Bench) -> None:
        await bench.link.subscribe("a")
        bench.accept()
        while bench.network.done.count(("subscribe", ("a",))) < 2:
            await asyncio.sleep(0)
        assert not bench.link.connected

    run(scenario)


def test_filters_are_asked_for_after_every_connack_and_old_answers_do_not_count() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.link.subscribe("a")
        bench.accept(1)
        bench.network.report(Ended(1, Failure.LOST, "gone"))
        bench.network.report(Accepted(2, session_present=True))
        bench.network.report(Answered(1, 1, (True,)))
        assert not bench.link.connected
        bench.network.report(Answered(2, 2, (True,)))
        assert bench.link.connected
        # Never ready on the first connection: nothing was connected, so nothing was lost.
        assert bench.told == [True]

    run(scenario)


def test_many_filters_are_asked_for_in_parts() -> None:
    async def scenario(bench: Bench) -> None:
        for i in range(120):
            await bench.link.subscribe(f"f/{i}")
        bench.accept()
        assert [len(d[1]) for d in bench.network.done if d[0] == "subscribe"] == [50, 50, 20]

    run(scenario)


def test_leaving_a_filter() -> None:
    async def scenario(bench: Bench) -> None:
        bench.accept()
        await bench.link.subscribe("a")
        await bench.link.unsubscribe("a")
        await bench.link.unsubscribe("never")
        assert bench.network.done[-1] == ("unsubscribe", "a")
        bench.network.report(Answered(1, 1, (False,)))
        bench.network.report(Ended(1, Failure.LOST, "gone"))
        bench.accept(2)
        assert bench.link.connected
        assert [d for d in bench.network.done if d[0] == "subscribe"] == [("subscribe", ("a",))]

    run(scenario)


# --- out


def test_qos_1_returns_when_the_broker_has_it_over_a_reconnect() -> None:
    async def scenario(bench: Bench) -> None:
        waiting = asyncio.create_task(bench.link.publish("t", b"x"))
        await settle()
        assert bench.link.pending == 1
        bench.accept(1)
        bench.network.report(Ended(1, Failure.LOST, "gone"))
        bench.accept(2)
        await settle()
        assert not waiting.done()
        bench.network.report(Sent(1))
        await waiting
        assert bench.link.counters.sent == 1
        assert bench.link.counters.sent_bytes == 1
        assert bench.told == [False, "gone", False]

    run(scenario)


def test_qos_0_is_dropped_and_counted_while_there_is_no_session() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.link.publish("t", b"x", qos=0)
        assert [d for d in bench.network.done if d[0] == "publish"] == []
        bench.accept()
        await bench.link.publish("t", b"y", qos=0)
        bench.network.report(Sent(1))
        await bench.link.publish("t", b"lost with its connection", qos=0)
        bench.network.report(Ended(1, Failure.LOST, "gone"))
        assert bench.link.counters.sent == 1
        assert bench.link.counters.sent_dropped == 2
        assert bench.link.pending == 0

    run(scenario)


def test_too_large_a_payload_is_refused_before_it_is_sent() -> None:
    async def scenario(bench: Bench) -> None:
        bench.accept()
        with pytest.raises(PeerError, match="expected at most 262144"):
            await bench.link.publish("t", bytes(PAYLOAD_BYTES_MAX + 1))
        assert [d for d in bench.network.done if d[0] == "publish"] == []
        assert bench.link.counters.sent_refused == 1

    run(scenario)


@pytest.mark.parametrize(("limit", "value"), [("OUT_MESSAGES_MAX", 2), ("OUT_BYTES_MAX", 2)])
def test_the_queue_is_bounded_and_has_room_again_after_pubacks(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(mqtt, limit, value)

    async def scenario(bench: Bench) -> None:
        bench.accept()
        first = [asyncio.create_task(bench.link.publish("t", b"x")) for _ in range(2)]
        await settle()
        with pytest.raises(TransientError, match="2 messages of 2 bytes waiting"):
            await bench.link.publish("t", b"x")
        await bench.link.publish("t", b"x", qos=0)
        assert bench.link.counters.sent_dropped == 1
        bench.network.report(Sent(1))
        third = asyncio.create_task(bench.link.publish("t", b"x"))
        await settle()
        bench.network.report(Sent(2))
        bench.network.report(Sent(3))
        await asyncio.gather(*first, third)

    run(scenario)


def test_who_stops_waiting_does_not_stop_the_sending() -> None:
    async def scenario(bench: Bench) -> None:
        bench.accept()
        waiting = asyncio.create_task(bench.link.publish("t", b"x"))
        await settle()
        waiting.cancel()
        await settle()
        assert bench.link.pending == 1
        bench.network.report(Sent(1))
        assert bench.link.pending == 0
        assert bench.link.counters.sent == 1

    run(scenario)


def test_stopping_tells_who_still_waits_and_ends_once() -> None:
    async def scenario(bench: Bench) -> None:
        waiting = asyncio.create_task(bench.link.publish("t", b"x"))
        await settle()
        await bench.link.stop()
        await bench.link.stop()
        with pytest.raises(TransientError, match="stopped before"):
            await waiting
        with pytest.raises(TransientError, match="not running"):
            await bench.link.publish("t", b"x")
        with pytest.raises(UnreachableError, match="stopped"):
            await bench.link.wait_connected(1)
        assert bench.network.done.count(("stop",)) == 1

    run(scenario)


# --- in


def test_a_message_is_acknowledged_after_its_handler_and_in_order() -> None:
    gate = asyncio.Event()

    async def handler(_: MqttMessage) -> None:
        await gate.wait()

    async def scenario(bench: Bench) -> None:
        bench.accept()
        bench.arrive(b"1", mid=1)
        bench.arrive(b"2", mid=2)
        bench.arrive(b"3", qos=0, mid=0)
        await settle()
        assert [d for d in bench.network.done if d[0] == "acknowledge"] == []
        gate.set()
        await settle()
        assert [d for d in bench.network.done if d[0] == "acknowledge"] == [
            ("acknowledge", 1, 1),
            ("acknowledge", 1, 2),
        ]
        assert bench.received == [b"1", b"2", b"3"]
        assert bench.link.counters.received == 3

    run(scenario, Bench(handler))


@pytest.mark.parametrize(
    ("error", "counter"),
    [(PeerError("no"), "received_rejected"), (ValueError("bug"), "received_failed")],
)
def test_a_message_that_breaks_its_handler_is_counted_acknowledged_and_passed_by(
    error: Exception, counter: str
) -> None:
    async def handler(message: MqttMessage) -> None:
        if message.payload == b"poison":
            raise error

    async def scenario(bench: Bench) -> None:
        bench.accept()
        bench.arrive(b"poison", mid=1)
        bench.arrive(b"good", mid=2)
        await settle()
        assert [d[2] for d in bench.network.done if d[0] == "acknowledge"] == [1, 2]
        assert getattr(bench.link.counters, counter) == 1
        assert bench.link.counters.received == 1

    run(scenario, Bench(handler))


def test_what_the_contract_does_not_allow_does_not_reach_the_handler() -> None:
    async def scenario(bench: Bench) -> None:
        bench.accept()
        bench.arrive(bytes(PAYLOAD_BYTES_MAX + 1), mid=1)
        await settle()
        assert bench.received == []
        assert bench.link.counters.received_oversize == 1
        assert ("acknowledge", 1, 1) in bench.network.done

    run(scenario)


def test_qos_0_is_dropped_when_the_handler_is_behind_and_qos_1_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "IN_BYTES_MAX", 2)

    async def scenario(bench: Bench) -> None:
        bench.accept()
        for payload, qos in ((b"a", 0), (b"b", 1), (b"c", 0), (b"d", 1)):
            bench.arrive(payload, qos)
        await settle()
        assert bench.received == [b"a", b"b", b"d"]
        assert bench.link.counters.received_dropped == 1

    run(scenario)


# --- why there is no session


@pytest.mark.parametrize(
    ("failure", "error", "todo"),
    [
        (Failure.TLS, AuthenticationError, "check that both certificates"),
        (Failure.REFUSED, AuthenticationError, "check that the client id"),
        (Failure.UNREACHABLE, UnreachableError, "check that the broker runs there"),
        (Failure.CLOSED, UnreachableError, "check that both certificates"),
    ],
)
def test_the_error_says_who_must_act_and_what_to_do(failure: Failure, error: type[Exception], todo: str) -> None:
    async def scenario(bench: Bench) -> None:
        bench.network.report(Ended(1, failure, "why"))
        with pytest.raises(error, match=rf"broker broker\.example:8883: found: why; expected a session; {todo}"):
            await bench.link.wait_connected(0.01)
        assert bench.link.counters.connects_failed == 1

    run(scenario)


def test_no_answer_at_all_is_unreachable() -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(UnreachableError, match="found: no answer"):
            await bench.link.wait_connected(0)

    run(scenario)


def test_a_broker_that_closes_again_and_again_without_a_word_refuses_the_certificate() -> None:
    async def scenario(bench: Bench) -> None:
        for generation in range(mqtt.CLOSED_MAX):
            bench.network.report(Ended(generation, Failure.CLOSED, "closed"))
        with pytest.raises(AuthenticationError, match="certificates"):
            await bench.link.wait_connected(10)
        bench.network.report(Ended(9, Failure.UNREACHABLE, "nobody"))
        with pytest.raises(UnreachableError):
            await bench.link.wait_connected(0.01)

    run(scenario)


def test_a_waiting_caller_hears_of_a_fatal_reason_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        waiting = asyncio.create_task(bench.link.wait_connected(3600))
        await settle()
        bench.network.report(Ended(1, Failure.REFUSED, "not authorised"))
        with pytest.raises(AuthenticationError):
            await waiting

    run(scenario)
