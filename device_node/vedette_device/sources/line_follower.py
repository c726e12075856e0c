"""Lines of a log: whole, compressed, or one that another program still writes, rotates and truncates.

Back-pressure is built in: nothing is read ahead but one chunk, and what nobody asks for waits in the file. Memory is
bounded by ``BUFFER_BYTES_MAX``, whatever the file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vedette_device.sources.byte_stream import ByteStream, open_stream
from vedette_device.sources.errors import SourceError

LINE_BYTES_MAX: Final = 65_536
"""Longest line that is delivered; a Suricata event with its payload has some 20 kB. The rest of a longer one is skipped
and the line counted: else a file without line breaks would fill the memory."""

READ_BYTES: Final = 1 << 16

BUFFER_BYTES_MAX: Final = READ_BYTES + LINE_BYTES_MAX
"""Most bytes of a file that are held at a time."""

SIBLINGS_MAX: Final = 4_096
"""Most files of the log's folder that are looked through for the one that was rotated away while the node was down."""

POSITION_BYTES_MAX: Final = 65_536
"""Largest stored position: almost all of it is the log's header."""

COUNTERS: Final = ("lines", "line_too_long", "rotations", "truncations", "position_lost", "lost_tail")
"""What ``LineFollower.counters`` holds: lines delivered, lines skipped, files that took the path, files that became
shorter, positions that fitted no file any more, and unfinished lines that a truncation took away."""


@dataclass(frozen=True, slots=True)
class LinePosition:
    """Where a followed log goes on after a restart.

    Attributes:
        inode: the file's inode, which a rename keeps.
        offset_bytes: first byte not yet delivered, in the uncompressed stream.
        line_bytes: how many bytes before it ``line_digest`` covers: those of the last line with its line break.
        line_digest: SHA-256 of them in hexadecimal, so that another file with a reused inode is noticed.
        context: what the parser needs to go on in the middle (a header).
    """

    inode: int
    offset_bytes: int
    line_bytes: int
    line_digest: str
    context: str = ""

    def to_bytes(self) -> bytes:
        """Encode for the device's store."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LinePosition:
        """Decode what ``to_bytes`` wrote.

        Raises:
            SourceError: it is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(data) if len(data) <= POSITION_BYTES_MAX else {}
            position = cls(**fields)
        except (ValueError, TypeError, RecursionError) as error:
            raise SourceError(f"stored position is unreadable ({error!s:.200}); start the source anew") from error
        numbers = (position.inode, position.offset_bytes, position.line_bytes)
        if (
            not all(type(n) is int and 0 <= n < 1 << 64 for n in numbers)
            or position.line_bytes > min(position.offset_bytes, LINE_BYTES_MAX)
            or not isinstance(position.line_digest, str)
            or not isinstance(position.context, str)
        ):
            raise SourceError("stored position has a field that cannot be; start the source anew")
        return position


class LineFollower:
    """Lines of one path, in order, each once.

    When another file takes the path (rotation), the old one is read to its end first and the new one from its start;
    a new file that is still empty does not count, as its writer may have the old one open yet. When the file itself
    becomes shorter (``copytruncate``), it is read from its start again. After a restart with a position, its line is
    looked for at the path and then in the neighbour with that inode, where a rotation moves a file; where neither has
    it, the path is read from its start, which is counted (``position_lost``).

    A *growing* file (``follow``) never ends, and an unfinished line at its end waits for the rest.

    Args:
        path: the file; without ``follow`` also gzip or xz, by its first bytes.
        follow: whether another program still appends to it.
        position: where to go on.

    Attributes:
        at_start: whether the lines that ``read`` returned last begin a file: who parses must forget the old header.

    Raises:
        SourceError: the file is missing, unreadable, or compressed and to be followed. With a position a missing one
            is waited for: a rotation may be under way.
        TransientError: it cannot be opened now.
    """

    def __init__(self, path: Path | str, *, follow: bool = False, position: LinePosition | None = None) -> None:
        self._path, self._follow = Path(path), follow
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._closed = False
        self._fault: SourceError | None = None
        self.at_start = False
        self._stream: ByteStream | None = None
        self._begin(None)
        if position is None or not position.inode:
            self._begin(self._opened(self._path))
        else:
            self._resume(position)

    def _begin(self, stream: ByteStream | None) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = stream
        # Size in the file and the line, None where it was too long.
        self._pieces: deque[tuple[int, bytes | None]] = deque()
        self._tail = b""
        self._skipping = False
        self._offset = 0
        self._last_line = b""
        self._fresh = True

    def _opened(self, path: Path) -> ByteStream:
        stream = open_stream(path)
        if self._follow and stream.compressed:
            stream.close()
            raise SourceError(f"{path} is compressed, and a growing file must be plain; read it as a finished file")
        return stream

    def read(self, lines_max: int) -> list[bytes] | None:
        """Return the next lines without their line breaks, an empty list when there is none yet, ``None`` at the end.

        One batch never holds lines of two files.

        Raises:
            SourceError: the input is broken from here on; all before it has been delivered.
            TransientError: the file cannot be read now.
        """
        if self._closed:
            return None
        batch: list[bytes] = []
        while len(batch) < lines_max:
            if not self._pieces and not self._refill(may_switch=not batch):
                break
            size, line = self._pieces.popleft()
            self._offset += size
            self._last_line = line or b""
            if line is not None:
                batch.append(line.rstrip(b"\r\n"))
        if batch:
            self._counters["lines"] += len(batch)
            self.at_start, self._fresh = self._fresh, False
            return batch
        if self._fault is not None:
            raise self._fault
        return [] if self._follow else None

    def _refill(self, *, may_switch: bool) -> bool:
        """Whether there are pieces now."""
        while not self._pieces and self._fault is None:
            if self._stream is None and not self._appeared():
                return False
            assert self._stream is not None
            try:
                data = self._stream.read(READ_BYTES)
                if data:
                    self._take(data)
                elif not self._at_end(may_switch=may_switch):
                    break
            except SourceError as error:
                self._fault = error
        return bool(self._pieces)

    def _take(self, data: bytes) -> None:
        """Cut a chunk into lines. Only ``\\n`` ends one: a lone ``\\r`` or form feed belongs to it."""
        if self._skipping:
            end = data.find(b"\n") + 1
            self._skipping = not end
            self._pieces.append((end or len(data), None))
            data = data[end:] if end else b""
        *whole, self._tail = (self._tail + data).split(b"\n")
        for line in whole:
            self._add(line + b"\n")
        if len(self._tail) >= LINE_BYTES_MAX:
            self._add(self._tail)
            self._tail, self._skipping = b"", True

    def _add(self, line: bytes) -> None:
        if len(line) > LINE_BYTES_MAX or (len(line) == LINE_BYTES_MAX and not line.endswith(b"\n")):
            self._counters["line_too_long"] += 1
            self._pieces.append((len(line), None))
        else:
            self._pieces.append((len(line), line))

    def _at_end(self, *, may_switch: bool) -> bool:
        """Deal with the end of the file; whether to read on."""
        assert self._stream is not None
        if not self._follow:
            return self._end_tail()
        try:
            status = self._path.stat()
        except OSError:
            return False  # moved away, and the new file is not there yet
        if (status.st_dev, status.st_ino) == self._stream.file_number():
            if status.st_size >= self._stream.offset_bytes or not may_switch:
                return False
            what = "truncations"
        else:
            if not status.st_size:
                return False
            # What was written between the last read and the switch.
            data = self._stream.read(READ_BYTES)
            if data:
                self._take(data)
                return True
            if self._end_tail():
                return True
            if not may_switch:
                return False
            what = "rotations"
        lost = bool(self._tail)
        if not self._appeared():
            return False
        self._counters[what] += 1
        self._counters["lost_tail"] += lost
        return True

    def _end_tail(self) -> bool:
        """Take the last line of a file without a line break; whether there was one."""
        if not self._tail:
            return False
        self._pieces.append((len(self._tail), self._tail))
        self._tail = b""
        return True

    def _appeared(self) -> bool:
        """Begin with what is at the path now; whether there is anything."""
        try:
            self._begin(self._opened(self._path))
        except SourceError as error:
            # A path that is missing is between two files; anything else is a fault.
            self._fault = error if self._path.exists() else None
            return False
        return True

    def _resume(self, position: LinePosition) -> None:
        for path in (self._path, *self._neighbours(position)):
            try:
                stream = self._opened(path)
            except SourceError:
                continue
            line = self._line_before(stream, position)
            if line is not None:
                self._begin(stream)
                self._offset, self._last_line = position.offset_bytes, line
                self._fresh = not position.offset_bytes
                return
            stream.close()
        self._counters["position_lost"] += 1
        if self._path.exists():
            self._begin(self._opened(self._path))

    def _neighbours(self, position: LinePosition) -> list[Path]:
        """The file with the position's inode in the log's folder, if it has another name now.

        Where no line tells that it is the same file (at its start), the name must begin alike: ``conn.log.1``,
        ``conn.2026-11-27.log``. An inode may have been used again, by another log.
        """
        found = []
        stem = "" if position.line_bytes else self._path.stem
        try:
            with os.scandir(self._path.parent) as entries:
                for count, entry in enumerate(entries):
                    if count >= SIBLINGS_MAX:
                        break
                    alike = entry.name != self._path.name and entry.name.startswith(stem)
                    if alike and entry.inode() == position.inode:
                        found.append(Path(entry.path))
        except OSError:
            return []
        return found

    def _line_before(self, stream: ByteStream, position: LinePosition) -> bytes | None:
        """The position's line, if the file has it where it was; the stream then stands behind it."""
        if not position.line_bytes and stream.file_number()[1] != position.inode:
            return None
        try:
            stream.skip_to(position.offset_bytes - position.line_bytes)
            line = stream.read(position.line_bytes)
        except SourceError:
            return None
        behind = stream.offset_bytes == position.offset_bytes
        return line if behind and line_digest(line) == position.line_digest else None

    def position(self, context: str = "") -> LinePosition:
        """Where to go on after a restart: behind the last line that ``read`` returned.

        Args:
            context: what the parser must be told then.
        """
        return LinePosition(
            inode=self._stream.file_number()[1] if self._stream is not None else 0,
            offset_bytes=self._offset,
            line_bytes=len(self._last_line),
            line_digest=line_digest(self._last_line),
            context=context,
        )

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._begin(None)
        self._closed = True


def line_digest(line: bytes) -> str:
    """SHA-256 of a line, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()
