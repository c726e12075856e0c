"""What the embedded broker keeps over a restart, in one SQLite file: retained messages, kept sessions and their queues.

A batch of changes is one transaction. The journal is WAL; with `Durability.POWER` each batch is on the medium
before it counts (``synchronous = FULL``), with `Durability.PROCESS` it is in the kernel's hands: that survives the
end of this process, also by SIGKILL, and loses the last moments when the power fails.

Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from vedette_broker.limits import INFLIGHT_MAX, QUEUE_MESSAGES_MAX, RETAINED_MAX
from vedette_broker.session import Outbound
from vedette_core.runtime.durable import PRIVATE_FILE, make_directory
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import TOPIC_BYTES_MAX, Role, is_filter

log = logging.getLogger("vedette.broker")

FILE: Final = "broker.db"
LOCK: Final = "broker.lock"
STORE_VERSION: Final = 1
_ROLES: Final = frozenset(role.value for role in Role)
_APPLICATION: Final = 0x56454442
"""``VEDB`` in the file's header: another program's database is not taken for ours."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS retained (
    topic TEXT PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL, owner TEXT NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE IF NOT EXISTS sessions (client TEXT PRIMARY KEY, role TEXT NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE IF NOT EXISTS filters (
    client TEXT NOT NULL, filter TEXT NOT NULL, qos INTEGER NOT NULL, PRIMARY KEY (client, filter)
) WITHOUT ROWID, STRICT;
CREATE TABLE IF NOT EXISTS messages (
    position INTEGER PRIMARY KEY, client TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
    retain INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS messages_client ON messages (client);
"""


class Durability(StrEnum):
    """What an acknowledged message survives."""

    POWER = "power"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Kept:
    """A retained message.

    Attributes:
        owner: id of the client that published it.
    """

    payload: bytes = field(repr=False)
    qos: int
    owner: str


@dataclass(slots=True)
class KeptSession:
    """A session that outlives its connection.

    Attributes:
        role: the client's role in the access table, as its certificate said.
        filters: filter to granted QoS.
        messages: what it has not acknowledged, in order.
    """

    role: Role
    filters: dict[str, int] = field(default_factory=dict)
    messages: list[Outbound] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Changes that become durable together; sessions are applied before messages.

    Attributes:
        retained: topic to what is retained there now, None for nothing.
        sessions: statements about sessions and filters, in order.
        removed: positions of messages that are acknowledged.
        added: position to client and message.
    """

    retained: dict[str, Kept | None] = field(default_factory=dict)
    sessions: list[tuple[str, tuple[str | int, ...]]] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    added: dict[int, tuple[str, Outbound]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.retained or self.sessions or self.removed or self.added)


class Store:
    """The file. One broker at a time has it.

    A damaged file is set aside under another name and never overwritten: clients publish their retained state again and
    resend from their outboxes, which is better for a site than a broker that does not start, but nobody shall have to
    guess that it happened.

    Args:
        directory: the broker's state directory; made if it is missing.
        durability: what a batch survives.

    Attributes:
        set_aside: where a damaged file was moved to, if one was found.

    Raises:
        ConfigError: the directory cannot be written, another broker has it, or a newer version wrote the file.
    """

    def __init__(self, directory: Path, durability: Durability = Durability.POWER) -> None:
        self.path, self._durability = directory / FILE, durability
        self.set_aside: Path | None = None
        make_directory(directory)
        self._lock = _lock(directory / LOCK)
        try:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as fault:
                if not _is_damage(fault):
                    raise _unusable(self.path, fault) from fault
                self._set_aside(fault)
                self._connection = self._open()
        except sqlite3.Error as fault:
            os.close(self._lock)
            raise _unusable(self.path, fault) from fault
        except ConfigError:
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            os.fchmod(handle, PRIVATE_FILE)
        finally:
            os.close(handle)
        # One thread at a time uses it: the loop's while it starts, then the journal's.
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=5.0, check_same_thread=False)
        try:
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > STORE_VERSION:
                raise ConfigError(
                    f"{self.path}: found storage version {found}, expected at most {STORE_VERSION}; it was written "
                    f"by a newer "
                    "Vedette: update this one, or give it a new state directory"
                )
            application = int(connection.execute("PRAGMA application_id").fetchone()[0])
            tables = int(connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
            if application != _APPLICATION and (application or tables):
                raise ConfigError(
                    f"{self.path}: found another program's database, expected the broker's; give it a state "
                    f"directory of its own"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durability is Durability.POWER else 'NORMAL'}")
            connection.execute("PRAGMA secure_delete = OFF")
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            connection.executescript(_SCHEMA)
            connection.execute("DELETE FROM messages WHERE client NOT IN (SELECT client FROM sessions)")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {STORE_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, fault: sqlite3.Error) -> None:
        aside = self.path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        self.set_aside = aside
        log.error(
            "%s: found a damaged store (%s), moved to %s; starting with an empty one: retained messages come back "
            "when clients "
            "reconnect, messages that were waiting here come back from the outboxes of who sent them",
            self.path, fault, aside.name,
        )  # fmt: skip

    def load_retained(self) -> Iterator[tuple[str, Kept]]:
        """Every retained message that the limits allow, oldest topic name first."""
        rows = self._connection.execute(
            "SELECT topic, payload, qos, owner FROM retained ORDER BY topic LIMIT ?", (RETAINED_MAX,)
        )
        for topic, payload, qos, owner in rows:
            if 0 < len(payload) <= PAYLOAD_BYTES_MAX and 0 < len(topic.encode()) <= TOPIC_BYTES_MAX:
                yield str(topic), Kept(bytes(payload), int(bool(qos)), str(owner))

    def retained_topics(self) -> set[str]:
        """Every topic on which something is stored."""
        return {str(topic) for (topic,) in self._connection.execute("SELECT topic FROM retained")}

    def load_sessions(self) -> dict[str, KeptSession]:
        """Every kept session with its filters and queue."""
        found: dict[str, KeptSession] = {}
        for client, role in self._connection.execute("SELECT client, role FROM sessions ORDER BY client"):
            if role in _ROLES:
                found[str(client)] = KeptSession(Role(role))
        for client, topic_filter, qos in self._connection.execute("SELECT client, filter, qos FROM filters"):
            if client in found and is_filter(topic_filter):
                found[client].filters[str(topic_filter)] = int(bool(qos))
        rows = self._connection.execute(
            "SELECT position, client, topic, payload, retain FROM messages ORDER BY position"
        )
        for position, client, topic, payload, retain in rows:
            if client in found and len(found[client].messages) < QUEUE_MESSAGES_MAX + INFLIGHT_MAX:
                message = Outbound(str(topic), bytes(payload), 1, bool(retain), int(position))
                found[client].messages.append(message)
        return found

    def last_position(self) -> int:
        """The highest position of a message that is stored, 0 if there is none."""
        return int(self._connection.execute("SELECT COALESCE(MAX(position), 0) FROM messages").fetchone()[0])

    def apply(self, batch: Batch) -> None:
        """Make a batch durable, all of it or nothing.

        Raises:
            sqlite3.Error: disk full, or the file cannot be written; it is as it was before.
        """
        with self._transaction() as run:
            for statement, values in batch.sessions:
                run.execute(statement, values)
            run.executemany("DELETE FROM messages WHERE position = ?", [(p,) for p in batch.removed])
            run.executemany(
                "INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?)",
                [(p, client, m.topic, m.payload, int(m.retain)) for p, (client, m) in batch.added.items()],
            )
            run.executemany(
                "DELETE FROM retained WHERE topic = ?", [(t,) for t, kept in batch.retained.items() if not kept]
            )
            run.executemany(
                "INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?)",
                [(t, kept.payload, kept.qos, kept.owner) for t, kept in batch.retained.items() if kept],
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file and let another broker have it."""
        self._connection.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as fault:
        raise ConfigError(
            f"{path}: cannot be opened ({fault.strerror}); check the state directory's owner and mode"
        ) from fault
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        os.close(handle)
        raise ConfigError(
            f"{path.parent}: found another broker that uses it, expected none; stop that one or choose another "
            f"state_dir"
        ) from fault
    return handle


def _is_damage(fault: sqlite3.DatabaseError) -> bool:
    """Whether the bytes are wrong, rather than the disk, the permissions or the moment."""
    if isinstance(fault, sqlite3.OperationalError):
        return False
    code = getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # the check's own verdict has no code
    return (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _unusable(path: Path, fault: sqlite3.Error) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be used ({fault}); expected a writable file: check the state directory's owner, mode and "
        f"free space"
    )
