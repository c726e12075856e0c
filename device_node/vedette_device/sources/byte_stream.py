"""A file's bytes, decompressed if need be, in bounded pieces.

The standard library's file objects are not used for compressed files: when such a file ends too early they raise and
drop what they had decompressed, and they set no limit to the memory that an ``.xz`` header may ask for.
"""

from __future__ import annotations

import lzma
import os
import stat
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from vedette_device.sources.errors import SourceError
from vedette_schemas.errors import TransientError

READ_BYTES = 1 << 20
"""Bytes of one read: some ten thousand packets, and little beside a process's other memory."""

_INPUT_BYTES = 1 << 16

_OUTPUT_BYTES = 1 << 12
"""Decompressed bytes of one step. A step that meets damage yields nothing, so this is the most that is lost to it."""

XZ_MEMORY_BYTES_MAX = 128 << 20
"""Most memory that decompressing may take: ``xz -9`` asks for 65 MB."""

_GZIP_MAGIC = bytes.fromhex("1f8b")
_XZ_MAGIC = bytes.fromhex("fd377a585a00")
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")


class ByteStream(Protocol):
    """Bytes of a file from some offset on."""

    offset_bytes: int
    """Offset of the next byte, in the uncompressed stream."""

    compressed: bool

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; ``b""`` when there are no more at present.

        Raises:
            SourceError: the stream is damaged at this point; all before it has been returned.
        """
        ...

    def skip_to(self, offset_bytes: int) -> None:
        """Go forward to an offset.

        Raises:
            SourceError: the file ends before it.
        """
        ...

    def file_number(self) -> tuple[int, int]:
        """Device and inode of the open file, by which a replaced file is noticed."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_stream(path: Path) -> ByteStream:
    """Open a file, plain, gzip or xz by its first bytes.

    Raises:
        SourceError: it cannot be opened, or is compressed in another way.
        TransientError: the system is out of file handles or memory.
    """
    file = open_file(path)
    head = file.peek(len(_XZ_MAGIC))
    if head.startswith(_ZSTD_MAGIC):
        file.close()
        raise SourceError(f"{path} is compressed with zstd, expected plain, gzip or xz; unpack it first")
    if head.startswith(_GZIP_MAGIC):
        return _CompressedStream(path, file, _Gzip)
    if head.startswith(_XZ_MAGIC):
        return _CompressedStream(path, file, _Xz)
    return _PlainStream(path, file)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, with errors that say what to do.

    Raises:
        SourceError: it is missing, no file, or not readable for this user.
        TransientError: the system is out of file handles or memory.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise SourceError(f"{path} is {kind}, expected a file")
        return path.open("rb")
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; check the path in the source's configuration") from None
    except PermissionError:
        raise SourceError(f"{path} is not readable for user id {os.geteuid()}; give that user read access") from None
    except OSError as error:
        raise TransientError(f"{path} cannot be opened now: {error}") from error


class _PlainStream:
    compressed = False

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path, self._file = path, file
        self.offset_bytes = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise TransientError(f"{self._path} cannot be read now: {error}") from error
        self.offset_bytes += len(data)
        return data

    def skip_to(self, offset_bytes: int) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < offset_bytes:
            raise SourceError(f"{self._path} has {size} bytes, expected at least {offset_bytes} as at the last stop")
        self._file.seek(offset_bytes)
        self.offset_bytes = offset_bytes

    def file_number(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino

    def close(self) -> None:
        self._file.close()


class _Member(Protocol):
    """One compressed member of a file; members may follow one another."""

    def decompress(self, data: bytes, size: int) -> bytes: ...

    @property
    def finished(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    @property
    def hungry(self) -> bool: ...


class _Gzip:
    name = "gzip"

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(31)  # 15 bits of window, +16 for the gzip header and checksum

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, size)

    @property
    def finished(self) -> bool:
        return self._inflater.eof

    @property
    def unused(self) -> bytes:
        return self._inflater.unused_data

    @property
    def hungry(self) -> bool:
        return not self._inflater.unconsumed_tail


class _Xz:
    name = "xz"

    def __init__(self) -> None:
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._decompressor.decompress(data, size)

    @property
    def finished(self) -> bool:
        return self._decompressor.eof

    @property
    def unused(self) -> bytes:
        return self._decompressor.unused_data

    @property
    def hungry(self) -> bool:
        return self._decompressor.needs_input


class _CompressedStream:
    compressed = True

    def __init__(self, path: Path, file: BufferedReader, make: type[_Gzip] | type[_Xz]) -> None:
        self._path, self._file, self._make = path, file, make
        self._member: _Member | None = make()
        self._input = b""
        self._ended = False
        self._fault: SourceError | None = None
        self.offset_bytes = 0

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        end = self.offset_bytes + size
        while self.offset_bytes < end and not self._ended and self._fault is None:
            piece = self._step(min(end - self.offset_bytes, _OUTPUT_BYTES))
            self.offset_bytes += len(piece)
            pieces.append(piece)
        if self._ended or self._fault is not None:
            self._member = None  # its dictionary is up to `XZ_MEMORY_BYTES_MAX`, and whoever keeps the fault keeps us
        data = b"".join(pieces)
        if not data and self._fault is not None:
            raise self._fault
        return data

    def _step(self, size: int) -> bytes:
        assert self._member is not None, "there until the end or a fault"
        try:
            if self._member.finished:
                self._input = self._member.unused.lstrip(b"\0") or self._file.read(_INPUT_BYTES).lstrip(b"\0")
                if not self._input:
                    self._ended = True
                    return b""
                self._member = self._make()
            elif self._member.hungry and not self._input:
                self._input = self._file.read(_INPUT_BYTES)
                if not self._input:
                    rest = self._member.decompress(b"", size)
                    if not rest and not self._member.finished:
                        self._fault = SourceError(
                            f"{self._path}: the {self._make.name} data ends early, behind {self.offset_bytes} "
                            "uncompressed bytes; expected more, the file was cut off: fetch it again"
                        )
                    return rest
            data, self._input = self._input, b""
            return self._member.decompress(data, size)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            self._fault = SourceError(
                f"{self._path}: the {self._make.name} data is damaged behind {self.offset_bytes} uncompressed bytes "
                f"or up to {_OUTPUT_BYTES} more ({error}); expected a sound file: fetch it again"
            )
            return b""
        except OSError as error:
            raise TransientError(f"{self._path} cannot be read now: {error}") from error
        except MemoryError:
            self._fault = SourceError(
                f"{self._path}: found too little memory to decompress {self._make.name}, expected up to "
                f"{XZ_MEMORY_BYTES_MAX >> 20} MB; unpack it elsewhere"
            )
            return b""

    def skip_to(self, offset_bytes: int) -> None:
        while self.offset_bytes < offset_bytes:
            if not self.read(min(READ_BYTES, offset_bytes - self.offset_bytes)):
                raise SourceError(
                    f"{self._path} has {self.offset_bytes} uncompressed bytes, expected at least {offset_bytes} "
                    "as at the last stop"
                )

    def file_number(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino

    def close(self) -> None:
        self._file.close()
        self._member = None
