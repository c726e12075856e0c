"""What a host does, as windows of named counts: looked at once a minute, or read from a file of counts."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from vedette_core.learning.hashing import KEY_BYTES_MAX, KEY_BYTES_MIN, FeatureHasher
from vedette_device.features.behaviour import BehaviourWindower
from vedette_device.features.windows import Window
from vedette_device.followed_log import FollowedLog
from vedette_device.place_names import PlaceNames
from vedette_device.settings import BehaviourSection
from vedette_device.sources.count_lines import CountLines
from vedette_device.sources.counts import COUNT_MAX, NAMES_MAX, NamedCounts
from vedette_device.sources.host import HostBehaviour
from vedette_device.sources.line_follower import LineFollower
from vedette_device.sources.log_lines import LogLineCounts
from vedette_device.window_stream import POLL_S, missing
from vedette_schemas.errors import ConfigError, TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.streams")

LINES_A_READ: Final = 1_024
"""Lines of one read of a file: some 10 ms of parsing, so that the event loop stays awake."""

LATE_S: Final = 3.0
"""A look that comes later than this behind the full minute counts for another stretch than its window says."""

QUIET_S: Final = 10.0
"""Seconds behind its end after which our clock closes the newest window of such a file."""


class BehaviourStream:
    """What both kinds of source have in common: the hashing, and the names behind it.

    Args:
        section: the behaviour detector's settings.

    Raises:
        ConfigError: no usable hashing key.
    """

    recorded = False

    def __init__(self, section: BehaviourSection) -> None:
        self.hasher = FeatureHasher(section.hash_columns, read_key(section.key_file))
        self.names = PlaceNames(self.hasher)
        self._windower = BehaviourWindower(section.entity, self.hasher, self.names.hold)
        log.info("%s: %d hashed columns, hash_mark = %r", section.task, section.hash_columns, self.hasher.mark)

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self.hasher.schema

    async def start(self) -> None:
        """Nothing to do: files are open already."""


class CountFileStream(BehaviourStream):
    """Counts of a file, by their own times.

    Args:
        section: the behaviour detector's settings.
        position: where a growing file goes on; one that no longer fits is logged.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the path is missing or cannot be opened, or no usable hashing key.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self, section: BehaviourSection, position: bytes | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(section)
        if section.counts is None:
            raise missing("behaviour", "counts", section.source)
        path = section.counts
        self._log = FollowedLog(
            path,
            follow=section.follow,
            position=position,
            open_at=lambda start: CountLines(path, follow=section.follow, position=start),
            windower=self._windower,
            time_of=lambda count: count.time_s,
            quiet_s=QUIET_S,
            clock=clock,
        )
        self.recorded = self._log.recorded
        self.read, self.counters = self._log.read, self._log.counters
        self.position, self.close = self._log.position, self._log.close


class LiveBehaviourStream(BehaviourStream):
    """This host's own counts, the kinds of its log lines, its broker's session events, and counts of other programs, at
    every full minute.

    Lines count for the minute in which they came, whatever time they carry. What was in the files before the node
    started, or came while it was down, is read over. A minute that was not watched whole, as after a suspend, gives no
    window: it would look like a quiet one, or like a busy one.

    Args:
        section: the behaviour detector's settings.
        host: looks at the host; by default this one.
        clock: seconds since the epoch.

    Raises:
        ConfigError: nothing to look at, a file that cannot be opened, or no usable hashing key.
        TransientError: a file cannot be opened now.
    """

    def __init__(
        self,
        section: BehaviourSection,
        *,
        host: HostBehaviour | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(section)
        if not (section.host or section.logs or section.counts):
            raise ConfigError(
                "[behaviour]: found source = 'live' with host = false, no logs and no counts, expected one"
            )
        self._clock = clock
        self._host = (host or HostBehaviour()) if section.host else None
        self._log_counts = LogLineCounts() if section.logs else None
        self._logs: list[LineFollower] = []
        self._counts: CountLines | None = None
        try:
            for path in section.logs:
                self._logs.append(LineFollower(path, follow=True))
            if section.counts is not None:
                self._counts = CountLines(section.counts, timed=False, follow=True)
        except (ConfigError, TransientError):
            self._close()
            raise
        self._sums: Counter[str] = Counter()
        self._next: int | None = None
        self._watched = False
        self._unwatched = 0

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        window_s = self.schema.window_s
        caught_up = self._read_lines()
        now_s = self._clock()
        minute = math.floor(now_s / window_s)
        if self._next is None or minute < self._next - 1:
            self._next, self._watched = minute + 1, False  # the beginning, or a clock that was set back
        if minute < self._next:
            if caught_up:
                await asyncio.sleep(POLL_S)
            return []
        is_on_time = now_s - minute * window_s <= LATE_S
        counts = await self._look(now_s)
        is_whole = self._watched and is_on_time and minute == self._next
        # The next minute is whole if it was begun on time, and with nothing left over from before.
        self._next, self._watched = minute + 1, is_on_time and caught_up
        if not is_whole or counts is None:
            self._unwatched += 1
            return []
        return [self._windower.window(NamedCounts((minute - 1) * window_s, minute * window_s, counts))]

    def _read_lines(self) -> bool:
        """Count the lines that have come; whether that were all."""
        caught_up = True
        for follower in self._logs:
            try:
                lines = follower.read(LINES_A_READ) or []
            except TransientError as error:
                log.warning("%s", error)
                continue
            assert self._log_counts is not None
            for line in lines:
                self._log_counts.push(line)
            caught_up = caught_up and len(lines) < LINES_A_READ
        if self._counts is not None:
            before = self._counts.lines
            try:
                for count in self._counts.read(LINES_A_READ) or []:
                    if count.name in self._sums or len(self._sums) < NAMES_MAX:
                        self._sums[count.name] += round(count.count)
            except TransientError as error:
                log.warning("%s", error)
            caught_up = caught_up and self._counts.lines - before < LINES_A_READ
        return caught_up

    async def _look(self, now_s: float) -> dict[str, float] | None:
        """All counts since the last look; None where the host has nothing to compare with yet."""
        counts: Counter[str] = Counter(self._sums)
        self._sums.clear()
        if self._log_counts is not None:
            counts.update(self._log_counts.take())
        total: dict[str, float] = dict(counts)
        if self._host is not None:
            seen = await asyncio.to_thread(self._host.look, now_s)
            if seen is None:
                return None
            for name, count in seen.counts.items():
                total[name] = total.get(name, 0.0) + count
        return {name: min(count, COUNT_MAX) for name, count in list(total.items())[-NAMES_MAX:]}

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        found: Counter[str] = Counter()
        for source in self._files():
            found.update(source.counters())
        windows = {f"window_{k}": n for k, n in self._windower.counters().items()}
        return {**found, **windows, "minutes_unwatched": self._unwatched}

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return None

    async def close(self) -> None:
        """See `WindowStream.close`."""
        self._close()

    def _files(self) -> list[LineFollower | CountLines]:
        return [*self._logs, *([self._counts] if self._counts is not None else [])]

    def _close(self) -> None:
        for source in self._files():
            source.close()


def read_key(path: Path) -> bytes:
    """The site's hashing key, hexadecimal digits in a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(2 * KEY_BYTES_MAX + 16).decode("ascii", "replace").strip()
    except OSError as fault:
        raise ConfigError(
            f"[behaviour] key_file: found {fault}, expected a file with the site's hashing key"
        ) from fault
    try:
        key = bytes.fromhex(text)
        if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
            raise ValueError
    except ValueError:
        # What was found is not shown: it may be most of a key.
        raise ConfigError(
            f"[behaviour] key_file: found {len(text)} characters in {path} that are no key, expected "
            f"{2 * KEY_BYTES_MIN} to {2 * KEY_BYTES_MAX} hexadecimal digits; `openssl rand -hex 32` makes one"
        ) from None
    return key
