"""The audit: one JSON document a line, appended and synchronised, each with the digest of the line before.

Whoever changes, removes or inserts a line breaks the chain from there on. It does not show that lines are missing at
the end: keep the newest digest elsewhere (``vedette policy status`` prints it, the node's log has it) to see that too.

Files: ``audit.jsonl`` is written to; at `bytes_max` it becomes ``audit.000017.jsonl`` (by its first line's number) and
the chain goes on in a new one. Of those the newest `files_max` are kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from vedette_core.runtime.durable import PRIVATE_FILE, file_error, make_directory, synchronise_directory
from vedette_schemas.errors import ConfigError, PeerError

CURRENT: Final = "audit.jsonl"
LINE_BYTES_MAX: Final = 16 * 1024
"""An entry is below 2 kB; what is longer was not written by this."""
BEGIN: Final = "0" * 64
"""What the first line of all has for the digest of the line before."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A stretch of the audit whose every line holds.

    Attributes:
        first: number of its first line; 0 where it has none.
        last: number of its last line.
        before: digest of the line before the first; `BEGIN` where the audit begins with it.
        head: digest of its last line.
        lines: how many it has.
    """

    first: int
    last: int
    before: str
    head: str
    lines: int


class AuditLog:
    """The audit of one device; one process writes.

    Args:
        folder: where its files are; made if it is missing.
        bytes_max: size at which a file is closed and the next begun.
        files_max: closed files that are kept.

    Raises:
        ConfigError: it cannot be written.
        PeerError: the newest line does not hold, so that the chain cannot go on.
    """

    def __init__(self, folder: Path, bytes_max: int, files_max: int) -> None:
        make_directory(folder)
        self._folder, self._bytes_max, self._files_max = folder, bytes_max, files_max
        self._path = folder / CURRENT
        self._number, self._head = 0, BEGIN
        torn = self._resume()
        if torn:
            self.append(
                {"event": "audit", "outcome": "recovered", "detail": f"a torn line of {torn} bytes was cut off"}
            )

    @property
    def head(self) -> tuple[int, str]:
        """Number and digest of the newest line."""
        return self._number, self._head

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry; it is on disk when this returns.

        Raises:
            TransientError: the disk is full.
            ConfigError: the file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = _encode({"n": self._number + 1, "time": now, **entry, "previous": self._head})
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"an audit entry of {len(line)} bytes, expected at most {LINE_BYTES_MAX}")
        try:
            self._rotate(len(line))
            self._write(line)
        except OSError as fault:
            raise file_error(fault, f"write to the audit {self._path}") from fault
        self._number, self._head = self._number + 1, _digest(line)

    def _write(self, line: bytes) -> None:
        is_new = not self._path.exists()
        handle = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE
        )
        try:
            size = os.fstat(handle).st_size
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)  # half a line would break the chain
                raise
        finally:
            os.close(handle)
        if is_new:
            synchronise_directory(self._folder)

    def _rotate(self, more: int) -> None:
        if not self._path.exists() or self._path.stat().st_size + more <= self._bytes_max:
            return
        with self._path.open("rb") as file:
            first = json.loads(file.readline(LINE_BYTES_MAX))["n"]
        self._path.rename(self._folder / f"audit.{first:06d}.jsonl")
        for path in closed_files(self._folder)[: -self._files_max]:
            path.unlink()
        synchronise_directory(self._folder)

    def _resume(self) -> int:
        """Find the newest line; returns the bytes of a line that a crash left half written, which are cut off."""
        torn = 0
        try:
            if self._path.exists():
                torn = _cut_torn_line(self._path)
            newest = next((p for p in (self._path, *reversed(closed_files(self._folder))) if _size(p)), None)
            if newest is None:
                return torn
            with newest.open("rb") as file:
                file.seek(max(0, newest.stat().st_size - LINE_BYTES_MAX))
                line = file.read().splitlines(keepends=True)[-1]
        except OSError as fault:
            raise file_error(fault, f"read the audit {self._path}") from fault
        try:
            self._number, self._head = int(json.loads(line)["n"]), _digest(line)
        except (ValueError, KeyError, TypeError) as fault:
            raise PeerError(
                f"{newest}: found a last line that is none of an audit, expected JSON with its number; move the file "
                "away to begin a new chain",
                reason="audit",
            ) from fault
        return torn


def closed_files(folder: Path) -> list[Path]:
    """Files that are full, oldest first."""
    return sorted(folder.glob("audit.[0-9]*.jsonl"), key=lambda path: int(path.name.split(".")[1]))


def verify_audit(files: Sequence[Path]) -> Chain:
    """Check that every line has the digest of the line before, over one or several files, oldest first.

    Raises:
        ConfigError: a file cannot be read.
        PeerError: a line that does not hold, by file and line.
    """
    first, number, before, head, lines = 0, 0, BEGIN, "", 0
    for path in files:
        try:
            with path.open("rb") as file:
                for at, line in enumerate(iter(partial(file.readline, LINE_BYTES_MAX + 1), b""), start=1):
                    found, previous = _read_line(line, f"{path} line {at}")
                    if not lines:
                        first, before = found, previous
                        if (found == 1) != (previous == BEGIN):
                            raise PeerError(
                                f"{path} line {at}: found number {found} behind {previous[:16]}…", reason="audit"
                            )
                    elif found != number + 1:
                        raise PeerError(
                            f"{path} line {at}: found number {found}, expected {number + 1}", reason="audit"
                        )
                    elif previous != head:
                        raise PeerError(
                            f"{path} line {at}: found {previous[:16]}… for the digest of the line before, expected "
                            f"{head[:16]}…: one of the two was changed",
                            reason="audit",
                        )
                    number, head, lines = found, _digest(line), lines + 1
        except OSError as fault:
            raise ConfigError(f"{path}: cannot be read ({fault.strerror}), expected an audit file") from fault
    return Chain(first, number, before, head, lines)


class FolderLock:
    """Held by the one process that enforces with a folder; the kernel lets go of it when that process ends.

    Raises:
        ConfigError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        make_directory(folder)
        self._handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            os.close(self._handle)
            raise ConfigError(f"{folder}: found another process that enforces with it, expected none") from fault

    def close(self) -> None:
        """Let go."""
        os.close(self._handle)


def _read_line(line: bytes, where: str) -> tuple[int, str]:
    try:
        plain = json.loads(line)
        number, previous = plain["n"], plain["previous"]
        if not (line.endswith(b"\n") and type(number) is int and number > 0 and len(previous) == 64):
            raise ValueError("of another form")
        if _encode(plain) != line:
            raise ValueError("not as it was written")
    except (ValueError, KeyError, TypeError) as fault:
        raise PeerError(f"{where}: found no line of an audit ({fault})", reason="audit") from fault
    return number, str(previous)


def _cut_torn_line(path: Path) -> int:
    size = path.stat().st_size
    with path.open("r+b") as file:
        start = max(0, size - LINE_BYTES_MAX)
        file.seek(start)
        tail = file.read()
        if not tail or tail.endswith(b"\n"):
            return 0
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        file.truncate(size - torn)
        os.fsync(file.fileno())
    return torn


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _encode(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
