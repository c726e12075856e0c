"""Hours of every day in which nobody trains, as an operator writes them: ``22:00-06:00``, or ``22:00-06:00 +02:00``.

A day has 86,400 s of epoch time, and the offset is fixed: without a time zone's rules there is no hour that happens
twice or never, and no data base of them on a gateway.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vedette_schemas.errors import ConfigError

DAY_S: Final = 86_400
OFFSET_MINUTES_MAX: Final = 14 * 60
"""Largest difference to UTC that any place on earth has."""
_FORM: Final = re.compile(
    r"(\d\d):(\d\d)\s*[-–]\s*(\d\d):(\d\d)(?:\s*(?:Z|UTC)|\s+(?:UTC)?([+-])(\d\d):(\d\d))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Quiet stretches of every day.

    Attributes:
        spans: (start, end) in seconds of the UTC day, 0 ≤ start < end ≤ 86,400; sorted, and none touches the next.
            A stretch over midnight is two of them.
    """

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str], *, where: str = "quiet_hours") -> QuietHours:
        """Read them; they may overlap and go over midnight.

        Args:
            texts: ``HH:MM-HH:MM`` in UTC, or with a fixed offset behind it: ``HH:MM-HH:MM +HH:MM``.
            where: setting that they come from, for the message.

        Raises:
            ConfigError: another form, no such time, a stretch without length, or no time of the day is left.
        """
        pieces: list[tuple[int, int]] = []
        for text in texts:
            start, end = _read(text, where)
            pieces += [(start, end)] if start < end else [(start, DAY_S), (0, end)]
        merged: list[tuple[int, int]] = []
        for start, end in sorted(piece for piece in pieces if piece[0] < piece[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        if merged == [(0, DAY_S)]:
            raise ConfigError(
                f"{where}: found {', '.join(texts)}, which is the whole day; expected some time to be left"
            )
        return cls(tuple(merged))

    @property
    def open_spans(self) -> tuple[tuple[int, int], ...]:
        """The stretches of the UTC day that are not quiet, in the same form as `spans`."""
        edges = [0, *(edge for span in self.spans for edge in span), DAY_S]
        return tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)

    @property
    def open_s(self) -> int:
        """Seconds of a day that are not quiet, > 0."""
        return sum(end - start for start, end in self.open_spans)

    def is_quiet(self, now: float) -> bool:
        """Whether `now`, in epoch seconds, is in quiet hours; the end of a stretch is not."""
        second = now % DAY_S
        return any(start <= second < end for start, end in self.spans)

    def next_open(self, now: float) -> float:
        """The first moment from `now` on that is not quiet: `now` itself, or the end of the stretch. Epoch seconds."""
        if not self.is_quiet(now):
            return now
        midnight = math.floor(now / DAY_S) * DAY_S
        second = now - midnight
        end = next(end for start, end in self.spans if start <= second < end)
        return self.next_open(float(midnight + end)) if end == DAY_S else float(midnight + end)


def _read(text: str, where: str) -> tuple[int, int]:
    """Start and end in seconds of the UTC day."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"{where}: found {text!r}, expected a stretch of the day such as '22:00-06:00' (in UTC) or "
            "'22:00-06:00 +02:00'"
        )
    hours_1, minutes_1, hours_2, minutes_2 = (int(found[i]) for i in range(1, 5))
    start, end = 60 * hours_1 + minutes_1, 60 * hours_2 + minutes_2
    offset = (60 * int(found[6]) + int(found[7])) * (-1 if found[5] == "-" else 1) if found[5] else 0
    if max(minutes_1, minutes_2) > 59 or start >= 1440 or end > 1440 or (found[7] and int(found[7]) > 59):
        raise ConfigError(f"{where}: found {text!r}, expected times from 00:00 to 23:59, or 24:00 as an end")
    if abs(offset) > OFFSET_MINUTES_MAX:
        raise ConfigError(f"{where}: found {text!r}, expected an offset of at most 14:00")
    if start == end:
        raise ConfigError(f"{where}: found {text!r}, which has no length; expected two different times")
    if (start, end) == (0, 1440):
        return 0, DAY_S
    return 60 * ((start - offset) % 1440), 60 * ((end - offset) % 1440)
