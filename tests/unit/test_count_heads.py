"""A network of counts and the ensemble beside it, calibrated, judged and restored as one model."""

from __future__ import annotations

from dataclasses import replace

import behaviour_parts as b
import numpy as np
import pytest

from vedette_core.learning.count_ensemble import SCALE_MIN, USUAL_QUANTILE
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.presets import task_spec
from vedette_core.learning.scoring import ResidualCalibration, ResidualScorer
from vedette_core.learning.spec import dense_spec
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.count_heads import CountHeads
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features.windows import Window
from vedette_device.inference import NumpyBackend
from vedette_device.scored_input import ENSEMBLE, NETWORK
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import PeerError, RefusedError

MODEL = AlertModel(task="behaviour", version=1, digest="0" * 16)
HASHER = b.hasher()
TRAINING, HELD_OUT = 200, 120


def window(index: int, counts: dict[str, int]) -> Window:
    start_s = float(b.START_S + 60 * index)
    return Window("host", start_s, start_s + 60, HASHER.row(counts).astype(np.float32))


def collected() -> tuple[Detector, NumpyBackend]:
    """A detector with all its rows, and a network that was trained on them."""
    rng = np.random.default_rng(5)
    detector = Detector(HASHER.schema, DetectorSettings(TRAINING, HELD_OUT))
    detector.feed([window(i, b.minute(rng)) for i in range(TRAINING + HELD_OUT)])
    assert detector.is_calibratable
    network = build_network(task_spec(HASHER.schema))
    weights = network.initial_weights(rng)
    x = detector.training_matrix(network)
    learnt = train(network, weights, x, epochs=10, batch_size=32, learning_rate=0.005, prox_mu=0.0, rng=rng)
    return detector, NumpyBackend(network, weights + learnt.delta)


@pytest.fixture(scope="module")
def parts() -> tuple[dict[str, object], NumpyBackend]:
    detector, backend = collected()
    return detector.to_state(), backend


@pytest.fixture
def detector(parts: tuple[dict[str, object], NumpyBackend]) -> Detector:
    state, backend = parts
    made = Detector.from_state(HASHER.schema, DetectorSettings(TRAINING, HELD_OUT), state)
    made.install(backend, MODEL)
    return made


def active(detector: Detector) -> CalibratedModel:
    assert detector._active is not None
    return detector._active


def test_a_new_name_is_seen_and_is_the_reason(detector: Detector) -> None:
    rng = np.random.default_rng(6)
    usual, changed = b.minute(rng), b.minute(rng) | {"process.xmrig": 40}
    calm, alarming = detector.feed([window(900, usual), window(901, changed)])
    assert calm.p_value > 0.05
    assert alarming.p_value < 0.02
    assert alarming.score > 2 * alarming.benign_max
    (first, *_) = alarming.features
    assert first.name == HASHER.columns[HASHER.place("process.xmrig")[0]]
    assert first.share > 0.5


def test_the_input_says_which_head_decided(detector: Detector) -> None:
    detector.gives_inputs = True
    model, rng = active(detector), np.random.default_rng(6)
    jump, together = b.minute(rng) | {"process.xmrig": 40}, b.minute(rng)
    seeing, model.residuals = (
        model.residuals,
        ResidualCalibration(model.residuals.scale * np.float32(1e6), model.residuals.rows),
    )
    by_ensemble, *_ = detector.feed([window(900, jump)])
    model.residuals = seeing
    assert model.heads is not None
    assert by_ensemble.input is not None
    assert by_ensemble.input.head == ENSEMBLE
    # An ensemble to which everything is usual leaves the word to the network.
    usual = replace(model.heads.usual, usual={**model.heads.usual.usual, ENSEMBLE: 1e9})
    model.heads = replace(model.heads, usual=usual)
    by_network, *_ = detector.feed([window(901, together)])
    assert by_network.input is not None
    assert by_network.input.head == NETWORK
    assert by_network.score == pytest.approx(
        np.sqrt(by_network.input.squared_ratio.mean()) / usual.usual[NETWORK], rel=1e-5
    )


def test_what_is_beyond_the_clip_still_counts(detector: Detector) -> None:
    model, rng = active(detector), np.random.default_rng(7)
    # A network that is blind: what is left is the ensemble.
    model.residuals = ResidualCalibration(model.residuals.scale * np.float32(1e6), model.residuals.rows)
    jumps = (8, 800, 80_000)
    counts = [b.minute(rng) | {"process.xmrig": n} for n in jumps]
    scored = detector.feed([window(900 + i, c) for i, c in enumerate(counts)])
    assert model.heads is not None
    # In logarithms, by the smallest scale that the ensemble has: scaled rows end at the clip, and these do not.
    by_hand = np.log1p(jumps) / SCALE_MIN / model.heads.usual.usual[ENSEMBLE]
    assert [s.score for s in scored] == pytest.approx(by_hand.tolist())
    assert all(s.features[0].share == pytest.approx(1, abs=0.1) for s in scored[1:])


def test_the_score_is_the_larger_head_over_its_usual_score(detector: Detector) -> None:
    model, rng = active(detector), np.random.default_rng(8)
    assert model.heads is not None
    raw = np.stack([window(i, b.minute(rng)).values for i in range(50)])
    scaled = model.baseline.scale("host", raw)[:, None]
    judged = model.judge(scaled, ["host"] * 50, raw)
    network: Network = model.backend.network
    y = model.baseline.bound(model.backend.reconstruct(scaled))
    by_network = ResidualScorer(network, model.residuals).score(scaled, y).astype(np.float64)
    deviations = model.heads.ensemble.deviations(model.baseline.scalers.pooled.transform(raw))
    usual = model.heads.usual.usual
    ratios = np.stack([by_network / usual[NETWORK], deviations.max(axis=1) / usual[ENSEMBLE]])
    assert judged.scores == pytest.approx(ratios.max(axis=0), rel=1e-5)
    assert {0, 1} == set(ratios.argmax(axis=0).tolist()), "both heads lead somewhere, or this shows nothing"
    led = ratios.argmax(axis=0) == 1
    assert judged.squared_ratio[led, 0] == pytest.approx(np.square(deviations[led]), rel=1e-5)


def test_usual_scores_are_those_of_rows_that_were_held_out(detector: Detector) -> None:
    model = active(detector)
    assert model.heads is not None
    pooled = model.baseline.scalers.pooled
    held_out = pooled.transformed_of(detector._kept.held_out[:, -1].astype(np.float32))
    expected = float(np.quantile(model.heads.ensemble.score(held_out), USUAL_QUANTILE))
    assert model.heads.usual.usual[ENSEMBLE] == pytest.approx(expected)
    training = pooled.transformed_of(detector._kept.training[:, -1].astype(np.float32))
    assert model.heads.ensemble.centre == pytest.approx(np.median(training, axis=0))


def test_a_restart_goes_on_with_the_same_scores(
    detector: Detector, parts: tuple[dict[str, object], NumpyBackend]
) -> None:
    again = Detector.from_state(HASHER.schema, detector.settings, detector.to_state())
    again.install(parts[1], MODEL)
    rng = np.random.default_rng(9)
    later = [window(900 + i, b.minute(rng) | {"process.xmrig": i}) for i in range(5)]
    assert again.feed(later) == detector.feed(later)


@pytest.mark.parametrize("heads", [None, {}, {"ensemble": {}, "usual": {}}, "narrow", "other"])
def test_damaged_heads_are_refused(detector: Detector, heads: object) -> None:
    model = active(detector)
    assert model.heads is not None
    if heads == "narrow":
        heads = CountHeads.measure(np.zeros((9, 3)), np.zeros((9, 3)), np.ones(9)).to_dict()
    elif heads == "other":
        heads = {**model.heads.to_dict(), "usual": {"else": 1.0}}
    with pytest.raises(PeerError):
        CalibratedModel.from_state(model.backend, MODEL, model.baseline, {**model.to_state(), "heads": heads})


def test_without_training_rows_no_ensemble_is_made_up(detector: Detector) -> None:
    model = active(detector)
    inputs = detector._kept.held_out.astype(np.float32)
    with pytest.raises(RefusedError, match="count ensemble"):
        CalibratedModel.measure(model.backend, MODEL, model.baseline, inputs, ["host"] * len(inputs), 2.0)


def test_another_kind_of_network_has_one_head(parts: tuple[dict[str, object], NumpyBackend]) -> None:
    detector = Detector.from_state(HASHER.schema, DetectorSettings(TRAINING, HELD_OUT), parts[0])
    network = build_network(replace(dense_spec(1, 64), target_windows=1))
    detector.install(NumpyBackend(network, network.initial_weights(np.random.default_rng(0))), MODEL)
    assert active(detector).heads is None
    assert active(detector).to_state()["heads"] is None
