"""From a configured source to a stream of windows: the one place where sources and windowers meet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_device.features import NetworkWindower, SensorWindower, Window
from vedette_device.sensor_broker import site_broker_context
from vedette_device.settings import NetworkSection, SensorSection
from vedette_device.sources import (
    CaptureFile,
    ChannelTopic,
    CsvFile,
    LiveInterface,
    PacketSource,
    SampleAligner,
    TopicDecoder,
)
from vedette_schemas.errors import ConfigError, TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.streams")

PACKETS_A_READ: Final = 4096
ROWS_A_READ: Final = 256
"""Small enough that a batch of windows is scored well within a tenth of a second, and the event loop stays awake."""
POLL_S: Final = 0.05
AWAY_RETRY_S: Final = 1.0
HELD_PERIODS: Final = 5.0
"""How many periods an MQTT reading is held when its channel is silent."""
PENDING_WINDOWS_MAX: Final = 4096
"""Windows of MQTT readings that wait for the detector; past it the oldest are dropped and counted."""


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

        Raises:
            SourceError: the input is broken here; all before it has been delivered.
        """

    def counters(self) -> Mapping[str, int]:
        """Records delivered and refused so far, by a fixed set of names."""

    async def close(self) -> None:
        """Let go of the source."""


def open_stream(section: NetworkSection | SensorSection) -> WindowStream:
    """The stream that a detector's settings describe.

    Raises:
        ConfigError: the settings do not fit the kind of source, or it cannot be opened.
    """
    if isinstance(section, NetworkSection):
        return NetworkStream(section)
    return SensorFileStream(section) if section.source == "file" else SensorTopicStream(section)


class NetworkStream:
    """Packets of a file, a growing file or an interface, as windows of local devices.

    Args:
        section: the network detector's settings.

    Raises:
        ConfigError: path or interface is missing or cannot be opened.
    """

    def __init__(self, section: NetworkSection) -> None:
        self._windower = NetworkWindower(section.local_networks)
        self.recorded = section.source == "file"
        self._live = section.source == "live"
        self._source: PacketSource
        if self._live:
            if section.interface is None:
                raise _missing("network", "interface", section.source)
            self._source = LiveInterface(section.interface)
        else:
            if section.path is None:
                raise _missing("network", "path", section.source)
            self._source = CaptureFile(section.path, follow=section.source == "follow")
        self._ended = False

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
            return self._windower.push(batch)
        await asyncio.sleep(POLL_S)
        # Only a live interface stamps packets with our own clock.
        return self._windower.advance(time.time()) if self._live else []

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {**self._source.counters(), **{f"window_{k}": n for k, n in self._windower.counters().items()}}

    async def close(self) -> None:
        """See `WindowStream.close`."""
        self._source.close()


class SensorFileStream:
    """Rows of a CSV file as windows of one process.

    Args:
        section: the sensor detector's settings.

    Raises:
        ConfigError: the path is missing or cannot be opened.
    """

    recorded = True

    def __init__(self, section: SensorSection) -> None:
        if section.path is None:
            raise _missing("sensor", "path", section.source)
        self._source = CsvFile(section.path, section.channels, time_column=section.time_column)
        self._windower = SensorWindower(section.entity, section.channels, period_s=section.period_s)

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: the file is open already."""

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        batch = self._source.read(ROWS_A_READ)
        return None if batch is None else self._windower.push(batch)

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        return {**self._source.counters(), **{f"window_{k}": n for k, n in self._windower.counters().items()}}

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

    async def close(self) -> None:
        """See `WindowStream.close`."""
        await self._link.stop()

    async def _take(self, message: MqttMessage) -> None:
        samples = self._decoder.decode(message.topic, message.payload, time.time())
        self._pending.extend(self._windower.push(self._aligner.push(samples)))
        while len(self._pending) > PENDING_WINDOWS_MAX:
            self._pending.popleft()
            self._dropped += 1


def _missing(table: str, key: str, source: str) -> ConfigError:
    return ConfigError(f"[{table}]: found source = {source!r} without {key}, expected one; set [{table}] {key}")
