"""Why an alert was raised: a real node keeps the evidence of a real alert, and the command explains it beside it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_release import sign_two_releases
from test_whole_loop import until

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.releases import TaskModel
from vedette_core.learning.local_training import train
from vedette_core.learning.network import ActivationRanges
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features.windows import Window
from vedette_schemas.alert import Alert, AlertState

DEVICE = "gw-1"
CHANNELS = ("flow_l_s", "level_m", "pressure_kpa")
TASK: dict[str, Any] = {"task": "sensor", "use_case": "sensor", "channels": list(CHANNELS), "period_s": 30.0}
START_S, PERIOD_S = 1_700_000_010, 30
TRAINING, CALIBRATION, TRIAL, FORGED = 500, 300, 40, 8
QUIET = TRAINING + CALIBRATION + TRIAL + 40


def readings() -> np.ndarray:
    """A tank that fills and empties; at the end somebody adds a metre to its level for some minutes."""
    rng, t = np.random.default_rng(3), np.arange(QUIET + FORGED)
    flow = 5 + 2 * np.sin(t / 25) + rng.normal(0, 0.1, len(t))
    level = 1.5 + 0.4 * np.sin(t / 25 - 1.2) + rng.normal(0, 0.01, len(t))
    pressure = 9.81 * level + rng.normal(0, 0.1, len(t))
    level[QUIET:] += 1.0
    return np.stack([flow, level, pressure], axis=1)


def lines(values: np.ndarray, first: int) -> str:
    return "".join(
        f"{START_S + PERIOD_S * (first + i)},{','.join(f'{v:.4f}' for v in row)}\n" for i, row in enumerate(values)
    )


def release(trust: Path, values: np.ndarray) -> None:
    """Sign the first two releases of the task as rounds would have, the second of weights that know this tank."""

    def learn(model: TaskModel, start: np.ndarray) -> tuple[np.ndarray, ActivationRanges, float]:
        detector = Detector(model.schema, DetectorSettings(TRAINING, CALIBRATION))
        columns = np.hstack([values, np.diff(values, axis=0, prepend=values[:1])]).astype(np.float32)
        for i, row in enumerate(columns[:TRAINING]):
            detector.feed([Window("process", float(PERIOD_S * i), float(PERIOD_S * (i + 1)), row)])
        x = detector.training_matrix(model.network)
        rng = np.random.default_rng(2)
        learnt = train(model.network, start, x, epochs=60, batch_size=32, learning_rate=3e-3, prox_mu=0.0, rng=rng)
        weights = start + learnt.delta
        return weights, model.network.activation_ranges(x, weights), learnt.loss_after

    sign_two_releases(trust, TASK, learn)


def explained(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = str(site.device_configs[DEVICE])
    return subprocess.run(
        [sys.executable, "-m", "vedette.main", "device", "explain", "-c", config, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def counted(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r'^vedette_evidence_total\{outcome="([\w-]+)",task="sensor"\} (\S+)$', text, re.MULTILINE)
    return {outcome: int(float(n)) for outcome, n in found}


@pytest.mark.timeout(240)
def test_an_alert_of_a_running_node_is_explained_by_the_weights_of_its_release(tmp_path: Path) -> None:
    port, metrics_port, path, values = free_port(), free_port(), tmp_path / "tank.csv", readings()
    path.write_text(f"time_s,{','.join(CHANNELS)}\n" + lines(values[: TRAINING + CALIBRATION], 0))
    sensor = {
        "source": "file",
        "path": path,
        "follow": True,
        "channels": list(CHANNELS),
        "period_s": float(PERIOD_S),
        "training_windows": TRAINING,
        "calibration_windows": CALIBRATION - 20,
    }
    metrics = {"enabled": True, "port": metrics_port}
    tables = {DEVICE: {"telemetry_s": 0.5, "sensor": sensor, "metrics": metrics}}
    site = create(tmp_path / "site", "test-site", (DEVICE,), port=port, tasks=[TASK], device_tables=tables)
    release(site.directory / "trust", values)
    database = site.directory / "state" / DEVICE / "device.db"

    def append(first: int, last: int) -> None:
        with path.open("a") as file:
            file.write(lines(values[first:last], first))

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as fleet:
            fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
            fleet.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                fleet.start(DEVICE, "device", "run", "-c", str(site.device_configs[DEVICE]))
                await until(fleet, "the release", lambda: (DEVICE, "sensor", 1) in observer.activated)
                append(TRAINING + CALIBRATION, QUIET)
                append(QUIET, QUIET + FORGED)
                await until(fleet, "an alert on the forged level", lambda: bool(forged(observer)))
                alert = forged(observer)[0]
                assert alert.evidence == f"device:{alert.id}"
                check_explained(site, alert)
                check_text(site, alert)
                assert counted(metrics_port)["kept"] >= 1

                fleet.end(DEVICE, signal.SIGKILL)
                check_explained(site, alert)
                fleet.start(DEVICE, "device", "run", "-c", str(site.device_configs[DEVICE]))
                fleet.wait_for_port(metrics_port)
                fleet.end(DEVICE, signal.SIGTERM)
                check_explained(site, alert)
                assert stat.S_IMODE(database.stat().st_mode) == 0o600

                check_refusals(site, alert, database)
                fleet.start(DEVICE, "device", "run", "-c", str(site.device_configs[DEVICE]))
                log = tmp_path / "logs" / f"{DEVICE}.log"
                await until(fleet, "the damage", lambda: "damaged bytes" in log.read_text(errors="replace"))
                fleet.wait_for_port(metrics_port)
                assert counted(metrics_port)["damaged"] == 1

    asyncio.run(scenario())


def forged(observer: Observer) -> list[Alert]:
    """Reports of the alert that the forged level opened."""
    reason = ("level_m", "level_m_diff")
    return [a for a in observer.alerts if a.state is not AlertState.CLOSED and a.features[0].name in reason]


def check_explained(site: Site, alert: Alert) -> None:
    answer = explained(site, f"device:{alert.id}", "--json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["model"] == alert.model.model_dump(mode="json")
    assert (found["method"], found["missing"]) == ("gradients", "")
    assert found["float_score"] == pytest.approx(found["artifact_score"], rel=0.2)
    columns = {column["name"]: column for column in found["columns"]}
    assert sum(column["share"] for column in columns.values()) == pytest.approx(1.0)
    assert max(columns, key=lambda name: columns[name]["gradient"]) in ("level_m", "level_m_diff")
    assert columns["level_m"]["value"] > columns["level_m"]["usual"][1]
    (scored,) = [moment for moment in found["course"] if moment["scored"]]
    assert scored["end"] == found["window_end"]
    assert scored["score"] == found["score"] > found["threshold"]


def check_text(site: Site, alert: Alert) -> None:
    listed = json.loads(explained(site, "--list", "--json").stdout)
    assert alert.id in [row["alert"] for row in listed]
    text = explained(site, alert.id)
    assert text.returncode == 0, text.stderr
    assert "gradient" in text.stdout
    assert "step of level" in text.stdout


def check_refusals(site: Site, alert: Alert, database: Path) -> None:
    unknown = explained(site, "gw-1-sensor-20200101-000000-000000000000")
    assert unknown.returncode == 3
    assert "found no evidence of it among the" in " ".join(unknown.stderr.split())
    store = sqlite3.connect(database)
    try:
        with store:
            store.execute("UPDATE release_weights SET data = zeroblob(8)")
        found = json.loads(explained(site, alert.id, "--json").stdout)
        assert found["method"] == "shares"
        assert "8 damaged bytes" in found["missing"]
        with store:
            store.execute("DELETE FROM release_weights")
        text = explained(site, alert.id).stdout
        assert "found none of that release here" in " ".join(text.split())
        with store:
            (record,) = store.execute("SELECT record FROM evidence WHERE alert = ?", (alert.id,)).fetchone()
            broken = record[:100] + bytes([record[100] ^ 1]) + record[101:]
            store.execute("UPDATE evidence SET record = ? WHERE alert = ?", (broken, alert.id))
    finally:
        store.close()
    damaged = explained(site, alert.id)
    assert damaged.returncode == 6
    assert "damaged bytes" in damaged.stderr
