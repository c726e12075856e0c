"""A detector at work: nothing that its neighbours wait for holds it up, and an alert is counted when it is new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vedette_core.learning.network import build_network
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.learning.spec import dense_spec
from vedette_core.machine import Effect, Publish
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.evidence_store import TABLES, EvidenceStore
from vedette_device.inference import NumpyBackend
from vedette_device.pipeline import Pipeline
from vedette_device.service import DeviceService
from vedette_device.settings import (
    AlertSection,
    BrokerSection,
    DeviceSettings,
    EvidenceSection,
    IdentitySection,
    ReplaySection,
    SensorSection,
)
from vedette_schemas import codec
from vedette_schemas.alert import AlertModel, decode
from vedette_schemas.telemetry import DetectorReport

ROWS = 400


class Neighbour:
    """A participant whose disk is full: it never comes back."""

    def __init__(self) -> None:
        self.asked = 0

    async def collected(self) -> None:
        self.asked += 1
        await asyncio.Event().wait()


class Announcing(DeviceService):
    """The part of a device that tells participants of new rows."""

    def __init__(self, neighbour: Neighbour) -> None:
        self._jobs = Jobs()
        self._participations = {"sensor": neighbour}  # type: ignore[dict-item]


def made(folder: Path, rows: int = ROWS, evidence: EvidenceSection | None = None, forged: int = -1) -> Pipeline:
    lines = [f"{1_700_000_000 + 30 * i},{i % 7 if i != forged else 9999},{i % 5}" for i in range(rows)]
    (folder / "rows.csv").write_text("\n".join(["time_s,a,b", *lines, *["1800000000,x,1"] * 3]) + "\n")
    sensor = SensorSection(
        source="file",
        path=folder / "rows.csv",
        channels=("a", "b"),
        period_s=30.0,
        training_windows=64,
        calibration_windows=32,
        replay=ReplaySection(speed=0, wait_for_release=0),
        alerts=AlertSection(magnitude_factor=1.1 if forged >= 0 else 2.0),
    )
    identity = IdentitySection(bundle=folder, trust_root=folder / "root.json")
    settings = DeviceSettings(
        site="site", device="gw-1", state_dir=folder, identity=identity, broker=BrokerSection(), sensor=sensor
    )
    database = Database(folder / "s.db", TABLES)
    kept = None if evidence is None else EvidenceStore(database, evidence)
    return Pipeline(settings, sensor, StateStore(database), Metrics(DEVICE_METRICS), kept)


def test_a_participant_that_waits_for_the_disk_does_not_hold_detection_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        pipeline, neighbour = made(tmp_path), Neighbour()
        device = Announcing(neighbour)
        pipeline.on_collected = lambda: device._announce_rows("sensor")
        async with asyncio.timeout(240):
            await pipeline.run(nothing)
        assert neighbour.asked > 0
        assert pipeline.detector.training_rows > 0
        await device._jobs.cancel()

    asyncio.run(scenario())


def test_an_alert_that_is_said_again_after_a_restart_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        pipeline = made(tmp_path)
        alert = Publish("t", b'{"state":"open","severity":"low"}', receipt_id="a.0")
        monkeypatch.setattr(type(pipeline.machine), "restore", lambda *_: [alert])
        said: list[Effect] = []

        async def carry_out(effects: Sequence[Effect]) -> None:
            said.extend(effects)

        async with asyncio.timeout(240):
            await pipeline.run(carry_out)
        assert said == [alert]
        assert pipeline.report().alerts_opened == 0
        pipeline._count_alerts([alert])
        assert pipeline.report().alerts_opened == 1

    asyncio.run(scenario())


def test_an_armed_detector_reports_its_sketch_and_its_drift(tmp_path: Path) -> None:
    async def scenario() -> None:
        pipeline = made(tmp_path, rows=1200)
        assert (pipeline.report().sketch, pipeline.report().drift) == (b"", None)
        network = build_network(dense_spec(*pipeline.schema.input_shape))
        backend = NumpyBackend(network, network.initial_weights(np.random.default_rng(1)))
        pipeline.detector.install(backend, AlertModel(task="sensor", version=7, digest="a" * 16))
        async with asyncio.timeout(240):
            await pipeline.run(nothing)

        report = pipeline.report()
        assert report.windows > 1000
        assert report.model_version == 7
        assert ScoreSketch.from_bytes(report.sketch).total == 32
        assert report.drift is not None
        assert report.drift.windows == report.windows
        assert report.drift.unreadable_share == pytest.approx(3 / 1203)
        assert codec.unpack(DetectorReport, codec.pack(report)) == report

    asyncio.run(scenario())


@pytest.mark.parametrize("alerts_max", [0, 5])
def test_an_alert_leaves_when_its_evidence_is_on_the_disk(tmp_path: Path, alerts_max: int) -> None:
    async def scenario() -> None:
        pipeline = made(tmp_path, rows=1200, evidence=EvidenceSection(alerts_max=alerts_max), forged=1100)
        network = build_network(dense_spec(*pipeline.schema.input_shape))
        backend = NumpyBackend(network, network.initial_weights(np.random.default_rng(1)))
        pipeline.detector.install(backend, AlertModel(task="sensor", version=7, digest="a" * 16))
        named: list[str | None] = []

        async def carry_out(effects: Sequence[Effect]) -> None:
            other = Database(tmp_path / "s.db", TABLES)
            there = {row[0] for row in other.connection.execute("SELECT alert FROM evidence")}
            other.close()
            for effect in effects:
                if isinstance(effect, Publish):
                    alert = decode(effect.payload)
                    assert (alert.id in there) == bool(alerts_max)
                    named.append(alert.evidence)

        async with asyncio.timeout(240):
            await pipeline.run(carry_out)
        assert named
        assert {name is not None and name.startswith("device:gw-1-sensor-") for name in named} == {bool(alerts_max)}

    asyncio.run(scenario())


async def nothing(effects: Sequence[Effect]) -> None:
    pass
