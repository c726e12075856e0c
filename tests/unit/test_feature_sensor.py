from __future__ import annotations

import numpy as np
import pytest

from vedette_device.features import SensorWindower
from vedette_device.sources import SampleBatch
from vedette_schemas.errors import ConfigError


def batch(times: list[float], *columns: list[float]) -> SampleBatch:
    channels = tuple("ab"[: len(columns)])
    return SampleBatch(channels, np.array(times, dtype=float), np.array(columns, dtype=float).T.reshape(len(times), -1))


def test_channels_then_first_differences() -> None:
    windower = SensorWindower("tank", ["a", "b"], period_s=2.0, history=8)
    windows = windower.push(batch([0, 2, 4], [1, 3, 2], [10, 10, 40]))
    assert [w.values.tolist() for w in windows] == [[3, 10, 2, 0], [2, 40, -1, 30]]
    assert [(w.entity, w.start_s, w.end_s) for w in windows] == [("tank", 0, 2), ("tank", 2, 4)]
    assert windows[0].values.dtype == np.float32
    assert windower.schema.columns == ("a", "b", "a_diff", "b_diff")


def test_batches_do_not_matter() -> None:
    times, values = [float(i) for i in range(20)], [float(i * i) for i in range(20)]
    whole = SensorWindower("x", ["a"]).push(batch(times, values))
    windower = SensorWindower("x", ["a"])
    parts = [w for i in range(0, 20, 3) for w in windower.push(batch(times[i : i + 3], values[i : i + 3]))]
    assert [(w.start_s, w.values.tolist()) for w in parts] == [(w.start_s, w.values.tolist()) for w in whole]


def test_a_gap_or_a_step_back_starts_a_new_stretch() -> None:
    windower = SensorWindower("x", ["a"])
    windows = windower.push(batch([0, 1, 5, 6, 3, 4], [0, 1, 5, 6, 30, 40]))
    assert [(w.start_s, w.end_s) for w in windows] == [(0, 1), (5, 6), (3, 4)]
    assert windower.counters() == {"rows": 6, "windows": 3, "gaps": 1, "not_finite": 0, "time_backwards": 1}
    assert len(SensorWindower("x", ["a"], gap_s=10).push(batch([0, 1, 5, 6], [0, 1, 5, 6]))) == 3


def test_what_is_not_finite_never_enters_and_too_large_numbers_stay_finite() -> None:
    windower = SensorWindower("x", ["a"], gap_s=10)
    windows = windower.push(batch([0, 1, 2, 3], [0, np.nan, 1e300, -1e300]))
    assert all(np.isfinite(w.values).all() for w in windows)
    assert (len(windows), windower.counters()["not_finite"]) == (2, 1)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="have channels a, b, expected a"):
        SensorWindower("x", ["a"]).push(batch([0], [1], [2]))
    with pytest.raises(ConfigError, match="longest time between rows"):
        SensorWindower("x", ["a"], gap_s=0)
