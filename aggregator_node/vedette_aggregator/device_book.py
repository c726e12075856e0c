"""The newest word of every device on disk, so that a command beside the running aggregator can show it.

A row a device, written some seconds behind what came in: of a hundred reports between two writes only the last is
written. What other tables hold (alerts, participation, quarantine) is put beside it when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from vedette_aggregator.fleet_drift import drift_kinds
from vedette_core.runtime.storage import Database
from vedette_schemas.errors import ConfigError
from vedette_schemas.telemetry import DetectorReport, DeviceState, Telemetry

DEVICES_MAX: Final = 100_000
"""Rows; as many as the fleet's metrics remember. Past it the device that was silent longest goes."""
FLUSH_S: Final = 5.0
"""Seconds between two writes."""
ACTIONS_KEPT: Final = 10_000

TABLES: Final = """
CREATE TABLE IF NOT EXISTS devices (
    device TEXT PRIMARY KEY, seen_s REAL NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS devices_seen ON devices (seen_s);
CREATE TABLE IF NOT EXISTS actions (
    position INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL,
    device TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that the aggregator did by itself.

    Attributes:
        at_s: epoch seconds.
        task: the task.
        kind: recalibrate, extra-round or rollback.
        device: to which device; empty for the whole task.
        outcome: done, watched (it would have been), begun, failed, nothing, or what the rollout answered.
        reason: for a person.
    """

    at_s: float
    task: str
    kind: str
    device: str
    outcome: str
    reason: str


class DeviceBook:
    """What devices said last, and what was done about it.

    Args:
        database: opened with `TABLES`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._documents: dict[str, dict[str, Any]] = {}
        self._dirty: set[str] = set()
        self._flushed_s = 0.0

    def take_state(self, state: DeviceState, now: float) -> None:
        """A device is online, stopped or lost; or runs other releases."""
        document = self._of(state.device)
        document["status"], document["software"] = state.status, state.software
        document["models"] = {
            m.task: {"version": m.version, "variant": m.variant, "digest": m.digest, "backend": m.backend}
            for m in state.models
        }
        document["rollouts"] = {p.task: {"candidate": p.candidate, "outcome": p.outcome} for p in state.rollouts}
        self._touch(state.device, document, now)

    def take_report(self, report: Telemetry, now: float) -> None:
        """A node report."""
        document = self._of(report.device)
        document["uptime_s"], document["rss_bytes"] = report.uptime_s, report.rss_bytes
        document["spool_messages"], document["spool_dropped"] = report.spool_messages, report.spool_dropped
        document["detectors"] = {d.task: _detector(d) for d in report.detectors}
        self._touch(report.device, document, now)

    def take_cohort(self, device: str, cohort: str, now: float) -> None:
        """What kind of device it says it is."""
        document = self._of(device)
        document["cohort"] = cohort
        self._touch(device, document, now)

    def flush(self, now: float, *, at_once: bool = False) -> None:
        """Write what is new, if it is time; call it often.

        Raises:
            TransientError: the disk is full; it is tried again.
        """
        if not self._dirty or (not at_once and 0 <= now - self._flushed_s < FLUSH_S):
            return
        self._flushed_s = now  # a full disk is tried again no sooner than this
        rows = [(d, self._documents[d]["seen_s"], json.dumps(self._documents[d])) for d in sorted(self._dirty)]
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO devices VALUES (?, ?, ?)", rows)
            (count,) = connection.execute("SELECT COUNT(*) FROM devices").fetchone()
            if count > DEVICES_MAX:
                connection.execute(
                    "DELETE FROM devices WHERE device IN (SELECT device FROM devices ORDER BY seen_s LIMIT ?)",
                    (count - DEVICES_MAX,),
                )
        self._dirty.clear()
        self._documents.clear()  # the disk has them: memory holds only what is between two writes

    def record(self, action: Action) -> None:
        """Write an action down; durable before this returns.

        Raises:
            TransientError: the disk is full.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO actions (at_s, task, kind, device, outcome, reason) VALUES (?, ?, ?, ?, ?, ?)",
                (action.at_s, action.task, action.kind, action.device, action.outcome[:100], action.reason[:400]),
            )
            connection.execute(
                "DELETE FROM actions WHERE position <= (SELECT MAX(position) FROM actions) - ?", (ACTIONS_KEPT,)
            )

    def actions(self, device: str | None = None, *, limit: int = 100) -> tuple[Action, ...]:
        """The newest actions, oldest of them first; of one device, or all."""
        where, values = ("WHERE device = ?", [device]) if device is not None else ("", [])
        rows = self._database.connection.execute(
            f"SELECT at_s, task, kind, device, outcome, reason FROM actions {where} ORDER BY position DESC LIMIT ?",
            [*values, limit],
        ).fetchall()
        return tuple(Action(*row) for row in rows[::-1])

    def devices(self) -> dict[str, dict[str, Any]]:
        """The document of every device on disk, by id.

        Raises:
            ConfigError: a row that cannot be read.
        """
        rows = self._database.connection.execute("SELECT device, document FROM devices ORDER BY device")
        return {str(device): _read(str(device), str(document)) for device, document in rows}

    def _of(self, device: str) -> dict[str, Any]:
        if device not in self._documents:
            row = self._database.connection.execute(
                "SELECT document FROM devices WHERE device = ?", (device,)
            ).fetchone()
            document: dict[str, Any] = {"cohort": ""}
            if row is not None:
                with suppress(ConfigError):  # what cannot be read is written anew: the device is about to say it all
                    document = _read(device, str(row[0]))
            self._documents[device] = document
        return self._documents[device]

    def _touch(self, device: str, document: dict[str, Any], now: float) -> None:
        document["seen_s"] = now
        self._dirty.add(device)


def _detector(detector: DetectorReport) -> dict[str, Any]:
    drift = detector.drift
    return {
        "phase": detector.phase,
        "windows": detector.windows,
        "model_version": detector.model_version,
        "alerts_opened": detector.alerts_opened,
        "score_us_p50": detector.score_us_p50,
        "drift": None
        if drift is None
        else {
            "windows": drift.windows,
            "kinds": sorted(drift_kinds(detector)),
            "psi": drift.psi,
            "ks": drift.ks,
            "ks_p": drift.ks_p,
            "changes": drift.changes,
            "calibration_error": drift.calibration_error,
            "columns": {column.name: column.psi for column in drift.columns},
            "constant": list(drift.constant),
            "shifted": list(drift.shifted),
        },
    }


def _read(device: str, document: str) -> dict[str, Any]:
    try:
        plain = json.loads(document)
        if not isinstance(plain, Mapping):
            raise ValueError(type(plain).__name__)
    except ValueError as fault:
        raise ConfigError(f"record of {device}: found {fault}, expected JSON; restore the state") from fault
    return dict(plain)
