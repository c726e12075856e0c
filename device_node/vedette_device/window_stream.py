"""What a detector reads: windows of one source, whatever the source is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from vedette_device.features.windows import Window
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema

POLL_S: Final = 0.05
"""Seconds between two looks at a source that had nothing."""
AWAY_RETRY_S: Final = 1.0
"""Seconds until a source that is away is tried again."""


class WindowStream(Protocol):
    """Windows in the order of their time."""

    @property
    def schema(self) -> FeatureSchema:
        """What the windows hold."""

    @property
    def recorded(self) -> bool:
        """Whether it is a finished recording, which can wait and be replayed at a pace."""

    async def start(self) -> None:
        """Open what must be opened on the event loop."""

    async def read(self) -> list[Window] | None:
        """The next windows, perhaps none yet; None when there will never be more.

        Whoever calls again has taken over all windows of the call before.

        Raises:
            SourceError: the input is broken here; all before it has been delivered.
        """

    def counters(self) -> Mapping[str, int]:
        """Records delivered and refused so far, by a fixed set of names."""

    def position(self) -> bytes | None:
        """Where a stream that is opened after a restart goes on, so that every window not taken over comes whole.

        None for the start, and for what cannot go back: an interface, topics, and recordings, which are read anew.
        """

    async def close(self) -> None:
        """Let go of the source."""


def missing(table: str, key: str, source: str) -> ConfigError:
    """The error for a source without what it needs."""
    return ConfigError(f"[{table}]: found source = {source!r} without {key}, expected one; set [{table}] {key}")
