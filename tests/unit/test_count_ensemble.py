"""The count detector: two heads that see different things, and one score of both."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.count_ensemble import SCALE_MIN, CountEnsemble, ScoreHeads
from vedette_core.learning.hashing import FeatureHasher, signed_log1p
from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import counts_spec
from vedette_schemas.errors import PeerError, RefusedError

HASHER = FeatureHasher(32, bytes(range(32)))
NAMES = tuple(f"process-{i}" for i in range(24))


def windows(count: int, seed: int) -> np.ndarray:
    """Rows of hashed counts, signed log: three kinds of work, each of which starts its own processes together."""
    rng = np.random.default_rng(seed)
    rates = np.abs(np.random.default_rng(99).standard_normal((3, len(NAMES)))) * 6
    work = rng.gamma(4.0, 0.5, size=(count, 3))
    found = rng.poisson(work @ rates)
    return signed_log1p(np.stack([HASHER.row(dict(zip(NAMES, map(int, row), strict=True))) for row in found]))


class Counts:
    """A trained counts network with its ensemble, and both heads measured on held-out rows."""

    def __init__(self) -> None:
        rows = windows(1500, 0)
        self.ensemble = CountEnsemble.fit(rows)
        self.network = build_network(counts_spec(HASHER.width))
        rng = np.random.default_rng(1)
        start = self.network.initial_weights(rng)
        x = self.scaled(rows)
        result = train(self.network, start, x, epochs=20, batch_size=32, learning_rate=3e-3, prox_mu=0.0, rng=rng)
        self.weights = start + result.delta
        held_out = windows(600, 2)
        x = self.scaled(held_out)
        calibration = calibrate_residuals(self.network, x, self.network.reconstruct(x, self.weights))
        self.residuals = ResidualScorer(self.network, calibration)
        self.heads = ScoreHeads.measure(self.both(held_out))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        return np.clip((rows - self.ensemble.centre) / self.ensemble.scale, -8, 8).astype(np.float32)

    def both(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        x = self.scaled(rows)
        network = self.residuals.score(x, self.network.reconstruct(x, self.weights))
        return {"network": network, "counts": self.ensemble.score(rows)}


@pytest.fixture(scope="module")
def counts() -> Counts:
    return Counts()


def test_benign_rows_seldom_pass_what_is_usual(counts: Counts) -> None:
    score = counts.heads.combine(counts.both(windows(800, 3)))
    assert (score > 1).mean() < 0.05, "two heads of 1 % each, on rows that neither saw"
    assert np.median(score) < 0.8


def test_one_counts_jump_is_seen_by_the_ensemble_undiluted(counts: Counts) -> None:
    usual, jumped = windows(400, 4), windows(400, 4)
    jumped[:, 5] += 4.0
    found, before = counts.both(jumped), counts.both(usual)
    gain = {name: np.median(found[name]) / np.median(before[name]) for name in found}
    assert gain["counts"] > gain["network"]
    assert (counts.heads.combine(found) > 1).mean() > 0.9


def test_counts_that_never_come_together_are_seen_by_the_network_only(counts: Counts) -> None:
    """Every column of another row: each count is usual by itself, and their company is not."""
    rng = np.random.default_rng(5)
    usual = windows(400, 6)
    mixed = np.stack([rng.permutation(column) for column in usual.T], axis=1)
    found = counts.both(mixed)
    alarms = {name: (scores > counts.heads.usual[name]).mean() for name, scores in found.items()}
    assert alarms["counts"] < 0.05
    assert alarms["network"] > 0.5
    assert (counts.heads.combine(found) > 1).mean() >= alarms["network"]


def test_the_score_rises_with_a_count_and_does_not_hang_on_the_batch(counts: Counts) -> None:
    row = windows(1, 7)[0]
    rows = np.stack([row] * 5)
    rows[:, 3] = counts.ensemble.centre[3] + counts.ensemble.scale[3] * np.array([0.0, 5.0, 10.0, 20.0, 40.0])
    scores = counts.ensemble.score(rows)
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] == pytest.approx(40.0)
    assert np.array_equal(scores, np.concatenate([counts.ensemble.score(rows[:2]), counts.ensemble.score(rows[2:])]))


def test_two_fifths_of_the_rows_may_be_an_attack() -> None:
    rows = np.random.default_rng(8).normal(3.0, 0.5, size=(400, 4))
    poisoned = rows.copy()
    poisoned[:160] = 1e6
    clean, found = CountEnsemble.fit(rows), CountEnsemble.fit(poisoned)
    assert np.abs(found.centre - clean.centre).max() < 2.0
    assert found.scale.max() < 4 * clean.scale.max()


def test_a_constant_count_has_the_smallest_scale() -> None:
    ensemble = CountEnsemble.fit(np.zeros((50, 3)))
    assert ensemble.scale.tolist() == [SCALE_MIN] * 3
    assert ensemble.score(signed_log1p([[0, 1, 0]]))[0] == pytest.approx(np.log(2) / SCALE_MIN)


def test_a_row_with_a_hole_has_no_score() -> None:
    ensemble = CountEnsemble.fit(np.random.default_rng(0).normal(size=(50, 3)))
    assert np.isnan(ensemble.score([[0.0, np.nan, 0.0], [0.0, 0.0, 0.0]])).tolist() == [True, False]


def test_what_was_measured_is_read_back(counts: Counts) -> None:
    ensemble = CountEnsemble.from_dict(counts.ensemble.to_dict())
    heads = ScoreHeads.from_dict(counts.heads.to_dict())
    rows = windows(20, 9)
    found = {**counts.both(rows), "counts": ensemble.score(rows)}
    assert np.array_equal(heads.combine(found), counts.heads.combine(counts.both(rows)))


@pytest.mark.parametrize("rows", [np.zeros((7, 3)), np.zeros((20, 0)), np.zeros(20), np.full((20, 2), np.nan)])
def test_rows_that_say_nothing_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(RefusedError, match="count ensemble: found"):
        CountEnsemble.fit(rows)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        {"centre": [0.0], "scale": [1.0], "more": 1},
        {"centre": [0.0], "scale": [0.1]},
        {"centre": [0.0, 1.0], "scale": [1.0]},
        {"centre": [float("nan")], "scale": [1.0]},
        {"centre": [], "scale": []},
        {"centre": "x", "scale": [1.0]},
    ],
)
def test_a_damaged_ensemble_is_refused(plain: object) -> None:
    with pytest.raises(PeerError, match="count ensemble: found"):
        CountEnsemble.from_dict(plain)


@pytest.mark.parametrize("plain", [None, {}, {"network": 0.0}, {"network": float("inf")}, {"network": 1}, {1: 1.0}])
def test_damaged_heads_are_refused(plain: object) -> None:
    with pytest.raises(PeerError, match="score head"):
        ScoreHeads.from_dict(plain)


def test_heads_are_measured_of_numbers_and_combined_with_the_same_ones() -> None:
    for benign in ({}, {"network": []}, {"network": [np.nan]}):
        with pytest.raises(RefusedError, match="score head"):
            ScoreHeads.measure(benign)
    silent = ScoreHeads.measure({"network": [0.0, 0.0]})
    assert np.isfinite(silent.combine({"network": [1.0]})).all()
    with pytest.raises(ValueError, match="score heads: found"):
        silent.combine({"counts": [1.0]})
    with pytest.raises(ValueError, match="rows: found shape"):
        CountEnsemble.fit(np.zeros((20, 3))).score(np.zeros((2, 4)))
