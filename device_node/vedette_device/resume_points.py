"""Where a followed source goes on after a restart, so that no window is lost or cut in half.

What a source has delivered is not yet scored: part of it lies in windows that are still open, and is gone when the
process ends. So a stream remembers where it stood before each read, and goes back to the newest such place from which
every window that was not taken over is read whole. Windows that come a second time are left out by the detector.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from vedette_device.features.windows import Window

POINTS_MAX: Final = 256
"""Most places kept. When they are used up, reading goes on and a restart goes back further."""

STEP_BACK_S: Final = 3_600.0
"""Time that runs back this far begins anew: the windower drops what it had, too."""


class ResumePoints:
    """The places of one stream.

    Args:
        begin: where the stream began; None for the start of its source.
    """

    def __init__(self, begin: bytes | None = None) -> None:
        # Position and newest event time before it.
        self._points: deque[tuple[bytes | None, float]] = deque([(begin, -math.inf)])
        self._newest_s = -math.inf
        self._returned_s = self._taken_s = -math.inf

    def before_read(self, position: Callable[[], bytes]) -> None:
        """Note where the source stands; all windows that were returned before are taken over now."""
        self._taken_s = self._returned_s
        if self._newest_s > self._points[-1][1] and len(self._points) < POINTS_MAX:
            self._points.append((position(), self._newest_s))
        # All that was read before the next place lies in windows that were taken over.
        while len(self._points) > 1 and self._points[1][1] < self._taken_s:
            self._points.popleft()

    def after_read(self, newest_s: float | None, windows: Sequence[Window]) -> None:
        """Note what a read brought.

        Args:
            newest_s: latest event time of the records, None where there were none.
            windows: what is handed on.
        """
        if newest_s is not None:
            if newest_s < self._newest_s - STEP_BACK_S:
                self._newest_s = self._returned_s = self._taken_s = -math.inf
                self._points = deque([(self._points[-1][0], -math.inf)])
            self._newest_s = max(self._newest_s, newest_s)
        if windows:
            self._returned_s = max(self._returned_s, max(window.end_s for window in windows))

    def best(self) -> bytes | None:
        """Where to go on after a restart; None for the start of the source."""
        return self._points[0][0]
