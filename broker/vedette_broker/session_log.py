"""What becomes of sessions, as log lines of one form: ``session opened: dev-07``, ``session lost: dev-07: why``.

A gateway that follows the broker's log counts them by that form (`vedette_device.sources.broker_log`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Final

log = logging.getLogger("vedette.broker")

PERIOD_S: Final = 60.0
LINES_MAX: Final = 300
"""Lines of one event in `PERIOD_S`: a storm shows long before, and whoever reaches the port writes at most some 20 MB a
day and event."""


class SessionEvent(StrEnum):
    """What became of a session, or of a connection that wanted one."""

    OPENED = "opened"
    ENDED = "ended"
    """Its client said DISCONNECT."""
    LOST = "lost"
    """Keep-alive or network."""
    REFUSED = "refused"
    """No session was given, or the broker ended it: certificate, id, malformed packets, limits."""
    TAKEN_OVER = "taken over"
    """Its client opened another one."""


class SessionLog:
    """Logs session events, of each at most `LINES_MAX` in `PERIOD_S`.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._closed = False
        self._lines: Counter[SessionEvent] = Counter()

    def close(self) -> None:
        """Log nothing more: what ends with the broker did not happen to a session."""
        self._closed = True

    def say(self, event: SessionEvent, who: str, why: str = "", *, level: int = logging.INFO) -> None:
        """Log an event.

        Args:
            event: what happened.
            who: the client's id, or the address where there is none yet.
            why: the reason; may be empty.
            level: of the line.
        """
        now = self._clock()
        if now - self._began >= PERIOD_S:
            self._began = now
            self._lines.clear()
        self._lines[event] += 1
        if self._closed or self._lines[event] > LINES_MAX:
            return
        more = "; more of them are not logged for up to a minute" if self._lines[event] == LINES_MAX else ""
        log.log(level, "session %s: %s%s%s", event.value, who, f": {why}" if why else "", more)
