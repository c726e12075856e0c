"""Devices that a person keeps out of rounds: written beside the aggregator's state, read by it while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from vedette_aggregator.round_memory import read_suspicions
from vedette_aggregator.round_state import RoundKeys
from vedette_aggregator.settings import AggregatorSettings
from vedette_aggregator.state_file import open_state
from vedette_core.runtime.storage import StateStore
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import check_id

PREFIX: Final = "quarantine/"
REASON_CHARACTERS_MAX: Final = 200


class Quarantine:
    """What is written down.

    Args:
        store: the aggregator's.
        tasks: its tasks, for the suspicions.
    """

    def __init__(self, store: StateStore, tasks: tuple[str, ...] = ()) -> None:
        self._store, self._tasks = store, tasks

    def devices(self) -> frozenset[str]:
        """Everybody who is kept out."""
        return frozenset(key.removeprefix(PREFIX) for key in self._store.all(PREFIX))

    def entries(self) -> list[dict[str, str]]:
        """Device, since when (UTC) and why, sorted by device."""
        rows = []
        for key, value in sorted(self._store.all(PREFIX).items()):
            rows.append({"device": key.removeprefix(PREFIX), **json.loads(value)})
        return rows

    def suspects(self) -> list[dict[str, Any]]:
        """Devices with any suspicion above zero, the most suspicious first, by task."""
        rows = []
        for task in self._tasks:
            stored = self._store.get(RoundKeys(task).memory)
            if stored is None:
                continue
            suspicions = read_suspicions(stored, RoundKeys(task).memory)
            for device, score in suspicions.ranked():
                if score > 0:
                    seen = suspicions.records[device].observations
                    rows.append({"task": task, "device": device, "suspicion": round(score, 2), "observations": seen})
        return rows

    def add(self, device: str, reason: str, *, dry_run: bool = False) -> None:
        """Keep a device out from the next attempt on.

        Args:
            device: its id.
            reason: why, for whoever looks later.
            dry_run: only check.

        Raises:
            ConfigError: it is no id.
        """
        key = PREFIX + _checked(device)
        if dry_run:
            return
        since = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        entry = json.dumps({"since": since, "reason": reason[:REASON_CHARACTERS_MAX]})
        self._store.put(key, entry.encode())

    def release(self, device: str, *, dry_run: bool = False) -> None:
        """Let a device take part again.

        Args:
            device: its id.
            dry_run: only check.

        Raises:
            ConfigError: it is not kept out.
        """
        if self._store.get(PREFIX + _checked(device)) is None:
            kept_out = ", ".join(sorted(self.devices())) or "nobody is kept out"
            raise ConfigError(f"{device}: found no quarantine of it, expected one of: {kept_out}")
        if not dry_run:
            self._store.put(PREFIX + device, None)


@contextmanager
def open_quarantine(settings: AggregatorSettings) -> Iterator[Quarantine]:
    """The quarantine of an aggregator, which may be running.

    Raises:
        ConfigError: there is no aggregator's state.
    """
    with open_state(settings) as database:
        yield Quarantine(StateStore(database), tuple(task.task for task in settings.tasks))


def _checked(device: str) -> str:
    try:
        return check_id(device, "device")
    except PeerError as fault:
        raise ConfigError(str(fault)) from fault
