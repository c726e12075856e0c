"""The clock that shells own: machines get its reading as an argument."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell takes the time from; the simulator and the tests put their own in its place."""

    def now(self) -> float:
        """Epoch seconds (UTC). May jump when the system's clock is set."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""


class SystemClock:
    """The operating system's clock."""

    __slots__ = ()

    def now(self) -> float:
        """Epoch seconds (UTC). May jump when the system's clock is set."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        return time.monotonic()
