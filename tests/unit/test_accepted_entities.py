"""A host that a person accepted: learnt for a stretch, then watched like any other; the others notice nothing."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest
from accept_parts import BEFORE, MODEL, NEW, OLD, SCHEMA, SETTINGS, STEP_S, T0, armed, collected, row, tick, window
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.learning.calibration import calibrate
from vedette_device.accepted_entities import (
    ENTITIES_MAX,
    LEARNING_MAX,
    TIME_A_STRETCH,
    WINDOWS_A_STRETCH,
    AcceptedEntities,
)
from vedette_device.alert_record import ScoredWindow
from vedette_device.detector import Detector
from vedette_device.detector_settings import ACCEPT_WINDOWS_MIN, DetectorSettings
from vedette_device.features.windows import Window
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import FeatureSchema

OF = SETTINGS.stretch_windows
FACTOR = SETTINGS.magnitude_factor


def stage(detector: Detector) -> str:
    (progress,) = detector.accepted.progress()
    return progress.stage


def learnt(detector: Detector, first: int = BEFORE) -> int:
    """Accept the new host and let it be learnt; returns the next step."""
    detector.accept(NEW, "one", 3.0)
    for step in range(first, first + OF):
        assert stage(detector) == "learning"
        tick(detector, step, *OLD, NEW)
    assert stage(detector) == "learnt"
    return first + OF


def test_a_newcomer_is_learnt_and_then_like_any_other() -> None:
    detector = armed()
    before = [tick(detector, BEFORE + i, *OLD, NEW)[NEW] for i in range(20)]
    assert np.median([s.p_value for s in before]) < 0.01, "it looks anomalous because it is new"
    assert detector._baseline is not None
    assert NEW not in detector._baseline.usual

    step = learnt(detector, BEFORE + 20)
    after = [tick(detector, step + i, *OLD, NEW)[NEW] for i in range(100)]
    assert np.mean([s.p_value < 0.05 for s in after[4:]]) < 0.15
    assert not any(s.learning_limit for s in after)
    assert detector._baseline is not None
    assert detector._baseline.scalers.for_entity(NEW) is not detector._baseline.scalers.pooled
    assert detector._baseline.usual_of(NEW)[0, 0] > 200
    assert detector._active is not None
    assert 0 < detector._active.factors[NEW] <= 1

    loud = tick(detector, step + 100, NEW, loud=1.0)[NEW]
    assert loud.p_value < 0.01
    assert loud.score > FACTOR * max(loud.threshold, loud.benign_max)


def test_the_others_notice_nothing_of_a_stretch() -> None:
    one, other = armed(), armed()
    one.accept(NEW, "one", 4.0)
    for step in range(BEFORE, BEFORE + OF - 1):
        ours, theirs = tick(one, step, *OLD, NEW), tick(other, step, *OLD)
        for entity in OLD:
            assert ours[entity].score == pytest.approx(theirs[entity].score, rel=1e-5)
            assert ours[entity].p_value == pytest.approx(theirs[entity].p_value, rel=1e-3)
    assert stage(one) == "learning"
    kept, plain = one.to_state(), other.to_state()
    assert kept["held_out"] == plain["held_out"]
    assert kept["training"] == plain["training"]
    assert kept["held_out"] != collected()[0]["held_out"], "the calibration goes on meanwhile"


def test_what_joins_the_calibration_is_a_fair_share_and_past_the_brake() -> None:
    detector = armed()
    detector.accept(NEW, "one", 3.0)
    for step in range(BEFORE, BEFORE + OF):
        tick(detector, step, NEW)
    names = detector.to_state()["held_out_entities"]
    assert 0 < names.count(NEW) <= SETTINGS.calibration_windows // 3
    assert len(names) == SETTINGS.calibration_windows


def test_what_its_own_calibration_excuses_enters_the_common_one_past_the_brake_all_the_same() -> None:
    detector = armed()
    step = learnt(detector)
    detector.accepted._entities[NEW].own = calibrate(np.linspace(1e3, 2e3, 100))  # nothing that it does is unusual
    before = detector.to_state()["held_out_entities"].count(NEW)
    scored = [tick(detector, step + i, NEW, loud=1.0)[NEW] for i in range(50)]
    assert min(s.p_value for s in scored) > 0.9
    assert detector.to_state()["held_out_entities"].count(NEW) <= before + 1


def test_a_host_that_joined_no_calibration_has_its_factor_with_the_next_release() -> None:
    detector = armed()
    detector.accept(NEW, "one", 4.0)
    for step in range(BEFORE, BEFORE + OF):
        detector.feed([window(NEW, step)], frozen=True)
    assert stage(detector) == "learnt"
    assert NEW not in detector.to_state()["held_out_entities"]
    assert detector._active is not None
    factor = detector._active.factors[NEW]
    detector.install(collected()[1], AlertModel(task="network", version=2, digest="b" * 16))
    assert detector._active is not None
    assert detector._active.factors[NEW] == pytest.approx(factor, rel=0.1)


def test_a_loud_window_is_heard_in_the_stretch_and_not_learnt() -> None:
    detector, host = armed(), OLD[0]
    detector.accept(host, "one", 1.0)
    quiet = [tick(detector, BEFORE + i, host)[host] for i in range(30)]
    assert all(s.learning_limit is not None and s.score <= s.learning_limit for s in quiet)
    (before,) = detector.accepted.progress()
    loud = detector.feed([window(host, BEFORE + 30, loud=1.0)])
    assert all(s.score > (s.learning_limit or np.inf) for s in loud)
    (after,) = detector.accepted.progress()
    assert after.windows == before.windows == 30
    for step in range(BEFORE + 31, BEFORE + 40):
        tick(detector, step, host)
    assert detector.accepted.progress()[0].windows > 30


def test_what_was_accepted_at_the_end_of_the_scale_leaves_nothing_to_be_louder() -> None:
    """Said in the documents: scaled values end at ±8, and a stretch of such a host is unwatched."""
    detector = armed()
    accepted = max(tick(detector, BEFORE + i, NEW)[NEW].score for i in range(20))
    benign_max = tick(detector, BEFORE + 20, NEW)[NEW].benign_max
    detector.accept(NEW, "one", accepted / benign_max)
    loud = [tick(detector, BEFORE + 21 + i, NEW, loud=3.0)[NEW] for i in range(3)]
    assert all(s.score <= (s.learning_limit or 0.0) for s in loud)


@given(
    st.floats(1.0, 50.0),
    st.lists(st.floats(0.0, 1e3, allow_nan=False), min_size=1, max_size=60),
    st.floats(0.01, 10.0),
    st.floats(0.01, 10.0),
)
def test_nothing_in_a_stretch_raises_its_limit(
    level: float, ratios: list[float], threshold: float, benign_max: float
) -> None:
    entities = AcceptedEntities(SCHEMA, SETTINGS)
    entities.begin(NEW, "one", level)
    bar = max(threshold, benign_max)
    for step, ratio in enumerate(ratios):
        scored = ScoredWindow(
            NEW,
            T0 + step * STEP_S,
            T0 + (step + 1) * STEP_S,
            ratio * bar,
            0.001,
            threshold,
            benign_max,
            1.0,
            100,
            (),
            MODEL,
        )
        judged = entities.judged(scored)
        assert judged.learning_limit is not None
        assert judged.learning_limit == pytest.approx(FACTOR * level * bar)
        assert (judged.score, judged.p_value) == (scored.score, scored.p_value)
        if entities.take(window(NEW, step), judged) != "learning":
            break


@given(st.floats(0, 1e4), st.floats(1e-6, 1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_of_an_entity_that_is_not_accepted_nothing_changes(
    score: float, p_value: float, threshold: float, benign_max: float
) -> None:
    entities = AcceptedEntities(SCHEMA, SETTINGS)
    entities.begin(NEW, "one", 1.0)
    scored = ScoredWindow(OLD[0], T0, T0 + STEP_S, score, p_value, threshold, benign_max, 1.0, 100, (), MODEL)
    assert entities.judged(scored) is scored


def test_its_own_calibration_only_quiets_its_own_alerts() -> None:
    detector = armed()
    step = learnt(detector)
    assert detector._active is not None
    for i in range(30):
        scored = tick(detector, step + i, *OLD, NEW, loud=0.5 if i > 20 else 0.0)
        everybody = detector._active.rolling.current.p_values([s.score for s in scored.values()])
        for (entity, each), common in zip(scored.items(), everybody, strict=True):
            if entity == NEW:
                assert each.p_value >= common * 0.98  # it may have entered the calibration since
            else:
                assert each.benign_average == detector._active.benign_average


LONG = replace(SETTINGS, accept_windows=2 * ACCEPT_WINDOWS_MIN)


def test_a_long_stretch_is_settled_in_advance_and_hears_more_from_then_on() -> None:
    detector = armed(LONG)
    detector.accept(NEW, "one", 8.0)
    for step in range(BEFORE, BEFORE + ACCEPT_WINDOWS_MIN - 1):
        early = tick(detector, step, *OLD, NEW)[NEW]
    assert early.score < (early.learning_limit or 0.0)
    assert detector._baseline is not None
    assert NEW not in detector._baseline.scalers.own
    step = BEFORE + ACCEPT_WINDOWS_MIN - 1
    tick(detector, step, *OLD, NEW)
    assert detector._baseline is not None
    assert NEW in detector._baseline.scalers.own
    held_out = detector.to_state()["held_out_entities"]
    assert NEW not in held_out, "nothing of it joins before its end"
    for _ in range(60):
        step += 1
        scored = tick(detector, step, *OLD, NEW)[NEW]
        assert scored.score <= (scored.learning_limit or 0.0)
    loud = tick(detector, step + 1, *OLD, NEW, loud=1.0)[NEW]
    assert loud.score > (loud.learning_limit or np.inf)
    assert stage(detector) == "learning"
    while stage(detector) == "learning":
        step += 1
        tick(detector, step + 1, *OLD, NEW)
    assert stage(detector) == "learnt"
    assert detector.accepted.progress()[0].windows >= LONG.stretch_windows


def test_what_was_settled_in_advance_goes_when_it_is_taken_back_or_lapses() -> None:
    for end in ("undo", "lapse"):
        detector = armed(LONG)
        detector.accept(NEW, "one", 8.0)
        for step in range(BEFORE, BEFORE + ACCEPT_WINDOWS_MIN):
            tick(detector, step, *OLD, NEW)
        assert detector._active is not None
        assert NEW in detector._active.factors
        if end == "undo":
            detector.forget(NEW)
        else:
            tick(detector, BEFORE + TIME_A_STRETCH * LONG.stretch_windows + 1, NEW)
            assert stage(detector) == "lapsed"
        assert detector._active is not None
        assert NEW not in detector._active.factors
        assert detector._baseline is not None
        assert NEW not in {*detector._baseline.scalers.own, *detector._baseline.usual}
        assert detector._active.baseline is detector._baseline


def test_a_host_that_stays_loud_is_not_learnt() -> None:
    detector = armed()
    detector.accept(NEW, "one", 1.0)
    for step in range(BEFORE, BEFORE + WINDOWS_A_STRETCH * OF):
        assert stage(detector) == "learning"
        tick(detector, step, NEW, loud=4.0)
    assert stage(detector) == "lapsed"
    assert tick(detector, BEFORE + WINDOWS_A_STRETCH * OF, NEW)[NEW].learning_limit is None
    assert detector._baseline is not None
    assert NEW not in detector._baseline.scalers.own


def test_whoever_comes_back_long_after_is_not_learnt() -> None:
    detector = armed()
    detector.accept(NEW, "one", 1.0)
    for step in range(BEFORE, BEFORE + 10):
        tick(detector, step, NEW)
    assert stage(detector) == "learning"
    tick(detector, BEFORE + TIME_A_STRETCH * OF + 1, NEW)
    assert stage(detector) == "lapsed"


@pytest.mark.parametrize(
    ("settings", "at"),
    [(SETTINGS, 1), (SETTINGS, 100), (SETTINGS, OF - 1), (SETTINGS, OF + 30), (LONG, 239), (LONG, 300)],
)
def test_a_restart_changes_nothing(settings: DetectorSettings, at: int) -> None:
    one, other = armed(settings), armed(settings)
    for each in (one, other):
        each.accept(NEW, "one", 4.0)
    for step in range(BEFORE, BEFORE + settings.stretch_windows + 60):
        if step == BEFORE + at:
            state = msgpack.unpackb(msgpack.packb(one.to_state()), strict_map_key=False)
            one = Detector.from_state(SCHEMA, settings, state)
            one.install(collected()[1], MODEL)
        ours, theirs = tick(one, step, *OLD, NEW), tick(other, step, *OLD, NEW)
        assert {e: s.score for e, s in ours.items()} == pytest.approx({e: s.score for e, s in theirs.items()}, rel=1e-5)
        assert {e: s.p_value for e, s in ours.items()} == pytest.approx(
            {e: s.p_value for e, s in theirs.items()}, rel=0.02
        )
    assert stage(one) == stage(other) == "learnt"


def test_a_new_release_measures_an_accepted_host_anew() -> None:
    detector = armed()
    step = learnt(detector)
    backend = collected()[1]
    first = detector._active
    assert first is not None
    # Another model, whose errors are some other multiple: scores of before would not fit.
    other = type(backend)(backend.network, backend.network.initial_weights(np.random.default_rng(5)))
    detector.install(other, AlertModel(task="network", version=2, digest="b" * 16))
    assert detector._active is not first
    assert detector._active is not None
    assert NEW in detector._active.factors
    after = [tick(detector, step + i, *OLD, NEW)[NEW] for i in range(100)]
    assert np.mean([s.p_value < 0.05 for s in after[4:]]) < 0.15


def test_what_is_taken_back_is_a_newcomer_again() -> None:
    detector = armed()
    step = learnt(detector)
    for i in range(50):
        tick(detector, step + i, *OLD, NEW)
    assert NEW in detector.to_state()["held_out_entities"]
    detector.forget(NEW)

    assert detector.accepted.known() == {}
    names = detector.to_state()["held_out_entities"]
    assert (NEW in names, len(names)) == (False, SETTINGS.calibration_windows)
    assert detector._baseline is not None
    assert NEW not in detector._baseline.scalers.own
    assert NEW not in detector._baseline.usual
    assert detector._active is not None
    assert NEW not in detector._active.factors
    assert detector._active.baseline is detector._baseline
    after = [tick(detector, step + 50 + i, *OLD, NEW)[NEW] for i in range(20)]
    assert np.median([s.p_value for s in after]) < 0.01


def test_what_is_taken_back_is_not_trained_on_after_a_restart_either() -> None:
    detector = armed()
    step = learnt(detector)
    for i in range(600):
        tick(detector, step + i, *OLD, NEW)
    state = detector.to_state()
    assert state["training_entities"].count(NEW) > 20, "what was held out of it has become training rows"
    again = Detector.from_state(SCHEMA, SETTINGS, state)
    again.install(collected()[1], MODEL)
    loud = again._kept.training[np.array(state["training_entities"]) == NEW]
    again.forget(NEW)
    rows = again._kept.training
    assert NEW not in again.to_state()["training_entities"]
    assert len(rows) == len(state["training_entities"])
    assert not any((rows == row).all(axis=(1, 2)).any() for row in loud)


def test_a_second_window_of_the_same_call_finds_the_stretch_over() -> None:
    detector = armed()
    detector.accept(NEW, "one", 3.0)
    for step in range(BEFORE, BEFORE + OF - 1):
        tick(detector, step, *OLD, NEW)
    assert stage(detector) == "learning"
    detector.feed([window(NEW, BEFORE + OF - 1), window(NEW, BEFORE + OF)])
    (progress,) = detector.accepted.progress()
    assert (progress.stage, progress.windows) == ("learnt", OF)


def test_taking_back_in_the_stretch_leaves_what_was_before() -> None:
    detector = armed()
    detector.accept(NEW, "one", 1.0)
    for step in range(BEFORE, BEFORE + 50):
        tick(detector, step, NEW)
    active = detector._active
    detector.forget(NEW)
    assert detector._active is active, "nothing of it had been used yet"
    assert tick(detector, BEFORE + 50, NEW)[NEW].learning_limit is None
    detector.forget("10.0.0.77")  # what nobody accepted


def test_an_old_host_that_has_changed_keeps_its_scaler_until_the_new_one_is_there() -> None:
    detector = armed()
    assert detector._baseline is not None
    old = detector._baseline.scalers.own[OLD[0]]
    detector.accept(OLD[0], "one", 4.0)

    def changed(step: int) -> Window:
        return Window(OLD[0], T0 + step * STEP_S, T0 + (step + 1) * STEP_S, row(NEW, step))

    for step in range(BEFORE, BEFORE + OF):
        assert detector._baseline.scalers.own[OLD[0]] is old
        detector.feed([changed(step)])
    assert stage(detector) == "learnt"
    assert detector._baseline.usual_of(OLD[0])[0, 0] > 200
    after = [s for i in range(60) for s in detector.feed([changed(BEFORE + OF + i)])]
    assert np.mean([s.p_value < 0.05 for s in after]) < 0.15


def test_a_host_is_learnt_while_there_is_no_model_and_holds_nothing_out_meanwhile() -> None:
    _, backend = collected()
    detector = Detector(SCHEMA, SETTINGS)
    for step in range(BEFORE - 50):
        tick(detector, step, *OLD)
    assert detector.phase == "calibrating"
    detector.accept(NEW, "one", 1.0)
    for step in range(BEFORE - 50, BEFORE + OF - 50):
        tick(detector, step, *OLD, NEW)
    assert stage(detector) == "learnt"
    assert NEW not in detector.to_state()["held_out_entities"]
    detector.install(backend, MODEL)
    after = [tick(detector, BEFORE + OF + i, *OLD, NEW)[NEW] for i in range(60)]
    assert np.mean([s.p_value < 0.05 for s in after[4:]]) < 0.15


def test_few_are_learnt_at_a_time_and_not_many_are_remembered() -> None:
    entities = AcceptedEntities(SCHEMA, SETTINGS)
    for i in range(LEARNING_MAX):
        entities.begin(f"10.1.0.{i}", "one", 1.0)
    with pytest.raises(RefusedError, match="being learnt"):
        entities.begin(NEW, "one", 1.0)
    entities.begin("10.1.0.0", "two", 1.0)  # again: it takes no room of its own
    assert entities.known()["10.1.0.0"] == "two"
    for i in range(LEARNING_MAX):
        entities.lapse(f"10.1.0.{i}")
    for i in range(LEARNING_MAX, ENTITIES_MAX):
        entities.begin(f"10.1.0.{i}", "one", 1.0)
        entities.lapse(f"10.1.0.{i}")
    with pytest.raises(RefusedError, match="accepted"):
        entities.begin(NEW, "one", 1.0)


def test_a_detector_that_cannot_learn_one_host_says_so() -> None:
    with pytest.raises(RefusedError, match="learning phase is over"):
        Detector(SCHEMA, SETTINGS).accept(NEW, "one", 1.0)
    sensor = FeatureSchema(use_case="sensor", version=1, columns=("a", "b", "c"), window_s=30, history=4)
    with pytest.raises(RefusedError, match="detector of sensor"):
        Detector(sensor, SETTINGS).accept("tank", "one", 1.0)


def test_a_damaged_state_is_refused() -> None:
    detector = armed()
    detector.accept(NEW, "one", 1.0)
    tick(detector, BEFORE, NEW)
    for field, value in (("stage", "gone"), ("loud", b"\x00\x00"), ("level", 0.0), ("early", [3, 1])):
        state = detector.to_state()
        state["accepted"][0][field] = value
        with pytest.raises(PeerError):
            Detector.from_state(SCHEMA, SETTINGS, state)


def test_a_state_of_a_node_from_before_is_read() -> None:
    state = dict(collected()[0])
    del state["accepted"]
    assert Detector.from_state(SCHEMA, SETTINGS, state).accepted.known() == {}


def test_a_stretch_is_long_enough_for_a_scaler_and_a_calibration() -> None:
    assert DetectorSettings(17_280, 8_640).stretch_windows == 4_320
    assert DetectorSettings(64, 32).stretch_windows == ACCEPT_WINDOWS_MIN
    assert DetectorSettings(64, 32, accept_windows=500).stretch_windows == 500
    with pytest.raises(ConfigError, match="accept_windows: found 239"):
        DetectorSettings(64, 32, accept_windows=ACCEPT_WINDOWS_MIN - 1)
