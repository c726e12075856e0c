"""Reads single retained messages for code that runs in a worker thread: subscribe, take the first, leave again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from vedette_schemas.errors import TransientError

GRACE_S: Final = 1.0
"""How much longer than the loop the thread waits, so that the loop's own error is the one that is seen."""


class Subscriber(Protocol):
    """What is needed of the MQTT session."""

    async def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """Subscribe."""

    async def unsubscribe(self, topic_filter: str) -> None:
        """Leave."""


class RetainedReader:
    """A `vedette_device.trust.Fetch` over a live session.

    Args:
        link: the session.
        loop: the loop that the session runs on.
        kept: topics that somebody else is subscribed to all the time: they are asked for again, and never left.
    """

    def __init__(self, link: Subscriber, loop: asyncio.AbstractEventLoop, kept: Collection[str] = ()) -> None:
        self._link, self._loop, self._kept = link, loop, frozenset(kept)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._readers: dict[str, int] = {}

    def __call__(self, topic: str, timeout_s: float) -> bytes:
        """Return the retained payload of a topic; called from a worker thread.

        Raises:
            TransientError: nothing came within `timeout_s` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(self._read(topic, timeout_s), self._loop)
        try:
            return future.result(timeout_s + GRACE_S)
        except TimeoutError as fault:
            future.cancel()
            raise TransientError(f"{topic}: found nothing retained within {timeout_s:g} s") from fault

    def take(self, topic: str, payload: bytes) -> bool:
        """Offer a message that came in; tells whether somebody waited for it. An empty payload is no message.

        A message behind the one that was waited for is news, and nobody's answer.
        """
        waiting = self._waiting.get(topic)
        if waiting is None or waiting.done():
            return False
        if payload:
            waiting.set_result(payload)
        return True

    async def _read(self, topic: str, timeout_s: float) -> bytes:
        waiting = self._waiting.get(topic)
        if waiting is None:
            waiting = self._waiting[topic] = self._loop.create_future()
        self._readers[topic] = self._readers.get(topic, 0) + 1
        try:
            if self._readers[topic] == 1:
                await self._link.subscribe(topic)
            return await asyncio.wait_for(asyncio.shield(waiting), timeout_s)
        except TimeoutError as fault:
            raise TransientError(f"{topic}: found nothing retained within {timeout_s:g} s") from fault
        finally:
            self._readers[topic] -= 1
            if not self._readers[topic]:
                del self._readers[topic], self._waiting[topic]
                if topic not in self._kept:
                    await self._link.unsubscribe(topic)
