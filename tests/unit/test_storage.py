"""The state store and the outbox survive what a gateway's disk and power do to them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vedette_core.runtime.storage import (
    MEMORY_MESSAGES_MAX,
    Database,
    Outbox,
    OutboxMessage,
    StateStore,
    _make_private,
)
from vedette_schemas.errors import ConfigError, TransientError


def message(name: str, severity: int = 50, size: int = 10) -> OutboxMessage:
    return OutboxMessage(name, f"t/{name}", b"x" * size, 1, False, severity)


def fill_disk(database: Database) -> None:
    pages = database.connection.execute("PRAGMA page_count").fetchone()[0]
    database.connection.execute(f"PRAGMA max_page_count = {pages}")


def free_disk(database: Database) -> None:
    database.connection.execute("PRAGMA max_page_count = 1000000")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state.db")


def test_state_is_there_after_reopening(tmp_path: Path) -> None:
    first = StateStore(Database(tmp_path / "s.db"))
    first.put("round/network/state", b"1")
    first.put("round/network/state", b"2")
    first.put("round/net_x", b"3")
    first.put("gone", b"4")
    first.put("gone", None)
    again = StateStore(Database(tmp_path / "s.db"))
    assert again.all("round/") == {"round/net_x": b"3", "round/network/state": b"2"}
    assert again.all("round/network") == {"round/network/state": b"2"}
    assert again.get("gone") is None


def test_prefix_is_no_pattern(database: Database) -> None:
    store = StateStore(database)
    store.put("a%b", b"1")
    store.put("axb", b"2")
    assert store.all("a%") == {"a%b": b"1"}


def test_outbox_keeps_order_and_drops_on_receipt(tmp_path: Path) -> None:
    box = Outbox(Database(tmp_path / "s.db"))
    for name in "abc":
        assert box.add(message(name)) == []
    taken = box.take_receipt("b")
    assert taken is not None
    assert taken.topic == "t/b"
    assert box.take_receipt("b") is None
    again = Outbox(Database(tmp_path / "s.db"))
    assert [m.id for m in again.pending()] == ["a", "c"]
    again.add(message("d"))
    assert [m.id for m in again.pending()] == ["a", "c", "d"]
    assert again.messages == 3


def test_same_id_is_kept_once_as_it_first_was(database: Database) -> None:
    box = Outbox(database)
    box.add(message("a", size=10))
    box.add(message("a", size=99))
    assert [len(m.payload) for m in box.pending()] == [10]


def test_full_outbox_gives_up_the_least_severe_oldest(database: Database) -> None:
    box = Outbox(database, messages_max=3)
    box.add(message("low-old", 10))
    box.add(message("high", 90))
    box.add(message("low-new", 10))
    assert [m.id for m in box.add(message("critical", 100))] == ["low-old"]
    assert [m.id for m in box.add(message("trivial", 0))] == ["trivial"]
    assert [m.id for m in box.pending()] == ["high", "low-new", "critical"]


def test_outbox_is_bounded_in_bytes(database: Database) -> None:
    box = Outbox(database, bytes_max=4096)
    for i in range(50):
        box.add(message(str(i), size=500))
    assert box.bytes <= 4096
    assert box.messages == len(box.pending()) > 0


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "s.db")
    box, store = Outbox(database), StateStore(database)
    box.add(message("before"))
    store.put("k", b"kept")
    fill_disk(database)
    with pytest.raises(TransientError, match="free some disk space"):
        store.put("k", b"x" * 1_000_000)
    box.add(message("during", size=100_000))
    assert store.get("k") == b"kept"
    assert [m.id for m in box.pending()] == ["before", "during"]
    assert [m.id for m in Outbox(Database(tmp_path / "s.db")).pending()] == ["before"]
    free_disk(database)
    assert [m.id for m in box.pending()] == ["before", "during"]
    assert [m.id for m in Outbox(Database(tmp_path / "s.db")).pending()] == ["before", "during"]


def test_memory_is_bounded_while_the_disk_is_full(database: Database) -> None:
    box = Outbox(database)
    fill_disk(database)
    given_up = 0
    for i in range(MEMORY_MESSAGES_MAX + 50):
        given_up += len(box.add(message(f"m{i}", severity=i % 100, size=20_000)))
    assert given_up > 0
    assert len(box.pending()) <= MEMORY_MESSAGES_MAX + 1


def test_receipt_is_taken_for_a_message_in_memory(database: Database) -> None:
    box = Outbox(database)
    fill_disk(database)
    box.add(message("a", size=100_000))
    assert box.take_receipt("a") is not None
    assert box.messages == 0


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Database(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(ConfigError, match="newer Vedette"):
        Database(path)


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"these are not the pages you are looking for" * 100)
    with pytest.raises(ConfigError, match="cannot open the state database"):
        Database(path)
    assert path.read_bytes().startswith(b"these are not")


def test_only_the_owner_reads_the_file_whatever_the_folder_allows(tmp_path: Path) -> None:
    (tmp_path / "s.db").touch(mode=0o644)
    (tmp_path / "s.db").chmod(0o644)
    StateStore(Database(tmp_path / "s.db")).put("key", b"secret")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("s.db", "s.db-wal", "s.db-shm"), 0o600)


def test_a_full_disk_does_not_refuse_a_message_because_nothing_can_be_given_up_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Outbox(database, messages_max=1)
    box.add(message("old", severity=1))

    def full(_: OutboxMessage) -> None:
        raise TransientError("disk full")

    monkeypatch.setattr(box, "_delete", full)
    assert box.add(message("new")) == []
    assert box.messages == 2
    monkeypatch.undo()
    assert [m.id for m in box.add(message("newer"))] == ["old", "new"]
    assert box.messages == 1


def test_a_second_connection_of_this_process_leaves_the_locks_of_the_first_alone(tmp_path: Path) -> None:
    """Another process must still find the file locked while the first one writes."""
    first = Database(tmp_path / "state.db")
    program = (
        "import sqlite3, sys\n"
        "other = sqlite3.connect(sys.argv[1], timeout=0.0, isolation_level=None)\n"
        "try:\n    other.execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError:\n    print('locked')\n"
        "else:\n    print('free')\n"
    )

    def found() -> str:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "state.db")], capture_output=True, text=True, check=True
        ).stdout.strip()

    with first.transaction() as connection:
        connection.execute("INSERT INTO state VALUES ('a', x'00')")
        _make_private(tmp_path / "state.db")
        assert found() == "locked"
    assert found() == "free"
    Database(tmp_path / "state.db").close()
    StateStore(first).put("b", b"1")
    assert set(StateStore(Database(tmp_path / "state.db")).all("")) == {"a", "b"}


def test_opening_the_file_again_leaves_the_locks_of_the_first_connection_alone(tmp_path: Path) -> None:
    """Another process that opens the file, reads and leaves must not take itself for the last, and delete the log."""
    path = tmp_path / "state.db"
    first = Database(path)
    StateStore(first).put("a", b"1")
    _make_private(path)
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM state'); c.close()"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.with_name("state.db-wal").exists()
    StateStore(first).put("b", b"1")
    assert set(StateStore(Database(path)).all("")) == {"a", "b"}
