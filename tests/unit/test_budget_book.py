"""The device's budget on disk, and what its platform tells of batteries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette_core.runtime.storage import Database, StateStore
from vedette_device.budget_book import KEY, BudgetBook, read_battery
from vedette_device.participation_budget import ParticipationLimits
from vedette_schemas.errors import ConfigError, TransientError

NOW = 1_900_000_000.0
TASK = "network"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    database = Database(tmp_path / "state.db")
    yield StateStore(database)
    database.close()


def supply(folder: Path, name: str, **files: str) -> None:
    """A power supply as the kernel shows one: a file a property, with a newline."""
    (folder / name).mkdir(parents=True)
    for key, value in files.items():
        (folder / name / key).write_text(f"{value}\n")


def battery(folder: Path, name: str = "BAT0", capacity: int = 40, status: str = "Discharging", **more: str) -> None:
    supply(folder, name, type="Battery", capacity=str(capacity), status=status, **more)


# -- batteries --------------------------------------------------------------------------------------------------------


def test_a_platform_without_power_supplies_tells_nothing(tmp_path: Path) -> None:
    assert read_battery(tmp_path) == (None, False)
    assert read_battery(tmp_path / "missing") == (None, False)
    (tmp_path / "file").write_text("x")
    assert read_battery(tmp_path / "file") == (None, False)


def test_the_emptiest_battery_counts(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", 80)
    battery(tmp_path, "BAT1", 30)
    assert read_battery(tmp_path) == (0.3, False)


@pytest.mark.parametrize(
    ("status", "charging"), [("Charging", True), ("Full", True), ("Discharging", False), ("Not charging", False)]
)
def test_a_battery_says_itself_whether_it_is_charged(tmp_path: Path, status: str, charging: bool) -> None:
    battery(tmp_path, status=status)
    assert read_battery(tmp_path) == (0.4, charging)


@pytest.mark.parametrize(("online", "external"), [("0", False), ("1", True), ("2", True), ("", False)])
@pytest.mark.parametrize("kind", ["Mains", "USB"])
def test_external_power_is_told_by_its_own_supply(tmp_path: Path, kind: str, online: str, external: bool) -> None:
    battery(tmp_path)
    supply(tmp_path, "AC", type=kind, online=online)
    assert read_battery(tmp_path) == (0.4, external)


def test_a_mains_supply_alone_is_no_battery(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    assert read_battery(tmp_path) == (None, True)


def test_a_mouse_is_not_the_gateways_battery(tmp_path: Path) -> None:
    battery(tmp_path, "hidpp_battery_0", 3, scope="Device")
    assert read_battery(tmp_path) == (None, False)
    battery(tmp_path, "BAT0", 70, scope="System")
    assert read_battery(tmp_path) == (0.7, False)


@pytest.mark.parametrize("capacity", ["", "unknown", "-5", "4.5"])
def test_what_is_no_charge_counts_for_nothing(tmp_path: Path, capacity: str) -> None:
    supply(tmp_path, "BAT0", type="Battery", capacity=capacity, status="Discharging")
    assert read_battery(tmp_path) == (None, False)


def test_properties_that_cannot_be_read_count_for_nothing(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery")
    (tmp_path / "BAT1" / "type").mkdir(parents=True)
    (tmp_path / "BAT2").mkdir()
    (tmp_path / "BAT2" / "type").write_bytes(b"\xff\xfe")
    assert read_battery(tmp_path) == (None, False)


def test_an_empty_battery_keeps_a_device_away_until_it_is_charged(store: StateStore, tmp_path: Path) -> None:
    supplies = tmp_path / "power_supply"
    battery(supplies, capacity=20)
    book = BudgetBook(store, ParticipationLimits(battery_min=0.5), 3.0, supplies)
    assert "battery at 20%" in book.refusal(NOW, TASK, 1)
    (supplies / "BAT0" / "status").write_text("Charging\n")
    assert book.refusal(NOW, TASK, 1) == ""
    (supplies / "BAT0" / "status").write_text("Discharging\n")
    (supplies / "BAT0" / "capacity").write_text("50\n")
    assert book.refusal(NOW, TASK, 1) == ""


# -- the book ---------------------------------------------------------------------------------------------------------


def test_what_was_spent_is_known_after_a_restart(store: StateStore, tmp_path: Path) -> None:
    limits = ParticipationLimits(cpu_s_per_day=100.0)
    book = BudgetBook(store, limits, 3.0, tmp_path)
    assert book.refusal(NOW, TASK, 1) == ""
    book.record(NOW, TASK, 1, 60.0)
    refused = book.refusal(NOW + 60, TASK, 2)
    assert "60 s of 100 s a day spent" in refused
    again = BudgetBook(store, limits, 3.0, tmp_path)
    assert again.refusal(NOW + 60, TASK, 2) == refused
    assert again.refusal(NOW + 86_500, TASK, 2) == "", "a day later it may"


def test_energy_is_estimated_and_said_to_be(store: StateStore, tmp_path: Path) -> None:
    book = BudgetBook(store, ParticipationLimits(energy_wh_per_day=0.1), 6.0, tmp_path)
    book.record(NOW, TASK, 1, 60.0)
    assert "0.1 Wh (estimated) of 0.1 Wh a day spent" in book.refusal(NOW, TASK, 2)


def test_one_book_is_for_all_tasks(store: StateStore, tmp_path: Path) -> None:
    book = BudgetBook(store, ParticipationLimits(cpu_s_per_day=10.0, rounds_every=3), 3.0, tmp_path)
    book.record(NOW, TASK, 7, 10.0)
    assert "processor time" in book.refusal(NOW, "sensor", 1)
    later = NOW + 86_500
    assert "took part in round 7" in book.refusal(later, TASK, 9)
    assert book.refusal(later, "sensor", 9) == "", "how often counts a task"


def test_new_limits_hold_for_what_was_spent_under_the_old_ones(store: StateStore, tmp_path: Path) -> None:
    BudgetBook(store, ParticipationLimits(), 3.0, tmp_path).record(NOW, TASK, 1, 50.0)
    strict = BudgetBook(store, ParticipationLimits(cpu_s_per_day=40.0), 3.0, tmp_path)
    assert "processor time: 50 s of 40 s" in strict.refusal(NOW + 1, TASK, 2)


class FullStore(StateStore):
    """A disk on which nothing fits any more."""

    def put(self, key: str, value: bytes | None) -> None:
        raise TransientError("state.db: cannot write (database or disk is full)")


def test_a_full_disk_forgets_at_the_next_start_and_stops_no_round(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    limits = ParticipationLimits(cpu_s_per_day=10.0)
    book = BudgetBook(FullStore(database), limits, 3.0, tmp_path)
    book.record(NOW, TASK, 1, 10.0)
    assert "processor time" in book.refusal(NOW, TASK, 2), "it knows as long as it runs"
    assert BudgetBook(StateStore(database), limits, 3.0, tmp_path).refusal(NOW, TASK, 2) == ""
    database.close()


@pytest.mark.parametrize("damaged", [b"", b"\x93 not it", b"\x80"])
def test_a_damaged_book_is_the_operators_to_mend(store: StateStore, tmp_path: Path, damaged: bytes) -> None:
    store.put(KEY, damaged)
    with pytest.raises(ConfigError, match="stored participation budget"):
        BudgetBook(store, ParticipationLimits(), 3.0, tmp_path)
