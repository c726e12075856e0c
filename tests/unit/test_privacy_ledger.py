from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from vedette_core.privacy.accountant import composed_multiplier, epsilon_after, gaussian_epsilon, noise_multiplier_for
from vedette_core.privacy.events import DEVICES_MAX, FoldedHistory, PrivacyEvent, Scope
from vedette_core.privacy.exposure import NOTHING, Exposure, epsilon_text, exposure_of
from vedette_core.privacy.ledger import Budget, Ledger
from vedette_core.privacy.report import privacy_row, privacy_rows
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.round import PrivacyPlan

DELTA = 1e-6
BUDGET = Budget(epsilon_max=4.0, delta=DELTA, participations_max=3, period_rounds=10)
OPEN = Budget(epsilon_max=math.inf, delta=DELTA, participations_max=0, period_rounds=10)


def event(number: int, *devices: str, z: float = 4.0, attempt: int = 1, scope: Scope = Scope.TOTAL) -> PrivacyEvent:
    return PrivacyEvent("network", number, attempt, z, 1.0, 4, scope, tuple(sorted(devices or ("gw-1", "gw-2"))))


def ledger(*events: PrivacyEvent, budget: Budget = BUDGET) -> Ledger:
    return Ledger("network", budget, events=events)


# --- counting ---


def test_a_device_spends_in_the_rounds_it_was_in_and_no_others() -> None:
    book = ledger(event(1, "gw-1", "gw-2"), event(2, "gw-1"), event(3, "gw-3", z=8.0))
    assert book.spent("gw-1", 5).epsilon(DELTA) == pytest.approx(epsilon_after(4.0, 2, DELTA), rel=1e-12)
    assert book.spent("gw-2", 5).epsilon(DELTA) == pytest.approx(epsilon_after(4.0, 1, DELTA), rel=1e-12)
    assert book.spent("gw-3", 5).epsilon(DELTA) == pytest.approx(epsilon_after(8.0, 1, DELTA), rel=1e-12)
    assert book.spent("gw-9", 5) == NOTHING
    assert NOTHING.epsilon(DELTA) == 0.0
    assert book.most_exposed(5) == ("gw-1", book.spent("gw-1", 5))
    assert (book.releases, book.last_round) == (3, 3)


def test_unlike_noise_adds_up_as_one_release() -> None:
    book = ledger(event(1, "gw-1", z=3.0), event(2, "gw-1", z=5.0))
    expected = gaussian_epsilon(composed_multiplier([3.0, 5.0]), DELTA)
    assert book.spent("gw-1", 1).epsilon(DELTA) == pytest.approx(expected, rel=1e-12)


def test_a_new_period_starts_afresh_and_the_whole_history_does_not() -> None:
    book = ledger(event(9, "gw-1"), event(10, "gw-1"), event(11, "gw-1"))
    assert book.spent("gw-1", 10).releases == book.spent("gw-1", 1).releases == 2
    assert book.spent("gw-1", 11).releases == book.spent("gw-1", 20).releases == 1
    assert book.spent("gw-1", 21) == NOTHING
    assert book.spent_ever("gw-1").releases == 3
    assert book.most_exposed() == ("gw-1", book.spent_ever("gw-1"))


def test_every_attempt_counts_and_the_same_event_twice_counts_once() -> None:
    book = ledger(event(1, "gw-1"), event(1, "gw-1"), event(1, "gw-1", attempt=2))
    assert book.spent("gw-1", 1).releases == 2
    book.record(event(1, "gw-1", attempt=2))
    book.record(event(1, "gw-1"))
    assert book.spent("gw-1", 1).releases == 2
    assert book.releases == 2


def test_two_different_stored_events_of_one_attempt_count_both() -> None:
    """Each may have been released: the ledger cannot know, and does not guess in its own favour."""
    book = ledger(event(1, "gw-1", "gw-2"), event(1, "gw-1", "gw-3"))
    assert book.spent("gw-1", 1).releases == 2
    assert book.spent("gw-2", 1).releases == book.spent("gw-3", 1).releases == 1


def test_noise_of_each_group_costs_a_device_what_noise_of_the_whole_does() -> None:
    assert ledger(event(1, scope=Scope.GROUP)).spent("gw-1", 1) == ledger(event(1)).spent("gw-1", 1)


def test_a_round_without_noise_is_counted_and_is_unbounded_for_ever() -> None:
    book = ledger(event(1, "gw-1", z=0.0), event(2, "gw-1", "gw-2"), budget=OPEN)
    assert book.spent("gw-1", 1).epsilon(DELTA) == math.inf
    assert book.spent("gw-2", 1).epsilon(DELTA) < math.inf
    assert book.most_exposed(1)[0] == "gw-1"
    assert epsilon_text(book.spent_ever("gw-1").epsilon(DELTA)) == "unbounded"
    book.fold(11)
    assert book.spent_ever("gw-1") == Exposure(2, exposure_of(4.0).units, 1)


def test_text_never_says_less_than_was_spent() -> None:
    assert epsilon_text(1.0000001) == "1.001"
    assert epsilon_text(0.0) == "0.000"


def test_units_round_up_and_are_fine_enough_not_to_matter() -> None:
    for z in (0.01, 0.7, 1.0, 3.0, 1000.0):
        exposure = exposure_of(z)
        assert exposure.units / 2**64 >= 1 / z**2 * (1 - 1e-15)
        assert exposure.multiplier == pytest.approx(z, rel=1e-12)
    assert exposure_of(3.0).units * 9 >= 2**64
    assert exposure_of(1e-4) == Exposure(1, 0, 1)
    with pytest.raises(ValueError, match="noise multiplier"):
        exposure_of(math.nan)
    with pytest.raises(ValueError, match="exposure"):
        Exposure(1, 0, 2)


def test_sums_that_were_asked_for_before_are_kept_up_to_date() -> None:
    book = ledger(event(1, "gw-1"))
    assert book.spent("gw-1", 1).releases == 1
    book.record(event(2, "gw-1"))
    book.record(event(11, "gw-1"))
    assert (book.spent("gw-1", 1).releases, book.spent("gw-1", 11).releases) == (2, 1)
    book.exposures(11)["gw-1"] = NOTHING
    book.exposures()["gw-1"] = NOTHING
    assert (book.spent("gw-1", 11).releases, book.spent_ever("gw-1").releases) == (1, 3)
    book.budget = replace(BUDGET, period_rounds=5)
    assert [book.spent("gw-1", number).releases for number in (1, 6, 11)] == [2, 0, 1]


# --- refusing ---


def test_a_budget_of_k_rounds_lasts_k_rounds_and_no_longer() -> None:
    z = noise_multiplier_for(4.0, DELTA, 5)
    book = ledger(budget=replace(BUDGET, participations_max=0))
    for number in range(1, 6):
        book.check(event(number, z=z))
        book.record(event(number, z=z))
    with pytest.raises(RefusedError, match="2 of 2 devices .* participation 6 with ε = 4.4") as refusal:
        book.check(event(6, z=z))
    assert refusal.value.rule == "budget"
    assert book.spent("gw-1", 6).releases == 5, "asking costs nothing"
    book.check(event(11, z=z))


def test_a_device_past_its_participations_refuses_the_round_and_is_named() -> None:
    book = ledger(*(event(number, "gw-7", z=100.0) for number in (1, 2, 3)))
    with pytest.raises(RefusedError, match="found 1 of 2 devices .* gw-7 to participation 4 .* at most 3") as refusal:
        book.check(event(4, "gw-1", "gw-7", z=100.0))
    assert refusal.value.rule == "budget"
    book.check(event(4, "gw-1", z=100.0))
    assert book.eligible(["gw-7", "gw-1", "gw-0"], 4, 100.0) == ("gw-1", "gw-0")
    assert book.eligible(["gw-7"], 11, 100.0) == ("gw-7",)


def test_a_release_that_was_recorded_passes_again_although_the_budget_is_spent() -> None:
    last = event(3, "gw-7", z=100.0)
    book = ledger(event(1, "gw-7", z=100.0), event(2, "gw-7", z=100.0), last)
    book.check(last)
    with pytest.raises(RefusedError) as refusal:
        book.check(replace(last, devices=("gw-1", "gw-7")))
    assert refusal.value.rule == "attempt"
    with pytest.raises(RefusedError) as refusal:
        book.check(replace(last, noise_multiplier=200.0))
    assert refusal.value.rule == "attempt"


def test_a_round_without_noise_passes_only_where_nothing_is_promised() -> None:
    with pytest.raises(RefusedError, match="unbounded"):
        ledger().check(event(1, z=0.0))
    ledger(budget=OPEN).check(event(1, z=0.0))
    assert ledger().eligible(["gw-1"], 1, 0.0) == ()


def test_too_little_noise_for_a_single_round_is_refused_for_everyone() -> None:
    assert ledger().eligible(["gw-1", "gw-2"], 1, 1.0) == ()
    assert ledger().eligible(["gw-1", "gw-2"], 1, 1.2) == ("gw-1", "gw-2")


def test_what_a_further_round_would_cost() -> None:
    book = ledger(event(1, "gw-1"))
    assert book.epsilon_with(["gw-1", "gw-2"], 2, 4.0) == pytest.approx(epsilon_after(4.0, 2, DELTA), rel=1e-12)
    assert book.epsilon_with(["gw-2"], 2, 4.0) == pytest.approx(epsilon_after(4.0, 1, DELTA), rel=1e-12)
    assert book.epsilon_with([], 2, 4.0) == 0.0
    assert book.epsilon_with(["gw-2"], 2, 0.0) == math.inf


def test_a_plan_that_promises_nothing_is_a_budget_without_limits() -> None:
    assert Budget.of(PrivacyPlan()) == Budget(math.inf, 1e-6, 0, 1000)
    plan = PrivacyPlan(noise_multiplier=4.0, epsilon_max=4.0, participations_max=10, period_rounds=50, delta=1e-5)
    assert Budget.of(plan) == Budget(4.0, 1e-5, 10, 50)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_max": -1.0}, {"epsilon_max": math.nan}, {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan},
        {"participations_max": -1}, {"period_rounds": 0},
    ],
)  # fmt: skip
def test_a_budget_out_of_range_is_the_operators(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="privacy budget"):
        replace(BUDGET, **change)


def test_another_tasks_event_and_round_zero_are_faults() -> None:
    foreign = replace(event(1), task="sensor")
    for call in (lambda: ledger(foreign), lambda: ledger().check(foreign), lambda: ledger().record(foreign)):
        with pytest.raises(ValueError, match="task"):
            call()
    with pytest.raises(ValueError, match="task"):
        Ledger("network", BUDGET, FoldedHistory("sensor"))
    with pytest.raises(ValueError, match="task"):
        Ledger("network", BUDGET, FoldedHistory("network", 5), [foreign])
    with pytest.raises(ValueError, match="round"):
        ledger().spent("gw-1", 0)


# --- folding ---


def test_folding_keeps_every_device_and_closes_its_periods() -> None:
    book = ledger(event(1, "gw-1"), event(10, "gw-1", "gw-2", z=0.0), event(11, "gw-2"), budget=OPEN)
    before = {device: book.spent_ever(device) for device in ("gw-1", "gw-2")}
    over = book.fold(15)
    assert [e.round for e in over] == [1, 10]
    assert (book.history.through, book.history.releases, book.releases) == (10, 2, 3)
    assert {device: book.spent_ever(device) for device in before} == before
    assert book.spent("gw-2", 15).releases == 1
    assert book.fold(15) == ()
    with pytest.raises(RefusedError) as refusal:
        book.check(event(10, "gw-1", attempt=2))
    assert refusal.value.rule == "period"
    assert book.eligible(["gw-5"], 10, 100.0) == ()
    with pytest.raises(ValueError, match="expected one after 10"):
        book.record(event(9))


def test_a_crash_between_writing_the_history_and_deleting_its_events_counts_nothing_twice() -> None:
    events = [event(1, "gw-1"), event(2, "gw-1", "gw-2"), event(12, "gw-1")]
    book = ledger(*events)
    book.fold(12)
    stored = FoldedHistory.from_bytes(book.history.to_bytes(), "k")
    again = Ledger("network", BUDGET, stored, events)
    assert again.exposures() == book.exposures()
    assert again.releases == 3


def test_a_crash_before_the_history_was_written_loses_nothing() -> None:
    events = [event(1, "gw-1"), event(12, "gw-1")]
    book = ledger(*events)
    book.fold(12)
    assert Ledger("network", BUDGET, None, events).exposures() == book.exposures()


def test_a_longer_period_takes_in_all_that_was_folded() -> None:
    book = ledger(event(1, "gw-1"), event(2, "gw-1"), event(11, "gw-1"))
    book.fold(11)
    longer = Ledger("network", replace(BUDGET, period_rounds=50), book.history, [event(11, "gw-1")])
    assert longer.spent("gw-1", 12).releases == 3
    assert longer.eligible(["gw-1", "gw-2"], 12, 100.0) == ("gw-2",)
    assert longer.spent("gw-1", 51) == NOTHING


def test_periods_fold_one_after_the_other() -> None:
    book = ledger(budget=OPEN)
    for number in range(1, 101):
        book.record(event(number, "gw-0", f"gw-{number}"))
        book.fold(number)
    assert book.history.through == 90
    assert book.history.releases == 90
    assert book.spent_ever("gw-0").releases == 100
    assert book.spent_ever("gw-0").units == 100 * exposure_of(4.0).units
    assert len(book.history.to_bytes()) < 90 * 30


# --- storing ---


def test_an_event_and_a_history_survive_their_bytes() -> None:
    one = event(7, "gw-1", "gw-2", z=1.25, attempt=3, scope=Scope.GROUP)
    assert PrivacyEvent.from_bytes(one.to_bytes(), "k") == one
    history = FoldedHistory("network").with_events([one, event(8, z=0.0)], 10)
    assert FoldedHistory.from_bytes(history.to_bytes(), "k") == history


def test_the_largest_event_can_be_stored() -> None:
    many = event(1, *(f"{number:060d}" for number in range(DEVICES_MAX)))
    assert PrivacyEvent.from_bytes(many.to_bytes(), "k") == many
    with pytest.raises(ValueError, match="devices"):
        event(1, *(f"{number:06d}" for number in range(DEVICES_MAX + 1)))


def damaged(**change: object) -> bytes:
    return bytes(msgpack.packb(msgpack.unpackb(event(1).to_bytes()) | change))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x80", event(1).to_bytes()[:-1], event(1).to_bytes() + b"\x00", msgpack.packb([1, 2]),
        damaged(format=2), damaged(extra=1), damaged(task="No"), damaged(task=3), damaged(round=0), damaged(round=1.0),
        damaged(round=True), damaged(attempt=-1), damaged(noise_multiplier=-1.0), damaged(noise_multiplier=math.nan),
        damaged(noise_multiplier="4"), damaged(noise_multiplier=math.inf), damaged(clip_norm=0.0),
        damaged(weight_max=0),
        damaged(scope="some"), damaged(scope=None), damaged(devices=[]), damaged(devices=["gw-2", "gw-1"]),
        damaged(devices=["gw-1", "gw-1"]), damaged(devices=["GW"]), damaged(devices=[1]), damaged(devices=None),
        damaged(task="x" * 65), msgpack.packb({"format": 1, "task": "network"}), bytes(5 * 2**20),
    ],
)  # fmt: skip
def test_what_is_no_event_is_for_the_operator(data: bytes) -> None:
    with pytest.raises(ConfigError, match="stored privacy/network/1: found"):
        PrivacyEvent.from_bytes(data, "privacy/network/1")


def history_with(**change: object) -> bytes:
    return bytes(msgpack.packb({"format": 1, "task": "network", "through": 1, "releases": 1, "devices": {}} | change))


@pytest.mark.parametrize(
    "data",
    [
        b"", event(1).to_bytes(), history_with(through=-1), history_with(releases="1"), history_with(devices=[]),
        history_with(devices={"gw-1": [1, b"\x01"]}), history_with(devices={"gw-1": [0, b"\x01", 1]}),
        history_with(devices={"gw-1": [1, 1, 0]}), history_with(devices={"gw-1": [-1, b"", 0]}),
        history_with(devices={"gw-1": [1, bytes(33), 0]}), history_with(devices={"GW": [1, b"\x01", 0]}),
        history_with(devices={"gw-2": [1, b"\x01", 0], "gw-1": [1, b"\x01", 0]}),
    ],
)  # fmt: skip
def test_what_is_no_history_is_for_the_operator(data: bytes) -> None:
    with pytest.raises(ConfigError, match="stored k: found"):
        FoldedHistory.from_bytes(data, "k")


# --- showing ---


def test_the_table_says_what_was_spent_and_what_comes_next() -> None:
    book = ledger(event(1, "gw-1"), event(2, "gw-1", "gw-2"), event(11, "gw-2"), event(12, "gw-2"), event(13, "gw-2"))
    row = privacy_row(book, 14, 4.0)
    assert (row.task, row.period, row.releases) == ("network", (11, 20), 5)
    assert (row.most_exposed, row.participations) == ("gw-2", 3)
    assert row.epsilon_period == pytest.approx(epsilon_after(4.0, 3, DELTA))
    assert (row.most_exposed_ever, row.participations_ever) == ("gw-2", 4)
    assert row.epsilon_ever == pytest.approx(epsilon_after(4.0, 4, DELTA))
    assert row.epsilon_further == pytest.approx(epsilon_after(4.0, 4, DELTA))
    assert (row.refused, row.asked, row.would_be_refused) == (1, 1, True)
    others = privacy_row(book, 14, 4.0, ["gw-1", "gw-3"])
    assert (others.refused, others.asked, others.would_be_refused) == (0, 2, False)
    assert others.epsilon_further == pytest.approx(epsilon_after(4.0, 1, DELTA))


def test_before_the_first_round_the_table_reckons_with_a_new_device() -> None:
    row = privacy_row(ledger(), 1, 4.0)
    assert (row.most_exposed, row.participations, row.epsilon_period, row.epsilon_ever) == ("", 0, 0.0, 0.0)
    assert row.epsilon_further == pytest.approx(epsilon_after(4.0, 1, DELTA))
    assert (row.asked, row.would_be_refused) == (1, False)
    assert privacy_row(ledger(), 1, 0.0).would_be_refused
    assert privacy_row(ledger(), 1, 0.0).epsilon_further == math.inf


def test_there_is_a_row_for_each_task() -> None:
    sensor = Ledger("sensor", OPEN, events=[replace(event(1), task="sensor", noise_multiplier=0.0)])
    network = ledger(event(1))
    rows = privacy_rows([(sensor, 2, 0.0), (network, 2, 4.0)])
    assert [row.task for row in rows] == ["network", "sensor"]
    assert [epsilon_text(row.epsilon_period) for row in rows][1] == "unbounded"
    assert not rows[1].would_be_refused
