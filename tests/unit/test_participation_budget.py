"""A device's own limits: hours, processor time, energy, every n-th round, battery; and no clock locks it out."""

from __future__ import annotations

import math
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_device.participation_budget import (
    REST_DAYS_MAX,
    SPENDINGS_MAX,
    Cost,
    ParticipationBudget,
    ParticipationLimits,
    estimate_cost,
)
from vedette_schemas.errors import ConfigError

DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2


def cpu(seconds: float) -> Cost:
    return Cost(seconds, 0.0, estimated=False)


def budget(**limits: object) -> ParticipationBudget:
    return ParticipationBudget(ParticipationLimits(**limits))  # type: ignore[arg-type]


def test_without_limits_it_takes_part_in_everything() -> None:
    free = budget().record(NOON, "network", 1, Cost(1e6, 1e3, estimated=False))
    assert free.may_join(NOON, "network", 1) is None
    assert free.may_join(NOON, "network", 2, battery=0.0) is None


def test_quiet_hours_are_its_own() -> None:
    quiet = budget(quiet_hours=("11:00-14:00 +01:00",))
    assert quiet.may_join(NOON, "network", 1) == "quiet hours (11:00-14:00 +01:00)"
    assert quiet.may_join(NOON + 3600, "network", 1) is None


def test_processor_time_of_any_24_hours_is_bounded() -> None:
    state = budget(cpu_s_per_day=60.0)
    now, spent = NOON, []
    for number in range(1, 400):
        if state.may_join(now, "network", number) is None:
            state = state.record(now, "network", number, cpu(13.0))
            spent.append(now)
        now += 1800.0
    assert len(spent) > 30
    assert all(sum(at - DAY < other <= at for other in spent) * 13.0 <= 60.0 for at in spent)
    said = state.may_join(spent[-1] + 1, "network", 400) or "nothing"
    assert said == "processor time: 52 s of 60 s a day spent, about 13 s a round"


def test_the_budget_is_that_of_all_tasks() -> None:
    state = budget(cpu_s_per_day=60.0).record(NOON, "network", 1, cpu(61.0))
    assert "processor time" in (state.may_join(NOON + 1, "sensor", 1) or "")


def test_an_estimated_energy_is_marked() -> None:
    cost = estimate_cost(3600.0, 2.5)
    assert cost == Cost(3600.0, 2.5, estimated=True)
    state = budget(energy_wh_per_day=3.0).record(NOON, "network", 1, cost)
    said = "energy: 2.5 Wh{} of 3 Wh a day spent, about 2.5 Wh a round"
    assert state.may_join(NOON, "network", 2) == said.format(" (estimated)")
    state = budget(energy_wh_per_day=3.0).record(NOON, "network", 1, Cost(3600.0, 2.5, estimated=False))
    assert state.may_join(NOON, "network", 2) == said.format("")


def test_one_training_above_the_budget_is_paid_off_by_rest() -> None:
    state = budget(cpu_s_per_day=60.0)
    now, joined = NOON, []
    for number in range(1, 1000):
        if state.may_join(now, "network", number) is None:
            state = state.record(now, "network", number, cpu(150.0))
            joined.append(now)
        now += 3600.0
    assert len(joined) > 10
    assert {b - a for a, b in pairwise(joined)} == {2.5 * DAY}


def test_a_second_tasks_small_costs_do_not_lock_out_a_large_one() -> None:
    state = budget(cpu_s_per_day=60.0).record(NOON, "large", 1, cpu(100.0))
    now, joined = NOON + 2 * DAY, 0
    for number in range(2, 200):
        if state.may_join(now, "small", number) is None:
            state = state.record(now, "small", number, cpu(1.0))
        if state.may_join(now, "large", number) is None:
            state = state.record(now, "large", number, cpu(100.0))
            joined += 1
        now += 3600.0
    assert joined >= 3


def test_every_nth_round_of_a_task() -> None:
    state, joined = budget(rounds_every=3), []
    for number in range(4, 15):
        if state.may_join(NOON, "network", number) is None:
            state = state.record(NOON, "network", number, cpu(1.0))
            joined.append(number)
    assert joined == [4, 7, 10, 13]
    assert state.may_join(NOON, "network", 14) == "took part in round 13, every 3 rounds at most"
    assert state.may_join(NOON, "network", 13) is None, "another attempt of the same round"
    assert state.may_join(NOON, "sensor", 14) is None


def test_a_task_that_starts_again_is_not_waited_for() -> None:
    state = budget(rounds_every=5).record(NOON, "network", 900, cpu(1.0))
    assert state.may_join(NOON, "network", 1) is None


def test_a_low_battery_counts_where_it_is_known_and_not_charging() -> None:
    state = budget(battery_min=0.5)
    assert state.may_join(NOON, "network", 1) is None
    assert state.may_join(NOON, "network", 1, battery=0.5) is None
    assert state.may_join(NOON, "network", 1, battery=0.49) == "battery at 49%, at least 50% wanted"
    assert state.may_join(NOON, "network", 1, battery=0.1, charging=True) is None


@pytest.mark.parametrize("jump", [-1e9, -10 * DAY, -3600.0, 3600.0, 10 * DAY, 1e9])
def test_no_jump_of_the_clock_locks_it_out(jump: float) -> None:
    state = budget(cpu_s_per_day=60.0).record(NOON + 1e9, "network", 1, cpu(1e9))
    later = NOON + 1e9 + jump + REST_DAYS_MAX * DAY
    assert any(state.may_join(later - days * DAY, "network", 2) is None for days in range(REST_DAYS_MAX + 1))
    after = state.record(NOON + 1e9 + jump, "network", 2, cpu(59.0))
    assert after.may_join(later + DAY, "network", 3) is None


@given(st.lists(st.tuples(st.floats(0, 4e9), st.floats(0, 1e9)), max_size=30), st.floats(0, 4e9))
def test_whatever_the_clock_said_it_takes_part_again_within_days(
    history: list[tuple[float, float]], now: float
) -> None:
    state = budget(cpu_s_per_day=60.0)
    for number, (at, cost) in enumerate(history, start=1):
        state = state.record(at, "network", number, cpu(cost))
    state = ParticipationBudget.from_bytes(state.to_bytes(), state.limits)
    # What still lies ahead counts when its time comes, so that the longest wait is a rest behind each of these.
    waits = [now + 3600.0 * hour for hour in range(24 * REST_DAYS_MAX * (len(history) + 1) + 2)]
    assert any(state.may_join(at, "network", len(history) + 1) is None for at in waits)


def test_it_remembers_a_bounded_number_of_trainings_and_forgets_no_cost() -> None:
    state = budget(cpu_s_per_day=1e6)
    for i in range(3 * SPENDINGS_MAX):
        state = state.record(NOON + i, "network", i, cpu(1.0))
    assert len(state.spendings) == SPENDINGS_MAX
    assert state.spent(NOON + 3 * SPENDINGS_MAX).cpu_s == 3 * SPENDINGS_MAX
    state = state.record(NOON + 2 * DAY, "network", 9999, cpu(1.0))
    assert len(state.spendings) == 1


def test_it_survives_a_restart_under_other_limits() -> None:
    state = budget(cpu_s_per_day=60.0, rounds_every=4).record(NOON, "network", 8, estimate_cost(50.0, 3.0))
    again = ParticipationBudget.from_bytes(state.to_bytes(), state.limits)
    assert again == state
    other = ParticipationBudget.from_bytes(state.to_bytes(), ParticipationLimits(cpu_s_per_day=200.0))
    assert other.may_join(NOON, "network", 9) is None
    assert other.spent(NOON).cpu_s == 50.0


def _changed(**fields: object) -> bytes:
    plain = msgpack.unpackb(budget().record(NOON, "network", 8, cpu(1.0)).to_bytes())
    plain.update(fields)
    return bytes(msgpack.packb(plain))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([]),
        _changed()[:-1],
        _changed() + b"\x00",
        _changed(format=2),
        _changed(more=1),
        _changed(spendings=5),
        _changed(spendings=[[1.0, 2.0]]),
        _changed(spendings=[[1.0, -2.0, 0.0, True]]),
        _changed(spendings=[[math.nan, 2.0, 0.0, True]]),
        _changed(spendings=[["now", 2.0, 0.0, True]]),
        _changed(spendings=[[1.0, 2.0, 0.0, 1]]),
        _changed(spendings=[[1.0, 2.0, 0.0, True]] * 300),
        _changed(last=[[7, 8, 1.0, 0.0, True]]),
        _changed(last=[["network", "8", 1.0, 0.0, True]]),
        _changed(last=[[]]),
    ],
)
def test_another_content_of_the_store_is_said_to_be_that(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"stored participation budget: found .*expected format 1; delete it"):
        ParticipationBudget.from_bytes(data, ParticipationLimits())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"cpu_s_per_day": -1.0}, "cpu_s_per_day=-1"),
        ({"energy_wh_per_day": math.nan}, "energy_wh_per_day=nan"),
        ({"rounds_every": 0}, "rounds_every=0"),
        ({"battery_min": 1.1}, "battery_min=1.1"),
        ({"quiet_hours": ("night",)}, "participation: quiet_hours: found 'night'"),
    ],
)
def test_limits_that_are_none_are_refused(limits: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ParticipationLimits(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("cost", [(-1.0, 0.0), (0.0, -1.0), (math.nan, 0.0), (0.0, math.inf)])
def test_a_cost_that_is_none_is_a_fault(cost: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="cost: found"):
        Cost(*cost, estimated=False)
