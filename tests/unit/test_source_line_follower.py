"""Lines of a log: each once and in order, over rotation, truncation and restarts."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from vedette_device.sources.errors import SourceError
from vedette_device.sources.flow_log import FlowLog
from vedette_device.sources.line_follower import LINE_BYTES_MAX, POSITION_BYTES_MAX, LineFollower, LinePosition
from vedette_device.sources.netflow_csv import NetflowCsvParser


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(source: LineFollower, at_a_time: int = 2) -> list[str]:
    """All lines that are there now."""
    found: list[str] = []
    while batch := source.read(at_a_time):
        found += [line.decode() for line in batch]
    return found


def resumed(path: Path, source: LineFollower) -> LineFollower:
    """What comes after a kill: only the stored bytes are left."""
    stored = source.position("context").to_bytes()
    source.close()
    position = LinePosition.from_bytes(stored)
    assert position.context == "context"
    return LineFollower(path, follow=True, position=position)


def test_a_finished_file_ends_and_its_last_line_needs_no_break(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\r\ntwo\n\nfo\rur\x0cfive")
    source = LineFollower(path)
    assert lines(source) == ["one", "two", "", "fo\rur\x0cfive"]
    assert source.read(1) is None
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert lines(LineFollower(packed)) == ["one", "two", "", "fo\rur\x0cfive"]
    with pytest.raises(SourceError, match="compressed"):
        LineFollower(packed, follow=True)


def test_a_growing_file_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    source = LineFollower(path, follow=True)
    assert lines(source) == ["one"]
    assert source.read(1) == []
    append(path, "o\nthree\n")
    assert lines(source) == ["two", "three"]


def test_rotation_reads_the_old_file_to_its_end_first(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("1\n2\n")
    source = LineFollower(path, follow=True)
    assert source.read(1) == [b"1"]
    path.rename(tmp_path / "a.log.1")
    assert lines(source) == ["2"]
    path.write_text("")
    append(tmp_path / "a.log.1", "3\n4")  # the writer has not noticed yet
    assert lines(source) == ["3"]
    append(path, "5\n")
    batches = [source.read(10) for _ in range(2)]
    assert batches == [[b"4"], [b"5"]]
    assert source.at_start
    assert source.counters()["rotations"] == 1
    append(path, "6\n")
    assert source.read(10) == [b"6"]
    assert not source.at_start


def test_a_path_that_is_gone_for_a_while_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("1\n")
    source = LineFollower(path, follow=True)
    assert lines(source) == ["1"]
    path.unlink()
    assert source.read(5) == []
    path.write_text("2\n")
    assert lines(source) == ["2"]


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\nthr")
    source = LineFollower(path, follow=True)
    assert lines(source) == ["one", "two"]
    path.write_text("")
    assert source.read(5) == []
    append(path, "new\n")
    assert lines(source) == ["new"]
    counters = source.counters()
    assert (counters["truncations"], counters["lost_tail"], counters["rotations"]) == (1, 1, 0)


def test_a_file_without_line_breaks_costs_no_memory_and_what_follows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    long = "x" * (5 * LINE_BYTES_MAX)
    path.write_text(f"1\n{long}\n2\n{'y' * (LINE_BYTES_MAX - 1)}\n{'z' * LINE_BYTES_MAX}\n3\n")
    source = LineFollower(path, follow=True)
    assert [line[:3] for line in lines(source, 1)] == ["1", "2", "yyy", "3"]
    assert source.counters()["line_too_long"] == 2
    assert source.position().offset_bytes == path.stat().st_size


@pytest.mark.parametrize("read_before", range(7))
def test_a_restart_anywhere_neither_loses_nor_repeats(tmp_path: Path, read_before: int) -> None:
    path = tmp_path / "a.log"
    path.write_text("header\na\nb\n" + "x" * (3 * LINE_BYTES_MAX) + "\nc\nd\ne")
    expected = ["header", "a", "b", "c", "d", "e"]
    source = LineFollower(path, follow=True)
    before = [line for _ in range(read_before) for line in lines_of_one(source)]
    again = resumed(path, source)
    append(path, "\n")
    assert before + lines(again) == expected
    assert again.counters()["position_lost"] == 0


def lines_of_one(source: LineFollower) -> list[str]:
    return [line.decode() for line in source.read(1) or []]


def test_a_restart_after_a_rotation_goes_on_in_the_renamed_file(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    path.write_text("1\n2\n")
    source = LineFollower(path, follow=True)
    assert source.read(1) == [b"1"]
    stored = source.position().to_bytes()
    source.close()
    append(path, "3\n")
    path.rename(tmp_path / "conn.2026-11-27.log")
    for new in ("", "4\n"):  # while the new file is missing, and when it is there
        if new:
            path.write_text(new)
        again = LineFollower(path, follow=True, position=LinePosition.from_bytes(stored))
        assert lines(again) == ["2", "3", *new.split()]
        assert again.counters()["position_lost"] == 0


def test_a_restart_before_the_first_line_finds_the_renamed_file_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    path.write_text("1\n")
    stored = LineFollower(path, follow=True).position()
    path.rename(tmp_path / "conn.1.log")
    path.write_text("2\n")
    again = LineFollower(path, follow=True, position=stored)
    assert lines(again) == ["1", "2"]
    (tmp_path / "conn.1.log").rename(tmp_path / "dns.log")  # its inode may just as well be another log's by now
    other = LineFollower(path, follow=True, position=stored)
    assert lines(other) == ["2"]
    assert other.counters()["position_lost"] == 1


def test_a_file_that_is_gone_is_counted_and_the_path_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("1\n2\n")
    source = LineFollower(path, follow=True)
    lines(source)
    stored = source.position()
    source.close()
    path.unlink()
    missing = LineFollower(path, follow=True, position=stored)
    assert missing.read(1) == []
    path.write_text("9\n8\n")
    assert lines(missing) == ["9", "8"]
    other = LineFollower(path, follow=True, position=stored)
    assert lines(other) == ["9", "8"]
    assert other.counters()["position_lost"] == 1


def test_a_reused_inode_with_another_text_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("1\n2\n")
    source = LineFollower(path, follow=True)
    lines(source)
    stored = source.position()
    with path.open("r+") as file:
        file.write("1\n7\n3\n")
    assert path.stat().st_ino == stored.inode
    again = LineFollower(path, follow=True, position=stored)
    assert again.read(10) == [b"1", b"7", b"3"]
    assert again.at_start


def test_a_copied_file_is_known_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("1\n2\n3\n")
    source = LineFollower(path, follow=True)
    source.read(2)
    stored = source.position()
    data = path.read_bytes()
    (tmp_path / "keeps the old inode").hardlink_to(path)
    path.unlink()
    path.write_bytes(data)
    assert path.stat().st_ino != stored.inode
    assert lines(LineFollower(path, follow=True, position=stored)) == ["3"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 10_000,
        b" " * (POSITION_BYTES_MAX + 1),
        b'{"inode":1,"offset_bytes":-1,"line_bytes":0,"line_digest":"","context":""}',
        b'{"inode":1,"offset_bytes":1,"line_bytes":2,"line_digest":"","context":""}',
        b'{"inode":1,"offset_bytes":true,"line_bytes":0,"line_digest":"","context":""}',
        b'{"inode":1,"offset_bytes":1,"line_bytes":0,"line_digest":4,"context":""}',
        b'{"inode":1,"offset_bytes":1,"line_bytes":0,"line_digest":"","context":"","more":1}',
    ],
)
def test_a_damaged_position_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="stored position"):
        LinePosition.from_bytes(data)


def test_a_missing_file_without_a_position_is_the_operators(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        LineFollower(tmp_path / "no.log", follow=True)


def test_a_log_goes_on_with_its_header_and_forgets_it_when_rotated(tmp_path: Path) -> None:
    path = tmp_path / "flows.csv"
    path.write_text("ts,sa,da,pr\n1,10.0.0.1,10.0.0.2,6\n2,10.0.0.1,10.0.0.2,6\n")
    source = FlowLog(path, NetflowCsvParser, follow=True)
    first = source.read(2)
    assert first is not None
    assert [flow.start_s for flow in first] == [1.0]
    again = FlowLog(path, NetflowCsvParser, follow=True, position=source.position())
    second = again.read()
    assert second is not None
    assert [flow.start_s for flow in second] == [2.0]
    path.rename(tmp_path / "flows.1.csv")
    path.write_text("pr,da,sa,ts\n6,10.0.0.1,10.0.0.2,3\nx,y\n")
    third = again.read()
    assert third is not None
    assert [flow.start_s for flow in third] == [3.0]
    counters = again.counters()
    assert (counters["flows"], counters["field_count"], counters["passed_over"]) == (2, 1, 1)


def test_flows_before_a_fault_are_delivered_first(tmp_path: Path) -> None:
    path = tmp_path / "flows.csv"
    path.write_text("a,b\n1,2\n")
    source = FlowLog(path, NetflowCsvParser)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"flows\.csv: header lacks"):
            source.read()
