"""Using up the embedded broker, and speaking to it in packets that are none. None may harm anybody else."""

from __future__ import annotations

import contextlib
import random
import socket
import time

import pytest
import raw_mqtt as raw
from attackers import client
from broker_parties import WAIT_S, Authority, Embedded, path
from raw_mqtt import ClosedError, RawClient

from vedette_broker import connection as broker_connection
from vedette_broker import session as broker_session
from vedette_broker.limits import ADDRESS_HANDSHAKES_MAX, CLIENT_RETAINED_MAX, FILTERS_MAX, INFLIGHT_MAX

UP, DOWN, SECRET = path("device/dev-a/up/alert"), path("device/dev-a/down/command"), path("device/dev-b/down/command")
MODEL = path("public/round/network")


@pytest.fixture
def broker(attacked: Embedded) -> Embedded:
    """A broker of this test alone, with a store: what is attacked is what a site runs."""
    return attacked


@pytest.fixture
def site(attacked_site: Authority) -> Authority:
    """Two devices, the aggregator and analytics."""
    return attacked_site


# --- using up the broker


def test_connections_that_never_say_who_they_are_end(
    broker: Embedded, site: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow-loris: half a CONNECT each, held open; the others are served meanwhile, and the half ones are ended."""
    monkeypatch.setattr(broker_connection, "CONNECT_TIMEOUT_S", 1.0)
    whole, rng = raw.connect("dev-a"), random.Random(1)
    held = [RawClient(broker.port, site.context("dev-a")) for _ in range(60)]
    for each in held:
        with contextlib.suppress(ClosedError):  # the first may be over before the last is there
            each.send(whole[: rng.randrange(1, len(whole))])
    monkeypatch.undo()  # who says all of it has the usual time
    with client(broker, site, "dev-b") as other:
        assert other.alive()
    for each in held:
        assert each.closed()
        each.socket.close()
    with client(broker, site, "dev-a") as real:
        assert real.alive()


def test_handshakes_that_never_end_are_counted_for_each_address_and_ended(broker: Embedded, site: Authority) -> None:
    held = [socket.create_connection(("127.0.0.1", broker.port)) for _ in range(ADDRESS_HANDSHAKES_MAX)]
    extra = socket.create_connection(("127.0.0.1", broker.port))
    extra.settimeout(WAIT_S)
    with contextlib.suppress(ConnectionError):
        assert extra.recv(1) == b"", "the connection above the limit is closed at once"
    for each in held:
        each.close()
    limit = time.monotonic() + WAIT_S
    while True:  # as soon as the broker has seen them go
        try:
            client(broker, site, "dev-a").socket.close()
            break
        except (ClosedError, OSError):
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_a_device_cannot_use_up_the_room_for_retained_messages(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "dev-a") as device:
        for number in range(CLIENT_RETAINED_MAX + 20):
            device.publish(path(f"device/dev-a/up/x{number}"), b"x", packet_id=number + 1, retain=True)
        for number in range(10):
            device.publish(path(f"device/dev-a/up/y{number}"), bytes(250_000), packet_id=number + 1, retain=True)
    assert broker.broker is not None
    assert broker.broker.hub is not None
    assert len(broker.broker.hub.retained) == CLIENT_RETAINED_MAX
    with client(broker, site, "aggregator") as aggregator:
        aggregator.publish(MODEL, b"there is room", retain=True)
    with client(broker, site, "dev-b") as late:
        late.send(raw.subscribe(MODEL))
        assert late.until(b"there is room")


def test_a_client_has_a_bounded_number_of_filters(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "dev-a") as device:
        codes, _ = device.subscribe(*(path(f"public/artifact/{i}/#") for i in range(FILTERS_MAX + 10)))
        assert codes == [1] * FILTERS_MAX + [raw.REFUSED] * 10
        device.send(raw.unsubscribe(path("public/artifact/0/#")))
        assert device.subscribe(path("public/artifact/again"))[0] == [1]
    with client(broker, site, "dev-b") as other:
        assert other.alive()
    assert broker.broker is not None
    assert broker.broker.hub is not None
    limit = time.monotonic() + WAIT_S
    while len(broker.broker.hub._routes):
        assert time.monotonic() < limit, "an ended client's filters stay"
        time.sleep(0.02)


@pytest.mark.parametrize("who", ["dev-a", "analytics"])
def test_who_reads_and_never_acknowledges_holds_no_publisher_up(
    broker: Embedded, site: Authority, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(broker_session, "QUEUE_MESSAGES_MAX", 3)
    monkeypatch.setattr(broker_session, "STALL_S", 3600.0)
    with client(broker, site, who) as mute, client(broker, site, "aggregator") as aggregator:
        mute.subscribe(path("public/#"))
        for number in range(INFLIGHT_MAX + 10):
            aggregator.publish(MODEL, b"%d" % number, packet_id=number + 1)
        assert aggregator.alive()
    assert broker.broker is not None
    assert broker.broker.counts["message_dropped"] > 0


def bursts() -> dict[str, bytes]:
    """A thousand small things each, as they come at once."""
    return {
        "publishes that are denied": raw.publish("x", b"") * 1000,
        "questions": raw.PINGREQ * 1000,
        "filters that are refused": raw.subscribe(*["x"] * 1000),
        "filters that are left": raw.unsubscribe(*["x"] * 1000),
    }


@pytest.mark.parametrize("name", bursts())
def test_a_burst_of_small_things_leaves_the_others_their_turn(
    broker: Embedded, site: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of what has come at once nothing waits for anything: it must ask whether its time is over, each time."""
    monkeypatch.setattr(broker_connection, "TURN_S", 0.0)  # it is over at once
    turns, take_turns = [0], broker_connection.Connection._take_turns

    async def counting(self: broker_connection.Connection) -> None:
        before = self._turn_ends
        await take_turns(self)
        turns[0] += self._turn_ends > before

    monkeypatch.setattr(broker_connection.Connection, "_take_turns", counting)
    with client(broker, site, "dev-a") as busy, client(broker, site, "dev-b") as other:
        busy.send(bursts()[name] + raw.publish(UP, b"", 1, packet_id=7))
        assert other.alive()
        while busy.receive()[0] != raw.PUBACK:  # type: ignore[index]
            pass
    assert turns[0] >= 1000


def test_a_thousand_reconnects_leave_nothing_behind(broker: Embedded, site: Authority) -> None:
    contexts = {who: site.context(who) for who in ("dev-a", "dev-b")}
    for number in range(1000):
        who = "dev-a" if number % 2 else "dev-b"
        device = RawClient(broker.port, contexts[who])
        assert device.connect(who, clean=bool(number % 3))[0] == 0
        device.subscribe(path(f"device/{who}/down/#"))
        device.publish(path(f"device/{who}/up/alert"), b"x")
        if number % 2:
            device.reset()
        else:
            device.send(raw.DISCONNECT)
            device.socket.close()
    assert broker.broker is not None
    assert broker.broker.hub is not None
    limit = time.monotonic() + WAIT_S
    while broker.broker.hub._clients or broker.broker.hub.connections:
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert broker.broker.counts["connect_accepted"] == 1000


# --- packets that are none


def malformed() -> dict[str, bytes]:
    """After a good CONNECT: of every packet type, what §2 and §3 forbid."""
    wrong = {
        f"type {kind} with flags {flags:04b}": bytes([kind << 4 | flags, 0]) for kind in range(16) for flags in (0, 15)
    }
    del wrong["type 12 with flags 0000"]  # PINGREQ as it should be
    del wrong["type 14 with flags 0000"]  # DISCONNECT as it should be
    return wrong | {
        "second CONNECT": raw.connect("dev-a"),
        "PUBLISH to a wildcard": raw.publish("vedette/1/lab/device/dev-a/up/#", b"x"),
        "PUBLISH with NUL": raw.publish(b"a\x00b", b"x"),
        "PUBLISH with bad UTF-8": raw.publish(b"\xff\xfe", b"x"),
        "PUBLISH with a surrogate": raw.publish(b"\xed\xa0\x80", b"x"),
        "PUBLISH without a topic": raw.publish("", b"x"),
        "PUBLISH of QoS 2": raw.publish(UP, b"x", 2),
        "PUBLISH of QoS 3": raw.packet(0x36, raw.text(UP) + b"\x00\x01x"),
        "PUBLISH with packet id 0": raw.publish(UP, b"x", 1, packet_id=0),
        "PUBLISH of QoS 0 with DUP": raw.publish(UP, b"x", 0, dup=True),
        "PUBLISH that is cut": raw.packet(0x30, b"\x00"),
        "PUBLISH whose topic runs past its end": raw.packet(0x30, b"\x00\xffab"),
        "PUBACK that is too long": raw.packet(0x40, b"\x00\x01\x00"),
        "PUBACK that is too short": raw.packet(0x40, b"\x00"),
        "PUBREC": raw.packet(0x50, b"\x00\x01"),
        "PUBREL": raw.packet(0x62, b"\x00\x01"),
        "PUBCOMP": raw.packet(0x70, b"\x00\x01"),
        "SUBSCRIBE with flags 0": raw.packet(0x80, b"\x00\x01" + raw.text("a") + b"\x00"),
        "SUBSCRIBE without filters": raw.packet(0x82, b"\x00\x01"),
        "SUBSCRIBE with packet id 0": raw.subscribe(DOWN, packet_id=0),
        "SUBSCRIBE of QoS 3": raw.subscribe(DOWN, qos=3),
        "SUBSCRIBE with NUL": raw.subscribe(DOWN + "\0"),
        "SUBSCRIBE with bad UTF-8": raw.subscribe(b"\xff"),
        "SUBSCRIBE whose QoS is cut": raw.packet(0x82, b"\x00\x01" + raw.text("a")),
        "UNSUBSCRIBE with flags 0": raw.packet(0xA0, b"\x00\x01" + raw.text("a")),
        "UNSUBSCRIBE without filters": raw.packet(0xA2, b"\x00\x01"),
        "UNSUBSCRIBE with packet id 0": raw.packet(0xA2, b"\x00\x00" + raw.text("a")),
        "PINGREQ with a body": raw.packet(0xC0, b"x"),
        "DISCONNECT with a body": raw.packet(0xE0, b"x"),
        "SUBACK from a client": raw.packet(0x90, b"\x00\x01\x00"),
        "a length of five bytes": b"\x30\xff\xff\xff\xff\x7f",
        "a length of 256 MB": b"\x30\xff\xff\xff\x7f" + bytes(100_000),
    }


@pytest.mark.parametrize("name", malformed())
def test_a_malformed_packet_ends_its_own_connection_only(shared_attacked: Embedded, site: Authority, name: str) -> None:
    with client(shared_attacked, site, "dev-b") as other:
        with client(shared_attacked, site, "dev-a") as rude:
            with contextlib.suppress(ClosedError):  # it may be cut off before it has said all of it
                rude.send(malformed()[name])
            assert rude.closed(), "the broker goes on talking"
        assert other.alive()


def malformed_connects() -> dict[str, bytes]:
    body = raw.text("MQTT") + b"\x04\x02\x00\x3c" + raw.text("dev-a")
    return {
        "not a CONNECT": raw.publish(UP, b"x"),
        "flags in the header": raw.packet(0x11, body),
        "reserved flag": raw.packet(0x10, raw.text("MQTT") + b"\x04\x03\x00\x3c" + raw.text("dev-a")),
        "no client id": raw.packet(0x10, raw.text("MQTT") + b"\x04\x02\x00\x3c" + raw.text("")),
        "another protocol": raw.packet(0x10, raw.text("HTTP") + b"\x04\x02\x00\x3c" + raw.text("dev-a")),
        "will QoS without a will": raw.packet(0x10, raw.text("MQTT") + b"\x04\x0a\x00\x3c" + raw.text("dev-a")),
        "will retain without a will": raw.packet(0x10, raw.text("MQTT") + b"\x04\x22\x00\x3c" + raw.text("dev-a")),
        "will of QoS 3": raw.packet(
            0x10, raw.text("MQTT") + b"\x04\x1e\x00\x3c" + raw.text("dev-a") + raw.text("a") + raw.text("b")
        ),
        "password without a user": raw.packet(
            0x10, raw.text("MQTT") + b"\x04\x42\x00\x3c" + raw.text("dev-a") + raw.text("secret")
        ),
        "will that is missing": raw.packet(0x10, raw.text("MQTT") + b"\x04\x06\x00\x3c" + raw.text("dev-a")),
        "bytes behind the payload": raw.packet(0x10, body + b"more"),
        "client id with NUL": raw.connect(b"dev-a\x00"),
        "client id with bad UTF-8": raw.connect(b"dev-\xff"),
        "a length of five bytes": b"\x10\xff\xff\xff\xff\x7f",
        "70 KB of client id": raw.packet(0x10, body[:-7] + b"\xff\xff" + bytes(70_000)),
    }


@pytest.mark.parametrize("name", malformed_connects())
def test_a_malformed_connect_gives_no_session(shared_attacked: Embedded, site: Authority, name: str) -> None:
    with RawClient(shared_attacked.port, site.context("dev-a")) as rude:
        with contextlib.suppress(ClosedError):  # it may be cut off before it has said all of it
            rude.send(malformed_connects()[name])
        assert rude.closed()
    with client(shared_attacked, site, "dev-a") as real:
        assert real.alive()


def test_random_bytes_before_and_after_connect(shared_attacked: Embedded, site: Authority) -> None:
    rng, tls = random.Random(1), site.context("dev-a")
    for number in range(300):
        with RawClient(shared_attacked.port, tls) as rude:
            if number % 2:
                assert rude.connect("dev-a")[0] == 0
            try:
                rude.send(rng.randbytes(rng.randrange(1, 400)))
            except ClosedError:
                continue
    with client(shared_attacked, site, "dev-a") as real:
        assert real.alive()
