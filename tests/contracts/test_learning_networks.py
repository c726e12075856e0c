"""Every network keeps the same promises, whatever its kind: these checks run against all of them."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.local_training import train
from vedette_core.learning.network import INPUT, Network, build_network
from vedette_core.learning.presets import Preset, family_spec
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import (
    COUNTS,
    DENSE_AUTOENCODER,
    SEPARABLE_CNN,
    NetworkSpec,
    counts_spec,
    dense_spec,
    flow_spec,
)
from vedette_core.learning.weights_file import WeightsFile, read_weights, write_weights
from vedette_schemas.errors import PeerError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, behaviour_schema, sensor_schema

FAMILY_SCHEMAS = {
    SEPARABLE_CNN: NETWORK_FLOWS,
    DENSE_AUTOENCODER: sensor_schema(("level_m", "inflow_l_s", "outflow_l_s")),
    COUNTS: behaviour_schema(32, "c0de"),
}
SPECS = {
    "flow default": flow_spec(),
    "flow two convolutions": NetworkSpec(
        SEPARABLE_CNN, (16, 6), (8, 8), bottleneck=4, decoder=8, target_windows=4, kernel=3
    ),
    "flow odd steps": NetworkSpec(SEPARABLE_CNN, (7, 5), (6,), bottleneck=3, decoder=4, target_windows=2, kernel=5),
    "flow whole, relu6": NetworkSpec(
        SEPARABLE_CNN, (9, 3), (4, 5), bottleneck=2, decoder=6, target_windows=9, kernel=3, activation="relu6"
    ),
    "dense default": dense_spec(24),
    "dense windows": dense_spec(16, 14),
    "dense deep": NetworkSpec(DENSE_AUTOENCODER, (20,), (12, 6, 3)),
    "dense newest": NetworkSpec(DENSE_AUTOENCODER, (6, 4), (9, 4), target_windows=2),
    "counts default": counts_spec(32),
    "counts newest": counts_spec(4, 20),
} | {
    f"{family} {preset.value}": family_spec(family, schema, preset)
    for family, schema in FAMILY_SCHEMAS.items()
    for preset in Preset
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def network(request: pytest.FixtureRequest) -> Network:
    return build_network(request.param)


def rows(network: Network, count: int, seed: int = 0, factors: int = 3) -> np.ndarray:
    """Rows on a low-dimensional surface, which a bottleneck can learn."""
    rng = np.random.default_rng(seed)
    width = int(np.prod(network.input_shape))
    mixing = np.random.default_rng(99).standard_normal((factors, width))
    x = rng.standard_normal((count, factors)) @ mixing + 0.05 * rng.standard_normal((count, width))
    return x.reshape(count, *network.input_shape).astype(np.float32)


def schema_for(network: Network) -> FeatureSchema:
    history = network.input_shape[0] if len(network.input_shape) == 2 else 1
    columns = tuple(f"c{i}" for i in range(network.input_shape[-1]))
    return FeatureSchema(use_case="sensor", version=1, columns=columns, window_s=1.0, history=history)


def test_shapes_and_types(network: Network) -> None:
    weights = network.initial_weights(np.random.default_rng(0))
    assert weights.dtype == np.float32
    assert weights.shape == (network.layout.size,)
    for count in (1, 5):
        x = rows(network, count)
        y = network.reconstruct(x, weights)
        assert y.dtype == np.float32
        assert y.shape == network.target(x).shape == (count, *network.target_shape)
    assert network.reconstruct(rows(network, 0), weights).shape == (0, *network.target_shape)


def test_the_same_seed_gives_the_same_weights_and_training(network: Network) -> None:
    def learn(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        weights = network.initial_weights(rng)
        x = rows(network, 50)
        return train(network, weights, x, epochs=1, batch_size=16, learning_rate=1e-3, prox_mu=0.0, rng=rng).delta

    assert np.array_equal(learn(3), learn(3))
    assert not np.array_equal(learn(3), learn(4))


def test_gradient_is_the_numerical_one(network: Network) -> None:
    rng = np.random.default_rng(1)
    weights = network.initial_weights(rng).astype(np.float64)
    weights += 0.05 * rng.standard_normal(len(weights))  # biases off zero, and away from the rectifiers' corners
    x = rows(network, 6).astype(np.float64)
    loss, gradient = network.loss_and_gradient(x, weights)
    assert loss == pytest.approx(network.loss(x, weights))
    step = 1e-6
    for index in rng.choice(len(weights), size=min(60, len(weights)), replace=False):
        up, down = weights.copy(), weights.copy()
        up[index] += step
        down[index] -= step
        numerical = (network.loss(x, up) - network.loss(x, down)) / (2 * step)
        assert gradient[index] == pytest.approx(numerical, rel=1e-4, abs=1e-7), network.layout.entries


def test_a_batch_is_the_sum_of_its_parts(network: Network) -> None:
    weights = network.initial_weights(np.random.default_rng(2)).astype(np.float64)
    x = rows(network, 10).astype(np.float64)
    whole = network.reconstruct(x, weights)
    assert np.allclose(whole, np.concatenate([network.reconstruct(part, weights) for part in (x[:3], x[3:])]))
    loss, gradient = network.loss_and_gradient(x, weights)
    (loss_a, gradient_a), (loss_b, gradient_b) = (network.loss_and_gradient(p, weights) for p in (x[:3], x[3:]))
    assert loss == pytest.approx(0.3 * loss_a + 0.7 * loss_b)
    assert np.allclose(gradient, 0.3 * gradient_a + 0.7 * gradient_b)


def test_training_lowers_the_loss_and_an_outlier_scores_higher(network: Network) -> None:
    rng = np.random.default_rng(3)
    weights = network.initial_weights(rng)
    x = rows(network, 400)
    before = weights.copy()
    result = train(network, weights, x, epochs=15, batch_size=32, learning_rate=5e-3, prox_mu=0.0, rng=rng)
    assert np.array_equal(weights, before), "training must not touch the global weights"
    assert result.loss_after < 0.8 * result.loss_before
    local = weights + result.delta
    held_out = rows(network, 200, seed=7)
    scorer = ResidualScorer(network, calibrate_residuals(network, held_out, network.reconstruct(held_out, local)))
    usual = rows(network, 100, seed=8)
    outliers = usual + np.float32(4.0) * rng.standard_normal(usual.shape).astype(np.float32)
    usual_scores = scorer.score(usual, network.reconstruct(usual, local))
    outlier_scores = scorer.score(outliers, network.reconstruct(outliers, local))
    assert np.median(outlier_scores) > np.quantile(usual_scores, 0.99)


def test_activation_ranges_hold_every_value(network: Network) -> None:
    weights = network.initial_weights(np.random.default_rng(4))
    x = rows(network, 30)
    ranges = network.activation_ranges(x, weights)
    assert set(ranges) == {INPUT, *(layer.name for layer in network.layers)}
    assert ranges[INPUT] == (float(x.min()), float(x.max()))
    y = network.reconstruct(x, weights)
    assert ranges[network.layers[-1].name] == (float(y.min()), float(y.max()))
    parts = [network.activation_ranges(part, weights) for part in (x[:10], x[10:])]
    for name, (low, high) in ranges.items():
        assert low == pytest.approx(min(p[name][0] for p in parts), rel=1e-5, abs=1e-6)
        assert high == pytest.approx(max(p[name][1] for p in parts), rel=1e-5, abs=1e-6)


def test_a_written_model_is_read_back_the_same(network: Network) -> None:
    weights = network.initial_weights(np.random.default_rng(5))
    model = WeightsFile(network, weights, schema_for(network))
    data = write_weights(model)
    assert data == write_weights(model), "the same model must have the same digest"
    read = read_weights(data)
    assert read.network.spec == network.spec
    assert read.schema == model.schema
    assert np.array_equal(read.weights, weights)
    assert NetworkSpec.from_dict(network.spec.to_dict()) == network.spec


def test_layout_names_every_weight_once(network: Network) -> None:
    weights = np.arange(network.layout.size, dtype=np.float32)
    named = network.layout.named(weights)
    assert len(named) == 2 * len(network.layers)
    assert np.array_equal(network.layout.flatten(list(named.values())), weights)


def test_foreign_weights_and_rows_are_refused(network: Network) -> None:
    weights = network.initial_weights(np.random.default_rng(6))
    with pytest.raises(PeerError, match=f"expected \\({network.layout.size},\\)"):
        network.reconstruct(rows(network, 1), weights[:-1])
    with pytest.raises(ValueError, match="expected \\(n, "):
        network.reconstruct(np.zeros((1, 3, 3, 3), np.float32), weights)


def test_size_of_the_defaults() -> None:
    assert 3_000 <= build_network(flow_spec()).layout.size <= 6_000
    assert build_network(dense_spec(115)).layout.size < 20_000
