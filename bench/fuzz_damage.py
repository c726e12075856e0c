"""How `fuzz.py` damages inputs: bits, lengths, magic numbers, words, cuts, copies, and splices of two.

Source: the stages *havoc* and *splice* of AFL (Zalewski, *technical details*, §6), with words for text parsers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np

INPUT_BYTES_MAX: Final = 300_000
"""Longest input: above the longest frame, line and payload that any parser takes."""
USUAL_BYTES_MAX: Final = 20_000
"""An input that is longer is damaged further only now and then, so that time goes into many inputs."""

Rng = np.random.Generator

MAGIC: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000, 0x3_FFFF, 0x4_0000, 0x4_0001,
                0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
WORDS: Final = (b"nan", b"-inf", b"1e999", b"1e308", b"-1e308", b"5e-324", b"-0", b"-1", b"9" * 20, b"9" * 5_000,
                b"0x7f", b"null", b"true", b"{}", b"[]", b'""', b"[" * 3_000, b'{"a":' * 300, b"\\u0000", b"\\ud800",
                b"\0", b"\xff", b"\xc0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b",",
                b'"', b"-", b":", b"#fields\t", b"#path\tdns", b"#separator \\x", b"::ffff:1.2.3.4%9", b"fe80::1%eth0",
                b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b"2023-02-31", b"1" + b"_1" * 9,
                b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\0\0\0\0\1", b"\xcb\x7f\xf8" + bytes(6),
                b"\x91" * 2_000, b"\xff\xff\xff\x7f", b"\x81\xa1v\x01")  # fmt: skip
"""What text parsers, JSON, msgpack and MQTT lengths stumble over."""


def _place(rng: Rng, data: bytearray, room: int = 0) -> int:
    return int(rng.integers(0, max(len(data) - room, 0) + 1))


def _piece(rng: Rng, data: bytes | bytearray, most: int = 400) -> bytes:
    at = int(rng.integers(0, len(data) + 1))
    return bytes(data[at : at + int(rng.integers(1, most))])


def _flip(rng: Rng, data: bytearray, _: bytes) -> None:
    for _i in range(1 << int(rng.integers(0, 4))):
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))


def _set(rng: Rng, data: bytearray, _: bytes) -> None:
    data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))


def _magic(rng: Rng, data: bytearray, _: bytes) -> None:
    width = 1 << int(rng.integers(0, 4))
    value = MAGIC[int(rng.integers(0, len(MAGIC)))] & (1 << 8 * width) - 1
    at = _place(rng, data, width)
    data[at : at + width] = value.to_bytes(width, "big" if rng.integers(0, 2) else "little")


def _length(rng: Rng, data: bytearray, _: bytes) -> None:
    """A number becomes a little larger or smaller, the length of what follows it, or some multiple."""
    width = 1 << int(rng.integers(0, 3))
    order: Literal["big", "little"] = "big" if rng.integers(0, 2) else "little"
    at = _place(rng, data, width)
    old, rest = int.from_bytes(data[at : at + width], order), len(data) - at - width
    new = (old + 1, old - 1, rest, rest + 1, rest - 1, old * 4, old << 8, -old)[int(rng.integers(0, 8))]
    data[at : at + width] = (new & (1 << 8 * width) - 1).to_bytes(width, order)


def _cut(rng: Rng, data: bytearray, _: bytes) -> None:
    at = _place(rng, data)
    del data[at : at + int(rng.integers(1, 60))]


def _truncate(rng: Rng, data: bytearray, _: bytes) -> None:
    if rng.integers(0, 4):
        del data[_place(rng, data) :]
    else:
        del data[: _place(rng, data)]


def _insert(rng: Rng, data: bytearray, _: bytes) -> None:
    at = _place(rng, data)
    data[at:at] = rng.bytes(int(rng.integers(1, 64)))


def _repeat(rng: Rng, data: bytearray, _: bytes) -> None:
    """A piece again behind itself: twice, or now and then thousands of times."""
    times = 1 + int(rng.integers(0, 4)) if rng.integers(0, 40) else int(rng.integers(100, 5_000))
    piece, at = _piece(rng, data), _place(rng, data)
    data[at:at] = piece * min(times, INPUT_BYTES_MAX // max(len(piece), 1))


def _move(rng: Rng, data: bytearray, _: bytes) -> None:
    piece, at = _piece(rng, data), _place(rng, data)
    data[at : at + len(piece)] = piece


def _splice(rng: Rng, data: bytearray, other: bytes) -> None:
    if rng.integers(0, 2):
        data[_place(rng, data) :] = other[int(rng.integers(0, len(other) + 1)) :]
    else:
        at = _place(rng, data)
        data[at:at] = _piece(rng, other)


def _word(rng: Rng, data: bytearray, _: bytes) -> None:
    at = _place(rng, data)
    data[at : at + int(rng.integers(0, 6))] = WORDS[int(rng.integers(0, len(WORDS)))]


def _number(rng: Rng, data: bytearray, _: bytes) -> None:
    """A decimal number becomes another word."""
    found = [match.span() for match in re.finditer(rb"-?\d[\d.]*", data[:USUAL_BYTES_MAX])]
    if found:
        at, end = found[int(rng.integers(0, len(found)))]
        data[at:end] = WORDS[int(rng.integers(0, 12))]


DAMAGE: Final[tuple[Callable[[Rng, bytearray, bytes], None], ...]] = (
    _flip, _flip, _set, _magic, _magic, _length, _length, _cut, _truncate, _insert, _repeat, _move, _splice, _word,
    _number,
)  # fmt: skip


def damaged(rng: Rng, seeds: Sequence[bytes], pool: Sequence[bytes]) -> bytes:
    """A sound input, or as often one of the pool, with one or more pieces of damage: half of the time it is one."""
    chosen = seeds if rng.integers(0, 2) else pool
    data = bytearray(chosen[int(rng.integers(0, len(chosen)))])
    for _ in range(int(rng.geometric(0.5))):
        if not data:
            break
        DAMAGE[int(rng.integers(0, len(DAMAGE)))](rng, data, pool[int(rng.integers(0, len(pool)))])
    return bytes(data[:INPUT_BYTES_MAX])
