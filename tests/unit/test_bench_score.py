"""The scoring benchmark's peer is a detector, and the benchmark prints what it promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

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


def test_the_benchmark_prints_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, small in {
        "REPETITIONS": 3,
        "PEER_REPETITIONS": 3,
        "CALLS": 40,
        "PEER_CALLS": 2,
        "TRAINING_ROWS": 150,
    }.items():
        monkeypatch.setattr(score, name, small)
    monkeypatch.setattr(sys, "argv", ["score.py", "--json"])
    score.main()
    figures = json.loads(capsys.readouterr().out)
    keys = ("window_us_p50", "bare_us_p50", "ratio", "rows_per_second", "kitnet_rows_per_second", "ratio_kitnet")
    assert all(figures[key] > 0 for key in keys)
    assert figures["backend"] == "litert"
