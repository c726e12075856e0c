"""Registers of a device that speaks Modbus TCP, as windows of one process."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from vedette_device.features.sensor import SensorWindower
from vedette_device.features.windows import Window
from vedette_device.settings import SensorSection
from vedette_device.sources.interface import SampleBatch
from vedette_device.sources.modbus import ModbusPoller
from vedette_device.sources.modbus_frames import Register
from vedette_device.window_stream import POLL_S
from vedette_schemas.errors import ConfigError, PeerError, TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.streams")

RETRY_FIRST_S: Final = 1.0
RETRY_LAST_S: Final = 60.0
"""A device that is away is asked again after one second, then after twice as long each time, up to a minute."""


class SensorModbusStream:
    """Registers polled once a period, at whole multiples of it, as windows of one process.

    Args:
        section: the sensor detector's settings.
        clock: seconds since the epoch.

    Raises:
        ConfigError: no registers, channels without one, or a number out of range.
    """

    recorded = False

    def __init__(self, section: SensorSection, *, clock: Callable[[], float] = time.time) -> None:
        registers = {
            each.channel: Register(
                each.channel, each.address, each.table, each.kind, each.word_order, each.scale, each.offset
            )
            for each in section.registers
        }
        silent = sorted(set(section.channels) - set(registers))
        if silent or len(registers) != len(section.registers):
            raise ConfigError(
                f"[[sensor.registers]]: found no register for {', '.join(silent) or 'none'} and "
                f"{len(section.registers) - len(registers)} channels twice, expected one for every channel"
            )
        modbus = section.modbus
        self._poller = ModbusPoller(
            modbus.host,
            modbus.port,
            modbus.unit,
            [registers[channel] for channel in section.channels],
            timeout_s=modbus.timeout_s,
        )
        self._windower = SensorWindower(section.entity, section.channels, period_s=section.period_s)
        self._channels, self._period_s, self._clock = section.channels, section.period_s, clock
        self._next_row: int | None = None
        self._retry_s, self._away_until_s = RETRY_FIRST_S, -math.inf
        self._missed = 0

    @property
    def schema(self) -> FeatureSchema:
        """See `WindowStream.schema`."""
        return self._windower.schema

    async def start(self) -> None:
        """Nothing to do: a device that is away now is connected to later."""

    async def read(self) -> list[Window] | None:
        """See `WindowStream.read`."""
        now_s = self._clock()
        row = math.floor(now_s / self._period_s)
        if self._next_row is None or row < self._next_row - 1:
            self._next_row = row + 1  # the beginning, or a clock that was set back
        if row < self._next_row:
            await asyncio.sleep(min(self._next_row * self._period_s - now_s, POLL_S))
            return []
        self._missed += row - self._next_row
        self._next_row = row + 1
        if 0.0 < self._away_until_s - now_s <= RETRY_LAST_S:
            self._missed += 1
            return []
        try:
            values = await self._poller.poll()
        except TransientError as error:
            log.warning("%s; trying again in %.0f s", error, self._retry_s)
            self._away_until_s = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)
            return []
        except PeerError as error:
            log.warning("%s", error)
            return []
        self._retry_s = RETRY_FIRST_S
        time_s = np.array([row * self._period_s])
        return self._windower.push(SampleBatch(self._channels, time_s, np.array([values])))

    def counters(self) -> Mapping[str, int]:
        """See `WindowStream.counters`."""
        windows = {f"window_{k}": n for k, n in self._windower.counters().items()}
        return {**self._poller.counters(), "polls_missed": self._missed, **windows}

    def position(self) -> bytes | None:
        """See `WindowStream.position`."""
        return None

    async def close(self) -> None:
        """See `WindowStream.close`."""
        await self._poller.close()
