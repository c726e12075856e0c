"""When a node looks at the signed release metadata: when something changed, again after a failure, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger("vedette.releases")

REFRESH_S: Final = 3600.0
"""Seconds between two looks when nothing announces a change: metadata that went stale show."""
REFRESH_RETRY_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
CHASED_MAX: Final = 10
"""Looks for what was announced and does not come: some minutes. An announcement is not signed, and may be a lie."""


class ReleaseFollower:
    """Calls a refresh whenever it is due.

    What is announced and what is retained may differ for a while: in a cluster, the server that a node is connected to
    can hand out the retained file from before after it has passed on the news of the next one. So a look that ends
    below the announced version counts as failed, and is repeated.

    Args:
        refresh: looks at the metadata; tells whether it could.
        connected: whether there is a session to look through.
        reached: version of the timestamp file that the last look verified.
    """

    def __init__(
        self, refresh: Callable[[], Awaitable[bool]], connected: Callable[[], bool], reached: Callable[[], int]
    ) -> None:
        self._refresh, self._connected, self._reached = refresh, connected, reached
        self._wanted = asyncio.Event()
        self._announced = self._chased = 0

    def want(self) -> None:
        """Something changed: look soon."""
        self._wanted.set()

    def announced(self, version: int) -> None:
        """A timestamp file was published: look soon, unless it is known.

        Args:
            version: what it says of itself, unverified; 0 if that cannot be read.
        """
        # An older one may come behind the news of a newer one, from the same server.
        self._announced = max(self._announced, version)
        if not 0 < version <= self._reached():
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
                failures = 0 if await self._refresh() and not self._is_behind() else failures + 1

    def _is_behind(self) -> bool:
        """Whether to look for what was announced again; only looks that could be made count for `CHASED_MAX`."""
        if self._announced > self._reached():
            self._chased += 1
            if self._chased <= CHASED_MAX:
                return True
            log.warning("timestamp %d was announced, and %d is the newest that comes", self._announced, self._reached())
        self._announced = self._chased = 0
        return False
