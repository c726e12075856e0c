"""Any damage to a capture gives packets and then a declared error, in bounded memory, and never anything else."""

from __future__ import annotations

import gzip
import lzma
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import capture_writing as w

from vedette_device.features.network import NetworkWindower
from vedette_device.sources import CaptureFile, Position, SourceError
from vedette_device.sources.capture_file import BUFFER_BYTES_MAX

NS = 1_000_000_000


def _frames() -> list[bytes]:
    v6 = w.ipv6("fd00::1", "fd00::2", 58, w.icmp(1), extensions=[(0, b"\0" * 7), (44, b"\0\0\1" + b"\0" * 4)])
    return [
        w.ethernet(w.ipv4("192.168.1.5", "203.0.113.7", 6, w.tcp(40_000, 1883, w.SYN, payload=b"\x30\x02ab"))),
        w.ethernet(w.ipv4("192.168.1.5", "192.168.1.1", 17, w.udp(40_000, 53, w.dns_query("a.example.net")))),
        w.ethernet(v6, vlans=[0x8100]),
        w.ethernet(w.arp("192.168.1.5", "192.168.1.9"), ethertype=0x0806),
        w.ethernet(w.ipv4("192.168.1.6", "192.168.1.5", 6, b"\0" * 9, options=b"\1" * 8, fragment=0x0010)),
    ]


RECORDS = [w.Record((1_700_000_000 + i // 2) * NS, frame) for i, frame in enumerate(_frames() * 4)]
SOUND = [
    w.pcap(RECORDS),
    w.pcap(RECORDS, order=">", nanoseconds=True),
    w.section()
    + w.interface(resolution=9)
    + b"".join(w.enhanced(r.frame, r.time_ns) for r in RECORDS)
    + w.section(">")
    + w.interface(order=">", resolution=0x80 | 16)
    + b"".join(w.enhanced(r.frame, (r.time_ns << 16) // NS, ">") + w.simple(r.frame, ">") for r in RECORDS),
]
SOUND += [gzip.compress(SOUND[0]), lzma.compress(SOUND[2])]

DAMAGE = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 1 << 14), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 14), st.integers(1, 400)),
    st.tuples(st.just("insert"), st.integers(0, 1 << 14), st.integers(1, 9)),
    st.tuples(st.just("word"), st.integers(0, 1 << 14), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("end"), st.integers(0, 1 << 14), st.just(0)),
)


def damage(data: bytes, how: list[tuple[str, int, int]]) -> bytes:
    changed = bytearray(data)
    for kind, place, value in how:
        at = place % (len(changed) + 1)
        if kind == "set" and at < len(changed):
            changed[at] = value
        elif kind == "cut":
            del changed[at : at + value]
        elif kind == "insert":
            changed[at:at] = b"\xff" * value
        elif kind == "word":
            changed[at : at + 4] = bytes([value] * 4)
        elif kind == "end":
            del changed[at:]
    return bytes(changed)


def drain(source: CaptureFile, packets_max: int, reads: int = 10_000) -> int:
    """Read to the end or to the error; packets delivered."""
    windower, packets = NetworkWindower(), 0
    for _ in range(reads):
        try:
            batch = source.read(packets_max)
        except SourceError:
            break
        if batch is None:
            break
        packets += len(batch)
        windower.push(batch)
        assert len(source._buffer) <= BUFFER_BYTES_MAX
    else:
        raise AssertionError("the source does not end")
    windower.flush()
    return packets


@settings(max_examples=250)
@given(st.sampled_from(SOUND), st.lists(DAMAGE, max_size=4), st.integers(1, 50))
def test_damaged_captures_give_only_declared_errors(
    sound: bytes, how: list[tuple[str, int, int]], packets_max: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture"
        path.write_bytes(damage(sound, how))
        source = CaptureFile(path)
        packets = drain(source, packets_max)
        assert packets <= 4 * len(RECORDS)
        assert source.counters()["packets"] == packets
        if not how:
            assert packets >= len(RECORDS)
        # What came before the fault does not depend on how it was asked for.
        assert drain(CaptureFile(path), 10_000) == packets
        source.close()


@settings(max_examples=60)
@given(st.sampled_from(SOUND[:3]), st.lists(DAMAGE, max_size=2), st.integers(1, 9), st.integers(0, 6))
def test_a_restart_in_a_damaged_capture_loses_and_repeats_nothing(
    sound: bytes, how: list[tuple[str, int, int]], packets_max: int, reads: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture"
        path.write_bytes(damage(sound, how))
        whole = drain(CaptureFile(path), packets_max)
        first, before = CaptureFile(path), 0
        for _ in range(reads):
            try:
                batch = first.read(packets_max)
            except SourceError:
                return
            if batch is None:
                return
            before += len(batch)
        second = CaptureFile(path)
        second.seek(Position.from_json(first.position().to_json()))
        assert before + drain(second, packets_max) == whole


@settings(max_examples=60)
@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:24] for data in SOUND)]))
def test_noise_is_no_capture(noise: bytes, head: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture"
        path.write_bytes(head + noise)
        drain(CaptureFile(path), 100)
