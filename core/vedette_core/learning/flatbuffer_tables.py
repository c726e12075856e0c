"""Bounds-checked access to the tables of a flatbuffer, for bytes that nobody vouches for.

Every offset is checked before it is followed and every vector before it is walked, so that a damaged file ends in a
`PeerError` and never in a loop, a crash or an allocation that it asked for.

Source: FlatBuffers binary format (flatbuffers.dev, "FlatBuffer Internals").
"""

from __future__ import annotations

import struct
from typing import Final

from vedette_schemas.errors import PeerError

VECTOR_LENGTH_MAX: Final = 4096
"""Entries of a vector that is walked: tensors and buffers of the deepest spec are below 100, scales below 1,025."""


class FlatbufferTables:
    """Reads a flatbuffer without building anything of it. Positions are absolute, fields are the schema's numbers.

    Args:
        data: the whole file.

    Raises:
        PeerError: in every method: an offset, a length or a number that the file has no room for.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data

    def offset(self, position: int) -> int:
        """Follow the relative offset at `position`."""
        return position + self._number("<I", position)

    def tables(self, table: int, field: int) -> list[int]:
        """Positions of the tables in a vector of tables; empty if the field is absent."""
        start, length = self._vector(table, field, 4)
        return [self.offset(start + 4 * i) for i in range(length)]

    def table(self, table: int, field: int) -> int | None:
        """Position of a table that a field refers to; None if it is absent."""
        place = self._field(table, field)
        return None if place is None else self.offset(place)

    def bytes_field(self, table: int, field: int) -> bytes:
        """A string or byte vector; empty if the field is absent."""
        place = self._field(table, field)
        if place is None:
            return b""
        start = self.offset(place)
        length = self._number("<I", start)
        if start + 4 + length > len(self._data):
            raise damaged(f"{length} bytes at {start}", f"them to end before {len(self._data)}")
        return self._data[start + 4 : start + 4 + length]

    def integers(self, table: int, field: int, code: str = "<i") -> tuple[int, ...]:
        """A vector of integers of the struct code; empty if the field is absent."""
        start, length = self._vector(table, field, struct.calcsize(code))
        return tuple(self._number(code, start + struct.calcsize(code) * i) for i in range(length))

    def floats(self, table: int, field: int) -> tuple[float, ...]:
        """A vector of float32; empty if the field is absent."""
        start, length = self._vector(table, field, 4)
        return struct.unpack_from(f"<{length}f", self._data, start) if length else ()

    def number(self, table: int, field: int, code: str = "<I") -> int:
        """An integer of the struct code; 0, the schema's default, if the field is absent."""
        place = self._field(table, field)
        return 0 if place is None else self._number(code, place)

    def _vector(self, table: int, field: int, size: int) -> tuple[int, int]:
        """Where a vector's first entry lies, and how many there are; all of them within the file."""
        place = self._field(table, field)
        if place is None:
            return 0, 0
        start = self.offset(place)
        length = self._number("<I", start)
        if length > VECTOR_LENGTH_MAX:
            raise damaged(f"a vector of {length} entries", f"at most {VECTOR_LENGTH_MAX}")
        if start + 4 + size * length > len(self._data):
            raise damaged(f"{length} entries at {start}", f"them to end before {len(self._data)}")
        return start + 4, length

    def _field(self, table: int, field: int) -> int | None:
        vtable = table - self._number("<i", table)
        if 4 + 2 * field >= self._number("<H", vtable):
            return None
        relative = self._number("<H", vtable + 4 + 2 * field)
        return table + relative if relative else None

    def _number(self, code: str, position: int) -> int:
        if position < 0 or position + struct.calcsize(code) > len(self._data):
            raise damaged(f"an offset to {position}", f"0 to {len(self._data)}")
        return int(struct.unpack_from(code, self._data, position)[0])


def damaged(found: str, expected: str) -> PeerError:
    """What a model is refused with: what was found in its bytes, and what should have been there."""
    return PeerError(f"model: found {found}, expected {expected}", reason="schema")
