"""From log lines to counts: which *kinds* of lines came, and how often.

A line's kind is its program and its text without what changes (numbers, addresses, names with digits), hashed into a
fixed number of places. Nothing of the text is kept. A broker's lines about sessions are session events instead
(`vedette_device.sources.broker_log`): they name clients, and would be other kinds with every client.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from vedette_device.sources.broker_log import BrokerSessions

LINE_CHARACTERS_MAX: Final = 1_024
"""Of a longer line only the beginning counts: what kind of line it is shows there."""

JSON_BYTES_MAX: Final = 65_536
"""Largest journal entry that is decoded; of a larger one the text as it stands counts."""

WORDS_MAX: Final = 24
"""Words of a line that make its kind."""

PLACES: Final = 256
"""Places that kinds are hashed into. A gateway's logs have some hundred kinds: two of a hundred share one often, and
then add up, which only blurs what they say."""

ERROR_PRIORITY: Final = 3
"""Syslog severities up to *error*. Source: RFC 5424 §6.2.1."""

_PRIORITY = re.compile(r"<(\d{1,3})>")
_RFC5424 = re.compile(r"1 \S{1,64} \S{1,255} (\S{1,48}) \S{1,128} \S{1,32} (?:-|\[[^\]]{0,512}\])(?: |$)")
_RFC3164 = re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,255} ")
# A colon behind the time means that no host follows, as in Mosquitto's own log file.
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\S{0,15}: |\S{0,16} (?:\S{1,255} )?)")
# Seconds since the epoch, or a date: a program has letters in its name.
_NUMBER_TIME = re.compile(r"[\d./-]{1,48}: ")
_TAG = re.compile(r"([\w./@-]{1,48})(?:\[\d{1,10}\])?: ")
_DIGIT = re.compile(r"\d")
_EDGE = ".,;:!?()[]{}<>\"'="


class LogLineCounts:
    """Counts the kinds of lines: RFC 3164 and 5424 with or without priority, ISO times, and the journal's JSON."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sessions = BrokerSessions()

    def push(self, line: bytes) -> None:
        """Count one line; an empty one is none. No line is refused: whatever it holds is some kind."""
        if not line.strip():
            return
        program, text, priority = _parts(line)
        self._counts["log_lines"] += 1
        if priority is not None and priority <= ERROR_PRIORITY:
            self._counts["log_errors"] += 1
        if not self._sessions.push(program, text):
            self._counts[f"log_kind_{place_of(program, text):03d}"] += 1

    def take(self) -> Mapping[str, int]:
        """Counts since the last call: ``log_lines`` and ``log_errors`` always, at most ``PLACES`` kinds, and what
        `BrokerSessions.take` gives."""
        counts = {"log_lines": 0, "log_errors": 0, **self._counts, **self._sessions.take()}
        self._counts.clear()
        return counts


def template(text: str) -> str:
    """A line's words without what changes: each word with a digit becomes ``#``, and quoted edges fall away."""
    words = text[:LINE_CHARACTERS_MAX].split()[:WORDS_MAX]
    return " ".join("#" if _DIGIT.search(word) else word.strip(_EDGE) for word in words)


def place_of(program: str, text: str) -> int:
    """Place of a kind of line, 0 to ``PLACES`` - 1: the same on every device, so that a fleet can share a model."""
    kind = f"{program}\0{template(text)}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(kind, digest_size=8).digest()) % PLACES


def _parts(line: bytes) -> tuple[str, str, int | None]:
    """Program, text and severity of a line."""
    if line[:1] == b"{" and len(line) <= JSON_BYTES_MAX:
        parts = _journal(line)
        if parts is not None:
            return parts
    text = line[: 4 * LINE_CHARACTERS_MAX].decode("utf-8", "replace")[:LINE_CHARACTERS_MAX]
    priority = None
    if match := _PRIORITY.match(text):
        priority, text = int(match[1]) & 7, text[match.end() :]
    if match := _RFC5424.match(text):
        return match[1], text[match.end() :], priority
    if match := _RFC3164.match(text) or _ISO_TIME.match(text) or _NUMBER_TIME.match(text):
        text = text[match.end() :]
    if match := _TAG.match(text):
        return match[1], text[match.end() :], priority
    return "", text, priority


def _journal(line: bytes) -> tuple[str, str, int | None] | None:
    """The same of an entry that ``journalctl -o json`` wrote; None where it is no such entry."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("MESSAGE"), str):
        return None
    program = entry.get("SYSLOG_IDENTIFIER", entry.get("_COMM", ""))
    word = entry.get("PRIORITY")
    severity = int(word) if isinstance(word, str) and len(word) == 1 and word in "01234567" else None
    return (program if isinstance(program, str) else "")[:48], entry["MESSAGE"], severity
