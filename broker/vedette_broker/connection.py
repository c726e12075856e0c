"""One client's connection to the embedded broker: packets are read, and handled, one after the other.

amqtt's own protocol handler authenticates after it has touched stored sessions, drops QoS 1 after five seconds and
enforces no keep-alive; this takes its place.

Source: MQTT 3.1.1 §3 (packets), §4.3 (QoS), §4.6 (ordering).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqtt.session import Session

from vedette_broker import packets
from vedette_broker.access import IDENTITY, Holder
from vedette_broker.journal import Written
from vedette_broker.limits import (
    CONNECT_BYTES_MAX,
    CONNECT_TIMEOUT_S,
    KEEPALIVE_MAX_S,
    PACKET_BYTES_MAX,
    STALL_S,
    TURN_S,
    UNCONFIRMED_MAX,
)
from vedette_broker.session import ClientSession, Outbound
from vedette_broker.session_log import SessionEvent
from vedette_schemas.errors import PeerError, TransientError

if TYPE_CHECKING:
    from vedette_broker.hub import Hub


class Connection:
    """One network connection, from CONNECT to its end.

    Args:
        hub: where sessions and subscriptions are.
        reader: bytes from the client.
        writer: bytes to the client.
        identified: called when the client has said who it is.

    Attributes:
        holder: whom it belongs to, once that is verified.
    """

    def __init__(
        self,
        hub: Hub,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identified: Callable[[], None] = lambda: None,
    ) -> None:
        self._hub, self._reader, self._writer = hub, reader, writer
        self._cut: asyncio.Future[tuple[SessionEvent, str]] = asyncio.get_running_loop().create_future()
        self._keepalive_s: float = KEEPALIVE_MAX_S
        self._talking = False
        self._turn_ends = 0.0
        self._identified = identified
        self.holder: Holder | None = None
        self._unconfirmed: asyncio.Queue[tuple[int, Written | None]] = asyncio.Queue(UNCONFIRMED_MAX)
        self._confirming = False
        self.finished = asyncio.Event()

    @property
    def ending(self) -> bool:
        """Whether it was cut already; its end takes a moment."""
        return self._cut.done()

    def cut(self, reason: str, event: SessionEvent) -> None:
        """End the connection; its will is published unless the broker stops.

        Args:
            reason: for people.
            event: what that is for its session, if there is one.
        """
        if not self._cut.done():
            self._cut.set_result((event, reason))
        if not self._talking:
            self._writer.transport.abort()

    async def serve(self) -> None:
        """Serve the connection until its end."""
        state: ClientSession | None = None
        try:
            session = await self._authenticated()
            if session is None:
                return
            self._identified()
            self.holder = session.attributes.get(IDENTITY)
            state = await self._hub.attach(self, session)
            if state is None:
                return
            await self._talk(state, session)
        except PeerError as error:
            self._hub.counts["packets_malformed"] += 1
            self._hub.session_log.say(SessionEvent.REFUSED, peer(self._writer), str(error))
        except (OSError, TransientError, EOFError) as error:
            self._hub.session_log.say(SessionEvent.REFUSED, peer(self._writer), repr(error))
        finally:
            if state is not None:
                self._hub.detach(self, state)
            self._writer.transport.abort()
            self.finished.set()

    async def _talk(self, state: ClientSession, session: Any) -> None:
        self._talking, event, reason = True, SessionEvent.LOST, ""
        self._hub.session_log.say(SessionEvent.OPENED, state.id)
        tasks = [asyncio.create_task(work) for work in (self._read(state), self._send(state), self._confirm())]
        waited: list[asyncio.Future[Any]] = [*tasks, self._cut]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._cut.done():
                event, reason = self._cut.result()
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if results[0] is True:
            self._hub.session_log.say(SessionEvent.ENDED, state.id)
            return
        fault = next((r for r in results if isinstance(r, Exception)), None)
        if isinstance(fault, PeerError):
            self._hub.counts["packets_malformed"] += 1
            event = SessionEvent.REFUSED
        self._hub.session_log.say(event, state.id, repr(fault) if fault is not None else reason)
        self._hub.detach(self, state)
        await self._hub.publish_will(session)

    async def _authenticated(self) -> Any:
        """Read CONNECT and find out who it is; nothing that is stored is looked at before."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            first, body = await self._packet(CONNECT_BYTES_MAX)
        if first >> 4 != packets.CONNECT:
            raise PeerError(f"found packet type {first >> 4}, expected a CONNECT first", reason="packet")
        try:
            connect = packets.read_connect(body)
        except packets.OtherVersionError:
            await self._write(packets.connack(packets.BAD_PROTOCOL))
            raise
        session = Session()
        session.client_id = connect.client_id
        session.clean_session = connect.clean
        session.ssl_object = self._writer.get_extra_info("ssl_object")
        session.will_flag = connect.will is not None
        if connect.will is not None:
            session.will_topic, session.will_message = connect.will.topic, connect.will.payload
            session.will_qos, session.will_retain = connect.will.qos, connect.will.retain
        self._keepalive_s = min(connect.keepalive_s or KEEPALIVE_MAX_S, KEEPALIVE_MAX_S)
        if not await self._hub.authenticate(session):
            await self._write(packets.connack(packets.NOT_AUTHORISED))
            return None
        return session

    async def accept(self, session_present: bool) -> None:
        """Send the CONNACK."""
        await self._write(packets.connack(packets.ACCEPTED, session_present=session_present))

    async def _packet(self, bytes_max: int) -> tuple[int, bytes]:
        """The next packet: its first byte and its body."""
        first = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            length |= (digit & 127) << shift
            shift += 7
            if not digit & 128:
                break
            if shift == 7 * packets.LENGTH_BYTES_MAX:
                raise PeerError("packet: found a length of more than four bytes, expected four", reason="packet")
        packets.check_header(first, length, bytes_max)
        return first, await self._reader.readexactly(length)

    async def _read(self, state: ClientSession) -> bool:
        """Handle packets in order; returns True after a DISCONNECT."""
        while True:
            await self._take_turns()
            async with asyncio.timeout(self._keepalive_s * 1.5):
                first, body = await self._packet(PACKET_BYTES_MAX)
            match first >> 4:
                case packets.PUBLISH:
                    await self._publish(state, packets.read_publish(first, body))
                case packets.PUBACK:
                    self._hub.acknowledged(state, packets.read_puback(body))
                case packets.SUBSCRIBE:
                    await self._subscribe(state, packets.read_filters(packets.SUBSCRIBE, body))
                case packets.UNSUBSCRIBE:
                    asked = packets.read_filters(packets.UNSUBSCRIBE, body)
                    for topic_filter, _ in asked.filters:
                        self._hub.unsubscribe(state, topic_filter)
                        await self._take_turns()
                    await self._write(packets.unsuback(asked.packet_id))
                case packets.PINGREQ:
                    packets.read_nothing(body)
                    await self._write(packets.PINGRESP)
                case packets.DISCONNECT:
                    packets.read_nothing(body)
                    return True
                case _:
                    raise PeerError("packet: found a second CONNECT, expected one a connection", reason="packet")

    async def _take_turns(self) -> None:
        """Let the others go on, once this connection had `TURN_S`.

        What has come already is read, and handled, without waiting for anything: half a megabyte of the smallest
        packets, or one packet of ten thousand filters, would stop everybody else for seconds.
        """
        clock = asyncio.get_running_loop().time
        if clock() >= self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = clock() + TURN_S

    async def _publish(self, state: ClientSession, packet: packets.Publish) -> None:
        message = Outbound(packet.topic, packet.payload, packet.qos, packet.retain)
        written = await self._hub.publish(state.session, message)
        if packet.qos:
            # After routing: a full subscriber holds its publishers back, and they keep what is not acknowledged.
            if written is None and not self._confirming and self._unconfirmed.empty():
                await self._write(packets.puback(packet.packet_id))
            else:
                await self._unconfirmed.put((packet.packet_id, written))

    async def _confirm(self) -> None:
        """Send PUBACKs in the order of their PUBLISH packets (§4.6), each when what must survive of it is stored."""
        while True:
            packet_id, written = await self._unconfirmed.get()
            self._confirming = True
            if written is not None:
                await asyncio.wait([written])
                if written.cancelled():
                    raise TransientError("the broker stopped before a message was stored")
            await self._write(packets.puback(packet_id))
            self._confirming = False

    async def _subscribe(self, state: ClientSession, packet: packets.Filters) -> None:
        codes = []
        for topic_filter, qos in packet.filters:
            codes.append(await self._hub.subscribe(state, topic_filter, qos))
            await self._take_turns()
        await self._write(packets.suback(packet.packet_id, codes))
        for (topic_filter, _), code in zip(packet.filters, codes, strict=True):
            if code != packets.REFUSED:
                await self._hub.send_retained(state, topic_filter, code)

    async def _send(self, state: ClientSession) -> None:
        """Send what is queued; begins with what an earlier connection did not see acknowledged."""
        for unacknowledged, message in list(state.inflight.items()):
            await self._send_message(unacknowledged, message, duplicate=True)
        while True:
            packet_id, message = await state.next()
            await self._send_message(packet_id, message, duplicate=message.duplicate)

    async def _send_message(self, packet_id: int | None, message: Outbound, *, duplicate: bool) -> None:
        await self._write(
            packets.publish(
                message.topic,
                message.payload,
                message.qos,
                packet_id=packet_id,
                retain=message.retain,
                duplicate=duplicate,
            )
        )

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(STALL_S):
            await self._writer.drain()

    async def close(self) -> None:
        """Wait a moment for the end of a connection that was cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self.finished.wait()


def peer(writer: asyncio.StreamWriter) -> str:
    """Address of a connection that has no name yet."""
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else "unknown"
