from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.network import Network, build_network
from vedette_core.learning.scoring import ResidualCalibration, ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import NetworkSpec, dense_spec, flow_spec
from vedette_schemas.errors import PeerError, RefusedError

SPECS = [flow_spec(6, 4), dense_spec(5), dense_spec(3, 4)]


@pytest.fixture(params=SPECS, ids=["newest windows", "one row", "whole windows"])
def network(request: pytest.FixtureRequest) -> Network:
    spec: NetworkSpec = request.param
    return build_network(spec)


def unit(network: Network) -> ResidualScorer:
    return ResidualScorer(network, ResidualCalibration(np.ones(network.target_shape[-1], np.float32), 100))


def test_the_score_is_the_root_mean_square_of_errors_in_their_usual_size(network: Network) -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 3.0, network.target_shape[-1]).astype(np.float32)
    scorer = ResidualScorer(network, ResidualCalibration(scale, 100))
    x = rng.standard_normal((4, *network.input_shape)).astype(np.float32)
    y = rng.standard_normal((4, *network.target_shape)).astype(np.float32)
    steps = network.target_shape[0] if len(network.target_shape) == 2 else 1
    for row, reconstruction, score in zip(x, y, scorer.score(x, y), strict=True):
        target = row[-steps:] if len(network.target_shape) == 2 else row
        assert score == pytest.approx(np.sqrt((((reconstruction - target) / scale) ** 2).mean()), rel=1e-5)


def test_a_row_that_is_not_a_number_in_its_target_has_no_score(network: Network) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, *network.input_shape)).astype(np.float32)
    y = rng.standard_normal((3, *network.target_shape)).astype(np.float32)
    x[1].reshape(-1)[-1] = np.nan
    assert np.isnan(unit(network).score(x, y)).tolist() == [False, True, False]


def test_a_changed_feature_raises_the_score_by_its_share(network: Network) -> None:
    scorer, columns = unit(network), network.target_shape[-1]
    size = int(np.prod(network.target_shape))
    reconstruction = np.zeros((1, *network.target_shape), np.float32)
    for changed in range(columns):
        row = np.zeros((1, *network.input_shape), np.float32)
        row.reshape(-1, columns)[-1, changed] = -7.0
        assert scorer.score(row, reconstruction) == pytest.approx([7.0 / size**0.5])


def test_usual_errors_come_from_benign_rows() -> None:
    network = build_network(dense_spec(3))
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((20_000, 3)) * [0.1, 1.0, 10.0]).astype(np.float32)
    calibration = calibrate_residuals(network, x, np.zeros_like(x))
    own = np.quantile(np.abs(x), 0.99, axis=0)
    assert calibration.scale == pytest.approx(0.9 * own + 0.1 * own.mean(), rel=1e-5)
    assert calibration.rows == 20_000


def test_few_rows_lend_their_features_the_mean_and_a_still_feature_gets_a_tenth_of_it() -> None:
    network = build_network(dense_spec(4))
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 4)).astype(np.float32)
    x[:, 3] = 0.0
    few = calibrate_residuals(network, x, np.zeros_like(x)).scale
    assert few.max() / few.min() < 1.05
    many = np.tile(x, (500, 1))
    scale = calibrate_residuals(network, many, np.zeros_like(many)).scale
    assert scale[3] == pytest.approx(0.1 * np.quantile(np.abs(many), 0.99, axis=0).mean(), rel=1e-5)


def test_a_perfect_reconstruction_still_gives_finite_scores(network: Network) -> None:
    x = np.ones((5, *network.input_shape), np.float32)
    y = np.ones((5, *network.target_shape), np.float32)
    scorer = ResidualScorer(network, calibrate_residuals(network, x, y))
    assert scorer.score(x, y) == pytest.approx(np.zeros(5))
    assert np.isfinite(scorer.score(x, y + 1)).all()


def test_nothing_is_calibrated_on_nothing_or_on_nonsense(network: Network) -> None:
    with pytest.raises(RefusedError, match="found 0 benign rows"):
        calibrate_residuals(
            network, np.zeros((0, *network.input_shape), np.float32), np.zeros((0, *network.target_shape), np.float32)
        )
    x = np.full((3, *network.input_shape), np.nan, np.float32)
    with pytest.raises(RefusedError, match="not finite"):
        calibrate_residuals(network, x, np.zeros((3, *network.target_shape), np.float32))


def test_a_calibration_survives_its_plain_form_and_no_other_is_read() -> None:
    calibration = ResidualCalibration(np.array([0.1, 2.0], np.float32), 77)
    back = ResidualCalibration.from_dict(calibration.to_dict())
    assert np.array_equal(back.scale, calibration.scale)
    assert back.rows == 77
    for bad in ({}, {"scale": [1.0]}, {"scale": [0.0], "rows": 1}, {"scale": [float("inf")], "rows": 1}, 5, None):
        with pytest.raises(PeerError, match="residual calibration"):
            ResidualCalibration.from_dict(bad)
    with pytest.raises(PeerError, match="found 2 features, expected 3"):
        ResidualScorer(build_network(dense_spec(3)), calibration)
