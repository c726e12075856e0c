"""Diffs of release files: the child comes out of any parent, and of any diff no more than was declared."""

from __future__ import annotations

import hashlib
import lzma
import struct
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.learning.artifact_diff import HEADER_BYTES, MAGIC, _filters, apply_diff, make_diff
from vedette_schemas.errors import PeerError
from vedette_schemas.model import MODEL_BYTES_MAX

FILES = st.binary(min_size=1, max_size=200)


@given(st.binary(max_size=200), FILES)
def test_the_child_comes_back(parent: bytes, child: bytes) -> None:
    diff = make_diff(parent, child)
    assert apply_diff(parent, diff, len(child)) == child
    assert make_diff(parent, child) == diff, "the same files give the same diff"


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=8, max_size=60), st.integers(0, 9), st.data())
def test_floats_at_any_place_that_moved_a_little(values: list[float], prefix: int, data: st.DataObject) -> None:
    head = bytes(prefix)
    old = head + b"".join(struct.pack("<f", v) for v in values)
    steps = data.draw(st.lists(st.integers(-300, 300), min_size=len(values), max_size=len(values)))
    words = [(int.from_bytes(struct.pack("<f", v), "little") + s) % 2**32 for v, s in zip(values, steps, strict=True)]
    new = head + b"".join(w.to_bytes(4, "little") for w in words)
    assert apply_diff(old, make_diff(old, new), len(new)) == new


@given(FILES, st.binary(max_size=300), st.integers(1, 400))
def test_damaged_diffs_raise_only_what_is_declared(parent: bytes, diff: bytes, length: int) -> None:
    for candidate in (diff, bytes((MAGIC, 0x10)) + diff, bytes((MAGIC, 0x42)) + diff):
        with suppress(PeerError):
            assert len(apply_diff(parent, candidate, length)) == length


@given(FILES, FILES, st.data())
def test_one_changed_bit_gives_other_bytes_or_a_refusal(parent: bytes, child: bytes, data: st.DataObject) -> None:
    diff = bytearray(make_diff(parent, child))
    at = data.draw(st.integers(0, len(diff) - 1))
    diff[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = apply_diff(parent, bytes(diff), len(child))
    except PeerError:
        return
    assert len(found) == len(child)  # the caller's digest decides


def test_another_parent_gives_another_digest() -> None:
    child = bytes(range(200))
    diff = make_diff(b"a" * 200, child)
    other = apply_diff(b"b" * 200, diff, 200)
    assert hashlib.sha256(other).digest() != hashlib.sha256(child).digest()


@pytest.mark.parametrize("length", [10, 4096, 100_000])
def test_a_bomb_stops_at_the_declared_length(length: int) -> None:
    """64 MiB of zeros in some 10 kB: neither the bytes nor the memory of them appear."""
    bomb = bytes((MAGIC, 0x10)) + lzma.compress(bytes(64 * 2**20), format=lzma.FORMAT_RAW, filters=_filters(length))
    assert len(bomb) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(PeerError, match="expected exactly") as refused:
            apply_diff(bytes(length), bomb, length)
        assert tracemalloc.get_traced_memory()[1] < 8 * length + 2**20
    finally:
        tracemalloc.stop()
    assert refused.value.reason == "limit"


@pytest.mark.parametrize("change", [lambda d: d + b"x", lambda d: d[:-1], lambda d: d[:HEADER_BYTES], lambda d: b""])
def test_what_is_cut_or_goes_on_is_refused(change: object) -> None:
    diff = make_diff(bytes(300), bytes(range(250)))
    with pytest.raises(PeerError):
        apply_diff(bytes(300), change(diff), 250)  # type: ignore[operator]


@pytest.mark.parametrize(("length", "wrong"), [(250, 249), (250, 251)])
def test_another_length_than_the_declared_one(length: int, wrong: int) -> None:
    diff = make_diff(bytes(300), bytes(length))
    with pytest.raises(PeerError) as refused:
        apply_diff(bytes(300), diff, wrong)
    assert refused.value.reason == "limit"


@pytest.mark.parametrize("layout", [0x00, 0x11, 0x22, 0x30, 0x44, 0x80, 0xFF])
def test_an_unknown_layout(layout: int) -> None:
    diff = bytearray(make_diff(b"a", b"b"))
    diff[1] = layout
    with pytest.raises(PeerError, match="expected 1, 2 or 4"):
        apply_diff(b"a", bytes(diff), 1)


@pytest.mark.parametrize("length", [0, -1, MODEL_BYTES_MAX + 1])
def test_a_length_out_of_range(length: int) -> None:
    with pytest.raises(PeerError, match="expected 1 to"):
        apply_diff(b"", make_diff(b"", b"x"), length)
    with pytest.raises(ValueError, match="expected 1 to"):
        make_diff(b"", bytes(max(0, length)) if length != -1 else b"")
