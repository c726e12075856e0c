"""What judging gives, to the bit: the plain formula is the yardstick of the faster calls that stand in for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vedette_core.learning.calibration import RollingCalibration
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec, flow_spec
from vedette_device.baseline import RANGE_MARGIN, Baseline
from vedette_device.calibrated_model import CalibratedModel, shaped
from vedette_device.features import Window
from vedette_device.inference import NumpyBackend
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import FeatureSchema

ENTITIES = ("calm", "restless")
COLUMNS = tuple(f"packets_{i}" for i in range(6))
SCHEMA = FeatureSchema(use_case="network", version=1, columns=COLUMNS, window_s=5, history=4)


@pytest.fixture(params=[flow_spec(4, 6), dense_spec(4, 6), dense_spec(24)], ids=["newest", "whole", "flat"])
def model(request: pytest.FixtureRequest) -> tuple[CalibratedModel, np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    raw = rng.exponential(20.0, (500, 4, 6)).astype(np.float32)
    entities = [ENTITIES[i % 2] for i in range(500)]
    raw[1::2] *= rng.exponential(4.0, (250, 1, 1))
    past = [Window(e, 5.0 * i, 5.0 * i + 5, rows[-1]) for i, (e, rows) in enumerate(zip(entities, raw, strict=True))]
    baseline = Baseline.fit(SCHEMA, past)
    baseline = replace(baseline, lowest=baseline.lowest + 1.5, highest=baseline.highest - 1.5)  # so that it does bound
    inputs = baseline.scalers.pooled.scale_rows(raw)
    network = build_network(request.param)
    backend = NumpyBackend(network, 2 * network.initial_weights(rng))
    identity = AlertModel(task="network", version=1, digest="a" * 16)
    model = CalibratedModel.measure(backend, identity, baseline, inputs[:200], entities[:200], 2.0)
    return model, inputs[200:], entities[200:]


@pytest.mark.parametrize("tick", [1, 8, 64])
@pytest.mark.parametrize("with_factors", [True, False])
def test_judging_is_the_plain_formula_to_the_bit(
    model: tuple[CalibratedModel, np.ndarray, list[str]], tick: int, with_factors: bool
) -> None:
    judging, inputs, entities = model
    assert judging.factors
    if not with_factors:
        judging.factors = {}
    low, high = judging.baseline.lowest - RANGE_MARGIN, judging.baseline.highest + RANGE_MARGIN
    network, clipped = judging.backend.network, 0
    for start in range(0, len(inputs), tick):
        part, names = inputs[start : start + tick], entities[start : start + tick]
        x = shaped(part, network)
        plain = judging.backend.reconstruct(x).reshape(len(x), -1, len(COLUMNS))
        bounded = np.clip(plain, low, high).astype(np.float32)
        clipped += int((plain != bounded).sum())
        error = (bounded.reshape(len(x), *network.target_shape) - network.target(x)) / judging.residuals.scale
        squared = np.square(error).reshape(bounded.shape)
        scores = np.sqrt(squared.mean(axis=(1, 2), dtype=np.float64))
        scores = scores * np.array([judging.factors.get(name, 1.0) for name in names])
        judgement = judging.judge(part, names)
        assert judgement.squared_ratio.dtype == np.float32
        assert judgement.squared_ratio.tobytes() == squared.tobytes()
        assert judgement.scores.tobytes() == scores.tobytes()
        assert judgement.p_values.tobytes() == judging.rolling.current.p_values(scores).tobytes()
        assert not judgement.by_ensemble.any()
    assert clipped


@pytest.mark.parametrize("size", [40, 200, 2000], ids=["no tail", "tail among the largest", "tail beyond the largest"])
def test_p_values_are_ranks_with_the_tail_where_they_end(size: int) -> None:
    rng = np.random.default_rng(size)
    current = RollingCalibration(rng.exponential(1.0, size)).current
    scores = np.concatenate([rng.exponential(1.0, 300), current.ordered[-12:], [50.0, np.inf]])
    at_least = np.array([(current.ordered >= score).sum() for score in scores])
    expected = (1.0 + at_least) / (size + 1.0)
    if current.tail is not None:
        limit = 10 if size < 1000 else 1
        for i in np.flatnonzero(at_least < limit):
            tail = np.clip(current.tail.exceedance(scores[i : i + 1])[0], current.floor, limit / (size + 1))
            expected[i] = tail if at_least[i] == 0 else max(tail, expected[i])
    assert (current.tail is None) == (size == 40)
    assert current.p_values(scores).tobytes() == expected.tobytes()
    assert [current.p_values([score])[0] for score in scores] == expected.tolist()


@pytest.mark.parametrize("size", [40, 200, 2000])
def test_a_score_that_is_no_number_is_found_among_any_others(size: int) -> None:
    current = RollingCalibration(np.random.default_rng(size).exponential(1.0, size)).current
    for scores in ([np.nan], [0.1, np.nan, 0.2], [np.inf, np.nan]):
        with pytest.raises(ValueError, match=f"found 1 NaN of {len(scores)}"):
            current.p_values(scores)
