"""The simple peers find what is simple, and are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis

from vedette.evaluation import baselines
from vedette.evaluation.metrics import area, roc_curve


def rows(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(count, 2))
    return np.asarray(latent @ np.array([[1.0, 0.5, -1.0, 0.0], [0.0, 1.0, 1.0, 0.5]])) + rng.normal(
        scale=0.1, size=(count, 4)
    )


def benign_rows(count: int, seed: int) -> np.ndarray:
    return np.clip(rows(seed, count), -8, 8)


@pytest.mark.parametrize("name", sorted(baselines.FITS))
def test_every_peer_finds_rows_far_outside(name: str) -> None:
    score = baselines.FITS[name](benign_rows(600, 0), np.random.default_rng(1))
    usual, far = benign_rows(200, 2), np.clip(benign_rows(50, 3) + 6.0, -8, 8)
    found = np.concatenate([score(usual), score(far)])
    assert np.isfinite(found).all()
    assert (found >= 0).all(), "alerts take no negative score"
    curve = roc_curve(found, np.repeat([False, True], [200, 50]))
    assert curve is not None
    assert area(curve) > 0.98


@pytest.mark.parametrize("name", sorted(baselines.FITS))
def test_the_same_seed_gives_the_same_scores_and_constant_columns_do_not_break_any(name: str) -> None:
    train = benign_rows(200, 0)
    train[:, 1] = 0.0
    first, second = (baselines.FITS[name](train, np.random.default_rng(5))(benign_rows(40, 1)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()


def test_only_peers_that_know_how_columns_go_together_find_what_breaks_their_relation() -> None:
    train, usual = benign_rows(800, 0), benign_rows(300, 1)
    shuffled = np.column_stack([np.random.default_rng(i).permutation(usual[:, i]) for i in range(4)])
    areas = {}
    for name in ("mahalanobis", "pca", "isolation_forest"):
        score = baselines.FITS[name](train, np.random.default_rng(0))
        curve = roc_curve(np.concatenate([score(usual), score(shuffled)]), np.repeat([False, True], [300, 300]))
        assert curve is not None
        areas[name] = area(curve)
    assert areas["mahalanobis"] > 0.95
    assert areas["pca"] > 0.9
    assert areas["isolation_forest"] < areas["pca"]


def test_the_distance_is_that_of_mahalanobis() -> None:
    train, x = benign_rows(500, 0), benign_rows(5, 1)
    inverse = np.linalg.inv(np.cov(train, rowvar=False) + baselines.RIDGE * np.eye(4))
    expected = [scipy_mahalanobis(row, train.mean(axis=0), inverse) for row in x]
    assert baselines.mahalanobis(train, np.random.default_rng(0))(x) == pytest.approx(expected)
