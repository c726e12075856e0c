"""Named counts of a stretch of time: what host behaviour, log lines and any other ``name,count`` stream yield."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vedette_schemas.errors import PeerError

NAMES_MAX: Final = 4_096
"""Most names in one stretch: a busy gateway has some hundred kinds of processes and log lines."""

NAME_CHARACTERS_MAX: Final = 64
"""Longest name; a process's has 15 characters."""

COUNT_MAX: Final = float(1 << 40)
"""Largest count, as that of `vedette_core.learning.hashing`: more bytes than any gateway moves in a minute."""


@dataclass(frozen=True, slots=True)
class NamedCounts:
    """How often each named thing happened, or how many of it there were.

    Attributes:
        start_s: first instant, seconds since the epoch.
        end_s: instant behind the last.
        counts: by name; finite, 0 or more. A name that is missing was not measured, which is not the same as 0.

    Raises:
        PeerError: too many names, a name that cannot be, or a count out of range (reason ``limit`` or ``count``).
    """

    start_s: float
    end_s: float
    counts: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check names and counts."""
        if len(self.counts) > NAMES_MAX:
            raise PeerError(f"{len(self.counts)} named counts, expected at most {NAMES_MAX}", reason="limit")
        for name, count in self.counts.items():
            if not 0 < len(name) <= NAME_CHARACTERS_MAX:
                raise PeerError(
                    f"count of {name[:80]!r}, expected a name of 1 to {NAME_CHARACTERS_MAX}", reason="limit"
                )
            if not (math.isfinite(count) and 0 <= count <= COUNT_MAX):
                raise PeerError(f"count of {name!r} is {count!r}, expected 0 to {COUNT_MAX:.0f}", reason="count")
