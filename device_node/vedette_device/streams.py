"""From a configured source to a stream of windows: the one place where sources and windowers meet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_device.behaviour_stream import CountFileStream, LiveBehaviourStream
from vedette_device.features import NetworkWindower, SensorWindower, Window
from vedette_device.flow_stream import FlowLogStream
from vedette_device.modbus_stream import SensorModbusStream
from vedette_device.resume_points import ResumePoints
from vedette_device.sensor_broker import site_broker_context
from vedette_device.settings import BehaviourSection, DetectorSection, NetworkSection, SensorSection
from vedette_device.sources import (
    CaptureFile,
    ChannelTopic,
    CsvFile,
    LiveInterface,
    PacketSource,
    Position,
    SampleAligner,
    SourceError,
    TopicDecoder,
)
from vedette_device.sources.json_rows import JsonRows
from vedette_device.sources.line_follower import LinePosition
from vedette_device.window_stream import AWAY_RETRY_S, POLL_S, WindowStream, missing
from vedette_schemas.errors import ConfigError, TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.streams")

PACKETS_A_READ: Final = 4096
ROWS_A_READ: Final = 256
"""Small enough that a batch of windows is scored well within a tenth of a second, and the event loop stays awake."""
HELD_PERIODS: Final = 5.0
"""How many periods an MQTT reading is held when its channel is silent."""
PENDING_WINDOWS_MAX: Final = 4096
"""Windows of MQTT readings that wait for the detector; past it the oldest are dropped and counted."""


def open_stream(section: DetectorSection, position: bytes | None = None) -> WindowStream:
    """The stream that a detector's settings describe.

    Args:
        section: the detector's settings.
        position: where a growing file goes on, as `WindowStream.position` returned it before a restart. One that no
            longer fits (another file, other settings) is logged, and the file is read from its start.

    Raises:
        ConfigError: the settings do not fit the kind of source, or it cannot be opened.
    """
    if isinstance(section, NetworkSection):
        if section.source in ("zeek", "eve", "netflow"):
            return FlowLogStream(section, position)
        return NetworkStream(section, position)
    if isinstance(section, BehaviourSection):
        return LiveBehaviourStream(section) if section.source == "live" else CountFileStream(section, position)
    if section.source == "modbus":
        return SensorModbusStream(section)
    return SensorTopicStream(section) if section.source == "mqtt" else SensorFileStream(section, position)


class NetworkStream:
    """Packets of a file, a growing file or an interface, as windows of local devices.

    Args:
        section: the network detector's settings.
        position: where a growing file goes on.

    Raises:
        ConfigError: path or interface is missing or cannot be opened.
    """

    def __init__(self, section: NetworkSection, position: bytes | None = None) -> None:
        self._windower = NetworkWindower(section.local_networks)
        self.recorded = section.source == "file"
        self._live = section.source == "live"
        self._source: PacketSource
        self._growing: CaptureFile | None = None
        self._points = ResumePoints()
        if self._live:
            if section.interface is None:
                raise missing("network", "interface", section.source)
            self._source = LiveInterface(section.interface)
        elif section.path is None:
            raise missing("network", "path", section.source)
        elif section.source == "follow":
            self._source = self._growing = self._opened(section.path, position)
        else:
            self._source = CaptureFile(section.path)
        self._ended = False

    def _opened(self, path: Path, position: bytes | None) -> CaptureFile:
        """A growing capture, at the position if it still fits."""
        source = CaptureFile(path, follow=True)
        if position is None:
            return source
        try:
            source.seek(Position.from_json(position.decode("utf-8", "replace")))
        except SourceError as error:
            log.warning("%s; reading it from its start", error)
            source.close()
            return CaptureFile(path, follow=True)
        self._points = ResumePoints(position)
        return source

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: files and sockets are open already."""

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        if self._ended:
            return None
        if self._growing is not None:
            self._points.before_read(self._growing.position().to_json().encode)
        try:
            batch = self._source.read(PACKETS_A_READ)
        except TransientError as error:
            log.warning("%s", error)
            await asyncio.sleep(AWAY_RETRY_S)
            return []
        if batch is None:
            self._ended = True
            return self._windower.flush()
        if len(batch):
            windows = self._windower.push(batch)
            self._points.after_read(float(batch.time_ns.max()) / 1e9, windows)
            return windows
        await asyncio.sleep(POLL_S)
        # Only a live interface stamps packets with our own clock.
        return self._windower.advance(time.time()) if self._live else []

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {**self._source.counters(), **{f"window_{k}": n for k, n in self._windower.counters().items()}}

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return self._points.best() if self._growing is not None else None

    async def close(self) -> None:
        """See `WindowStream.close`."""
        self._source.close()


class SensorFileStream:
    """Rows of a CSV file, or of JSON lines, as windows of one process.

    Args:
        section: the sensor detector's settings.
        position: where a growing file goes on.

    Raises:
        ConfigError: the path is missing or cannot be opened.
    """

    def __init__(self, section: SensorSection, position: bytes | None = None) -> None:
        if section.path is None:
            raise missing("sensor", "path", section.source)
        self._path, self._section = section.path, section
        self.recorded = not section.follow
        if self.recorded:
            position = None
        try:
            self._source = self._opened(position)
        except SourceError as error:
            if position is None:
                raise
            log.warning("%s; reading it from its start", error)
            self._source = self._opened(None)
        self._points = ResumePoints(self._place())
        self._windower = SensorWindower(section.entity, section.channels, period_s=section.period_s)

    def _opened(self, position: bytes | None) -> CsvFile | JsonRows:
        section = self._section
        if section.source == "jsonl":
            at = None if position is None else LinePosition.from_bytes(position)
            return JsonRows(
                self._path, section.channels, time_key=section.time_column, follow=section.follow, position=at
            )
        source = CsvFile(self._path, section.channels, time_column=section.time_column, follow=section.follow)
        if position is not None:
            source.seek(Position.from_json(position.decode("utf-8", "replace")))
        return source

    def _place(self) -> bytes:
        position = self._source.position()
        return position.to_bytes() if isinstance(position, LinePosition) else position.to_json().encode()

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: the file is open already."""

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        self._points.before_read(self._place)
        try:
            batch = self._source.read(ROWS_A_READ)
        except TransientError as error:
            log.warning("%s", error)
            await asyncio.sleep(AWAY_RETRY_S)
            return []
        if batch is None:
            return None
        windows = self._windower.push(batch)
        self._points.after_read(float(batch.time_s.max()) if len(batch) else None, windows)
        if not len(batch) and not self.recorded:
            await asyncio.sleep(POLL_S)
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


class SensorTopicStream:
    """Readings from the topics of the site's own broker, as windows of one process.

    Args:
        section: the sensor detector's settings.

    Raises:
        ConfigError: no topics, or channels without one.
    """

    recorded = False

    def __init__(self, section: SensorSection) -> None:
        silent = sorted(set(section.channels) - {t.channel for t in section.topics})
        if silent:
            raise ConfigError(
                f"[[sensor.topics]]: found no topic for {', '.join(silent)}, expected one for every channel"
            )
        channels = [ChannelTopic(t.channel, t.topic, t.path, t.time_path) for t in section.topics]
        self._decoder = TopicDecoder(channels)
        self._aligner = SampleAligner(
            section.channels, period_s=section.period_s, age_max_s=HELD_PERIODS * section.period_s
        )
        self._windower = SensorWindower(section.entity, section.channels, period_s=section.period_s)
        self._filters = sorted({t.topic for t in section.topics})
        # Where readings bring their own time, only the next reading can tell that it has passed.
        self._own_clock = not any(t.time_path for t in section.topics)
        self._pending: deque[Window] = deque()
        self._dropped = 0
        broker = section.broker
        tls, login = site_broker_context(broker)
        self._link = MqttLink(LinkConfig(broker.host, broker.port, broker.client_id, tls, login=login), self._take)

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Connect, in the background and for ever."""
        for topic_filter in self._filters:
            await self._link.subscribe(topic_filter, 1)
        await self._link.start()

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        if not self._pending:
            await asyncio.sleep(POLL_S)
        if self._own_clock:
            self._pending.extend(self._windower.push(self._aligner.advance(time.time())))
        windows = list(self._pending)
        self._pending.clear()
        return windows

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {
            **self._decoder.counters(),
            **{f"row_{k}": n for k, n in self._aligner.counters().items()},
            **{f"window_{k}": n for k, n in self._windower.counters().items()},
            "window_dropped": self._dropped,
        }

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return None

    async def close(self) -> None:
        """See `WindowStream.close`."""
        await self._link.stop()

    async def _take(self, message: MqttMessage) -> None:
        samples = self._decoder.decode(message.topic, message.payload, time.time())
        self._pending.extend(self._windower.push(self._aligner.push(samples)))
        while len(self._pending) > PENDING_WINDOWS_MAX:
            self._pending.popleft()
            self._dropped += 1
