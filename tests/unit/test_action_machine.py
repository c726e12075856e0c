"""What the aggregator does by itself: only after several words, only so often, and once for one cause."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vedette_aggregator.action_machine import (
    Act,
    ActionMachine,
    AlertOpened,
    DeviceLeft,
    DeviceReported,
    ReleaseActivated,
)
from vedette_aggregator.action_settings import ActionsSection
from vedette_core.machine import Effect, Event, Note, Persist

NOW = 1_800_000_000.0
HOUR = 3600.0
ON: dict[str, Any] = {"recalibrate": "on", "extra_round": "on", "rollback": "on"}
SIX = tuple(f"gw-{i}" for i in range(6))


class Watcher:
    """A machine with a disk and a clock."""

    def __init__(self, **changes: Any) -> None:
        self.settings = ActionsSection(**(ON | changes))
        self.disk: dict[str, bytes | None] = {}
        self.acts: list[Act] = []
        self.notes: list[str] = []
        self.now = NOW
        self.restart()

    def restart(self) -> None:
        self.machine = ActionMachine("network", self.settings, self.disk.get("actions/network"))

    def handle(self, event: Event) -> list[Effect]:
        effects = self.machine.handle(event, self.now)
        for index, effect in enumerate(effects):
            if isinstance(effect, Persist):
                self.disk[effect.key] = effect.value
            elif isinstance(effect, Act):
                assert any(isinstance(e, Persist) for e in effects[:index]), "persist stands before the deed"
                self.acts.append(effect)
            elif isinstance(effect, Note):
                self.notes.append(effect.text)
        return effects

    def report(self, device: str, drifting: bool, times: int = 1, version: int = 1) -> None:
        for _ in range(times):
            self.handle(DeviceReported(device, version, drifting))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(act.kind, act.device) for act in self.acts]


# --- recalibrate ---


def test_a_device_must_drift_several_times_in_a_row() -> None:
    watcher = Watcher()
    for _ in range(5):
        watcher.report("gw-0", True, times=2)
        watcher.report("gw-0", False)
    assert watcher.acts == []
    watcher.report("gw-0", True, times=3)
    assert watcher.kinds == [("recalibrate", "gw-0")]
    assert watcher.acts[0].mode == "on"


def test_a_device_is_asked_once_for_one_drift_and_must_be_calm_before_the_next() -> None:
    watcher = Watcher()
    watcher.report("gw-0", True, times=20)
    watcher.report("gw-0", False, times=2)
    watcher.now += 30 * HOUR
    watcher.report("gw-0", True, times=20)
    assert len(watcher.acts) == 1, "two calm reports do not end a drift"
    watcher.report("gw-0", False, times=3)
    watcher.report("gw-0", True, times=3)
    assert len(watcher.acts) == 2


def test_a_device_that_drifts_again_soon_is_a_persons_business() -> None:
    watcher = Watcher()
    watcher.report("gw-0", True, times=3)
    watcher.report("gw-0", False, times=3)
    watcher.restart()
    watcher.now += HOUR
    watcher.report("gw-0", True, times=3)
    assert len(watcher.acts) == 1, "a restart does not forget"
    assert "look at it" in watcher.notes[0]


def test_recalibrations_of_a_fleet_are_bounded_an_hour() -> None:
    watcher = Watcher(recalibrations_per_hour=2, extra_round="off")
    for device in SIX:
        watcher.report(device, True, times=3)
    assert watcher.kinds == [("recalibrate", "gw-0"), ("recalibrate", "gw-1")]
    assert "recalibrations_per_hour is used up" in watcher.notes[-1]


def test_another_release_begins_the_count_anew() -> None:
    watcher = Watcher()
    watcher.report("gw-0", True, times=2, version=1)
    watcher.report("gw-0", True, times=2, version=2)
    assert watcher.acts == []


# --- extra round ---


def test_a_round_is_asked_for_once_while_many_devices_drift() -> None:
    watcher = Watcher(recalibrate="off", devices_min=4)
    for device in SIX:
        watcher.report(device, False)
    for device in SIX[:2]:
        watcher.report(device, True, times=9)
    assert watcher.acts == []
    watcher.report(SIX[2], True, times=9)
    assert watcher.kinds == [("extra-round", "")]
    watcher.now += 100 * HOUR
    for device in SIX:
        watcher.report(device, True, times=9)
    assert len(watcher.acts) == 1, "the share never fell: another round would not help either"
    for device in SIX:
        watcher.report(device, False, times=3)
    for device in SIX:
        watcher.report(device, True, times=3)
    assert len(watcher.acts) == 2


def test_rounds_that_are_asked_for_keep_their_distance_over_a_restart() -> None:
    watcher = Watcher(recalibrate="off", devices_min=2)
    for turn in range(4):
        watcher.now = NOW + turn * 2 * HOUR
        watcher.restart()
        for device in SIX:
            watcher.report(device, True, times=3)
        for device in SIX:
            watcher.report(device, False, times=3)
    assert len(watcher.acts) == 2, "at 0 and at 6 hours"


def test_devices_that_left_do_not_count() -> None:
    watcher = Watcher(recalibrate="off", devices_min=3)
    for device in SIX:
        watcher.report(device, False)
    watcher.report("gw-0", True, times=3)
    for device in SIX[2:]:
        watcher.handle(DeviceLeft(device))
    watcher.report("gw-0", True, times=3)
    assert watcher.acts == [], "two of them are fewer than devices_min"


# --- rollback ---


def released(watcher: Watcher, version: int = 2, *, fresh: bool = True) -> None:
    for device in SIX:
        watcher.report(device, False, version=version - 1)
    watcher.handle(ReleaseActivated(version, fresh))
    for device in SIX:
        watcher.report(device, False, version=version)


def test_a_fresh_release_on_which_devices_fire_together_is_taken_back_once() -> None:
    watcher = Watcher()
    released(watcher)
    for device in SIX[:2]:
        watcher.handle(AlertOpened(device, 2))
        watcher.handle(AlertOpened(device, 2))
    assert watcher.acts == [], "one device counts once, however often it fires"
    watcher.handle(AlertOpened(SIX[2], 2))
    assert watcher.kinds == [("rollback", "")]
    assert watcher.acts[0].version == 2
    assert "3 of 6 devices on release 2" in watcher.acts[0].reason
    for device in SIX:
        watcher.handle(AlertOpened(device, 2))
    watcher.restart()
    released(watcher)
    for device in SIX:
        watcher.handle(AlertOpened(device, 2))
    assert len(watcher.acts) == 1


def test_devices_that_scored_nothing_before_a_release_say_nothing_about_it() -> None:
    watcher = Watcher()
    watcher.handle(ReleaseActivated(1, True))
    for device in SIX:
        watcher.report(device, False)
        watcher.handle(AlertOpened(device, 1))
    assert watcher.acts == [], "the first release of all: nothing tells an attack from a bad model"


@pytest.mark.parametrize("case", ["old", "gone back to", "another release", "few devices", "as before"])
def test_what_is_no_reason_to_go_back(case: str) -> None:
    watcher = Watcher(devices_min=7 if case == "few devices" else 5)
    if case == "as before":
        for device in SIX[:3]:
            watcher.handle(AlertOpened(device, 1))
    released(watcher, fresh=case != "gone back to")
    if case == "old":
        watcher.now += HOUR
    for device in SIX:
        watcher.handle(AlertOpened(device, 1 if case == "another release" else 2))
        if case == "as before" and device == SIX[4]:
            break
    assert watcher.acts == []


def test_rollbacks_are_bounded_a_day_over_a_restart() -> None:
    watcher = Watcher()
    for version, hour in ((2, 0.0), (4, 2.0), (6, 25.0)):
        watcher.now = NOW + hour * HOUR
        watcher.restart()
        released(watcher, version)
        for device in SIX:
            watcher.handle(AlertOpened(device, version))
    assert [act.version for act in watcher.acts] == [2, 6]
    assert "rollbacks_per_day is used up" in watcher.notes[0]


# --- modes and limits ---


@pytest.mark.parametrize("mode", ["off", "watch"])
def test_by_default_nothing_is_done(mode: str) -> None:
    assert {ActionsSection().recalibrate, ActionsSection().extra_round, ActionsSection().rollback} == {"watch"}
    watcher = Watcher(recalibrate=mode, extra_round=mode, rollback=mode)
    released(watcher)
    for device in SIX:
        watcher.report(device, True, times=3, version=2)
        watcher.handle(AlertOpened(device, 2))
    assert {act.mode for act in watcher.acts} == (set() if mode == "off" else {"watch"})


@given(st.binary(max_size=100))
def test_a_damaged_record_is_none(saved: bytes) -> None:
    machine = ActionMachine("network", ActionsSection(**ON), saved)
    effects = [e for _ in range(3) for e in machine.handle(DeviceReported("gw-0", 1, True), NOW)]
    assert any(isinstance(e, Act) for e in effects)


EVENTS = st.one_of(
    st.builds(DeviceReported, st.sampled_from(SIX), st.integers(1, 3), st.booleans()),
    st.builds(AlertOpened, st.sampled_from(SIX), st.integers(1, 3)),
    st.builds(ReleaseActivated, st.integers(1, 3), st.booleans()),
    st.builds(DeviceLeft, st.sampled_from(SIX)),
    st.just(None),
)


@hypothesis_settings(max_examples=200)
@given(st.lists(st.tuples(EVENTS, st.floats(0, 4 * HOUR)), max_size=120))
def test_no_history_gets_past_the_brakes(history: list[tuple[Event | None, float]]) -> None:
    """Whatever comes, restarts (None) included: distances and numbers hold."""
    watcher = Watcher(reports_min=1, devices_min=2, recalibrations_per_hour=2)
    at: list[tuple[str, str, float]] = []
    for event, after_s in history:
        watcher.now += after_s
        before = len(watcher.acts)
        watcher.restart() if event is None else watcher.handle(event)
        at += [(act.kind, act.device, watcher.now) for act in watcher.acts[before:]]
    for index, (kind, device, now) in enumerate(at):
        earlier = [(d, t) for k, d, t in at[:index] if k == kind]
        if kind == "recalibrate":
            assert all(now - t >= 24 * HOUR for d, t in earlier if d == device)
            assert sum(now - t < HOUR for _, t in earlier) < 2
        elif kind == "extra-round":
            assert all(now - t >= 6 * HOUR for _, t in earlier)
        else:
            assert all(now - t >= 24 * HOUR for _, t in earlier)
