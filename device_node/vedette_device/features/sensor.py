"""From sensor rows to feature windows: the channels as they are, then the first difference of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vedette_device.features.windows import Window
from vedette_device.sources.interface import SampleBatch
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import sensor_schema

GAP_PERIODS_DEFAULT = 3.0
"""Sample periods after which two rows no longer belong together: one lost row is usual, more are a gap."""

COUNTERS = ("rows", "windows", "gaps", "not_finite", "time_backwards")
"""What ``SensorWindower.counters`` holds."""


class SensorWindower:
    """Turns each row into one window of ``2c`` values, of which a model input joins ``history``.

    A window spans the time from the row before to its own row, so that successive windows touch and a gap shows. The
    first row of a stretch has no difference and gives none.

    Args:
        entity: name of the group of sensors.
        channels: names, in the order of the values.
        period_s: nominal sample period.
        history: samples that one model input covers.
        gap_s: longest time between rows that belong together; by default ``GAP_PERIODS_DEFAULT`` periods.

    Raises:
        ConfigError: a number or name that cannot be.
    """

    def __init__(
        self,
        entity: str,
        channels: Sequence[str],
        *,
        period_s: float = 1.0,
        history: int = 16,
        gap_s: float | None = None,
    ) -> None:
        self.schema = sensor_schema(tuple(channels), window_s=period_s, history=history)
        self.entity = entity
        self._channels = tuple(channels)
        self._gap_s = GAP_PERIODS_DEFAULT * period_s if gap_s is None else gap_s
        if not self._gap_s > 0:
            raise ConfigError(f"longest time between rows of {entity} is {self._gap_s} s, expected more than 0")
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._last_time_s: float | None = None
        self._last_row = np.zeros(len(self._channels))

    def push(self, batch: SampleBatch) -> list[Window]:
        """Take rows in the order of time; return a window for each that follows another.

        Raises:
            ConfigError: the batch has other channels.
        """
        if batch.channels != self._channels:
            raise ConfigError(
                f"rows of {self.entity} have channels {', '.join(batch.channels)}, expected {', '.join(self._channels)}"
            )
        windows = []
        finite = np.isfinite(batch.values).all(axis=1) & np.isfinite(batch.time_s)
        self._counters["rows"] += len(batch)
        self._counters["not_finite"] += int((~finite).sum())
        for time_s, row in zip(batch.time_s[finite].tolist(), batch.values[finite], strict=True):
            last_time_s, last_row = self._last_time_s, self._last_row
            self._last_time_s, self._last_row = time_s, row
            if last_time_s is None:
                continue
            if time_s <= last_time_s:
                self._counters["time_backwards"] += 1
            elif time_s - last_time_s > self._gap_s:
                self._counters["gaps"] += 1
            else:
                # A reading beyond float32 becomes its largest number, not infinity.
                values = np.clip(np.concatenate([row, row - last_row]), -FLOAT32_MAX, FLOAT32_MAX)
                windows.append(Window(self.entity, last_time_s, time_s, values.astype(np.float32)))
        self._counters["windows"] += len(windows)
        return windows

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)


FLOAT32_MAX = float(np.finfo(np.float32).max)
