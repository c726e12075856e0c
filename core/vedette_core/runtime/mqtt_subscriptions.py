"""The filters that a session wants, asked for anew after every CONNACK until each has been granted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("vedette.mqtt")

FILTERS_A_SUBSCRIBE: Final = 50
SUBACK_TIMEOUT_S: Final = 10.0
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
"""A refused filter is asked for again after a delay that doubles between these: a cluster refuses during a failover."""

Send = Callable[[Sequence[tuple[str, int]]], int | None]


@dataclass(slots=True)
class _Wanted:
    qos: int
    answered: bool = False
    refusals: int = 0
    timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Subscriptions:
    """Asks for filters and keeps track of the answers.

    Args:
        send: sends one SUBSCRIBE; returns its message id, or None if there is no connection.
        where: the broker, for the log.
    """

    def __init__(self, send: Send, where: str) -> None:
        self._send, self._where = send, where
        self._wanted: dict[str, _Wanted] = {}
        self._asked: dict[int, tuple[str, ...]] = {}
        self._online = False
        self.refused = 0

    @property
    def answered(self) -> bool:
        """Whether every filter was answered on this connection, granted or not."""
        return all(w.answered for w in self._wanted.values())

    @property
    def missing(self) -> list[str]:
        """Filters that are not granted on this connection."""
        return [f for f, w in self._wanted.items() if not w.answered or w.refusals]

    def add(self, topic_filter: str, qos: int) -> None:
        """Want a filter from now on."""
        self.remove(topic_filter)
        self._wanted[topic_filter] = _Wanted(qos)
        self._ask([topic_filter])

    def remove(self, topic_filter: str) -> bool:
        """Want a filter no more; tells whether it was wanted."""
        wanted = self._wanted.pop(topic_filter, None)
        if wanted is not None:
            wanted.cancel()
        return wanted is not None

    def connected(self) -> None:
        """A new connection: ask for everything."""
        self.disconnected()
        self._online = True
        filters = list(self._wanted)
        for i in range(0, len(filters), FILTERS_A_SUBSCRIBE):
            self._ask(filters[i : i + FILTERS_A_SUBSCRIBE])

    def disconnected(self) -> None:
        """The connection is gone, and its answers with it."""
        self._online = False
        self._asked.clear()
        for wanted in self._wanted.values():
            wanted.cancel()
            wanted.answered, wanted.refusals = False, 0

    def take_answer(self, mid: int, granted: Sequence[bool]) -> None:
        """A SUBACK of this connection."""
        for topic_filter, allowed in zip(self._asked.pop(mid, ()), granted, strict=False):
            wanted = self._wanted.get(topic_filter)
            if wanted is None:
                continue
            wanted.cancel()
            wanted.answered = True
            if allowed:
                wanted.refusals = 0
                continue
            self.refused += 1
            if wanted.refusals == 0:
                log.warning("broker %s: refused the subscription to %s; trying again", self._where, topic_filter)
            self._ask_after(topic_filter, min(RETRY_MIN_S * 2**wanted.refusals, RETRY_MAX_S))
            wanted.refusals = min(wanted.refusals + 1, 16)

    def _ask(self, filters: Iterable[str]) -> None:
        asked = tuple(f for f in filters if f in self._wanted)
        if not asked or not self._online:
            return
        mid = self._send([(f, self._wanted[f].qos) for f in asked])
        if mid is not None:
            self._asked[mid] = asked
        for topic_filter in asked:
            self._ask_after(topic_filter, SUBACK_TIMEOUT_S)

    def _ask_after(self, topic_filter: str, delay_s: float) -> None:
        wanted = self._wanted[topic_filter]
        wanted.cancel()
        wanted.timer = asyncio.get_running_loop().call_later(delay_s, self._ask, (topic_filter,))
