"""Batches of changes on their way to the store: everything that comes while one batch is written goes into the next.

So the number of synchronisations follows the disk and not the messages, and a message that its subscriber
acknowledges before its batch begins is never written at all.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from vedette_broker.session import Outbound
from vedette_broker.store import Batch, Kept, Store
from vedette_schemas.topics import Role

log = logging.getLogger("vedette.broker")

RETRY_S: Final = 1.0
"""Until a batch that could not be written is tried again; its publishers get no PUBACK before."""

_SESSION: Final = "INSERT OR REPLACE INTO sessions VALUES (?, ?)"
_FILTER: Final = "INSERT OR REPLACE INTO filters VALUES (?, ?, ?)"
_NO_FILTER: Final = "DELETE FROM filters WHERE client = ? AND filter = ?"
_FORGET: Final = tuple(f"DELETE FROM {table} WHERE client = ?" for table in ("messages", "filters", "sessions"))

Written = asyncio.Future[None]


class Journal:
    """Records changes and writes them in batches.

    Args:
        store: the file.
        counts: where `store_batches` and `store_failures` are counted.
    """

    def __init__(self, store: Store, counts: Counter[str]) -> None:
        self._store, self._counts = store, counts
        self._position = store.last_position()
        self._stored = store.retained_topics()
        self._batch, self._written = Batch(), asyncio.get_running_loop().create_future()
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="broker-store")
        self._task = asyncio.create_task(self._write(), name="broker-store")

    def next_position(self) -> int:
        """A place for a message behind every other."""
        self._position += 1
        return self._position

    def retain(self, topic: str, kept: Kept | None) -> Written | None:
        """Record what is retained on a topic now; the future is done when that is durable. None: nothing has to be."""
        if kept is None and topic not in self._stored:
            # While the disk is full, a client that clears ever new topics would fill the memory.
            self._batch.retained.pop(topic, None)
            return None
        self._batch.retained[topic] = kept
        return self._recorded()

    def add(self, client: str, message: Outbound) -> Written:
        """Record a message that waits for a client's PUBACK; the future is done when that is durable."""
        self._batch.added[message.position] = (client, message)
        return self._recorded()

    def remove(self, position: int) -> None:
        """Record that a message was acknowledged."""
        if self._batch.added.pop(position, None) is None:
            self._batch.removed.add(position)
            self._recorded()

    def keep(self, client: str, role: Role) -> Written:
        """Record a session that outlives its connection."""
        return self._session(_SESSION, client, role.value)

    def subscribe(self, client: str, topic_filter: str, qos: int) -> Written:
        """Record a kept session's subscription."""
        return self._session(_FILTER, client, topic_filter, qos)

    def unsubscribe(self, client: str, topic_filter: str) -> Written:
        """Record that a kept session left a filter."""
        return self._session(_NO_FILTER, client, topic_filter)

    def forget(self, client: str) -> None:
        """Record that a session is over: its filters and messages go with it."""
        added = self._batch.added
        for position in [p for p, (owner, _) in added.items() if owner == client]:
            del added[position]
        for statement in _FORGET:
            self._session(statement, client)

    def _session(self, statement: str, *values: str | int) -> Written:
        self._batch.sessions.append((statement, values))
        return self._recorded()

    def _recorded(self) -> Written:
        self._wake.set()
        return self._written

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, written = self._batch, self._written
            self._batch, self._written = Batch(), loop.create_future()
            self._stored |= {topic for topic, kept in batch.retained.items() if kept}
            failed = False
            while batch:
                try:
                    await loop.run_in_executor(self._thread, self._store.apply, batch)
                    break
                except sqlite3.Error as fault:
                    self._counts["store_failures"] += 1
                    if not failed:
                        log.error(
                            "%s: could not be written (%s); publishers wait until it can", self._store.path, fault
                        )
                    if self._closing:
                        written.cancel()
                        return
                    failed = True
                    await asyncio.sleep(RETRY_S)
            if failed:
                log.warning("%s: can be written again", self._store.path)
            self._counts["store_batches"] += 1
            self._stored -= {topic for topic, kept in batch.retained.items() if not kept}
            if not written.done():
                written.set_result(None)
            if self._closing and not self._batch:
                return

    async def close(self) -> None:
        """Write what is recorded, once, and close the file."""
        self._closing = True
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)
        self._written.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()
