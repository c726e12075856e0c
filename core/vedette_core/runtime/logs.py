"""Logging: one line an event on standard error, plain for people or JSON for journald."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

LINE_CHARACTERS_MAX: Final = 4000
"""Longer lines are cut: a peer's words must not fill the journal."""


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)[-LINE_CHARACTERS_MAX:]
        return json.dumps(entry, ensure_ascii=False)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        text = f"{time} {record.levelname.lower():7} {record.name}: {_one_line(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(level: str, form: Literal["plain", "json"]) -> None:
    """Send the process's log to standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``plain`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    handler.addFilter(_is_ours_or_serious)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("amqtt", "transitions"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _is_ours_or_serious(record: logging.LogRecord) -> bool:
    """What a library says below a warning is for its authors."""
    return record.levelno >= logging.WARNING or record.name.startswith("vedette")


def _one_line(text: str) -> str:
    """Keep a peer from forging log lines: control characters are escaped, and length is bounded."""
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:LINE_CHARACTERS_MAX])
    return clean + ("…" if len(text) > LINE_CHARACTERS_MAX else "")
