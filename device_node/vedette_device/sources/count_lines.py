"""Named counts from JSON lines: any program's own «this happened so often», one object a line."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vedette_device.sources.counts import COUNT_MAX, NAME_CHARACTERS_MAX
from vedette_device.sources.line_follower import COUNTERS as LINE_COUNTERS
from vedette_device.sources.line_follower import LineFollower, LinePosition

LINES_READ_DEFAULT: Final = 1_024
TIME_S_MAX: Final = 253_402_300_799.0
"""The last second of the year 9999."""

REFUSED: Final = ("not_json", "missing_value", "name", "count", "timestamp")
COUNTERS: Final = ("counts", *REFUSED, *LINE_COUNTERS)
"""What ``CountLines.counters`` holds: counts delivered, refused lines by reason, and file events."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can spell and no encoding can store."""


@dataclass(frozen=True, slots=True)
class TimedCount:
    """How often a named thing happened.

    Attributes:
        time_s: when, seconds since the epoch; NaN where the line does not say.
        name: of the thing, 1 to ``NAME_CHARACTERS_MAX`` characters.
        count: finite, 0 to ``COUNT_MAX``.
    """

    time_s: float
    name: str
    count: float


class CountLines:
    """Counts of a file with lines such as ``{"time_s": 1700000000, "name": "topic.plant/tank", "count": 3}``.

    Other keys are passed over, so that a program may write more. A line with a value that cannot be is left out whole
    and counted.

    Args:
        path: the file; without ``follow`` also gzip or xz, by its first bytes.
        timed: whether every line must say when.
        follow: whether another program still appends to the file.
        position: where to go on, as ``position`` returned it.

    Raises:
        SourceError: the file is missing, unreadable, or compressed and to be followed.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        timed: bool = True,
        follow: bool = False,
        position: LinePosition | None = None,
    ) -> None:
        self._lines = LineFollower(path, follow=follow, position=position)
        self._timed = timed
        self._counters: Counter[str] = Counter(dict.fromkeys(("counts", *REFUSED), 0))

    def read(self, lines_max: int = LINES_READ_DEFAULT) -> list[TimedCount] | None:
        """Return the counts of the next lines, an empty list when there is none yet, ``None`` at the end.

        Raises:
            SourceError: the file cannot be read on; all before has been delivered.
            TransientError: it cannot be read now.
        """
        lines = self._lines.read(lines_max)
        if lines is None:
            return None
        counts = [count for line in lines if line.strip() and (count := self._count(line)) is not None]
        self._counters["counts"] += len(counts)
        return counts

    def _count(self, line: bytes) -> TimedCount | None:
        try:
            document: Any = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return self._refuse("not_json")
        name, count, time_s = (document.get(key) for key in ("name", "count", "time_s"))
        if name is None or count is None or (time_s is None and self._timed):
            return self._refuse("missing_value")
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX or _SURROGATE.search(name):
            return self._refuse("name")
        if not _is_number(count) or not 0 <= count <= COUNT_MAX:
            return self._refuse("count")
        if time_s is None:
            return TimedCount(math.nan, name, float(count))
        if not _is_number(time_s) or not 0 <= time_s <= TIME_S_MAX:
            return self._refuse("timestamp")
        return TimedCount(float(time_s), name, float(count))

    def _refuse(self, reason: str) -> TimedCount | None:
        self._counters[reason] += 1
        return None

    @property
    def lines(self) -> int:
        """Lines read so far, whatever they held."""
        return self._lines.counters()["lines"]

    def position(self) -> LinePosition:
        """Where to go on after a restart: behind the last line that was read."""
        return self._lines.position()

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return {**self._counters, **self._lines.counters()}

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._lines.close()


def _is_number(value: object) -> bool:
    """Whether it is a number in JSON's sense; NaN fails every comparison with a limit."""
    return isinstance(value, int | float) and not isinstance(value, bool)
