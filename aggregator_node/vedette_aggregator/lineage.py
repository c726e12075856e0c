"""Every candidate and release that there ever was: what it was made of, what was measured, and what became of it.

The release repository keeps the last few releases of a task; this keeps the record of all of them, in tables beside the
aggregator's state. Each call opens the file for itself: releases are made in worker threads, and commands read beside a
running aggregator.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vedette_aggregator.settings import AggregatorSettings
from vedette_aggregator.state_file import existing_state_path
from vedette_core.runtime.storage import Database
from vedette_schemas.errors import ConfigError, RefusedError

CANDIDATES_MAX: Final = 100_000
"""Records a task that are kept, about 2 KB each: 68 years at four rounds a day. Past it the oldest
that are no release go first."""
WEIGHTS_KEPT: Final = 64
"""Weights a task that are kept for comparing, newest first: some megabytes."""
WEIGHTS_BYTES_MAX: Final = 16 * 1024 * 1024
EVENTS_MAX: Final = 1000
"""Events a release that are kept; a rollout has some dozens."""
TEXT_CHARACTERS_MAX: Final = 4000

TABLES: Final = """
CREATE TABLE IF NOT EXISTS lineage (
    position INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, digest TEXT NOT NULL, version INTEGER,
    round INTEGER NOT NULL, outcome TEXT NOT NULL, document TEXT NOT NULL, UNIQUE (task, digest)
);
CREATE INDEX IF NOT EXISTS lineage_version ON lineage (task, version);
CREATE TABLE IF NOT EXISTS lineage_weights (
    task TEXT NOT NULL, sha256 TEXT NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (task, sha256)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lineage_events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, version INTEGER NOT NULL, at_s REAL NOT NULL,
    what TEXT NOT NULL, details TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS lineage_events_of ON lineage_events (task, version);
"""

ACCEPTED, REJECTED, RELEASED, FAILED = "accepted", "rejected", "released", "failed"
"""What became of a candidate: it passed the gate, it did not, it is a release, or it could not be built."""


@dataclass(frozen=True, slots=True)
class Descent:
    """What is known of one candidate.

    Attributes:
        task: the task.
        digest: hex digest of the candidate (`Candidate.digest`), or of the weights file of an initial model.
        round: round that made it; 0 for an initial model.
        attempt: the attempt that succeeded.
        made_s: when it came to the gate, epoch seconds.
        parent_version: release that the round started from; None for an initial model.
        parent_sha256: hex digest of that release's weights file.
        weights_sha256: hex digest of its own; empty where none was built.
        plan_sha256: hex digest of the plan that its round ran under; empty where unknown.
        contributors: how many updates are in it.
        epsilon: ε of the most exposed device after it; None where nothing is promised.
        metrics: figures of the round.
        figures: figures of the validators.
        verdicts: `GateVerdict.to_plain`.
        outcome: accepted, rejected, released or failed.
        reason: why it is no release; empty if it is, or will be.
        version: its release version; None if it has none.
        files: hex digest by variant, of a release.
    """

    task: str
    digest: str
    round: int
    attempt: int
    made_s: float
    parent_version: int | None
    parent_sha256: str
    weights_sha256: str = ""
    plan_sha256: str = ""
    contributors: int = 0
    epsilon: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[Mapping[str, str], ...] = ()
    outcome: str = ACCEPTED
    reason: str = ""
    version: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON; infinite figures as text."""
        return {name: json_safe(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class LineageEvent:
    """Something that happened to a release: when (epoch seconds), what, and details for a person."""

    at_s: float
    what: str
    details: str


class Lineage:
    """The record.

    Args:
        path: SQLite file, that of the aggregator's state.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, descent: Descent, weights: bytes = b"") -> None:
        """Write a candidate down, or anew; durable before this returns.

        Args:
            descent: what is known of it.
            weights: its weights file, so that it can be compared later; empty keeps none.

        Raises:
            TransientError: the disk is full.
            ConfigError: the file cannot be opened.
        """
        document = json.dumps(descent.to_plain(), separators=(",", ":"), allow_nan=False)
        with self._open() as database, database.transaction() as connection:
            connection.execute(
                "INSERT INTO lineage (task, digest, version, round, outcome, document) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (task, digest) DO UPDATE SET version = excluded.version, outcome = excluded.outcome, "
                "document = excluded.document",
                (descent.task, descent.digest, descent.version, descent.round, descent.outcome, document),
            )
            if weights:
                connection.execute(
                    "INSERT OR IGNORE INTO lineage_weights VALUES (?, ?, (SELECT MAX(position) FROM lineage), ?)",
                    (descent.task, hashlib.sha256(weights).hexdigest(), zlib.compress(weights, 6)),
                )
            self._trim(connection, descent.task)

    def release(self, task: str, digest: str, version: int, files: Mapping[str, str]) -> None:
        """A candidate that was kept is a release now; saying it again changes nothing.

        Raises:
            TransientError, ConfigError: as `keep`.
        """
        found = self.of_digest(task, digest)
        if found is not None and found.version != version:
            self.keep(replace(found, version=version, files=dict(files), outcome=RELEASED, reason=""))

    def record(self, task: str, version: int, what: str, when: float, details: str = "") -> None:
        """Something happened to a release: a stage of its rollout, a rollback, an automatic action.

        Args:
            task: the task.
            version: its release.
            what: one or few words, for example ``rollout started``.
            when: epoch seconds.
            details: for a person, cut to `TEXT_CHARACTERS_MAX`.

        Raises:
            TransientError, ConfigError: as `keep`.
        """
        with self._open() as database, database.transaction() as connection:
            connection.execute(
                "INSERT INTO lineage_events (task, version, at_s, what, details) VALUES (?, ?, ?, ?, ?)",
                (task, version, when, what[:100], details[:TEXT_CHARACTERS_MAX]),
            )
            connection.execute(
                "DELETE FROM lineage_events WHERE task = ?1 AND version = ?2 AND position <= (SELECT position FROM "
                "lineage_events WHERE task = ?1 AND version = ?2 ORDER BY position DESC LIMIT 1 OFFSET ?3)",
                (task, version, EVENTS_MAX),
            )

    def all(self, task: str, *, limit: int = CANDIDATES_MAX) -> tuple[Descent, ...]:
        """The newest `limit` candidates of a task, oldest of them first."""
        return self._read("WHERE task = ? ORDER BY position DESC LIMIT ?", (task, limit))[::-1]

    def of_digest(self, task: str, digest: str) -> Descent | None:
        """The candidate with a digest."""
        return next(iter(self._read("WHERE task = ? AND digest = ?", (task, digest))), None)

    def of_version(self, task: str, version: int) -> Descent | None:
        """The candidate that became a release."""
        found = self._read("WHERE task = ? AND version = ? ORDER BY position DESC LIMIT 1", (task, version))
        return next(iter(found), None)

    def versions(self, task: str) -> frozenset[int]:
        """Every release of a task that is on record."""
        with self._open() as database:
            rows = database.connection.execute(
                "SELECT DISTINCT version FROM lineage WHERE task = ? AND version IS NOT NULL", (task,)
            ).fetchall()
        return frozenset(int(version) for (version,) in rows)

    def of_round(self, task: str, number: int) -> Descent | None:
        """The newest candidate of a round."""
        found = self._read("WHERE task = ? AND round = ? ORDER BY position DESC LIMIT 1", (task, number))
        return next(iter(found), None)

    def ancestors(self, task: str, version: int) -> tuple[int, ...]:
        """Releases that one descends from, nearest first; ends where the record begins."""
        line: list[int] = []
        found = self.of_version(task, version)
        while found is not None and found.parent_version is not None and found.parent_version not in line:
            line.append(found.parent_version)
            found = self.of_version(task, found.parent_version)
        return tuple(line)

    def events(self, task: str, version: int) -> tuple[LineageEvent, ...]:
        """What happened to a release, oldest first."""
        with self._open() as database:
            rows = database.connection.execute(
                "SELECT at_s, what, details FROM lineage_events WHERE task = ? AND version = ? ORDER BY position",
                (task, version),
            ).fetchall()
        return tuple(LineageEvent(float(at_s), str(what), str(details)) for at_s, what, details in rows)

    def weights(self, task: str, sha256: str) -> bytes:
        """A weights file that was kept; its digest is checked.

        Raises:
            RefusedError: it is not kept (any more).
            ConfigError: it is damaged.
        """
        with self._open() as database:
            row = database.connection.execute(
                "SELECT data FROM lineage_weights WHERE task = ? AND sha256 = ?", (task, sha256)
            ).fetchone()
        if row is None:
            raise RefusedError(
                f"weights {sha256[:12]}… of {task}: not found, expected one of the newest {WEIGHTS_KEPT} candidates",
                rule="version",
            )
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(bytes(row[0]), WEIGHTS_BYTES_MAX)
        except zlib.error as fault:
            raise ConfigError(
                f"weights {sha256[:12]}… of {task}: {fault}; restore the state from its backup"
            ) from fault
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ConfigError(
                f"weights of {task}: found sha256 {hashlib.sha256(data).hexdigest()[:12]}…, expected {sha256[:12]}…; "
                "restore the state from its backup"
            )
        return data

    def _read(self, where: str, values: tuple[Any, ...]) -> tuple[Descent, ...]:
        with self._open() as database:
            rows = database.connection.execute(f"SELECT document FROM lineage {where}", values).fetchall()
        return tuple(_descent(str(document)) for (document,) in rows)

    def _trim(self, connection: Any, task: str) -> None:
        connection.execute(
            "DELETE FROM lineage_weights WHERE task = ?1 AND sha256 NOT IN "
            "(SELECT sha256 FROM lineage_weights WHERE task = ?1 ORDER BY position DESC LIMIT ?2)",
            (task, WEIGHTS_KEPT),
        )
        (count,) = connection.execute("SELECT COUNT(*) FROM lineage WHERE task = ?", (task,)).fetchone()
        if count > CANDIDATES_MAX:
            connection.execute(
                "DELETE FROM lineage WHERE position IN (SELECT position FROM lineage WHERE task = ? "
                "ORDER BY version IS NOT NULL, position LIMIT ?)",
                (task, count - CANDIDATES_MAX),
            )

    @contextmanager
    def _open(self) -> Iterator[Database]:
        database = Database(self._path, TABLES)
        try:
            yield database
        finally:
            database.close()


def open_lineage(settings: AggregatorSettings) -> Lineage:
    """The record of an aggregator, which may be running.

    Raises:
        ConfigError: there is no aggregator's state.
    """
    return Lineage(existing_state_path(settings))


def json_safe(value: Any) -> Any:
    """The same with infinite figures as text, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _descent(document: str) -> Descent:
    try:
        plain = json.loads(document)
        for name in ("metrics", "figures"):
            plain[name] = {str(k): float(v) for k, v in plain[name].items()}
        plain["epsilon"] = None if plain["epsilon"] is None else float(plain["epsilon"])
        plain["verdicts"] = tuple(plain["verdicts"])
        return Descent(**plain)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise ConfigError(f"lineage: found a record that cannot be read ({fault}); restore the state") from fault
