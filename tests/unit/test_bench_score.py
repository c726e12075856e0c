"""The scoring benchmark's peer is a detector, and the benchmark prints what it promises."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from vedette_core.learning.spec import dense_spec
from vedette_device.calibrated_model import CalibratedModel
from vedette_schemas.features import sensor_schema
from vedette_schemas.model import Variant

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import score  # noqa: E402
from bench.kitnet import KitnetEnsemble, cluster_columns  # noqa: E402


def test_correlated_columns_are_clustered_and_no_cluster_is_too_large() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((500, 4))
    rows = np.concatenate([base + 0.05 * rng.standard_normal((500, 4)) for _ in range(3)], axis=1)
    groups = [sorted(int(c) for c in g) for g in cluster_columns(rows, group_max=3)]
    assert sorted(groups) == [[i, i + 4, i + 8] for i in range(4)]
    random = cluster_columns(rng.standard_normal((200, 40)), group_max=10)
    assert sorted(int(c) for g in random for c in g) == list(range(40))
    assert max(map(len, random)) <= 10


def test_the_peer_finds_outliers() -> None:
    rng = np.random.default_rng(1)
    rows = np.asarray(score.synthetic_rows(1500, (30,), seed=3), dtype=np.float64)
    peer = KitnetEnsemble(rows[:500])
    for row in rows[:1200]:
        peer.learn(row)
    usual = [peer.score(row) for row in rows[1200:]]
    outliers = [peer.score(row + 2.0 * rng.standard_normal(30)) for row in rows[1200:]]
    assert np.median(outliers) > np.quantile(usual, 0.95)


def test_what_is_timed_is_the_nodes_judging_of_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "TRAINING_ROWS", 150)
    channels = sensor_schema(("level", "flow"), history=4)
    subject = score.prepare(dense_spec(*channels.input_shape), channels, Variant.INT8)
    whole = subject.model.judge(subject.inputs, subject.entities)
    asked: list[tuple[np.ndarray, list[str]]] = []

    class Listening:
        def judge(self, inputs: np.ndarray, entities: list[str]) -> None:
            asked.append((inputs, list(entities)))

    for tick in score.TICKS:
        asked.clear()
        score.judging(replace(subject, model=cast(CalibratedModel, Listening())), tick)()
        assert {len(inputs) for inputs, _ in asked} == {tick}
        assert np.array_equal(np.concatenate([inputs for inputs, _ in asked]), subject.inputs)
        assert [entity for _, entities in asked for entity in entities] == subject.entities
    assert len(set(subject.entities)) == 8
    assert ((whole.p_values > 0.0) & (whole.p_values <= 1.0)).all()
    assert np.median(whole.p_values) > 0.05, "rows like those that it was calibrated on"


def test_the_benchmark_prints_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, small in {
        "REPETITIONS": 3,
        "PEER_REPETITIONS": 3,
        "PEER_CALLS": 2,
        "TRAINING_ROWS": 150,
    }.items():
        monkeypatch.setattr(score, name, small)
    monkeypatch.setattr(sys, "argv", ["score.py", "--json"])
    score.main()
    figures = json.loads(capsys.readouterr().out)
    window = ("window_us_p50", "bare_us_p50", "ratio")
    rows = ("rows_per_second", "rows_per_second_batched", "kitnet_rows_per_second")
    keys = (*window, *(f"sensor_{key}" for key in window), *rows, "ratio_kitnet", "ratio_kitnet_batched")
    assert all(figures[key] > 0 for key in keys)
    for by_tick, of_tick in (("window_us_by_tick", "window_us_p50"), ("ratio_by_tick", "ratio")):
        assert list(figures[by_tick]) == ["1", "8", "64"]
        assert figures[by_tick][str(figures["tick"])] == figures[of_tick]
    assert figures["backend"] == "litert"
