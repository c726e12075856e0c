"""Session events in a broker's log: how many sessions were opened, ended, lost, refused and taken over.

A line is known by its form: that of our embedded broker, of Mosquitto (which says all of it at ``log_type notice``), or
of NATS (refused and taken over; the rest needs ``debug: true``). Nothing of the lines is kept but digests of the names
of a window's clients.

Source: lines of nats-server 2.9.10 and mosquitto 2.0.11, and the texts in the latter's program.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

CLIENTS_MAX: Final = 4_096
"""Most clients of a window that are told apart, more than a gateway's broker serves; their digests take 32 KB, and some
300 KB as Python keeps them."""


class SessionEvent(StrEnum):
    """What became of a session, or of a connection that wanted one; the value is the name of its count."""

    OPENED = "broker_sessions_opened"
    ENDED = "broker_sessions_ended"
    """Its client said that it leaves; of NATS also that it left without a word."""
    LOST = "broker_sessions_lost"
    """Keep-alive or network."""
    REFUSED = "broker_sessions_refused"
    """A connection got no session, or the broker ended one: certificate, authorisation, id, malformed, limits."""
    TAKEN_OVER = "broker_sessions_taken_over"
    """A second connection came with its client's id."""


CLIENTS: Final = "broker_clients_distinct"
"""Name of the count of clients whose sessions were opened, ended, lost or taken over in a window."""


@dataclass(frozen=True, slots=True)
class SessionLine:
    """What one line says.

    Attributes:
        event: what happened.
        client: whose session it was; empty where none was given.
    """

    event: SessionEvent
    client: str = ""


class BrokerSessions:
    """Counts the session events of a window."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._clients: set[bytes] = set()

    def push(self, program: str, text: str) -> bool:
        """Count a line, and tell whether it was a session event; see `session_line`."""
        found = session_line(program, text)
        if found is None:
            return False
        self._counts[found.event.value] += 1
        if found.client and len(self._clients) < CLIENTS_MAX:
            self._clients.add(hashlib.blake2b(found.client.encode("utf-8", "replace"), digest_size=8).digest())
        return True

    def take(self) -> dict[str, int]:
        """Counts since the last call: of each event that came, and of `CLIENTS` if one had a client's name."""
        counts = dict(self._counts)
        if self._clients:
            counts[CLIENTS] = len(self._clients)
        self._counts.clear()
        self._clients.clear()
        return counts


def session_line(program: str, text: str) -> SessionLine | None:
    """What a line says of a session; None where it is none of these brokers', or says something else.

    Args:
        program: who wrote it, as syslog and the journal say; empty where nobody does.
        text: the line behind that, as the program wrote it: with the broker's own time in it, or without.
    """
    if match := _VEDETTE.match(text):
        return _vedette(match)
    if match := _NATS.match(text):
        return _nats(match["level"], match["client"] or "", match["said"])
    if program.rpartition("/")[2] in ("", "mosquitto") and (match := _MOSQUITTO.match(text)):
        time = match["time"]
        if time is None or _CLOCK.search(time):
            return _mosquitto(match["said"])
    return None


def _of_client(event: SessionEvent, client: str) -> SessionLine:
    """An event of a session; a connection that ends without having had one counts as refused."""
    if not client or event is SessionEvent.REFUSED:
        return SessionLine(SessionEvent.REFUSED)
    return SessionLine(event, client)


# --- the embedded broker, plain and JSON; `vedette_broker.session_log` writes it

_VEDETTE: Final = re.compile(
    r"(?:\d\d:\d\d:\d\d \w{4,8} +|\{\"time\": \"[^\"]{1,40}\", \"level\": \"\w{4,8}\", \"logger\": \")"
    r"vedette\.broker(?:: |\", \"message\": \")session (?P<event>opened|ended|lost|refused|taken over): "
    r"(?P<client>[a-z0-9-]*)"
)


def _vedette(match: re.Match[str]) -> SessionLine:
    return _of_client(SessionEvent[match["event"].upper().replace(" ", "_")], match["client"])


# --- Mosquitto, with the time that `log_timestamp_format` asks for, in seconds since the epoch, or without

_MOSQUITTO: Final = re.compile(
    r"(?:(?P<time>[\w ,./:+\[\]()-]{1,48}?): )?(?P<said>(?:New client connected from |Client ).*)", re.DOTALL
)
_CLOCK: Final = re.compile(r"\d[./:-]\d|\d{9}")
_NEW_CLIENT: Final = re.compile(r"New client connected from \S+ as ")
_NO_CLIENT: Final = re.compile(r"Client connection from \S+ (?:failed: |denied)")
_MOSQUITTO_ENDS: Final = (
    (" already connected, closing old connection.", SessionEvent.TAKEN_OVER),
    (" has exceeded timeout, disconnecting.", SessionEvent.LOST),
    (" closed its connection.", SessionEvent.LOST),
    (" disconnected, not authorised.", SessionEvent.REFUSED),
    (" been disconnected by administrative action.", SessionEvent.REFUSED),
    (" disconnected.", SessionEvent.ENDED),
)
_MOSQUITTO_REASONS: Final = (
    (" disconnected due to ", SessionEvent.REFUSED),
    (" disconnected: ", SessionEvent.LOST),
)
_NOBODY: Final = "<unknown>"
"""What Mosquitto calls a client before it has a session."""


def _mosquitto(said: str) -> SessionLine | None:
    said = said.rstrip()
    if said.startswith("New "):
        match = _NEW_CLIENT.match(said)
        if match is None:
            return None
        client, found, _ = said[match.end() :].rpartition(" (p")
        return SessionLine(SessionEvent.OPENED, client if found else said[match.end() :])
    rest = said.removeprefix("Client ")
    for ending, event in _MOSQUITTO_ENDS:
        if rest.endswith(ending):
            return _of_client(event, _known(rest.removesuffix(ending)))
    # From the right: a client may call itself as it likes, and the reason is the broker's.
    at, event = max((rest.rfind(words), event) for words, event in _MOSQUITTO_REASONS)
    if at >= 0:
        return _of_client(event, _known(rest[:at]))
    return SessionLine(SessionEvent.REFUSED) if _NO_CLIENT.match(said) else None


def _known(client: str) -> str:
    return "" if client == _NOBODY else client


# --- NATS, in its own log with process, time and level, and in syslog without

_NATS: Final = re.compile(
    r"(?:\[\d{1,10}\] )?(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})? )?(?:\[(?P<level>[A-Z]{3})\] )?"
    r"\S{1,80} - mid(?:_ws)?:\d{1,20} - (?:\"(?P<client>(?:[^\"\\]|\\.)*)\" - (?:\"(?:[^\"\\]|\\.)*\" - )*)?"
    r"(?P<said>.*)",
    re.DOTALL,
)
_NATS_CLOSED: Final = "Client connection closed: "
_NATS_REFUSALS: Final = (
    "TLS handshake error",
    "authentication error",
    "maximum connections exceeded",
    "unacceptable protocol version",
)
"""Errors that end a connection, whatever the level; others do where no client has a name yet."""
_NATS_REASONS: Final = {
    "Client Closed": SessionEvent.ENDED,
    "Read Error": SessionEvent.LOST,
    "Write Error": SessionEvent.LOST,
    "Stale Connection": SessionEvent.LOST,
    "Slow Consumer (Pending Bytes)": SessionEvent.LOST,
    "Slow Consumer (Write Deadline)": SessionEvent.LOST,
    "Protocol Violation": SessionEvent.REFUSED,
    "Authentication Timeout": SessionEvent.REFUSED,
}
"""What the reason of a closed connection means. Others are no event, or one that another line has told."""


def _nats(level: str | None, client: str, said: str) -> SessionLine | None:
    if said.startswith("Replacing old client "):
        return SessionLine(SessionEvent.TAKEN_OVER, client)
    if said.startswith(_NATS_REFUSALS) or (level == "ERR" and not client):
        return SessionLine(SessionEvent.REFUSED)
    if said.rstrip() == "Client connected":
        return SessionLine(SessionEvent.OPENED, client)
    if not said.startswith(_NATS_CLOSED):
        return None
    reason = said.removeprefix(_NATS_CLOSED).rstrip()
    event = _NATS_REASONS.get(reason)
    if event is None or (not client and reason == "Protocol Violation"):
        return None  # an error of a connection without a name was told already
    return _of_client(event, client)
