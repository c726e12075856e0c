"""Session events in the logs of three brokers: lines as real runs wrote them, with other names and addresses."""

from __future__ import annotations

import json

import pytest

from vedette_device.sources.broker_log import CLIENTS, CLIENTS_MAX, BrokerSessions, SessionEvent, session_line
from vedette_device.sources.counts import NamedCounts
from vedette_device.sources.log_lines import LogLineCounts

OPENED, ENDED, LOST, REFUSED, TAKEN_OVER = SessionEvent

VEDETTE = [
    ("session opened: dev-a", OPENED),
    ("session ended: dev-a", ENDED),
    ("session lost: dev-a: ConnectionResetError(104, 'Connection reset by peer')", LOST),
    ("session lost: dev-a: TimeoutError()", LOST),
    ("session taken over: dev-a: by a newer connection", TAKEN_OVER),
    ("session refused: 192.0.2.7: no TLS session: [SSL: WRONG_VERSION_NUMBER] wrong version number", REFUSED),
    ("session refused: 'dev-b': found client id 'dev-b', expected the certificate's name 'dev-a'", REFUSED),
    ("session refused: dev-a: its certificate is revoked", REFUSED),
    ("site lab: listening on 127.0.0.1 port 8883 (mutual TLS, in memory)", None),
    ("dev-a: may not subscribe to '#'", None),
    ("stopping", None),
]
MOSQUITTO = [
    ("New connection from 192.0.2.7:39084 on port 8883.", None),
    ("New client connected from 192.0.2.7:39084 as dev-a (p2, c1, k60, u'dev-a').", OPENED),
    ("New client connected from 192.0.2.7:39084 as dev-a (p4, c0, k0).", OPENED),
    ("Client dev-a disconnected.", ENDED),
    ("Client dev-a disconnected: Protocol error.", LOST),
    ("Client dev-a closed its connection.", LOST),
    ("Client dev-a has exceeded timeout, disconnecting.", LOST),
    ("Client dev-a already connected, closing old connection.", TAKEN_OVER),
    ("OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed", None),
    ("Client <unknown> disconnected: Protocol error.", REFUSED),
    ("Client <unknown> closed its connection.", REFUSED),
    ("Client <unknown> disconnected, not authorised.", REFUSED),
    ("Client <unknown> disconnected due to protocol error.", REFUSED),
    ("Client dev-a disconnected due to protocol error.", REFUSED),
    ("Client connection from 192.0.2.7 failed: error:0A00010B:SSL routines::wrong version number.", REFUSED),
    ("Bad client dev-a sending multiple CONNECT messages.", None),
    ("Sending CONNACK to dev-a (0, 0)", None),
    ("Denied PUBLISH from dev-a (d0, q1, r0, m1, 'x/y', ... (1 bytes))", None),
    ("mosquitto version 2.0.11 running", None),
]
NATS = [
    ("INF", "Server is ready", None),
    ("ERR", "192.0.2.7:57800 - mid:4 - TLS handshake error: EOF", REFUSED),
    ("ERR", "192.0.2.7:57860 - mid:24 - TLS handshake error: tls: client didn't provide a certificate", REFUSED),
    ("DBG", "192.0.2.7:57860 - mid:24 - Client connection closed: TLS Handshake Failure", None),
    ("DBG", "192.0.2.7:59466 - mid:5 - Client connection created", None),
    ("DBG", '192.0.2.7:59466 - mid:5 - "dev-a" - Client connected', OPENED),
    ("DBG", '[2001:db8::7]:59466 - mid_ws:5 - "dev-a" - Client connection closed: Client Closed', ENDED),
    ("DBG", '192.0.2.7:59466 - mid:5 - "dev-a" - Client connection closed: Read Error', LOST),
    (
        "WRN",
        '192.0.2.7:57852 - mid:23 - "dev-a" - Replacing old client "192.0.2.7:57842 - mid:22 - \\"dev-a\\"" since both '
        'have the same client ID "dev-a"',
        TAKEN_OVER,
    ),
    ("DBG", '192.0.2.7:57842 - mid:22 - "dev-a" - Client connection closed: Duplicate Client ID', None),
    ("DBG", "192.0.2.7:51414 - mid:28 - Client connection closed: Client Closed", REFUSED),
    ("DBG", "192.0.2.7:34390 - mid:6 - Client connection closed: Authentication Timeout", REFUSED),
    ("ERR", '192.0.2.7:34382 - mid:5 - "dev-b" - authentication error - User ""', REFUSED),
    ("ERR", '192.0.2.7:34382 - mid:5 - "dev-b" - unable to connect: authentication error', None),
    ("DBG", '192.0.2.7:34382 - mid:5 - "dev-b" - Client connection closed: Authentication Failure', None),
    ("ERR", '192.0.2.7:47150 - mid:30 - "" - unacceptable protocol version of 9', REFUSED),
    ("ERR", '192.0.2.7:47152 - mid:31 - "" - error reading protocol name: unexpected EOF', REFUSED),
    ("DBG", '192.0.2.7:47152 - mid:31 - "" - Client connection closed: Protocol Violation', None),
    ("ERR", '192.0.2.7:47154 - mid:32 - "dev-a" - received unknown packet type 15', None),
    ("DBG", '192.0.2.7:47154 - mid:32 - "dev-a" - Client connection closed: Protocol Violation', REFUSED),
    ("ERR", "192.0.2.7:34420 - mid:22 - maximum connections exceeded", REFUSED),
    ("DBG", "192.0.2.7:34420 - mid:22 - Client connection closed: Maximum Connections Exceeded", None),
    ("ERR", '192.0.2.7:47174 - mid:35 - "dev-a" - Publish Violation - User "spiffe://lab/device/dev-a"', None),
    ("DBG", '192.0.2.7:57806 - mid:37 - "dev-a" - Client connection closed: Server Shutdown', None),
    ("DBG", "SYSTEM - System connection closed: Client Closed", None),
]
NATS_WITHOUT_LEVEL = {"error reading protocol name"}
"""What is refused only where the level says that it is an error."""


def event_of(line: str) -> SessionEvent | None:
    """The one event of a line as a device counts it, and that it is counted as one thing only."""
    counter = LogLineCounts()
    counter.push(line.encode())
    counts = dict(counter.take())
    assert (counts.pop("log_lines"), counts.pop("log_errors") in (0, 1)) == (1, True)
    counts.pop(CLIENTS, None)
    (name,) = counts
    assert counts[name] == 1
    return None if name.startswith("log_kind_") else SessionEvent(name)


@pytest.mark.parametrize(("said", "event"), VEDETTE)
def test_the_embedded_broker(said: str, event: SessionEvent | None) -> None:
    plain = f"17:29:46 warning vedette.broker: {said}"
    assert event_of(plain) is event
    assert event_of(f"Nov 27 17:29:46 gw-01 vedette[4711]: {plain}") is event
    entry = {"time": "2026-11-27T17:29:46.123+00:00", "level": "info", "logger": "vedette.broker", "message": said}
    assert event_of(json.dumps(entry)) is event
    assert event_of(json.dumps({"MESSAGE": plain, "SYSLOG_IDENTIFIER": "vedette", "PRIORITY": "6"})) is event
    assert event_of(f"17:29:46 info    vedette.ca: {said}") is None
    assert event_of(said) is None


@pytest.mark.parametrize("text", ["session opened:", "session moved: dev-a", "a session opened: dev-a"])
def test_what_the_embedded_broker_would_not_say(text: str) -> None:
    assert event_of(f"17:29:46 info    vedette.broker: {text}") is None


@pytest.mark.parametrize(("said", "event"), MOSQUITTO)
@pytest.mark.parametrize(
    "before",
    [
        "1795800145: ",
        "",
        "2026-11-27T17:23:39: ",
        "2026-11-27T17:23:39+0100: ",
        "2026-11-27 17:23:39: ",
        "27/11/26 17:23:39: ",
        "Fri Nov 27 17:23:39 2026: ",
        "27.11.2026-17.23: ",
        "[17:23:39]: ",
        "mosquitto: ",
        "mosquitto[812]: 1795800145: ",
        "Nov 27 17:26:48 gw-01 mosquitto[812]: 1795800145: ",
        "<29>Nov 27 17:26:48 gw-01 mosquitto[812]: ",
        "2026-11-27T17:26:48.123456+00:00 gw-01 mosquitto[812]: 1795800145: ",
        "<29>1 2026-11-27T17:26:48.003Z gw-01 mosquitto 812 - - ",
    ],
)
def test_mosquitto(before: str, said: str, event: SessionEvent | None) -> None:
    assert event_of(before + said) is event


def test_mosquitto_s_words_from_another_program_are_a_kind_of_line() -> None:
    for before in (
        "Nov 27 17:26:48 gw-01 httpd[812]: ",
        "httpd: ",
        "client: ",
        "<29>1 2026-11-27T17:26:48Z gw a 1 - - ",
    ):
        assert event_of(f"{before}Client dev-a disconnected.") is None


def test_mosquitto_s_other_lines_are_the_same_kind_whatever_the_time() -> None:
    counter = LogLineCounts()
    for second in range(50):
        counter.push(b"%d: New connection from 192.0.2.%d:39084 on port 8883." % (1_795_800_145 + second, second))
        counter.push(b"2026-11-27T17:23:%02d: New connection from 192.0.2.7:39084 on port 8883." % second)
    assert sorted(counter.take().values()) == [0, 100, 100]


@pytest.mark.parametrize(
    ("client", "said", "event"),
    [
        ("x y", "New client connected from 192.0.2.7:1 as x y (p2, c1, k60, u'u').", OPENED),
        (
            "x (p2, c1, k60, u'y')",
            "New client connected from 192.0.2.7:1 as x (p2, c1, k60, u'y') (p2, c1, k60).",
            OPENED,
        ),
        ("a" * 900, f"New client connected from 192.0.2.7:1 as {'a' * 900}", OPENED),
        ("x disconnected.", "Client x disconnected. closed its connection.", LOST),
        ("x disconnected due to y", "Client x disconnected due to y disconnected.", ENDED),
        ("Client y", "Client Client y disconnected: Connection was lost.", LOST),
        ("é: 1:1", "Client é: 1:1 already connected, closing old connection.", TAKEN_OVER),
    ],
)
def test_a_client_calls_itself_as_it_likes(client: str, said: str, event: SessionEvent) -> None:
    found = session_line("mosquitto", said)
    assert found is not None
    assert (found.event, found.client) == (event, client)


@pytest.mark.parametrize(("level", "said", "event"), NATS)
def test_nats(level: str, said: str, event: SessionEvent | None) -> None:
    assert event_of(f"[23824] 2026/11/27 17:22:57.883760 [{level}] {said}") is event
    assert event_of(f"[23824] [{level}] {said}") is event
    assert event_of(f"Nov 27 17:27:55 gw-01 nats-server[812]: [23824] 2026/11/27 17:22:57 [{level}] {said}") is event
    if not any(words in said for words in NATS_WITHOUT_LEVEL):
        assert event_of(f"<27>Nov 27 17:27:55 gw-01 nats-server[812]: {said}") is event


def test_a_quiet_window_has_no_session_counts() -> None:
    counter = LogLineCounts()
    counter.push(b"1795800145: Client dev-a disconnected.")
    assert counter.take() == {"log_lines": 1, "log_errors": 0, ENDED.value: 1, CLIENTS: 1}
    assert counter.take() == {"log_lines": 0, "log_errors": 0}


def test_clients_are_told_apart_within_a_bound() -> None:
    sessions = BrokerSessions()
    for _ in range(2):
        for number in range(7):
            assert sessions.push("", f"1795800145: Client dev-{number} closed its connection.")
    assert sessions.push("", "1795800145: Client <unknown> disconnected, not authorised.")
    assert not sessions.push("", "1795800145: mosquitto version 2.0.11 running")
    assert sessions.take() == {LOST.value: 14, REFUSED.value: 1, CLIENTS: 7}
    for number in range(CLIENTS_MAX + 100):
        sessions.push("", f"1795800145: Client dev-{number} closed its connection.")
    counts = sessions.take()
    assert counts == {LOST.value: CLIENTS_MAX + 100, CLIENTS: CLIENTS_MAX}
    NamedCounts(0.0, 60.0, counts)
    assert sessions.take() == {}


def test_the_names_of_the_counts_stay() -> None:
    # A name that changed would go into another column, and make every model of the fleet wrong without a word.
    assert {*(event.value for event in SessionEvent), CLIENTS} == {
        "broker_sessions_opened",
        "broker_sessions_ended",
        "broker_sessions_lost",
        "broker_sessions_refused",
        "broker_sessions_taken_over",
        "broker_clients_distinct",
    }


@pytest.mark.parametrize(
    ("said", "event", "client"),
    [
        ("a disconnected due to b disconnected: Connection reset by peer.", LOST, "a disconnected due to b"),
        ("a disconnected: b disconnected due to protocol error.", REFUSED, ""),
        ("connection from 1 failed:  disconnected.", ENDED, "connection from 1 failed: "),
        ("connection from 1 denied closed its connection.", LOST, "connection from 1 denied"),
        ("a already connected, closing old connection. disconnected.", ENDED, None),
    ],
)
def test_no_name_that_a_client_gives_itself_makes_one_event_another(
    said: str, event: SessionEvent, client: str | None
) -> None:
    found = session_line("mosquitto", f"1795800145: Client {said}")
    assert found is not None
    assert found.event is event
    assert client is None or found.client == client
