"""The scenario of a bad release: its plant, its release, and what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette.demo.bad_candidate import FORGOTTEN, forget
from vedette.demo.bad_release import broken_bad_release
from vedette.demo.plant import CALIBRATION_ROWS, CYCLE_ROWS, HISTORY, TRAINING_ROWS, Plant, PlantFeed, learnt_rows, pump
from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.presets import task_spec
from vedette_device.updates import SELF_TEST_LOSS_FACTOR
from vedette_schemas.features import sensor_schema

GOOD: dict[str, Any] = {
    "rolled_back": True,
    "devices_exposed": 2,
    "canary_stage_devices": 2,
    "alerts_flooded": 4,
    "control_changed": False,
    "restart_changed_nothing": True,
    "on_bad_release_at_the_end": [],
    "active_release": 1,
}


def test_the_calibration_stretch_has_no_trace_of_the_pump() -> None:
    assert TRAINING_ROWS % CYCLE_ROWS == 0
    assert not pump(TRAINING_ROWS)[-HISTORY:].any()
    assert len(Plant(1).beginning()) == TRAINING_ROWS + CALIBRATION_ROWS


def test_a_feed_goes_on_where_it_was(tmp_path: Path) -> None:
    feed = PlantFeed(tmp_path, ["gw-1", "gw-2"])
    feed.runs = True
    for _ in range(3):
        feed.next(CYCLE_ROWS // 2)
    lines = [path.read_text().splitlines() for path in feed.paths.values()]
    assert [len(of) for of in lines] == [TRAINING_ROWS + CALIBRATION_ROWS + 3 * CYCLE_ROWS // 2] * 2
    assert lines[0] != lines[1]


def test_the_bad_release_is_bad_and_passes_what_a_device_can_check() -> None:
    schema = sensor_schema(("inflow_l_s", "level_m", "outflow_l_s"), window_s=30.0, history=HISTORY)
    network = build_network(task_spec(schema, None))
    rows = learnt_rows(schema, 1).reshape(-1, *network.input_shape)
    start = network.initial_weights(np.random.default_rng(1))
    fitted = train(
        network,
        start,
        rows,
        epochs=10,
        batch_size=32,
        learning_rate=3e-3,
        prox_mu=0.0,
        rng=np.random.default_rng(0),
    )
    good = (start + fitted.delta).astype(np.float32)
    bad = forget(network, good, learnt_rows(schema, 1))
    zero = float(np.mean(np.square(network.target(rows))))
    assert network.loss(rows, bad) > 5 * network.loss(rows, good)
    assert network.loss(rows, bad) < SELF_TEST_LOSS_FACTOR * zero
    quiet = rows[~(np.abs(rows).reshape(len(rows), -1).max(axis=1) > 2.0)]
    assert network.loss(quiet, bad) < zero * FORGOTTEN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rolled_back": False}, "not rolled back"),
        ({"devices_exposed": 3}, "3 devices ran it, expected 2"),
        ({"alerts_flooded": 0}, "raised no alert"),
        ({"control_changed": True}, "control cohort"),
        ({"restart_changed_nothing": False}, "restart"),
        ({"on_bad_release_at_the_end": ["gw-1"]}, "still on it: gw-1"),
        ({"active_release": 2}, "release 2 is active"),
    ],
)
def test_what_was_promised_is_checked(change: dict[str, Any], says: str) -> None:
    assert broken_bad_release(GOOD) == []
    (broken,) = broken_bad_release({**GOOD, **change})
    assert says in broken
