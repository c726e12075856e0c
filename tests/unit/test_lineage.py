"""The record of candidates and releases: durable, bounded, and the same whoever asks."""

from __future__ import annotations

import hashlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vedette_aggregator import lineage as module
from vedette_aggregator.lineage import RELEASED, Descent, Lineage
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.errors import ConfigError, RefusedError

NOW = 1_800_000_000.0


def candidate(number: int, **changes: Any) -> Descent:
    fields: dict[str, Any] = {
        "task": "network",
        "digest": f"{number:064x}",
        "round": number,
        "attempt": 1,
        "made_s": NOW + number,
        "parent_version": number - 1 if number else None,
        "parent_sha256": "",
        "contributors": 8,
        "epsilon": 1.5,
        "metrics": {"loss_after": 0.25},
        "figures": {"shift": float("inf")},
        "verdicts": ({"validator": "loss", "outcome": "pass", "found": "a", "expected": "b", "cohort": ""},),
    }
    return Descent(**(fields | changes))


@pytest.fixture
def record(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path / "aggregator.db")


def test_what_was_kept_is_read_as_it_was(record: Lineage) -> None:
    kept = candidate(1)
    record.keep(kept)
    assert record.all("network") == (kept,)
    assert record.of_digest("network", kept.digest) == kept
    assert record.of_round("network", 1) == kept
    assert record.of_version("network", 1) is None
    assert record.all("sensor") == ()


def test_a_candidate_becomes_a_release_once(record: Lineage) -> None:
    record.keep(candidate(1, outcome="accepted"))
    for _ in range(2):
        record.release("network", candidate(1).digest, 1, {"int8": "ab"})
    found = record.of_version("network", 1)
    assert found is not None
    assert (found.version, found.outcome, found.files) == (1, RELEASED, {"int8": "ab"})
    assert len(record.all("network")) == 1
    record.release("network", "ff" * 32, 9, {})
    assert record.of_version("network", 9) is None


def test_releases_on_record_are_told_apart_from_candidates(record: Lineage) -> None:
    assert record.versions("network") == frozenset()
    for number in range(3):
        record.keep(candidate(number, version=number or None))
    assert record.versions("network") == {1, 2}
    assert record.versions("sensor") == frozenset()


def test_ancestors_lead_back_to_the_first(record: Lineage) -> None:
    for number in range(4):
        record.keep(candidate(number, version=number))
    record.keep(candidate(7, parent_version=1, version=4))
    assert record.ancestors("network", 3) == (2, 1, 0)
    assert record.ancestors("network", 4) == (1, 0)
    assert record.ancestors("network", 12) == ()
    record.keep(candidate(8, parent_version=8, version=8))
    assert record.ancestors("network", 8) == (8,), "a damaged record does not go round for ever"


def test_history_is_kept_in_order_and_bounded(record: Lineage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_MAX", 3)
    for i in range(5):
        record.record("network", 1, f"stage {i}", NOW + i, "x" * 9000)
    record.record("network", 2, "created", NOW)
    assert [e.what for e in record.events("network", 1)] == ["stage 2", "stage 3", "stage 4"]
    assert {len(e.details) for e in record.events("network", 1)} == {module.TEXT_CHARACTERS_MAX}
    assert [(e.at_s, e.what) for e in record.events("network", 2)] == [(NOW, "created")]


def test_the_record_is_bounded_and_releases_stay_longest(record: Lineage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES_MAX", 4)
    for number in range(6):
        record.keep(candidate(number, version=number if number < 2 else None))
    assert [d.round for d in record.all("network")] == [0, 1, 4, 5]


def test_weights_are_kept_for_the_newest_and_checked(
    record: Lineage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WEIGHTS_KEPT", 2)
    files = [bytes([number]) * 1000 for number in range(4)]
    for number, data in enumerate(files):
        record.keep(candidate(number), data)
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    assert [record.weights("network", d) for d in digests[2:]] == files[2:]
    with pytest.raises(RefusedError, match="not found, expected one of the newest"):
        record.weights("network", digests[0])
    with sqlite3.connect(tmp_path / "aggregator.db") as connection:
        connection.execute("UPDATE lineage_weights SET data = ? WHERE sha256 = ?", (b"junk", digests[3]))
        connection.execute(
            "UPDATE lineage_weights SET data = (SELECT data FROM lineage_weights WHERE sha256 = ?1) WHERE sha256 = ?1",
            (digests[2],),
        )
    with pytest.raises(ConfigError, match="restore the state from its backup"):
        record.weights("network", digests[3])


def test_weights_that_unpack_to_more_than_a_model_are_not_unpacked(
    record: Lineage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(1_000_000)
    record.keep(candidate(1), data)
    monkeypatch.setattr(module, "WEIGHTS_BYTES_MAX", 1000)
    with pytest.raises(ConfigError, match="found sha256"):
        record.weights("network", hashlib.sha256(data).hexdigest())


def test_a_damaged_record_is_named(record: Lineage, tmp_path: Path) -> None:
    record.keep(candidate(1))
    with sqlite3.connect(tmp_path / "aggregator.db") as connection:
        connection.execute("UPDATE lineage SET document = '{}'")
    with pytest.raises(ConfigError, match="lineage: found a record that cannot be read"):
        record.all("network")


def test_it_is_written_by_threads_beside_the_aggregators_own_session(tmp_path: Path) -> None:
    own = Database(tmp_path / "aggregator.db")
    store = StateStore(own)
    record = Lineage(tmp_path / "aggregator.db")
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(record.keep, candidate(number)) for number in range(12)]:
            result.result()
        for number in range(12):
            store.put(f"key/{number}", b"value")
    assert {d.round for d in record.all("network")} == set(range(12))
    assert len(store.all("key/")) == 12
    own.close()


def test_keeping_again_changes_the_document_and_not_the_place(record: Lineage) -> None:
    record.keep(candidate(1))
    record.keep(candidate(2))
    record.keep(replace(candidate(1), reason="later"))
    assert [(d.round, d.reason) for d in record.all("network")] == [(1, "later"), (2, "")]
