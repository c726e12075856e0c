"""What is delivered, when, and what is not lost."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
import pytest
from broker_parties import WAIT_S, Authority, BrokerUnderTest, party, path
from paho.mqtt.enums import CallbackAPIVersion

from vedette_broker.limits import PACKET_BYTES_MAX
from vedette_core.runtime.mqtt import MqttMessage, Will
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import PeerError


@contextmanager
def raw_client(broker: BrokerUnderTest, authority: Authority, who: str, **will: Any) -> Iterator[paho.Client]:
    """paho without our session around it: no limits, no reconnect."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=who, protocol=paho.MQTTv311, reconnect_on_failure=False)
    client.tls_set_context(authority.context(who))
    if will:
        client.will_set(**will)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    limit = time.monotonic() + WAIT_S
    while not client.is_connected():
        assert time.monotonic() < limit
        time.sleep(0.01)
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def test_qos_1_arrives_in_order_and_once(broker: BrokerUnderTest, authority: Authority) -> None:
    sent = [b"%d" % i for i in range(300)]

    async def scenario() -> list[bytes]:
        async with (
            party(broker, authority, "aggregator", ["device/dev-a/up/alert"]) as aggregator,
            party(broker, authority, "dev-a") as device,
        ):
            await asyncio.gather(*(device.link.publish(path("device/dev-a/up/alert"), p) for p in sent))
            await aggregator.until_payload(sent[-1])
            return aggregator.payloads

    assert asyncio.run(scenario()) == sent


def test_overlapping_filters_lose_nothing(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> set[bytes]:
        filters = ["device/+/up/#", "device/+/up/alert", "device/dev-a/up/alert"]
        async with (
            party(broker, authority, "aggregator", filters) as aggregator,
            party(broker, authority, "dev-a") as device,
        ):
            for payload in (b"1", b"2", b"end"):
                await device.link.publish(path("device/dev-a/up/alert"), payload)
            await aggregator.until_payload(b"end")
            return set(aggregator.payloads)

    assert asyncio.run(scenario()) == {b"1", b"2", b"end"}


def test_the_lower_qos_counts(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> list[tuple[bytes, int]]:
        async with (
            party(broker, authority, "aggregator", ["device/dev-a/up/telemetry"]) as aggregator,
            party(broker, authority, "dev-a") as device,
        ):
            await device.link.publish(path("device/dev-a/up/telemetry"), b"zero", qos=0)
            await device.link.publish(path("device/dev-a/up/telemetry"), b"one", qos=1)
            await aggregator.until_payload(b"one")
            return [(m.payload, m.qos) for m in aggregator.received]

    assert asyncio.run(scenario()) == [(b"zero", 0), (b"one", 1)]


def test_retained_state_arrives_once_as_retained_and_can_be_cleared(
    broker: BrokerUnderTest, authority: Authority
) -> None:
    async def scenario() -> tuple[list[MqttMessage], list[MqttMessage]]:
        topic, other = "public/round/kept", "public/round/other"
        async with party(broker, authority, "aggregator") as aggregator:
            await aggregator.link.publish(path(topic), b"old", retain=True)
            await aggregator.link.publish(path(topic), b"new", retain=True)
            await aggregator.link.publish(path(other), b"not asked for", retain=True)
            async with party(broker, authority, "dev-a", [topic]) as device:
                await device.until_payload(b"new")
                await aggregator.link.publish(path(topic), b"live", retain=True)
                await device.until_payload(b"live")
                first = list(device.received)
            await aggregator.link.publish(path(topic), b"", retain=True)
            await aggregator.link.publish(path(other), b"", retain=True)
            async with party(broker, authority, "dev-b", [topic, "device/dev-b/down/#"]) as late:
                await aggregator.link.publish(path("device/dev-b/down/command"), b"fence")
                await late.until_payload(b"fence")
                return first, late.received

    first, late = asyncio.run(scenario())
    assert [(m.payload, m.retain) for m in first] == [(b"new", True), (b"live", False)]
    assert [m.payload for m in late] == [b"fence"]


def test_subscribing_on_demand_and_leaving_again(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> list[bytes]:
        topic = path("public/artifact/" + "a" * 64)
        async with (
            party(broker, authority, "aggregator") as aggregator,
            party(broker, authority, "dev-a", ["device/dev-a/down/#"]) as device,
        ):
            await aggregator.link.publish(topic, b"artifact", retain=True)
            await device.link.subscribe(topic)
            await device.until_payload(b"artifact")
            await device.link.unsubscribe(topic)
            # The broker has the UNSUBSCRIBE before this PUBLISH of the same connection.
            await device.link.publish(path("device/dev-a/up/alert"), b"mark")
            await aggregator.link.publish(topic, b"later", retain=True)
            await aggregator.link.publish(topic, b"", retain=True)
            await aggregator.link.publish(path("device/dev-a/down/command"), b"fence")
            await device.until_payload(b"fence")
            return device.payloads

    assert asyncio.run(scenario()) == [b"artifact", b"fence"]


def test_the_will_speaks_for_a_broken_connection_and_not_for_a_clean_end(
    broker: BrokerUnderTest, authority: Authority
) -> None:
    async def scenario() -> tuple[list[bytes], list[bytes]]:
        state = path("device/dev-a/up/state")
        will = {"topic": state, "payload": b"lost", "qos": 1, "retain": True}
        async with party(broker, authority, "aggregator", ["device/dev-a/up/#"]) as aggregator:
            async with party(broker, authority, "dev-a", will=Will(state, b"lost")) as clean:
                await clean.link.publish(state, b"online", retain=True)
            async with party(broker, authority, "dev-a") as again:
                await again.link.publish(path("device/dev-a/up/alert"), b"fence")
            await aggregator.until_payload(b"fence")
            before = aggregator.payloads
            with raw_client(broker, authority, "dev-a", **will) as broken:
                handle = broken.socket()
                assert handle is not None
                handle.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
                await aggregator.until_payload(b"lost")
        async with party(broker, authority, "analytics", ["device/dev-a/up/state"]) as late:
            await late.until(lambda: bool(late.received))
            async with party(broker, authority, "dev-a") as again:
                await again.link.publish(state, b"", retain=True)
            return before, late.payloads[:1]

    before, kept = asyncio.run(scenario())
    assert before == [b"online", b"fence"]
    assert kept == [b"lost"]


def test_the_will_cannot_be_used_to_speak_elsewhere(broker: BrokerUnderTest, authority: Authority) -> None:
    async def scenario() -> list[bytes]:
        forged = {"topic": path("public/round/will"), "payload": b"forged", "qos": 1, "retain": True}
        filters = ["public/round/will", "device/dev-a/up/#"]
        async with party(broker, authority, "aggregator", filters) as aggregator:
            with raw_client(broker, authority, "dev-a", **forged) as broken:
                handle = broken.socket()
                assert handle is not None
                handle.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            # A newer connection of the same id comes after the older one's will.
            async with party(broker, authority, "dev-a") as device:
                await device.link.publish(path("device/dev-a/up/alert"), b"fence")
                await aggregator.until_payload(b"fence")
            async with party(broker, authority, "dev-b", ["public/round/will", "device/dev-b/down/#"]) as late:
                await aggregator.link.publish(path("device/dev-b/down/command"), b"fence")
                await late.until_payload(b"fence")
                return aggregator.payloads + late.payloads

    assert set(asyncio.run(scenario())) == {b"fence"}


def test_a_silent_client_is_taken_for_lost(broker: BrokerUnderTest, authority: Authority) -> None:
    """Half-open connections end after 1.5 keep-alives, and the will is published."""
    topic = path("device/dev-a/up/state").encode()
    will = len(topic).to_bytes(2, "big") + topic + b"\x00\x06silent"
    body = b"\x00\x04MQTT\x04\x0e\x00\x01" + b"\x00\x05dev-a" + will  # clean session, will of QoS 1, keep-alive 1 s

    async def scenario() -> None:
        async with party(broker, authority, "aggregator", ["device/dev-a/up/state"]) as aggregator:
            with (
                socket.create_connection(("127.0.0.1", broker.port), WAIT_S) as plain,
                authority.context("dev-a").wrap_socket(plain, server_hostname="127.0.0.1") as silent,
            ):
                silent.sendall(bytes([0x10, len(body)]) + body)
                assert silent.recv(4) == b"\x20\x02\x00\x00"
                await aggregator.until_payload(b"silent")

    asyncio.run(scenario())


def test_a_payload_at_the_limit_passes_and_one_above_it_is_refused_before_it_is_sent(
    broker: BrokerUnderTest, authority: Authority
) -> None:
    async def scenario() -> tuple[list[int], int]:
        async with (
            party(broker, authority, "aggregator", ["device/dev-a/up/alert"]) as aggregator,
            party(broker, authority, "dev-a") as device,
        ):
            topic = path("device/dev-a/up/alert")
            with pytest.raises(PeerError, match="expected at most 262144"):
                await device.link.publish(topic, bytes(PAYLOAD_BYTES_MAX + 1))
            await device.link.publish(topic, bytes(PAYLOAD_BYTES_MAX))
            await device.link.publish(topic, b"end")
            await aggregator.until_payload(b"end")
            return [len(p) for p in aggregator.payloads], device.link.counters.sent_refused

    assert asyncio.run(scenario()) == ([PAYLOAD_BYTES_MAX, 3], 1)


@pytest.mark.parametrize("payload_bytes", [PAYLOAD_BYTES_MAX + 1, PACKET_BYTES_MAX + 1, 2_000_000])
def test_a_payload_above_the_limit_that_is_sent_all_the_same_reaches_nobody_and_harms_nobody(
    broker: BrokerUnderTest, authority: Authority, payload_bytes: int
) -> None:
    async def scenario() -> list[bytes]:
        topic = path("device/dev-a/up/alert")
        async with (
            party(broker, authority, "aggregator", ["device/+/up/alert"]) as aggregator,
            party(broker, authority, "dev-b") as other,
        ):
            with raw_client(broker, authority, "dev-a") as rude:
                rude.publish(topic, bytes(payload_bytes), 1)
                await other.link.publish(path("device/dev-b/up/alert"), b"other")
            async with party(broker, authority, "dev-a") as polite:
                await polite.link.publish(topic, b"after")
            await aggregator.until(lambda: len(aggregator.received) >= 2)
            if broker.name != "nats" or payload_bytes > 2 * PACKET_BYTES_MAX:  # NATS 2.9 has no limit for MQTT
                assert aggregator.link.counters.received_oversize == 0  # our own session would have hidden it
            return aggregator.payloads

    assert sorted(asyncio.run(scenario())) == [b"after", b"other"]


def test_a_handler_slower_than_five_seconds_loses_nothing(broker: BrokerUnderTest, authority: Authority) -> None:
    """Acknowledgements come when the handler is done: no broker may take that for a loss."""
    sent = [b"%d" % i for i in range(50)]

    async def scenario() -> list[bytes]:
        async def slow(message: MqttMessage) -> None:
            if message.payload == b"0":
                await asyncio.sleep(5.5)

        async with (
            party(broker, authority, "aggregator", ["device/dev-a/up/alert"], handler=slow) as aggregator,
            party(broker, authority, "dev-a") as device,
        ):
            await asyncio.gather(*(device.link.publish(path("device/dev-a/up/alert"), p) for p in sent))
            await aggregator.until_payload(sent[-1])
            return aggregator.payloads

    assert asyncio.run(scenario()) == sent


def test_what_was_not_acknowledged_comes_again(broker: BrokerUnderTest, authority: Authority) -> None:
    """A persistent session whose node dies in its handler gets the message again, and those behind it."""
    sent = [b"again-%d" % i for i in range(5)]

    async def scenario() -> list[bytes]:
        async def stuck(_: MqttMessage) -> None:
            await asyncio.Event().wait()

        filters = ["device/dev-a/up/alert"]
        async with party(broker, authority, "dev-a") as device:
            async with party(broker, authority, "aggregator", filters, handler=stuck, clean_session=False) as first:
                for payload in sent[:3]:
                    await device.link.publish(path(filters[0]), payload)
                await first.until_payload(sent[0])
            for payload in sent[3:]:
                await device.link.publish(path(filters[0]), payload)
            async with party(broker, authority, "aggregator", filters, clean_session=False) as second:
                await second.until(lambda: set(sent) <= set(second.payloads))
                received = second.payloads
            async with party(broker, authority, "aggregator"):
                pass  # clean session: leave nothing behind
            return received

    assert sorted(set(asyncio.run(scenario()))) == sent


def test_after_a_restart_of_the_broker_the_links_come_back_and_send_what_waited(
    own_broker: BrokerUnderTest, authority: Authority
) -> None:
    async def scenario() -> tuple[list[bytes], bool]:
        topic = path("device/dev-a/up/alert")
        async with (
            party(own_broker, authority, "aggregator", ["device/+/up/#"], clean_session=False) as aggregator,
            party(own_broker, authority, "dev-a", ["device/dev-a/down/#"]) as device,
        ):
            await device.link.publish(topic, b"before")
            await aggregator.until_payload(b"before")
            await asyncio.to_thread(own_broker.stop)
            async with asyncio.timeout(WAIT_S):
                while device.link.connected or aggregator.link.connected:
                    await asyncio.sleep(0.02)
            waiting = asyncio.create_task(device.link.publish(topic, b"waited"))
            await device.link.publish(topic, b"dropped", qos=0)
            await asyncio.sleep(0)
            pending = not waiting.done()
            await asyncio.to_thread(own_broker.start)
            await waiting
            await aggregator.link.wait_subscribed(WAIT_S)
            await device.link.wait_subscribed(WAIT_S)
            # The filters were made anew without anybody's doing, in both directions.
            await device.link.publish(topic, b"after")
            await aggregator.until_payload(b"after")
            await aggregator.link.publish(path("device/dev-a/down/command"), b"down")
            await device.until_payload(b"down")
            assert device.link.counters.connects == 2
            assert device.link.counters.sent_dropped == 1
            return aggregator.payloads, pending

    received, pending = asyncio.run(scenario())
    assert pending
    # PUBACK is not delivery: "waited" may have reached a broker that no longer knew its subscriber.
    assert set(received) in ({b"before", b"after"}, {b"before", b"waited", b"after"})
