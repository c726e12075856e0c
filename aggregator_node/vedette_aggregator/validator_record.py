"""What a validator has said so far, one JSON line a proposal, in its own folder: nobody else can alter it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vedette_core.runtime.durable import file_error, write_durable
from vedette_schemas.errors import ConfigError

NAME: Final = "verdicts.jsonl"
LINES_MAX: Final = 1000
"""Newest that are kept, about 3 KB each."""


@dataclass(frozen=True, slots=True)
class Said:
    """One verdict.

    Attributes:
        at_s: epoch seconds.
        task: the task.
        role_version: of the proposal.
        sha256: of its bytes.
        refused: why it was not signed; empty if it was.
        releases: the gate's verdicts by release that the proposal adds (`GateVerdict.to_plain`).
    """

    at_s: float
    task: str
    role_version: int
    sha256: str
    refused: str
    releases: Mapping[str, list[dict[str, str]]]


class ValidatorRecord:
    """The record of one validator.

    Args:
        state_dir: its folder.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME

    def add(self, said: Said) -> None:
        """Write a verdict down; durable before this returns.

        Raises:
            TransientError: the disk is full.
        """
        kept = deque((json.dumps(asdict(each)) for each in self.all()), maxlen=LINES_MAX - 1)
        write_durable(self._path, "".join(f"{line}\n" for line in (*kept, json.dumps(asdict(said)))).encode())

    def all(self) -> tuple[Said, ...]:
        """Every verdict that is kept, oldest first.

        Raises:
            ConfigError: the file cannot be read.
        """
        if not self._path.exists():
            return ()
        try:
            lines = self._path.read_text().splitlines()
        except OSError as fault:
            raise file_error(fault, f"read {self._path}") from fault
        return tuple(_read(line, self._path) for line in lines)


def _read(line: str, path: Path) -> Said:
    try:
        plain: dict[str, Any] = json.loads(line)
        return Said(**plain)
    except (ValueError, TypeError) as fault:
        raise ConfigError(f"{path}: found a line that is no verdict ({fault}); move the file away") from fault
