"""Simulated time: what happens next happens at once."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Final

STEPS_MAX: Final = 400_000
"""A run that takes more steps has gone round in circles."""


class Scheduler:
    """Carries out what was scheduled, in the order of its time, and of its scheduling where times are the same."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """Schedule something `delay_s` from now."""
        heapq.heappush(self._queue, (self.now + max(0.0, delay_s), next(self._order), what))

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `until_s`, or until `done`."""
        while self._queue and self._queue[0][0] <= until_s:
            if done():
                return
            self.now, _, what = heapq.heappop(self._queue)
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise AssertionError(f"{STEPS_MAX} steps at {self.now:.1f} s: the fleet goes round in circles")
            what()
            self.after_step()
        if not done():
            self.now = until_s
