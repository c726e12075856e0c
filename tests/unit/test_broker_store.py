"""What the embedded broker keeps on disk: it comes back as it was, or it is said loudly that it did not."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from vedette_broker import journal as journal_module
from vedette_broker.journal import Journal
from vedette_broker.limits import INFLIGHT_MAX
from vedette_broker.retained import Retained
from vedette_broker.session import ClientSession, Outbound
from vedette_broker.store import FILE, Batch, Durability, Kept, Store
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import Role

TOPIC = "vedette/1/lab/public/intel"


def with_journal(directory: Path, work: Callable[[Journal], object]) -> Counter[str]:
    async def scenario() -> Counter[str]:
        counts: Counter[str] = Counter()
        journal = Journal(Store(directory), counts)
        work(journal)
        await journal.close()
        return counts

    return asyncio.run(scenario())


def message(position: int, payload: bytes = b"x") -> Outbound:
    return Outbound(TOPIC, payload, 1, retain=False, position=position)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    def work(journal: Journal) -> None:
        journal.keep("aggregator", Role.AGGREGATOR)
        journal.subscribe("aggregator", "vedette/1/lab/device/+/up/#", 1)
        journal.subscribe("aggregator", "vedette/1/lab/label/#", 0)
        journal.unsubscribe("aggregator", "vedette/1/lab/label/#")
        for number in range(3):
            journal.add("aggregator", message(journal.next_position(), b"%d\xff" % number))
        journal.remove(2)
        journal.retain(TOPIC, Kept(b"\x00\xff", 1, "aggregator"))
        journal.retain("a", Kept(b"old", 1, "aggregator"))
        journal.retain("a", None)

    counts = with_journal(tmp_path, work)
    assert counts["store_batches"] == 1
    store = Store(tmp_path)
    assert list(store.load_retained()) == [(TOPIC, Kept(b"\x00\xff", 1, "aggregator"))]
    found = store.load_sessions()["aggregator"]
    assert (found.role, found.filters) == (Role.AGGREGATOR, {"vedette/1/lab/device/+/up/#": 1})
    assert [(m.payload, m.position, m.qos) for m in found.messages] == [(b"0\xff", 1, 1), (b"2\xff", 3, 1)]
    assert store.last_position() == 3
    store.close()


def test_a_session_that_is_forgotten_takes_its_messages_along(tmp_path: Path) -> None:
    def first(journal: Journal) -> None:
        journal.keep("aggregator", Role.AGGREGATOR)
        journal.add("aggregator", message(journal.next_position(), b"stored"))

    def second(journal: Journal) -> None:
        journal.add("aggregator", message(journal.next_position(), b"recorded"))
        journal.forget("aggregator")
        journal.keep("aggregator", Role.AGGREGATOR)
        journal.add("aggregator", message(journal.next_position(), b"new"))

    with_journal(tmp_path, first)
    with_journal(tmp_path, second)
    store = Store(tmp_path)
    assert [m.payload for m in store.load_sessions()["aggregator"].messages] == [b"new"]
    store.close()


def test_a_full_queue_and_a_full_window_come_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_broker.store.QUEUE_MESSAGES_MAX", 5)

    def work(journal: Journal) -> None:
        journal.keep("aggregator", Role.AGGREGATOR)
        for _ in range(5 + INFLIGHT_MAX):
            journal.add("aggregator", message(journal.next_position()))

    with_journal(tmp_path, work)
    store = Store(tmp_path)
    assert len(store.load_sessions()["aggregator"].messages) == 5 + INFLIGHT_MAX
    store.close()


def test_a_message_that_is_acknowledged_before_its_batch_is_never_written(tmp_path: Path) -> None:
    def work(journal: Journal) -> None:
        journal.add("aggregator", message(journal.next_position()))
        journal.remove(1)

    with_journal(tmp_path, work)
    store = Store(tmp_path)
    assert store.last_position() == 0
    store.close()


def test_a_publisher_waits_while_the_disk_is_full_and_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_S", 0.01)
    full, apply = [True], Store.apply

    def refusing(store: Store, batch: Batch) -> None:
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        apply(store, batch)

    monkeypatch.setattr(Store, "apply", refusing)

    async def scenario() -> Counter[str]:
        counts: Counter[str] = Counter()
        journal = Journal(Store(tmp_path), counts)
        written = journal.retain(TOPIC, Kept(b"x", 1, "aggregator"))
        assert written is not None
        while counts["store_failures"] < 3:
            await asyncio.sleep(0.01)
        assert not written.done()
        full[0] = False
        await asyncio.wait([written])
        assert not written.cancelled()
        await journal.close()
        return counts

    counts = asyncio.run(scenario())
    assert counts["store_failures"] >= 3
    assert [r.levelno for r in caplog.records if "could not be written" in r.message] == [logging.ERROR]
    store = Store(tmp_path)
    assert [topic for topic, _ in store.load_retained()] == [TOPIC]
    store.close()


def test_cleared_topics_fill_no_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_journal(tmp_path, lambda journal: journal.retain(TOPIC, Kept(b"x", 1, "aggregator")))
    monkeypatch.setattr(journal_module, "RETRY_S", 0.01)
    full, apply = [True], Store.apply

    def refusing(store: Store, batch: Batch) -> None:
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        apply(store, batch)

    monkeypatch.setattr(Store, "apply", refusing)

    async def scenario() -> None:
        counts: Counter[str] = Counter()
        journal = Journal(Store(tmp_path), counts)
        journal.retain("in flight", Kept(b"x", 1, "dev-a"))
        while counts["store_failures"] < 2:
            await asyncio.sleep(0.01)
        for number in range(5000):
            journal.retain(f"kept and cleared {number}", Kept(b"x", 1, "dev-a"))
            journal.retain(f"kept and cleared {number}", None)
            assert journal.retain(f"only cleared {number}", None) is None
        assert not journal._batch.retained
        cleared = [journal.retain(topic, None) for topic in (TOPIC, "in flight")]
        full[0] = False
        await asyncio.wait([each for each in cleared if each is not None])
        assert None not in cleared
        assert journal.retain(TOPIC, None) is None, "it is gone"
        journal.retain(TOPIC, Kept(b"again", 1, "aggregator"))
        await journal.close()

    asyncio.run(scenario())
    store = Store(tmp_path)
    assert list(store.load_retained()) == [(TOPIC, Kept(b"again", 1, "aggregator"))]
    store.close()


def test_a_broker_that_stops_while_the_disk_is_full_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(_: Store, __: Batch) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "apply", refusing)

    async def scenario() -> bool:
        journal = Journal(Store(tmp_path), Counter())
        written = journal.retain(TOPIC, Kept(b"x", 1, "aggregator"))
        assert written is not None
        await journal.close()
        return written.cancelled()

    assert asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["no database", "a torn page", "nothing behind the header"])
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    def fill(journal: Journal) -> None:
        journal.keep("aggregator", Role.AGGREGATOR)
        for _ in range(200):
            journal.add("aggregator", message(journal.next_position(), bytes(2000)))

    with_journal(tmp_path, fill)
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    match damage:
        case "no database":
            data = bytearray(b"not a database, whatever its name says" * 200)
        case "a torn page":
            data[4096 * 3 : 4096 * 9] = b"\xa5" * (4096 * 6)
        case _:
            del data[4096:]
    path.write_bytes(data)
    store = Store(tmp_path)
    assert store.set_aside is not None
    assert store.set_aside.read_bytes() == data, "what was found is kept as it was"
    assert store.load_sessions() == {}
    assert any(r.levelno == logging.ERROR and "damaged store" in r.message for r in caplog.records)
    store.apply(Batch(retained={TOPIC: Kept(b"x", 1, "aggregator")}))
    store.close()
    again = Store(tmp_path)
    assert again.set_aside is None
    assert len(list(again.load_retained())) == 1
    again.close()


def test_a_newer_version_s_file_and_another_program_s_are_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigError, match="found storage version 99, expected at most 1"):
        Store(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / FILE) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    with pytest.raises(ConfigError, match="found another program's database"):
        Store(other)


def test_one_broker_at_a_time_has_the_directory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="found another broker that uses it"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="could not make directory"):
        Store(tmp_path / "file")


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "state").iterdir()} == {0}
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    store.close()


@pytest.mark.parametrize(("durability", "synchronous"), [(Durability.POWER, 2), (Durability.PROCESS, 1)])
def test_the_durability_that_was_asked_for(tmp_path: Path, durability: Durability, synchronous: int) -> None:
    store = Store(tmp_path, durability)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


# --- what a restored client sees


def test_a_restored_message_has_its_packet_id_again_and_says_that_it_may_be_one() -> None:
    async def scenario() -> list[tuple[int | None, bool]]:
        session = ClientSession(None, clean=False)
        session.restore(
            [message(position) for position in (7, 65_535 + 7, 65_536)] + [message(p) for p in range(70, 100)]
        )
        return [(packet_id, m.duplicate) for packet_id, m in [await session.next() for _ in range(20)]]

    found = asyncio.run(scenario())
    assert found[0] == (7, True)
    assert found[1][0] not in (7, None), "an id that is in flight is not used twice"
    assert found[2] == (1, True) if found[1][0] != 1 else found[2][0] is not None
    assert {duplicate for _, duplicate in found} == {True}


# --- retained messages


def test_room_for_retained_messages_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_broker.retained.RETAINED_BYTES_MAX", 100)
    monkeypatch.setattr("vedette_broker.retained.CLIENT_RETAINED_BYTES_MAX", 30)
    retained = Retained()
    assert retained.put("a", Kept(bytes(30), 1, "dev"), limited=True)
    assert not retained.put("b", Kept(b"x", 1, "dev"), limited=True)
    assert retained.put("a", Kept(bytes(10), 1, "dev"), limited=True), "the one before makes room"
    assert retained.put("c", Kept(bytes(90), 1, "aggregator"), limited=False)
    assert not retained.put("d", Kept(b"x", 1, "aggregator"), limited=False)
    assert not retained.put("c", Kept(bytes(91), 1, "aggregator"), limited=False)
    assert [t for t, _ in retained.below("#")] == ["a"], "an older message is not kept for the newest"
    assert retained.remove("a")
    assert not retained.remove("a")
    assert (len(retained), retained.payload_bytes, retained._shares) == (0, 0, {})
