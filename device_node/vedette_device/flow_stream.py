"""Flows of a Zeek, Suricata or NetFlow log, as windows of local devices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.followed_log import FollowedLog
from vedette_device.settings import NetworkSection
from vedette_device.sources.flow_log import PARSERS, FlowLog
from vedette_device.window_stream import missing
from vedette_schemas.features import FeatureSchema

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
        path, parser = section.path, PARSERS[section.source]
        self._windower = FlowLogWindower(section.local_networks)
        self._log = FollowedLog(
            path,
            follow=section.follow,
            position=position,
            open_at=lambda start: FlowLog(path, parser, follow=section.follow, position=start),
            windower=self._windower,
            time_of=lambda flow: flow.end_s,
            quiet_s=QUIET_S,
            clock=clock,
        )
        self.recorded = self._log.recorded
        self.read, self.counters = self._log.read, self._log.counters
        self.position, self.close = self._log.position, self._log.close

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: the file is open already."""
