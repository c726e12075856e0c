"""The one interface of all sources: polled, resumable, and with a counter for whatever was refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.errors import SourceError
from vedette_device.sources.packets import PacketBatch

PACKETS_READ_DEFAULT = 8_192
"""Packets in one batch: enough to spread the cost of a numpy call, few enough to score within milliseconds."""

PACKETS_READ_MAX = 65_536
"""Most packets in one batch: bounds the memory of a read to some ten megabytes."""

HEAD_BYTES_MAX = 64
"""Bytes at the start of a file that identify it: a capture's header and its first packet's time stamp."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a file source goes on after a restart.

    Attributes:
        offset_bytes: first byte not yet delivered, in the uncompressed stream.
        records: records delivered so far.
        head_bytes: how many bytes at the start of the file ``head_digest`` covers.
        head_digest: SHA-256 of them, so that a replaced file is noticed.
        context: what the format needs to go on in the middle (pcapng interfaces, CSV header), as JSON.
    """

    offset_bytes: int
    records: int
    head_bytes: int
    head_digest: str
    context: str

    def to_json(self) -> str:
        """Encode for the device's store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Position:
        """Decode what ``to_json`` wrote.

        Raises:
            SourceError: the text is not a position.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            position = cls(**fields)
        except (ValueError, TypeError, RecursionError) as error:
            raise SourceError(f"stored position is unreadable ({error}); start the source anew") from error
        numbers = (position.offset_bytes, position.records, position.head_bytes)
        words = (position.head_digest, position.context)
        if not all(type(n) is int and n >= 0 for n in numbers) or not all(isinstance(w, str) for w in words):
            raise SourceError("stored position has a field of the wrong type; start the source anew")
        return position


def head_digest(head: bytes) -> str:
    """SHA-256 of the start of a file, in hexadecimal."""
    return hashlib.sha256(head).hexdigest()


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Sensor rows in the order of their time.

    Attributes:
        channels: names of the ``c`` channels.
        time_s: ``(n,) float64``, seconds since the epoch (or the file's own zero), increasing.
        values: ``(n, c) float64``, always finite.
    """

    channels: tuple[str, ...]
    time_s: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.time_s)


class PacketSource(Protocol):
    """Packets from a file or an interface.

    From asyncio, poll ``read`` (it never waits for data; a read from a file takes some milliseconds) and sleep when
    a batch is empty, or register ``fileno()`` of a live source with the loop.
    """

    def read(self, packets_max: int = PACKETS_READ_DEFAULT) -> PacketBatch | None:
        """Return the next packets, an empty batch when there is nothing yet, ``None`` at the end.

        Raises:
            SourceError: the input is broken at this point; all before it has been delivered.
            TransientError: the input is away (an interface that went down); try again later.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Counts since the start: ``packets`` delivered, and what was refused, by reason (a fixed set)."""
        ...

    def close(self) -> None:
        """Release the file or socket. May be called twice."""
        ...


class SampleSource(Protocol):
    """Sensor rows from a file."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the values."""
        ...

    def read(self, rows_max: int = ...) -> SampleBatch | None:
        """Return the next rows, an empty batch when there is nothing yet, ``None`` at the end.

        Raises:
            SourceError: the input is broken at this point; all before it has been delivered.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Counts since the start: ``rows`` delivered, and what was refused, by reason (a fixed set)."""
        ...

    def close(self) -> None:
        """Release the file. May be called twice."""
        ...
