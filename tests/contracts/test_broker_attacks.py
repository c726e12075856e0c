"""Attacks on the embedded broker: every one that was seen to succeed against stock amqtt, and more. None may succeed.

They are named after what the attacker tries. Sockets are raw: a client library would not say most of this.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import raw_mqtt as raw
from attackers import client, foreign_context, no_certificate, refused
from broker_parties import Authority, Embedded, path
from raw_mqtt import ClosedError, RawClient

from vedette_broker import connection as broker_connection

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


# --- taking over another's session


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("certificate", ["none", "dev-b", "foreign"])
def test_takeover_of_a_session_that_waits(
    broker: Embedded, site: Authority, tmp_path: Path, certificate: str, clean: bool
) -> None:
    """The aggregator's kept session is resumed by nobody else, wiped by nobody else, and goes on as it was."""
    with client(broker, site, "aggregator", clean=False) as aggregator:
        assert aggregator.subscribe(path("device/+/up/#"))[0] == [1]
        aggregator.send(raw.DISCONNECT)
        assert aggregator.closed()
    with client(broker, site, "dev-a") as device:
        device.publish(UP, b"waits for the aggregator")
    tls = {
        "none": lambda: no_certificate(site),
        "dev-b": lambda: site.context("dev-b"),
        "foreign": lambda: foreign_context(site, tmp_path, "aggregator"),
    }[certificate]()
    assert refused(broker, tls, raw.connect("aggregator", clean=clean))
    with RawClient(broker.port, site.context("aggregator")) as back:
        assert back.connect("aggregator", clean=False) == (0, True)
        assert back.until(b"waits for the aggregator")[-1].topic == UP


@pytest.mark.parametrize("certificate", ["none", "dev-b"])
@pytest.mark.parametrize("clean", [True, False])
def test_a_failed_connect_does_not_touch_a_live_session(
    broker: Embedded, site: Authority, certificate: str, clean: bool
) -> None:
    tls = no_certificate(site) if certificate == "none" else site.context("dev-b")
    with client(broker, site, "dev-a") as victim, client(broker, site, "aggregator") as aggregator:
        assert victim.subscribe(DOWN)[0] == [1]
        for _ in range(5):
            assert refused(broker, tls, raw.connect("dev-a", clean=clean, user="aggregator", password="wrong"))
        assert victim.alive()
        aggregator.publish(DOWN, b"still subscribed")
        assert victim.until(b"still subscribed")


def test_privileges_of_the_aggregator_through_a_second_connect(broker: Embedded, site: Authority) -> None:
    """A device floods forged models while another connection of its id claims to be the aggregator."""
    with client(broker, site, "dev-b") as reader:
        reader.subscribe(MODEL, path("device/dev-b/down/#"))
        for attempt in range(20):
            with client(broker, site, "dev-a", clean=False) as device:
                device.send(b"".join(raw.publish(MODEL, b"forged %d" % i, retain=True) for i in range(200)))
                claim = raw.connect("dev-a", user="aggregator", password="aggregator", clean=False)
                with RawClient(broker.port, site.context("dev-b")) as second:
                    second.send(claim)
                    assert second.closed() or attempt < 0
                assert device.alive(), "all of the flood is read before the next connection takes over"
        with client(broker, site, "aggregator") as aggregator:
            aggregator.publish(path("device/dev-b/down/command"), b"fence")
        assert [m.payload for m in reader.until(b"fence")] == [b"fence"]
        codes, before = reader.subscribe(MODEL)
        assert (codes, before) == ([1], [])
    assert broker.broker is not None
    assert broker.broker.counts["publish_denied"] == 20 * 200


def test_the_user_name_means_nothing(broker: Embedded, site: Authority) -> None:
    with (
        client(broker, site, "dev-b", user="aggregator", password="x") as liar,
        client(broker, site, "dev-a") as victim,
    ):
        victim.subscribe(MODEL, path("device/dev-a/down/#"))
        liar.publish(MODEL, b"forged", retain=True)
        with client(broker, site, "aggregator") as aggregator:
            aggregator.publish(DOWN, b"fence")
        assert [m.payload for m in victim.until(b"fence")] == [b"fence"]


def test_refused_connects_leave_nothing_behind_and_do_not_lock_the_real_client_out(
    broker: Embedded, site: Authority
) -> None:
    for number in range(200):
        who = "dev-b" if number % 2 else f"nobody-{number}"
        assert refused(broker, site.context("dev-a"), raw.connect(who, clean=bool(number % 3)))
    assert broker.broker is not None
    assert broker.broker.hub is not None
    assert broker.broker.hub._clients == {}
    assert broker.broker.hub._admission == {}
    with RawClient(broker.port, site.context("dev-b")) as real:
        assert real.connect("dev-b", clean=False) == (0, False)


def test_takeover_of_one_s_own_session_ends_the_older_connection(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator", clean=False) as older:
        older.subscribe(path("device/+/up/#"))
        with RawClient(broker.port, site.context("aggregator")) as newer:
            assert newer.connect("aggregator", clean=False) == (0, True)
            assert older.closed()
            with client(broker, site, "dev-a") as device:
                device.publish(UP, b"to the newer one")
            assert newer.until(b"to the newer one")


# --- hearing what is not meant for one


def test_retained_messages_of_others_are_not_pushed_to_who_did_not_ask(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator") as aggregator:
        aggregator.subscribe("vedette/1/lab/#", path("device/+/up/#"))
        aggregator.publish(MODEL, b"model", retain=True)
        aggregator.publish(SECRET, b"for dev-b only", retain=True)
        for clean in (True, False):
            for _ in range(3):
                with client(broker, site, "dev-a", clean=clean) as device:
                    codes, before = device.subscribe(path("device/dev-a/down/#"), "#", SECRET)
                    assert (codes, before) == ([1, raw.REFUSED, raw.REFUSED], [])
                    aggregator.publish(DOWN, b"fence")
                    assert [m.payload for m in device.until(b"fence")] == [b"fence"]


@pytest.mark.parametrize(
    "wanted",
    [
        "#",
        "+/#",
        "+/+/+/device/dev-b/down/command",
        "vedette/1/lab/device/+/down/#",
        "vedette/1/lab/device/+/down/command",
        "vedette/1/lab/device/dev-b/#",
        "vedette/1/lab/device/#",
        "vedette/1/lab/+/dev-b/down/command",
        "vedette/1/lab/device/dev-a/#",
        "vedette/1/+/public/#",
        "$share/g/vedette/1/lab/device/dev-b/down/#",
        "$share/g/vedette/1/lab/device/dev-a/down/#",
        "$SYS/#",
        "/vedette/1/lab/public/#",
        "vedette/1/lab/public/#/x",
        "vedette/1/lab/public/a#",
        "vedette/1/lab/public/+x",
        "vedette/1/lab/public/x\0",
        "",
        "vedette/1/lab/public/" + "x" * 600,
    ],
)
def test_access_is_not_widened_by_a_filter(broker: Embedded, site: Authority, wanted: str) -> None:
    with client(broker, site, "dev-a") as device, client(broker, site, "aggregator") as aggregator:
        aggregator.publish(SECRET, b"secret", retain=True)
        device.subscribe(path("device/dev-a/down/#"))
        try:
            assert device.subscribe(wanted)[0] == [raw.REFUSED]
        except ClosedError:
            return  # a filter that is none may also end the connection
        aggregator.publish(SECRET, b"secret")
        aggregator.publish(DOWN, b"fence")
        assert [m.payload for m in device.until(b"fence")] == [b"fence"]


def test_messages_of_one_s_own_that_a_later_rule_forbids_are_not_resumed(broker: Embedded, site: Authority) -> None:
    """A device never has a kept session: what it asks for with clean=0 ends with its connection."""
    with client(broker, site, "dev-a", clean=False) as device:
        device.subscribe(DOWN)
    with client(broker, site, "aggregator") as aggregator:
        aggregator.publish(DOWN, b"while away")
    with RawClient(broker.port, site.context("dev-a")) as back:
        assert back.connect("dev-a", clean=False) == (0, False)
        assert back.alive()


# --- wills


def test_a_will_speaks_only_where_its_client_may(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator") as aggregator:
        aggregator.subscribe(path("device/+/up/#"), path("public/#"))
        for topic in (MODEL, path("device/dev-b/up/alert"), path("device/dev-a/down/command"), "$SYS/x"):
            client(broker, site, "dev-a", will=(topic, b"forged", 1, True)).reset()
        client(broker, site, "dev-a", will=(UP, b"gone", 1, False)).reset()
        assert [m.payload for m in aggregator.until(b"gone")] == [b"gone"]


def test_no_will_after_a_goodbye_however_soon_it_comes(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator") as aggregator, client(broker, site, "dev-b") as fence:
        aggregator.subscribe(path("device/+/up/#"))
        for _ in range(20):
            with RawClient(broker.port, site.context("dev-a")) as device:
                device.send(raw.connect("dev-a", will=(UP, b"gone", 1, False)) + raw.DISCONNECT)
                assert device.closed()
        fence.publish(path("device/dev-b/up/alert"), b"fence")
        assert [m.payload for m in aggregator.until(b"fence")] == [b"fence"]


def test_a_silent_client_ends_after_one_and_a_half_keep_alives_and_its_will_is_told(
    broker: Embedded, site: Authority
) -> None:
    with client(broker, site, "aggregator", keepalive=0) as aggregator:
        aggregator.subscribe(path("device/+/up/#"))
        with client(broker, site, "dev-a", keepalive=1, will=(UP, b"silent", 1, False)) as device:
            device.send(b"\x30\x20")  # a packet that is begun and never ended is silence too
            aggregator.until(b"silent")
            assert device.closed()


# --- lost messages


def test_a_message_that_is_acknowledged_late_or_never_is_sent_again(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator", clean=False) as aggregator, client(broker, site, "dev-a") as device:
        aggregator.subscribe(path("device/+/up/#"))
        device.publish(UP, b"once")
        (first,) = aggregator.until(b"once", acknowledge=False)
        aggregator.reset()
        with RawClient(broker.port, site.context("aggregator")) as back:
            assert back.connect("aggregator", clean=False) == (0, True)
            (again,) = back.until(b"once")
            assert (again.packet_id, again.dup, first.dup) == (first.packet_id, True, False)
        with RawClient(broker.port, site.context("aggregator")) as third:
            assert third.connect("aggregator", clean=False) == (0, True)
            device.publish(UP, b"after")
            assert [m.payload for m in third.until(b"after")] == [b"after"]


def test_what_waits_comes_in_order_and_not_as_retained(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator", clean=False) as aggregator:
        aggregator.subscribe(path("device/+/up/#"))
    sent = [b"\x93\xff%d" % i + bytes(20_000) for i in range(200)]
    with client(broker, site, "dev-a") as device:
        for number, payload in enumerate(sent):
            device.publish(UP, payload, packet_id=number + 1)
    with RawClient(broker.port, site.context("aggregator")) as back:
        assert back.connect("aggregator", clean=False) == (0, True)
        heard = back.until(sent[-1])
    assert [m.payload for m in heard] == sent
    assert {(m.retain, m.qos) for m in heard} == {(False, 1)}


def test_a_burst_that_ends_with_a_goodbye_is_delivered(broker: Embedded, site: Authority) -> None:
    """Connect, a hundred QoS 1 messages at once, wait for the PUBACKs, DISCONNECT: nothing is lost, no will is told."""
    with client(broker, site, "aggregator", clean=False) as aggregator:
        aggregator.subscribe(path("device/+/up/#"))
        sent = []
        for burst in range(5):
            with client(broker, site, "dev-a", will=(UP, b"dead", 1, False)) as device:
                payloads = [b"%d-%d" % (burst, i) + bytes(2000) for i in range(100)]
                device.send(b"".join(raw.publish(UP, p, 1, packet_id=i + 1) for i, p in enumerate(payloads)))
                for number in range(100):
                    answer = device.receive()
                    assert answer is not None
                    assert (answer[0], answer[2]) == (raw.PUBACK, (number + 1).to_bytes(2, "big"))
                device.send(raw.DISCONNECT)
                assert device.closed()
            sent += payloads
        assert [m.payload for m in aggregator.until(sent[-1])] == sent


def test_a_subscriber_that_does_not_read_loses_nothing_that_was_acknowledged(
    broker: Embedded, site: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 KB messages until its publisher is held back; then it comes back and reads."""
    monkeypatch.setattr(broker_connection, "STALL_S", 0.5)
    deaf = RawClient(broker.port, site.context("aggregator"), receive_bytes=4096)
    assert deaf.connect("aggregator", clean=False) == (0, False)
    deaf.subscribe(path("device/+/up/#"))
    count = 400
    with client(broker, site, "dev-a") as device:
        for number in range(count):
            device.publish(UP, number.to_bytes(4, "big") + bytes(50_000), packet_id=number + 1)
    monkeypatch.undo()  # who reads is not cut off for half a second's delay
    with deaf, RawClient(broker.port, site.context("aggregator")) as back:
        assert back.connect("aggregator", clean=False) == (0, True)
        heard: set[int] = set()
        while len(heard) < count:
            answer = back.receive()
            assert answer is not None, f"{count - len(heard)} are missing"
            for message in back.message(answer):
                heard.add(int.from_bytes(message.payload[:4], "big"))
    assert heard == set(range(count))


def test_a_stalled_qos_0_subscriber_does_not_fill_the_memory_and_the_broker_stops(
    broker: Embedded, site: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_connection, "STALL_S", 3600.0)  # it is there until the end, however long that takes
    with client(broker, site, "aggregator") as aggregator:
        deaf = RawClient(broker.port, site.context("dev-a"), receive_bytes=4096)
        assert deaf.connect("dev-a") == (0, False)
        deaf.subscribe(DOWN, qos=0)
        for _ in range(2000):
            aggregator.send(raw.publish(DOWN, bytes(100_000)))
        assert aggregator.alive()
        assert broker.broker is not None
        assert broker.broker.hub is not None
        assert broker.broker.hub._clients["dev-a"]._queue_bytes <= 64 * 1024 * 1024
        assert broker.broker.counts["message_dropped"] > 0
        broker.stop()
        deaf.socket.close()
    broker.start()


def test_the_lower_qos_counts_and_a_new_subscription_replaces_the_old(broker: Embedded, site: Authority) -> None:
    with client(broker, site, "aggregator") as aggregator, client(broker, site, "dev-a") as device:
        device.subscribe(DOWN, qos=1)
        aggregator.send(raw.publish(DOWN, b"zero"))
        aggregator.publish(DOWN, b"one")
        assert [m.qos for m in device.until(b"one")] == [0, 1]
        device.subscribe(DOWN, qos=0)
        aggregator.publish(DOWN, b"now zero")
        assert [m.qos for m in device.until(b"now zero")] == [0]


def test_a_binary_retained_message_is_kept_replaced_and_cleared(broker: Embedded, site: Authority) -> None:
    payload = b"\x93\x01\xc3\xff\x00"
    with client(broker, site, "aggregator") as aggregator, client(broker, site, "dev-a") as device:
        aggregator.publish(MODEL, b"old", retain=True)
        aggregator.publish(MODEL, payload, retain=True)
        device.subscribe(MODEL)
        (kept,) = device.until(payload)
        assert (kept.retain, kept.qos) == (True, 1)
        aggregator.publish(MODEL, b"", retain=True)
        with client(broker, site, "dev-b") as late:
            codes, before = late.subscribe(MODEL, path("device/dev-b/down/#"))
            assert (codes, before) == ([1, 1], [])
            aggregator.publish(SECRET, b"fence")
            assert [m.payload for m in late.until(b"fence")] == [b"fence"]
