"""The MQTT client's network thread: connects, reconnects, and reports what happens to an asyncio loop.

paho's client is driven from this one thread; other threads only put packets into its queues. (paho writes from the
calling thread unless a write callback is registered, and TLS sockets do not survive two writers.)

Source: MQTT 3.1.1 §3.1, §3.2; paho-mqtt 2 ``Client.loop``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

log = logging.getLogger("vedette.mqtt")

RECONNECT_MIN_S: Final = 0.3
RECONNECT_MAX_S: Final = 15.0
"""Delays double between these, each times a random factor from 0.5 to 1.5: a fleet does not come back at once."""
CONNECT_TIMEOUT_S: Final = 5.0
"""For TCP, and again for the TLS handshake."""
CONNACK_TIMEOUT_S: Final = 10.0
INFLIGHT_MAX: Final = 20
"""QoS 1 messages without PUBACK, as many as the brokers are configured for."""


class Failure(StrEnum):
    """Why there is no connection."""

    UNREACHABLE = "unreachable"
    CLOSED = "closed"
    LOST = "lost"
    TLS = "tls"
    REFUSED = "refused"

    @property
    def fatal(self) -> bool:
        """Whether an operator must act: trying again will not help."""
        return self in (Failure.TLS, Failure.REFUSED)


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for a client that is gone without a word."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """Whom to connect to, and as whom.

    Attributes:
        host: name or address, as in the broker's certificate.
        port: TCP port.
        client_id: own id; equal to the certificate's common name.
        tls: context with own certificate and the site's root; None only towards a broker that is not Vedette's.
        clean_session: False keeps subscriptions and queue at the broker while away (the aggregator only).
        keepalive_s: seconds of silence after which either side takes the other for lost.
        will: published by the broker if this client vanishes.
        login: user and password, only towards a broker that is not Vedette's.
    """

    host: str
    port: int
    client_id: str
    tls: ssl.SSLContext | None = field(repr=False)
    clean_session: bool = True
    keepalive_s: int = 30
    will: Will | None = None
    login: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The broker accepted this connection."""

    generation: int
    session_present: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection, or an attempt at one, is over."""

    generation: int
    failure: Failure
    text: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message came in; `mid` is to be acknowledged if `qos` is 1."""

    generation: int
    mid: int
    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker has the message (QoS 1), or the socket has it (QoS 0)."""

    mid: int


@dataclass(frozen=True, slots=True)
class Answered:
    """SUBACK: for each filter of the SUBSCRIBE whether it was granted."""

    generation: int
    mid: int
    granted: tuple[bool, ...]


Report = Accepted | Ended | Arrived | Sent | Answered


class NetworkThread:
    """Keeps one MQTT session alive.

    Args:
        config: whom to connect to.
        loop: the loop that reports are handed to.
        report: called on that loop, in order.
    """

    def __init__(self, config: LinkConfig, loop: asyncio.AbstractEventLoop, report: Callable[[Report], None]) -> None:
        self._config, self._loop, self._report = config, loop, report
        self._stopping = threading.Event()
        self._generation = 0
        self._generation_lock = threading.Lock()
        self._left = 0
        """Generation whose DISCONNECT was sent."""
        self._accepted_at: float | None = None
        self._refusal: tuple[Failure, str] | None = None
        self._errors = _LastError()
        self._before_next: Callable[[], None] | None = None
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{config.client_id}", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Say goodbye and end the thread; blocks for at most `timeout_s`; tells whether it ended."""
        self._stopping.set()
        self._say_goodbye()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def reconnect(self, before: Callable[[], None]) -> None:
        """Leave politely and come back; what waits for its PUBACK is sent again.

        Args:
            before: called on the network thread while there is no connection: the one moment at which a TLS context
                may change.
        """
        self._before_next = before
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Send one DISCONNECT a connection: after a second one, or anything else, the broker would publish the will."""
        with self._generation_lock:
            if self._left != self._generation:
                self._left = self._generation
                self._client.disconnect()

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> int | None:
        """Queue a PUBLISH; QoS 1 survives reconnects. Returns its message id, or None if paho's queue refused it."""
        info = self._client.publish(topic, payload, qos, retain)
        return None if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE else info.mid

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        """Send one SUBSCRIBE; returns its message id, or None without a connection."""
        return None if self._stopping.is_set() else self._client.subscribe(list(filters))[1]

    def unsubscribe(self, topic_filter: str) -> None:
        """Send an UNSUBSCRIBE, if there is a connection."""
        if not self._stopping.is_set():
            self._client.unsubscribe(topic_filter)

    def acknowledge(self, generation: int, mid: int) -> None:
        """Send the PUBACK of a message, unless its connection is gone: ids start anew with the next one."""
        with self._generation_lock:
            if generation == self._generation and not self._stopping.is_set():
                self._client.ack(mid, 1)

    def _make_client(self) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=config.clean_session,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(INFLIGHT_MAX)
        if config.tls is not None:
            client.tls_set_context(config.tls)
        if config.login is not None:
            client.username_pw_set(*config.login)
        if config.will is not None:
            client.will_set(config.will.topic, config.will.payload, config.will.qos, config.will.retain)
        client.enable_logger(self._errors.logger)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        # Registered so that paho never writes from the thread that calls `publish`; the select loop below writes.
        client.on_socket_register_write = _write_later
        return client

    def _run(self) -> None:
        delay = RECONNECT_MIN_S
        while not self._stopping.is_set():
            failure, text = self._connect_once()
            lasted = 0.0 if self._accepted_at is None else time.monotonic() - self._accepted_at
            self._post(Ended(self._generation, failure, text))
            if lasted > delay:
                delay = RECONNECT_MIN_S
            self._stopping.wait(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, RECONNECT_MAX_S)

    def _connect_once(self) -> tuple[Failure, str]:
        """One connection from beginning to end; returns why it ended."""
        with self._generation_lock:
            self._generation += 1
        self._accepted_at, self._refusal, self._errors.text = None, None, ""
        before, self._before_next = self._before_next, None
        if before is not None:
            before()
        config, client = self._config, self._client
        try:
            client.connect(config.host, config.port, config.keepalive_s)
        except ssl.SSLCertVerificationError as fault:
            return Failure.TLS, f"its certificate is refused here: {fault.verify_message}"
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as fault:
            return Failure.UNREACHABLE, f"it closed the connection during the TLS handshake ({fault.reason})"
        except ssl.SSLError as fault:
            return Failure.TLS, f"the TLS handshake failed: {fault.reason or fault}"
        except OSError as fault:
            return Failure.UNREACHABLE, fault.strerror or str(fault)
        with self._generation_lock:
            self._left = 0  # one that was said before there was a connection did not count
        return self._serve()

    def _serve(self) -> tuple[Failure, str]:
        client, give_up = self._client, time.monotonic() + CONNACK_TIMEOUT_S
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            if self._stopping.is_set() or (self._accepted_at is None and time.monotonic() > give_up):
                self._say_goodbye()
            code = client.loop(timeout=1.0)
        if self._refusal is not None:
            return self._refusal
        reason = self._errors.text or paho.error_string(code)
        if "ALERT" in reason:
            return Failure.TLS, f"it refuses this node's certificate: {reason}"
        if self._accepted_at is None:
            return Failure.CLOSED, f"it closed the connection after the TLS handshake, without an answer ({reason})"
        return Failure.LOST, reason

    def _on_connect(self, _c: paho.Client, _u: Any, flags: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            text = str(reason)
            kind = Failure.UNREACHABLE if text == "Server unavailable" else Failure.REFUSED
            self._refusal = (kind, f"it answered {text!r} to client id {self._config.client_id!r}")
            return
        self._accepted_at = time.monotonic()
        self._post(Accepted(self._generation, flags.session_present))

    def _on_message(self, client: paho.Client, _u: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            client.ack(message.mid, message.qos)
            return
        self._post(Arrived(self._generation, message.mid, topic, bytes(message.payload), message.qos, message.retain))

    def _on_publish(self, _c: paho.Client, _u: Any, mid: int, _r: Any, _p: Any) -> None:
        self._post(Sent(mid))

    def _on_subscribe(self, _c: paho.Client, _u: Any, mid: int, reasons: Any, _p: Any) -> None:
        self._post(Answered(self._generation, mid, tuple(not r.is_failure for r in reasons)))

    def _post(self, report: Report) -> None:
        try:
            self._loop.call_soon_threadsafe(self._report, report)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._stopping.set()


def _write_later(_client: paho.Client, _userdata: Any, _socket: Any) -> None:
    """Nothing to do: `Client.loop` looks for packets to write by itself."""


class _LastError(logging.Handler):
    """Keeps paho's newest error: the only place where it says why a socket failed, TLS alerts among them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""
        self.logger = logging.Logger("vedette.mqtt.paho", logging.ERROR)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage().removeprefix("failed to receive on socket: ")[:200]
