"""The pcapng format: sections, interface descriptions and packet blocks; all other blocks are stepped over.

Source: IETF draft *PCAP Next Generation Capture File Format* (opsawg-pcapng).
"""

from __future__ import annotations

import json
import struct
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from vedette_device.sources.decoding import FRAME_BYTES_MAX, Decoded
from vedette_device.sources.errors import CaptureFormatError, LinkTypeError, SourceError
from vedette_device.sources.link import LINK_TYPES, link_name, rows_at, supported_links
from vedette_device.sources.packets import Frames, padded

SECTION_HEADER = bytes.fromhex("0a0d0d0a")
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D

INTERFACES_MAX = 4_096
"""Most interfaces of a section; a capture of every port of a large switch has some hundred."""

BLOCK_BYTES_MAX = FRAME_BYTES_MAX + 65_536
"""Largest block that is believed: the largest frame with 64 kB of options. Also the most that is held in memory."""

_SMALLEST_BLOCK = {_SECTION: 28, _INTERFACE: 20, _OLD_PACKET: 32, _SIMPLE: 16, _ENHANCED: 32}
_BLOCK_FRAME_BYTES = 12
"""Bytes of a block around its body: type and length in front, the length again behind."""

_DATA_AT = {_OLD_PACKET: 28, _SIMPLE: 12, _ENHANCED: 28}
_OPTION_END, _OPTION_TIME_RESOLUTION, _OPTION_TIME_OFFSET = 0, 9, 14

SECONDS_MAX = 8_000_000_000
"""Latest time stamp (the year 2223): 64-bit nanoseconds hold little more."""


@dataclass(frozen=True, slots=True)
class _Interface:
    """One interface description.

    Attributes:
        link: link type.
        snapshot_bytes: most captured bytes a frame, 0 for no limit.
        base: 10 or 2.
        exponent: a unit of its time stamps is ``base ** -exponent`` seconds.
        offset_s: seconds to add to its time stamps.
    """

    link: int
    snapshot_bytes: int
    base: int
    exponent: int
    offset_s: int

    def to_ns(self, ticks: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Convert time stamps to nanoseconds since the epoch, -1 where they lie outside the years 1970 to 2223."""
        ticks_a_second = np.uint64(self.base**self.exponent)
        seconds = ticks // ticks_a_second
        part = ticks % ticks_a_second
        if self.base == 10:
            shift = 10 ** abs(9 - self.exponent)
            part = part * np.uint64(shift) if self.exponent <= 9 else part // np.uint64(shift)
        else:
            # 2^34 times 1e9 just fits into 64 bits; finer units lose bits far below a nanosecond.
            finer = max(self.exponent - 34, 0)
            part = ((part >> np.uint64(finer)) * np.uint64(1_000_000_000)) >> np.uint64(self.exponent - finer)
        sane = seconds <= np.uint64(SECONDS_MAX)
        whole = np.where(sane, seconds, 0).astype(np.int64) + self.offset_s
        sane &= (whole >= 0) & (whole <= SECONDS_MAX)
        return np.where(sane, whole * 1_000_000_000 + part.astype(np.int64), -1)


class PcapngDecoder:
    """Reads pcapng in both byte orders, with any number of sections and interfaces."""

    format_name = "pcapng"

    def __init__(self) -> None:
        self._order = ""
        self._interfaces: list[_Interface] = []
        self._readable = False
        """Whether one of the interfaces has a link type that can be dissected."""
        self._last_time_ns = 0

    def decode(self, buffer: bytes, start: int, offset: int, frames_max: int) -> Decoded:
        """Read whole blocks; see ``Decoder.decode``."""
        at, size = start, len(buffer)
        packets: list[tuple[int, int]] = []
        needed = _BLOCK_FRAME_BYTES
        fault: SourceError | None = None
        while len(packets) < frames_max and size - at >= _BLOCK_FRAME_BYTES:
            is_section = buffer[at : at + 4] == SECTION_HEADER
            if is_section:
                if packets:
                    break  # a batch holds one section: the next may have another byte order
                fault = self._set_byte_order(buffer, at, offset + at - start)
            elif not self._order:
                fault = CaptureFormatError(f"byte {offset + at - start}: expected a section header block")
            if fault is not None:
                break
            kind, length = struct.unpack_from(self._order + "II", buffer, at)
            if length % 4 or not _SMALLEST_BLOCK.get(kind, _BLOCK_FRAME_BYTES) <= length <= BLOCK_BYTES_MAX:
                fault = CaptureFormatError(
                    f"block at byte {offset + at - start} says it has {length} bytes, expected a multiple of 4 "
                    f"from {_SMALLEST_BLOCK.get(kind, _BLOCK_FRAME_BYTES)} to {BLOCK_BYTES_MAX}: "
                    "the file is damaged there"
                )
                break
            if at + length > size:
                needed = length
                break
            (again,) = struct.unpack_from(self._order + "I", buffer, at + length - 4)
            if again != length:
                fault = CaptureFormatError(
                    f"block at byte {offset + at - start} ends with length {again}, expected {length} as at its start: "
                    "the file is damaged there"
                )
                break
            if kind in _DATA_AT:
                if self._interfaces and not self._readable:
                    names = ", ".join(sorted({link_name(i.link) for i in self._interfaces}))
                    fault = LinkTypeError(f"the capture is of {names}, expected one of: {supported_links()}")
                    break
                packets.append((at, kind))
            elif is_section:
                self._interfaces, self._readable = [], False
            elif kind == _INTERFACE:
                fault = self._add_interface(buffer, at, length, offset + at - start)
                if fault is not None:
                    break
            at += length
        if not packets:
            return Decoded(None, at - start, needed, {}, fault)
        frames, refused = self._frames(buffer, start, at, packets)
        return Decoded(frames, at - start, needed, refused, fault)

    def _set_byte_order(self, buffer: bytes, at: int, offset: int) -> SourceError | None:
        for order in "<>":
            if struct.unpack_from(order + "I", buffer, at + 8)[0] == _BYTE_ORDER_MAGIC:
                self._order = order
                return None
        return CaptureFormatError(
            f"section at byte {offset} has byte-order mark {buffer[at + 8 : at + 12].hex()}, "
            "expected 1a2b3c4d or 4d3c2b1a"
        )

    def _add_interface(self, buffer: bytes, at: int, length: int, offset: int) -> SourceError | None:
        if len(self._interfaces) >= INTERFACES_MAX:
            return CaptureFormatError(f"byte {offset}: more than {INTERFACES_MAX} interfaces in one section")
        link, _, snapshot_bytes = struct.unpack_from(self._order + "HHI", buffer, at + 8)
        base, exponent, offset_s = 10, 6, 0
        option, end = at + 16, at + length - 4
        while end - option >= 4:
            code, size = struct.unpack_from(self._order + "HH", buffer, option)
            if code == _OPTION_END or size > end - option - 4:
                break
            if code == _OPTION_TIME_RESOLUTION and size == 1:
                resolution = buffer[option + 4]
                base, exponent = (2, resolution & 0x7F) if resolution & 0x80 else (10, resolution)
            elif code == _OPTION_TIME_OFFSET and size == 8:
                (offset_s,) = struct.unpack_from(self._order + "q", buffer, option + 4)
            option += 4 + size + (-size % 4)
        if exponent > (19 if base == 10 else 63) or abs(offset_s) > SECONDS_MAX:
            return CaptureFormatError(
                f"interface at byte {offset} counts time in units of {base}^-{exponent} s from {offset_s} s, "
                "expected a unit that 64 bits can hold"
            )
        self._readable = self._readable or link in LINK_TYPES
        self._interfaces.append(_Interface(link, snapshot_bytes, base, exponent, offset_s))
        return None

    def _frames(
        self, buffer: bytes, start: int, end: int, packets: list[tuple[int, int]]
    ) -> tuple[Frames | None, dict[str, int]]:
        data = padded(memoryview(buffer)[start:end])
        table = np.array(packets, dtype=np.int64)
        blocks, kinds = table[:, 0] - start, table[:, 1]
        fields = rows_at(data, blocks, 28).view(self._order + "u4").astype(np.int64)
        halves = rows_at(data, blocks + 8, 4).view(self._order + "u2").astype(np.int64)
        simple = kinds == _SIMPLE
        interface = np.select([simple, kinds == _OLD_PACKET], [0, halves[:, 0]], fields[:, 2])
        described = interface < len(self._interfaces)
        known = np.minimum(interface, max(len(self._interfaces) - 1, 0))
        described_as = self._interfaces or [_Interface(-1, 0, 10, 6, 0)]
        link = np.array([i.link for i in described_as], dtype=np.int64)[known]
        snapshot = np.array([i.snapshot_bytes or FRAME_BYTES_MAX for i in described_as], dtype=np.int64)[known]
        room = fields[:, 1] - np.where(simple, 16, 32)
        wire = np.where(simple, fields[:, 2], fields[:, 6])
        captured = np.where(simple, np.minimum(np.minimum(wire, snapshot), room), fields[:, 5])
        time_ns = self._times(fields, np.where(simple, -1, known))

        fits = (captured >= 0) & (captured <= room) & (captured <= FRAME_BYTES_MAX)
        supported = np.isin(link, list(LINK_TYPES))
        good = described & fits & supported & (time_ns >= 0)
        refused = {
            "interface": int((~described).sum()),
            "link_type": int((described & ~supported).sum()),
            "length": int((described & supported & ~fits).sum()),
            "timestamp": int((described & supported & fits & (time_ns < 0)).sum()),
        }
        keep = np.flatnonzero(good)
        data_at = blocks + np.where(simple, _DATA_AT[_SIMPLE], _DATA_AT[_ENHANCED])
        frames = Frames(data, data_at[keep], captured[keep], wire[keep], time_ns[keep], link[keep])
        return frames if len(keep) else None, {k: n for k, n in refused.items() if n}

    def _times(self, fields: NDArray[np.int64], interface: NDArray[np.int64]) -> NDArray[np.int64]:
        """Time stamps by interface; a simple packet block has none and takes that of the packet before it."""
        ticks = (fields[:, 3].astype(np.uint64) << np.uint64(32)) | fields[:, 4].astype(np.uint64)
        times = np.full(len(fields), -1, dtype=np.int64)
        for index in np.unique(interface[interface >= 0]):
            if index < len(self._interfaces):
                rows = np.flatnonzero(interface == index)
                times[rows] = self._interfaces[int(index)].to_ns(ticks[rows])
        stamped = interface >= 0
        if not stamped.all():
            last = np.maximum.accumulate(np.where(stamped, np.arange(len(times)), -1))
            held = np.where(last >= 0, times[np.maximum(last, 0)], self._last_time_ns)
            times = np.where(stamped, times, held)
        if len(times) and times[-1] >= 0:
            self._last_time_ns = int(times[-1])
        return times

    def context(self) -> str:
        """See ``Decoder.context``."""
        return json.dumps([self._order, [astuple(i) for i in self._interfaces], self._last_time_ns])

    def restore(self, context: str) -> None:
        """See ``Decoder.restore``."""
        try:
            order, interfaces, last_time_ns = json.loads(context)
            restored = [_Interface(*(int(field) for field in fields)) for fields in interfaces]
            last_time_ns = int(last_time_ns)
        except (ValueError, TypeError) as error:
            raise SourceError(f"stored position is no position in a pcapng file: {error}") from error
        sane = all(i.base in (2, 10) and 0 <= i.exponent <= (19 if i.base == 10 else 63) for i in restored)
        if order not in ("", "<", ">") or len(restored) > INTERFACES_MAX or not sane:
            raise SourceError(f"stored position is no position in a pcapng file: {context[:80]}")
        self._order, self._interfaces, self._last_time_ns = order, restored, last_time_ns
        self._readable = any(i.link in LINK_TYPES for i in restored)
