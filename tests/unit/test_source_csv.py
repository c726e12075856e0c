"""Readings from CSV files: what is read, what is refused, and with which words."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vedette_device.sources import CsvFile, Position, RowsError, SampleBatch, SourceError
from vedette_device.sources.csv_file import BACKWARDS_ROWS_MAX, LINE_BYTES_MAX, REFUSALS_KEPT

HEADER = "time_s,level,flow\n"


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text(header + "".join(row + "\n" for row in rows))
    return path


def read_all(source: CsvFile, rows_max: int = 3) -> SampleBatch:
    batches = []
    while (batch := source.read(rows_max)) is not None:
        batches.append(batch)
    return SampleBatch(
        source.channels,
        np.concatenate([batch.time_s for batch in batches] or [np.zeros(0)]),
        np.concatenate([batch.values for batch in batches] or [np.zeros((0, len(source.channels)))]),
    )


def test_columns_are_chosen_by_name_and_keep_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", *(f"{i},{i * 10},{i * 100}" for i in range(8)))
    batch = read_all(CsvFile(path, ["flow", "level"]))
    assert batch.channels == ("flow", "level")
    assert batch.time_s.tolist() == list(range(8))
    assert batch.values.tolist() == [[i * 100, i * 10] for i in range(8)]
    assert read_all(CsvFile(path)).channels == ("level", "flow")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_plain_and_compressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(pack(b"\xef\xbb\xbfdate;x\r\n2020-03-09 10:14:33;1.5\r\n2020-03-09T10:14:34Z;-2e3"))
    batch = read_all(CsvFile(path, time_column="date", time_format="iso8601", delimiter=";"))
    assert batch.time_s.tolist() == [1583748873.0, 1583748874.0]
    assert batch.values.tolist() == [[1.5], [-2000.0]]


def test_bad_rows_are_left_out_whole_and_named_by_row_and_column(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "1,10,100",
        "2,nan,100",
        "3,10,inf",
        "4,ten,100",
        "5,,100",
        "6,10",
        "oh,10,100",
        "",
        "8,18,180",
        "8,19,190",
        "7,19,190",
        "9,20,200",
    )
    source = CsvFile(path, ["level", "flow"])
    batch = read_all(source)
    assert batch.time_s.tolist() == [1, 8, 9]
    assert batch.values[:, 0].tolist() == [10, 18, 20]
    counters = source.counters()
    assert {name: n for name, n in counters.items() if n} == {
        "rows": 3,
        "not_finite": 2,
        "not_a_number": 2,
        "missing_value": 2,
        "time_backwards": 2,
    }
    assert [(r.row, r.column) for r in source.refusals] == [
        (3, "level"),
        (4, "flow"),
        (5, "level"),
        (6, "level"),
        (7, "flow"),
        (8, "time_s"),
        (11, "time_s"),
        (12, "time_s"),
    ]
    assert str(source.refusals[2]) == "row 5, column 'level': found 'ten' (not_a_number), expected a finite number"


def test_only_the_last_refusals_are_kept_but_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", *(f"{i},x,1" for i in range(REFUSALS_KEPT * 3)))
    source = CsvFile(path)
    assert len(read_all(source).time_s) == 0
    assert source.counters()["not_a_number"] == REFUSALS_KEPT * 3
    assert len(source.refusals) == REFUSALS_KEPT


def test_a_clock_that_was_set_back_is_followed_after_some_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1000,1,1", *(f"{i},2,2" for i in range(BACKWARDS_ROWS_MAX + 5)))
    source = CsvFile(path)
    batch = read_all(source)
    assert batch.time_s.tolist() == [1000, *range(BACKWARDS_ROWS_MAX, BACKWARDS_ROWS_MAX + 5)]
    assert source.counters()["clock_steps"] == 1
    assert source.counters()["time_backwards"] == BACKWARDS_ROWS_MAX


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        (HEADER, ["level", "pressure"], r"lacks column 'pressure'; found: time_s, level, flow"),
        ("t,level\n", ["level"], r"lacks column 'time_s'; found: t, level"),
        ("time_s;level\n", ["level"], r"delimiter is ','"),
        ("time_s,level,level\n", ["level"], r"has column 'level' more than once"),
        ("time_s\n", [], r"no columns to read"),
        ("", [], r"is empty, expected a header"),
        ("\x00\xff\n", [], r"found|is no text"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, header: str, columns: list[str], words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(header.encode("latin-1"))
    for use in (lambda source: source.read(), lambda source: source.channels):
        with pytest.raises(RowsError, match=words):
            use(CsvFile(path, columns))


def test_a_file_without_lines_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"1,2,3\n" + b"9" * (LINE_BYTES_MAX * 4))
    source = CsvFile(path)
    batch = source.read(1)
    assert batch is not None
    assert len(batch) == 1
    with pytest.raises(RowsError, match="line 3 has more than"):
        source.read()


def test_a_cut_gzip_file_gives_the_rows_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    data = gzip.compress(
        (HEADER + "".join(f"{i},{i * 7919 % 1000},{i * 104729 % 977}\n" for i in range(3000))).encode()
    )
    path.write_bytes(data[: len(data) // 2])
    source, rows = CsvFile(path), 0
    with pytest.raises(SourceError, match="ends early"):  # noqa: PT012
        while (batch := source.read()) is not None:
            rows += len(batch)
    assert 0 < rows < 3000


def test_a_growing_file_waits_for_whole_lines_and_notices_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.touch()
    source = CsvFile(path, ["level"], follow=True)
    times: list[float] = []
    with path.open("ab", buffering=0) as writer:
        for byte in (HEADER + "1,2,3\n2,3,4\n3,").encode():
            batch = source.read()
            assert batch is not None
            times += batch.time_s.tolist()
            writer.write(bytes([byte]))
    times += source.read().time_s.tolist()  # type: ignore[union-attr]
    assert times == [1, 2]
    path.unlink()
    assert len(source.read() or ()) == 0
    write(path, "1,5,6", header="flow,level,time_s\n")
    for _ in range(2):
        batch = source.read()
        assert batch is not None
    assert (batch.time_s.tolist(), batch.values.tolist()) == ([6], [[5]])
    assert source.counters()["rotations"] == 1


def test_a_restart_goes_on_behind_the_last_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,0,0", "1,x,1", *(f"{i},{i},{i}" for i in range(2, 20)))
    stored, times = CsvFile(path).position().to_json(), []
    for _ in range(30):
        source = CsvFile(path)
        source.seek(Position.from_json(stored))
        batch = source.read(2)
        if batch is None:
            break
        times += batch.time_s.tolist()
        stored = source.position().to_json()
    assert times == [0, *range(2, 20)]
    write(path, "5,5,5")
    with pytest.raises(SourceError, match="not the file that was read before"):
        CsvFile(path).seek(Position.from_json(stored))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        CsvFile(tmp_path / "none.csv")
