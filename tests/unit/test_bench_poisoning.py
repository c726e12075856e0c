"""The poisoning benchmark's parts: what its fleets see, and that it prints what it promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vedette_core.learning.encoding import Encoding
from vedette_core.learning.poisoning import ATTACKS, SignFlip

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import poisoning  # noqa: E402
from bench import poisoning_classification as classification  # noqa: E402
from bench.poisoning_detection import auc  # noqa: E402
from bench.poisoning_fleet import Case, group_mean, run, task_of  # noqa: E402


def test_the_area_under_the_curve_counts_pairs_and_halves_ties() -> None:
    usual, anomalous = np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0])
    pairs = [(a > u) + 0.5 * (a == u) for u in usual for a in anomalous]
    assert auc(usual, anomalous) == pytest.approx(np.mean(pairs))


def test_training_all_devices_at_once_descends_the_loss_of_each() -> None:
    """Against the gradient by differences, for one full-batch step."""
    rng = np.random.default_rng(0)
    task = classification.make_task(3, rng)
    weights = classification.initial_weights(rng).astype(np.float64)
    x, y = task.x[:, :1].astype(np.float64), task.y[:, :1]

    def loss(device: int, at: np.ndarray) -> float:
        first, bias, second, offset = classification._parts(at)
        logits = (np.maximum(x[device] @ first + bias, 0) @ second + offset)[0]
        return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[y[device, 0]])

    deltas = classification.train_all(weights.astype(np.float32), task.x[:, :1], y, steps=1, batch=1, rate=0.1, rng=rng)
    for device in range(3):
        for index in rng.permutation(classification.SIZE)[:40]:
            nudge = np.zeros(classification.SIZE)
            nudge[index] = 1e-5
            slope = (loss(device, weights + nudge) - loss(device, weights - nudge)) / 2e-5
            assert deltas[device, index] == pytest.approx(-0.1 * slope, abs=2e-5)


def test_a_group_mean_is_that_of_the_clipped_deltas_and_a_boost_gets_through_the_sum() -> None:
    rng = np.random.default_rng(1)
    encoding = Encoding(600, 1.0, b"seed")
    deltas = rng.standard_normal((8, 600)).astype(np.float32)
    deltas *= (0.5 / np.linalg.norm(deltas, axis=1))[:, None]
    honest = group_mean(deltas, list(range(8)), set(), encoding, rng)
    assert honest == pytest.approx(deltas.mean(axis=0), abs=6 * encoding.step)
    deltas[3] *= 40.0
    clipped = group_mean(deltas, list(range(8)), set(), encoding, rng)
    boosted = group_mean(deltas, list(range(8)), {3}, encoding, rng)
    assert np.linalg.norm(clipped) < 0.5
    assert np.linalg.norm(boosted) > 1.5, "20 clip norms in a mean of 8, less what the range takes"


def test_an_attack_costs_accuracy_and_the_defence_gets_it_back() -> None:
    def quality(attack: str, fraction: float, rule: str) -> float:
        return run(Case("classification", attack, fraction, 8, rule, seed=0, devices=128, rounds=15)).quality

    clean = quality("none", 0.0, poisoning.PLAIN)
    assert clean > 45, "ten classes"
    assert quality("boost", 0.05, poisoning.PLAIN) < clean - 10
    assert quality("boost", 0.05, poisoning.DEFENDED) > clean - 5
    assert quality("sign-flip", 0.2, poisoning.DEFENDED) > quality("sign-flip", 0.2, poisoning.PLAIN) + 3


def test_runs_are_repeatable() -> None:
    case = Case("classification", "alie", 0.2, 8, "trimmed-mean", seed=3, devices=64, rounds=3)
    assert run(case).quality == run(case).quality


def test_poisoned_rows_are_on_the_liars_only() -> None:
    task = task_of("classification", 64, 0)
    poisoned = task.poison([5, 9], ATTACKS["label-flip"], np.random.default_rng(0))
    changed = (poisoned.data.y != task.data.y).any(axis=1)  # type: ignore[attr-defined]
    assert np.flatnonzero(changed).tolist() == [5, 9]
    same = task.poison([5, 9], SignFlip(), np.random.default_rng(0))
    assert np.array_equal(same.data.x, task.data.x)  # type: ignore[attr-defined]


def test_the_benchmark_prints_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["poisoning.py", "--json", "--quick"])
    poisoning.main()
    figures = json.loads(capsys.readouterr().out)
    assert {"classification", "detection", "bounds", "seconds"} <= set(figures)
    tasks = ("classification", "network", "sensor")
    cells = {(r["task"], r["attack"], r["fraction"], r["group_size"], r["rule"]): r for r in figures["classification"]}
    cells |= {(r["task"], r["attack"], r["fraction"], r["group_size"], r["rule"]): r for r in figures["detection"]}
    for task in tasks:
        for bound in poisoning.BOUNDS:
            for rule in (poisoning.PLAIN, poisoning.DEFENDED):
                row = cells[task, bound.attack, bound.fraction, poisoning.BOUND_GROUP_SIZE, rule]
                assert 0 < row["quality"] <= 100
        assert cells[task, "none", 0.0, 8, poisoning.PLAIN]["cost"] == 0
    assert len(figures["bounds"]) == len(tasks) * len(poisoning.BOUNDS)
    for bound in figures["bounds"]:
        assert bound["holds"] == (bound["found"] <= bound["most"])
        row = cells[bound["task"], bound["attack"], bound["fraction"], 8, poisoning.DEFENDED]
        assert bound["found"] == row["cost"]
    assert all("backdoor" in cells[task, "none", 0.0, 8, poisoning.PLAIN] for task in tasks)


def test_the_full_extent_measures_the_backdoor_and_larger_groups() -> None:
    wanted = [cell for task in poisoning.FULL.devices for cell in poisoning.cells(task, poisoning.FULL)]
    assert len(wanted) == len(set(wanted))
    assert {task for task, attack, *_ in wanted if attack == "backdoor"} == {"classification", "network", "sensor"}
    assert {m for _, _, _, m, _ in wanted} == {8, 16}
    for task, attack, fraction, group_size, _ in wanted:
        assert (task, attack, fraction, group_size, poisoning.PLAIN) in wanted, "the plain mean is beside everything"
        assert (task, "none", 0.0, group_size, poisoning.PLAIN) in wanted, "what costs are counted from"
