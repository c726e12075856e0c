"""amqtt's broker with our connections in it: sessions, subscriptions, routing, retained messages, and what survives.

amqtt contributes the plugin machinery, the session object and the life cycle. What is overridden is pinned to one
release of it (`vedette_broker.version`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from amqtt.broker import Broker
from amqtt.contexts import Action as BrokerAction
from amqtt.session import Session

from vedette_broker import packets
from vedette_broker.access import IDENTITY, REFUSAL, Access, Holder
from vedette_broker.connection import Connection, peer
from vedette_broker.credentials import Credentials
from vedette_broker.journal import Journal, Written
from vedette_broker.limits import COMPLAINTS_MAX, CONNECTIONS_MAX, FILTERS_MAX, WATCH_S
from vedette_broker.listener import Listener
from vedette_broker.retained import Retained
from vedette_broker.routes import Routes
from vedette_broker.session import ClientSession, Outbound
from vedette_broker.session_log import SessionEvent, SessionLog
from vedette_broker.store import Kept, Store
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.topics import TOPIC_BYTES_MAX, Role

log = logging.getLogger("vedette.broker")

KEPT_ROLES: Final = frozenset(Role) - {Role.DEVICE, Role.BOOTSTRAP}
"""Whose sessions may outlive a connection: of each there is one. Devices have retained topics and their outbox."""
HOLDING_BACK: Final = frozenset({Role.AGGREGATOR, Role.AUTHORITY})
"""Whose full queue makes publishers wait: they work off what all devices send. Of nobody else: a device that reads and
never acknowledges would hold up the aggregator, ten seconds with every message."""
_COMPLAINTS: Final = "vedette.complaints"


class Hub(Broker):  # type: ignore[misc]
    """The broker's state.

    Args:
        config: amqtt's configuration.
        listening: the bound socket.
        credentials: its TLS contexts and the revocation list.
        access: who may say and hear what.
        store: what survives a restart; None keeps everything in RAM.
        counts: what happened.

    Attributes:
        session_log: where what becomes of sessions is logged.
    """

    def __init__(
        self,
        config: dict[str, Any],
        listening: socket.socket,
        credentials: Credentials,
        access: Access,
        store: Store | None,
        counts: Counter[str],
    ) -> None:
        super().__init__(config, loop=asyncio.get_running_loop())
        self._listening, self._credentials, self._access = listening, credentials, access
        self.counts, self.session_log = counts, SessionLog()
        self._clients: dict[str, ClientSession] = {}
        self._connections: set[Connection] = set()
        self._admission: dict[str, asyncio.Lock] = {}
        self._routes, self._retained = Routes(), Retained()
        self._closing = False
        self._watching: asyncio.Task[None] | None = None
        self._journal: Journal | None = None
        if store is not None:
            self._journal = Journal(store, counts)
            self._restore(store)

    @property
    def connections(self) -> int:
        """Connections of clients that said who they are, or are about to."""
        return len(self._connections)

    @property
    def retained(self) -> Retained:
        """What is retained."""
        return self._retained

    @property
    def waiting(self) -> int:
        """Messages that wait for clients or for their PUBACK."""
        return sum(state.waiting for state in self._clients.values())

    @property
    def revocation_list_number(self) -> int:
        """Number of the revocation list in force, 0 for none."""
        return 0 if self._credentials.revoked is None else self._credentials.revoked.number

    async def _create_server_instance(self, *_: Any) -> Listener:
        self._watching = asyncio.create_task(self._watch(), name="broker-watch")
        return Listener(self._listening, self._serve, lambda: self._credentials.context, self.counts, self.session_log)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, identified: Any) -> None:
        if self._closing or len(self._connections) >= CONNECTIONS_MAX:
            self.counts["connect_refused"] += 1
            self.session_log.say(SessionEvent.REFUSED, peer(writer), "too many connections")
            writer.write(packets.connack(packets.UNAVAILABLE))
            writer.close()
            return
        connection = Connection(self, reader, writer, identified)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def shutdown(self) -> None:
        """Stop: no new connections, cut the others without their wills, write what must survive."""
        self._closing = True
        self.session_log.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        connections = list(self._connections)
        for connection in connections:
            connection.cut("broker stops", SessionEvent.LOST)
        await asyncio.gather(*(c.close() for c in connections))
        for server in self._servers.values():
            server.instance.close()
        await super().shutdown()
        if self._journal is not None:
            await self._journal.close()

    # --- sessions

    def _restore(self, store: Store) -> None:
        for topic, kept in store.load_retained():
            if topic == self._access.revoked and not self._credentials.take(kept.payload):
                continue  # the bundle's is newer
            self._retained.put(topic, kept, limited=False)
        for client, found in store.load_sessions().items():
            session = Session()
            session.client_id, session.clean_session = client, False
            session.attributes[IDENTITY] = Holder(client, found.role)
            state = ClientSession(session, clean=False)
            self._clients[client] = state
            for topic_filter, qos in found.filters.items():
                # The access table may have changed since.
                if found.role in KEPT_ROLES and self._may(session, topic_filter, BrokerAction.SUBSCRIBE):
                    state.filters[topic_filter] = qos
                    self._routes.add(topic_filter, client, qos)
            state.restore(found.messages)
        log.info(
            "restored %d retained messages, %d sessions and %d messages that wait",
            len(self._retained),
            len(self._clients),
            self.waiting,
        )

    async def authenticate(self, session: Any) -> bool:
        """Ask the authentication plugin who this connection is."""
        accepted = bool(await self._authenticate(session, None)) and IDENTITY in session.attributes
        why = session.attributes.get(REFUSAL, "")
        if accepted:
            holder = session.attributes[IDENTITY]
            try:
                self._credentials.check(holder.serial, holder.id, time.time(), holder.issuer)
            except (PeerError, RefusedError) as fault:
                accepted, why = False, str(fault)
        if not accepted:
            self.session_log.say(SessionEvent.REFUSED, repr(str(session.client_id)[:80]), why, level=logging.WARNING)
        self.counts["connect_accepted" if accepted else "connect_refused"] += 1
        return accepted

    async def attach(self, connection: Connection, session: Any) -> ClientSession | None:
        """Give an authenticated connection its client's state, ending an older connection first."""
        lock = self._admission.setdefault(session.client_id, asyncio.Lock())
        async with lock:
            known = self._clients.get(session.client_id)
            if known is not None and known.connection is not None:
                older = known.connection
                older.cut("by a newer connection", SessionEvent.TAKEN_OVER)
                await older.close()
                known = self._clients.get(session.client_id)
            if self._closing:
                return None
            role = session.attributes[IDENTITY].role
            clean = bool(session.clean_session) or role not in KEPT_ROLES
            if known is not None and (clean or known.clean or known.session.attributes[IDENTITY].role is not role):
                self._forget(known)
                known = None
            state = known or ClientSession(session, clean)
            state.session, state.connection = session, connection
            self._clients[session.client_id] = state
            if known is None and not clean and self._journal is not None:
                self._journal.keep(state.id, role)
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
        for topic_filter in state.filters:
            self._routes.remove(topic_filter, state.id)
        state.filters.clear()
        if self._clients.get(state.id) is state:
            del self._clients[state.id]
            if not state.clean and self._journal is not None:
                self._journal.forget(state.id)

    async def _watch(self) -> None:
        """Take up what changed on disk, and end connections whose certificates are over."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._credentials.refresh()
            now = time.time()
            for connection in list(self._connections):
                holder = connection.holder
                if holder is None or connection.ending:
                    continue
                if self._credentials.is_revoked(holder.serial, holder.issuer):
                    self.counts["revoked_cut"] += 1
                    connection.cut("its certificate is revoked", SessionEvent.REFUSED)
                elif not self._credentials.knows(holder.issuer):
                    # Its list does not count any more either: whoever stole it could stay for as long as he likes.
                    self.counts["authority_cut"] += 1
                    connection.cut("its authority is none of ca.crt any more", SessionEvent.REFUSED)
                elif now >= holder.not_after:
                    self.counts["expired_cut"] += 1
                    connection.cut("its certificate has ended", SessionEvent.REFUSED)

    # --- subscriptions

    async def subscribe(self, state: ClientSession, topic_filter: str, qos: int) -> int:
        """Subscribe a client to a filter; returns the granted QoS, or `packets.REFUSED`. A kept one is durable then."""
        too_much = len(state.filters) >= FILTERS_MAX and topic_filter not in state.filters
        if qos > 2 or too_much or len(topic_filter.encode()) > TOPIC_BYTES_MAX:
            return packets.REFUSED
        if not self._may(state.session, topic_filter, BrokerAction.SUBSCRIBE):
            self.counts["subscribe_denied"] += 1
            self._complain(state.session, "may not subscribe to %r", topic_filter)
            return packets.REFUSED
        granted = min(qos, 1)
        state.filters[topic_filter] = granted
        self._routes.add(topic_filter, state.id, granted)
        if not state.clean and self._journal is not None:
            await asyncio.wait([self._journal.subscribe(state.id, topic_filter, granted)])
        return granted

    def unsubscribe(self, state: ClientSession, topic_filter: str) -> None:
        """Remove a client's subscription, if there is one."""
        if state.filters.pop(topic_filter, None) is None:
            return
        self._routes.remove(topic_filter, state.id)
        if not state.clean and self._journal is not None:
            self._journal.unsubscribe(state.id, topic_filter)

    async def send_retained(self, state: ClientSession, topic_filter: str, qos: int) -> None:
        """Send a new subscriber what is retained under its own filter and readable to it."""
        for topic, kept in self._retained.below(topic_filter):
            if not self._may(state.session, topic, BrokerAction.RECEIVE):
                continue
            message = Outbound(topic, kept.payload, min(qos, kept.qos), retain=True)
            if not await state.offer(message, wait=False):
                self.counts["message_dropped"] += 1
        # A client with many filters does not keep the others waiting.
        await asyncio.sleep(0)

    # --- messages

    async def publish(self, session: Any, message: Outbound) -> Written | None:
        """Route a client's message, if it may publish it; what it may not is dropped and counted.

        Returns:
            When what must survive of it is durable; None if nothing must.
        """
        topic = message.topic
        if len(message.payload) > PAYLOAD_BYTES_MAX or len(topic.encode()) > TOPIC_BYTES_MAX:
            self.counts["publish_oversize"] += 1
            self._complain(session, "dropped a message that is too large on %r", topic[:120])
            return None
        if not self._may(session, topic, BrokerAction.PUBLISH):
            self.counts["publish_denied"] += 1
            self._complain(session, "may not publish to %r", topic)
            return None
        if topic == self._access.revoked and not self._credentials.take(message.payload):
            # Retained in the newer one's place, it would be all that a broker far from the authority finds after its
            # next start, and all that a new node is told.
            self.counts["publish_denied"] += 1
            self._complain(session, "published something else than the list in force on %r", topic)
            return None
        self.counts["publish_accepted"] += 1
        written = self._retain(session, message) if message.retain else None
        for client, qos in self._routes.subscribers(topic).items():
            state = self._clients.get(client)
            if state is None or not self._may(state.session, topic, BrokerAction.RECEIVE):
                continue
            copy = Outbound(topic, message.payload, min(qos, message.qos), retain=False)
            # A client that is its own subscriber cannot acknowledge while it waits for itself.
            wait = client != session.client_id and state.session.attributes[IDENTITY].role in HOLDING_BACK
            written = await self._deliver(state, copy, wait=wait) or written
        return written

    async def _deliver(self, state: ClientSession, message: Outbound, *, wait: bool) -> Written | None:
        if not await state.room(message, wait=wait) or self._clients.get(state.id) is not state:
            self.counts["message_dropped"] += 1
            if message.qos and not state.dropping:
                state.dropping = True
                log.warning("%s: its queue is full, or it is gone: messages for it are dropped", state.id)
            return None
        state.dropping = False
        if state.clean or not message.qos or self._journal is None:
            state.put(message)
            return None
        stored = replace(message, position=self._journal.next_position())
        state.put(stored)
        return self._journal.add(state.id, stored)

    def acknowledged(self, state: ClientSession, packet_id: int) -> None:
        """A client has a message; it is not kept any longer."""
        message = state.acknowledged(packet_id)
        if message is not None and message.position and self._journal is not None:
            self._journal.remove(message.position)

    def _retain(self, session: Any, message: Outbound) -> Written | None:
        kept: Kept | None = None
        if message.payload:
            kept = Kept(message.payload, message.qos, str(session.client_id))
            limited = session.attributes[IDENTITY].role not in KEPT_ROLES
            if not self._retained.put(message.topic, kept, limited=limited):
                kept = None
                self.counts["retained_dropped"] += 1
                self._complain(session, "no room to retain %r", message.topic)
        else:
            self._retained.remove(message.topic)
        return None if self._journal is None else self._journal.retain(message.topic, kept)

    def _may(self, session: Any, topic: str, action: BrokerAction) -> bool:
        return self._access.allows(session.attributes.get(IDENTITY), topic, action)

    def _complain(self, session: Any, what: str, topic: str) -> None:
        """Log what a client did wrong, a few times a connection: an enrolled device shall not fill the disk."""
        said = session.attributes[_COMPLAINTS] = session.attributes.get(_COMPLAINTS, 0) + 1
        if said <= COMPLAINTS_MAX:
            more = "; more of this connection is only counted" if said == COMPLAINTS_MAX else ""
            log.info(f"%s: {what}%s", session.client_id, topic, more)
