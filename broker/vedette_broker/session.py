"""What the embedded broker keeps of one client: its queue, and what it has sent and not seen acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vedette_broker.limits import INFLIGHT_MAX, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, STALL_S

if TYPE_CHECKING:
    from vedette_broker.connection import Connection


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message for one client.

    Attributes:
        position: its place in the store, 0 if it is not kept there; its packet id is made of it, so that a message
            keeps that over a restart of the broker.
        duplicate: whether an earlier run of the broker may have sent it.
    """

    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    position: int = 0
    duplicate: bool = False


class ClientSession:
    """One client id's state; outlives connections if the client asked for that and may.

    Args:
        session: amqtt's session of the newest connection, with the verified identity.
        clean: whether the state ends with the connection.
    """

    def __init__(self, session: Any, clean: bool) -> None:
        self.session = session
        self.clean = clean
        self.connection: Connection | None = None
        self.dropping = False
        self.filters: dict[str, int] = {}
        self.inflight: OrderedDict[int, Outbound] = OrderedDict()
        self._queue: deque[Outbound] = deque()
        self._queue_bytes = 0
        self._last_id = 0
        self._wake = asyncio.Event()
        self._space = asyncio.Event()

    @property
    def id(self) -> str:
        """The client id, which is the certificate's common name."""
        return str(self.session.client_id)

    @property
    def waiting(self) -> int:
        """Messages that are queued or not acknowledged."""
        return len(self._queue) + len(self.inflight)

    def restore(self, messages: Iterable[Outbound]) -> None:
        """Queue what an earlier run of the broker kept; what may have been in flight then is marked as duplicate."""
        for number, message in enumerate(messages):
            self._queue.append(replace(message, duplicate=number < INFLIGHT_MAX))
            self._queue_bytes += len(message.payload)
        self._wake.set()

    async def offer(self, message: Outbound, *, wait: bool) -> bool:
        """Queue a message; tells whether it was taken.

        Args:
            message: what to deliver.
            wait: whether a QoS 1 message waits for room in a connected client's queue, up to `STALL_S`.
        """
        if not await self.room(message, wait=wait):
            return False
        self.put(message)
        return True

    async def room(self, message: Outbound, *, wait: bool) -> bool:
        """Tell whether `put` may be called with a message now, before anything else happens; see `offer`."""
        if self._gone(message):
            return False
        if self._full(message) and wait and message.qos and self.connection is not None:
            try:
                async with asyncio.timeout(STALL_S):
                    while self._full(message) and self.connection is not None:
                        self._space.clear()
                        await self._space.wait()
            except TimeoutError:
                return False
        return not self._gone(message) and not self._full(message)

    def put(self, message: Outbound) -> None:
        """Queue a message for which there is room."""
        self._queue.append(message)
        self._queue_bytes += len(message.payload)
        self._wake.set()

    async def next(self) -> tuple[int | None, Outbound]:
        """The next message to send and its packet id; waits for one, and for room in the in-flight window."""
        while not self._queue or (self._queue[0].qos and len(self.inflight) >= INFLIGHT_MAX):
            self._wake.clear()
            await self._wake.wait()
        message = self._queue.popleft()
        self._queue_bytes -= len(message.payload)
        self._space.set()
        if not message.qos:
            return None, message
        packet_id = self._packet_id(message)
        self.inflight[packet_id] = message
        return packet_id, message

    def acknowledged(self, packet_id: int) -> Outbound | None:
        """The client has a QoS 1 message, which is returned; an unknown id is ignored."""
        message = self.inflight.pop(packet_id, None)
        if message is not None:
            self._wake.set()
        return message

    def disconnected(self) -> None:
        """The connection is gone: nobody waits for room any more, QoS 0 messages are dropped."""
        self.connection = None
        kept = [m for m in self._queue if m.qos]
        self._queue = deque(kept)
        self._queue_bytes = sum(len(m.payload) for m in kept)
        self._space.set()

    def _gone(self, message: Outbound) -> bool:
        return self.connection is None and (self.clean or message.qos == 0)

    def _full(self, message: Outbound) -> bool:
        return len(self._queue) >= QUEUE_MESSAGES_MAX or self._queue_bytes + len(message.payload) > QUEUE_BYTES_MAX

    def _packet_id(self, message: Outbound) -> int:
        if message.position:
            packet_id = (message.position - 1) % 65535 + 1
            if packet_id not in self.inflight:
                return packet_id
        while True:
            self._last_id = self._last_id % 65535 + 1
            if self._last_id not in self.inflight:
                return self._last_id
