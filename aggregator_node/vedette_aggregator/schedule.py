"""When a round may open, and how long it waits for uploads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from vedette_core.learning.quiet_hours import DAY_S, QuietHours
from vedette_schemas.errors import ConfigError

OBSERVATIONS_MIN: Final = 8
"""Upload times from which a deadline is made: the median deviation of fewer is mostly luck."""
SLOT_S_MIN: Final = 60
"""Least open time between two openings that a schedule may ask for: check-ins take that long to come in."""
LATE_S_MAX: Final = 600
"""How late an opening still is the one that was due: a restart of the aggregator must not cost a day's only round."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the rounds of a task open.

    With `rounds_per_day`, openings are points of a fixed grid that divides the open time of a day (what is not quiet)
    evenly: with 4 and no quiet hours 00:00, 06:00, 12:00 and 18:00 UTC. A grid, and not a pause behind the last round,
    because then a long round delays nothing, and any 24 hours hold at most that many points whatever went before.

    Attributes:
        rounds_per_day: most openings in any 24 hours, > 0; with a fraction the next whole number; None is no limit.
        interval_s: least seconds between the end of a round and the next opening, ≥ 0.
        quiet_hours: stretches of the day in which no round opens, as in `QuietHours.parse`. An open round goes on.

    Raises:
        ConfigError: numbers out of range, quiet hours of another form, or so many rounds that they do not fit.
    """

    rounds_per_day: float | None
    interval_s: float
    quiet_hours: tuple[str, ...] = ()
    hours: QuietHours = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.interval_s) and self.interval_s >= 0):
            raise ConfigError(f"schedule: found interval_s={self.interval_s}, expected seconds ≥ 0")
        object.__setattr__(self, "hours", QuietHours.parse(self.quiet_hours, where="schedule: quiet_hours"))
        if self.rounds_per_day is None:
            return
        if not (math.isfinite(self.rounds_per_day) and self.rounds_per_day > 0):
            raise ConfigError(f"schedule: found rounds_per_day={self.rounds_per_day}, expected a number > 0")
        most = self.hours.open_s / SLOT_S_MIN
        if self.rounds_per_day > most:
            raise ConfigError(
                f"schedule: found rounds_per_day={self.rounds_per_day} in {self.hours.open_s} s that are not quiet, "
                f"expected at most {most:g}, one every {SLOT_S_MIN} s"
            )

    def next_open(self, now: float, last_end: float) -> float:
        """When the next round may open, epoch seconds ≥ `now`; never in quiet hours.

        Ask once at the end of a round and keep the answer: asked again just after an opening it names the next one.
        Ask anew where the opening was missed (`missed`), or where it lies further away than it did before.

        Args:
            now: epoch seconds.
            last_end: when the last round ended, 0 if there was none. In the future, it is taken for now: a clock that
                was set back delays by one interval and no more.
        """
        earliest = max(now, min(now, last_end) + self.interval_s)
        if self.rounds_per_day is None:
            return self.hours.next_open(earliest)
        slot = Fraction(self.hours.open_s) / Fraction(self.rounds_per_day)
        open_before = self._open_before(math.ceil(earliest))
        # Down to a whole second: it stays in its open stretch, whose edges are whole minutes, and behind `earliest`.
        return float(math.floor(self._moment_of(math.ceil(open_before / slot) * slot)))

    def missed(self, due: float, now: float) -> bool:
        """Whether an opening that was due went by: it is quiet now, or more than `LATE_S_MAX` late and on a grid.

        A late opening comes nearer to those of the next day: with it, the limit holds for 24 hours less `LATE_S_MAX`.
        """
        late = self.rounds_per_day is not None and now > due + LATE_S_MAX
        return now >= due and (late or self.hours.is_quiet(now))

    def _open_before(self, moment: int) -> Fraction:
        """Open seconds from the epoch to a moment."""
        days, second = divmod(moment, DAY_S)
        today = sum(min(second, end) - start for start, end in self.hours.open_spans if start < second)
        return Fraction(days * self.hours.open_s + today)

    def _moment_of(self, open_before: Fraction) -> Fraction:
        """The moment that so many open seconds lie before: of two at both ends of quiet hours, the later."""
        days, rest = divmod(open_before, self.hours.open_s)
        for start, end in self.hours.open_spans:
            if rest < end - start:
                return days * DAY_S + start + rest
            rest -= end - start
        raise AssertionError("the rest is shorter than a day's open time")


def collect_deadline(durations_s: Sequence[float], k: float, floor_s: float, ceiling_s: float) -> float:
    """How long uploads are waited for: median + k · MAD of the times that they took lately, within bounds.

    Late uploads belong to the observations: the aggregator refuses them, but saw when they came. With those in time
    alone, each round would cut the tail that the next deadline is made of, and a slow kind of device would never again
    be waited for. The MAD is not scaled: for normal times it is 0.6745 σ, so that k = 4.5 is about 3 σ.

    Args:
        durations_s: seconds from the opening of the groups to each upload; not finite or negative ones do not count.
        k: ≥ 0.
        floor_s: least.
        ceiling_s: most, and what is waited with fewer than `OBSERVATIONS_MIN` observations.

    Raises:
        ValueError: bounds in the wrong order, or a negative k.
    """
    if not 0 <= floor_s <= ceiling_s or k < 0:
        raise ValueError(f"deadline: found {floor_s} to {ceiling_s} s and k = {k}")
    seen = [d for d in durations_s if math.isfinite(d) and d >= 0]
    if len(seen) < OBSERVATIONS_MIN:
        return ceiling_s
    middle = statistics.median(seen)
    spread = statistics.median(abs(d - middle) for d in seen)
    return min(ceiling_s, max(floor_s, middle + k * spread))
