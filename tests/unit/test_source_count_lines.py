"""JSON lines of counts: what is taken, and that every line that cannot be is refused by its reason."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vedette_device.sources.count_lines import COUNTERS, CountLines, TimedCount
from vedette_device.sources.errors import SourceError

GOOD = '{"time_s": 1700000000, "name": "a", "count": 3}'
BAD = {
    "not_json": ["no", "[1]", "3", "\xff", '{"time_s": 1, "name": "a", "count": 1', "[" * 50_000],
    "missing_value": ['{"name": "a", "count": 1}', '{"time_s": 1, "count": 1}', '{"time_s": 1, "name": "a"}'],
    "name": [json.dumps({"time_s": 1, "name": name, "count": 1}) for name in ("", "n" * 65, "a\ud800", 7, ["a"])],
    "count": [f'{{"time_s": 1, "name": "a", "count": {c}}}' for c in ("-1", "NaN", "Infinity", "true", '"1"', "1e99")],
    "timestamp": [f'{{"time_s": {t}, "name": "a", "count": 1}}' for t in ("-1", "NaN", "1e99", "true", '"now"')],
}


@pytest.mark.parametrize("reason", list(BAD))
def test_a_line_that_cannot_be_is_refused_alone(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text("\n".join([GOOD, *BAD[reason], GOOD]) + "\n", encoding="latin-1")
    source = CountLines(path)
    assert source.read() == [TimedCount(1_700_000_000.0, "a", 3.0)] * 2
    found = source.counters()
    assert set(found) == set(COUNTERS)
    assert {name: n for name, n in found.items() if n} == {
        "counts": 2,
        reason: len(BAD[reason]),
        "lines": 2 + len(BAD[reason]),
    }
    assert source.read() is None


def test_other_keys_are_passed_over_and_a_time_is_asked_for_only_where_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text('\n{"name": "a", "count": 2.5, "host": "x"}\n')
    (count,) = CountLines(path, timed=False).read() or []
    assert (count.name, count.count) == ("a", 2.5)
    assert math.isnan(count.time_s)
    assert CountLines(path).read() == []


def test_a_growing_file_goes_on_at_its_position(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text(GOOD + "\n")
    first = CountLines(path, follow=True)
    assert len(first.read() or []) == 1
    assert first.read() == []
    position = first.position()
    first.close()
    path.write_text(GOOD + "\n" + GOOD.replace('"a"', '"b"') + "\n")
    again = CountLines(path, follow=True, position=position)
    assert [count.name for count in again.read() or []] == ["b"]
    with pytest.raises(SourceError):
        CountLines(tmp_path / "absent")
