"""What can be wrong with an input. The operator chose the input, so every one of them is a configuration error.

An error is raised only after everything that was good before the fault has been delivered.
"""

from __future__ import annotations

from vedette_schemas.errors import ConfigError


class SourceError(ConfigError):
    """An input cannot be read, or not any further."""


class CaptureFormatError(SourceError):
    """The file is no capture, or stops being one at some byte."""


class CaptureTruncatedError(SourceError):
    """The file ends inside a record.

    Attributes:
        offset_bytes: where the unfinished record starts (in the uncompressed stream).
        found_bytes: bytes of it that are there.
        expected_bytes: bytes that it needs.
    """

    def __init__(self, message: str, *, offset_bytes: int, found_bytes: int, expected_bytes: int) -> None:
        super().__init__(message)
        self.offset_bytes = offset_bytes
        self.found_bytes = found_bytes
        self.expected_bytes = expected_bytes


class LinkTypeError(SourceError):
    """The capture was made on a kind of link that the parser does not know."""


class RowsError(SourceError):
    """A table of readings lacks a column, or is no table."""
