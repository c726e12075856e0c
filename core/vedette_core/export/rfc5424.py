"""Syslog messages and their framing.

Source: RFC 5424 (message), RFC 6587 §3.4.1 and RFC 5425 §4.3 (octet counting on TCP and TLS), RFC 5426 (datagrams).
"""

from __future__ import annotations

import re
from typing import Final

from vedette_core.export import facts
from vedette_schemas.alert import Alert, AlertState, Severity

FACILITY: Final = 16
"""local0: free for what no other facility is meant for."""
SEVERITIES: Final = {Severity.LOW: 5, Severity.MEDIUM: 4, Severity.HIGH: 3, Severity.CRITICAL: 2}
"""Notice, warning, error, critical."""
CLOSED_SEVERITY: Final = 6
"""Informational: the end of an alert wakes nobody."""
APP_NAME: Final = "vedette"
SEQUENCE_MAX: Final = 2**31 - 1
"""``meta sequenceId`` runs from 1 to this and starts anew (RFC 5424 §7.3.1)."""
DATAGRAM_BYTES_MAX: Final = 65_507
"""What one UDP datagram over IPv4 holds."""
VERSION_CHARACTERS_MAX: Final = 32
"""Length of ``swVersion`` (RFC 5424 §7.2.4)."""
BOM: Final = b"\xef\xbb\xbf"

_SPECIAL: Final = re.compile(r'(["\\\]])')


def message(alert: Alert, body: bytes, sequence: int, version: str) -> bytes:
    """A syslog message that carries a document.

    Args:
        alert: the alert, for the header.
        body: the document as UTF-8, without a line end.
        sequence: the sender's running number, from 0: a reader sees by it what a datagram lost.
        version: Vedette's version.

    Raises:
        PeerError: a time that does not exist.
    """
    severity = CLOSED_SEVERITY if alert.state is AlertState.CLOSED else SEVERITIES[alert.severity]
    facts.moment(alert.time)
    software = f'software="{APP_NAME}" swVersion="{escape_parameter(version[:VERSION_CHARACTERS_MAX])}"'
    data = f'[meta sequenceId="{sequence % SEQUENCE_MAX + 1}"][origin {software}]'
    header = f"<{FACILITY * 8 + severity}>1 {alert.time} {alert.device} {APP_NAME} - {alert.detector} {data} "
    return header.encode() + (b"" if body.isascii() else BOM) + body


def escape_parameter(text: str) -> str:
    """A PARAM-VALUE: quotation mark, backslash and closing bracket escaped (RFC 5424 §6.3.3)."""
    return _SPECIAL.sub(r"\\\1", text)


def counted(text: bytes) -> bytes:
    """A message framed by its length in octets, for TCP and TLS."""
    return str(len(text)).encode() + b" " + text
