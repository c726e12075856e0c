"""What survives a crash: machine state and the outbox, in one SQLite file a component.

Every write is on disk before the call returns (WAL, ``synchronous = FULL``). A full disk raises `TransientError` and
leaves what was there; the outbox then keeps new messages in bounded memory until there is room again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vedette_core.runtime.durable import PRIVATE_FILE
from vedette_schemas.errors import ConfigError, TransientError

SCHEMA_VERSION: Final = 1
MEMORY_MESSAGES_MAX: Final = 1000
"""Messages that the outbox holds in memory while the disk is full: an hour of a busy gateway's alerts."""
OVERHEAD_BYTES: Final = 256
"""What a stored message costs beside its payload (row, index, topic), for the cap on the spool's size."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, severity INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (position);
"""


class Database:
    """A component's SQLite file.

    Args:
        path: the file; its folder is made if it is missing.
        tables: statements that make a component's own tables.

    Raises:
        ConfigError: the file cannot be opened, is no database, or was written by a newer version.
    """

    def __init__(self, path: Path, tables: str = "") -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make_private(path)
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            found = int(self.connection.execute("PRAGMA user_version").fetchone()[0])
            if found > SCHEMA_VERSION:
                raise ConfigError(
                    f"{path}: found storage version {found}, expected at most {SCHEMA_VERSION}; "
                    "it was written by a newer Vedette: update this one, or give it a new state directory"
                )
            self.connection.executescript(_SCHEMA + tables)
            self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (sqlite3.Error, OSError) as fault:
            raise ConfigError(
                f"{path}: cannot open the state database ({fault}); expected a writable SQLite file: "
                "check the path's permissions and free space"
            ) from fault

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements as one durable transaction.

        Raises:
            TransientError: disk full, or the file is locked or cannot be written just now.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as fault:
            raise TransientError(
                f"{self.path}: cannot write ({fault}); nothing already stored is lost: free some disk space"
            ) from fault

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


def _make_private(path: Path) -> None:
    """Let only the owner read the file: it holds private keys of rounds. SQLite gives its log the file's own mode.

    A file that is there is never opened for it: closing any handle of a file drops all locks that this process has on
    it, those of its other connections, too, and the next one that closes takes itself for the last (sqlite.org,
    *How To Corrupt*, §2.2).
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
    except FileExistsError:
        path.chmod(PRIVATE_FILE)


class StateStore:
    """Keys and values that machines persist.

    Args:
        database: the component's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, key: str, value: bytes | None) -> None:
        """Store a value durably; None deletes the key.

        Raises:
            TransientError: the disk is full.
        """
        with self._database.transaction() as connection:
            if value is None:
                connection.execute("DELETE FROM state WHERE key = ?", (key,))
            else:
                connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        row = self._database.connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def all(self, prefix: str) -> dict[str, bytes]:
        """Every key that starts with `prefix`, with its value."""
        rows = self._database.connection.execute(
            "SELECT key, value FROM state WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return {str(key): bytes(value) for key, value in rows}


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A message that waits for its receipt; `severity` is 0 (given up first) to 100."""

    id: str
    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    severity: int


class Outbox:
    """Messages that were sent, or will be, and have no receipt yet; oldest first.

    Past its caps the least severe, oldest message is given up, and counted.

    Args:
        database: the component's database.
        messages_max: most messages kept.
        bytes_max: most bytes kept, payloads and `OVERHEAD_BYTES` each.
    """

    def __init__(self, database: Database, *, messages_max: int = 10_000, bytes_max: int = 64 * 1024 * 1024) -> None:
        self._database = database
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self._memory: dict[str, OutboxMessage] = {}
        rows = database.connection.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0) FROM outbox").fetchone()
        self._messages, self._bytes = int(rows[0]), int(rows[1]) + OVERHEAD_BYTES * int(rows[0])
        last = database.connection.execute("SELECT COALESCE(MAX(position), 0) FROM outbox").fetchone()
        self._position = int(last[0])

    @property
    def messages(self) -> int:
        """Messages that wait, on disk and in memory."""
        return self._messages + len(self._memory)

    @property
    def bytes(self) -> int:
        """Bytes that wait, on disk and in memory."""
        return self._bytes + sum(len(m.payload) + OVERHEAD_BYTES for m in self._memory.values())

    def add(self, message: OutboxMessage) -> list[OutboxMessage]:
        """Keep a message; one with the same id is kept once, as it first was.

        Returns:
            Messages that were given up for it (it may be among them).
        """
        if message.id in self._memory or self._stored(message.id):
            return []
        try:
            self._store(message)
        except TransientError:
            self._memory[message.id] = message
        return self._trim()

    def take_receipt(self, message_id: str) -> OutboxMessage | None:
        """Drop a message whose receipt has come; returns it, or None if it was not here."""
        if message_id in self._memory:
            return self._memory.pop(message_id)
        found = self._stored(message_id)
        if found is not None:
            self._delete(found)
        return found

    def pending(self, limit: int = -1) -> list[OutboxMessage]:
        """The oldest `limit` messages that wait (-1: all of them); moves memory to disk where there is room again."""
        for message in list(self._memory.values()):
            try:
                self._store(message)
            except TransientError:
                break
            del self._memory[message.id]
        rows = self._database.connection.execute(f"SELECT {_COLUMNS} FROM outbox ORDER BY position LIMIT ?", (limit,))
        return [_message(row) for row in rows] + list(self._memory.values())

    def _store(self, message: OutboxMessage) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    message.id,
                    self._position + 1,
                    message.topic,
                    message.payload,
                    message.qos,
                    int(message.retain),
                    message.severity,
                ),
            )
        self._position += 1
        self._messages += 1
        self._bytes += len(message.payload) + OVERHEAD_BYTES

    def _delete(self, message: OutboxMessage) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM outbox WHERE id = ?", (message.id,))
        self._messages -= 1
        self._bytes -= len(message.payload) + OVERHEAD_BYTES

    def _trim(self) -> list[OutboxMessage]:
        given_up: list[OutboxMessage] = []
        while self._messages and (self._messages > self._messages_max or self._bytes > self._bytes_max):
            row = self._database.connection.execute(
                f"SELECT {_COLUMNS} FROM outbox ORDER BY severity, position LIMIT 1"
            ).fetchone()
            least = _message(row)
            try:
                self._delete(least)
            except TransientError:
                break  # also giving up takes room; it is tried again with the next message
            given_up.append(least)
        while len(self._memory) > MEMORY_MESSAGES_MAX:
            weakest = min(self._memory.values(), key=lambda m: m.severity)
            given_up.append(self._memory.pop(weakest.id))
        return given_up

    def _stored(self, message_id: str) -> OutboxMessage | None:
        row = self._database.connection.execute(f"SELECT {_COLUMNS} FROM outbox WHERE id = ?", (message_id,)).fetchone()
        return None if row is None else _message(row)


_COLUMNS: Final = "id, topic, payload, qos, retain, severity"


def _message(row: tuple[str, str, bytes, int, int, int]) -> OutboxMessage:
    return OutboxMessage(row[0], row[1], bytes(row[2]), row[3], bool(row[4]), row[5])
