"""One flow as a log tells of it, whichever program wrote the log: Zeek, Suricata or a NetFlow collector."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final, Protocol

from vedette_device.sources.packets import ACK, ICMP, ICMP6, RST, SYN, TCP, UDP
from vedette_schemas.errors import PeerError

TIME_S_MAX: Final = 4_102_444_800.0
"""Latest believable time (the year 2100): a later one is a broken clock, and would hold up every later window."""

DURATION_S_MAX: Final = 31 * 86_400.0
"""Longest believable flow, a month: exporters cut flows after minutes or hours, but Zeek logs a tunnel when it ends."""

COUNT_MAX: Final = 1 << 62
"""Most bytes or packets of a flow, so that the sums of a window stay within 64 bits."""

DIGITS_MAX: Final = 20
"""Most digits of a count: a longer one is out of range, and turning it into a number costs time."""

ADDRESS_CHARACTERS_MAX: Final = 45
"""Longest address as text (IPv6 with an embedded IPv4). Source: RFC 4291 §2.2."""

ADDRESSES_REMEMBERED: Final = 16_384
"""Addresses whose parsed form is kept: parsing one costs more than all the rest of a line. Some 3 MB when full."""

_IPV4_MAPPED: Final = 0xFFFF << 32

PROTOCOLS: Final = {
    "icmp": ICMP,
    "igmp": 2,
    "tcp": TCP,
    "udp": UDP,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmp6": ICMP6,
    "ipv6-icmp": ICMP6,
    "sctp": 132,
}
"""IP protocol numbers by the words that logs use (IANA registry *Assigned Internet Protocol Numbers*)."""

PROTOCOL_UNKNOWN: Final = 255
"""Of a flow whose log names no protocol that counts here (reserved by IANA)."""


class FlowState(IntEnum):
    """How a flow went."""

    OTHER = 0
    """Nothing is known: not TCP, begun before the log, or seen in one direction only."""
    ESTABLISHED = 1
    """Both sides agreed on a connection, and none tore it down."""
    ATTEMPT = 2
    """A connection was asked for, and nothing that counts came back."""
    REJECTED = 3
    """A connection was asked for and refused."""
    RESET = 4
    """A connection was torn down by a reset."""


FAILED_STATES: Final = frozenset({FlowState.ATTEMPT, FlowState.REJECTED})


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One flow, from its first to its last packet.

    Addresses are 128-bit numbers, IPv4 as its IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2).

    Attributes:
        start_s: first packet, seconds since the epoch.
        duration_s: seconds to the last packet, 0 where the log does not know.
        originator: address of who began.
        responder: address of the other end.
        originator_port: 0 for protocols without ports.
        responder_port: 0 for protocols without ports.
        protocol: IP protocol number.
        originator_bytes: bytes that the originator sent, from the network header on where the log has them.
        responder_bytes: bytes that came back.
        originator_packets: packets that the originator sent.
        responder_packets: packets that came back.
        state: how it went.
    """

    start_s: float
    duration_s: float
    originator: int
    responder: int
    originator_port: int
    responder_port: int
    protocol: int
    originator_bytes: int
    responder_bytes: int
    originator_packets: int
    responder_packets: int
    state: FlowState

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            PeerError: one is out of range; ``reason`` is ``time``, ``duration``, ``address``, ``port``, ``protocol``
                or ``count``.
        """
        if not 0.0 <= self.start_s <= TIME_S_MAX:
            raise PeerError(f"flow starts at {self.start_s!r} s, expected 0 to {TIME_S_MAX:.0f}", reason="time")
        if not 0.0 <= self.duration_s <= DURATION_S_MAX:
            raise PeerError(f"flow lasts {self.duration_s!r} s, expected 0 to {DURATION_S_MAX:.0f}", reason="duration")
        if not (0 <= self.originator < 1 << 128 and 0 <= self.responder < 1 << 128):
            raise PeerError("flow has an address outside of 128 bits", reason="address")
        if not (0 <= self.originator_port <= 65_535 and 0 <= self.responder_port <= 65_535):
            raise PeerError(
                f"flow has ports {self.originator_port} and {self.responder_port}, expected 0 to 65535", reason="port"
            )
        if not 0 <= self.protocol <= 255:
            raise PeerError(f"flow has protocol {self.protocol}, expected 0 to 255", reason="protocol")
        counts = (self.originator_bytes, self.responder_bytes, self.originator_packets, self.responder_packets)
        if min(counts) < 0 or max(counts) > COUNT_MAX:
            raise PeerError(f"flow has a count out of 0 to {COUNT_MAX}: {counts}", reason="count")

    @property
    def end_s(self) -> float:
        """Last packet, seconds since the epoch."""
        return self.start_s + self.duration_s


FLOW_REASONS: Final = (
    "address",
    "count",
    "duration",
    "field_count",
    "missing",
    "not_a_number",
    "not_json",
    "not_text",
    "no_header",
    "port",
    "protocol",
    "time",
)
"""Why a line of a flow log can be refused: every ``reason`` that a parser raises."""


class FlowParser(Protocol):
    """Turns lines of one kind of log into flows. It holds what the log's header said, and nothing else."""

    def parse(self, line: bytes) -> FlowRecord | None:
        """Read one line, without its line break.

        Returns:
            None for a line that is no flow and no fault: a header, a comment, another kind of event.

        Raises:
            PeerError: the line is broken; ``reason`` is one of ``FLOW_REASONS``.
            SourceError: the log is of a kind that cannot be read at all (its header lacks a column).
        """
        ...

    def context(self) -> str:
        """What a parser that starts in the middle of the file needs to know; ``""`` for nothing."""
        ...

    def restore(self, context: str) -> None:
        """Take over what ``context`` returned.

        Raises:
            SourceError: it is damaged.
        """
        ...


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def address_number(text: str) -> int:
    """A 128-bit number of an address as text.

    Raises:
        PeerError: it is none (reason ``address``).
    """
    if len(text) <= ADDRESS_CHARACTERS_MAX:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            pass
        else:
            return int(address) | _IPV4_MAPPED if address.version == 4 else int(address)
    raise PeerError(f"found {text[:ADDRESS_CHARACTERS_MAX]!r}, expected an IP address", reason="address")


def count_of(text: str) -> int:
    """A count as text; ``1234.0`` as spreadsheets write it is 1234.

    Raises:
        PeerError: it is no whole number of at most ``DIGITS_MAX`` digits (reason ``not_a_number``).
    """
    whole, point, rest = text.partition(".")
    if whole.isascii() and whole.isdigit() and len(whole) <= DIGITS_MAX and not (point and rest.strip("0")):
        return int(whole)
    raise PeerError(f"found {text[:40]!r}, expected a count", reason="not_a_number")


def seconds_of(text: str) -> float:
    """A time or duration in seconds as text.

    Raises:
        PeerError: it is no finite number (reason ``not_a_number``).
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise PeerError(f"found {text[:40]!r}, expected a finite number of seconds", reason="not_a_number")
    return seconds


def protocol_number(text: str) -> int:
    """Number of a protocol that a log names by word or number; ``PROTOCOL_UNKNOWN`` for a word not known here.

    Raises:
        PeerError: a number out of range (reason ``protocol``).
    """
    if text.isascii() and text.isdigit():
        if len(text) > 3 or int(text) > 255:
            raise PeerError(f"found protocol {text[:10]!r}, expected 0 to 255", reason="protocol")
        return int(text)
    return PROTOCOLS.get(text.lower(), PROTOCOL_UNKNOWN)


def state_of_flags(originator: int, responder: int) -> FlowState:
    """State of a TCP flow by all the flags that each side set.

    Args:
        originator: flags of the originator's packets, or-ed.
        responder: flags of the responder's packets, or-ed; 0 where none were seen.
    """
    if originator & SYN and not originator & ACK:
        return FlowState.REJECTED if responder & RST and not responder & SYN else FlowState.ATTEMPT
    if (originator | responder) & RST:
        return FlowState.RESET
    if originator & ACK and (originator | responder) & SYN:
        return FlowState.ESTABLISHED
    return FlowState.OTHER
