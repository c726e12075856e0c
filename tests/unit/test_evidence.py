"""Evidence of alerts: bounded, whole after a crash, found by its alert's id, never believed when it is damaged."""

from __future__ import annotations

import json
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import evidence_parts as e
import msgpack
import numpy as np
import pytest

from vedette.explanation_text import kept_row
from vedette_core.machine import Effect, Persist, Publish
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import StateStore
from vedette_device.alert_record import AlertRecord, ScoredWindow
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, KeepEvidence, WindowScored
from vedette_device.evidence import DIGEST_BYTES, PAST_MAX, Evidence, _digest
from vedette_device.evidence_keeper import ENTITIES_MAX, EvidenceKeeper
from vedette_device.evidence_store import OVERHEAD_BYTES, WEIGHTS_MAX, WEIGHTS_NEWEST, open_kept
from vedette_schemas.alert import ALERT_BYTES_MAX, Alert, decode, encode
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError

RECORD = len(e.evidence("a-000").to_bytes()) + OVERHEAD_BYTES


def kept_alerts(folder: Path) -> list[str]:
    with open_kept(folder) as kept:
        return [alert for alert, _ in kept.alerts()]


def fill_disk(folder_database: object) -> None:
    connection = folder_database.connection  # type: ignore[attr-defined]
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")


# --- the record ---


def test_a_record_comes_back_as_it_was() -> None:
    made = e.evidence(step=7)
    again = Evidence.from_bytes(made.to_bytes())
    for name in ("alert", "schema", "entity", "start_s", "end_s", "score", "p_value", "threshold", "model", "reasons"):
        assert getattr(again, name) == getattr(made, name), name
    for name in ("values", "scaled", "squared_ratio", "scale", "usual", "head"):
        assert np.array_equal(getattr(again.input, name), getattr(made.input, name)), name
    for name in ("end_s", "scores", "p_values", "rows"):
        assert np.array_equal(getattr(again.past, name), getattr(made.past, name)), name


def test_no_flipped_bit_of_a_record_is_believed() -> None:
    data = e.evidence().to_bytes()
    for at in range(0, len(data), 41):
        for bit in (1, 128):
            with pytest.raises(PeerError, match="damaged bytes"):
                Evidence.from_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"values": b""},
        {"squared_ratio": b""},
        {"squared_ratio": np.full(12, -1, "<f4").tobytes()},
        {"scale": np.zeros(12, "<f4").tobytes()},
        {"scaled": np.full(12, np.nan, "<f4").tobytes()},
        {"numbers": [0.0, 1.0, float("inf"), 0.5, 1.0]},
        {"numbers": [0.0, 1.0]},
        {"past": [b"", b"", b"", np.zeros(3, "<f4").tobytes()]},
        {"past": [np.zeros(PAST_MAX + 1, "<f8").tobytes()] * 3 + [np.zeros(3 * (PAST_MAX + 1), "<f4").tobytes()]},
        {"schema": {"use_case": "sensor"}},
        {"model": None},
        {"reasons": [{"usual": 3}]},
    ],
    ids=str,
)
def test_a_whole_record_of_another_form_is_refused(change: dict[str, object]) -> None:
    plain = msgpack.unpackb(e.evidence().to_bytes()[DIGEST_BYTES:])
    packed = bytes(msgpack.packb({**plain, **change}))
    with pytest.raises(PeerError, match="expected a record of format 1"):
        Evidence.from_bytes(_digest(packed) + packed)
    with pytest.raises(PeerError, match="damaged bytes"):
        Evidence.from_bytes(b"")


# --- the store ---


def test_the_oldest_alerts_make_room_for_new_ones(tmp_path: Path) -> None:
    store = e.store(e.database(tmp_path), alerts_max=3)
    assert [store.keep(e.evidence(f"alert-{i}", step=i)) for i in range(5)] == [0, 0, 0, 1, 1]
    assert kept_alerts(tmp_path) == ["alert-4", "alert-3", "alert-2"]
    # One that gets worse takes its own place, and is the newest again.
    assert store.keep(e.evidence("alert-2", step=9, score=8.0)) == 0
    assert kept_alerts(tmp_path) == ["alert-2", "alert-4", "alert-3"]
    with open_kept(tmp_path) as kept:
        assert kept.evidence("alert-2").score == 8.0


def test_all_records_together_stay_within_their_bytes(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    store = e.store(database, alerts_max=100_000, bytes_max=65_536)
    gone = sum(store.keep(e.evidence(f"a-{i:03d}")) for i in range(200))
    rows = database.connection.execute("SELECT COUNT(*), SUM(LENGTH(record)) FROM evidence").fetchone()
    assert rows[0] == 200 - gone == 65_536 // RECORD
    assert rows[1] + OVERHEAD_BYTES * rows[0] <= 65_536
    large = replace(e.evidence("large"), past=e.past(PAST_MAX, e.T0), entity="x" * 70_000)
    with pytest.raises(RefusedError, match="evidence of large: found 7.*bytes_max"):
        store.keep(large)
    assert len(kept_alerts(tmp_path)) == rows[0]


def test_smaller_limits_count_from_the_next_start_on(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    store = e.store(database)
    for i in range(5):
        store.keep(e.evidence(f"alert-{i}"))
    store.keep_weights(e.release(1), e.weights(1), "")
    assert e.store(database, alerts_max=2).begin("sensor") == 0
    assert kept_alerts(tmp_path) == ["alert-4", "alert-3"]
    off = e.store(database, alerts_max=0)
    assert not off.enabled
    off.begin("sensor")
    off.keep_weights(e.release(1), e.weights(1), "")
    assert kept_alerts(tmp_path) == []
    with open_kept(tmp_path) as kept, pytest.raises(RefusedError, match="found none of that release"):
        kept.weights(e.model(1))


def test_a_crash_leaves_the_old_record_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = e.database(tmp_path)
    store = e.store(database, alerts_max=2)
    for name in ("first", "second"):
        store.keep(e.evidence(name))

    def dies(connection: sqlite3.Connection) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_trim", dies)
    for name in ("third", "second"):
        with pytest.raises(KeyboardInterrupt):
            store.keep(e.evidence(name, score=9.0))
    monkeypatch.undo()
    # No close: another process finds what was written, and goes on.
    assert kept_alerts(tmp_path) == ["second", "first"]
    with open_kept(tmp_path) as kept:
        assert kept.evidence("second").score == 3.0
    again = e.store(e.database(tmp_path), alerts_max=2)
    assert (again.begin("sensor"), again.keep(e.evidence("third"))) == (0, 1)
    assert kept_alerts(tmp_path) == ["third", "second"]


def test_a_damaged_record_is_named_and_dropped_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = e.database(tmp_path)
    store = e.store(database)
    store.keep(e.evidence("sound"))
    store.keep(e.evidence("broken"))
    store.keep(e.evidence("other", task="behaviour"))
    with database.transaction() as connection:
        connection.execute("UPDATE evidence SET record = substr(record, 1, 100) WHERE alert = 'broken'")
    with open_kept(tmp_path) as kept:
        with pytest.raises(PeerError, match="alert broken: evidence: found 100 damaged bytes"):
            kept.evidence("broken")
        found = dict(kept.alerts())
        assert isinstance(found["broken"], PeerError)
        assert isinstance(found["sound"], Evidence)
    metrics = Metrics(DEVICE_METRICS)
    EvidenceKeeper(store, metrics, "sensor", e.SCHEMA)
    assert counted(metrics) == {"damaged": 1.0}
    assert "alert broken: evidence: found 100 damaged bytes" in caplog.text
    assert kept_alerts(tmp_path) == ["other", "sound"]


def test_an_alert_without_evidence_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no state there"), open_kept(tmp_path):
        raise AssertionError
    database = e.database(tmp_path)
    e.store(database).keep(e.evidence("gw-1-sensor-a"))
    with open_kept(tmp_path) as kept:
        assert kept.evidence("device:gw-1-sensor-a").alert == kept.evidence("gw-1-sensor-a").alert
        with pytest.raises(ConfigError, match="alert gw-9: found no evidence of it among the 1 alerts.*--list"):
            kept.evidence("device:gw-9")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "device.db").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot read the state database"), open_kept(tmp_path / "other"):
        raise AssertionError


def test_whoever_may_not_read_the_state_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(ConfigError, match="Permission denied.*the rights of the user"), open_kept(tmp_path):
        raise AssertionError


def test_reading_writes_nothing_and_a_state_from_before_has_no_evidence(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    e.store(database).keep(e.evidence())
    assert stat.S_IMODE((tmp_path / "device.db").stat().st_mode) == 0o600
    with open_kept(tmp_path) as kept, pytest.raises(sqlite3.OperationalError, match="readonly"):
        kept._connection.execute("DELETE FROM evidence")
    with database.transaction() as connection:
        connection.execute("DROP TABLE evidence")
    with open_kept(tmp_path) as kept:
        assert kept.alerts() == []
        with pytest.raises(ConfigError, match="among the 0 alerts"):
            kept.evidence("a")


# --- weights ---


def test_weights_are_found_by_the_artifact_that_scored(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    store = e.store(database)
    for version in (1, 2):
        store.keep_weights(e.release(version), e.weights(version), "")
    with open_kept(tmp_path) as kept:
        assert [kept.weights(e.model(v)) for v in (1, 2)] == [e.weights(1), e.weights(2)]
        with pytest.raises(RefusedError, match="weights of sensor 3 .*found none of that release"):
            kept.weights(e.model(3))
        with pytest.raises(RefusedError, match="weights of other 1"):
            kept.weights(e.model(1, task="other"))
    with database.transaction() as connection:
        connection.execute("UPDATE release_weights SET data = ?", (b"x",))
    with open_kept(tmp_path) as kept, pytest.raises(PeerError, match="found 1 damaged bytes"):
        kept.weights(e.model(1))


def test_weights_stay_for_evidence_and_for_what_runs_and_are_bounded(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    store = e.store(database)

    def known() -> list[int]:
        with open_kept(tmp_path) as kept:
            found = []
            for version in range(1, 30):
                try:
                    kept.weights(e.model(version))
                except RefusedError:
                    continue
                found.append(version)
            return found

    running = e.model(3).digest
    for version in range(1, 9):
        store.keep_weights(e.release(version), e.weights(version), running)
        if version == 5:
            store.keep(e.evidence("of-five", version=5))
    assert known() == [3, 5, 7, 8]
    assert len(known()) == 2 + WEIGHTS_NEWEST
    store.keep_weights(e.release(1, task="other"), e.weights(1), "")
    assert known() == [3, 5, 7, 8], "another task's weights move none of this one's"
    for version in range(9, 24):
        store.keep(e.evidence(f"of-{version}", version=version))
        store.keep_weights(e.release(version), e.weights(version), running)
    assert known() == list(range(24 - WEIGHTS_MAX, 24))


def test_weights_that_are_known_are_not_written_again(tmp_path: Path) -> None:
    database = e.database(tmp_path)
    store = e.store(database)
    store.keep_weights(e.release(1), e.weights(1), "")
    before = database.connection.total_changes
    store.keep_weights(e.release(1), e.weights(1), "")
    assert database.connection.total_changes == before
    store.keep_weights(e.release(2), e.weights(2), "")
    store.keep_weights(e.release(1), e.weights(1), "")
    assert database.connection.total_changes > before


# --- the machine and the keeper ---


def machine() -> DetectionMachine:
    return DetectionMachine("site", "gw-1", "sensor", "sensor", DetectionSettings())


def fed(subject: DetectionMachine, *windows: ScoredWindow) -> list[Effect]:
    return [effect for window in windows for effect in subject.handle(WindowScored(window), 0.0)]


def reports(effects: list[Effect]) -> list[Alert]:
    return [decode(effect.payload) for effect in effects if isinstance(effect, Publish)]


def test_evidence_is_kept_before_the_alert_that_names_it_leaves() -> None:
    keep, persist, publish = fed(machine(), e.window())
    assert isinstance(keep, KeepEvidence)
    assert isinstance(persist, Persist)
    (alert,) = reports([publish])
    assert alert.evidence == f"device:{alert.id}" == f"device:{keep.alert}"
    assert keep.window.input is not None


def test_the_strongest_window_that_was_reported_is_kept_and_no_weaker_one() -> None:
    subject = machine()
    scores = (3.0, 2.5, 5.0, 4.0, 4.5, 4.4, 4.3, 9.0)
    effects = fed(subject, *(e.window(i, score=score) for i, score in enumerate(scores)))
    kept = [effect.window.score for effect in effects if isinstance(effect, KeepEvidence)]
    assert kept == [3.0, 5.0, 9.0]
    assert {alert.evidence for alert in reports(effects)} == {f"device:{reports(effects)[0].id}"}


def test_after_a_restart_the_alert_still_names_it() -> None:
    first = machine()
    before = fed(first, e.window())
    persisted = {effect.key: effect.value for effect in before if isinstance(effect, Persist) and effect.value}
    second = machine()
    second.restore(persisted)
    weaker, stronger = fed(second, e.window(1, score=2.5)), fed(second, e.window(2, score=7.0), e.window(3, score=6.0))
    assert [type(effect) for effect in weaker] == [Persist, Publish]
    assert [effect.window.score for effect in stronger if isinstance(effect, KeepEvidence)] == [7.0]
    names = {alert.evidence for alert in reports(before + weaker + stronger)}
    assert names == {f"device:{reports(before)[0].id}"}


def test_a_record_of_a_node_from_before_names_no_evidence() -> None:
    (persist,) = [effect for effect in fed(machine(), e.window()) if isinstance(effect, Persist)]
    assert persist.value is not None
    plain = msgpack.unpackb(persist.value)
    assert plain.pop("evidence_score") == 3.0
    record, _ = AlertRecord.from_bytes(bytes(msgpack.packb(plain)))
    assert record.evidence_score is None


def test_without_inputs_nothing_is_kept_and_nothing_is_named() -> None:
    effects = fed(machine(), replace(e.window(), input=None))
    assert [type(effect) for effect in effects] == [Persist, Publish]
    assert reports(effects)[0].evidence is None


def test_the_reference_gives_way_where_an_alert_would_be_longer_than_a_kilobyte() -> None:
    (alert,) = reports(fed(machine(), e.window()))
    long = alert.model_copy(
        update={"summary": "ü" * 200, "entity": "\u0001" * 60, "site": "s" * 60, "device": "d" * 60}
    )
    data = encode(long)
    assert len(data) <= ALERT_BYTES_MAX
    assert decode(data).evidence is None
    assert decode(encode(alert)).evidence == alert.evidence


def counted(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "vedette_evidence_total"
    }


def test_the_keeper_writes_before_it_hands_on_and_adds_the_time_before(tmp_path: Path) -> None:
    metrics = Metrics(DEVICE_METRICS)
    store = e.store(e.database(tmp_path), alerts_max=1)
    keeper = EvidenceKeeper(store, metrics, "sensor", e.SCHEMA)
    quiet = [e.window(i, score=0.3, seed=i) for i in range(PAST_MAX + 10)]
    keeper.observe([*quiet, e.window(0, entity="other")])
    last = e.window(PAST_MAX + 10, score=4.0)
    keeper.observe([last])
    effects = fed(machine(), last)
    assert keeper.carry_out(effects) == effects[1:]
    with open_kept(tmp_path) as kept:
        found = kept.evidence(reports(effects)[0].id)
    assert found.past.end_s.tolist() == [w.end_s for w in [*quiet, last]][-PAST_MAX:]
    assert found.past.scores.tolist() == [0.3] * (PAST_MAX - 1) + [4.0]
    assert last.input is not None
    assert np.array_equal(found.past.rows[-1], last.input.values[-1])
    keeper.carry_out([KeepEvidence("second", last)])
    assert counted(metrics) == {"kept": 2.0, "made-room": 1.0}


def test_the_past_of_many_entities_is_bounded(tmp_path: Path) -> None:
    keeper = EvidenceKeeper(e.store(e.database(tmp_path)), Metrics(DEVICE_METRICS), "sensor", e.SCHEMA)
    names = [f"e{i}" for i in range(ENTITIES_MAX + 5)]
    keeper.observe([e.window(0, entity=name) for name in names])
    assert list(keeper._past) == names[5:]
    keeper.carry_out([KeepEvidence("forgotten", e.window(0, entity="e0"))])
    with open_kept(tmp_path) as kept:
        assert len(kept.evidence("forgotten").past.end_s) == 0


def test_a_full_disk_holds_no_alert_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics, database = Metrics(DEVICE_METRICS), e.database(tmp_path)
    keeper = EvidenceKeeper(e.store(database), metrics, "sensor", e.SCHEMA)
    keeper.carry_out([KeepEvidence("before", e.window())])
    fill_disk(database)
    large = [KeepEvidence(f"a-{i}", replace(e.window(i), entity="x" * 5000)) for i in range(2)]
    rest = fed(machine(), replace(e.window(), input=None))
    assert keeper.carry_out([*large, *rest]) == rest
    keeper.keep_weights(e.release(1), e.weights(1), "")
    assert counted(metrics) == {"kept": 1.0, "no-room": 2.0}
    assert caplog.text.count("free some disk space") == 1
    assert kept_alerts(tmp_path) == ["before"]
    with pytest.raises(TransientError):
        e.store(database).keep(Evidence.of("b", large[0].window, e.SCHEMA, e.past(0, e.T0)))


def test_a_damaged_page_of_the_database_holds_no_alert_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = e.database(tmp_path)
    e.store(database).keep(e.evidence("before"))
    roots = dict(database.connection.execute("SELECT name, rootpage FROM sqlite_master"))
    size = int(database.connection.execute("PRAGMA page_size").fetchone()[0])
    database.close()
    with (tmp_path / "device.db").open("r+b") as file:
        for table in ("evidence", "release_weights"):
            file.seek((roots[table] - 1) * size)
            file.write(b"\xff" * size)
    metrics, database = Metrics(DEVICE_METRICS), e.database(tmp_path)
    keeper = EvidenceKeeper(e.store(database), metrics, "sensor", e.SCHEMA)
    rest = fed(machine(), replace(e.window(), input=None))
    assert keeper.carry_out([KeepEvidence("a", e.window()), *rest]) == rest
    keeper.keep_weights(e.release(1), e.weights(1), "")
    assert counted(metrics) == {"damaged": 1.0}
    assert caplog.text.count("malformed") == 1
    StateStore(database).put("alert/a", b"still written")


def test_the_list_is_plain_for_machines(tmp_path: Path) -> None:
    e.store(e.database(tmp_path)).keep(e.evidence("gw-1-sensor-a"))
    with open_kept(tmp_path) as kept:
        rows = [kept_row(*each) for each in kept.alerts()]
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["alert"] == "gw-1-sensor-a"
    assert kept_row("a", PeerError("found damage")) == {"alert": "a", "damaged": "found damage"}
