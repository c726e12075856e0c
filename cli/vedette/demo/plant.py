"""A small plant whose readings a scenario writes itself: a tank that breathes, and a pump that runs now and then.

All of it is benign. Gateways learn from a stretch with the pump, and calibrate on one without it; so whatever a release
makes of the pump shows only when it runs again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features.sensor import SensorWindower
from vedette_device.sources.interface import SampleBatch
from vedette_schemas.features import FeatureSchema

CHANNELS: Final = ("inflow_l_s", "level_m", "outflow_l_s")
PERIOD_S: Final = 30.0
HISTORY: Final = 16
"""Rows that a model sees at once, as the aggregator has it."""
START_S: Final = 1_700_000_000.0
TRAINING_ROWS: Final = 960
CALIBRATION_ROWS: Final = 240
CYCLE_ROWS: Final = 80
"""From one run of the pump to the next; a run takes `RUN_ROWS` from the eighth on."""
RUN_ROWS: Final = 24
BREATH_ROWS: Final = 60

Rows = npt.NDArray[np.float64]


def pump(count: int) -> Rows:
    """How much the pump does in each of so many rows, 0 to 1: it starts and stops softly."""
    place = np.arange(count) % CYCLE_ROWS - 8
    runs = (place >= 0) & (place < RUN_ROWS)
    return np.where(runs, 0.5 - 0.5 * np.cos(2 * np.pi * place / RUN_ROWS), 0.0)


class Plant:
    """The readings of one gateway.

    Args:
        seed: of its noise.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._row = 0

    def rows(self, running: Rows) -> Rows:
        """The next rows, ``(n, 3)``, for what the pump does in each."""
        count = len(running)
        turn = 2 * np.pi * (self._row + np.arange(count)) / BREATH_ROWS
        self._row += count
        noise = self._rng.normal(0.0, (0.15, 0.08, 0.12), (count, len(CHANNELS)))
        steady = np.stack([5 + 0.5 * np.sin(turn), 2 + 0.3 * np.sin(turn + 1), 4 + 0.2 * np.sin(turn)], axis=1)
        return steady + noise + running[:, None] * (3.0, -1.2, 2.5)

    def beginning(self) -> Rows:
        """What a gateway learns from and calibrates on."""
        return self.rows(np.concatenate([pump(TRAINING_ROWS), np.zeros(CALIBRATION_ROWS)]))


class PlantFeed:
    """Writes the readings of gateways into files that their nodes follow.

    Args:
        directory: where the files are.
        gateways: ids; the position is the seed.

    Attributes:
        runs: whether the pump runs now and then.
    """

    def __init__(self, directory: Path, gateways: Sequence[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._plants = {gateway: Plant(seed) for seed, gateway in enumerate(gateways)}
        self.paths = {gateway: directory / f"{gateway}.jsonl" for gateway in gateways}
        self.runs = False
        self._time_s = START_S
        self._cycle = 0
        self._write({gateway: plant.beginning() for gateway, plant in self._plants.items()})

    def next(self, count: int) -> None:
        """Write the next rows of every gateway."""
        running = np.zeros(count)
        if self.runs:
            running = pump(self._cycle + count)[self._cycle :]
            self._cycle = (self._cycle + count) % CYCLE_ROWS
        self._write({gateway: plant.rows(running) for gateway, plant in self._plants.items()})

    def _write(self, rows: dict[str, Rows]) -> None:
        count = len(next(iter(rows.values())))
        for gateway, values in rows.items():
            with self.paths[gateway].open("a", encoding="utf-8") as file:
                for i, row in enumerate(values.tolist()):
                    reading = {"time_s": self._time_s + i * PERIOD_S, **dict(zip(CHANNELS, row, strict=True))}
                    file.write(json.dumps(reading) + "\n")
        self._time_s += count * PERIOD_S


def sensor_table(path: Path) -> dict[str, Any]:
    """A gateway's ``[sensor]`` table: it follows its file."""
    return {
        "source": "jsonl",
        "path": path,
        "follow": True,
        "channels": list(CHANNELS),
        "period_s": PERIOD_S,
        "entity": "tank",
        "training_windows": TRAINING_ROWS,
        "calibration_windows": CALIBRATION_ROWS,
        # The stretch for calibration is two hours long: less than a plant would be given.
        "alerts": {"magnitude_p": 1e-9, "magnitude_factor": 3.0, "sustained_margin": 3.0},
    }


def learnt_rows(schema: FeatureSchema, seed: int) -> npt.NDArray[np.float32]:
    """What a gateway of this plant would train on, ``(n, HISTORY, columns)``, as its own detector scales it."""
    detector = Detector(schema, DetectorSettings(TRAINING_ROWS, CALIBRATION_ROWS))
    windower = SensorWindower("tank", CHANNELS, period_s=PERIOD_S, history=HISTORY)
    values = Plant(seed).beginning()
    times: Rows = (START_S + PERIOD_S * np.arange(len(values))).astype(np.float64)
    for window in windower.push(SampleBatch(CHANNELS, times, values)):
        detector.feed([window])
    return detector.training_windows(TRAINING_ROWS)
