"""A growing capture, and going on after a restart."""

from __future__ import annotations

import gzip
import lzma
import os
import weakref
from pathlib import Path
from typing import Any

import capture_writing as w
import pytest

from vedette_device.sources import CaptureFile, PacketBatch, Position, SourceError

NS = 1_000_000_000


def records(first: int, last: int) -> list[w.Record]:
    return [
        w.Record(i * NS, w.ethernet(w.ipv4("10.0.0.1", "10.0.0.2", 6, w.tcp(i, 80, payload=b"p" * (i % 50)))))
        for i in range(first, last)
    ]


def pcapng(first: int, last: int) -> bytes:
    return (
        w.section()
        + w.interface(resolution=9)
        + b"".join(w.enhanced(record.frame, record.time_ns) for record in records(first, last))
    )


def ports(batch: PacketBatch | None) -> list[int]:
    assert batch is not None
    return batch.source_port.tolist()


@pytest.mark.parametrize("whole", [w.pcap(records(0, 4)), pcapng(0, 4)])
def test_a_growing_file_is_read_byte_by_byte_without_loss(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "grows"
    path.touch()
    source = CaptureFile(path, follow=True)
    seen: list[int] = []
    with path.open("ab", buffering=0) as writer:
        for byte in whole:
            seen += ports(source.read())
            writer.write(bytes([byte]))
    seen += ports(source.read())
    assert seen == [0, 1, 2, 3]
    assert ports(source.read()) == []


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "now.pcap"
    path.write_bytes(w.pcap(records(0, 3)))
    source = CaptureFile(path, follow=True)
    assert ports(source.read(1)) == [0]
    path.rename(tmp_path / "old.pcap")
    assert ports(source.read()) == [1, 2]
    assert ports(source.read()) == []  # moved away, and the new one is not there yet
    with (tmp_path / "old.pcap").open("ab") as writer:
        writer.write(w.pcap(records(3, 4))[24:])
    assert ports(source.read()) == [3]
    path.write_bytes(w.pcap(records(10, 12), order=">"))
    assert ports(source.read()) == [10, 11]
    assert source.counters()["rotations"] == 1


def test_a_file_that_became_shorter_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "now.pcap"
    path.write_bytes(w.pcap(records(0, 9))[:-3])
    source = CaptureFile(path, follow=True)
    assert ports(source.read()) == list(range(8))
    with path.open("r+b") as writer:
        writer.truncate(0)
        writer.write(w.pcap(records(20, 21)))
    assert ports(source.read()) == [20]
    counters = source.counters()
    assert counters["rotations"] == 1
    assert counters["cut_tail_bytes"] == len(records(8, 9)[0].frame) + 16 - 3


def test_a_growing_file_must_be_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap.gz"
    path.write_bytes(gzip.compress(w.pcap([])))
    with pytest.raises(SourceError, match="growing file must be plain"):
        CaptureFile(path, follow=True)


@pytest.mark.parametrize("data", [w.pcap(records(0, 30)), pcapng(0, 30), gzip.compress(pcapng(0, 30))])
@pytest.mark.parametrize("step", [1, 4, 30])
def test_a_restart_goes_on_behind_the_last_packet(tmp_path: Path, data: bytes, step: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    source = CaptureFile(path)
    stored = source.position().to_json()
    seen: list[int] = []
    for _ in range(60):
        source = CaptureFile(path)
        source.seek(Position.from_json(stored))
        assert source.position() == Position.from_json(stored) or not seen
        batch = source.read(step)
        if batch is None:
            break
        seen += ports(batch)
        stored = source.position().to_json()
        source.close()
    assert seen == list(range(30))


def test_a_restart_refuses_another_or_a_shorter_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(w.pcap(records(0, 9)))
    source = CaptureFile(path)
    source.read(5)
    position = source.position()
    path.write_bytes(w.pcap(records(3, 9)))
    with pytest.raises(SourceError, match="not the file that was read before"):
        CaptureFile(path).seek(position)
    path.write_bytes(w.pcap(records(0, 3)))
    with pytest.raises(SourceError, match="expected at least"):
        CaptureFile(path).seek(position)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"offset_bytes": -1}', "[" * 100_000])
def test_a_damaged_position_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="start the source anew"):
        Position.from_json(text)


@pytest.mark.parametrize(
    "context", ["", "[]", "7", '["<",1,99999]', '["x",[],0]', '["<",[[1,2]],0]', '["<",[[1,0,10,99,0]],0]']
)
def test_a_damaged_context_is_refused_or_harmless(tmp_path: Path, context: str) -> None:
    for data in (w.pcap(records(0, 9)), pcapng(0, 9)):
        path = tmp_path / "a"
        path.write_bytes(data)
        source = CaptureFile(path)
        source.read(2)
        stored = source.position()
        bad = Position(stored.offset_bytes, stored.records, stored.head_bytes, stored.head_digest, context)
        with pytest.raises(SourceError):  # noqa: PT012
            again = CaptureFile(path)
            again.seek(bad)
            again.read()


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(SourceError, match="no regular file"):
        CaptureFile(path)


class Decompressor:
    """The real one, which can be watched."""

    make = lzma.LZMADecompressor

    def __init__(self, *given: Any, **named: Any) -> None:
        self.real = Decompressor.make(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_a_damaged_file_does_not_keep_its_decompressor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by ``bench/fuzz.py``: whoever kept the fault kept its dictionary, too, 64 MB for ``xz -9``."""
    made: list[weakref.ref[Decompressor]] = []

    def watched(*given: Any, **named: Any) -> Decompressor:
        decompressor = Decompressor(*given, **named)
        made.append(weakref.ref(decompressor))
        return decompressor

    damaged = bytearray(lzma.compress(w.pcap(records(0, 9))))
    damaged[len(damaged) // 2] ^= 0xFF
    path = tmp_path / "damaged.pcap.xz"
    path.write_bytes(damaged)
    monkeypatch.setattr(lzma, "LZMADecompressor", watched)
    source = CaptureFile(path)
    with pytest.raises(SourceError, match="damaged") as kept:
        source.read()
    assert kept.value.__traceback__ is not None
    assert [ref() for ref in made] == [None]


def test_a_file_that_needs_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Decompressor):
        def decompress(self, data: bytes, size: int) -> bytes:
            raise MemoryError

    path = tmp_path / "large.pcap.xz"
    path.write_bytes(lzma.compress(w.pcap(records(0, 9))))
    monkeypatch.setattr(lzma, "LZMADecompressor", Greedy)
    source = CaptureFile(path)
    for _ in range(2):
        with pytest.raises(SourceError, match="too little memory"):
            source.read()
