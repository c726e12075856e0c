"""A program's day: actions that recur at irregular intervals."""

from __future__ import annotations

import heapq
import os
import random
import time
from collections.abc import Callable
from typing import Final

Action = Callable[[], None]

TAKE_VARIABLE: Final = "VEDETTE_LAB_TAKE"
"""Environment variable with the number of the recording: every one has pauses of its own."""


class Agenda:
    """Carries out actions, each after a pause drawn anew from its own range.

    Args:
        seed: Seed of the pauses.
    """

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(f"{os.environ.get(TAKE_VARIABLE, '1')} {seed}")
        self._due: list[tuple[float, int, float, float, Action]] = []

    def every(self, low_s: float, high_s: float, action: Action) -> None:
        """Adds an action.

        Args:
            low_s: Shortest pause before it.
            high_s: Longest pause before it.
            action: What to do; an :class:`OSError` in it is printed and otherwise ignored, as a device would.
        """
        at_s = time.monotonic() + self.random.uniform(low_s, high_s)
        heapq.heappush(self._due, (at_s, len(self._due), low_s, high_s, action))

    def run(self) -> None:
        """Goes on until the program is ended from outside."""
        while True:
            at_s, order, low_s, high_s, action = heapq.heappop(self._due)
            time.sleep(max(0.0, at_s - time.monotonic()))
            try:
                action()
            except OSError as error:
                print(f"{action}: {error}", flush=True)
            at_s = max(at_s, time.monotonic() - high_s) + self.random.uniform(low_s, high_s)
            heapq.heappush(self._due, (at_s, order, low_s, high_s, action))
