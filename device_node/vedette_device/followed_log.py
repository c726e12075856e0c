"""A file of records that is read to its end, or followed while it grows, cut into windows by the records' own times."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from vedette_device.features.windows import Window
from vedette_device.resume_points import ResumePoints
from vedette_device.sources.errors import SourceError
from vedette_device.sources.line_follower import LinePosition
from vedette_device.window_stream import AWAY_RETRY_S, POLL_S
from vedette_schemas.errors import TransientError

log = logging.getLogger("vedette.streams")

LINES_A_READ: Final = 1_024
"""Lines of one read: 10 to 20 ms of parsing, so that the event loop stays awake."""

OWN_CLOCK_S: Final = 600.0
"""A file whose newest record is so young is written now, and on a clock that agrees with ours."""

R = TypeVar("R")
_R_in = TypeVar("_R_in", contravariant=True)
_R_out = TypeVar("_R_out", covariant=True)


class RecordSource(Protocol[_R_out]):
    """Records of a file of lines."""

    def read(self, lines_max: int, /) -> Sequence[_R_out] | None:
        """The records of the next lines, perhaps none; None at the end."""

    def position(self) -> LinePosition:
        """Where it is."""

    def counters(self) -> Mapping[str, int]:
        """Counts by name; ``lines`` are those read."""

    def close(self) -> None:
        """Let go of the file."""


class RecordWindower(Protocol[_R_in]):
    """Makes windows of records."""

    newest_s: float

    def push(self, records: Sequence[_R_in], /) -> list[Window]:
        """The windows that these records closed."""

    def advance(self, now_s: float) -> list[Window]:
        """The windows that time alone closed."""

    def flush(self) -> list[Window]:
        """What is still open."""

    def counters(self) -> Mapping[str, int]:
        """Counts by name."""


class FollowedLog(Generic[R]):
    """What a `WindowStream` of such a file does.

    Args:
        path: the file.
        follow: whether it grows.
        position: where to go on, as ``position`` returned it; one that is unreadable or no longer fits is logged.
        open_at: opens the source there; at its start for None.
        windower: cuts its records.
        time_of: a record's time, seconds since the epoch.
        quiet_s: seconds for which a file that grows may be quiet before our clock closes its windows.
        clock: seconds since the epoch.

    Raises:
        SourceError: the file cannot be opened.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self,
        path: Path,
        *,
        follow: bool,
        position: bytes | None,
        open_at: Callable[[LinePosition | None], RecordSource[R]],
        windower: RecordWindower[R],
        time_of: Callable[[R], float],
        quiet_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.recorded = not follow
        self._windower, self._time_of, self._quiet_s, self._clock = windower, time_of, quiet_s, clock
        start: LinePosition | None = None
        if position is not None and follow:
            try:
                start = LinePosition.from_bytes(position)
            except SourceError as error:
                log.warning("%s: %s", path, error)
        try:
            self._source = open_at(start)
        except SourceError as error:
            if start is None:
                raise
            log.warning("%s: %s", path, error)
            self._source = open_at(None)
        self._points = ResumePoints(self._source.position().to_bytes())
        self._ended = False

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        if self._ended:
            return None
        self._points.before_read(lambda: self._source.position().to_bytes())
        before = self._source.counters()["lines"]
        try:
            records = self._source.read(LINES_A_READ)
        except TransientError as error:
            log.warning("%s", error)
            await asyncio.sleep(AWAY_RETRY_S)
            return []
        if records is None:
            self._ended = True
            return self._windower.flush()
        if records:
            windows = self._windower.push(records)
            self._points.after_read(max(map(self._time_of, records)), windows)
            return windows
        if self._source.counters()["lines"] > before:
            return []  # lines, and none of them a record: go on reading
        await asyncio.sleep(POLL_S)
        now_s, windows = self._clock(), []
        if not self.recorded and 0.0 <= now_s - self._windower.newest_s <= OWN_CLOCK_S:
            windows = self._windower.advance(now_s - self._quiet_s)
        self._points.after_read(None, windows)
        return windows

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {**self._source.counters(), **{f"window_{k}": n for k, n in self._windower.counters().items()}}

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return None if self.recorded else self._points.best()

    async def close(self) -> None:
        """See `WindowStream.close`."""
        self._source.close()
