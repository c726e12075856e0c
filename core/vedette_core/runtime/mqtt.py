"""The MQTT session that every component uses, bridged from paho's thread to asyncio in this one place.

- QoS 1 out: `publish` returns when the broker has the message, over as many reconnects as that takes.
- QoS 0 out: dropped and counted while there is no connection.
- In: one handler, one message after the other; a QoS 1 message is acknowledged after the handler has returned, so that
  what is not acknowledged stays within the broker's in-flight window.
- Subscriptions are made anew after every CONNACK; a refused one is tried again with a growing delay.

PUBACK is not delivery: what must arrive waits in an outbox for the application's receipt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from vedette_core.runtime.mqtt_network import (
    Accepted,
    Answered,
    Arrived,
    Ended,
    Failure,
    LinkConfig,
    NetworkThread,
    Report,
    Sent,
    Will,
)
from vedette_core.runtime.mqtt_subscriptions import Subscriptions
from vedette_schemas.codec import PAYLOAD_BYTES_MAX, check_size
from vedette_schemas.errors import ConfigError, PeerError, TransientError

__all__ = ["AuthenticationError", "LinkConfig", "LinkCounters", "MqttLink", "MqttMessage", "UnreachableError", "Will"]

log = logging.getLogger("vedette.mqtt")

OUT_MESSAGES_MAX: Final = 1000
OUT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Publications without PUBACK; what does not fit is refused, its sender has an outbox."""
IN_BYTES_MAX: Final = 64 * 1024 * 1024
"""Messages that wait for the handler; beyond it QoS 0 is dropped. QoS 1 is bounded by the broker's window."""
STOP_TIMEOUT_S: Final = 3.0
CLOSED_MAX: Final = 3
"""Attempts in a row that end after the TLS handshake without an answer: then the certificate is taken to be refused.
With TLS 1.3 the server checks it when the client is done already, and asyncio's servers close without the alert."""


class AuthenticationError(ConfigError):
    """Broker and node do not accept each other: certificates, names, or the client id."""


class UnreachableError(TransientError):
    """No broker answers there, for now."""


@dataclass(frozen=True, slots=True)
class MqttMessage:
    """A message that came in.

    Attributes:
        retain: whether it is a topic's retained state, sent because of a new subscription.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(slots=True)
class LinkCounters:
    """What happened on a link since its start.

    Attributes:
        connects: sessions accepted.
        connects_failed: attempts that did not become a session.
        disconnects: sessions lost.
        received: messages handed to the handler that it took.
        received_rejected: the handler raised `PeerError`.
        received_failed: the handler raised anything else.
        received_dropped: QoS 0, no room for it.
        received_oversize: larger than the contract allows.
        received_bytes: payload bytes handed to the handler.
        sent: QoS 1 acknowledged by the broker, QoS 0 handed to the socket.
        sent_bytes: their payload bytes.
        sent_dropped: QoS 0 without a connection or without room.
        sent_refused: too large, or the queue was full.
        subscriptions_refused: filters that a SUBACK refused.
    """

    connects: int = 0
    connects_failed: int = 0
    disconnects: int = 0
    received: int = 0
    received_rejected: int = 0
    received_failed: int = 0
    received_dropped: int = 0
    received_oversize: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    sent_dropped: int = 0
    sent_refused: int = 0
    subscriptions_refused: int = 0


Handler = Callable[[MqttMessage], Awaitable[None]]


@dataclass(slots=True)
class _Outgoing:
    payload_bytes: int
    done: asyncio.Future[None] | None


class MqttLink:
    """One component's MQTT session. Every method is called on the event loop that `start` ran on.

    Args:
        config: whom to connect to, and as whom.
        handler: takes the messages, one after the other.
        on_connect: called after each CONNACK when every filter has been answered: publish retained state again, flush
            the outbox. The argument tells whether the broker kept the session. Must not block: start a task.
        on_disconnect: called when a session is lost, with the reason.
    """

    def __init__(
        self,
        config: LinkConfig,
        handler: Handler,
        *,
        on_connect: Callable[[bool], None] | None = None,
        on_disconnect: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.counters = LinkCounters()
        self._handler, self._on_connect, self._on_disconnect = handler, on_connect, on_disconnect
        self._subscriptions = Subscriptions(self._send_subscribe, self._where)
        self._outgoing: dict[int, _Outgoing] = {}
        self._out_bytes = 0
        self._inbox: asyncio.Queue[Arrived] = asyncio.Queue()
        self._in_bytes = 0
        self._accepted: Accepted | None = None
        self._ready = False
        self._last_failure: Ended | None = None
        self._closed_in_a_row = 0
        self._changed = asyncio.Event()
        self._network: NetworkThread | None = None
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False

    async def __aenter__(self) -> MqttLink:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def connected(self) -> bool:
        """Whether there is a session now, with every filter answered."""
        return self._ready

    @property
    def pending(self) -> int:
        """QoS 1 publications that the broker has not acknowledged."""
        return sum(o.done is not None for o in self._outgoing.values())

    async def start(self) -> None:
        """Begin to connect, in the background and for ever; see `wait_connected`."""
        assert self._network is None, "a link is started once"
        loop = asyncio.get_running_loop()
        self._network = NetworkThread(self.config, loop, self._take)
        self._worker = loop.create_task(self._deliver(), name=f"mqtt-in-{self.config.client_id}")
        self._network.start()

    async def stop(self, drain_s: float = 1.0) -> None:
        """Wait up to `drain_s` for PUBACKs, say goodbye (no will), end the thread. Bounded, and may be called twice."""
        if self._network is None or self._stopped:
            return
        if self._ready:
            waiting = [o.done for o in self._outgoing.values() if o.done is not None]
            if waiting:
                await asyncio.wait(waiting, timeout=drain_s)
        self._stopped = True
        assert self._worker is not None
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        if not await asyncio.to_thread(self._network.stop, STOP_TIMEOUT_S):
            log.warning("%s: the network thread did not end within %g s", self.config.client_id, STOP_TIMEOUT_S)
        self._ready, self._accepted = False, None
        self._subscriptions.disconnected()
        for outgoing in self._outgoing.values():
            if outgoing.done is not None and not outgoing.done.done():
                outgoing.done.set_exception(TransientError("the link was stopped before the broker had the message"))
                outgoing.done.exception()  # seen: a caller that stopped waiting is no fault
        self._outgoing.clear()
        self._signal()

    def reconnect(self, before: Callable[[], None]) -> None:
        """Leave politely (no will) and come back; nothing that waits is lost.

        Args:
            before: called on the network thread between the two connections; loads the new certificate. Must not raise.
        """
        if self._network is not None and not self._stopped:
            self._network.reconnect(before)

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for a session.

        Raises:
            AuthenticationError: broker and node do not accept each other; raised at once.
            UnreachableError: no session within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ready and not self._stopped:
                    failure = self._last_failure
                    if failure is not None and (failure.failure.fatal or self._closed_in_a_row >= CLOSED_MAX):
                        raise AuthenticationError(self._explain(failure))
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise UnreachableError(self._explain(self._last_failure)) from None
        if self._stopped:
            raise UnreachableError(f"broker {self._where}: the link was stopped")

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; with QoS 1, return when the broker has it.

        Cancelling stops the waiting, not the sending.

        Args:
            topic: topic name.
            payload: at most `PAYLOAD_BYTES_MAX` bytes.
            qos: 0 or 1.
            retain: whether the broker keeps it as the topic's last value; an empty payload clears it.

        Raises:
            PeerError: the payload is too large; nothing was sent.
            TransientError: too much waits for the broker already, or the link is stopped.
        """
        assert qos in (0, 1)
        try:
            check_size(payload, topic)
        except PeerError:
            self.counters.sent_refused += 1
            raise
        if self._network is None or self._stopped:
            raise TransientError(f"{topic}: the link is not running")
        full = len(self._outgoing) >= OUT_MESSAGES_MAX or self._out_bytes + len(payload) > OUT_BYTES_MAX
        if qos == 0 and (full or not self._ready):
            self.counters.sent_dropped += 1
            return
        mid = None if full else self._network.publish(topic, payload, qos, retain)
        if mid is None:
            self.counters.sent_refused += 1
            raise TransientError(
                f"{topic}: found {len(self._outgoing)} messages of {self._out_bytes} bytes waiting for the broker, "
                f"expected at most {OUT_MESSAGES_MAX} of {OUT_BYTES_MAX}; try again later"
            )
        self._out_bytes += len(payload)
        # `Sent` comes through the loop, so that it cannot overtake this line.
        outgoing = _Outgoing(len(payload), asyncio.get_running_loop().create_future() if qos else None)
        self._outgoing[mid] = outgoing
        if outgoing.done is not None:
            await asyncio.shield(outgoing.done)

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """Subscribe now and after every reconnect. Does not wait for the broker: see `wait_subscribed`."""
        assert qos in (0, 1)
        self._subscriptions.add(topic_filter, qos)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Leave a filter; nothing happens if it was not subscribed to."""
        wanted = self._subscriptions.remove(topic_filter)
        if wanted and self._network is not None and self._accepted is not None:
            self._network.unsubscribe(topic_filter)

    async def wait_subscribed(self, timeout_s: float) -> None:
        """Wait until there is a session and every filter has been granted.

        Raises:
            TransientError: not within `timeout_s`; the filters that are missing are named.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ready or self._subscriptions.missing:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            missing = ", ".join(self._subscriptions.missing[:5]) or "a session"
            raise TransientError(
                f"broker {self._where}: found no grant of {missing} within {timeout_s:g} s; "
                "check the broker's access rules"
            ) from None

    @property
    def _where(self) -> str:
        return f"{self.config.host}:{self.config.port}"

    def _send_subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        return None if self._network is None else self._network.subscribe(filters)

    def _explain(self, failure: Ended | None) -> str:
        match failure.failure if failure is not None else None:
            case Failure.TLS | Failure.CLOSED:
                todo = (
                    "check that both certificates are of this site, not expired, and that the name is in the broker's"
                )
            case Failure.REFUSED:
                todo = "check that the client id is the certificate's common name and that the broker serves this site"
            case _:
                todo = "check that the broker runs there, and the host and port"
        found = failure.text if failure is not None else "no answer"
        return f"broker {self._where}: found: {found}; expected a session; {todo}"

    def _take(self, report: Report) -> None:
        """What the network thread reports, in order, on the loop."""
        if self._stopped:
            return
        match report:
            case Arrived():
                self._take_message(report)
            case Sent(mid=mid):
                self._take_sent(mid)
            case Accepted():
                self._take_accepted(report)
            case Answered():
                self._take_answer(report)
            case Ended():
                self._take_end(report)

    def _take_accepted(self, report: Accepted) -> None:
        self.counters.connects += 1
        self._accepted, self._last_failure, self._closed_in_a_row = report, None, 0
        self._subscriptions.connected()
        self._become_ready()

    def _take_end(self, report: Ended) -> None:
        was_ready, self._ready = self._ready, False
        if self._accepted is None:
            self.counters.connects_failed += 1
            if self._last_failure is None or self._last_failure.text != report.text:
                log.warning("broker %s: %s: %s", self._where, report.failure, report.text)
        else:
            self.counters.disconnects += 1
            log.info("broker %s: connection lost: %s", self._where, report.text)
        self._accepted, self._last_failure = None, report
        self._closed_in_a_row = self._closed_in_a_row + 1 if report.failure is Failure.CLOSED else 0
        self._subscriptions.disconnected()
        for mid in [m for m, o in self._outgoing.items() if o.done is None]:
            self._out_bytes -= self._outgoing.pop(mid).payload_bytes  # QoS 0 does not survive its connection
            self.counters.sent_dropped += 1
        if was_ready and self._on_disconnect is not None:
            self._on_disconnect(report.text)
        self._signal()

    def _become_ready(self) -> None:
        if self._ready or self._accepted is None or not self._subscriptions.answered:
            return
        self._ready = True
        log.info("broker %s: connected as %s", self._where, self.config.client_id)
        if self._on_connect is not None:
            self._on_connect(self._accepted.session_present)
        self._signal()

    def _take_answer(self, report: Answered) -> None:
        if self._accepted is None or report.generation != self._accepted.generation:
            return
        self._subscriptions.take_answer(report.mid, report.granted)
        self.counters.subscriptions_refused = self._subscriptions.refused
        self._become_ready()
        self._signal()

    def _take_sent(self, mid: int) -> None:
        outgoing = self._outgoing.pop(mid, None)
        if outgoing is None:
            return
        self._out_bytes -= outgoing.payload_bytes
        self.counters.sent += 1
        self.counters.sent_bytes += outgoing.payload_bytes
        if outgoing.done is not None and not outgoing.done.done():
            outgoing.done.set_result(None)

    def _take_message(self, report: Arrived) -> None:
        if len(report.payload) > PAYLOAD_BYTES_MAX:
            self.counters.received_oversize += 1
            self._acknowledge(report)
        elif report.qos == 0 and self._in_bytes + len(report.payload) > IN_BYTES_MAX:
            self.counters.received_dropped += 1
        else:
            self._in_bytes += len(report.payload)
            self._inbox.put_nowait(report)

    async def _deliver(self) -> None:
        while True:
            report = await self._inbox.get()
            self._in_bytes -= len(report.payload)
            self.counters.received_bytes += len(report.payload)
            try:
                await self._handler(MqttMessage(report.topic, report.payload, report.qos, report.retain))
                self.counters.received += 1
            except PeerError as error:
                self.counters.received_rejected += 1
                log.info("%s: rejected: %s", report.topic, error)
            except Exception:
                # Acknowledged all the same: a message that breaks the handler would come back for ever.
                self.counters.received_failed += 1
                log.exception("%s: the handler failed", report.topic)
            self._acknowledge(report)

    def _acknowledge(self, report: Arrived) -> None:
        if report.qos and self._network is not None:
            self._network.acknowledge(report.generation, report.mid)

    def _signal(self) -> None:
        self._changed.set()
