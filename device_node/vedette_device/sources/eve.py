"""Suricata's EVE log: of its many events, the ``flow`` lines.

Source: the Suricata user guide, *EVE JSON format*, event type *flow*.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from vedette_device.sources.flow_record import (
    COUNT_MAX,
    FlowRecord,
    FlowState,
    address_number,
    protocol_number,
    state_of_flags,
)
from vedette_device.sources.packets import TCP
from vedette_schemas.errors import PeerError

_MARK: Final = b'"flow"'
"""What every flow event has somewhere; most other lines of a busy EVE log need no parsing to be left out."""

_FLAGS_CHARACTERS_MAX: Final = 2
"""Hexadecimal digits of a set of TCP flags."""


class EveParser:
    """Reads the ``flow`` events and passes over all others."""

    def parse(self, line: bytes) -> FlowRecord | None:
        """Read one line; see ``FlowParser.parse``."""
        if not line.strip():
            return None
        if _MARK not in line and line.startswith(b"{"):
            return None
        try:
            event: Any = json.loads(line)
        except UnicodeDecodeError:
            raise PeerError("line is no UTF-8, expected EVE JSON", reason="not_text") from None
        except (ValueError, RecursionError):
            raise PeerError("line is no JSON, expected one EVE event a line", reason="not_json") from None
        if not isinstance(event, dict):
            raise PeerError(f"line is a JSON {type(event).__name__}, expected an object", reason="not_json")
        if event.get("event_type") != "flow":
            return None
        return _flow(event)

    def context(self) -> str:
        """Nothing: every line stands for itself."""
        return ""

    def restore(self, context: str) -> None:
        """Nothing to take over."""


def _flow(event: Mapping[str, Any]) -> FlowRecord:
    flow = event.get("flow")
    if not isinstance(flow, dict):
        raise PeerError("flow event has no flow object", reason="missing")
    start_s = _time(flow, "start")
    # A clock that was set back during the flow gives an end before its start.
    end_s = max(start_s, _time(flow, "end")) if "end" in flow else start_s + _count(flow, "age")
    protocol = protocol_number(_text(event, "proto"))
    to_server = _count(flow, "pkts_toserver")
    to_client = _count(flow, "pkts_toclient")
    return FlowRecord(
        start_s=start_s,
        duration_s=end_s - start_s,
        originator=address_number(_text(event, "src_ip")),
        responder=address_number(_text(event, "dest_ip")),
        originator_port=_count(event, "src_port", reason="port"),
        responder_port=_count(event, "dest_port", reason="port"),
        protocol=protocol,
        originator_bytes=_count(flow, "bytes_toserver"),
        responder_bytes=_count(flow, "bytes_toclient"),
        originator_packets=to_server,
        responder_packets=to_client,
        state=_state(event, flow, protocol, answered=to_client > 0),
    )


def _state(event: Mapping[str, Any], flow: Mapping[str, Any], protocol: int, *, answered: bool) -> FlowState:
    if protocol != TCP:
        return FlowState.OTHER
    tcp = event.get("tcp")
    if isinstance(tcp, dict):
        return state_of_flags(_flags(tcp, "tcp_flags_ts"), _flags(tcp, "tcp_flags_tc"))
    # Without flags only Suricata's own word is left: "established" and what follows it mean that both sides spoke.
    return FlowState.ESTABLISHED if answered and flow.get("state") in ("established", "closed") else FlowState.OTHER


def _flags(tcp: Mapping[str, Any], name: str) -> int:
    text = tcp.get(name, "")
    if isinstance(text, str) and 0 < len(text) <= _FLAGS_CHARACTERS_MAX:
        try:
            return int(text, 16)
        except ValueError:
            pass
    return 0


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise PeerError(f"flow event has {name} {str(value)[:40]!r}, expected text", reason="missing")
    return value


def _count(fields: Mapping[str, Any], name: str, *, reason: str = "not_a_number") -> int:
    value = fields.get(name, 0)
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise PeerError(f"flow event has {name} {str(value)[:40]!r}, expected a count", reason=reason)
    return value


def _time(flow: Mapping[str, Any], name: str) -> float:
    """Seconds of ``2026-11-27T06:12:33.123456+0100``."""
    try:
        moment = datetime.fromisoformat(_text(flow, name))
        if moment.tzinfo is None:
            raise ValueError("no zone")
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise PeerError(
            f"flow event has {name} {str(flow.get(name))[:40]!r}, expected a time with its zone", reason="time"
        ) from None
