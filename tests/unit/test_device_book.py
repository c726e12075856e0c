"""Devices on disk and the drift of cohorts: bounded, behind by seconds, and readable beside the aggregator."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vedette_aggregator import device_book, fleet_drift
from vedette_aggregator.device_book import FLUSH_S, TABLES, Action, DeviceBook
from vedette_aggregator.fleet_drift import CohortDrift, drift_kinds, has_drifted
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database
from vedette_schemas.errors import ConfigError, TransientError
from vedette_schemas.telemetry import ColumnDrift, DetectorReport, DeviceState, DriftReport, Telemetry

NOW = 1_800_000_000.0


def state(device: str, **changes: Any) -> DeviceState:
    fields: dict[str, Any] = {
        "device": device,
        "status": "online",
        "session": "0" * 16,
        "seq": 1,
        "time": "2026-01-01T00:00:00Z",
        "software": "0.1.0",
    }
    return DeviceState(**(fields | changes))


def report(device: str, *, drift: bool | None = True, task: str = "network") -> Telemetry:
    found = None
    if drift is not None:
        found = DriftReport(
            windows=2048,
            psi=0.9 if drift else 0.01,
            ks=0.5 if drift else 0.05,
            ks_p=1e-6 if drift else 0.6,
            calibration_error=0.4 if drift else 0.05,
            columns=(ColumnDrift(name="syn_count", psi=3.5),) if drift else (),
        )
    return Telemetry(
        device=device,
        session="0" * 16,
        seq=1,
        time_s=NOW,
        uptime_s=1.0,
        rss_bytes=1,
        cpu_s=1.0,
        spool_messages=0,
        spool_bytes=0,
        spool_dropped=0,
        bytes_up=0,
        detectors=(DetectorReport(task=task, phase="armed", windows=7, refused={}, model_version=3, drift=found),),
    )


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "aggregator.db", TABLES)


def test_what_devices_said_is_on_disk_some_seconds_later(database: Database, tmp_path: Path) -> None:
    book = DeviceBook(database)
    book.take_cohort("gw-01", "camera", NOW)
    book.take_state(state("gw-01"), NOW + 1)
    book.take_report(report("gw-01"), NOW + 2)
    book.flush(NOW + 2)
    other = DeviceBook(Database(tmp_path / "aggregator.db", TABLES))
    found = other.devices()["gw-01"]
    assert (found["cohort"], found["status"], found["seen_s"]) == ("camera", "online", NOW + 2)
    assert found["detectors"]["network"]["drift"]["kinds"] == ["calibration", "feature", "score"]
    assert found["detectors"]["network"]["drift"]["columns"] == {"syn_count": 3.5}
    book.take_state(state("gw-01", status="lost"), NOW + 3)
    book.flush(NOW + 2 + FLUSH_S - 0.1)
    assert other.devices()["gw-01"]["status"] == "online"
    book.flush(NOW + 2 + FLUSH_S)
    assert other.devices()["gw-01"]["status"] == "lost"
    assert other.devices()["gw-01"]["cohort"] == "camera", "what was said before a write, or a restart, stays"


def test_a_clock_that_is_set_back_does_not_stop_the_writing(database: Database) -> None:
    book = DeviceBook(database)
    book.take_state(state("gw-01"), NOW)
    book.flush(NOW)
    book.take_state(state("gw-01", status="stopped"), NOW - 9000)
    book.flush(NOW - 9000)
    assert book.devices()["gw-01"]["status"] == "stopped"


def test_the_book_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_book, "DEVICES_MAX", 3)
    monkeypatch.setattr(device_book, "ACTIONS_KEPT", 2)
    book = DeviceBook(database)
    for i in range(5):
        book.take_state(state(f"gw-{i}"), NOW + i)
        book.record(Action(NOW + i, "network", "recalibrate", f"gw-{i}", "done", "why"))
    book.flush(NOW, at_once=True)
    assert set(book.devices()) == {"gw-2", "gw-3", "gw-4"}
    assert [a.device for a in book.actions()] == ["gw-3", "gw-4"]
    assert book.actions("gw-4") == (Action(NOW + 4, "network", "recalibrate", "gw-4", "done", "why"),)


def test_a_damaged_row_is_named(database: Database, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "aggregator.db") as connection:
        connection.execute("INSERT INTO devices VALUES ('gw-01', 1.0, '[')")
        connection.execute("INSERT INTO devices VALUES ('gw-02', 1.0, '7')")
    book = DeviceBook(database)
    with pytest.raises(ConfigError, match="record of gw-01"):
        book.devices()
    for device in ("gw-01", "gw-02"):
        book.take_cohort(device, "camera", NOW)
    book.flush(NOW, at_once=True)
    assert {d["cohort"] for d in book.devices().values()} == {"camera"}, "the devices' next word mends it"


def test_a_full_disk_is_tried_again_later_and_nothing_is_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, tries = DeviceBook(database), []

    @contextmanager
    def full() -> Iterator[sqlite3.Connection]:
        tries.append(1)
        raise TransientError("disk full")
        yield database.connection

    book.take_state(state("gw-01"), NOW)
    with monkeypatch.context() as patched:
        patched.setattr(database, "transaction", full)
        with pytest.raises(TransientError):
            book.flush(NOW)
        book.flush(NOW + 0.1)
        book.flush(NOW + FLUSH_S - 0.1)
        assert len(tries) == 1
    book.flush(NOW + FLUSH_S)
    assert set(book.devices()) == {"gw-01"}


# --- cohorts ---


def test_kinds_of_drift() -> None:
    (drifting,) = report("gw-01").detectors
    (calm,) = report("gw-01", drift=False).detectors
    (silent,) = report("gw-01", drift=None).detectors
    assert drift_kinds(drifting) == {"score", "feature", "calibration"}
    assert has_drifted(drifting)
    assert drift_kinds(calm) == drift_kinds(silent) == frozenset()
    assert drifting.drift is not None
    columns = DetectorReport(
        task="network", phase="armed", windows=7, refused={},
        drift=drifting.drift.model_copy(update={"psi": 0.0, "calibration_error": 0.0}),
    )  # fmt: skip
    assert drift_kinds(columns) == {"feature"}
    assert not has_drifted(columns), "columns that move and scores that do not need no new calibration"


def shown(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("vedette_drifting_cohort_share", {"task": "network"})


def test_the_cohort_that_drifts_most_is_shown() -> None:
    metrics = Metrics(AGGREGATOR_METRICS)
    cohorts = CohortDrift(metrics)
    for i in range(8):
        cohorts.take(report(f"cam-{i}", drift=i < 2), "camera")
    for i in range(4):
        cohorts.take(report(f"tank-{i}", drift=i < 3), "tank")
    cohorts.take(report("lamp-0"), "lamp")
    assert (cohorts.share("network", "camera"), cohorts.share("network", "tank")) == (0.25, 0.75)
    assert cohorts.share("network", "lamp") is None, "one device is no cohort"
    assert shown(metrics) == 0.75
    cohorts.take(report("tank-0", drift=False), "tank")
    assert shown(metrics) == 0.5
    for i in range(4):
        cohorts.forget(f"tank-{i}")
    assert shown(metrics) == 0.25
    assert cohorts.share("network", "tank") is None


def test_cohorts_that_devices_make_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_drift, "COHORTS_MAX", 2)
    cohorts = CohortDrift(Metrics(AGGREGATOR_METRICS))
    for i in range(10):
        cohorts.take(report(f"gw-{i}"), f"kind-{i}")
    assert cohorts.share("network", fleet_drift.OTHERS) == 1.0
    assert len(cohorts._devices["network"]) == 3
    for i in range(10):
        cohorts.forget(f"gw-{i}")
    assert not cohorts._devices["network"]
