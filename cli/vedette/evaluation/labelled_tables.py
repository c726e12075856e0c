"""Tables of the pack: gzipped CSV with a header, read into columns; numbers and categories into sensor rows."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation.datasets import Recording
from vedette_device.features.sensor import SensorWindower
from vedette_device.features.windows import Window
from vedette_device.sources.interface import SampleBatch
from vedette_schemas.errors import PeerError
from vedette_schemas.features import FeatureSchema

Float64 = npt.NDArray[np.float64]
LABEL: Final = "label_bin"
ROWS_MAX: Final = 2_000_000
"""Most rows of a file: ten times the largest of the pack."""


def read_table(path: Path, rows_max: int = ROWS_MAX) -> dict[str, list[str]]:
    """Columns of a gzipped CSV file, texts stripped.

    Raises:
        PeerError: a row has another number of cells than the header, or there is no label column.
    """
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if LABEL not in header:
            raise PeerError(f"{path.name}: found columns {', '.join(header[:8])}, expected {LABEL} among them")
        rows = []
        for number, row in enumerate(reader, 2):
            if len(row) != len(header):
                raise PeerError(f"{path.name}: found {len(row)} cells in line {number}, expected {len(header)}")
            rows.append(row)
            if len(rows) >= rows_max:
                break
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def numbers(texts: Sequence[str], codes: Mapping[str, float] | None = None) -> Float64:
    """Cells as numbers, categories by a fixed code; what is neither becomes NaN, whose row the windower refuses."""
    values = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        try:
            values[i] = codes[text.lower()] if codes and text.lower() in codes else float(text)
        except ValueError:
            continue
    return values


def sensor_recording(
    device: str,
    channels: Sequence[str],
    values: Float64,
    labels: npt.NDArray[np.int8],
    *,
    time_s: Float64 | None = None,
    period_s: float = 1.0,
    history: int = 16,
) -> tuple[FeatureSchema, Recording]:
    """Rows through the device's own windower: each channel and its first difference.

    Args:
        device: name.
        channels: names of the columns of ``values``.
        values: ``(n, channels)``.
        labels: ``(n,)``; a window has that of its newer row.
        time_s: ``(n,)``, or None for a row every ``period_s``.
        period_s: nominal.
        history: rows of one input.
    """
    times: Float64 = np.arange(len(values), dtype=np.float64) * period_s if time_s is None else time_s
    windower = SensorWindower(device, channels, period_s=period_s, history=history)
    windows = windower.push(SampleBatch(tuple(channels), times, values))
    by_time = dict(zip(times.tolist()[::-1], labels.tolist()[::-1], strict=True))  # of equal times the first is taken
    kept = np.array([by_time[w.end_s] for w in windows], np.int8)
    return windower.schema, Recording(device, tuple(windows), kept)


def nab_recording(path: Path, period_s: float) -> tuple[FeatureSchema, Recording]:
    """A series of NAB: one value a row, through the device's sensor windower.

    Args:
        path: gzipped CSV of timestamp, value and label.
        period_s: nominal seconds between rows.
    """
    table = read_table(path)
    values = numbers(table["value"])[:, None]
    stamps = [datetime.strptime(t, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp() for t in table["timestamp"]]
    labels = numbers(table[LABEL]).astype(np.int8)
    name = path.name.removesuffix(".csv.gz")
    return sensor_recording(name, ("value",), values, labels, time_s=np.array(stamps), period_s=period_s)


def plain_recording(device: str, schema: FeatureSchema, values: Float64, labels: npt.NDArray[np.int8]) -> Recording:
    """Rows as they are, a window each, one behind the other."""
    finite = np.isfinite(values).all(axis=1)
    period_s = schema.window_s
    windows = tuple(
        Window(device, i * period_s, (i + 1) * period_s, row) for i, row in enumerate(values[finite].astype(np.float32))
    )
    return Recording(device, windows, labels[finite].astype(np.int8))
