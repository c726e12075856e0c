"""Who may learn from what: order of time, attacks in the test stretch alone, nothing of it read before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.evaluation.datasets import Recording
from vedette.evaluation.detectors import Configuration, calibrated, float_backend, learn_together, network_for
from vedette.evaluation.judging import ALPHA
from vedette.evaluation.labelled_tables import sensor_recording
from vedette.evaluation.splits import BENIGN_MIN, PREFIX_MIN, guard, left_out, split
from vedette.evaluation.stretches import Prepared, prepare
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema


def labels_of(*stretches: tuple[int, int]) -> np.ndarray:
    return np.repeat([label for label, _ in stretches], [n for _, n in stretches]).astype(np.int8)


def test_quarters_where_most_benign_windows_come_first() -> None:
    parts = split(labels_of((0, 300), (1, 50), (0, 100)))
    assert parts.kind == "quarters"
    assert parts.train.tolist() == list(range(200))
    assert parts.calibrate.tolist() == list(range(200, 300))
    assert parts.test.tolist() == list(range(300, 450))


def test_what_lies_before_the_first_attack_where_less_does() -> None:
    parts = split(labels_of((0, 150), (1, 50), (0, 350)))
    assert parts.kind == "prefix"
    assert parts.train.tolist() == list(range(100))
    assert parts.calibrate.tolist() == list(range(100, 150))
    assert parts.test.tolist() == list(range(150, 550))


def test_a_device_that_was_attacked_from_the_start_gives_its_benign_windows_by_their_order() -> None:
    labels = labels_of((1, 5), (0, 40), (1, 5), (-1, 3), (0, 160))
    parts = split(labels)
    assert parts.kind == "interleaved"
    assert (labels[parts.train] == 0).all()
    assert (len(parts.train), len(parts.calibrate)) == (100, 50)
    assert (labels[parts.test] == 1).sum() == 10
    assert parts.test.min() == 0


def test_too_few_benign_windows_are_refused_and_named() -> None:
    with pytest.raises(ConfigError, match=f"lamp: found 10 benign windows, expected at least {BENIGN_MIN}"):
        split(labels_of((0, 10), (1, 500)), device="lamp")


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 0, 1]), min_size=200, max_size=500))
def test_whatever_the_labels_the_stretches_are_disjoint_in_order_and_benign(found: list[int]) -> None:
    labels = np.array(found, np.int8)
    if (labels == 0).sum() < BENIGN_MIN:
        return
    parts = split(labels)
    train, calibrate, test = (set(p.tolist()) for p in (parts.train, parts.calibrate, parts.test))
    assert len(train | calibrate | test) == len(train) + len(calibrate) + len(test)
    assert (labels[parts.train] == 0).all()
    assert (labels[parts.calibrate] == 0).all()
    assert parts.train.max() < parts.calibrate.min()
    assert len(parts.calibrate) >= 20
    assert set(np.flatnonzero(labels == 1).tolist()) <= test
    benign_in_test = [i for i in test if labels[i] == 0]
    assert all(i > parts.calibrate.max() for i in benign_in_test)
    if parts.kind != "interleaved":
        assert parts.calibrate.max() < min((i for i in test if labels[i] == 1), default=len(labels))
        assert len(train | calibrate) >= PREFIX_MIN or not (labels == 1).any()


def test_windows_that_look_back_on_an_attack_are_not_counted() -> None:
    bounds = [(float(i), float(i + 1)) for i in range(8)]
    labels = [0, 1, 0, 0, 0, 0, 0, 0]
    assert guard(labels, ["a"] * 8, bounds, 4.0).tolist() == [0, 1, -1, -1, -1, 0, 0, 0]
    assert guard(labels, ["a", "a", *"bbbbbb"], bounds, 4.0).tolist() == labels
    assert guard(labels, ["a"] * 8, bounds, 1.0).tolist() == labels


def test_devices_are_left_out_evenly_and_only_of_fleets() -> None:
    assert left_out(2, 2) == ()
    assert left_out(9, 3) == (0, 4, 8)
    assert left_out(9, 0) == ()


def recording(seed: int, *, spoiled: bool) -> tuple[FeatureSchema, Recording]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(420, 3)).cumsum(axis=0) * 0.05
    labels = labels_of((0, 320), (1, 20), (0, 80))
    if spoiled:
        values[322:] = rng.normal(1e3, 1e2, (98, 3))  # what lies before the test stretch is untouched
    return sensor_recording(f"d{seed}", ("x", "y", "z"), values, labels, history=4)


def test_nothing_of_the_test_stretch_is_read_before_the_threshold_is_fixed() -> None:
    """The same weights, scales and thresholds, whatever comes later."""
    config = Configuration(rounds=2, epochs=1)
    known = []
    for spoiled in (False, True):
        pairs = [recording(seed, spoiled=spoiled) for seed in range(2)]
        schema = pairs[0][0]
        fleet = [prepare(each, schema) for _, each in pairs]
        network = network_for("sensor", schema)
        learnt = learn_together(network, fleet, config, 0)
        models = [calibrated(float_backend(network, learnt), device) for device in fleet]
        known.append((learnt.weights, [m.rolling.current.threshold(ALPHA) for m in models], fleet))
    assert np.array_equal(known[0][0], known[1][0])
    assert known[0][1] == known[1][1]
    assert not np.array_equal(first_test(known[0][2]), first_test(known[1][2]))


def first_test(fleet: list[Prepared]) -> np.ndarray:
    return fleet[0].test.inputs
