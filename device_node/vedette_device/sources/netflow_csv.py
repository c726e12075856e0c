"""Flows that a NetFlow or IPFIX collector wrote as CSV: nfdump's columns, or those named after NetFlow v9 fields.

nfdump writes times in the time zone of its process and without naming it; here they are UTC, so it must run with
``TZ=UTC``. Source: nfdump(1), output format ``csv``; RFC 3954 §8 for the field names of NetFlow v9.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from vedette_device.sources.errors import RowsError, SourceError
from vedette_device.sources.flow_record import (
    FlowRecord,
    FlowState,
    address_number,
    count_of,
    protocol_number,
    seconds_of,
    state_of_flags,
)
from vedette_device.sources.packets import ACK, SYN, TCP, UDP
from vedette_schemas.errors import PeerError

FIELDS_MAX: Final = 256
"""Most columns: nfdump writes 48, the widest published sets some 60."""

CONTEXT_CHARACTERS_MAX: Final = 32_768
"""Longest stored header."""

ROLES: Final[Mapping[str, Sequence[str]]] = {
    "start": ("ts", "firstseen"),
    "start_ms": ("flow_start_milliseconds", "flowstartmilliseconds"),
    "end": ("te", "lastseen"),
    "end_ms": ("flow_end_milliseconds", "flowendmilliseconds"),
    "duration": ("td", "duration"),
    "duration_ms": ("flow_duration_milliseconds",),
    "originator": ("sa", "srcaddr", "ipv4_src_addr", "ipv6_src_addr", "sourceipv4address"),
    "responder": ("da", "dstaddr", "ipv4_dst_addr", "ipv6_dst_addr", "destinationipv4address"),
    "originator_port": ("sp", "srcport", "l4_src_port", "sourcetransportport"),
    "responder_port": ("dp", "dstport", "l4_dst_port", "destinationtransportport"),
    "protocol": ("pr", "proto", "protocol", "protocolidentifier"),
    "originator_bytes": ("ibyt", "bytes", "in_bytes", "octetdeltacount"),
    "responder_bytes": ("obyt", "out_bytes"),
    "originator_packets": ("ipkt", "packets", "in_pkts", "packetdeltacount"),
    "responder_packets": ("opkt", "out_pkts"),
    "flags": ("flg", "flags", "tcp_flags"),
    "originator_flags": ("client_tcp_flags",),
    "responder_flags": ("server_tcp_flags",),
}
"""Lower-case column names by what they hold."""

REQUIRED: Final = ("originator", "responder", "protocol")

_FLAG_LETTERS: Final = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}
"""nfdump writes set flags as letters and others as dots: ``...AP.SF``."""

_FLAG_CHARACTERS_MAX: Final = 8


class NetflowCsvParser:
    """Reads one flow a line; the header line says which columns there are.

    A collector of *unidirectional* flows (nfdump without ``-B``) writes both directions as flows of their own. Bytes
    and packets then still count for the right device; that nothing came back shows for TCP only, by its flags.

    Args:
        untimed: take tables without times (published sets leave them out), and let every flow start at 0: good for
            measuring how fast and how far a table can be read, never for detection.
    """

    def __init__(self, *, untimed: bool = False) -> None:
        self._untimed = untimed
        self._header: tuple[str, ...] = ()
        self._place: dict[str, int] = {}

    def parse(self, line: bytes) -> FlowRecord | None:
        """Read one line; see ``FlowParser.parse``."""
        if not line.strip():
            return None
        try:
            cells = next(csv.reader([line.decode("utf-8-sig").strip()]), [])
        except (UnicodeDecodeError, csv.Error):
            raise PeerError("line is no CSV in UTF-8", reason="not_text") from None
        cells = [cell.strip() for cell in cells]
        if not self._header:
            self._take_header(cells)
            return None
        if cells == list(self._header):
            return None  # two exports one after another
        if len(cells) != len(self._header):
            raise PeerError(
                f"line has {len(cells)} fields, expected {len(self._header)} as in the header", reason="field_count"
            )
        return self._flow(cells)

    def _take_header(self, names: Sequence[str]) -> None:
        place: dict[str, int] = {}
        lower = [name.lower() for name in names]
        for role, known in ROLES.items():
            found = next((name for name in known if name in lower), None)
            if found is not None:
                place[role] = lower.index(found)
        lacking = [role for role in REQUIRED if role not in place]
        if not self._untimed and "start" not in place and "start_ms" not in place:
            lacking.append("start time")
        if lacking or len(names) > FIELDS_MAX:
            raise RowsError(
                f"header lacks a column for {', '.join(lacking) or 'nothing'} in {len(names)} columns: "
                f"{', '.join(names)[:300]}; expected at most {FIELDS_MAX}, named as nfdump or NetFlow v9 does"
            )
        self._header, self._place = tuple(names), place

    def _flow(self, cells: Sequence[str]) -> FlowRecord:
        start_s, duration_s = self._times(cells)
        protocol = protocol_number(self._required(cells, "protocol"))
        first = address_number(self._required(cells, "originator"))
        second = address_number(self._required(cells, "responder"))
        ports = self._port(cells, "originator_port"), self._port(cells, "responder_port")
        sent = self._count(cells, "originator_bytes"), self._count(cells, "originator_packets")
        back = self._count(cells, "responder_bytes"), self._count(cells, "responder_packets")
        state, reversed_ = self._state(cells, protocol)
        if protocol not in (TCP, UDP):
            ports = 0, 0  # nfdump writes an ICMP message's type and code as a port
        if reversed_:
            first, second, ports, sent, back = second, first, ports[::-1], back, sent
        return FlowRecord(
            start_s=start_s,
            duration_s=duration_s,
            originator=first,
            responder=second,
            originator_port=ports[0],
            responder_port=ports[1],
            protocol=protocol,
            originator_bytes=sent[0],
            responder_bytes=back[0],
            originator_packets=sent[1],
            responder_packets=back[1],
            state=state,
        )

    def _times(self, cells: Sequence[str]) -> tuple[float, float]:
        start_s = self._moment(cells, "start", "start_ms")
        if start_s is None:
            if not self._untimed:
                raise PeerError("line has no start time", reason="missing")
            start_s = 0.0
        end_s = self._moment(cells, "end", "end_ms")
        if end_s is not None:
            return start_s, max(end_s - start_s, 0.0)
        if text := self._cell(cells, "duration"):
            return start_s, seconds_of(text)
        text = self._cell(cells, "duration_ms")
        return start_s, seconds_of(text) / 1000.0 if text else 0.0

    def _moment(self, cells: Sequence[str], role: str, role_ms: str) -> float | None:
        if text := self._cell(cells, role_ms):
            return count_of(text) / 1000.0
        text = self._cell(cells, role)
        if not text:
            return None
        if text[4:5] != "-":
            return seconds_of(text)
        try:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise PeerError(f"{role} is {text[:40]!r}, expected a date and time", reason="time") from None

    def _state(self, cells: Sequence[str], protocol: int) -> tuple[FlowState, bool]:
        """State, and whether the log names the ends the wrong way round."""
        if protocol != TCP:
            return FlowState.OTHER, False
        theirs, ours = self._cell(cells, "responder_flags"), self._cell(cells, "originator_flags")
        if theirs and ours:
            first, second = _flags(ours), _flags(theirs)
            # SYN without any ACK ever is who asked: an exporter that saw the answer first has it as the other end.
            if second & SYN and not second & ACK and not (first & SYN and not first & ACK):
                return state_of_flags(second, first), True
            return state_of_flags(first, second), False
        # One set for both directions, or a flow of one direction: who set what cannot be told.
        return state_of_flags(_flags(self._cell(cells, "flags")), 0), False

    def _cell(self, cells: Sequence[str], role: str) -> str:
        place = self._place.get(role)
        return "" if place is None else cells[place]

    def _required(self, cells: Sequence[str], role: str) -> str:
        text = self._cell(cells, role)
        if not text:
            raise PeerError(f"line has no {role}", reason="missing")
        return text

    def _count(self, cells: Sequence[str], role: str) -> int:
        text = self._cell(cells, role)
        return count_of(text) if text else 0

    def _port(self, cells: Sequence[str], role: str) -> int:
        text = self._cell(cells, role)
        try:
            # nfdump writes the type and code of an ICMP message as ``8.0``.
            return count_of(text.partition(".")[0]) if text else 0
        except PeerError as error:
            raise PeerError(f"{role}: {error}", reason="port") from None

    def context(self) -> str:
        """The header, as JSON; ``""`` before it was read."""
        return json.dumps(self._header) if self._header else ""

    def restore(self, context: str) -> None:
        """Take over what ``context`` returned.

        Raises:
            SourceError: it is damaged.
        """
        if not context:
            return
        try:
            names = json.loads(context) if len(context) <= CONTEXT_CHARACTERS_MAX else None
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceError("stored position holds no CSV header; start the source anew")
        self._take_header(names)


def _flags(text: str) -> int:
    """TCP flags as a number, in hexadecimal with ``0x``, or as nfdump's letters; 0 for what is none of these."""
    if text.isascii() and text.isdigit():
        return int(text) & 0xFF if len(text) <= _FLAG_CHARACTERS_MAX else 0
    if text[:2] in ("0x", "0X") and len(text) <= _FLAG_CHARACTERS_MAX:
        try:
            return int(text, 16) & 0xFF
        except ValueError:
            return 0
    return sum({_FLAG_LETTERS.get(letter, 0) for letter in text[:_FLAG_CHARACTERS_MAX]})
