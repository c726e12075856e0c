"""Readings from a CSV file: plain, compressed, or still growing."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from vedette_device.sources.byte_stream import ByteStream, open_stream
from vedette_device.sources.errors import RowsError, SourceError
from vedette_device.sources.interface import HEAD_BYTES_MAX, Position, SampleBatch, head_digest

ROWS_READ_DEFAULT = 1_024
"""Rows in one batch."""

LINE_BYTES_MAX = 65_536
"""Longest line: 256 columns of 255 characters. A longer one means that the file is no table of readings."""

READ_BYTES = 1 << 16

REFUSALS_KEPT = 32
"""Refused rows that are kept for the operator to see; all of them are counted."""

BACKWARDS_ROWS_MAX = 32
"""Rows in succession that may lie before the newest time; then the clock was set back, and the series starts anew."""

COUNTERS = ("rows", "not_a_number", "not_finite", "missing_value", "time_backwards", "clock_steps", "rotations")
"""What ``CsvFile.counters`` holds: rows delivered, and refused rows by reason."""


@dataclass(frozen=True, slots=True)
class RowRefusal:
    """Why one row was left out.

    Attributes:
        row: line number in the file; the header is line 1.
        column: name of the column at fault.
        reason: one of ``COUNTERS``.
        found: the text that was there, shortened.
    """

    row: int
    column: str
    reason: str
    found: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column!r}: found {self.found!r} ({self.reason}), expected a finite number"


class CsvFile:
    """Rows of a CSV file with a header line.

    A row with a missing, unreadable or non-finite value is left out whole and counted: a value that was made up would
    be a reading that no sensor gave. The same holds for a row that is not later than the one before. Line breaks
    inside quotes are not supported.

    Args:
        path: the file; plain, gzip or xz by its first bytes.
        columns: names of the columns to read, in the order of the channels; empty for all but the time column.
        time_column: name of the column with the time.
        time_format: ``"seconds"`` for a number, ``"iso8601"`` for a date and time (UTC where no zone is given).
        delimiter: one character.
        follow: whether another program still appends to the file.

    Raises:
        SourceError: the file is missing, unreadable, or compressed and to be followed.
        RowsError: the header lacks a column (raised by the first ``read``).
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[str] = (),
        *,
        time_column: str = "time_s",
        time_format: Literal["seconds", "iso8601"] = "seconds",
        delimiter: str = ",",
        follow: bool = False,
    ) -> None:
        if len(delimiter) != 1:
            raise RowsError(f"delimiter of {path} is {delimiter!r}, expected one character")
        self._path = Path(path)
        self._wanted = tuple(columns)
        self._time_column, self._time_format = time_column, time_format
        self._delimiter, self._follow = delimiter, follow
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.refusals: deque[RowRefusal] = deque(maxlen=REFUSALS_KEPT)
        self._stream: ByteStream | None = self._opened()
        self._start_over()

    def _opened(self) -> ByteStream:
        stream = open_stream(self._path)
        if self._follow and stream.compressed:
            stream.close()
            raise SourceError(f"{self._path} is compressed, and a growing file must be plain; read it without follow")
        return stream

    def _start_over(self) -> None:
        self._lines: deque[bytes] = deque()
        self._tail = b""
        self._head = b""
        self._offset = 0
        self._row = 0
        self._header: tuple[str, ...] = ()
        self._places: tuple[int, ...] = ()
        self._time_place = 0
        self._last_time_s = -math.inf
        self._backwards = 0
        self._fault: SourceError | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels; reads the header if that was not yet done.

        Raises:
            RowsError: the header is missing or lacks a column.
        """
        if not self._header and self._fault is None:
            self._read_header()
        if self._fault is not None and not self._header:
            raise self._fault
        return self._wanted

    def read(self, rows_max: int = ROWS_READ_DEFAULT) -> SampleBatch | None:
        """Return the next rows; see ``SampleSource.read``.

        Raises:
            RowsError: the header lacks a column, or the file is no text.
            SourceError: the compressed data is damaged from here on.
        """
        if self._stream is None:
            return None
        if not self._header and self._fault is None:
            self._read_header()
        times: list[float] = []
        values: list[list[float]] = []
        ended = not self._header
        channels = self._wanted
        while self._header and len(times) < max(rows_max, 1):
            line = self._next_line()
            if line is None:
                ended = True
                break
            row = self._parse(line)
            if row is not None:
                times.append(row[0])
                values.append(row[1])
        if not times and ended:
            if self._fault is not None:
                raise self._fault
            if not self._follow:
                return None
        self._counters["rows"] += len(times)
        return SampleBatch(
            channels=channels,
            time_s=np.array(times, dtype=np.float64),
            values=np.array(values, dtype=np.float64).reshape(len(times), len(channels)),
        )

    def _read_header(self) -> None:
        line = self._next_line()
        if line is None:
            if not self._follow and self._fault is None:
                self._fault = RowsError(f"{self._path} is empty, expected a header line with {self._time_column!r}")
            return
        try:
            self._take_header(line)
        except RowsError as error:
            self._fault = error

    def _take_header(self, line: bytes) -> None:
        try:
            names = self._split(line.decode("utf-8-sig"))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RowsError(f"{self._path}: the header line is no text ({error}), expected CSV in UTF-8") from error
        names = [name.strip() for name in names]
        wanted = self._wanted or tuple(name for name in names if name != self._time_column)
        missing = [name for name in (self._time_column, *wanted) if name not in names]
        repeated = sorted({name for name in (self._time_column, *wanted) if names.count(name) > 1})
        if missing or repeated or not wanted:
            fault = f"lacks column {', '.join(map(repr, missing))}" if missing else "has no columns to read"
            if repeated:
                fault = f"has column {', '.join(map(repr, repeated))} more than once"
            raise RowsError(
                f"{self._path} {fault}; found: {', '.join(names)[:500]}; set time_column and columns to what is there "
                f"(delimiter is {self._delimiter!r})"
            )
        self._header, self._wanted = tuple(names), wanted
        self._time_place = names.index(self._time_column)
        self._places = tuple(names.index(name) for name in wanted)

    def _split(self, text: str) -> list[str]:
        return next(csv.reader([text], delimiter=self._delimiter), [])

    def _next_line(self) -> bytes | None:
        """The next whole line, or ``None`` when there is none at present."""
        while not self._lines:
            if self._fault is not None or self._stream is None or not self._refill():
                return None
        line = self._lines.popleft()
        self._offset += len(line)
        self._row += 1
        return line

    def _refill(self) -> bool:
        assert self._stream is not None
        try:
            data = self._stream.read(READ_BYTES)
        except SourceError as error:
            self._fault = error
            data = b""
        if len(self._head) < HEAD_BYTES_MAX:
            self._head += data[: HEAD_BYTES_MAX - len(self._head)]
        if not data:
            if self._follow and self._fault is None:
                return self._rotated()
            if self._fault is not None or not self._tail:
                return False
            self._lines.append(self._tail)  # the last line needs no line break
            self._tail = b""
            return True
        lines = (self._tail + data).splitlines(keepends=True)
        self._tail = b"" if lines[-1].endswith(b"\n") else lines.pop()  # a lone "\r" may be half of a line break
        if len(self._tail) > LINE_BYTES_MAX:
            self._fault = RowsError(
                f"{self._path}: line {self._row + len(lines) + 1} has more than {LINE_BYTES_MAX} bytes; "
                "expected a table of readings"
            )
        self._lines.extend(lines)
        return True

    def _rotated(self) -> bool:
        """Whether another file took the path or this one became shorter; it is then read from its start."""
        assert self._stream is not None
        try:
            status = self._path.stat()
            same = (status.st_dev, status.st_ino) == self._stream.file_number()
            if same and status.st_size >= self._stream.offset_bytes:
                return False
            stream = self._opened()
        except OSError:
            return False  # moved away, and the new file is not there yet
        except SourceError as error:
            self._fault = error
            return False
        self._stream.close()
        self._stream = stream
        self._start_over()
        self._counters["rotations"] += 1
        return False  # the next read starts with the new header

    def _parse(self, line: bytes) -> tuple[float, list[float]] | None:
        if not line.strip():
            return None
        try:
            cells = self._split(line.decode("utf-8"))
        except (UnicodeDecodeError, csv.Error) as error:
            return self._refused(self._header[0], "not_a_number", str(error))
        if self._time_place >= len(cells):
            return self._refused(self._time_column, "missing_value", "")
        time_s = self._time(cells[self._time_place].strip())
        if time_s is None:
            return self._refused(self._time_column, "not_a_number", cells[self._time_place])
        row: list[float] = []
        for name, place in zip(self._wanted, self._places, strict=True):
            text = cells[place].strip() if place < len(cells) else ""
            if not text:
                return self._refused(name, "missing_value", text)
            try:
                value = float(text)
            except ValueError:
                return self._refused(name, "not_a_number", text)
            if not math.isfinite(value):
                return self._refused(name, "not_finite", text)
            row.append(value)
        if time_s <= self._last_time_s:
            self._backwards += 1
            if self._backwards <= BACKWARDS_ROWS_MAX:
                return self._refused(self._time_column, "time_backwards", cells[self._time_place])
            self._counters["clock_steps"] += 1
        self._backwards = 0
        self._last_time_s = time_s
        return time_s, row

    def _time(self, text: str) -> float | None:
        try:
            if self._time_format == "seconds":
                time_s = float(text)
            else:
                moment = datetime.fromisoformat(text)
                time_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
        return time_s if math.isfinite(time_s) else None

    def _refused(self, column: str, reason: str, found: str) -> tuple[float, list[float]] | None:
        self._counters[reason] += 1
        self.refusals.append(RowRefusal(self._row, column, reason, found[:40]))
        return None

    def position(self) -> Position:
        """Where to go on after a restart: behind the last row that ``read`` returned."""
        return Position(
            offset_bytes=self._offset,
            records=self._row,
            head_bytes=len(self._head),
            head_digest=head_digest(self._head),
            context=json.dumps({"last_time_s": None if math.isinf(self._last_time_s) else self._last_time_s}),
        )

    def seek(self, position: Position) -> None:
        """Go to a position that ``position`` returned, on a source that was just opened.

        Raises:
            SourceError: the file is another one or has become shorter.
        """
        if self._stream is None or self._stream.offset_bytes:
            raise RuntimeError("seek() is only for a source that was just opened")
        if not position.offset_bytes:
            return
        if position.head_bytes > HEAD_BYTES_MAX:
            raise SourceError(f"stored position covers {position.head_bytes} bytes, expected at most {HEAD_BYTES_MAX}")
        try:
            last = json.loads(position.context)["last_time_s"]
            last_time_s = -math.inf if last is None else float(last)
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(f"stored position is no position in a CSV file: {error}") from error
        self._read_header()
        if self._fault is not None:
            raise self._fault
        if head_digest(self._head[: position.head_bytes]) != position.head_digest:
            raise SourceError(
                f"{self._path} is not the file that was read before (its first {position.head_bytes} bytes differ)"
            )
        while self._offset < position.offset_bytes:
            if self._next_line() is None:
                raise SourceError(
                    f"{self._path} has {self._offset} bytes of whole lines, expected at least {position.offset_bytes} "
                    "as at the last stop"
                )
        if self._offset != position.offset_bytes:
            raise SourceError(f"{self._path}: no line ends at byte {position.offset_bytes}, where the last stop was")
        self._last_time_s = last_time_s

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    def close(self) -> None:
        """Release the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
