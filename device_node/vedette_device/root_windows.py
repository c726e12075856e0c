"""Clean windows of a node that a person trusts, written to a file: the aggregator's root set for `fltrust`.

The rows are the scaled inputs that the node trains on itself. They leave the gateway in a file that an operator carries
on purpose, and by no other way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.pipeline import Pipeline
from vedette_device.settings import DeviceSettings
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema


def write_root_windows(settings: DeviceSettings, task: str, count: int, target: Path) -> int:
    """Write at most `count` of a node's training windows of a task, spread over its training stretch.

    Args:
        settings: the node's; it must not be running.
        task: the task.
        count: most windows.
        target: new ``.npz`` file.

    Returns:
        How many were written.

    Raises:
        ConfigError: no detector of that task, nothing learned yet, or the file exists.
    """
    section = next((s for s in settings.detectors() if s.task == task), None)
    if section is None:
        raise ConfigError(f"task {task!r}: found no detector of it in the settings, expected one")
    database = Database(settings.state_dir / "device.db")
    try:
        pipeline = Pipeline(settings, section, StateStore(database), Metrics(DEVICE_METRICS))
        x = pipeline.detector.training_windows(count)
    finally:
        database.close()
    if len(x) == 0:
        raise ConfigError(
            f"task {task}: found no training windows in {settings.state_dir}, expected some; run the node until its "
            "learning phase is over"
        )
    save_windows(x, pipeline.schema, target)
    return len(x)


def save_windows(x: Float32, schema: FeatureSchema, target: Path) -> None:
    """Write windows as the aggregator reads them (its root set).

    Args:
        x: ``(n, *input_shape)`` float32 scaled windows.
        schema: what they hold.
        target: new ``.npz`` file.

    Raises:
        ConfigError: the file exists.
    """
    try:
        with target.open("xb") as file:
            np.savez_compressed(file, x=x, schema=np.array(schema.digest))
    except FileExistsError as fault:
        raise ConfigError(f"{target}: found a file there, expected a new name") from fault
