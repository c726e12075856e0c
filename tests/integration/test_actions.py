"""Actions with a real repository, database and signatures; and the commands that show what became of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from release_site import START, Site, describe, release_files

from vedette import toml_writer
from vedette.main import main
from vedette_aggregator import alert_store, device_book
from vedette_aggregator.actions import Hands
from vedette_aggregator.alert_store import AlertStore
from vedette_aggregator.fleet import Fleet
from vedette_aggregator.fleet_watch import FleetWatch
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import Publication
from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.round_events import RoundAsked
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.machine import Effect, Event, Persist, Publish
from vedette_core.runtime.config import load
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.command_machine import CommandMachine, CommandReceived, Recalibrate
from vedette_device.intake import Intake
from vedette_schemas.alert import Alert, AlertModel, AlertState, Severity
from vedette_schemas.errors import PeerError
from vedette_schemas.model import Variant
from vedette_schemas.telemetry import ActiveModel, ColumnDrift, DetectorReport, DeviceState, DriftReport, Telemetry
from vedette_schemas.topics import Topics

NOW, AGGREGATOR, TOPICS = START + 3600.0, "aggregator", Topics("plant")


class Keys:
    """The aggregator's key, made for these tests; knows nobody else."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        assert sender == AGGREGATOR
        try:
            self._key.public_key().verify(signature, data)
        except InvalidSignature as fault:
            raise PeerError(f"signature of {sender} does not hold", reason="signature") from fault


KEYS = Keys()
DEVICES = tuple(f"gw-{i:02}" for i in range(6))
ON = {"recalibrate": "on", "extra_round": "on", "rollback": "on", "reports_min": 2, "recalibrations_per_hour": 6}


class Aggregator:
    """The parts of an aggregator that devices' words pass through, without a broker."""

    def __init__(self, folder: Path, actions: dict[str, Any]) -> None:
        self.site = Site(folder)
        for version in range(3):
            self.site.publish("network", version)
        self.config = folder / "aggregator.toml"
        tables = {
            "site": TOPICS.site,
            "state_dir": folder / "state",
            "trust_dir": self.site.repository,
            "identity": {"bundle": folder / "bundle"},
            "actions": actions,
            "tasks": [{"task": "network", "use_case": "network"}],
        }
        self.config.write_text(toml_writer.dumps(tables))
        self.settings = load(AggregatorSettings, self.config)
        self.database = Database(folder / "state" / "aggregator.db", alert_store.TABLES + device_book.TABLES)
        self.store, self.alerts = StateStore(self.database), AlertStore(self.database)
        self.metrics = Metrics(AGGREGATOR_METRICS)
        self.sent: list[Publish] = []
        self.put_out: list[Publication] = []
        self.asked: list[str] = []
        self.followed: list[str] = []
        hands = Hands(self._carry_out, self.sent.append, self.put_out.append, self._handle, self._follow)
        node: Any = SimpleNamespace(id=AGGREGATOR, signer=KEYS)
        self.watch = FleetWatch(
            self.settings, Fleet(self.metrics), self.database, self.metrics, self.site.registry, node, hands
        )
        self.sequence = 0

    async def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                self.store.put(effect.key, effect.value)

    async def _handle(self, task: str, event: Event) -> None:
        assert isinstance(event, RoundAsked)
        self.asked.append(task)

    async def _follow(self, task: str) -> None:
        self.followed.append(task)

    async def report(self, device: str, drifts: bool, version: int = 2) -> None:
        self.sequence += 1
        drift = DriftReport(
            windows=2048,
            psi=0.9 if drifts else 0.0,
            ks=0.4,
            ks_p=1e-9 if drifts else 0.5,
            calibration_error=0.4 if drifts else 0.02,
            columns=(ColumnDrift(name="syn_count", psi=4.0),) if drifts else (),
        )
        detector = DetectorReport(
            task="network", phase="armed", windows=9, refused={}, model_version=version, drift=drift
        )
        report = Telemetry(
            device=device, session="0" * 16, seq=self.sequence, time_s=NOW, uptime_s=1.0, rss_bytes=1, cpu_s=0.0,
            spool_messages=0, spool_bytes=0, spool_dropped=0, bytes_up=0, detectors=(detector,),
        )  # fmt: skip
        await self.watch.take_report(report, NOW)

    async def fire(self, device: str, version: int = 2) -> None:
        alert = Alert(
            id=f"al-{device}-{version}", seq=0, time="2026-03-01T12:00:05Z", site=TOPICS.site, device=device,
            entity="10.0.1.17", detector="network", kind="magnitude", severity=Severity.HIGH, confidence=0.9,
            score=40.0, p_value=1e-6, threshold=3.0, window_start="2026-03-01T12:00:00Z",
            window_end="2026-03-01T12:00:05Z", features=(), state=AlertState.OPEN, count=1, summary="too much",
            model=AlertModel(task="network", version=version, digest="a" * 16),
        )  # fmt: skip
        self.alerts.add(alert, NOW)
        await self.watch.take_alert(alert, NOW)

    def count(self, kind: str, outcome: str) -> float | None:
        labels = {"kind": kind, "outcome": outcome}
        return self.metrics.registry.get_sample_value("vedette_actions_total", labels)


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["vedette", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert (left.value.code or 0) == code, said.err
        return said.out + said.err

    return run


def test_a_release_on_which_everybody_fires_is_taken_back(tmp_path: Path, vedette: Callable[..., str]) -> None:
    aggregator = Aggregator(tmp_path, ON)

    async def story() -> None:
        for device in DEVICES:
            await aggregator.report(device, False, version=1)
        await aggregator.watch.active("network", 2, NOW, fresh=True)
        for device in DEVICES:
            await aggregator.report(device, False)
        for device in DEVICES[:3]:
            await aggregator.fire(device)
        for device in DEVICES:
            await aggregator.fire(device, 7)

    asyncio.run(story())
    registry = aggregator.site.registry
    assert registry.active("network") == 1
    assert aggregator.followed == ["network"]
    assert len(aggregator.put_out) == 1
    aggregator.site.now = START + 60
    aggregator.site.deliver(aggregator.put_out[0])
    device_side = aggregator.site.device()
    device_side.refresh()
    assert device_side.release("network").version == 1, "a device takes it from the retained topics"
    assert aggregator.count("rollback", "done") == 1.0
    (event,) = Lineage(aggregator.database.path).events("network", 2)
    assert event.what == "rolled back"
    assert "to 1: 3 of 6 devices on release 2" in event.details


def test_a_rollback_goes_to_the_parent_and_not_to_what_was_left_before(tmp_path: Path) -> None:
    """Release 2 was gone back from; 3 was made from 1, and is bad, too."""
    aggregator = Aggregator(tmp_path, ON)
    registry = aggregator.site.registry
    registry.rollback("network", 1, START)
    files = release_files("network", 3)
    parent = registry.listed("network", 1)[Variant.WEIGHTS].sha256
    registry.publish("network", 3, files, describe("network", 3, files, parent), START)

    async def story() -> None:
        for device in DEVICES:
            await aggregator.report(device, False, version=1)
        await aggregator.watch.active("network", 3, NOW, fresh=True)
        for device in DEVICES:
            await aggregator.report(device, False, version=3)
        for device in DEVICES[:3]:
            await aggregator.fire(device, 3)

    asyncio.run(story())
    assert registry.versions("network") == (1, 2, 3)
    assert registry.active("network") == 1


def test_a_drifting_device_is_asked_and_believes_only_that(tmp_path: Path, vedette: Callable[..., str]) -> None:
    aggregator = Aggregator(tmp_path, ON)

    async def story() -> None:
        for device in DEVICES:
            await aggregator.report(device, False)
        for _ in range(3):
            await aggregator.report("gw-02", True)

    asyncio.run(story())
    (sent,) = aggregator.sent
    assert (sent.topic, sent.qos, sent.retain) == (TOPICS.command("gw-02"), 0, False)
    event = Intake(TOPICS, "gw-02", AGGREGATOR, ["network"], KEYS).take(sent.topic, sent.payload)
    assert isinstance(event, CommandReceived)
    effects = CommandMachine("gw-02", ["network"]).handle(event, NOW + 1)
    assert [e.task for e in effects if isinstance(e, Recalibrate)] == ["network"]
    assert aggregator.count("recalibrate", "done") == 1.0

    aggregator.watch.flush(NOW, at_once=True)
    text = vedette("device", "show", "gw-02", "-c", aggregator.config)
    assert "drifting: calibration, feature, score; PSI 0.900" in text
    assert "recalibrate network: done (drifting in 2 reports in a row)" in text
    rows = json.loads(vedette("device", "list", "-c", aggregator.config, "--drifting", "--json"))
    assert [row["device"] for row in rows] == ["gw-02"]


def test_numbers_of_commands_go_up_over_a_restart_and_a_clock_that_is_set_back(tmp_path: Path) -> None:
    aggregator = Aggregator(tmp_path, ON)

    async def drift(device: str) -> None:
        for _ in range(2):
            await aggregator.report(device, True)

    for device in DEVICES[:3]:
        asyncio.run(drift(device))
    numbers = []
    for sent in aggregator.sent:
        device = sent.topic.split("/")[4]
        event = Intake(TOPICS, device, AGGREGATOR, ["network"], KEYS).take(sent.topic, sent.payload)
        assert isinstance(event, CommandReceived)
        numbers.append(event.body.seq)
    assert numbers == sorted(set(numbers)), "at the same moment, and still one after the other"


def test_many_that_drift_get_a_round_and_watching_does_nothing(tmp_path: Path, vedette: Callable[..., str]) -> None:
    for name, mode in (("a", "on"), ("b", "watch")):
        folder = tmp_path / name
        folder.mkdir()
        aggregator = Aggregator(folder, {**ON, "extra_round": mode, "recalibrate": "off"})

        async def story(aggregator: Aggregator) -> None:
            for _ in range(4):
                for device in DEVICES:
                    await aggregator.report(device, True)

        asyncio.run(story(aggregator))
        assert aggregator.asked == (["network"] if mode == "on" else [])
        assert aggregator.count("extra-round", "done" if mode == "on" else "watched") == 1.0
        assert aggregator.sent == []


def test_everything_about_a_device_is_in_one_place(tmp_path: Path, vedette: Callable[..., str]) -> None:
    aggregator = Aggregator(tmp_path, {})
    state = DeviceState(
        device="gw-01", status="online", session="0" * 16, seq=1, time="2026-01-01T00:00:00Z", software="0.1.0"
    )

    async def story() -> None:
        await aggregator.watch.take_state(state, NOW)
        aggregator.watch.take_cohort("gw-01", "camera", NOW)
        await aggregator.report("gw-01", False)
        await aggregator.fire("gw-01")

    asyncio.run(story())
    Quarantine(aggregator.store).add("gw-01", "odd traffic")
    aggregator.watch.flush(NOW, at_once=True)
    row = json.loads(vedette("device", "show", "gw-01", "-c", aggregator.config, "--json"))
    assert (row["status"], row["cohort"], row["software"], row["alerts"]) == ("online", "camera", "0.1.0", 1)
    assert row["quarantined"]["reason"] == "odd traffic"
    assert row["newest_alerts"][0]["summary"] == "too much"
    text = vedette("device", "list", "-c", aggregator.config)
    assert "gw-01" in text
    assert "quarantined" in text
    assert "found nothing of it, expected one of: gw-01" in vedette(
        "device", "show", "gw-99", "-c", aggregator.config, code=3
    )


def test_a_new_device_is_told_what_the_others_score(tmp_path: Path) -> None:
    aggregator = Aggregator(tmp_path, {})
    rng = np.random.default_rng(0)

    def report(device: str, phase: Any, seq: int, *, version: int = 0, sketch: bytes = b"") -> Telemetry:
        detector = DetectorReport(
            task="network", phase=phase, windows=0, refused={}, model_version=version, sketch=sketch
        )
        return Telemetry(
            device=device, session="0" * 16, seq=seq, time_s=NOW, uptime_s=1.0, rss_bytes=1, cpu_s=0.0,
            spool_messages=0, spool_bytes=0, spool_dropped=0, bytes_up=0, detectors=(detector,),
        )  # fmt: skip

    def state(version: int) -> DeviceState:
        model = ActiveModel(task="network", version=version, variant="int8", digest="a" * 64, backend="litert")
        return DeviceState(
            device="gw-09", status="online", session="0" * 16, seq=version, time="2026-01-01T00:00:00Z",
            software="0.1.0", models=(model,),
        )  # fmt: skip

    async def story() -> None:
        await aggregator.watch.take_report(report("gw-09", "calibrating", 1), NOW)
        await aggregator.watch.take_state(state(3), NOW)
        await aggregator.watch.take_report(report("gw-09", "calibrating", 2), NOW)
        assert aggregator.sent == [], "nobody else has said anything"
        for i, device in enumerate(DEVICES[:4]):
            scores = ScoreSketch.of(rng.gamma(4.0, 0.1, 200))
            told = report(device, "armed", 1, version=3, sketch=scores.to_bytes())
            await aggregator.watch.take_report(told, NOW + i)
        for seq, after_s in ((3, 30.0), (4, 70.0), (5, 200.0), (6, 800.0)):
            await aggregator.watch.take_report(report("gw-09", "calibrating", seq), NOW + after_s)
        await aggregator.watch.take_state(state(4), NOW + 900)
        await aggregator.watch.take_report(report("gw-09", "calibrating", 7), NOW + 2000)

    asyncio.run(story())
    assert len(aggregator.sent) == 2, "when the merge is new, and ten minutes later; never of another release"
    event = Intake(TOPICS, "gw-09", AGGREGATOR, ["network"], KEYS).take(
        aggregator.sent[0].topic, aggregator.sent[0].payload
    )
    assert isinstance(event, CommandReceived)
    assert (event.body.action, event.body.version) == ("cold-start", 3)
    assert ScoreSketch.from_bytes(event.body.sketch).total == 4 * 200
