"""The record of an acceptance, what follows from it, and the command beside a node that runs or does not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from accept_parts import BEFORE, MODEL, NEW, OLD, SCHEMA, SETTINGS, armed, collected, tick, window
from hypothesis import example, given
from hypothesis import strategies as st

from vedette_core.machine import Effect, Persist, Publish
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.acceptance import (
    REASON_CHARACTERS_MAX,
    Acceptance,
    ForgetEntity,
    LearnEntity,
    follow,
    progress_from_bytes,
)
from vedette_device.acceptance_operator import accept, accepted, audit_folder, undo
from vedette_device.acceptances import Acceptances
from vedette_device.accepted_entities import ENTITIES_MAX, LEARNING_MAX
from vedette_device.audit_log import AuditLog, FolderLock, verify_audit
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, WindowScored
from vedette_device.detector import Detector
from vedette_device.evidence_store import TABLES
from vedette_device.settings import DeviceSettings, IdentitySection, NetworkSection, SensorSection
from vedette_schemas.alert import Alert, AlertState, decode
from vedette_schemas.errors import ConfigError, PeerError, TransientError

RECORD = Acceptance("an-id", "network", NEW, "gw-1-network-1", 1.5, "the new printer", 1000, 1_772_755_200.0)


def test_a_record_comes_back_as_it_was() -> None:
    assert Acceptance.from_bytes(RECORD.to_bytes()) == RECORD
    assert RECORD.key == f"accept/network/{NEW}"


@pytest.mark.parametrize(
    "change",
    [
        {"level": 0.5},
        {"level": "x"},
        {"level": float("nan")},
        {"at": float("inf")},
        {"uid": None},
        {"uid": float("inf")},
        {"level": 10**400},
        {"entity": 7},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    plain = json.loads(RECORD.to_bytes()) | change
    with pytest.raises(PeerError, match="acceptance"):
        Acceptance.from_bytes(json.dumps(plain).encode())


@given(st.binary(max_size=200))
@example(b"[" * 4000)
def test_anything_else_is_no_record_and_no_progress(data: bytes) -> None:
    with pytest.raises(PeerError):
        Acceptance.from_bytes(data)
    assert progress_from_bytes(data) is None


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("123")),
    st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("123")),
)
def test_following_leads_to_the_records_and_then_asks_for_nothing(
    records: dict[str, str], known: dict[str, str]
) -> None:
    wanted = {e: replace(RECORD, entity=e, id=i) for e, i in records.items()}
    for step in follow(wanted, known):
        if isinstance(step, ForgetEntity):
            del known[step.entity]
        else:
            known[step.acceptance.entity] = step.acceptance.id
    assert known == records
    assert follow(wanted, known) == []


def test_past_the_limit_the_oldest_records_count() -> None:
    wanted = {str(i): replace(RECORD, entity=str(i), at=float(100 - i)) for i in range(ENTITIES_MAX + 3)}
    steps = follow(wanted, {"0": RECORD.id})
    assert steps[0] == ForgetEntity("0")
    assert {s.acceptance.entity for s in steps if isinstance(s, LearnEntity)} == {
        str(i) for i in range(3, ENTITIES_MAX + 3)
    }


class Site:
    """A node's detector, alerts and store, without its source and its link."""

    def __init__(self, folder: Path) -> None:
        self.settings = DeviceSettings(
            site="s",
            device="gw-1",
            state_dir=folder,
            identity=IdentitySection(bundle=folder, trust_root=folder / "root.json"),
            network=NetworkSection(source="live", interface="lo", local_networks=("10.0.0.0/24",)),
            sensor=SensorSection(source="file", channels=("a",), period_s=30.0),
        )
        self.database = Database(folder / "device.db", TABLES)
        self.store = StateStore(self.database)
        self.metrics = Metrics(DEVICE_METRICS)
        self.alerts: list[Alert] = []
        self.saved = BEFORE
        self.start()

    def start(self) -> None:
        """Start the node, or start it again from what it kept: its source goes on where that was."""
        self.step = self.saved
        saved = self.store.get("detector/network")
        self.detector = armed()
        if saved is not None:
            state = msgpack.unpackb(saved, strict_map_key=False)
            self.detector = Detector.from_state(SCHEMA, SETTINGS, state)
            self.detector.install(collected()[1], MODEL)
        self.machine = DetectionMachine("s", "gw-1", "network", "network", DetectionSettings())
        self.do(self.machine.restore(self.store.all(self.machine.prefix)))
        self.shell = Acceptances("network", self.detector, self.machine, self.store, self.metrics, self.save)

    def save(self) -> None:
        self.saved = self.step
        self.store.put("detector/network", bytes(msgpack.packb(self.detector.to_state())))

    def do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                self.store.put(effect.key, effect.value)
            elif isinstance(effect, Publish):
                self.alerts.append(decode(effect.payload))

    def look(self) -> None:
        async def carry_out(effects: Sequence[Effect]) -> None:
            self.do(effects)

        asyncio.run(self.shell.look(carry_out))

    def feed(self, count: int, *entities: str, loud: float = 0.0) -> None:
        for _ in range(count):
            frozen = bool(self.machine.open_entities)
            windows = [window(e, self.step, loud=loud if e == NEW else 0.0) for e in entities]
            for scored in self.detector.feed(windows, frozen=frozen):
                self.do(self.machine.handle(WindowScored(scored), 0.0))
            self.step += 1

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"vedette_{metric}", labels) or 0.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.save()
    return site


def test_from_a_false_alarm_to_a_host_that_is_watched_like_any_other(site: Site) -> None:
    site.feed(20, *OLD, NEW)
    assert site.machine.open_entities == {NEW}
    alert = site.alerts[-1].id
    before = site.detector.to_state()["held_out"]
    site.feed(5, *OLD, NEW)
    assert site.detector.to_state()["held_out"] == before, "frozen by the alert"

    record = accept(site.settings, alert=alert, reason="the new printer")
    assert (record.task, record.entity, record.alert, record.uid) == ("network", NEW, alert, os.getuid())
    assert record.level > 1
    assert accepted(site.settings)[0]["stage"] == "waiting"
    site.look()
    assert site.alerts[-1].state is AlertState.CLOSED
    assert site.alerts[-1].id == alert
    assert site.alerts[-1].summary.endswith("accepted by a person: the new printer")
    assert site.machine.open_entities == frozenset()
    assert site.value("entities_learning", task="network") == 1

    said = len(site.alerts)
    site.feed(100, *OLD, NEW)
    assert site.detector.to_state()["held_out"] != before, "the calibration goes on"
    site.look()
    site.start()  # a restart in the middle, from the state of the beginning
    site.look()
    (row,) = accepted(site.settings)
    assert row["stage"] == "learning"
    site.feed(SETTINGS.stretch_windows, *OLD, NEW)
    site.look()
    (row,) = accepted(site.settings)
    assert (row["stage"], row["windows"], row["of"]) == ("learnt", SETTINGS.stretch_windows, SETTINGS.stretch_windows)
    assert (row["alert"], row["reason"]) == (alert, "the new printer")
    site.feed(100, *OLD, NEW)
    assert len(site.alerts) == said, "quiet"
    assert site.value("entities_learning", task="network") == 0
    assert site.value("acceptances_total", task="network", outcome="learnt") == 1

    site.feed(4, *OLD, NEW, loud=1.0)
    assert site.machine.open_entities == {NEW}, "an attack by the same host is found"
    site.feed(40, *OLD, NEW)
    assert site.machine.open_entities == frozenset()

    undo(site.settings, alert=alert)
    site.look()
    assert accepted(site.settings) == []
    assert site.store.all("accept-progress/") == {}
    site.feed(20, *OLD, NEW)
    assert site.machine.open_entities == {NEW}, "a newcomer again"

    chain = verify_audit([audit_folder(site.settings) / "audit.jsonl"])
    entries = [json.loads(line) for line in (audit_folder(site.settings) / "audit.jsonl").read_text().splitlines()]
    assert chain.lines == 2
    assert [e["outcome"] for e in entries] == ["accepted", "undone"]
    assert {"alert": alert, "entity": NEW, "reason": "the new printer", "uid": os.getuid()}.items() <= entries[
        0
    ].items()


def test_a_crash_between_the_closed_alert_and_the_saved_state_resumes(site: Site) -> None:
    site.feed(20, *OLD, NEW)
    accept(site.settings, task="network", entity=NEW)
    site.shell._save = lambda: None
    site.look()
    assert site.alerts[-1].state is AlertState.CLOSED
    level = site.detector.accepted._entities[NEW].level
    said = len(site.alerts)
    site.start()
    assert site.detector.accepted.known() == {}
    site.look()
    assert site.detector.accepted.is_learning(NEW)
    assert site.detector.accepted._entities[NEW].level == pytest.approx(level)
    site.feed(50, *OLD, NEW)
    assert len(site.alerts) == said


def test_it_is_taken_back_while_the_node_is_stopped(site: Site) -> None:
    site.feed(20, *OLD, NEW)
    record = accept(site.settings, task="network", entity=NEW)
    site.look()
    undo(site.settings, task="network", entity=NEW)
    site.start()
    assert site.detector.accepted.known() == {NEW: record.id}
    site.look()
    assert site.detector.accepted.known() == {}


def test_an_alert_of_the_stretch_is_accepted_in_its_turn(site: Site) -> None:
    site.save()
    accept(site.settings, task="network", entity=OLD[0])
    site.look()
    with pytest.raises(ConfigError, match="being learnt already"):
        accept(site.settings, task="network", entity=OLD[0])
    for scored in site.detector.feed([window(OLD[0], site.step, loud=1.0)]):
        site.do(site.machine.handle(WindowScored(scored), 0.0))
    assert site.machine.open_entities == {OLD[0]}
    again = accept(site.settings, task="network", entity=OLD[0])
    assert again.level > 2
    site.look()
    assert site.detector.accepted.known() == {OLD[0]: again.id}
    assert site.machine.open_entities == frozenset()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"alert": "gw-1-network-none"}, "neither open nor among those that evidence is kept for"),
        ({"task": "network", "entity": "10.9.9.9"}, "neither an open alert nor windows of it"),
        ({"task": "other", "entity": NEW}, "no detector of it here, expected one of network, sensor"),
        ({"task": "sensor", "entity": "process"}, "a detector of the single entity process"),
        ({"task": "network", "entity": OLD[0], "reason": "x" * (REASON_CHARACTERS_MAX + 1)}, "expected at most"),
        ({"task": "network", "entity": OLD[0], "reason": "a\x1bb"}, "printable"),
    ],
)
def test_what_cannot_be_accepted_is_refused_and_leaves_nothing(site: Site, asked: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        accept(site.settings, **asked)
    assert accepted(site.settings) == []
    assert not (audit_folder(site.settings) / "audit.jsonl").exists()


def test_a_detector_in_its_learning_phase_accepts_nobody(site: Site) -> None:
    site.store.put("detector/network", bytes(msgpack.packb(Detector(SCHEMA, SETTINGS).to_state())))
    with pytest.raises(ConfigError, match="learning phase"):
        accept(site.settings, task="network", entity=NEW)


def test_a_device_without_state_is_said(tmp_path: Path) -> None:
    settings = Site(tmp_path).settings.model_copy(update={"state_dir": tmp_path / "none"})
    for call in (lambda: accept(settings, alert="a"), lambda: undo(settings, alert="a"), lambda: accepted(settings)):
        with pytest.raises(ConfigError, match="no state there"):
            call()
    assert not (tmp_path / "none").exists()


def test_what_was_not_accepted_is_not_taken_back(site: Site) -> None:
    for asked in ({"alert": "gw-1-x"}, {"task": "network", "entity": NEW}):
        with pytest.raises(ConfigError, match="found no acceptance of it among 0"):
            undo(site.settings, **asked)


def test_few_are_learnt_at_a_time(site: Site) -> None:
    for i in range(LEARNING_MAX):
        record = replace(RECORD, entity=f"10.0.1.{i}", id=str(i))
        site.store.put(record.key, record.to_bytes())
    with pytest.raises(ConfigError, match=f"{LEARNING_MAX} of them being learnt"):
        accept(site.settings, task="network", entity=OLD[0])


def test_two_commands_do_not_break_the_chain(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_device.acceptance_operator.LOCK_S", 0.0)
    lock = FolderLock(audit_folder(site.settings))
    with pytest.raises(TransientError, match="another"):
        accept(site.settings, task="network", entity=OLD[0])
    lock.close()
    accept(site.settings, task="network", entity=OLD[0])
    assert verify_audit([audit_folder(site.settings) / "audit.jsonl"]).lines == 1


def test_a_full_disk_is_audited_and_accepts_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put = StateStore.put

    def full(self: StateStore, key: str, value: bytes | None) -> None:
        if key.startswith("accept/"):
            raise TransientError("no room")
        put(self, key, value)

    monkeypatch.setattr(StateStore, "put", full)
    with pytest.raises(TransientError, match="no room"):
        accept(site.settings, task="network", entity=OLD[0])
    entries = [json.loads(line) for line in (audit_folder(site.settings) / "audit.jsonl").read_text().splitlines()]
    assert [e["outcome"] for e in entries] == ["accepted", "failed"]
    assert accepted(site.settings) == []


def test_the_audit_comes_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: AuditLog, entry: object) -> None:
        raise TransientError("no room")

    monkeypatch.setattr(AuditLog, "append", broken)
    with pytest.raises(TransientError):
        accept(site.settings, task="network", entity=OLD[0])
    assert accepted(site.settings) == []


def test_a_damaged_record_changes_nothing_and_detection_goes_on(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.store.put(f"accept/network/{NEW}", b"nonsense")
    site.store.put("accept/network/10.0.0.8", RECORD.to_bytes().replace(b"1000", b"1e999"))
    accept(site.settings, task="network", entity=OLD[1])
    site.look()
    site.look()
    assert caplog.text.count("stays as it is") == 2
    assert set(site.detector.accepted.known()) == {OLD[1]}, "and it keeps nobody else's record from being followed"
    assert site.value("acceptances_total", task="network", outcome="damaged") == 2
    assert tick(site.detector, site.step, *OLD)[OLD[0]].learning_limit is None


def test_a_record_that_is_damaged_later_takes_nothing_back(site: Site) -> None:
    site.feed(20, *OLD, NEW)
    record = accept(site.settings, task="network", entity=NEW)
    site.look()
    site.store.put(record.key, record.to_bytes()[:-1])
    site.look()
    site.start()
    site.look()
    assert site.detector.accepted.known() == {NEW: record.id}
    site.store.put(record.key, None)
    site.look()
    assert site.detector.accepted.known() == {}, "a record that is gone was taken back"


def test_a_detector_of_one_entity_looks_for_no_records(site: Site) -> None:
    async def carry_out(_: Sequence[Effect]) -> None:
        raise AssertionError("found an effect, expected none")

    site.detector.schema = SCHEMA.model_copy(update={"use_case": "sensor"})
    asyncio.run(asyncio.wait_for(site.shell.run(carry_out), 30))
