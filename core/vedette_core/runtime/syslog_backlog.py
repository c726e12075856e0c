"""Messages that wait for a syslog receiver: bounded, in order, the least severe given up first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

RANKS: Final = 4
"""Severities; a message's rank is from 0, given up first, to 3."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that waits.

    Attributes:
        number: its place in the order of arrival.
        rank: from 0, given up first, to 3.
        message: what is sent, without framing.
    """

    number: int
    rank: int
    message: bytes


class Backlog:
    """The messages that wait.

    Args:
        messages_max: most messages at once, 1 or more.

    Attributes:
        messages_max: the same.
    """

    def __init__(self, messages_max: int) -> None:
        if messages_max < 1:
            raise ValueError(f"found room for {messages_max} messages, expected 1 or more")
        self.messages_max = messages_max
        self._by_rank: tuple[deque[Waiting], ...] = tuple(deque() for _ in range(RANKS))

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._by_rank)

    def push(self, item: Waiting) -> Waiting | None:
        """Take a message in; returns the one that there is no room for: the oldest of the lowest rank."""
        self._by_rank[item.rank].append(item)
        return self._shrink()

    def put_back(self, items: Iterable[Waiting]) -> list[Waiting]:
        """Take messages back that were taken out before, in their order; returns those that there is no room for."""
        dropped = []
        for item in reversed(list(items)):
            self._by_rank[item.rank].appendleft(item)
            out = self._shrink()
            if out is not None:
                dropped.append(out)
        return dropped

    def pop(self) -> Waiting | None:
        """Take the message out that has waited longest; None if there is none."""
        queue = min((q for q in self._by_rank if q), key=lambda q: q[0].number, default=None)
        return None if queue is None else queue.popleft()

    def _shrink(self) -> Waiting | None:
        if len(self) <= self.messages_max:
            return None
        return next(queue for queue in self._by_rank if queue).popleft()
