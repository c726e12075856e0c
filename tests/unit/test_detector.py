"""A detector from its first window to its first alert-worthy score, and over a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.learning.spec import dense_spec
from vedette_device.alert_record import ScoredWindow
from vedette_device.baseline import INPUTS_KEPT_MAX, RANGE_MARGIN, Baseline
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features.windows import Window
from vedette_device.inference import NumpyBackend
from vedette_device.input_history import CLOCK_STEP_S, InputHistory
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import FeatureSchema

T0, PERIOD_S = 1_772_755_200.0, 30.0
SENSOR = FeatureSchema(
    use_case="sensor", version=1, columns=("flow_lpm", "level_m", "valve_pct"), window_s=30, history=4
)
NETWORK = FeatureSchema(
    use_case="network", version=1, columns=("packets_in", "syn_count", "tcp_share"), window_s=5, history=4
)
SETTINGS = DetectorSettings(training_windows=300, calibration_windows=200)
MODEL = AlertModel(task="sensor", version=1, digest="a" * 16)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Three readings that move together, with a little noise."""
    rng = np.random.default_rng(seed)
    phase = np.cumsum(rng.normal(0.2, 0.05, count))
    noise = rng.normal(0.0, 0.05, (count, 3))
    return (np.stack([np.sin(phase), 2.0 * np.sin(phase), np.cos(phase)], axis=1) + noise).astype(np.float32)


def windows(values: np.ndarray, *, first: int = 0, entity: str = "tank") -> list[Window]:
    return [
        Window(entity, T0 + (first + i) * PERIOD_S, T0 + (first + i + 1) * PERIOD_S, row)
        for i, row in enumerate(values)
    ]


def fed(detector: Detector, stream: Sequence[Window], *, frozen: bool = False) -> list[ScoredWindow]:
    return [scored for window in stream for scored in detector.feed([window], frozen=frozen)]


def trained(detector: Detector) -> NumpyBackend:
    network = build_network(dense_spec(SENSOR.history * len(SENSOR.columns)))
    x = detector.training_matrix(network)
    start = network.initial_weights(np.random.default_rng(1))
    result = train(
        network,
        start,
        x,
        epochs=40,
        batch_size=32,
        learning_rate=5e-3,
        prox_mu=0.0,
        rng=np.random.default_rng(2),
    )
    return NumpyBackend(network, start + result.delta)


@pytest.fixture(scope="module")
def collected() -> tuple[dict[str, object], NumpyBackend]:
    """State of a detector that has collected everything, and a model for it."""
    detector = Detector(SENSOR, SETTINGS)
    fed(detector, windows(rows(503)))
    return detector.to_state(), trained(detector)


@pytest.fixture
def armed(collected: tuple[dict[str, object], NumpyBackend]) -> Detector:
    state, backend = collected
    detector = Detector.from_state(SENSOR, SETTINGS, state)
    detector.install(backend, MODEL)
    return detector


def test_phases_follow_each_other() -> None:
    detector = Detector(SENSOR, SETTINGS)
    stream = windows(rows(600))

    fed(detector, stream[:299])
    assert (detector.phase, detector.training_rows) == ("learning", 0)
    fed(detector, stream[299:300])
    assert (detector.phase, detector.training_rows) == ("calibrating", 297)  # the first 3 have no whole past
    fed(detector, stream[300:499])
    assert not detector.is_calibratable
    fed(detector, stream[499:500])
    assert detector.is_calibratable
    assert detector.phase == "calibrating"
    assert fed(detector, stream[500:]) == []  # without a model nothing is scored
    detector.install(trained(detector), MODEL)
    assert detector.phase == "armed"


def test_what_was_scored_goes_with_the_score_only_where_it_is_asked_for(armed: Detector) -> None:
    forged = rows(510)[503:]
    forged[-1, 1] += 3.0
    stream = windows(forged, first=503)
    (before, *_) = fed(armed, stream[:-1])
    assert before.input is None
    armed.gives_inputs = True
    (scored,) = fed(armed, stream[-1:])
    given = scored.input
    assert given is not None
    assert given.values == pytest.approx(forged[-SENSOR.history :])
    assert given.squared_ratio.shape == SENSOR.input_shape
    assert np.sqrt(given.squared_ratio.mean()) == pytest.approx(scored.score, rel=1e-5)
    assert given.squared_ratio.base is None, "a view would hold the errors of all entities of the tick"
    assert given.squared_ratio.sum(axis=0).argmax() == 1
    share = float(given.squared_ratio[:, 1].sum() / given.squared_ratio.sum())
    assert scored.features[0].share == pytest.approx(share, abs=5e-4)


def test_a_model_that_comes_early_is_armed_when_the_calibration_is_complete(
    collected: tuple[dict[str, object], NumpyBackend],
) -> None:
    detector = Detector(SENSOR, SETTINGS)
    detector.install(collected[1], MODEL)
    stream = windows(rows(503))

    assert fed(detector, stream[:500]) == []
    assert detector.model == MODEL
    assert len(fed(detector, stream[500:])) == 3


def test_benign_windows_score_as_the_calibration_promises(armed: Detector) -> None:
    scored = fed(armed, windows(rows(3000, seed=5), first=600))

    p_values = np.array([s.p_value for s in scored])
    assert len(scored) == 2997
    # A short calibration of dependent windows: within a factor of three of what was promised.
    assert (p_values <= 0.01).mean() < 0.03
    assert 0.03 < (p_values <= 0.1).mean() < 0.3
    assert armed.windows_scored == sum(armed.p_histogram) == 2997


def test_tampering_scores_high_and_is_named(armed: Detector) -> None:
    values = rows(60, seed=6)
    values[30:, 1] += 1.5
    scored = fed(armed, windows(values, first=600))

    before, during = scored[:26], scored[30:]
    assert np.median([s.score for s in during]) > 2 * max(s.score for s in before)
    assert all(s.p_value < 0.01 for s in during)
    top = [s.features[0] for s in during]
    assert sum(reason.name == "level_m" for reason in top) > 0.9 * len(top)
    reason = top[-1]
    assert min(abs(reason.value - value) for value in values[56:, 1]) < 1e-3  # measured in one of its four windows
    assert -2.3 < reason.usual[0] < -1.5
    assert 1.5 < reason.usual[1] < 2.3


def test_scored_windows_carry_what_an_alert_needs(armed: Detector) -> None:
    (window,) = fed(armed, windows(rows(4, seed=7), first=600))

    assert (window.entity, window.start_s, window.end_s) == ("tank", T0 + 603 * PERIOD_S, T0 + 604 * PERIOD_S)
    assert window.model == MODEL
    assert window.calibration_size == 200
    assert 0 < window.threshold <= window.benign_max
    assert 0 < window.benign_average < 4


def test_batches_score_like_single_windows(collected: tuple[dict[str, object], NumpyBackend]) -> None:
    state, backend = collected
    one, many = Detector.from_state(SENSOR, SETTINGS, state), Detector.from_state(SENSOR, SETTINGS, state)
    one.install(backend, MODEL)
    many.install(backend, MODEL)
    stream = windows(rows(40, seed=8), first=600)

    singly, together = fed(one, stream, frozen=True), many.feed(stream, frozen=True)
    assert [s.score for s in singly] == pytest.approx([s.score for s in together], rel=1e-5)


def test_frozen_detector_takes_nothing_in(armed: Detector) -> None:
    before = armed.to_state()
    fed(armed, windows(rows(300, seed=9), first=600), frozen=True)
    after = armed.to_state()

    assert after["held_out"] == before["held_out"]
    assert after["training"] == before["training"]
    assert after["active"]["rolling"] == before["active"]["rolling"]


def test_benign_windows_renew_the_held_out_inputs_and_pass_the_old_ones_on_to_training(armed: Detector) -> None:
    held_out = np.frombuffer(armed.to_state()["held_out"], "<f2").reshape(200, -1)
    fed(armed, windows(rows(60, seed=10), first=600))
    state = armed.to_state()
    renewed = np.frombuffer(state["held_out"], "<f2").reshape(200, -1)
    training = np.frombuffer(state["training"], "<f2").reshape(297, -1)

    gone = [row for old, row in zip(held_out, held_out, strict=True) if not (renewed == old).all(axis=1).any()]
    assert 30 <= len(gone) <= 57
    assert all((training == row).all(axis=1).any() for row in gone)


def test_restart_goes_on_with_the_same_scores(
    armed: Detector, collected: tuple[dict[str, object], NumpyBackend]
) -> None:
    stream = windows(rows(200, seed=11), first=600)
    fed(armed, stream[:100])

    state = msgpack.unpackb(msgpack.packb(armed.to_state()))
    again = Detector.from_state(SENSOR, SETTINGS, state)
    assert again.phase == "calibrating"  # the model itself is not part of the state
    again.install(collected[1], MODEL)

    assert fed(again, stream[100:]) == fed(armed, stream[100:])


def test_restart_while_learning_goes_on_learning() -> None:
    stream = windows(rows(520))
    whole, first = Detector(SENSOR, SETTINGS), Detector(SENSOR, SETTINGS)
    fed(whole, stream)
    fed(first, stream[:120])
    second = Detector.from_state(SENSOR, SETTINGS, msgpack.unpackb(msgpack.packb(first.to_state())))
    fed(second, stream[120:400])
    third = Detector.from_state(SENSOR, SETTINGS, msgpack.unpackb(msgpack.packb(second.to_state())))
    fed(third, stream[400:])

    assert third.to_state() == whole.to_state()


def test_windows_that_were_seen_before_a_restart_are_refused(armed: Detector) -> None:
    stream = windows(rows(20, seed=12), first=600)
    fed(armed, stream)

    assert fed(armed, stream) == []
    assert armed.refused["stale"] == 20


def test_another_model_is_calibrated_anew_and_a_wrong_one_is_refused(
    armed: Detector, collected: tuple[dict[str, object], NumpyBackend]
) -> None:
    network: Network = build_network(dense_spec(99))
    with pytest.raises(PeerError, match="found input shape"):
        armed.install(NumpyBackend(network, network.initial_weights(np.random.default_rng(0))), MODEL)
    assert armed.phase == "armed"

    untrained = NumpyBackend(collected[1].network, collected[1].network.initial_weights(np.random.default_rng(3)))
    armed.install(untrained, replace_digest("b" * 16))
    assert armed.model is not None
    assert armed.model.digest == "b" * 16
    assert len(fed(armed, windows(rows(10, seed=13), first=600))) == 7


def test_without_its_model_a_detector_is_silent_and_keeps_the_calibration(
    armed: Detector, collected: tuple[dict[str, object], NumpyBackend]
) -> None:
    stream = windows(rows(60, seed=15), first=600)
    fed(armed, stream[:20])
    before = armed.to_state()["active"]
    armed.uninstall()

    assert (armed.phase, armed.model) == ("calibrating", None)
    assert fed(armed, stream[20:40]) == []
    armed.install(collected[1], MODEL)
    assert armed.to_state()["active"] == before
    assert len(fed(armed, stream[40:])) == 20


def replace_digest(digest: str) -> AlertModel:
    return MODEL.model_copy(update={"digest": digest})


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 99},
        {"schema": "0" * 64},
        {"training": b"\x00"},
        {"held_out": np.full(12, np.nan, "<f2").tobytes()},
        {"held_out_entities": []},
        {"baseline": {"usual": {}}},
        {"history": {"entities": ["tank"], "entity": b"", "bounds": b"\x00" * 16, "values": b""}},
        {"p_histogram": [0]},
        {"learning": None},
    ],
)
def test_damaged_state_is_refused(collected: tuple[dict[str, object], NumpyBackend], damage: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="found"):
        Detector.from_state(SENSOR, SETTINGS, collected[0] | damage)


@pytest.mark.parametrize(
    "fields", [{"training_windows": 0}, {"calibration_windows": 19}, {"calibration_windows": 10**9}, {"alpha": 1.0}]
)
def test_settings_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="found"):
        replace(SETTINGS, **fields)  # type: ignore[arg-type]


def test_scoring_is_timed_with_the_shells_clock(collected: tuple[dict[str, object], NumpyBackend]) -> None:
    ticks = iter(range(0, 10**9, 5_000))
    detector = Detector.from_state(SENSOR, SETTINGS, collected[0], timer=lambda: next(ticks))
    assert detector.score_us(0.5) == 0.0
    detector.install(collected[1], MODEL)
    fed(detector, windows(rows(10, seed=14), first=600))

    assert detector.score_us(0.5) == detector.score_us(0.99) == 5.0


def test_long_learning_phases_are_thinned_out_evenly() -> None:
    detector = Detector(SENSOR, DetectorSettings(training_windows=5000, calibration_windows=20))
    fed(detector, windows(rows(5000)))

    assert detector.training_rows == INPUTS_KEPT_MAX


def test_a_network_entity_has_a_past_of_silence_and_a_sensor_has_none() -> None:
    row = np.ones(3, np.float32)
    network, sensor = InputHistory(NETWORK), InputHistory(SENSOR)

    first = network.push(Window("10.0.0.4", T0, T0 + 5, row))
    assert first is not None
    assert first.tolist() == [[0.0] * 3] * 3 + [[1.0] * 3]
    assert [sensor.push(w) is None for w in windows(np.ones((4, 3), np.float32))] == [True, True, True, False]


def test_a_pause_empties_the_past() -> None:
    history = InputHistory(SENSOR)
    for window in windows(np.ones((6, 3), np.float32)):
        history.push(window)

    assert history.push(windows(np.ones((1, 3), np.float32), first=7)[0]) is None


def test_a_clock_that_was_set_right_starts_the_past_anew() -> None:
    history = InputHistory(SENSOR)
    (late,) = windows(np.ones((1, 3), np.float32), first=1000)
    (early,) = windows(np.ones((1, 3), np.float32), first=0)
    history.push(late)

    assert history.is_stale(late)
    assert 1000 * PERIOD_S > CLOCK_STEP_S
    assert not history.is_stale(early)


def test_history_forgets_the_entity_that_was_silent_for_longest() -> None:
    history = InputHistory(NETWORK, entities_max=2)
    row = np.ones(3, np.float32)
    for step, entity in enumerate(("a", "b", "a", "c")):
        history.push(Window(entity, T0 + 5 * step, T0 + 5 * step + 5, row))

    assert {w.entity for w in history.windows()} == {"a", "c"}


def test_reconstructions_are_bounded_by_what_was_seen() -> None:
    baseline = Baseline.fit(SENSOR, windows(rows(400)))
    wild = np.full((2, 4, 3), 50.0, np.float32)
    bounded = baseline.bound(wild)

    assert bounded.shape == wild.shape
    assert np.array_equal(bounded[0, 0], baseline.highest + RANGE_MARGIN)
    assert np.array_equal(baseline.bound(-wild.reshape(2, 12)).reshape(2, 4, 3)[1, 3], baseline.lowest - RANGE_MARGIN)


def test_usual_ranges_are_the_entitys_own_where_it_was_learnt() -> None:
    low, high = rows(200), rows(200) + 10.0
    stream = windows(low, entity="a") + windows(high, entity="b")
    baseline = Baseline.fit(SENSOR, stream)

    assert baseline.usual_of("a")[1, 0] < 2 < 8 < baseline.usual_of("b")[0, 0]
    assert baseline.usual_of("new")[0, 0] < 2 < 8 < baseline.usual_of("new")[1, 0]


def test_a_column_that_hardly_moved_on_one_entity_keeps_half_the_common_scale() -> None:
    calm = rows(200)
    calm[:, 0] = 0.0
    baseline = Baseline.fit(SENSOR, windows(calm, entity="calm") + windows(rows(200, seed=3), entity="other"))

    assert baseline.scalers.own["calm"].scale[0] == pytest.approx(0.5 * baseline.scalers.pooled.scale[0])


def test_a_restless_entity_does_not_hide_a_steady_one(collected: tuple[dict[str, object], NumpyBackend]) -> None:
    backend = collected[1]
    baseline = Baseline.fit(SENSOR, windows(rows(300)))
    rng = np.random.default_rng(20)
    steady = rng.normal(0.0, 0.1, (150, 4, 3)).astype(np.float32)
    restless = rng.normal(0.0, 2.0, (150, 4, 3)).astype(np.float32)
    inputs, entities = np.concatenate([steady, restless]), ["steady"] * 150 + ["restless"] * 150

    model = CalibratedModel.measure(backend, MODEL, baseline, inputs, entities, 2.0)
    judgement = model.judge(inputs, entities)

    assert set(model.factors) == {"restless"}
    assert 0.3 < model.factors["restless"] < 1.0
    own = judgement.scores[150:] / model.factors["restless"]
    assert model.rolling.current.threshold(0.1) < np.quantile(own, 0.8)  # ranked unweighted it would be that high
    assert model.judge(inputs[:1], ["newcomer"]).scores == pytest.approx(judgement.scores[:1])


def test_a_detector_recalibrates_on_what_came_in_past_the_brake(armed: Detector) -> None:
    before = armed.drift_watch
    quiet = rows(900, seed=5) * np.float32(0.8)
    fed(armed, windows(quiet, first=600))
    old = armed.score_sketch()
    assert armed.recalibrate() == SETTINGS.calibration_windows
    assert armed.phase == "armed"
    assert armed.model == MODEL
    assert armed.drift_watch is before
    assert armed.drift() is None, "what was compared with the old calibration is forgotten"
    new = armed.score_sketch()
    assert old is not None
    assert new is not None
    assert new.total == SETTINGS.calibration_windows


def test_an_attack_before_a_recalibration_moves_it_no_further_than_the_brake_lets_in(armed: Detector) -> None:
    held_out = armed.to_state()["held_out"]
    loud = rows(300, seed=6) * np.float32(25.0)
    fed(armed, windows(loud, first=600))
    columns = len(SENSOR.columns) * SENSOR.history
    now = np.frombuffer(armed.to_state()["held_out"], "<f2").reshape(-1, columns)
    replaced = (now != np.frombuffer(held_out, "<f2").reshape(-1, columns)).any(axis=1).sum()
    assert replaced <= len(loud) // 100 + 1, "one rare window of a hundred"
    armed.recalibrate()
    assert all(w.p_value < 0.02 for w in fed(armed, windows(loud[:50], first=1000)) if w.start_s)


def test_nothing_is_recalibrated_before_there_is_a_calibration() -> None:
    with pytest.raises(RefusedError, match="expected armed"):
        Detector(SENSOR, SETTINGS).recalibrate()


# --- cold start ---


def calibrating(collected: tuple[dict[str, object], NumpyBackend], left: int = 120) -> tuple[Detector, list[Window]]:
    """A detector with a model, and so many windows before its calibration is complete; and those windows."""
    _, backend = collected
    detector, stream = Detector(SENSOR, SETTINGS), windows(rows(503))
    detector.install(backend, MODEL)
    fed(detector, stream[: 500 - left])
    assert detector.phase == "calibrating"
    return detector, stream[500 - left :]


def fleet_scores(armed: Detector) -> ScoreSketch:
    sketch = armed.score_sketch()
    assert sketch is not None
    return sketch


def test_a_new_device_scores_with_the_fleets_scores_until_it_has_its_own(
    collected: tuple[dict[str, object], NumpyBackend], armed: Detector
) -> None:
    detector, rest = calibrating(collected)
    assert fed(detector, rest[:20]) == [], "without the fleet's word it waits"
    detector.begin_cold(fleet_scores(armed))
    scored = fed(detector, rest[20:119])
    assert len(scored) == 99
    assert (detector.phase, detector.score_sketch(), detector.drift()) == ("calibrating", None, None)
    assert {w.calibration_size for w in scored} == {SETTINGS.calibration_windows}
    assert np.mean([w.p_value <= 0.01 for w in scored]) < 0.1
    fed(detector, rest[119:120])
    assert detector.phase == "armed"
    own, other = detector.to_state()["active"], armed.to_state()["active"]
    assert own["rolling"] == other["rolling"], "what it calibrates on is what it would have been without"


def test_an_attack_on_a_new_device_is_seen_and_does_not_keep_its_own_calibration_away(
    collected: tuple[dict[str, object], NumpyBackend], armed: Detector
) -> None:
    detector, rest = calibrating(collected)
    detector.begin_cold(fleet_scores(armed))
    loud = [replace(w, values=w.values * np.float32(25.0)) for w in rest[:10]]
    assert max(w.score for w in fed(detector, loud)) > max(w.threshold for w in fed(detector, rest[10:11]))
    fed(detector, rest[11:], frozen=True)
    assert detector.phase == "armed", "an alert that stays open must not keep the right threshold away"


def test_a_cold_start_that_is_not_needed_or_too_little_is_refused(
    collected: tuple[dict[str, object], NumpyBackend], armed: Detector
) -> None:
    with pytest.raises(RefusedError, match="expected calibrating"):
        armed.begin_cold(fleet_scores(armed))
    with pytest.raises(RefusedError, match="expected calibrating"):
        Detector(SENSOR, SETTINGS).begin_cold(fleet_scores(armed))
    detector, rest = calibrating(collected)
    with pytest.raises(RefusedError, match="a fleet's sketch of 19 scores"):
        detector.begin_cold(ScoreSketch.of(np.ones(19)))
    detector.begin_cold(fleet_scores(armed))
    detector.uninstall()
    assert fed(detector, rest[:5]) == []
