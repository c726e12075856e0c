"""MQTT packets taken apart for tests, independently of the code that is tested."""

from __future__ import annotations

import struct


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def split(data: bytes) -> tuple[int, bytes]:
    """First byte and body of exactly one packet."""
    count, at = 0, 1
    while True:
        count += (data[at] & 127) * 128 ** (at - 1)
        at += 1
        if data[at - 1] < 128:
            break
    assert len(data) == at + count
    return data[0], data[at:]
