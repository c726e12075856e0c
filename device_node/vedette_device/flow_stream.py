"""Flows of a Zeek, Suricata or NetFlow log, as windows of local devices."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.features.windows import Window
from vedette_device.resume_points import ResumePoints
from vedette_device.settings import NetworkSection
from vedette_device.sources.errors import SourceError
from vedette_device.sources.flow_log import PARSERS, FlowLog
from vedette_device.sources.line_follower import LinePosition
from vedette_device.window_stream import AWAY_RETRY_S, POLL_S, missing
from vedette_schemas.errors import TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.streams")

LINES_A_READ: Final = 1_024
"""Lines of one read: some 20 ms of parsing, so that the event loop stays awake."""

OWN_CLOCK_S: Final = 600.0
"""A log whose newest flow ended so lately is written now and on a clock that agrees with ours."""

QUIET_S: Final = 60.0
"""Seconds for which such a log may be quiet before our clock closes its windows: exporters log with a delay."""


class FlowLogStream:
    """Flows of a log as windows of local devices.

    Args:
        section: the network detector's settings.
        position: where to go on, as ``position`` returned it; one that is unreadable is passed over.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the path is missing or cannot be opened.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self, section: NetworkSection, position: bytes | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        if section.path is None:
            raise missing("network", "path", section.source)
        self._windower = FlowLogWindower(section.local_networks)
        self.recorded = not section.follow
        self._clock = clock
        start: LinePosition | None = None
        if position is not None and section.follow:
            try:
                start = LinePosition.from_bytes(position)
            except SourceError as error:
                log.warning("%s: %s", section.path, error)
        try:
            self._source = FlowLog(section.path, PARSERS[section.source], follow=section.follow, position=start)
        except SourceError as error:
            if start is None:
                raise
            log.warning("%s: %s", section.path, error)
            self._source = FlowLog(section.path, PARSERS[section.source], follow=section.follow)
        self._points = ResumePoints(self._source.position().to_bytes())
        self._ended = False

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: the file is open already."""

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        if self._ended:
            return None
        self._points.before_read(lambda: self._source.position().to_bytes())
        before = self._source.counters()["lines"]
        try:
            flows = self._source.read(LINES_A_READ)
        except TransientError as error:
            log.warning("%s", error)
            await asyncio.sleep(AWAY_RETRY_S)
            return []
        if flows is None:
            self._ended = True
            return self._windower.flush()
        if flows:
            windows = self._windower.push(flows)
            self._points.after_read(max(flow.end_s for flow in flows), windows)
            return windows
        if self._source.counters()["lines"] > before:
            return []  # lines, and none of them a flow: go on reading
        await asyncio.sleep(POLL_S)
        now_s, windows = self._clock(), []
        if not self.recorded and 0.0 <= now_s - self._windower.newest_s <= OWN_CLOCK_S:
            windows = self._windower.advance(now_s - QUIET_S)
        self._points.after_read(None, windows)
        return windows

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {**self._source.counters(), **{f"window_{k}": n for k, n in self._windower.counters().items()}}

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return None if self.recorded else self._points.best()

    async def close(self) -> None:
        """See `WindowStream.close`."""
        self._source.close()
