"""A capture file: whole, compressed, or one that another program still writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vedette_device.sources.byte_stream import READ_BYTES, ByteStream, open_stream
from vedette_device.sources.decoding import FRAME_BYTES_MAX, MAGIC_BYTES, Decoder, decoder_for
from vedette_device.sources.dissect import REFUSED_REASONS, dissect
from vedette_device.sources.errors import (
    CaptureFormatError,
    CaptureTruncatedError,
    SourceError,
)
from vedette_device.sources.interface import (
    HEAD_BYTES_MAX,
    PACKETS_READ_DEFAULT,
    PACKETS_READ_MAX,
    Position,
    head_digest,
)
from vedette_device.sources.packets import Frames, PacketBatch

COUNTERS = (
    "packets",
    "frames",
    "bytes_read",
    *REFUSED_REASONS,
    "interface",
    "link_type",
    "length",
    "timestamp",
    "rotations",
    "cut_tail_bytes",
)
"""What ``CaptureFile.counters`` holds: packets delivered, frames read, refused frames by reason, and file events."""

BARREN_READS_MAX = 16
"""Batches without a single IP packet that one ``read`` steps over before it gives way with an empty batch."""


class CaptureFile:
    """Packets of a pcap or pcapng file, plain, ``.gz`` or ``.xz`` (told by its first bytes, not by its name).

    A growing file (``follow``) never ends: an unfinished record at its end waits for the rest. When another file takes
    the path (rotation), the old one is read to its end first, and the new one from its start; when the file itself
    becomes shorter, it is read from its start again. Both are counted as ``rotations``.

    Args:
        path: the file.
        follow: whether another program still appends to it.

    Raises:
        SourceError: the file is missing, unreadable, or compressed and to be followed.
    """

    def __init__(self, path: Path | str, *, follow: bool = False) -> None:
        self._path = Path(path)
        self._follow = follow
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._fault: SourceError | None = None
        self._stream: ByteStream | None = self._opened()
        self._start_over()

    def _opened(self) -> ByteStream:
        stream = open_stream(self._path)
        if self._follow and stream.compressed:
            stream.close()
            raise SourceError(f"{self._path} is compressed, and a growing file must be plain; read it without follow")
        return stream

    def _start_over(self) -> None:
        self._decoder: Decoder | None = None
        self._buffer = b""
        self._at = 0
        self._head = b""
        self._records = 0

    def read(self, packets_max: int = PACKETS_READ_DEFAULT) -> PacketBatch | None:
        """Return the next packets; see ``PacketSource.read``.

        Args:
            packets_max: most packets, 1 to ``PACKETS_READ_MAX``.

        Raises:
            CaptureTruncatedError: the file ends inside a record (not when it is followed).
            CaptureFormatError: the file is no capture, or is damaged from here on.
            LinkTypeError: the capture is of a link that cannot be dissected.
        """
        packets_max = max(1, min(packets_max, PACKETS_READ_MAX))
        if self._fault is not None:
            raise self._fault
        if self._stream is None:
            return None
        batch = PacketBatch.empty()
        for _ in range(BARREN_READS_MAX):
            frames = self._next_frames(packets_max)
            if frames is None:
                if self._fault is not None:
                    raise self._fault
                return batch if self._follow else None
            batch, refused = dissect(frames)
            self._counters.update(refused)
            self._counters["frames"] += len(frames)
            self._counters["packets"] += len(batch)
            if len(batch):
                break
        return batch

    def _next_frames(self, frames_max: int) -> Frames | None:
        """Return at least one frame, or ``None`` when there is none at present or a fault is noted."""
        while self._fault is None:
            needed = MAGIC_BYTES
            if self._decoder is None and len(self._buffer) - self._at >= MAGIC_BYTES:
                self._choose_decoder()
                if self._decoder is None:
                    return None
            if self._decoder is not None:
                offset = self._offset()
                decoded = self._decoder.decode(self._buffer, self._at, offset, frames_max)
                self._at += decoded.consumed
                self._counters.update(decoded.refused)
                self._records += (len(decoded.frames) if decoded.frames else 0) + sum(decoded.refused.values())
                if decoded.fault is not None:
                    self._fault = type(decoded.fault)(f"{self._path}: {decoded.fault}")
                if decoded.frames is not None:
                    return decoded.frames
                if decoded.fault is not None:
                    return None
                if decoded.consumed:
                    continue  # headers or refused records: there may be more behind them
                needed = decoded.needed
            if not self._refill() and not self._at_end(needed):
                return None
        return None

    def _choose_decoder(self) -> None:
        try:
            self._decoder = decoder_for(self._buffer[self._at : self._at + MAGIC_BYTES])
        except CaptureFormatError as error:
            self._fault = CaptureFormatError(f"{self._path}: {error}")

    def _offset(self) -> int:
        assert self._stream is not None
        return self._stream.offset_bytes - (len(self._buffer) - self._at)

    def _refill(self) -> bool:
        """Read on; whether anything came."""
        assert self._stream is not None
        try:
            data = self._stream.read(READ_BYTES)
        except SourceError as error:
            self._fault = error
            return False
        if len(self._head) < HEAD_BYTES_MAX:
            self._head += data[: HEAD_BYTES_MAX - len(self._head)]
        self._counters["bytes_read"] += len(data)
        # The unfinished record moves to the front; it is smaller than FRAME_BYTES_MAX and its header.
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        return bool(data)

    def _at_end(self, needed: int) -> bool:
        """Deal with the end of the file; whether there is another one to read."""
        assert self._stream is not None
        tail = len(self._buffer) - self._at
        if self._follow:
            return self._rotated(tail)
        offset = self._offset()
        if self._fault is not None:
            return False
        if offset == 0 and tail < MAGIC_BYTES:
            self._fault = CaptureFormatError(
                f"{self._path} has {tail} bytes, expected a capture (pcap or pcapng); it is empty or cut off"
            )
        elif tail:
            self._fault = CaptureTruncatedError(
                f"{self._path} ends at byte {offset + tail}, inside the record that starts at byte {offset}: "
                f"found {tail} bytes of it, expected {needed}; the {self._records} records before it were read",
                offset_bytes=offset,
                found_bytes=tail,
                expected_bytes=needed,
            )
        return False

    def _rotated(self, tail: int) -> bool:
        assert self._stream is not None
        try:
            status = self._path.stat()
        except OSError:
            return False  # moved away, and the new file is not there yet
        same = (status.st_dev, status.st_ino) == self._stream.file_number()
        if same and status.st_size >= self._stream.offset_bytes:
            return False
        try:
            stream = self._opened()
        except SourceError as error:
            self._fault = error
            return False
        self._stream.close()
        self._stream = stream
        self._start_over()
        self._counters["rotations"] += 1
        self._counters["cut_tail_bytes"] += tail
        return True

    def position(self) -> Position:
        """Where to go on after a restart: behind the last packet that ``read`` returned."""
        return Position(
            offset_bytes=self._offset() if self._stream is not None else 0,
            records=self._records,
            head_bytes=len(self._head),
            head_digest=head_digest(self._head),
            context=self._decoder.context() if self._decoder is not None else "",
        )

    def seek(self, position: Position) -> None:
        """Go to a position that ``position`` returned, on a source that was just opened.

        Raises:
            SourceError: the file is another one or has become shorter; start it anew, or take the position away.
        """
        if self._stream is None or self._stream.offset_bytes:
            raise RuntimeError("seek() is only for a source that was just opened")
        if position.head_bytes > HEAD_BYTES_MAX:
            raise SourceError(f"stored position covers {position.head_bytes} bytes, expected at most {HEAD_BYTES_MAX}")
        head = self._stream.read(position.head_bytes)
        if head_digest(head) != position.head_digest:
            raise SourceError(
                f"{self._path} is not the file that was read before (its first {position.head_bytes} bytes differ)"
            )
        decoder = decoder_for(head) if position.context else None
        if decoder is not None:
            decoder.restore(position.context)
        if position.offset_bytes < len(head):
            self._buffer, self._at = head, position.offset_bytes
        else:
            self._stream.skip_to(position.offset_bytes)
        self._decoder, self._head, self._records = decoder, head, position.records

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    def close(self) -> None:
        """Release the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._buffer = b""


BUFFER_BYTES_MAX = READ_BYTES + FRAME_BYTES_MAX + 65_536
"""Most bytes that a source holds: one read and the unfinished record before it."""
