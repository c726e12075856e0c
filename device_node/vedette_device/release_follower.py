"""When a node looks at the signed release metadata: when something changed, again after a failure, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

REFRESH_S: Final = 3600.0
"""Seconds between two looks when nothing announces a change: metadata that went stale show."""
REFRESH_RETRY_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)


class ReleaseFollower:
    """Calls a refresh whenever it is due.

    Args:
        refresh: looks at the metadata; tells whether it could.
        connected: whether there is a session to look through.
    """

    def __init__(self, refresh: Callable[[], Awaitable[bool]], connected: Callable[[], bool]) -> None:
        self._refresh, self._connected = refresh, connected
        self._wanted = asyncio.Event()

    def want(self) -> None:
        """Something changed: look soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Look, until cancelled."""
        failures = 0
        while True:
            wait_s = REFRESH_RETRY_S[min(failures, len(REFRESH_RETRY_S)) - 1] if failures else REFRESH_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), wait_s)
            self._wanted.clear()
            if self._connected():
                failures = 0 if await self._refresh() else failures + 1
