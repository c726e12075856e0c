"""What changed in a release's file since the file it was made from: small where the release's parent is held already.

A diff is one byte of magic, one of layout, and a raw LZMA2 stream. In the stream are the differences of the two files
element by element (modulo 2ⁿ, folded so that small steps up and down are small numbers), the bytes of equal place in
their elements together: weights that moved a little leave high bytes of zero. Measured against zstd with the parent
as its dictionary, which finds few repetitions in weights that all moved: docs/adr/0019.

Nothing here is trusted: how long the result is, and its digest, come from signed metadata. The declared length bounds
what is unpacked, whatever the stream would give.

Source: LZMA2 through Python's ``lzma`` (liblzma); folding as in Protocol Buffers' ZigZag encoding.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vedette_schemas.errors import PeerError
from vedette_schemas.model import MODEL_BYTES_MAX

MAGIC: Final = 0xD1
HEADER_BYTES: Final = 2
ELEMENT_BYTES: Final = (1, 2, 4)
"""Levels of INT8, halves, and float32 or int32: what release files are made of."""
PLANES: Final = 4
"""Bytes that are laid together: the elements of a tensor stand at multiples of four in every format that we write."""
DICTIONARY_BYTES_MIN: Final = 4096
"""liblzma takes no less; more than the file is never needed, so the declared length bounds the memory, too."""
_UNSIGNED: Final[Mapping[int, np.dtype[Any]]] = {n: np.dtype(f"<u{n}") for n in ELEMENT_BYTES}
_SIGNED: Final[Mapping[int, np.dtype[Any]]] = {n: np.dtype(f"<i{n}") for n in ELEMENT_BYTES}

Elements = NDArray[np.unsignedinteger[Any]]


def make_diff(parent: bytes, child: bytes) -> bytes:
    """The smallest diff from which `apply_diff` makes the child.

    Every element size and alignment is tried; the weights file, for one, has its floats at any place. Takes some
    15 ms a try for 70 kB. The same files give the same diff.

    Args:
        parent: bytes that the receiver holds; may be of another length.
        child: what it shall have, 1 to `MODEL_BYTES_MAX` bytes.

    Raises:
        ValueError: a child of another length.
    """
    if not 1 <= len(child) <= MODEL_BYTES_MAX:
        raise ValueError(f"diff: found a file of {len(child)} bytes, expected 1 to {MODEL_BYTES_MAX}")
    layouts = [(size, offset) for size in ELEMENT_BYTES for offset in range(size)]
    made = (_pack(parent, child, size, offset) for size, offset in layouts)
    return min(made, key=lambda diff: (len(diff), diff))


def apply_diff(parent: bytes, diff: bytes, length: int) -> bytes:
    """Make the child; the caller checks its digest, for a diff of another parent gives other bytes.

    Args:
        parent: what the diff was made from.
        diff: bytes from `make_diff`; untrusted.
        length: of the child, from signed metadata: no more than that is unpacked.

    Raises:
        PeerError: it is no diff, or not one that gives exactly so many bytes; or `length` is out of range.
    """
    if not 1 <= length <= MODEL_BYTES_MAX:
        raise PeerError(f"diff: found a result of {length} bytes, expected 1 to {MODEL_BYTES_MAX}", reason="limit")
    if len(diff) <= HEADER_BYTES or diff[0] != MAGIC:
        raise PeerError(f"diff: found {len(diff)} bytes that begin with {diff[:1].hex()}, expected d1", reason="diff")
    size, offset = diff[1] >> 4, diff[1] & 0x0F
    if size not in ELEMENT_BYTES or offset >= size:
        raise PeerError(f"diff: found elements of {size} bytes from {offset}, expected 1, 2 or 4", reason="diff")
    return _restored(parent, _unpack(diff[HEADER_BYTES:], length), size, offset)


def _pack(parent: bytes, child: bytes, size: int, offset: int) -> bytes:
    end = _end(len(child), size, offset)
    before = _fitted(parent, len(child))
    old, new = (np.frombuffer(data[offset:end], _UNSIGNED[size]) for data in (before, child))
    stepped = _fold(new - old, size)
    edges = np.frombuffer(child[:offset] + child[end:], np.uint8) - np.frombuffer(
        before[:offset] + before[end:], np.uint8
    )
    plain = edges.tobytes() + _apart(stepped.tobytes())
    packed = lzma.compress(plain, format=lzma.FORMAT_RAW, filters=_filters(len(child)))
    return bytes((MAGIC, size << 4 | offset)) + packed


def _restored(parent: bytes, plain: bytes, size: int, offset: int) -> bytes:
    length = len(plain)
    end = _end(length, size, offset)
    before = _fitted(parent, length)
    count = length - len(before[offset:end])
    edges = np.frombuffer(plain[:count], np.uint8) + np.frombuffer(before[:offset] + before[end:], np.uint8)
    stepped = np.frombuffer(_together(plain[count:]), _UNSIGNED[size])
    old = np.frombuffer(before[offset:end], _UNSIGNED[size])
    at = edges.tobytes()
    return at[:offset] + (old + _unfold(stepped, size)).tobytes() + at[offset:]


def _unpack(stream: bytes, length: int) -> bytes:
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(length))
        plain = decoder.decompress(stream, max_length=length)
        # The end of the stream may come behind the last byte that is wanted; one more shows a stream that goes on.
        more = b"" if decoder.eof or decoder.needs_input else decoder.decompress(b"", max_length=1)
    except (lzma.LZMAError, EOFError) as fault:
        raise PeerError(f"diff: found a stream that cannot be unpacked ({fault})", reason="diff") from fault
    if more or len(plain) != length or not decoder.eof or decoder.unused_data:
        said = "more" if more else str(len(plain))
        raise PeerError(f"diff: found {said} bytes or no clean end, expected exactly {length}", reason="limit")
    return plain


def _filters(length: int) -> list[dict[str, Any]]:
    size = max(DICTIONARY_BYTES_MIN, 1 << (length - 1).bit_length())
    return [{"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME, "dict_size": size, "lc": 0, "lp": 0, "pb": 0}]


def _end(length: int, size: int, offset: int) -> int:
    """Where the last whole element ends; a file that is shorter than the offset has none."""
    return offset + max(0, length - offset) // size * size if length >= offset else length


def _fitted(parent: bytes, length: int) -> bytes:
    return parent[:length].ljust(length, b"\0")


def _fold(steps: Elements, size: int) -> Elements:
    """0, −1, 1, −2 … become 0, 1, 2, 3 …"""
    signed = steps.view(_SIGNED[size])
    folded: Elements = ((signed << 1) ^ (signed >> (8 * size - 1))).view(_UNSIGNED[size])
    return folded


def _unfold(folded: Elements, size: int) -> Elements:
    one = _UNSIGNED[size].type(1)
    found: Elements = (folded >> one) ^ (~(folded & one) + one)
    return found


def _apart(data: bytes) -> bytes:
    whole = len(data) // PLANES * PLANES
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, PLANES).T.tobytes() + data[whole:]


def _together(data: bytes) -> bytes:
    whole = len(data) // PLANES * PLANES
    return np.frombuffer(data[:whole], np.uint8).reshape(PLANES, -1).T.tobytes() + data[whole:]
