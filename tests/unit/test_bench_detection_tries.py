"""What was tried does what its name says, and is compared with the product on the same devices."""

from __future__ import annotations

import csv
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import detection_tries as tries  # noqa: E402

from vedette.evaluation import detectors  # noqa: E402
from vedette.evaluation.stretches import prepare  # noqa: E402


@pytest.fixture
def motes(tmp_path: Path) -> Path:
    """Two motes that drift slowly, with a tampered stretch at the end."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        n = np.arange(700)
        humidity = 40 + np.sin(n / 20) + 0.1 * rng.normal(size=700) + n / 100
        temperature = 20 + np.cos(n / 20) + 0.1 * rng.normal(size=700)
        humidity[680:] += 15
        path = tmp_path / "sensor_tampering" / "wsn" / f"mote{seed}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["humidity", "temperature", "label_bin"])
            writer.writerows(zip(humidity, temperature, (n >= 680).astype(int), strict=True))
    return tmp_path


def test_every_try_has_figures_of_the_same_devices(motes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(detectors.CONFIGURATIONS["sensor"], rounds=4, epochs=1)
    monkeypatch.setitem(tries.CONFIGURATIONS, "sensor", short)  # type: ignore[attr-defined]  # the same mapping
    monkeypatch.setattr(tries, "FINE_EPOCHS", 2)
    found = tries.run(tries.LOADERS["wsn"](motes), 0)
    assert {"product", "central", "alone", "score over its level", "detrended inputs", "whitened residuals"} <= set(
        found
    )
    for row in found.values():
        assert row["auc"] is not None
        assert 0.5 < row["auc"] <= 1.0
        assert row["fpr_realised"] is not None
    assert found["detrended inputs"]["fpr_realised"] < found["product"]["fpr_realised"]  # type: ignore[operator]


def test_a_level_follows_a_drift_and_not_a_jump(motes: Path) -> None:
    (fleet,) = tries.LOADERS["wsn"](motes).fleets
    device = prepare(fleet.recordings[0], fleet.schema)
    n_calibrate, n_test = len(device.calibrate.windows), len(device.test.windows)
    drift = np.exp(np.linspace(0.0, 0.2, n_calibrate + n_test))
    drift[-5:] *= 20.0
    calibration, test = tries.following_level((drift[:n_calibrate], drift[n_calibrate:]), device)
    assert test[:-5].max() < 1.25
    assert test[-1] > 10.0
    assert len(calibration) == n_calibrate


def test_the_larger_of_two_scores_each_by_its_usual_size() -> None:
    small = (np.array([0.1, 0.1, 0.1]), np.array([0.1, 0.5]))
    large = (np.array([10.0, 10.0, 10.0]), np.array([30.0, 10.0]))
    _, test = tries.joined(small, large)
    assert test.tolist() == pytest.approx([3.0, 5.0])
