"""One client's connection to the embedded broker: packets are read, and handled, one after the other.

amqtt's own protocol handler authenticates after it has touched stored sessions, drops QoS 1 after five seconds and
enforces no keep-alive; this takes its place and uses amqtt's packets.

Source: MQTT 3.1.1 §3 (packets), §4.3 (QoS), §4.6 (ordering).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.packet import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    MQTTFixedHeader,
)
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.session import Session

from vedette_broker.access import IDENTITY, Holder
from vedette_broker.journal import Written
from vedette_broker.limits import (
    CONNECT_BYTES_MAX,
    CONNECT_TIMEOUT_S,
    KEEPALIVE_MAX_S,
    PACKET_BYTES_MAX,
    STALL_S,
    UNCONFIRMED_MAX,
)
from vedette_broker.session import ClientSession, Outbound

if TYPE_CHECKING:
    from vedette_broker.hub import Hub

log = logging.getLogger("vedette.broker")

ACCEPTED: Final = 0
BAD_PROTOCOL: Final = 1
NOT_AUTHORISED: Final = 5
REFUSED: Final = 0x80
_HANDLED: Final = frozenset({PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT})


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
        self._hub, self._reader, self._writer = hub, _Reader(reader), writer
        self._cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._keepalive_s: float = KEEPALIVE_MAX_S
        self._talking = False
        self._identified = identified
        self.holder: Holder | None = None
        self._unconfirmed: asyncio.Queue[tuple[int, Written | None]] = asyncio.Queue(UNCONFIRMED_MAX)
        self._confirming = False
        self.finished = asyncio.Event()

    def cut(self, reason: str) -> None:
        """End the connection; its will is published unless the broker stops."""
        if not self._cut.done():
            self._cut.set_result(reason)
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
        except (OSError, MQTTError, AMQTTError, CodecError, NoDataError, TimeoutError, ValueError) as error:
            log.debug("connection ended: %r", error)
        finally:
            if state is not None:
                self._hub.detach(self, state)
            self._writer.transport.abort()
            self.finished.set()

    async def _talk(self, state: ClientSession, session: Any) -> None:
        self._talking, reason = True, ""
        tasks = [asyncio.create_task(work) for work in (self._read(state), self._send(state), self._confirm())]
        waited: list[asyncio.Future[Any]] = [*tasks, self._cut]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._cut.done():
                reason = self._cut.result()
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if results[0] is True:
            return
        fault = next((r for r in results if isinstance(r, Exception)), None)
        log.info("%s: connection ended: %s", state.id, repr(fault) if fault is not None else reason)
        self._hub.detach(self, state)
        await self._hub.publish_will(session)

    async def _authenticated(self) -> Any:
        """Read CONNECT and find out who it is; nothing that is stored is looked at before."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            header = await MQTTFixedHeader.from_stream(self._reader)
            if header is None or header.packet_type != CONNECT or header.remaining_length > CONNECT_BYTES_MAX:
                raise MQTTError("the first packet is not a CONNECT of sensible size")
            body = _Body(await self._reader.read(header.remaining_length))
        if body.data[:7] != b"\x00\x04MQTT\x04":
            # Another version's CONNECT must not be parsed as if it were ours.
            await self._write(ConnackPacket.build(0, BAD_PROTOCOL))
            return None
        packet = await packet_class(header).from_stream(body, fixed_header=header)
        if packet.variable_header.reserved_flag or packet.payload.client_id_is_random or not packet.client_id:
            raise MQTTError("reserved flag set, or no client id")
        if packet.will_flag and (packet.will_topic is None or packet.will_message is None or packet.will_qos > 1):
            raise MQTTError("will without topic or message, or of QoS 2")
        session = Session()
        session.client_id = packet.client_id
        session.clean_session = packet.clean_session_flag
        session.ssl_object = self._writer.get_extra_info("ssl_object")
        session.will_flag = packet.will_flag
        session.will_topic, session.will_message = packet.will_topic, packet.will_message
        session.will_qos, session.will_retain = packet.will_qos, packet.will_retain_flag
        self._keepalive_s = min(packet.keep_alive or KEEPALIVE_MAX_S, KEEPALIVE_MAX_S)
        if not await self._hub.authenticate(session):
            await self._write(ConnackPacket.build(0, NOT_AUTHORISED))
            return None
        return session

    async def accept(self, session_present: bool) -> None:
        """Send the CONNACK."""
        await self._write(ConnackPacket.build(int(session_present), ACCEPTED))

    async def _read(self, state: ClientSession) -> bool:
        """Handle packets in order; returns True after a DISCONNECT."""
        while True:
            async with asyncio.timeout(self._keepalive_s * 1.5):
                header = await MQTTFixedHeader.from_stream(self._reader)
                if header is None:
                    raise NoDataError("closed by the client")
                if header.packet_type not in _HANDLED or header.remaining_length > PACKET_BYTES_MAX:
                    raise MQTTError(f"packet type {header.packet_type} of {header.remaining_length} bytes")
                body = _Body(await self._reader.read(header.remaining_length))
            packet = await packet_class(header).from_stream(body, fixed_header=header)
            match header.packet_type:
                case kind if kind == PUBLISH:
                    await self._publish(state, packet)
                case kind if kind == PUBACK:
                    self._hub.acknowledged(state, packet.variable_header.packet_id)
                case kind if kind == SUBSCRIBE:
                    await self._subscribe(state, packet)
                case kind if kind == UNSUBSCRIBE:
                    await self._unsubscribe(state, packet)
                case kind if kind == PINGREQ:
                    await self._write(PingRespPacket.build())
                case _:
                    return True

    async def _publish(self, state: ClientSession, packet: Any) -> None:
        if packet.qos > 1 or (packet.qos and not packet.packet_id):
            raise MQTTError("PUBLISH of QoS 2, which is not part of the contract, or without a packet id")
        message = Outbound(packet.topic_name, bytes(packet.data or b""), packet.qos, bool(packet.retain_flag))
        written = await self._hub.publish(state.session, message)
        if packet.qos:
            # After routing: a full subscriber holds its publishers back, and they keep what is not acknowledged.
            if written is None and not self._confirming and self._unconfirmed.empty():
                await self._write(PubackPacket.build(packet.packet_id))
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
                    raise NoDataError("the broker stopped before a message was stored")
            await self._write(PubackPacket.build(packet_id))
            self._confirming = False

    async def _subscribe(self, state: ClientSession, packet: Any) -> None:
        asked = packet.payload.topics
        if packet.fixed_header.flags != 2 or not asked:
            raise MQTTError("SUBSCRIBE with wrong flags or without filters")
        codes = [await self._hub.subscribe(state, topic_filter, qos) for topic_filter, qos in asked]
        await self._write(SubackPacket.build(packet.variable_header.packet_id, codes))
        for (topic_filter, _), code in zip(asked, codes, strict=True):
            if code != REFUSED:
                await self._hub.send_retained(state, topic_filter, code)

    async def _unsubscribe(self, state: ClientSession, packet: Any) -> None:
        if packet.fixed_header.flags != 2 or not packet.payload.topics:
            raise MQTTError("UNSUBSCRIBE with wrong flags or without filters")
        for topic_filter in packet.payload.topics:
            self._hub.unsubscribe(state, topic_filter)
        await self._write(UnsubackPacket.build(packet.variable_header.packet_id))

    async def _send(self, state: ClientSession) -> None:
        """Send what is queued; begins with what an earlier connection did not see acknowledged."""
        for unacknowledged, message in list(state.inflight.items()):
            await self._send_message(unacknowledged, message, duplicate=True)
        while True:
            packet_id, message = await state.next()
            await self._send_message(packet_id, message, duplicate=False)

    async def _send_message(self, packet_id: int | None, message: Outbound, *, duplicate: bool) -> None:
        packet = PublishPacket.build(message.topic, message.payload, packet_id, duplicate, message.qos, message.retain)
        await self._write(packet)

    async def _write(self, packet: Any) -> None:
        self._writer.write(packet.to_bytes())
        async with asyncio.timeout(STALL_S):
            await self._writer.drain()

    async def close(self) -> None:
        """Wait a moment for the end of a connection that was cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self.finished.wait()


class _Reader:
    """amqtt's reader interface on a stream; the end of the stream is `NoDataError`."""

    __slots__ = ("_stream",)

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def read(self, n: int) -> bytes:
        try:
            return await self._stream.readexactly(n)
        except asyncio.IncompleteReadError as fault:
            raise NoDataError("closed by the client") from fault


class _Body:
    """amqtt's reader interface on one packet's body: no field can run past its end."""

    __slots__ = ("_offset", "data")

    def __init__(self, data: bytes) -> None:
        self.data, self._offset = data, 0

    async def read(self, n: int = -1) -> bytes:
        end = len(self.data) if n < 0 else self._offset + n
        if end > len(self.data):
            raise MQTTError("a field runs past the end of its packet")
        part = self.data[self._offset : end]
        self._offset = end
        return part
