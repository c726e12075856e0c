"""Readings from JSON lines: what is read and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from vedette_device.sources.csv_file import BACKWARDS_ROWS_MAX
from vedette_device.sources.errors import SourceError
from vedette_device.sources.json_rows import COUNTERS, JsonRows


def test_rows_in_the_order_asked_for_and_refused_lines_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"time_s": 1, "b": 2.5, "a": 1, "c": "x"}\n'
        "\n"
        "no json\n"
        "[1, 2]\n"
        '{"time_s": 2, "a": 1}\n'
        '{"time_s": 2, "a": 1, "b": null}\n'
        '{"time_s": 2, "a": 1, "b": "3"}\n'
        '{"time_s": 2, "a": 1, "b": NaN}\n'
        '{"time_s": 2, "a": 1, "b": 1e999}\n'
        '{"time_s": 2, "a": 1, "b": 1' + "0" * 400 + "}\n"
        '{"time_s": 1, "a": 1, "b": 1}\n'
        '{"time_s": 3, "a": true, "b": -4}'
    )
    source = JsonRows(path, ["a", "b"])
    batch = source.read()
    assert batch is not None
    assert batch.channels == source.channels == ("a", "b")
    assert batch.time_s.tolist() == [1, 3]
    assert batch.values.tolist() == [[1, 2.5], [1, -4]]
    assert source.read() is None
    counters = source.counters()
    assert set(counters) == set(COUNTERS)
    assert {name: n for name, n in counters.items() if n} == {
        "lines": 12,
        "rows": 2,
        "not_json": 2,
        "missing_value": 2,
        "not_a_number": 1,
        "not_finite": 3,
        "time_backwards": 1,
    }
    source.close()
    assert source.read() is None


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    rows = [1_000, *range(1, BACKWARDS_ROWS_MAX + 3)]
    path.write_bytes(gzip.compress("".join(f'{{"t": {t}, "a": 0}}\n' for t in rows).encode()))
    source = JsonRows(path, ["a"], time_key="t")
    batch = source.read()
    assert batch is not None
    assert batch.time_s.tolist() == [1_000, BACKWARDS_ROWS_MAX + 1, BACKWARDS_ROWS_MAX + 2]
    assert source.counters()["clock_steps"] == 1


def test_a_growing_file_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"time_s": 1, "a": 1}\n{"time_s": 2, "a": 2}\n')
    source = JsonRows(path, ["a"], follow=True)
    first = source.read(1)
    assert first is not None
    assert first.time_s.tolist() == [1]
    again = JsonRows(path, ["a"], follow=True, position=source.position())
    second = again.read(9)
    assert second is not None
    assert second.time_s.tolist() == [2]
    third = again.read(9)
    assert third is not None
    assert len(third) == 0
    assert third.values.shape == (0, 1)


def test_a_missing_file_is_the_operators(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        JsonRows(tmp_path / "no", ["a"])
