"""From named counts to feature windows: sums of one minute, hashed into a fixed number of columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from vedette_core.learning.hashing import COUNT_MAX, FeatureHasher
from vedette_device.features.windows import Window
from vedette_device.sources.count_lines import TimedCount
from vedette_device.sources.counts import NAMES_MAX, NamedCounts
from vedette_schemas.features import FeatureSchema

STALE_S: Final = 3_600.0
"""A count that is this much older than the newest one is left out."""
STEP_COUNTS: Final = 32
"""So many stale counts in succession mean that the clock was set back, or another recording follows."""

COUNTERS: Final = ("windows", "late", "stale", "names_limit", "clock_steps")
"""What ``BehaviourWindower.counters`` holds. ``late`` counts are in a later window than their own; ``stale`` ones, and
those of more names than a window may have (``names_limit``), are in none."""


class BehaviourWindower:
    """Makes windows of one host's named counts.

    Args:
        entity: name of the host in alerts.
        hasher: puts names into columns.
        hold: called with the end of each window and its counts, before they are hashed.
    """

    def __init__(self, entity: str, hasher: FeatureHasher, hold: Callable[[float, Mapping[str, int]], None]) -> None:
        self.schema: FeatureSchema = hasher.schema
        self._entity, self._hasher, self._hold = entity, hasher, hold
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._forget()

    def _forget(self) -> None:
        self.newest_s = -math.inf
        """Time of the newest count, seconds since the epoch; minus infinity before the first."""
        self._open: int | None = None
        self._sums: dict[str, float] = {}
        self._stale_run = 0

    def push(self, counts: Iterable[TimedCount]) -> list[Window]:
        """Take counts in the order of their time; return the windows that became complete.

        Counts of one name in a window are added. A window without any count is none: what nobody reported is not
        known to be 0. Only the counts' own times matter, and not how they were cut into batches.
        """
        windows: list[Window] = []
        for count in counts:
            if count.time_s < self.newest_s - STALE_S:
                self._stale_run += 1
                if self._stale_run < STEP_COUNTS:
                    self._counters["stale"] += 1
                    continue
                self._counters["clock_steps"] += 1
                windows += self.flush()
                self._forget()
            self._stale_run = 0
            self.newest_s = max(self.newest_s, count.time_s)
            index = math.floor(count.time_s / self.schema.window_s)
            if self._open is None:
                self._open = index
            elif index > self._open:
                windows += self.flush()
                self._open = index
            self._counters["late"] += index < self._open
            self._add(count.name, count.count)
        return windows

    def advance(self, now_s: float) -> list[Window]:
        """Let time pass without counts: close the open window if it ended before ``now_s``."""
        if self._open is None or now_s < (self._open + 1) * self.schema.window_s:
            return []
        return self.flush()

    def flush(self) -> list[Window]:
        """Close the open window, at the end of a recording."""
        if self._open is None or not self._sums:
            return []
        start_s = self._open * self.schema.window_s
        sums, self._sums = self._sums, {}
        self._open += 1
        return [self.window(NamedCounts(start_s, start_s + self.schema.window_s, sums))]

    def window(self, named: NamedCounts) -> Window:
        """The window of counts that were summed already."""
        counts = {name: min(round(count), COUNT_MAX) for name, count in named.counts.items()}
        self._hold(named.end_s, counts)
        self._counters["windows"] += 1
        values = self._hasher.row(counts).astype(np.float32)
        return Window(self._entity, named.start_s, named.end_s, values)

    def _add(self, name: str, count: float) -> None:
        if name not in self._sums and len(self._sums) >= NAMES_MAX:
            self._counters["names_limit"] += 1
            return
        self._sums[name] = min(self._sums.get(name, 0.0) + count, float(COUNT_MAX))

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)
