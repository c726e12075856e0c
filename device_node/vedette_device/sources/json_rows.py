"""Readings from a file of JSON lines: one object a line, with the time and every channel as numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from vedette_device.sources.csv_file import BACKWARDS_ROWS_MAX
from vedette_device.sources.interface import SampleBatch
from vedette_device.sources.line_follower import COUNTERS as LINE_COUNTERS
from vedette_device.sources.line_follower import LineFollower, LinePosition

ROWS_READ_DEFAULT: Final = 1_024

REFUSED: Final = ("not_json", "missing_value", "not_a_number", "not_finite", "time_backwards")
COUNTERS: Final = ("rows", *REFUSED, "clock_steps", *LINE_COUNTERS)
"""What ``JsonRows.counters`` holds: rows delivered, refused lines by reason, and file events."""


class JsonRows:
    """Rows of a file of JSON lines.

    A row with a missing, unreadable or non-finite value is left out whole and counted, as is one that is not later
    than the one before.

    Args:
        path: the file; plain, gzip or xz by its first bytes.
        channels: keys of the channels.
        time_key: key of the time, in seconds since the epoch.
        follow: whether another program still appends to the file.
        position: where to go on, as ``position`` returned it.

    Raises:
        SourceError: the file is missing, unreadable, or compressed and to be followed.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self,
        path: Path | str,
        channels: Sequence[str],
        *,
        time_key: str = "time_s",
        follow: bool = False,
        position: LinePosition | None = None,
    ) -> None:
        self._channels, self._time_key = tuple(channels), time_key
        self._lines = LineFollower(path, follow=follow, position=position)
        self._counters: Counter[str] = Counter(dict.fromkeys(("rows", *REFUSED, "clock_steps"), 0))
        self._last_time_s = -math.inf
        self._backwards = 0

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the values."""
        return self._channels

    def read(self, rows_max: int = ROWS_READ_DEFAULT) -> SampleBatch | None:
        """Return the next rows; see ``SampleSource.read``.

        Raises:
            SourceError: the file cannot be read on.
            TransientError: it cannot be read now.
        """
        lines = self._lines.read(rows_max)
        if lines is None:
            return None
        rows = [row for line in lines if line.strip() and (row := self._row(line)) is not None]
        self._counters["rows"] += len(rows)
        return SampleBatch(
            self._channels,
            np.array([row[0] for row in rows], dtype=np.float64),
            np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), len(self._channels)),
        )

    def _row(self, line: bytes) -> list[float] | None:
        try:
            document: Any = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return self._refuse("not_json")
        row: list[float] = []
        for key in (self._time_key, *self._channels):
            value = document.get(key)
            if value is None:
                return self._refuse("missing_value")
            if not isinstance(value, int | float):  # a bool is an int: a valve's true and false become 1 and 0
                return self._refuse("not_a_number")
            try:
                row.append(float(value))
            except OverflowError:
                return self._refuse("not_finite")
        if not all(map(math.isfinite, row)):
            return self._refuse("not_finite")
        if row[0] <= self._last_time_s:
            self._backwards += 1
            if self._backwards <= BACKWARDS_ROWS_MAX:
                return self._refuse("time_backwards")
            self._counters["clock_steps"] += 1
        self._backwards, self._last_time_s = 0, row[0]
        return row

    def _refuse(self, reason: str) -> list[float] | None:
        self._counters[reason] += 1
        return None

    def position(self) -> LinePosition:
        """Where to go on after a restart: behind the last line that was read."""
        return self._lines.position()

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return {**self._counters, **self._lines.counters()}

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._lines.close()
