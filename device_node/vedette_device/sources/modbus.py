"""Readings polled from a device that speaks Modbus TCP, such as a PLC.

Only registers are read, with function codes 3 and 4: nothing here can write to a device.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from vedette_device.sources.modbus_frames import HEADER_BYTES, Register, Request, plan, readings
from vedette_schemas.errors import ConfigError, PeerError, TransientError

CHANNELS_MAX: Final = 128
"""Most channels, as for topics: with their first differences they fill the largest feature schema."""

BUFFER_BYTES: Final = 1_024
"""Bytes of answers that are taken from the system ahead of being read; the largest has 260."""

REFUSED: Final = ("away", "timeout", "exception", "malformed", "transaction", "not_finite")
COUNTERS: Final = ("rows", "connects", *REFUSED)
"""What ``ModbusPoller.counters`` holds: complete rows, connections, and polls that gave none, by reason."""


class ModbusPoller:
    """Reads all channels of one device at a time, on one connection that is kept.

    After an exception the connection stays; after a timeout or an answer that breaks the protocol it is closed, since
    what comes next on it could belong to an older request.

    Args:
        host: name or address.
        port: TCP port.
        unit: unit identifier; 1 to 247 behind a gateway to a serial line, often 255 or 1 of a device itself.
        registers: one for each channel, in the order of a row's values.
        timeout_s: longest wait for a connection, and for one answer as a whole.

    Raises:
        ConfigError: no channel, too many, one named twice, or a number out of range.
    """

    def __init__(
        self, host: str, port: int, unit: int, registers: Sequence[Register], *, timeout_s: float = 2.0
    ) -> None:
        names = [register.channel for register in registers]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if not 0 < len(names) <= CHANNELS_MAX or repeated:
            raise ConfigError(
                f"Modbus registers of {len(names)} channels ({', '.join(repeated) or 'none'} named more than once), "
                f"expected 1 to {CHANNELS_MAX} distinct ones"
            )
        if not 0 <= unit <= 255 or not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"Modbus unit {unit} and timeout {timeout_s} s, expected 0 to 255 and more than 0")
        self._host, self._port, self._unit, self._timeout_s = host, port, unit, timeout_s
        self._registers, self._requests = tuple(registers), plan(registers)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._transaction = 0
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    async def poll(self) -> list[float]:
        """Read every channel once; all of them or none.

        Returns:
            Finite readings, in the order of the registers.

        Raises:
            TransientError: the device is away or too slow.
            PeerError: it refuses, breaks the protocol, or a reading is not finite; ``reason`` is one of ``REFUSED``.
        """
        try:
            await self._connect()
            answers = {request: await self._ask(request) for request in self._requests}
        except PeerError as error:
            self._counters[error.reason] += 1
            if error.reason != "exception":
                await self.close()
            raise
        except TimeoutError:
            self._counters["timeout"] += 1
            await self.close()
            raise TransientError(
                f"Modbus device {self._host}:{self._port} did not answer within {self._timeout_s} s"
            ) from None
        except (OSError, asyncio.IncompleteReadError) as error:
            self._counters["away"] += 1
            await self.close()
            raise TransientError(f"Modbus device {self._host}:{self._port} is away: {error}") from error
        values = readings(self._registers, answers)
        for register, value in zip(self._registers, values, strict=True):
            if not math.isfinite(value):
                self._counters["not_finite"] += 1
                raise PeerError(f"channel {register.channel} reads {value}, expected a number", reason="not_finite")
        self._counters["rows"] += 1
        return values

    async def _connect(self) -> None:
        if self._writer is not None:
            return
        async with asyncio.timeout(self._timeout_s):
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=BUFFER_BYTES)
        self._counters["connects"] += 1

    async def _ask(self, request: Request) -> tuple[int, ...]:
        assert self._reader is not None
        assert self._writer is not None
        self._transaction = (self._transaction + 1) & 0xFFFF
        async with asyncio.timeout(self._timeout_s):
            self._writer.write(request.encode(self._transaction, self._unit))
            await self._writer.drain()
            header = await self._reader.readexactly(HEADER_BYTES)
            body = await self._reader.readexactly(request.body_bytes(header, self._transaction, self._unit))
        return request.decode(body)

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    async def close(self) -> None:
        """Close the connection, if there is one. The next ``poll`` opens another."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            # A device that does not close its end must not hold us up; nothing unsent is worth waiting for.
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
