"""Integrated gradients: their axioms, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.attribution import integrated_gradients, squared_score_gradient
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.spec import dense_spec, flow_spec

SPECS = [dense_spec(4, 6), flow_spec(16, 6)]


def squared_score(network: Network, weights: np.ndarray, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    ratio = (network.reconstruct(x, weights) - network.target(x)) / scale
    found: np.ndarray = np.square(ratio).reshape(len(x), -1).mean(axis=1)
    return found


@pytest.mark.parametrize("spec", SPECS, ids=["dense", "cnn"])
def test_the_gradient_is_the_numerical_one(spec: object) -> None:
    network = build_network(spec)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    weights = network.initial_weights(rng).astype(np.float64)
    x = rng.normal(size=(2, *network.input_shape))
    scale = rng.uniform(0.5, 2.0, network.target_shape[-1]).astype(np.float32)
    gradient = squared_score_gradient(network, weights, x, scale)
    for place in rng.integers(np.prod(network.input_shape), size=12):
        step = np.zeros_like(x)
        step.reshape(2, -1)[:, place] = 1e-6
        numerical = squared_score(network, weights, x + step, scale) - squared_score(network, weights, x - step, scale)
        assert gradient.reshape(2, -1)[:, place] == pytest.approx(numerical / 2e-6, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=["dense", "cnn"])
def test_attributions_add_up_to_the_change_of_the_score(spec: object) -> None:
    network = build_network(spec)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    weights = network.initial_weights(rng)
    row = rng.normal(size=network.input_shape).astype(np.float32)
    usual = np.zeros_like(row)
    scale = np.ones(network.target_shape[-1], np.float32)
    parts = integrated_gradients(network, weights, row, usual, scale, steps=512)
    before, after = squared_score(network, weights, np.stack([usual, row]), scale)
    assert parts.sum() == pytest.approx(after - before, rel=0.01)
    unchanged = row.copy()
    unchanged[..., 0] = 0.0
    assert integrated_gradients(network, weights, unchanged, usual, scale)[..., 0] == pytest.approx(0.0)


def test_the_tampered_column_is_named() -> None:
    network = build_network(dense_spec(4, 6))
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(600, 1, 1))
    rows = (factor * np.array([1.0, -1, 0.5, 1, -0.5, 0.8]) + 0.05 * rng.normal(size=(600, 4, 6))).astype(np.float32)
    weights = network.initial_weights(rng)
    result = train(network, weights, rows, epochs=40, batch_size=32, learning_rate=0.003, prox_mu=0.0, rng=rng)
    learnt = (weights + result.delta).astype(np.float32)
    scale = np.full(6, 0.1, np.float32)
    named = 0
    for row in rows[:50]:
        column = int(rng.integers(6))
        forged = row.copy()
        forged[:, column] += 3.0
        parts = integrated_gradients(network, learnt, forged, np.zeros_like(row), scale)
        named += int(parts.sum(axis=0).argmax()) == column
    assert named >= 40


def test_another_shape_is_refused() -> None:
    network = build_network(dense_spec(4, 6))
    weights = network.initial_weights(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"expected \(4, 6\)"):
        integrated_gradients(network, weights, np.zeros((3, 6)), np.zeros((4, 6)), np.ones(6))  # type: ignore[arg-type]
