"""The vectorised parser says the same as a plain one, of sound packets and of any damage to them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import capture_writing as w
from reference_dissection import LINKS, dissect_one

from vedette_device.sources.dissect import REFUSED_REASONS, dissect
from vedette_device.sources.packets import Frames, PacketBatch, padded

V4 = st.sampled_from(["192.168.1.5", "10.0.0.9", "203.0.113.7", "255.255.255.255", "0.0.0.0"])
V6 = st.sampled_from(["fd00::1", "fe80::2", "2001:db8::3", "ff02::fb"])
PORTS = st.sampled_from([53, 1883, 8883, 443, 50_000, 0])
NAMES = st.lists(st.text("abcxyz-", min_size=1, max_size=63), max_size=8).map(".".join)
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    NAMES.map(w.dns_query),
    NAMES.map(lambda name: b"\0\x20" + w.dns_query(name)),
    st.sampled_from([b"\x30\x02ab", b"\x82\x01", b"\x16\x03\x01", b"\xc0\0", b"\x36\0"]),
)


@st.composite
def transports(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.sampled_from(["tcp", "udp", "icmp", "icmp6", "other"]))
    if kind == "tcp":
        options = b"\1" * (4 * draw(st.integers(0, 3)))
        flags, seq = draw(st.integers(0, 255)), draw(st.integers(0, 2**32 - 1))
        return 6, w.tcp(draw(PORTS), draw(PORTS), flags, seq=seq, payload=draw(PAYLOADS), options=options)
    if kind == "udp":
        return 17, w.udp(draw(PORTS), draw(PORTS), draw(PAYLOADS))
    if kind == "other":
        return draw(st.integers(0, 255)), draw(st.binary(max_size=20))
    return (1 if kind == "icmp" else 58), w.icmp(draw(st.integers(0, 255)))


EXTENSIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0, 43, 60]), st.integers(0, 2).map(lambda n: bytes([n]) + b"\0" * (6 + 8 * n))),
        st.tuples(st.just(51), st.integers(0, 2).map(lambda n: bytes([n * 2]) + b"\0" * (6 + 8 * n))),
        st.tuples(st.just(44), st.sampled_from([0, 8, 0xFFF8]).map(lambda o: b"\0" + o.to_bytes(2, "big") + b"\0" * 4)),
    ),
    max_size=10,
)


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, bytes, int]:
    """(link type, frame, wire length), sound or damaged."""
    link = draw(st.sampled_from(sorted(LINKS)))
    kind = draw(st.sampled_from(["v4", "v4", "v6", "arp"]))
    if kind == "arp":
        network, ethertype = w.arp(draw(V4), draw(V4)), 0x0806
    elif kind == "v4":
        protocol, body = draw(transports())
        network = w.ipv4(
            draw(V4),
            draw(V4),
            protocol,
            body,
            options=b"\1" * (4 * draw(st.integers(0, 10))),
            fragment=draw(st.sampled_from([0, 0, 0x2000, 0x4000, 0x0010])),
            total=draw(st.sampled_from([None, None, None, 0, 20, 60_000])),
        )
        ethertype = 0x0800
    else:
        protocol, body = draw(transports())
        network, ethertype = w.ipv6(draw(V6), draw(V6), protocol, body, extensions=draw(EXTENSIONS)), 0x86DD
    if link == 1:
        vlans = draw(st.lists(st.sampled_from([0x8100, 0x88A8, 0x9100]), max_size=5))
        frame = w.ethernet(network, ethertype=ethertype, vlans=vlans) + b"\0" * draw(st.integers(0, 6))
    elif link in (113, 276):
        frame = (w.sll if link == 113 else w.sll2)(network, ethertype)
    else:
        frame = network
    wire = len(frame) + draw(st.sampled_from([0, 0, 0, -1, -30, 900]))
    damaged = bytearray(frame)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)):
        if damaged:
            damaged[at % len(damaged)] = value
    cut = draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    return link, bytes(damaged[:cut]), max(wire, 0)


def batch_of(described: list[tuple[int, bytes, int]]) -> Frames:
    data = b"".join(frame for _, frame, _ in described)
    lengths = np.array([len(frame) for _, frame, _ in described], dtype=np.int64)
    return Frames(
        data=padded(data),
        start=np.cumsum(lengths) - lengths,
        captured=lengths,
        wire=np.array([wire for _, _, wire in described], dtype=np.int64),
        time_ns=np.arange(len(described), dtype=np.int64),
        link=np.array([link for link, _, _ in described], dtype=np.int64),
    )


@settings(max_examples=200)
@given(st.lists(frames(), min_size=1, max_size=5))
def test_every_field_equals_the_plain_parser(described: list[tuple[int, bytes, int]]) -> None:
    batch, refused = dissect(batch_of(described))
    expected = [dissect_one(frame, wire, link) for link, frame, wire in described]
    packets = [(i, packet) for i, packet in enumerate(expected) if isinstance(packet, dict)]
    assert batch.time_ns.tolist() == [i for i, _ in packets]
    for name in packets[0][1] if packets else ():
        assert getattr(batch, name).tolist() == [packet[name] for _, packet in packets], name
    reasons = Counter(reason for reason in expected if isinstance(reason, str))
    assert {reason: n for reason, n in refused.items() if reason != "short_transport"} == reasons
    assert set(refused) <= set(REFUSED_REASONS)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(sorted(LINKS)), st.binary(max_size=120), st.integers(0, 2000)), max_size=8))
def test_noise_is_read_the_same_way(described: list[tuple[int, bytes, int]]) -> None:
    batch, _ = dissect(batch_of(described))
    expected = [dissect_one(frame, wire, link) for link, frame, wire in described]
    assert batch.size.tolist() == [packet["size"] for packet in expected if isinstance(packet, dict)]
    assert batch.protocol.tolist() == [packet["protocol"] for packet in expected if isinstance(packet, dict)]


def test_no_frames_give_an_empty_batch() -> None:
    batch, refused = dissect(batch_of([]))
    assert len(batch) == 0
    assert refused == {}
    assert len(PacketBatch.concatenate([])) == 0
