"""Everything that an aggregator's state says of its devices, read beside it: `vedette device list` and `show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from vedette_aggregator import alert_store, device_book
from vedette_aggregator.device_book import DeviceBook
from vedette_aggregator.device_standing import attestations, certificate_end, moment, pins
from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.round_state import DeviceRecord, RoundKeys, below
from vedette_aggregator.settings import AggregatorSettings
from vedette_aggregator.state_file import open_state
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas import alert as alerts
from vedette_schemas.errors import ConfigError

ALERTS_SHOWN: Final = 10
ACTIONS_SHOWN: Final = 20


class DeviceReports:
    """Rows about devices.

    Args:
        database: the aggregator's.
        tasks: its tasks.
    """

    def __init__(self, database: Database, tasks: tuple[str, ...]) -> None:
        self._database, self._store = database, StateStore(database)
        self._book, self._quarantine = DeviceBook(database), Quarantine(self._store, tasks)
        self._tasks = tasks

    def rows(self) -> list[dict[str, Any]]:
        """One a device that ever said something, sorted by id."""
        documents, records = self._book.devices(), self._records()
        kept_out = {entry["device"]: entry for entry in self._quarantine.entries()}
        suspicion = self._suspicion()
        pinned, attested = pins(self._store, self._tasks), attestations(self._store)
        counted = self._alert_counts()
        names = sorted({*documents, *records, *counted, *kept_out, *pinned, *attested})
        return [
            {
                "device": name,
                **_plain(documents.get(name, {})),
                "alerts": counted.get(name, 0),
                "participation": {task: _participation(record) for task, record in records.get(name, {}).items()},
                "quarantined": kept_out.get(name),
                "suspicion": suspicion.get(name, {}),
                "pins": pinned.get(name, {}),
                "attestation": attested.get(name),
                "certificate_until": certificate_end(r.checkin.certificate for r in records.get(name, {}).values()),
            }
            for name in names
        ]

    def row(self, device: str) -> dict[str, Any]:
        """One device, with its newest alerts and what was done about it.

        Raises:
            ConfigError: nothing was ever heard of it.
        """
        rows = self.rows()
        found = next((row for row in rows if row["device"] == device), None)
        if found is None:
            known = ", ".join(row["device"] for row in rows[:10]) or "nobody has said anything yet"
            more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
            raise ConfigError(f"{device}: found nothing of it, expected one of: {known}{more}")
        actions = self._book.actions(device, limit=ACTIONS_SHOWN)
        return {
            **found,
            "newest_alerts": self._newest_alerts(device),
            "actions": [
                {"at": moment(a.at_s), "task": a.task, "kind": a.kind, "outcome": a.outcome, "reason": a.reason}
                for a in actions
            ],
        }

    def _records(self) -> dict[str, dict[str, DeviceRecord]]:
        """What rounds keep of each device, by task."""
        found: dict[str, dict[str, DeviceRecord]] = {}
        for task in self._tasks:
            keys = RoundKeys(task)
            for device, data in below(self._store.all(keys.devices), keys.devices).items():
                found.setdefault(device, {})[task] = DeviceRecord.from_bytes(data, keys.device(device))
        return found

    def _suspicion(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for suspect in self._quarantine.suspects():
            found.setdefault(suspect["device"], {})[suspect["task"]] = suspect["suspicion"]
        return found

    def _alert_counts(self) -> dict[str, int]:
        rows = self._database.connection.execute(
            "SELECT device, COUNT(DISTINCT id) FROM alerts GROUP BY device"
        ).fetchall()
        return {str(device): int(count) for device, count in rows}

    def _newest_alerts(self, device: str) -> list[dict[str, Any]]:
        rows = self._database.connection.execute(
            "SELECT document FROM alerts WHERE device = ? ORDER BY position DESC LIMIT ?", (device, ALERTS_SHOWN)
        ).fetchall()
        return [
            {
                "id": alert.id,
                "time": alert.time,
                "task": alert.model.task,
                "severity": alert.severity.value,
                "state": alert.state.value,
                "entity": alert.entity,
                "summary": alert.summary,
            }
            for alert in (alerts.decode(bytes(document)) for (document,) in rows)
        ]


@contextmanager
def open_device_reports(settings: AggregatorSettings) -> Iterator[DeviceReports]:
    """The devices of an aggregator, which may be running.

    Raises:
        ConfigError: there is no aggregator's state.
    """
    with open_state(settings, alert_store.TABLES + device_book.TABLES) as database:
        yield DeviceReports(database, tuple(task.task for task in settings.tasks))


def _participation(record: DeviceRecord) -> dict[str, int]:
    return {"selected": record.selected, "completed": record.completed, "last_round": record.last_round}


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """The book's document with a time for people."""
    seen = document.get("seen_s")
    return {
        "status": "unknown",
        "cohort": "",
        "software": "",
        "models": {},
        "detectors": {},
        "rollouts": {},
        **{name: value for name, value in document.items() if name != "seen_s"},
        "seen": moment(float(seen)) if seen else None,
    }
