"""amqtt's broker with our connections in it: sessions, subscriptions, routing and retained messages, all in RAM.

amqtt contributes the packets, the plugin machinery, filter validation and the listener's life cycle. What is overridden
is pinned to amqtt 0.12.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.contexts import Action as BrokerAction
from amqtt.mqtt.connack import ConnackPacket

from vedette_broker.access import IDENTITY
from vedette_broker.connection import REFUSED, Connection
from vedette_broker.limits import CONNECT_TIMEOUT_S, CONNECTIONS_MAX, FILTERS_MAX, RETAINED_BYTES_MAX, RETAINED_MAX
from vedette_broker.session import ClientSession, Outbound
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.topics import TOPIC_BYTES_MAX, Role, matches

log = logging.getLogger("vedette.broker")

UNAVAILABLE: Final = 3


class Hub(Broker):  # type: ignore[misc]
    """The broker's state.

    Args:
        config: amqtt's configuration.
        listener: the bound socket.
        tls: context that requires client certificates.
    """

    def __init__(self, config: dict[str, Any], listener: socket.socket, tls: ssl.SSLContext) -> None:
        super().__init__(config, loop=asyncio.get_running_loop())
        self._listener, self._tls = listener, tls
        self._clients: dict[str, ClientSession] = {}
        self._connections: set[Connection] = set()
        self._admission: dict[str, asyncio.Lock] = {}
        self._wildcards: set[str] = set()
        self._retained_bytes = 0
        self._closing = False
        self.counts: Counter[str] = Counter()

    async def _create_server_instance(self, *_: Any) -> asyncio.Server:
        return await asyncio.start_server(
            self._serve, sock=self._listener, ssl=self._tls, ssl_handshake_timeout=CONNECT_TIMEOUT_S, backlog=128
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing or len(self._connections) >= CONNECTIONS_MAX:
            self.counts["connect_refused"] += 1
            writer.write(ConnackPacket.build(0, UNAVAILABLE).to_bytes())
            writer.close()
            return
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def shutdown(self) -> None:
        """Stop: no new connections, cut the others without their wills."""
        self._closing = True
        for server in self._servers.values():
            server.instance.close()
            # Not waited for: from Python 3.12 on that would take as long as the slowest TLS handshake.
            server.instance = None
        connections = list(self._connections)
        for connection in connections:
            connection.cut("broker stops")
        await asyncio.gather(*(c.close() for c in connections))
        await super().shutdown()

    # --- sessions

    async def authenticate(self, session: Any) -> bool:
        """Ask the authentication plugin who this connection is."""
        accepted = bool(await self._authenticate(session, None)) and IDENTITY in session.attributes
        self.counts["connect_accepted" if accepted else "connect_refused"] += 1
        return accepted

    async def attach(self, connection: Connection, session: Any) -> ClientSession | None:
        """Give an authenticated connection its client's state, ending an older connection first."""
        lock = self._admission.setdefault(session.client_id, asyncio.Lock())
        async with lock:
            known = self._clients.get(session.client_id)
            if known is not None and known.connection is not None:
                older = known.connection
                older.cut("taken over by a newer connection")
                await older.close()
                known = self._clients.get(session.client_id)
            if self._closing:
                return None
            # A device's state is in retained topics and its own outbox: nothing is kept for it here.
            device = session.attributes[IDENTITY].access_role is Role.DEVICE
            clean = bool(session.clean_session) or device
            if known is not None and (clean or known.clean):
                self._forget(known)
                known = None
            state = known or ClientSession(session, clean)
            state.session, state.connection = session, connection
            self._clients[session.client_id] = state
            await connection.accept(session_present=known is not None)
            return state

    def detach(self, connection: Connection, state: ClientSession) -> None:
        """A connection is over."""
        if state.connection is not connection or self._clients.get(state.id) is not state:
            return
        state.disconnected()
        if state.clean:
            self._forget(state)

    async def publish_will(self, session: Any) -> None:
        """Publish a session's will; the broker's own end is not the client's."""
        if session.will_flag and not self._closing:
            will = Outbound(
                session.will_topic, bytes(session.will_message), session.will_qos, bool(session.will_retain)
            )
            await self.publish(session, will)

    def _forget(self, state: ClientSession) -> None:
        for topic_filter in list(state.filters):
            self.unsubscribe(state, topic_filter)
        if self._clients.get(state.id) is state:
            del self._clients[state.id]

    # --- subscriptions

    async def subscribe(self, state: ClientSession, topic_filter: str, qos: int) -> int:
        """Subscribe a client to a filter; returns the granted QoS, or `REFUSED`."""
        too_much = len(state.filters) >= FILTERS_MAX or len(topic_filter.encode()) > TOPIC_BYTES_MAX
        if qos > 2 or not topic_filter or "\0" in topic_filter or too_much:
            return REFUSED
        granted = int(await self.add_subscription((topic_filter, min(qos, 1)), state.session))
        if granted == REFUSED:
            self.counts["subscribe_denied"] += 1
            log.info("%s: may not subscribe to %s", state.id, topic_filter)
            return REFUSED
        state.filters[topic_filter] = granted
        if "+" in topic_filter or "#" in topic_filter:
            self._wildcards.add(topic_filter)
        return granted

    def unsubscribe(self, state: ClientSession, topic_filter: str) -> None:
        """Remove a client's subscription, if there is one."""
        if state.filters.pop(topic_filter, None) is None:
            return
        self._del_subscription(topic_filter, state.session)
        if not self._subscriptions.get(topic_filter):
            self._subscriptions.pop(topic_filter, None)
            self._wildcards.discard(topic_filter)

    async def send_retained(self, state: ClientSession, topic_filter: str, qos: int) -> None:
        """Send a new subscriber what is retained under its own filter and readable to it."""
        for topic, kept in list(self._retained_messages.items()):
            if not matches(topic_filter, topic) or not await self._allowed(state.session, topic, BrokerAction.RECEIVE):
                continue
            message = Outbound(topic, bytes(kept.data), min(qos, kept.qos or 0), retain=True)
            if not await state.offer(message, wait=False):
                self.counts["message_dropped"] += 1

    # --- messages

    async def publish(self, session: Any, message: Outbound) -> None:
        """Route a client's message, if it may publish it; what it may not is dropped and counted."""
        topic = message.topic
        if len(message.payload) > PAYLOAD_BYTES_MAX or len(topic.encode()) > TOPIC_BYTES_MAX or "\0" in topic:
            self.counts["publish_oversize"] += 1
            log.info("%s: dropped %d bytes on %s", session.client_id, len(message.payload), topic[:120])
            return
        if not await self._allowed(session, topic, BrokerAction.PUBLISH):
            self.counts["publish_denied"] += 1
            log.info("%s: may not publish to %s", session.client_id, topic)
            return
        self.counts["publish_accepted"] += 1
        if message.retain:
            self._retain(session, message)
        for state, qos in self._subscribers(topic):
            if not await self._allowed(state.session, topic, BrokerAction.RECEIVE):
                continue
            copy = Outbound(topic, message.payload, min(qos, message.qos), retain=False)
            # A client that is its own subscriber cannot acknowledge while it waits for itself.
            if not await state.offer(copy, wait=state.id != session.client_id):
                self.counts["message_dropped"] += 1
                log.debug("%s: dropped a message on %s", state.id, topic)

    def _subscribers(self, topic: str) -> Iterator[tuple[ClientSession, int]]:
        """Each client once, with the highest QoS of its filters that match."""
        found: dict[str, int] = {}
        filters = [f for f in self._wildcards if matches(f, topic)]
        for topic_filter in (topic, *filters):
            for session, _ in self._subscriptions.get(topic_filter, ()):
                state = self._clients.get(session.client_id)
                if state is not None and topic_filter in state.filters:
                    found[state.id] = max(found.get(state.id, 0), state.filters[topic_filter])
        for client_id, qos in found.items():
            with contextlib.suppress(KeyError):  # gone while an earlier one was waited for
                yield self._clients[client_id], qos

    def _retain(self, session: Any, message: Outbound) -> None:
        previous = self._retained_messages.pop(message.topic, None)
        if previous is not None:
            self._retained_bytes -= len(previous.data)
        if not message.payload:
            return
        over = self._retained_bytes + len(message.payload) > RETAINED_BYTES_MAX
        if over or len(self._retained_messages) >= RETAINED_MAX:
            self.counts["retained_dropped"] += 1
            log.warning("%s: no room to retain %s", session.client_id, message.topic)
            return
        self._retained_bytes += len(message.payload)
        self._retained_messages[message.topic] = RetainedApplicationMessage(
            None, message.topic, message.payload, message.qos
        )

    async def _allowed(self, session: Any, topic: str, action: BrokerAction) -> bool:
        return bool(await self._topic_filtering(session, topic, action))
