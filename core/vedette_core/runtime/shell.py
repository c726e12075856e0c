"""Carries out what machines ask for, in the order in which they ask for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from vedette_core.machine import Count, Effect, Note, Persist, Publish, Subscribe, Unsubscribe
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import Outbox, OutboxMessage, StateStore
from vedette_schemas.errors import TransientError, VedetteError

log = logging.getLogger("vedette.shell")

DISK_RETRY_S: Final = 1.0
SAID_S: Final = 5.0
"""How long last words may take to leave. Who ends politely without them has no will either, and seems to be there."""
QUEUE_MAX: Final = 10_000
"""Publications that wait for the connection in memory; what has a receipt waits in the outbox all the same."""
RESEND_BATCH: Final = 1000
"""Messages that are read from the outbox at once, so that a long outage does not fill the memory."""

Special = Callable[[Effect], Awaitable[None]]


class Link(Protocol):
    """What a shell needs of the MQTT session."""

    @property
    def connected(self) -> bool:
        """Whether there is a session now."""

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; with QoS 1, return when the broker has it."""

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """Subscribe now and after every reconnect."""

    async def unsubscribe(self, topic_filter: str) -> None:
        """Leave a filter."""


class Shell:
    """The hands of a component's machines.

    Publications leave in order through one worker; those with a receipt id are in the outbox first and leave again
    until their receipt has come.

    Args:
        link: the MQTT session.
        store: where machines persist.
        metrics: the component's metrics.
        outbox: where messages wait for receipts; None in a component that sends none.
        resend_s: seconds after which a message without a receipt is sent again.
    """

    def __init__(
        self, link: Link, store: StateStore, metrics: Metrics, outbox: Outbox | None = None, resend_s: float = 30.0
    ) -> None:
        self._link, self._store, self._metrics, self._outbox = link, store, metrics, outbox
        self._resend_s = resend_s
        self._queue: asyncio.Queue[Publish] = asyncio.Queue(QUEUE_MAX)
        self._sent_at: dict[str, float] = {}
        self.on_published: Callable[[Publish], None] | None = None
        self.on_dropped: Callable[[OutboxMessage], None] | None = None

    async def carry_out(
        self, effects: Sequence[Effect], special: Special | None = None, *, must_persist: bool = True
    ) -> None:
        """Carry effects out, one after the other.

        Args:
            effects: what a machine returned.
            special: takes the effects that only the component knows.
            must_persist: wait for room when the disk is full, so that nothing is published that is not persisted;
                without it the write is given up with a warning, for state that may be lost.
        """
        for effect in effects:
            match effect:
                case Persist(key=key, value=value):
                    await self._persist(key, value, must_persist)
                case Publish():
                    self.publish(effect)
                case Subscribe(topic_filter=topic_filter, qos=qos):
                    await self._link.subscribe(topic_filter, qos)
                case Unsubscribe(topic_filter=topic_filter):
                    await self._link.unsubscribe(topic_filter)
                case Count(metric=metric, outcome=outcome, task=task, kind=kind):
                    self._metrics.count(metric, task=task, kind=kind, outcome=outcome)
                case Note(level=level, text=text):
                    log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
                case _ if special is not None:
                    await special(effect)
                case _:
                    raise AssertionError(f"nobody carries out {effect!r}")

    def receipt(self, message_id: str) -> OutboxMessage | None:
        """Take a receipt; returns the message that it ends, if it still waited."""
        self._sent_at.pop(message_id, None)
        return None if self._outbox is None else self._outbox.take_receipt(message_id)

    async def run(self) -> None:
        """Send publications, until cancelled."""
        resender = asyncio.create_task(self._resend())
        try:
            while True:
                publication = await self._queue.get()
                try:
                    await self._send(publication)
                finally:
                    self._queue.task_done()
        finally:
            resender.cancel()

    async def _send(self, publication: Publish) -> None:
        if not self._link.connected:
            if publication.receipt_id is not None:
                self._sent_at.pop(publication.receipt_id, None)
            return
        try:
            await self._link.publish(
                publication.topic, publication.payload, qos=publication.qos, retain=publication.retain
            )
            if self.on_published is not None:
                self.on_published(publication)
        except VedetteError as error:
            log.warning("publish %s: %s", publication.topic, error)

    def flush(self) -> None:
        """Send everything again that has no receipt: after a reconnect."""
        self._sent_at.clear()
        self._queue_due()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until every receipt has come; tells whether it did in time."""
        limit = time.monotonic() + timeout_s
        while time.monotonic() < limit:
            if self._queue.empty() and (self._outbox is None or self._outbox.messages == 0):
                return True
            await asyncio.sleep(0.05)
        return False

    async def said(self, timeout_s: float = SAID_S) -> bool:
        """Wait until everything has left, receipts aside; tells whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            return False
        return True

    async def _persist(self, key: str, value: bytes | None, must: bool) -> None:
        warned = False
        while True:
            try:
                self._store.put(key, value)
            except TransientError as error:
                if not warned:
                    log.warning("%s", error)
                    warned = True
                if not must:
                    return
                await asyncio.sleep(DISK_RETRY_S)
            else:
                return

    def publish(self, effect: Publish) -> None:
        """Put one message on its way; with a receipt id, through the outbox."""
        if effect.receipt_id is not None and self._outbox is not None:
            message = OutboxMessage(
                effect.receipt_id, effect.topic, effect.payload, effect.qos, effect.retain, effect.severity
            )
            self._sent_at[effect.receipt_id] = time.monotonic()
            for dropped in self._outbox.add(message):
                self._sent_at.pop(dropped.id, None)
                if self.on_dropped is not None:
                    self.on_dropped(dropped)
        self._offer(effect)

    def _offer(self, effect: Publish) -> None:
        try:
            self._queue.put_nowait(effect)
        except asyncio.QueueFull:
            if effect.receipt_id is None:
                self._metrics.inc("messages", "publication", "dropped")

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(self._resend_s / 4)
            self._queue_due()

    def _queue_due(self) -> None:
        if self._outbox is None or not self._link.connected or not self._queue.empty():
            return
        now = time.monotonic()
        for message in self._outbox.pending(RESEND_BATCH):
            if now - self._sent_at.get(message.id, float("-inf")) < self._resend_s:
                continue
            self._sent_at[message.id] = now
            self._offer(Publish(message.topic, message.payload, message.qos, message.retain, message.id))
