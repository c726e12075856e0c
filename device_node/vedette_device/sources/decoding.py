"""What the two capture formats have in common: bytes in, frames out, no file in sight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vedette_device.sources.errors import CaptureFormatError, SourceError
from vedette_device.sources.packets import Frames

FRAME_BYTES_MAX = 262_144
"""Largest frame that is believed; tcpdump's own largest snapshot length. A larger length is a broken file."""

MAGIC_BYTES = 4
"""Bytes that tell one capture format from another."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one turn of a decoder found.

    Attributes:
        frames: whole frames, perhaps none.
        consumed: bytes of the buffer that are dealt with, header and refused records included.
        needed: bytes that the unfinished record behind them has in all, as far as can be told.
        refused: frames that were stepped over, by reason.
        fault: why no frame behind these can be read, or ``None``.
    """

    frames: Frames | None
    consumed: int
    needed: int
    refused: dict[str, int]
    fault: SourceError | None = None


class Decoder(Protocol):
    """Turns the bytes of one capture format into frames, and remembers the file's header."""

    format_name: str

    def decode(self, buffer: bytes, start: int, offset: int, frames_max: int) -> Decoded:
        """Read whole records.

        Args:
            buffer: bytes of the file.
            start: index of the first record (or of the file header, the first time).
            offset: where in the file ``buffer[start]`` lies, for messages.
            frames_max: most frames to return.
        """
        ...

    def context(self) -> str:
        """What a decoder needs to go on in the middle of the file, as JSON."""
        ...

    def restore(self, context: str) -> None:
        """Take over what ``context`` returned.

        Raises:
            SourceError: it is not such a text.
        """
        ...


def decoder_for(head: bytes) -> Decoder:
    """Choose the decoder by the first four bytes of a file.

    Raises:
        CaptureFormatError: they are those of no capture.
    """
    from vedette_device.sources.pcap import PCAP_MAGICS, PcapDecoder
    from vedette_device.sources.pcapng import SECTION_HEADER, PcapngDecoder

    formats: list[tuple[Callable[[], Decoder], tuple[bytes, ...]]] = [
        (PcapDecoder, tuple(PCAP_MAGICS)),
        (PcapngDecoder, (SECTION_HEADER,)),
    ]
    for make, magics in formats:
        if head[:MAGIC_BYTES] in magics:
            return make()
    raise CaptureFormatError(
        f"the file starts with {head[:MAGIC_BYTES].hex(' ') or 'nothing'}, expected the magic number of pcap "
        "(d4 c3 b2 a1 and its variants) or pcapng (0a 0d 0d 0a); convert it with `editcap -F pcap`"
    )
