"""A recording ready for detectors: scaled model inputs of its three stretches.

What scaling knows, it knows of the training stretch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vedette.evaluation.datasets import Fleet, Recording
from vedette.evaluation.splits import Kind, Labels, guard, split
from vedette_core.learning.layout import Float32
from vedette_device.baseline import INPUTS_KEPT_MAX, Baseline
from vedette_device.features.windows import Window
from vedette_device.input_history import InputHistory
from vedette_schemas.errors import ConfigError, VedetteError
from vedette_schemas.features import FeatureSchema

INPUTS_MIN = 16
"""Fewest inputs to learn from."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Windows with their inputs.

    Attributes:
        windows: in the order of time.
        inputs: ``(n, history, columns) float32`` scaled.
        labels: guarded: 1 anomalous, 0 benign, −1 not counted.
    """

    windows: tuple[Window, ...]
    inputs: Float32
    labels: Labels

    @property
    def rows(self) -> Float32:
        """Newest row of each input, ``(n, columns)``: what detectors without a memory look at."""
        return self.inputs[:, -1, :]

    @property
    def entities(self) -> list[str]:
        """Whose window each is."""
        return [w.entity for w in self.windows]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One device.

    Attributes:
        device: name.
        kind: how it was split.
        baseline: fitted to the training stretch.
        train: benign; its inputs are thinned as on a device.
        calibrate: benign.
        test: everything else.
        raw_labels: of the test stretch, without the guard: as in the recording.
        truth: columns that were tampered with, a set a window of the test stretch; empty where nobody knows.
        breaks: as in the recording.
    """

    device: str
    kind: Kind
    baseline: Baseline
    train: Stretch
    calibrate: Stretch
    test: Stretch
    raw_labels: Labels
    truth: tuple[frozenset[str], ...] = ()
    breaks: tuple[float, ...] = ()


def prepare_fleet(fleet: Fleet) -> tuple[tuple[Prepared, ...], dict[str, str]]:
    """Split and scale every device of a fleet; those that cannot be are named, with the reason."""
    ready, skipped = [], {}
    for recording in fleet.recordings:
        try:
            ready.append(prepare(recording, fleet.schema))
        except VedetteError as fault:
            skipped[recording.device] = str(fault)
    return tuple(ready), skipped


def prepare(recording: Recording, schema: FeatureSchema) -> Prepared:
    """Split and scale one device's recording.

    Raises:
        ConfigError: too few benign windows to learn from and to set a threshold by.
    """
    entities = [w.entity for w in recording.windows]
    bounds = [(w.start_s, w.end_s) for w in recording.windows]
    labels = guard(recording.labels, entities, bounds, schema.history * schema.window_s)
    # Which windows have a past is a matter of time, not of values.
    history = InputHistory(schema)
    inputs = [history.push(window) for window in recording.windows]
    whole = np.array([i for i, values in enumerate(inputs) if values is not None], np.intp)
    if not len(whole):
        raise ConfigError(f"{recording.device}: found no window with a past of {schema.history}")
    labels = labels[whole]
    parts = split(labels, device=recording.device)
    first = [recording.windows[i] for i in whole[parts.train]]
    baseline = Baseline.fit(schema, first)

    def stretch(places: np.ndarray) -> Stretch:
        windows = tuple(recording.windows[i] for i in whole[places])
        scaled = np.empty((len(windows), *schema.input_shape), np.float32)
        for at, i in enumerate(whole[places].tolist()):
            values = inputs[i]
            assert values is not None
            scaled[at] = baseline.scale(windows[at].entity, values)
        return Stretch(windows, scaled, labels[places])

    thinned = parts.train
    if len(thinned) > INPUTS_KEPT_MAX:
        thinned = thinned[np.unique(np.linspace(0, len(thinned) - 1, INPUTS_KEPT_MAX).astype(np.intp))]
    if len(thinned) < INPUTS_MIN:
        raise ConfigError(f"{recording.device}: found {len(thinned)} inputs to learn from, expected {INPUTS_MIN}")
    return Prepared(
        recording.device,
        parts.kind,
        baseline,
        stretch(thinned),
        stretch(parts.calibrate),
        stretch(parts.test),
        recording.labels[whole[parts.test]],
        tuple(recording.truth[i] for i in whole[parts.test]) if recording.truth else (),
        recording.breaks,
    )
