"""Where an aggregator's state lies, and how a command opens it beside the running service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vedette_aggregator.settings import AggregatorSettings
from vedette_core.runtime.storage import Database
from vedette_schemas.errors import ConfigError


def state_path(settings: AggregatorSettings) -> Path:
    """The aggregator's database, whether it is there or not."""
    return settings.state_dir / "aggregator.db"


def existing_state_path(settings: AggregatorSettings) -> Path:
    """The database of an aggregator that has run.

    Raises:
        ConfigError: there is none.
    """
    path = state_path(settings)
    if not path.exists():
        raise ConfigError(f"{path}: found no state there, expected that of an aggregator that has run")
    return path


@contextmanager
def open_state(settings: AggregatorSettings, tables: str = "") -> Iterator[Database]:
    """The state of an aggregator, which may be running.

    Args:
        settings: its settings.
        tables: statements that make the tables to be read, where they are not there yet.

    Raises:
        ConfigError: there is no aggregator's state.
    """
    database = Database(existing_state_path(settings), tables)
    try:
        yield database
    finally:
        database.close()
