"""Zeek's ``conn.log``: tab-separated with its header lines, or JSON lines.

Source: the Zeek manual, *Log formats and inspection* and *conn.log*.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from vedette_device.sources.errors import RowsError, SourceError
from vedette_device.sources.flow_record import (
    FlowRecord,
    FlowState,
    address_number,
    count_of,
    protocol_number,
    seconds_of,
)
from vedette_device.sources.packets import ICMP, ICMP6, TCP
from vedette_schemas.errors import PeerError

FIELDS_MAX: Final = 256
"""Most fields of a log: ``conn.log`` has 21, with every known package's additions some 60."""

CONTEXT_CHARACTERS_MAX: Final = 32_768
"""Longest stored header: the longest line of field names, and its marks."""

REQUIRED: Final = ("ts", "id.orig_h", "id.resp_h", "proto")
"""Without these a line says nothing about any device."""

STATES: Final = {
    "S0": FlowState.ATTEMPT,
    "S1": FlowState.ESTABLISHED,
    "SF": FlowState.ESTABLISHED,
    "REJ": FlowState.REJECTED,
    "S2": FlowState.ESTABLISHED,
    "S3": FlowState.ESTABLISHED,
    "RSTO": FlowState.RESET,
    "RSTR": FlowState.RESET,
    "RSTOS0": FlowState.ATTEMPT,
    "RSTRH": FlowState.RESET,
    "SH": FlowState.ATTEMPT,
    "SHR": FlowState.OTHER,
    "OTH": FlowState.OTHER,
}
"""What ``conn_state`` says of a TCP connection."""


class ZeekParser:
    """Reads both forms; a line that begins with ``{`` is JSON.

    The counts are Zeek's ``*_ip_bytes`` where they are set (bytes from the network header on), else payload bytes.
    """

    def __init__(self) -> None:
        self._separator = "\t"
        self._unset, self._empty = "-", "(empty)"
        self._fields: tuple[str, ...] = ()

    def parse(self, line: bytes) -> FlowRecord | None:
        """Read one line; see ``FlowParser.parse``."""
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise PeerError("line is no UTF-8, expected Zeek's conn.log", reason="not_text") from None
        if not text:
            return None
        if text[0] == "{":
            return _flow(_json_cells(text))
        if text[0] == "#":
            self._take_header(text)
            return None
        if not self._fields:
            raise PeerError("line comes before #fields, expected Zeek's header first", reason="no_header")
        cells = text.split(self._separator)
        if len(cells) != len(self._fields):
            raise PeerError(
                f"line has {len(cells)} fields, expected {len(self._fields)} as in #fields", reason="field_count"
            )
        unset = (self._unset, self._empty)
        return _flow({name: cell for name, cell in zip(self._fields, cells, strict=True) if cell not in unset})

    def _take_header(self, text: str) -> None:
        if text.startswith("#separator"):
            # The only line that is split by a space: it says what splits the others, as \x09.
            self._separator = _unescaped(text[len("#separator") :].strip()) or "\t"
            return
        name, *values = text.split(self._separator)
        if name == "#unset_field" and values:
            self._unset = values[0]
        elif name == "#empty_field" and values:
            self._empty = values[0]
        elif name == "#path" and values and values[0] not in ("conn", self._unset):
            raise RowsError(f"this is Zeek's {values[0][:40]}.log, expected conn.log; set path to that file")
        elif name == "#fields":
            missing = [field for field in REQUIRED if field not in values]
            if missing or len(values) > FIELDS_MAX:
                raise RowsError(
                    f"#fields has {len(values)} names and lacks {', '.join(missing) or 'none'}; expected a conn.log "
                    f"with at least {', '.join(REQUIRED)} and at most {FIELDS_MAX} names"
                )
            self._fields = tuple(values)

    def context(self) -> str:
        """What the header said, as JSON; ``""`` before one was read."""
        if not self._fields:
            return ""
        return json.dumps([self._separator, self._unset, self._empty, *self._fields])

    def restore(self, context: str) -> None:
        """Take over what ``context`` returned.

        Raises:
            SourceError: it is damaged.
        """
        if not context:
            return
        try:
            words = json.loads(context) if len(context) <= CONTEXT_CHARACTERS_MAX else None
        except (ValueError, RecursionError):
            words = None
        if not isinstance(words, list) or len(words) < 4 or not all(isinstance(w, str) for w in words) or not words[0]:
            raise SourceError("stored position holds no Zeek header; start the source anew")
        self._separator, self._unset, self._empty = words[:3]
        self._fields = tuple(words[3 : 3 + FIELDS_MAX])


def _unescaped(text: str) -> str:
    """``\\x09`` as the character that it stands for; other text as it is."""
    if text.startswith("\\x") and len(text) == 4:
        try:
            return chr(int(text[2:], 16))
        except ValueError:
            return ""
    return text[:1]


def _json_cells(text: str) -> dict[str, str]:
    """The scalar fields of a JSON line, as text."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PeerError("line begins like JSON and is none", reason="not_json") from error
    if not isinstance(document, dict):
        raise PeerError(f"line is a JSON {type(document).__name__}, expected an object", reason="not_json")
    return {
        name: value if isinstance(value, str) else repr(value)
        for name, value in document.items()
        if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1 << 64)
    }


def _time(text: str) -> float:
    """Epoch seconds, or what ``LogAscii::json_timestamps = JSON::TS_ISO8601`` writes (always UTC)."""
    if "T" in text:
        try:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise PeerError(f"ts is {text[:40]!r}, expected a time", reason="time") from None
    return seconds_of(text)


def _flow(cells: Mapping[str, str]) -> FlowRecord:
    for name in REQUIRED:
        if name not in cells:
            raise PeerError(f"line lacks {name}", reason="missing")
    origin_port, answer_port = _port(cells, "id.orig_p"), _port(cells, "id.resp_p")
    protocol = protocol_number(cells["proto"])
    if protocol == ICMP:
        # Zeek keeps an ICMP message's type and code where other protocols have their ports.
        origin_port = answer_port = 0
        if ":" in cells["id.orig_h"]:
            protocol = ICMP6
    return FlowRecord(
        start_s=_time(cells["ts"]),
        duration_s=seconds_of(cells.get("duration", "0")),
        originator=address_number(cells["id.orig_h"]),
        responder=address_number(cells["id.resp_h"]),
        originator_port=origin_port,
        responder_port=answer_port,
        protocol=protocol,
        originator_bytes=_first_count(cells, "orig_ip_bytes", "orig_bytes"),
        responder_bytes=_first_count(cells, "resp_ip_bytes", "resp_bytes"),
        originator_packets=_first_count(cells, "orig_pkts"),
        responder_packets=_first_count(cells, "resp_pkts"),
        # Zeek uses the words for UDP too, where «S0» only says that nothing came back.
        state=STATES.get(cells.get("conn_state", ""), FlowState.OTHER) if protocol == TCP else FlowState.OTHER,
    )


def _port(cells: Mapping[str, str], name: str) -> int:
    try:
        return count_of(cells.get(name, "0"))
    except PeerError as error:
        raise PeerError(f"{name}: {error}", reason="port") from None


def _first_count(cells: Mapping[str, str], *names: str) -> int:
    for name in names:
        if name in cells:
            return count_of(cells[name])
    return 0
