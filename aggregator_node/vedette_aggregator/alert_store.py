"""Alerts that devices reported: each update kept once, bounded, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vedette_core.runtime.storage import Database
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert

ALERTS_MAX: Final = 200_000
"""Rows kept (about 150 MB); past it the oldest go. The long record is the analytics node's."""
TRIM_EVERY: Final = 1000

TABLES: Final = """
CREATE TABLE IF NOT EXISTS alerts (
    position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, seq INTEGER NOT NULL, device TEXT NOT NULL,
    received_s REAL NOT NULL, document BLOB NOT NULL, UNIQUE (device, id, seq)
);
"""


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An alert as it was received, with when (epoch seconds)."""

    alert: Alert
    received_s: float


class AlertStore:
    """Alerts on disk.

    Args:
        database: the aggregator's database, opened with `TABLES`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since_trim = 0

    def add(self, alert: Alert, received_s: float) -> bool:
        """Keep an alert durably.

        Returns:
            False if this update of it was already here.

        Raises:
            TransientError: the disk is full; the device will send it again.
        """
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT OR IGNORE INTO alerts (id, seq, device, received_s, document) VALUES (?, ?, ?, ?, ?)",
                (alert.id, alert.seq, alert.device, received_s, alerts.encode(alert)),
            )
            new = cursor.rowcount == 1
            self._since_trim += new
            if self._since_trim >= TRIM_EVERY:
                connection.execute(
                    "DELETE FROM alerts WHERE position <= (SELECT MAX(position) FROM alerts) - ?", (ALERTS_MAX,)
                )
                self._since_trim = 0
        return new

    def newest(self, limit: int) -> Iterator[StoredAlert]:
        """The newest `limit` updates, newest first."""
        rows = self._database.connection.execute(
            "SELECT document, received_s FROM alerts ORDER BY position DESC LIMIT ?", (limit,)
        )
        for document, received_s in rows:
            yield StoredAlert(alerts.decode(bytes(document)), float(received_s))
