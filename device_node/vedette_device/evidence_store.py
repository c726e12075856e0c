"""Evidence of alerts in the device's database, and the float weights of the releases that it is about. Both bounded.

A record takes the place of its alert's earlier one, and the oldest alerts make room, in one transaction: after a crash
there is the old record or the new one. The weights are those that the device fetches for its rounds anyway. They are
found by the digest of the artifact that scored, and are only ever read to explain: nothing scores with them.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from vedette_core.runtime.storage import Database
from vedette_device.alert_record import EVIDENCE_SCHEME
from vedette_device.evidence import Evidence
from vedette_device.settings import EvidenceSection
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.model import Variant

log = logging.getLogger("vedette.evidence")

OVERHEAD_BYTES: Final = 256
"""What a record costs beside its bytes (row, index), for the cap on their size; as for messages in the outbox."""
WEIGHTS_NEWEST: Final = 2
"""Releases whose weights stay without any evidence about them: the one that runs, and the one on its way."""
WEIGHTS_MAX: Final = 8
"""Releases of a task whose weights are kept at most: 0.1 to 0.5 MB of the networks in use."""
DIGEST_DIGITS: Final = 16
"""Hexadecimal digits of a digest in an alert."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS evidence (
    alert TEXT PRIMARY KEY, position INTEGER NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS evidence_order ON evidence (position);
CREATE TABLE IF NOT EXISTS release_weights (
    task TEXT NOT NULL, sha256 TEXT NOT NULL, position INTEGER NOT NULL, artifacts TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (task, sha256)
) WITHOUT ROWID;
"""


class EvidenceStore:
    """The evidence of a running device.

    Args:
        database: the device's, opened with `TABLES`.
        limits: how much is kept.
    """

    def __init__(self, database: Database, limits: EvidenceSection) -> None:
        self._database, self._limits = database, limits

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._limits.alerts_max > 0

    def begin(self, task: str) -> int:
        """Remove a task's records that cannot be read any more, and what the limits, which may be new, do not allow.

        Returns:
            How many were damaged.

        Raises:
            TransientError: the disk is full.
            ConfigError: the database is damaged where evidence is.
        """
        with self._transaction() as connection:
            rows = connection.execute("SELECT alert, record FROM evidence WHERE task = ?", (task,))
            damaged = []
            for alert, record in rows:
                try:
                    Evidence.from_bytes(record)
                except PeerError as fault:
                    log.error("alert %s: %s; it is dropped", alert, fault)
                    damaged.append((alert,))
            connection.executemany("DELETE FROM evidence WHERE alert = ?", damaged)
            self._trim(connection)
            if not self.enabled:
                connection.execute("DELETE FROM release_weights")
        return len(damaged)

    def keep(self, evidence: Evidence) -> int:
        """Keep a record in the place of its alert's earlier one; returns how many older alerts made room.

        Raises:
            RefusedError: it is larger than everything that may be kept.
            TransientError: the disk is full; what was kept stays.
            ConfigError: as for `begin`.
        """
        record = evidence.to_bytes()
        if not self.enabled or len(record) + OVERHEAD_BYTES > self._limits.bytes_max:
            raise RefusedError(
                f"evidence of {evidence.alert}: found {len(record)} bytes, expected at most "
                f"{self._limits.bytes_max - OVERHEAD_BYTES} ([evidence] bytes_max)",
                rule="size",
            )
        model = evidence.model
        with self._transaction() as connection:
            position = _next(connection, "evidence")
            connection.execute(
                "INSERT OR REPLACE INTO evidence VALUES (?, ?, ?, ?, ?)",
                (evidence.alert, position, model.task, model.digest, record),
            )
            return self._trim(connection)

    def _trim(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute("SELECT alert, length(record) FROM evidence ORDER BY position DESC").fetchall()
        total, old = 0, []
        for count, (alert, size) in enumerate(rows, 1):
            total += size + OVERHEAD_BYTES
            if count > self._limits.alerts_max or total > self._limits.bytes_max:
                old.append((alert,))
        connection.executemany("DELETE FROM evidence WHERE alert = ?", old)
        return len(old)

    def keep_weights(self, release: VerifiedRelease, data: bytes, running: str) -> None:
        """Keep the weights of a release for what its artifacts will score.

        Kept beside them: the newest `WEIGHTS_NEWEST`, those of the running model, and those that evidence is about; of
        all these at most `WEIGHTS_MAX` a task, the newest.

        Args:
            release: verified.
            data: its weights file, checked against it.
            running: first digits of the digest of the artifact that scores now; empty where none does.

        Raises:
            TransientError: the disk is full; what was kept stays.
            ConfigError: as for `begin`.
        """
        if not self.enabled:
            return
        sha256 = release.targets[Variant.WEIGHTS].sha256
        artifacts = _artifacts(t.sha256 for v, t in release.targets.items() if v is not Variant.PLAN)
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT artifacts, position = (SELECT MAX(position) FROM release_weights WHERE task = ?1) "
                "FROM release_weights WHERE task = ?1 AND sha256 = ?2",
                (release.task, sha256),
            ).fetchone()
            if found is not None and found[0] == artifacts and found[1]:
                return  # the metadata are read again every few minutes: what is the newest already is not written again
            connection.execute(
                "INSERT OR REPLACE INTO release_weights VALUES (?, ?, ?, ?, ?)",
                (release.task, sha256, _next(connection, "release_weights"), artifacts, data),
            )
            wanted = {running} | {str(row[0]) for row in connection.execute("SELECT DISTINCT model FROM evidence")}
            rows = connection.execute(
                "SELECT sha256, artifacts FROM release_weights WHERE task = ? ORDER BY position DESC", (release.task,)
            ).fetchall()
            kept = 0
            for count, (digest, names) in enumerate(rows, 1):
                if kept < WEIGHTS_MAX and (count <= WEIGHTS_NEWEST or not wanted.isdisjoint(names.split())):
                    kept += 1
                else:
                    connection.execute(
                        "DELETE FROM release_weights WHERE task = ? AND sha256 = ?", (release.task, digest)
                    )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction; a damaged page where evidence is must not end the detection beside it."""
        try:
            with self._database.transaction() as connection:
                yield connection
        except sqlite3.DatabaseError as fault:
            raise ConfigError(
                f"{self._database.path}: cannot use the evidence in it ({fault}), alerts go on without it; stop the "
                "node, and restore the file or repair it (`sqlite3 … .recover`)"
            ) from fault


class KeptEvidence:
    """The evidence of a device, for a command beside it: reads only, whether the node runs or not."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self._is_new = {"evidence", "release_weights"} <= names  # a node from before has neither

    def alerts(self) -> list[tuple[str, Evidence | PeerError]]:
        """Every alert that evidence is kept for, newest first, with it or with what is wrong with it."""
        found: list[tuple[str, Evidence | PeerError]] = []
        if self._is_new:
            for alert, record in self._connection.execute("SELECT alert, record FROM evidence ORDER BY position DESC"):
                try:
                    found.append((str(alert), Evidence.from_bytes(record)))
                except PeerError as fault:
                    found.append((str(alert), fault))
        return found

    def evidence(self, alert: str) -> Evidence:
        """The evidence of an alert.

        Args:
            alert: its id, or the reference in its `evidence`.

        Raises:
            ConfigError: there is none.
            PeerError: it is damaged.
        """
        name = alert.removeprefix(EVIDENCE_SCHEME)
        row = count = None
        if self._is_new:
            row = self._connection.execute("SELECT record FROM evidence WHERE alert = ?", (name,)).fetchone()
            count = self._connection.execute("SELECT COUNT(*) FROM evidence").fetchone()[0]
        if row is None:
            raise ConfigError(
                f"alert {name}: found no evidence of it among the {count or 0} alerts that it is kept for here, "
                "expected the id of an alert of this device; newer ones make room ([evidence] alerts_max, bytes_max), "
                "and --list shows what is kept"
            )
        try:
            return Evidence.from_bytes(row[0])
        except PeerError as fault:
            raise PeerError(f"alert {name}: {fault}", reason=fault.reason) from fault

    def weights(self, model: AlertModel) -> bytes:
        """The weights file of the release that an artifact belongs to.

        Raises:
            RefusedError: it is not kept here.
            PeerError: it is damaged.
        """
        rows = []
        if self._is_new:
            rows = self._connection.execute(
                "SELECT sha256, artifacts, data FROM release_weights WHERE task = ?", (model.task,)
            ).fetchall()
        for sha256, artifacts, data in rows:
            if model.digest in artifacts.split():
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise PeerError(
                        f"weights of {model.task} {model.version}: found {len(data)} damaged bytes, expected those of "
                        f"{sha256[:12]}…",
                        reason="damaged",
                    )
                return bytes(data)
        raise RefusedError(
            f"weights of {model.task} {model.version} ({model.digest}): found none of that release here, expected them "
            "among those that the device fetched for its rounds",
            rule="weights",
        )


@contextmanager
def open_kept(state_dir: Path) -> Iterator[KeptEvidence]:
    """The evidence of a device, which may be running; nothing is written.

    Raises:
        ConfigError: there is no state of a device, or it cannot be read.
    """
    path = state_dir / "device.db"
    try:
        there = path.exists()
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    if not there:
        raise ConfigError(f"{path}: found no state there, expected that of a device node that has run")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)
        try:
            yield KeptEvidence(connection)
        finally:
            connection.close()
    except sqlite3.Error as fault:
        raise _unreadable(path, fault) from fault


def _unreadable(path: Path, fault: Exception) -> ConfigError:
    return ConfigError(
        f"{path}: cannot read the state database ({fault}); expected that of a device node, and the rights of the user "
        "that it runs as"
    )


def _next(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT COALESCE(MAX(position), 0) + 1 FROM {table}").fetchone()[0])


def _artifacts(digests: Iterable[str]) -> str:
    return " ".join(sorted({digest[:DIGEST_DIGITS] for digest in digests}))
