"""The classic pcap format. Source: IETF draft *PCAP Capture File Format* (opsawg-pcap)."""

from __future__ import annotations

import json
import struct

import numpy as np

from vedette_device.sources.decoding import FRAME_BYTES_MAX, Decoded
from vedette_device.sources.errors import CaptureFormatError, LinkTypeError, SourceError
from vedette_device.sources.link import LINK_TYPES, link_name, rows_at, supported_links
from vedette_device.sources.packets import Frames, padded

PCAP_MAGICS: dict[bytes, tuple[str, int]] = {
    bytes.fromhex("d4c3b2a1"): ("<", 1_000),
    bytes.fromhex("a1b2c3d4"): (">", 1_000),
    bytes.fromhex("4d3cb2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1),
}
"""Byte order, and nanoseconds that one unit of a time stamp's fraction is, by the file's first four bytes."""

FILE_HEADER_BYTES = 24
RECORD_HEADER_BYTES = 16


class PcapDecoder:
    """Reads pcap in both byte orders, with stamps in microseconds or nanoseconds."""

    format_name = "pcap"

    def __init__(self) -> None:
        self._order = ""
        self._fraction_ns = 0
        self._link = 0

    def decode(self, buffer: bytes, start: int, offset: int, frames_max: int) -> Decoded:
        """Read whole records; see ``Decoder.decode``."""
        at = start
        if not self._order:
            if len(buffer) - start < FILE_HEADER_BYTES:
                return Decoded(None, 0, FILE_HEADER_BYTES, {})
            fault = self._read_file_header(buffer, start)
            if fault is not None:
                return Decoded(None, 0, FILE_HEADER_BYTES, {}, fault)
            at += FILE_HEADER_BYTES
        starts: list[int] = []
        needed = RECORD_HEADER_BYTES
        fault = None
        captured_length = struct.Struct(self._order + "I").unpack_from
        last_header = len(buffer) - RECORD_HEADER_BYTES
        size = len(buffer)
        while at <= last_header and len(starts) < frames_max:
            (captured,) = captured_length(buffer, at + 8)
            if captured > FRAME_BYTES_MAX:
                fault = CaptureFormatError(
                    f"record at byte {offset + at - start} says it holds {captured} bytes, expected at most "
                    f"{FRAME_BYTES_MAX}: the file is damaged there, or is no pcap"
                )
                break
            following = at + RECORD_HEADER_BYTES + captured
            if following > size:
                needed = RECORD_HEADER_BYTES + captured
                break
            starts.append(at)
            at = following
        frames = self._frames(buffer, start, at, starts) if starts else None
        return Decoded(frames, at - start, needed, {}, fault)

    def _read_file_header(self, buffer: bytes, at: int) -> SourceError | None:
        order, fraction_ns = PCAP_MAGICS[buffer[at : at + 4]]
        major, minor = struct.unpack_from(order + "HH", buffer, at + 4)
        (network,) = struct.unpack_from(order + "I", buffer, at + 20)
        if (major, minor) != (2, 4):
            return CaptureFormatError(f"pcap version is {major}.{minor}, expected 2.4")
        # The upper bits say how long the frame check sequence is, not what the link is.
        link = network & 0xFFFF
        if link not in LINK_TYPES:
            return LinkTypeError(f"the capture is of {link_name(link)}, expected one of: {supported_links()}")
        self._order, self._fraction_ns, self._link = order, fraction_ns, link
        return None

    def _frames(self, buffer: bytes, start: int, end: int, starts: list[int]) -> Frames:
        data = padded(memoryview(buffer)[start:end])
        records = np.array(starts, dtype=np.int64) - start
        header = rows_at(data, records, RECORD_HEADER_BYTES).view(self._order + "u4").astype(np.int64)
        return Frames(
            data=data,
            start=records + RECORD_HEADER_BYTES,
            captured=header[:, 2],
            wire=header[:, 3],
            time_ns=header[:, 0] * 1_000_000_000 + header[:, 1] * self._fraction_ns,
            link=np.full(len(records), self._link, dtype=np.int64),
        )

    def context(self) -> str:
        """See ``Decoder.context``."""
        return json.dumps([self._order, self._fraction_ns, self._link])

    def restore(self, context: str) -> None:
        """See ``Decoder.restore``."""
        try:
            order, fraction_ns, link = json.loads(context)
        except (ValueError, TypeError) as error:
            raise SourceError(f"stored position is no position in a pcap file: {error}") from error
        if (order, fraction_ns) not in [*PCAP_MAGICS.values(), ("", 0)] or (order and link not in LINK_TYPES):
            raise SourceError(f"stored position is no position in a pcap file: {context[:80]}")
        self._order, self._fraction_ns, self._link = order, fraction_ns, link
