"""Feature hashing: counts of names that nobody listed beforehand, in a row of fixed width.

A name (a process, a topic, a system call) falls into one of `width` columns, with a sign, both from a keyed hash. Two
names that meet in a column add up or cancel, and on the average over keys an inner product of two rows is that of the
counts. The key is the site's: devices that learn together must share it, or they would average columns of different
names; whoever does not know it cannot choose names that cancel each other.

Source: Weinberger et al. 2009, arXiv 0902.2206, section 2; BLAKE2b: RFC 7693 (keyed, personalised).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import ConfigError
from vedette_schemas.features import COLUMNS_MAX, FeatureSchema, behaviour_schema

KEY_BYTES_MIN: Final = 16
KEY_BYTES_MAX: Final = 64
"""What BLAKE2b takes."""
COUNT_MAX: Final = 2**40
"""Largest count of a name: a million million events in a window; a row of `NAMES_MAX` of them stays below 2⁶²."""
NAMES_MAX: Final = 65_536
"""Most names in a window: process identifiers of a whole system."""
KEY_ID_HEX: Final = 4
"""Digits in the columns' names that tell keys apart by mistake, not by attack: other keys, other feature schema."""
_NAME_PERSON: Final = b"vedette-name"
_KEY_PERSON: Final = b"vedette-key"


@dataclass(frozen=True, slots=True)
class FeatureHasher:
    """Puts names into columns.

    Attributes:
        width: number of columns, 2 to `COLUMNS_MAX`.
        key: of the site, `KEY_BYTES_MIN` to `KEY_BYTES_MAX` bytes.

    Raises:
        ConfigError: a width or key out of its range.
    """

    width: int
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.width <= COLUMNS_MAX:
            raise ConfigError(f"feature hashing: found {self.width} columns, expected 2 to {COLUMNS_MAX}")
        if not KEY_BYTES_MIN <= len(self.key) <= KEY_BYTES_MAX:
            raise ConfigError(
                f"feature hashing: found a key of {len(self.key)} bytes, expected {KEY_BYTES_MIN} to {KEY_BYTES_MAX}"
            )

    @property
    def mark(self) -> str:
        """`KEY_ID_HEX` hexadecimal digits that tell keys apart, and nothing of the key."""
        return hashlib.blake2b(b"", digest_size=8, key=self.key, person=_KEY_PERSON).hexdigest()[:KEY_ID_HEX]

    @property
    def schema(self) -> FeatureSchema:
        """What its rows are, as windows; schemas of other keys differ, by the mark in the columns' names."""
        return behaviour_schema(self.width, self.mark)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: they tell which key they were made with."""
        return self.schema.columns

    def place(self, name: str) -> tuple[int, int]:
        """Column (0 to `width` − 1) and sign (±1) of a name; surrogates of undecodable bytes are names as well."""
        encoded = name.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(encoded, digest_size=8, key=self.key, person=_NAME_PERSON).digest()
        number = int.from_bytes(digest, "little")
        # The sign has a bit of its own: taken from the column's bits it would be the same for all of a column.
        return (number & (2**63 - 1)) % self.width, 1 if number >> 63 else -1

    def row(self, counts: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """Signed sums of the counts, ``(width,)`` int64; the order of the names plays no part.

        Raises:
            ValueError: a count that is no integer from 0 to `COUNT_MAX`, or too many names.
        """
        if len(counts) > NAMES_MAX:
            raise ValueError(f"counts: found {len(counts)} names, expected at most {NAMES_MAX}")
        row = np.zeros(self.width, np.int64)
        for name, count in counts.items():
            if type(count) is not int or not 0 <= count <= COUNT_MAX:
                raise ValueError(f"count of {name!r}: found {count!r}, expected an integer from 0 to {COUNT_MAX}")
            column, sign = self.place(name)
            row[column] += sign * count
        return row


def signed_log1p(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``sign(x)·log(1 + |x|)``: counts, hashed ones included, where twice as many is a step of at most log 2."""
    x = np.asarray(counts, dtype=np.float64)
    return np.sign(x) * np.log1p(np.abs(x))
