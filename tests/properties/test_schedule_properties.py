"""Laws of the schedule: never in quiet hours, never too often, always soon enough."""

from __future__ import annotations

import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vedette_aggregator.schedule import Schedule, collect_deadline
from vedette_core.learning.quiet_hours import DAY_S, QuietHours
from vedette_schemas.errors import ConfigError

minutes = st.integers(0, 1439)
stretches = st.builds(
    lambda start, length, offset: (
        f"{start // 60:02}:{start % 60:02}-{(start + length) % 1440 // 60:02}:{(start + length) % 60:02}{offset}"
    ),
    minutes,
    st.integers(1, 900),
    st.sampled_from(["", " UTC", " +02:00", " -09:30", " +14:00"]),
)
moments = st.floats(0, 4e9, allow_nan=False)
paces = st.integers(1, 48) | st.floats(0.05, 48)
paces_or_none = st.none() | paces
intervals = st.sampled_from([0.0, 0.5, 60.0, 3600.0, 1e5])


@st.composite
def schedules(
    draw: st.DrawFn,
    rounds_per_day: st.SearchStrategy[float | None] = paces_or_none,
    interval_s: st.SearchStrategy[float] = intervals,
) -> Schedule:
    try:
        return Schedule(draw(rounds_per_day), draw(interval_s), tuple(draw(st.lists(stretches, max_size=3))))
    except ConfigError:
        assume(False)
        raise


def is_quiet(texts: tuple[str, ...], now: float) -> bool:
    """By the words themselves: local time of the day against start and end."""
    for text in texts:
        hours, _, zone = text.partition(" ")
        start, end = (int(part[:2]) * 3600 + int(part[3:]) * 60 for part in hours.split("-"))
        sign = -1 if zone.startswith("-") else 1
        offset = sign * (int(zone[1:3]) * 3600 + int(zone[4:]) * 60) if zone[:1] in ("+", "-") and zone else 0
        local = (now + offset) % DAY_S
        if (start <= local < end) if start < end else (local >= start or local < end):
            return True
    return False


@given(st.lists(stretches, max_size=3), moments)
def test_quiet_is_what_the_words_say(texts: list[str], now: float) -> None:
    try:
        hours = QuietHours.parse(texts)
    except ConfigError:
        assume(False)
        raise
    now = float(math.floor(now))
    assert hours.is_quiet(now) == is_quiet(tuple(texts), now)
    ended = hours.next_open(now)
    assert now <= ended < now + DAY_S
    assert not is_quiet(tuple(texts), ended)
    assert ended == now or is_quiet(tuple(texts), ended - 1), "not a second longer than it must"


@given(schedules(), moments, moments)
def test_an_opening_is_never_in_quiet_hours_and_always_comes(schedule: Schedule, now: float, last_end: float) -> None:
    opened = schedule.next_open(now, last_end)
    assert opened >= now
    assert opened >= min(now, last_end) + schedule.interval_s
    assert not is_quiet(schedule.quiet_hours, opened)
    slots_days = 1 / schedule.rounds_per_day if schedule.rounds_per_day else 0.0
    assert opened <= now + schedule.interval_s + DAY_S * (slots_days + 1) + 1
    assert not schedule.missed(opened, opened)


@settings(max_examples=60)
@given(schedules(paces), moments, st.lists(st.floats(0, 2e4), min_size=60, max_size=60))
def test_no_day_has_more_openings_than_it_may(schedule: Schedule, now: float, durations: list[float]) -> None:
    opened: list[float] = []
    last_end = 0.0
    for duration in durations:
        opened.append(schedule.next_open(now, last_end))
        now = last_end = opened[-1] + max(duration, 1.0)
    most = math.ceil(schedule.rounds_per_day or 0)
    assert all(sum(first <= other < first + DAY_S for other in opened) <= most for first in opened)


@given(schedules(st.integers(1, 48) | st.floats(1, 48), st.just(0.0)), moments)
def test_openings_are_evenly_spread(schedule: Schedule, now: float) -> None:
    """Between two openings lies the same open time, whatever quiet hours lie between them."""
    first = schedule.next_open(now, 0.0)
    second = schedule.next_open(first + 1, first + 1)
    third = schedule.next_open(second + 1, second + 1)

    def open_between(a: float, b: float) -> float:
        spans = schedule.hours.open_spans
        days = range(int(a // DAY_S), int(b // DAY_S) + 1)
        return sum(max(0.0, min(b, d * DAY_S + e) - max(a, d * DAY_S + s)) for d in days for s, e in spans)

    assert abs(open_between(first, second) - open_between(second, third)) <= 2


@given(st.lists(st.floats(), max_size=40), st.floats(0, 10), st.floats(0, 100), st.floats(100, 1e5))
def test_a_deadline_is_always_within_its_bounds(durations: list[float], k: float, low: float, high: float) -> None:
    assert low <= collect_deadline(durations, k, low, high) <= high
