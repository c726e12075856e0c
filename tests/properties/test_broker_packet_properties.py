"""The embedded broker's packet reader: reads back what is right, and says `PeerError` to everything else."""

from __future__ import annotations

import contextlib

import pytest
import raw_packets as raw
from hypothesis import given
from hypothesis import strategies as st

from vedette_broker import packets
from vedette_schemas.errors import PeerError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NAME = TEXT.filter(lambda t: t != "" and not set(t) & set("+#"))
ID = st.integers(1, 65535)


@given(NAME, st.binary(max_size=300), st.integers(0, 1), ID, st.booleans(), st.booleans())
def test_a_publish_is_read_back(topic: str, payload: bytes, qos: int, pid: int, retain: bool, dup: bool) -> None:
    data = packets.publish(
        topic, payload, qos, packet_id=pid if qos else None, retain=retain, duplicate=dup and bool(qos)
    )
    first, body = raw.split(data)
    assert packets.check_header(first, len(body), 10_000) == packets.PUBLISH
    assert packets.read_publish(first, body) == packets.Publish(topic, payload, qos, retain, pid if qos else 0)


@given(ID, st.lists(st.tuples(TEXT, st.integers(0, 2)), min_size=1, max_size=20))
def test_filters_are_read_back(pid: int, filters: list[tuple[str, int]]) -> None:
    body = pid.to_bytes(2, "big") + b"".join(raw.text(f) + bytes([q]) for f, q in filters)
    assert packets.read_filters(packets.SUBSCRIBE, body) == packets.Filters(pid, tuple(filters))
    body = pid.to_bytes(2, "big") + b"".join(raw.text(f) for f, _ in filters)
    assert packets.read_filters(packets.UNSUBSCRIBE, body).filters == tuple((f, 0) for f, _ in filters)


@given(TEXT.filter(bool), st.booleans(), st.integers(0, 65535), st.none() | st.tuples(NAME, st.binary(max_size=99)))
def test_a_connect_is_read_back(client: str, clean: bool, keepalive: int, will: tuple[str, bytes] | None) -> None:
    flags, rest = 2 * clean, raw.text(client)
    if will is not None:
        flags, rest = flags | 0x2C, rest + raw.text(will[0]) + raw.text(will[1])
    body = b"\x00\x04MQTT\x04" + bytes([flags]) + keepalive.to_bytes(2, "big") + rest
    expected = None if will is None else packets.Will(*will, qos=1, retain=True)
    assert packets.read_connect(body) == packets.Connect(client, clean, keepalive, expected)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_every_byte_string_is_read_or_refused(first: int, body: bytes) -> None:
    for prefix in (b"", b"\x00\x04MQTT\x04", b"\x00\x01"):
        with contextlib.suppress(PeerError):
            kind = packets.check_header(first, len(prefix + body), 1000)
            match kind:
                case packets.CONNECT:
                    packets.read_connect(prefix + body)
                case packets.PUBLISH:
                    found = packets.read_publish(first, prefix + body)
                    assert found.topic
                    assert bool(found.packet_id) == bool(found.qos)
                case packets.PUBACK:
                    assert packets.read_puback(prefix + body)
                case packets.SUBSCRIBE | packets.UNSUBSCRIBE:
                    assert packets.read_filters(kind, prefix + body).filters
                case _:
                    packets.read_nothing(prefix + body)
                    assert prefix + body == b""


@given(st.data())
def test_a_packet_that_is_cut_or_longer_is_refused(data: st.DataObject) -> None:
    body = b"\x00\x04MQTT\x04\xee\x00\x3c" + b"".join(
        raw.text(t) for t in (b"dev-a", b"a/b", b"will", b"user", b"word")
    )
    packets.read_connect(body)
    at = data.draw(st.integers(0, len(body) - 1))
    more = data.draw(st.binary(min_size=1, max_size=5))
    for wrong in (body[:at], body + more):
        with pytest.raises(PeerError):
            packets.read_connect(wrong)


@given(st.integers(0, 300_000))
def test_lengths_are_written_as_they_are_read(size: int) -> None:
    first, body = raw.split(packets.publish("t", bytes(size), 0))
    assert (first, len(body)) == (0x30, size + 3)
