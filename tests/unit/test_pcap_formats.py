"""Every variant of both capture formats, sound and broken."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path

import capture_writing as w
import pytest

from vedette_device.sources import (
    CaptureFile,
    CaptureFormatError,
    CaptureTruncatedError,
    LinkTypeError,
    PacketBatch,
    SourceError,
)
from vedette_device.sources.decoding import FRAME_BYTES_MAX
from vedette_schemas.errors import ConfigError

START_NS = 1_700_000_000_123_456_789


def frame(number: int = 0) -> bytes:
    return w.ethernet(w.ipv4("192.168.1.5", "203.0.113.7", 17, w.udp(40_000 + number, 123, b"x" * number)))


def records(count: int) -> list[w.Record]:
    return [w.Record(START_NS + i * 1_000_000, frame(i)) for i in range(count)]


def read_all(path: Path, packets_max: int = 3) -> PacketBatch:
    source = CaptureFile(path)
    batches = []
    while (batch := source.read(packets_max)) is not None:
        assert len(batch) <= packets_max
        batches.append(batch)
    assert source.read() is None
    source.close()
    source.close()
    assert source.read() is None
    return PacketBatch.concatenate(batches)


def read_until_error(path: Path) -> tuple[int, Exception]:
    """Packets that were delivered before the error, and the error, which then stays."""
    source, packets = CaptureFile(path), 0
    for _ in range(1_000):
        try:
            batch = source.read(2)
        except SourceError as error:
            with pytest.raises(type(error), match="expected"):
                source.read()
            source.close()
            return packets, error
        assert batch is not None, "the file ended without an error"
        packets += len(batch)
    raise AssertionError("no end")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap_in_both_byte_orders_and_resolutions(tmp_path: Path, order: str, nanoseconds: bool) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(w.pcap(records(10), order=order, nanoseconds=nanoseconds))
    batch = read_all(path)
    stamps = [START_NS + i * 1_000_000 for i in range(10)]
    assert batch.time_ns.tolist() == (stamps if nanoseconds else [t // 1_000 * 1_000 for t in stamps])
    assert batch.source_port.tolist() == [40_000 + i for i in range(10)]
    assert batch.size.tolist() == [28 + i for i in range(10)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "ticks_a_second"),
    [(None, 10**6), (6, 10**6), (9, 10**9), (0, 1), (3, 10**3), (12, 10**12), (0x80 | 20, 2**20), (0x80 | 40, 2**40)],
)
def test_pcapng_time_resolutions(tmp_path: Path, order: str, resolution: int | None, ticks_a_second: int) -> None:
    time_ns = START_NS if ticks_a_second <= 10**9 else 1_000_123_456_789  # finer units overflow later
    ticks = time_ns * ticks_a_second // 10**9
    path = tmp_path / "a.pcapng"
    path.write_bytes(
        w.section(order)
        + w.interface(order=order, resolution=resolution)
        + b"".join(w.enhanced(frame(i), ticks, order) for i in range(3))
    )
    batch = read_all(path)
    assert len(batch) == 3
    assert batch.time_ns[0] == pytest.approx(ticks * 10**9 // ticks_a_second, abs=1)


def test_pcapng_offset_simple_packets_interfaces_and_sections(tmp_path: Path) -> None:
    """Interfaces of different link types, a packet without a stamp, an unknown block, a section in the other order."""
    raw = w.ipv4("10.0.0.1", "10.0.0.2", 6, w.tcp(1, 2))
    path = tmp_path / "a.pcapng"
    path.write_bytes(
        w.section("<")
        + w.interface(w.ETHERNET, offset_s=1_000)
        + w.interface(w.RAW, resolution=9)
        + w.enhanced(frame(1), 5_000_000)
        + w.enhanced(raw, 1_006_000_000_000, interface_id=1)
        + w.block(0x0BAD, b"something else")
        + w.simple(frame(2))
        + w.section(">")
        + w.interface(w.SLL, ">")
        + w.enhanced(w.sll(raw, 0x0800), 7_000_000, ">")
    )
    batch = read_all(path, packets_max=100)
    assert batch.time_ns.tolist() == [1_005_000_000_000, 1_006_000_000_000, 1_006_000_000_000, 7_000_000_000]
    assert batch.target_port.tolist() == [123, 2, 123, 2]


def test_link_layers(tmp_path: Path) -> None:
    net = w.ipv6("fd00::1", "fd00::2", 6, w.tcp(5, 6))
    for link, data in (
        (w.ETHERNET, w.ethernet(net, vlans=[0x88A8, 0x8100])),
        (w.RAW, net),
        (229, net),
        (w.SLL, w.sll(net, 0x86DD)),
        (w.SLL2, w.sll2(net, 0x86DD)),
    ):
        path = tmp_path / f"{link}.pcap"
        path.write_bytes(w.pcap([w.Record(START_NS, data)], link=link))
        batch = read_all(path)
        assert (batch.source_port.tolist(), batch.size.tolist()) == ([5], [60]), link


@pytest.mark.parametrize(
    "compress", [gzip.compress, lzma.compress, lambda d: gzip.compress(d[:500]) + gzip.compress(d[500:])]
)
def test_compressed_files_are_told_by_their_first_bytes(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "no-suffix"
    path.write_bytes(compress(w.pcap(records(50))))
    assert read_all(path, packets_max=7).source_port.tolist() == [40_000 + i for i in range(50)]


@pytest.mark.parametrize("missing", range(1, 16 + len(frame(2))))
def test_a_truncated_pcap_gives_all_whole_packets_then_says_where_it_ends(tmp_path: Path, missing: int) -> None:
    path, whole = tmp_path / "a.pcap", w.pcap(records(3))
    path.write_bytes(whole[:-missing])
    packets, error = read_until_error(path)
    assert packets == 2
    assert isinstance(error, CaptureTruncatedError)
    last = len(frame(2)) + 16
    assert (error.offset_bytes, error.found_bytes) == (len(whole) - last, last - missing)
    assert error.expected_bytes == (last if last - missing >= 16 else 16)
    for part in (
        str(path),
        f"byte {len(whole) - missing}",
        f"found {last - missing}",
        f"expected {error.expected_bytes}",
    ):
        assert part in str(error)


def test_a_truncated_pcapng_says_where_it_ends(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.pcapng", w.section() + w.interface() + w.enhanced(frame(), 1) + w.enhanced(frame(), 2)
    path.write_bytes(whole[:-5])
    packets, error = read_until_error(path)
    assert packets == 1
    assert isinstance(error, CaptureTruncatedError)
    assert error.expected_bytes == len(w.enhanced(frame(), 2))


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_cut_and_damaged_compressed_files_give_what_can_be_read(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    rng = random.Random(5)
    many = [w.Record(START_NS + i, frame() + rng.randbytes(100)) for i in range(400)]
    data = compress(w.pcap(many))
    path = tmp_path / "a.pcap.z"
    path.write_bytes(data[: len(data) * 3 // 4])
    packets, error = read_until_error(path)
    assert 290 < packets < 301
    assert "ends early" in str(error)
    broken = bytearray(data)
    broken[len(data) * 3 // 4] ^= 0xFF
    path.write_bytes(bytes(broken))
    packets, error = read_until_error(path)
    assert packets > 200 if compress is gzip.compress else packets >= 0
    assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"\xd4\xc3", "2 bytes"),
        (b"PK\x03\x04 a zip file, really", "50 4b 03 04"),
        (b"time_s,value\n1,2\n" * 9, "magic number"),
        (w.pcap([])[:20], "found 20 bytes of it, expected 24"),
        (b"\xd4\xc3\xb2\xa1\x03\0\0\0" + b"\0" * 40, "version is 3.0"),
        (w.section()[:8] + b"\1\2\3\4" + w.section()[12:], "byte-order mark 01020304"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 40, "zstd"),
    ],
)
def test_what_is_no_capture_is_refused_with_what_was_found(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="expected") as caught:
        CaptureFile(path).read()
    assert words in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_a_file_with_a_header_and_no_packet_is_simply_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(w.pcap([]))
    assert CaptureFile(path).read() is None


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        CaptureFile(tmp_path / "none.pcap")
    with pytest.raises(SourceError, match="is a directory, expected a file"):
        CaptureFile(tmp_path)


def test_a_wrong_link_type_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    for data in (
        w.pcap([w.Record(START_NS, frame())], link=w.WIFI),
        w.section() + w.interface(w.WIFI) + w.enhanced(frame(), 1),
    ):
        path.write_bytes(data)
        with pytest.raises(LinkTypeError, match=r"IEEE 802.11 \(link type 105\), expected one of: Ethernet \(1\)"):
            CaptureFile(path).read()


def test_packets_of_a_foreign_interface_are_counted_beside_a_supported_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(
        w.section()
        + w.interface(w.WIFI)
        + w.interface(w.ETHERNET)
        + w.enhanced(frame(), 1, interface_id=0)
        + w.enhanced(frame(), 2, interface_id=1)
        + w.enhanced(frame(), 3, interface_id=9)
    )
    source = CaptureFile(path)
    batch = source.read()
    assert batch is not None
    assert batch.time_ns.tolist() == [2_000]
    counters = source.counters()
    assert (counters["link_type"], counters["interface"], counters["packets"]) == (1, 1, 1)


def test_damage_in_the_middle_gives_the_packets_before_it(tmp_path: Path) -> None:
    sound = w.pcap(records(2))
    path = tmp_path / "a.pcap"
    path.write_bytes(sound + struct.pack("<IIII", 1, 1, FRAME_BYTES_MAX + 1, 60) + b"\0" * 100)
    packets, error = read_until_error(path)
    assert packets == 2
    assert isinstance(error, CaptureFormatError)
    assert f"byte {len(sound)} says it holds {FRAME_BYTES_MAX + 1} bytes" in str(error)
    ng = w.section() + w.interface() + w.enhanced(frame(), 1)
    for damage, words in (
        (struct.pack("<II", 6, 30) + b"\0" * 60, "multiple of 4"),
        (struct.pack("<II", 6, 1 << 30) + b"\0" * 60, "says it has 1073741824 bytes"),
        (struct.pack("<II", 6, 40) + b"\0" * 60, "ends with length 0"),
    ):
        path.write_bytes(ng + damage)
        packets, error = read_until_error(path)
        assert packets == 1
        assert words in str(error)
        assert f"byte {len(ng)}" in str(error)


def test_frames_that_are_no_ip_are_counted_and_a_file_of_them_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    other = w.ethernet(b"\0" * 40, ethertype=0x88CC)
    short = w.ethernet(w.ipv4("10.0.0.1", "10.0.0.2", 17, b""))[:30]
    path.write_bytes(w.pcap([*(w.Record(START_NS, other) for _ in range(100)), w.Record(START_NS, short)]))
    source = CaptureFile(path)
    total = 0
    while (batch := source.read(2)) is not None:
        total += len(batch)
    assert total == 0
    assert source.counters()["not_ip"] == 100
    assert source.counters()["short_header"] == 1
    assert source.counters()["frames"] == 101
