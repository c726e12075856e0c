"""Rounds open on the grid, never in quiet hours, and uploads are waited for as long as they take."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from vedette_aggregator.schedule import LATE_S_MAX, Schedule, collect_deadline
from vedette_core.learning.quiet_hours import DAY_S, QuietHours
from vedette_schemas.errors import ConfigError


def at(text: str, day: int = 10) -> float:
    """Epoch seconds of ``HH:MM`` or ``HH:MM:SS`` UTC on a day of March 2026."""
    return datetime.fromisoformat(f"2026-03-{day:02}T{text}").replace(tzinfo=UTC).timestamp()


# --- quiet hours ---


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        ([], ()),
        (["01:00-02:30"], ((3600, 9000),)),
        (["22:00-06:00"], ((0, 21600), (79200, DAY_S))),
        (["22:00-24:00"], ((79200, DAY_S),)),
        (["22:00-00:00"], ((79200, DAY_S),)),
        (["22:00-06:00 +02:00"], ((0, 14400), (72000, DAY_S))),
        (["00:30-01:30 +01:00"], ((0, 1800), (84600, DAY_S))),
        (["20:00-22:00 -03:30"], ((0, 5400), (84600, DAY_S))),
        (["22:00-06:00 UTC", "05:00-07:00Z"], ((0, 25200), (79200, DAY_S))),
        (["12:00-13:00", "13:00-14:00"], ((43200, 50400),)),
    ],
)
def test_quiet_hours_are_stretches_of_the_utc_day(texts: list[str], spans: tuple[tuple[int, int], ...]) -> None:
    hours = QuietHours.parse(texts)
    assert hours.spans == spans
    assert hours.open_s == DAY_S - sum(end - start for start, end in spans)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22-06", "such as '22:00-06:00'"),
        ("", "such as"),
        ("22:00-06:00 CET", "such as"),
        ("٢٢:00-06:00", "such as"),
        ("24:00-06:00", "23:59"),
        ("22:60-06:00", "23:59"),
        ("22:00-24:01", "23:59"),
        ("22:00-06:00 +15:00", "14:00"),
        ("22:00-06:00 +01:60", "23:59"),
        ("06:00-06:00", "two different times"),
        ("00:00-24:00", "some time to be left"),
    ],
)
def test_quiet_hours_that_are_none_are_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        QuietHours.parse([text], where="task network: quiet_hours")
    assert str(caught.value).startswith(
        f"task network: quiet_hours: found {text!r}" if text != "00:00-24:00" else "task"
    )


def test_stretches_that_are_the_whole_day_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="some time to be left"):
        QuietHours.parse(["06:00-18:00", "18:00-06:00"])


def test_the_start_is_quiet_and_the_end_is_not() -> None:
    hours = QuietHours.parse(["22:00-06:00"])
    assert [hours.is_quiet(at(t)) for t in ("21:59:59", "22:00", "00:00", "05:59:59", "06:00")] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert hours.next_open(at("22:00", 10)) == at("06:00", 11)
    assert hours.next_open(at("21:59:59")) == at("21:59:59")
    assert hours.next_open(at("03:00") + 0.25) == at("06:00")


# --- schedule ---


def test_rounds_are_spread_evenly_over_the_day() -> None:
    schedule = Schedule(4, 0.0)
    now, opened = at("00:00:01"), []
    for _ in range(5):
        opened.append(schedule.next_open(now, now))
        now = opened[-1] + 600
    assert opened == [at("06:00"), at("12:00"), at("18:00"), at("00:00", 11), at("06:00", 11)]


def test_rounds_are_spread_evenly_over_what_is_not_quiet() -> None:
    schedule = Schedule(4, 0.0, ("22:00-06:00",))
    now, opened = at("00:00"), []
    for _ in range(5):
        opened.append(schedule.next_open(now, now))
        now = opened[-1] + 600
    assert opened == [at("06:00"), at("10:00"), at("14:00"), at("18:00"), at("06:00", 11)]


def test_an_opening_on_the_edge_of_quiet_hours_is_behind_them_and_one_just_before_stays_before() -> None:
    assert Schedule(11, 0.0, ("12:00-14:00",)).next_open(at("11:00"), 0.0) == at("14:00")
    # 6/89 of 22 hours are 5,339.3 s, and the quiet begins after 5,340.
    assert Schedule(89, 0.0, ("01:29-03:29",)).next_open(at("01:28"), 0.0) == at("01:28:59")


def test_a_round_may_be_rarer_than_daily() -> None:
    schedule = Schedule(0.5, 0.0)
    first = schedule.next_open(at("12:00"), 0.0)
    assert schedule.next_open(first + 600, first + 600) - first == 2 * DAY_S


def test_without_a_number_a_day_the_pause_counts() -> None:
    schedule = Schedule(None, 3600.0, ("22:00-06:00",))
    assert schedule.next_open(at("12:00"), 0.0) == at("12:00")
    assert schedule.next_open(at("12:00"), at("11:30")) == at("12:30")
    assert schedule.next_open(at("21:30"), at("21:30")) == at("06:00", 11)


def test_the_pause_counts_on_the_grid_too() -> None:
    assert Schedule(24, 1800.0).next_open(at("12:45"), at("12:45")) == at("14:00")


def test_a_clock_that_was_set_back_delays_by_one_pause_only() -> None:
    schedule = Schedule(None, 3600.0)
    assert schedule.next_open(at("12:00"), at("12:00", 25)) == at("13:00")


def test_a_missed_opening_is_told_from_a_late_one() -> None:
    grid, pause = Schedule(4, 0.0, ("22:00-06:00",)), Schedule(None, 0.0, ("22:00-06:00",))
    due = at("10:00")
    assert not grid.missed(due, due - 1)
    assert not grid.missed(due, due + LATE_S_MAX)
    assert grid.missed(due, due + LATE_S_MAX + 1)
    assert not pause.missed(due, at("21:00"))
    assert pause.missed(due, at("22:00"))


@pytest.mark.parametrize(
    ("per_day", "interval_s", "quiet", "expected"),
    [
        (0, 0.0, (), "rounds_per_day=0"),
        (-1.0, 0.0, (), "rounds_per_day=-1"),
        (math.nan, 0.0, (), "rounds_per_day=nan"),
        (math.inf, 0.0, (), "rounds_per_day=inf"),
        (1441, 0.0, (), "at most 1440"),
        (61, 0.0, ("01:00-00:00",), "at most 60"),
        (None, -1.0, (), "interval_s=-1"),
        (None, math.inf, (), "interval_s=inf"),
        (4, 0.0, ("late",), "schedule: quiet_hours: found 'late'"),
    ],
)
def test_schedules_that_are_none_are_refused(
    per_day: float | None, interval_s: float, quiet: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        Schedule(per_day, interval_s, quiet)


# --- deadline ---


def test_a_deadline_is_the_median_and_some_deviations() -> None:
    durations = [10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0, 500.0]
    assert collect_deadline(durations, 3.0, 1.0, 600.0) == 18.0 + 3.0 * 4.0
    assert collect_deadline(durations[::-1], 3.0, 1.0, 600.0) == 30.0


def test_a_deadline_keeps_its_bounds() -> None:
    assert collect_deadline([1.0] * 20, 3.0, 30.0, 600.0) == 30.0
    assert collect_deadline([900.0] * 20, 3.0, 30.0, 600.0) == 600.0


def test_with_too_few_observations_the_longest_is_waited() -> None:
    assert collect_deadline([], 3.0, 1.0, 600.0) == 600.0
    assert collect_deadline([10.0] * 7, 3.0, 1.0, 600.0) == 600.0
    assert collect_deadline([10.0] * 8, 3.0, 1.0, 600.0) == 10.0


def test_times_of_a_clock_that_jumped_are_no_observations() -> None:
    assert collect_deadline([10.0] * 7 + [-5.0, math.nan, math.inf], 3.0, 1.0, 600.0) == 600.0
    assert collect_deadline([10.0] * 8 + [-1e9] * 20, 3.0, 1.0, 600.0) == 10.0


def test_bounds_in_the_wrong_order_are_a_fault() -> None:
    with pytest.raises(ValueError, match="700"):
        collect_deadline([], 3.0, 700.0, 600.0)
    with pytest.raises(ValueError, match="k = -1"):
        collect_deadline([], -1.0, 1.0, 600.0)
