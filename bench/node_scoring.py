"""Scoring as the node does it: a model that is calibrated on benign windows, and one call for the windows of a tick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel, Reconstructs
from vedette_device.features import Window
from vedette_device.input_history import InputHistory
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import NETWORK_FLOWS

IDENTITY: Final = AlertModel(task="bench", version=1, digest="0" * 16)
HALF_LIFE_WINDOWS: Final = 2.0
"""The node's default; no figure depends on it."""


def calibrated(backend: Reconstructs, windows: Sequence[Window]) -> CalibratedModel:
    """A model of network flows, calibrated on windows in the order of time."""
    baseline, history = Baseline.fit(NETWORK_FLOWS, windows), InputHistory(NETWORK_FLOWS)
    made = [(window.entity, rows) for window in windows if (rows := history.push(window)) is not None]
    inputs = np.stack([baseline.scale(entity, rows) for entity, rows in made])
    entities = [entity for entity, _ in made]
    return CalibratedModel.measure(backend, IDENTITY, baseline, inputs, entities, HALF_LIFE_WINDOWS)


def judge_windows(model: CalibratedModel, history: InputHistory, windows: Sequence[Window]) -> int:
    """Scale and judge the windows that came out of one read; returns how many got a score and a p-value."""
    made = [(window.entity, rows) for window in windows if (rows := history.push(window)) is not None]
    if not made:
        return 0
    inputs = np.stack([model.baseline.scale(entity, rows) for entity, rows in made])
    newest = np.stack([rows[-1] for _, rows in made])
    return len(model.judge(inputs, [entity for entity, _ in made], newest).p_values)
