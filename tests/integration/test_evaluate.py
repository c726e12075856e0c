"""`vedette evaluate` from files to figures: on made-up motes, and over the public pack where it is."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette.evaluation import report
from vedette.evaluation.behaviour_sets import behaviour_schema
from vedette.evaluation.datasets import DataSet, Fleet, Recording, Suite, loaders
from vedette.evaluation.detectors import (
    CONFIGURATIONS,
    calibrated,
    float_backend,
    learn_alone,
    network_for,
    scores_of,
)
from vedette.evaluation.runner import WON_BY, SetResult, _newcomers, evaluate
from vedette.evaluation.stretches import prepare
from vedette.exit_codes import ExitCode
from vedette_core.learning.hashing import FeatureHasher
from vedette_device.count_heads import has_heads
from vedette_device.features.windows import Window
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS

PACK = Path(os.environ.get("VEDETTE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SMOKE_SENSOR = "192.168.0.180"
PARQUET = {"iot_sentinel_swapped", "mqttset", "cryptojacking"}
MOTES, READINGS = 3, 700
ATTACK = (560, 590)


@pytest.fixture(scope="module")
def motes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three motes with stationary readings; the readings of two are shifted for 30 of 700 rows."""
    folder = tmp_path_factory.mktemp("pack")
    (folder / "sensor_tampering" / "wsn").mkdir(parents=True)
    for mote in range(MOTES):
        rng = np.random.default_rng(mote)
        phase = np.arange(READINGS) / 20.0
        values = np.column_stack([40 + np.sin(phase), 25 + np.cos(phase)]) + rng.normal(scale=0.1, size=(READINGS, 2))
        labels = np.zeros(READINGS, int)
        if mote:
            labels[slice(*ATTACK)] = 1
            values[slice(*ATTACK)] += [6.0, -4.0]
        with gzip.open(folder / "sensor_tampering" / "wsn" / f"mote{mote}.csv.gz", "wt", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["reading", "humidity", "temperature", "label_bin"])
            for i, (row, label) in enumerate(zip(values.tolist(), labels.tolist(), strict=True)):
                writer.writerow([i, *row, label])
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vedette.main", "evaluate", *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def evaluated(motes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out")
    done = run("--data", str(motes), "--suite", "sensor", "--set", "wsn", "--json", "--out", str(out))
    assert done.returncode == ExitCode.OK, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document, out


def test_every_detector_has_every_figure(evaluated: tuple[dict[str, Any], Path]) -> None:
    result = evaluated[0]["sets"]["wsn"]
    assert result["devices"] == MOTES
    assert result["splits"] == {"quarters": MOTES}
    assert result["windows_test_anomalous"] == 2 * (ATTACK[1] - ATTACK[0])
    expected = {"local", "central", "federated", "federated_new_device", "local_new_device", "single_column"}
    assert expected | {"pca", "mahalanobis", "isolation_forest", "half_space_trees", "kitnet"} == set(result["models"])
    for name, row in result["models"].items():
        assert row["fpr_promised"] == 0.01
        for figure in ("auc", "auc_pr5", "tpr_at_1", "fpr_realised", "event_recall", "false_alerts_per_device_day"):
            assert row[figure] is not None, (name, figure)
    for name in ("local", "central", "federated"):
        assert abs(result["models"][name]["auc_int8_delta"]) <= 0.01


def test_a_plain_shift_is_found_and_one_column_is_enough_for_it(evaluated: tuple[dict[str, Any], Path]) -> None:
    result = evaluated[0]["sets"]["wsn"]
    federated = result["models"]["federated"]
    assert federated["events"] == 2
    assert federated["event_recall"] == 1.0
    assert federated["auc"] > 0.95
    assert federated["fpr_realised"] < 0.1
    best = max(result["models"][name]["auc"] for name in ("local", "central", "federated"))
    assert result["models"]["single_column"]["auc"] >= best - WON_BY
    assert result["trivial"] is True
    assert (result["newcomer_auc"], result["confounded"]) == (0.5, False)


def test_what_is_written_can_be_read(evaluated: tuple[dict[str, Any], Path]) -> None:
    document, out = evaluated
    assert json.loads((out / "results.json").read_text()) == document
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["detector"] for line in lines} == set(document["sets"]["wsn"]["models"])
    assert float(lines[0]["auc"]) == document["sets"]["wsn"]["models"][lines[0]["detector"]]["auc"]
    assert "| wsn" in (out / "results.markdown").read_text()
    pictures = sorted(out.glob("*.svg"))
    assert len(pictures) == 3
    for path in pictures:
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_a_set_that_cannot_be_read_is_a_failure_that_shows(motes: Path) -> None:
    done = run("--data", str(motes), "--suite", "sensor", "--set", "skab", "--json")
    assert done.returncode == ExitCode.CHECK_FAILED
    assert "skab" in json.loads(done.stdout)["sets"]["skab"]["failed"]
    assert "vedette evaluate: skab" in done.stderr


def test_an_unknown_set_is_refused_with_those_that_are_known(motes: Path) -> None:
    done = run("--data", str(motes), "--suite", "network", "--set", "skab")
    assert done.returncode != ExitCode.OK
    assert "found skab, expected some of iot23, pcaps, nf_bot_iot_v2" in done.stderr


def test_attacks_on_other_hosts_than_the_benign_ones_are_marked_as_confounded() -> None:
    """Whatever a detector finds there, that the host is new explains it."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [400, 40]).astype(np.int8)
    known, found = {}, {}
    for attacked in ("host", "stranger"):
        names = ["host"] * 400 + [attacked] * 40
        windows = [
            Window(name, i * 1.0, i + 1.0, rng.normal(size=2).astype(np.float32)) for i, name in enumerate(names)
        ]
        device = prepare(Recording("d", tuple(windows), labels), behaviour_schema(("x", "y"), 1.0))
        known[attacked] = device.test.entities
        found[attacked] = _newcomers([device], 0.999)
    assert found["host"] == {"newcomer_auc": 0.5, "anomalous_windows_of_newcomers": 0, "confounded": False}
    assert found["stranger"]["confounded"] is True
    assert found["stranger"]["newcomer_auc"] == 1.0
    assert found["stranger"]["anomalous_windows_of_newcomers"] == known["stranger"].count("stranger") > 30


@pytest.fixture(scope="module")
def quiet() -> SetResult:
    """Three devices that nothing befalls."""
    schema = behaviour_schema(("x", "y"), 60.0)
    recordings = []
    for name in ("a", "b", "c"):
        rows = np.random.default_rng(ord(name)).normal(size=(480, 2)).astype(np.float32)
        windows = tuple(Window(name, 60.0 * i, 60.0 * (i + 1), row) for i, row in enumerate(rows))
        recordings.append(Recording(name, windows, np.zeros(480, np.int8)))
    data = DataSet("quiet", "behaviour", (Fleet("quiet", schema, tuple(recordings)),), constructed=True)
    return evaluate(data, [0])


def test_a_set_without_an_attack_says_how_many_alarms_are_false_and_nothing_else(quiet: SetResult) -> None:
    found = quiet.figures
    assert (found["windows_test_anomalous"], found["trivial"], found["confounded"]) == (0, False, False)
    assert found["best_single_column"] == {}
    assert {"local", "central", "federated", "federated_new_device", "local_new_device"} < set(found["models"])
    assert "single_column" not in found["models"], "it would have been chosen by labels that are not there"
    for name, row in found["models"].items():
        assert (row["auc"], row["tpr_at_1"], row["event_recall"], row["events"]) == (None, None, None, 0), name
        for figure in ("fpr_realised", "fpr_rolling", "false_alerts_per_device_day", "benign_share_in_alert"):
            assert row[figure] is not None, (name, figure)
        assert row["fpr_realised"] < 0.1, name


def test_it_is_reported_without_a_curve_and_as_put_together(quiet: SetResult, tmp_path: Path) -> None:
    document = {"sets": {"quiet": quiet.figures}}
    written = report.write(tmp_path, document, {"quiet": quiet})
    assert sorted(path.name for path in written if path.suffix == ".svg") == [
        "quiet-promised.svg",
        "quiet-timeline.svg",
    ]
    (line,) = [line for line in (tmp_path / "results.markdown").read_text().splitlines() if "| federated |" in line]
    assert line.startswith("| quiet (constructed) | federated | – | – | – | 0.0")


def test_counts_are_judged_by_both_heads_and_beyond_the_clip() -> None:
    """Two windows that are clipped alike are told apart, as on a gateway."""
    hasher = FeatureHasher(16, b"sixteen bytes at")
    rng = np.random.default_rng(0)
    rows = [hasher.row({f"p{i}": int(n) for i, n in enumerate(rng.poisson(5.0, 12))}) for _ in range(200)]
    rows += [hasher.row({**dict.fromkeys((f"p{i}" for i in range(12)), 5), "p0": count}) for count in (10**5, 10**9)]
    windows = [Window("host", 60.0 * i, 60.0 * (i + 1), row.astype(np.float32)) for i, row in enumerate(rows)]
    labels = np.repeat([0, 1], [200, 2]).astype(np.int8)
    device = prepare(Recording("host", tuple(windows), labels), hasher.schema)
    network = network_for("behaviour", hasher.schema)
    assert has_heads(network.spec)
    learnt = learn_alone(network, device.train.inputs, CONFIGURATIONS["behaviour"], 0)
    model = calibrated(float_backend(network, learnt), device)
    assert model.heads is not None
    large, larger = scores_of(model, device)[device.test.labels == 1]
    benign = scores_of(model, device)[device.test.labels == 0]
    assert benign.max() < large < larger


@pytest.mark.skipif(not (PACK / "MANIFEST.csv").is_file(), reason=f"no recordings in {PACK}; set VEDETTE_DATA")
@pytest.mark.parametrize(
    ("suite", "name", "least"),
    [
        ("sensor", "skab", 17),
        ("sensor", "wsn", 4),
        ("sensor", "wustl_ehms", 1),
        ("behaviour", "rpi_metrics", 9),
        ("network", "iot23", 3),
        ("network", "nf_bot_iot_v2", 3),
        ("behaviour", "rpi_res", 2),
        ("behaviour", "adfa_ld", 1),
        ("network", "iot_sentinel_swapped", 15),
        ("network", "mqttset", 7),
        ("network", "cryptojacking", 1),
    ],
)
def test_sets_of_the_pack_are_read_and_split(suite: Suite, name: str, least: int) -> None:
    if name in PARQUET:
        pytest.importorskip("pyarrow", reason="needs the extra `evaluate`")
    found = loaders(suite)[name](PACK)
    ready = []
    for fleet in found.fleets:
        for recording in fleet.recordings:
            assert np.isfinite(np.stack([w.values for w in recording.windows])).all()
            try:
                ready.append(prepare(recording, fleet.schema))
            except ConfigError:  # too few benign windows, as the figures say
                assert (recording.labels == 0).sum() < 120
    assert len(ready) >= least
    assert sum(int((d.test.labels == 1).sum()) for d in ready) > 0
    for device in ready:
        assert (device.calibrate.labels == 0).all()
        assert (device.train.labels == 0).all()


@pytest.mark.skipif(not (PACK / "MANIFEST.csv").is_file(), reason=f"no recordings in {PACK}; set VEDETTE_DATA")
@pytest.mark.parametrize(("name", "least"), [("iot_sentinel", 15), ("nku_lifecycle", 1)])
def test_sets_of_the_pack_without_an_attack(name: str, least: int) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `evaluate`")
    (fleet,) = loaders("network")[name](PACK).fleets
    assert not any(recording.labels.any() for recording in fleet.recordings)
    ready = 0
    for recording in fleet.recordings:
        try:
            device = prepare(recording, fleet.schema)
        except ConfigError:
            assert len(recording.labels) < 64
            continue
        ready += 1
        assert len(device.test.windows) >= 16
    assert ready >= least


COUNTED = ("packets_in", "packets_out", "bytes_in", "bytes_out", "syn_count", "rst_count", "dns_queries")
"""Sums over windows that stay the same wherever windows begin."""


def summed(windows: Sequence[Window]) -> dict[str, float]:
    return {name: sum(float(w.values[NETWORK_FLOWS.index(name)]) for w in windows) for name in COUNTED}


@pytest.mark.skipif(not (PACK / "MANIFEST.csv").is_file(), reason=f"no recordings in {PACK}; set VEDETTE_DATA")
def test_a_table_of_packets_counts_what_its_capture_counts() -> None:
    """Four captures of the plug and one of MQTT clients are in the pack in both forms."""
    pytest.importorskip("pyarrow", reason="needs the extra `evaluate`")
    (captures,) = loaders("network")["pcaps"](PACK).fleets
    by_device = {recording.device: recording for recording in captures.recordings}
    plug_captures = pieces(by_device["xiaodu_plug"].windows)
    (tables,) = loaders("network")["nku_lifecycle"](PACK).fleets
    plug_tables = [summed(windows) for windows in pieces(tables.recordings[0].windows)]
    assert len(plug_captures) == 4
    for windows in plug_captures:
        assert summed(windows) in plug_tables
    (clients,) = loaders("network")["mqttset"](PACK).fleets
    client = next(recording for recording in clients.recordings if recording.device == "smoke")
    of_table = [w for w, label in zip(client.windows, client.labels, strict=True) if label == 0]
    capture = by_device["mqttset"]
    of_capture = [
        w for w, label in zip(capture.windows, capture.labels, strict=True) if label == 0 and w.entity == SMOKE_SENSOR
    ]
    assert summed(of_table) == summed(of_capture)
    published = NETWORK_FLOWS.index("mqtt_publishes")
    assert sum(w.values[published] for w in of_table) == sum(w.values[published] for w in of_capture) > 1000


def pieces(windows: Sequence[Window]) -> list[list[Window]]:
    """Windows of each capture of a recording."""
    found: list[list[Window]] = [[windows[0]]]
    for before, window in pairwise(windows):
        if window.start_s - before.end_s > 1.0:
            found.append([])
        found[-1].append(window)
    return found
