"""Many devices of a kind that fire together are one event, and nobody else is."""

from __future__ import annotations

import pytest

from vedette_aggregator.fleet_event_machine import (
    AlertOpened,
    DeviceGone,
    DeviceKnown,
    FleetEventMachine,
    FleetEventSettings,
)
from vedette_core.machine import Count, Effect, Note, Tick

NOW = 1_800_000_000.0
SETTINGS = FleetEventSettings(share=0.3, devices_min=3, window_s=600.0)


def fleet(devices: int = 20, cohort: str = "pump", settings: FleetEventSettings = SETTINGS) -> FleetEventMachine:
    machine = FleetEventMachine(settings)
    for i in range(devices):
        assert machine.handle(DeviceKnown(f"{cohort}-{i}", "network", cohort), NOW) == []
    return machine


def fire(machine: FleetEventMachine, *names: str, at_s: float = NOW, now: float | None = None) -> list[Effect]:
    moment = at_s if now is None else now
    return [e for name in names for e in machine.handle(AlertOpened(name, "network", at_s), moment)]


def pumps(count: int, first: int = 0) -> list[str]:
    return [f"pump-{i}" for i in range(first, first + count)]


def counted(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(e.metric, e.outcome) for e in effects if isinstance(e, Count)]


def test_few_devices_are_no_event() -> None:
    machine = fleet()
    assert fire(machine, *pumps(5)) == []  # 6 of 20 are 30 %
    assert machine.open_events == ()
    assert machine.next_deadline() is None


def test_as_many_as_the_share_asks_for_are_one_event_said_once() -> None:
    machine = fleet()
    effects = fire(machine, *pumps(12))

    assert counted(effects) == [("fleet_events", "opened")] + [("fleet_event_alerts", "part")] * 6
    (note,) = [e for e in effects if isinstance(e, Note)]
    assert note.level == "warning"
    assert "6 of 20 devices within 600 s" in note.text
    assert machine.open_events == (("network", "pump"),)
    assert machine.next_deadline() == NOW + 600.0


def test_one_device_that_fires_often_is_one_device() -> None:
    assert fire(fleet(), *["pump-1"] * 50) == []


def test_in_a_small_kind_the_fewest_devices_count() -> None:
    machine = fleet(4)
    assert fire(machine, *pumps(2)) == []
    assert counted(fire(machine, "pump-2")) == [("fleet_events", "opened")]


def test_what_lies_further_apart_than_the_window_is_no_event() -> None:
    machine = fleet()
    for i, name in enumerate(pumps(20)):
        assert fire(machine, name, at_s=NOW + 130.0 * i) == []  # never more than five within 600 s


def test_kinds_and_tasks_are_apart() -> None:
    machine = fleet()
    for i in range(20):
        machine.handle(DeviceKnown(f"camera-{i}", "network", "camera"), NOW)
        machine.handle(DeviceKnown(f"pump-{i}", "sensor", "pump"), NOW)
    fire(machine, *pumps(5), *[f"camera-{i}" for i in range(5)])
    assert [machine.handle(AlertOpened(f"pump-{i}", "sensor", NOW), NOW) for i in range(5)] == [[]] * 5
    assert not machine.open_events

    fire(machine, "camera-5")
    assert machine.open_events == (("network", "camera"),)


def test_the_alerts_own_times_count_so_that_a_backlog_is_no_event() -> None:
    machine = fleet()
    backlog = [e for i, n in enumerate(pumps(20)) for e in fire(machine, n, at_s=NOW - 86_400 + 200 * i, now=NOW)]
    assert counted(backlog) == []

    fire(machine, "pump-0", at_s=NOW)
    late = fire(machine, *pumps(10, 5), at_s=NOW - 7200.0, now=NOW)
    assert counted(late) == [("machine_events", "discarded")] * 10
    assert machine.open_events == ()


def test_a_clock_that_is_ahead_cannot_hide_the_others() -> None:
    machine = fleet()
    fire(machine, "pump-19", at_s=NOW + 1e9, now=NOW)

    assert counted(fire(machine, *pumps(5))) == [("fleet_events", "opened")]


def test_an_event_ends_by_silence() -> None:
    machine = fleet()
    fire(machine, *pumps(8))
    assert machine.handle(Tick(), NOW + 599.0) == []

    effects = machine.handle(Tick(), NOW + 600.0)
    assert counted(effects) == [("fleet_events", "closed")]
    assert "over (silence) after 8 alerts" in effects[1].text  # type: ignore[attr-defined]
    assert machine.open_events == ()
    assert machine.handle(Tick(), NOW + 9999.0) == []


def test_an_event_ends_when_few_go_on_and_can_begin_again() -> None:
    machine = fleet()
    fire(machine, *pumps(8))
    ended = [e for i in range(4) for e in fire(machine, "pump-1", at_s=NOW + 250.0 * (i + 1))]
    assert counted(ended)[-1] == ("fleet_events", "closed")

    assert ("fleet_events", "opened") in counted(fire(machine, *pumps(8), at_s=NOW + 1200.0))


def test_devices_that_left_are_not_counted() -> None:
    machine = fleet()
    for name in pumps(10, 10):
        assert machine.handle(DeviceGone(name), NOW) == []

    assert counted(fire(machine, *pumps(3))) == [("fleet_events", "opened")]  # 3 of 10


def test_an_event_ends_when_its_devices_are_gone() -> None:
    machine = fleet(4)
    fire(machine, *pumps(3))
    effects = [e for name in pumps(4) for e in machine.handle(DeviceGone(name), NOW)]

    assert counted(effects) == [("fleet_events", "closed")]
    assert machine.open_events == ()
    assert machine._kinds == {}


def test_a_device_that_changes_its_kind_leaves_the_old_one() -> None:
    machine = fleet(4)
    fire(machine, *pumps(2))
    machine.handle(DeviceKnown("pump-0", "network", "camera"), NOW)

    assert fire(machine, "pump-2") == []
    assert counted(fire(machine, "pump-3")) == [("fleet_events", "opened")]


def test_a_device_that_nobody_knew_belongs_to_no_cohort() -> None:
    machine = FleetEventMachine(SETTINGS)
    fire(machine, "a", "b", "c")

    assert machine.open_events == (("network", ""),)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_aggregator.fleet_event_machine.DEVICES_MAX", 3)
    machine = fleet(5)

    assert counted(fire(machine, "stranger")) == [("machine_events", "discarded")]
    assert len(machine._cohorts) == 3
