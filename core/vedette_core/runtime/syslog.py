"""Sends syslog messages over UDP, TCP or TLS, and keeps what a receiver that is away will want later.

Syslog has no acknowledgement. What is done about it:

- A message leaves the backlog when the operating system has taken all of it.
- The connection is watched: a receiver that closes it, or whose machine no longer answers for `UNANSWERED_S`, is
  noticed without a message being sent.
- What was sent within `IN_DOUBT_S` before a connection was lost is sent again on the next one. A reader may see it
  twice: the running number and the alert's own id tell.
- UDP loses without a word; the running number shows it.

Source: RFC 5424, RFC 5425 (TLS), RFC 5426 (UDP), RFC 6587 §3.4.1 (octet counting).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vedette_core.export.rfc5424 import DATAGRAM_BYTES_MAX, counted
from vedette_core.runtime.syslog_backlog import Backlog, Waiting
from vedette_schemas.errors import ConfigError

log = logging.getLogger("vedette.syslog")

BACKLOG_MAX: Final = 10_000
"""Messages that wait for a receiver: about 10 MB, and a week of alerts of a busy site."""
RECONNECT_MIN_S: Final = 0.3
RECONNECT_MAX_S: Final = 15.0
"""Delays double between these, each times a random factor from 0.5 to 1.5."""
CONNECT_TIMEOUT_S: Final = 5.0
"""For name, TCP and TLS handshake together."""
UNANSWERED_S: Final = 20
"""A connection whose data nobody acknowledged for so long is lost."""
IN_DOUBT_S: Final = 30.0
"""Longer than `UNANSWERED_S`, so that whatever was not acknowledged is sent again."""
IN_DOUBT_MAX: Final = 1000
CLOSE_TIMEOUT_S: Final = 3.0
DATAGRAM_PAUSE_S: Final = 0.001
"""Between two datagrams: a file's worth at once would overrun the receiver's buffer."""


class Transport(StrEnum):
    """How messages travel."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class SyslogTarget:
    """A receiver.

    Attributes:
        transport: how to reach it.
        host: name or address; with TLS, as in its certificate.
        port: its port.
        tls: context for TLS, and for nothing else.
    """

    transport: Transport
    host: str
    port: int
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.tls is None) == (self.transport is Transport.TLS):
            raise ValueError("a TLS context belongs to TLS, and only to it")


@dataclass(slots=True)
class SyslogCounters:
    """What happened since the sender started.

    Attributes:
        sent: messages that the operating system took.
        repeated: messages that were taken back because their connection was lost soon after.
        dropped: messages that the backlog had no room for.
        oversize: messages that fit into no datagram.
        connects: connections made.
        failures: connections, or attempts at one, that failed; datagrams that came back.
    """

    sent: int = 0
    repeated: int = 0
    dropped: int = 0
    oversize: int = 0
    connects: int = 0
    failures: int = 0


class SyslogSender:
    """Sends messages to one receiver, in order, over as many connections as it takes.

    Args:
        target: the receiver.
        backlog_max: messages that wait at most; beyond it the oldest of the least severe goes, counted.
    """

    def __init__(self, target: SyslogTarget, *, backlog_max: int = BACKLOG_MAX) -> None:
        self.target = target
        self.counters = SyslogCounters()
        self.failure = ""
        """Why there is no connection; empty if there is one or nothing has been tried."""
        self._backlog = Backlog(backlog_max)
        self._number = 0
        self._writing = False
        self._changed = asyncio.Event()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="syslog")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def waiting(self) -> int:
        """Messages that no receiver has been given."""
        return len(self._backlog) + self._writing

    def offer(self, message: bytes, rank: int) -> None:
        """Take a message in; never waits.

        Args:
            message: a syslog message without framing.
            rank: severity from 0, given up first, to 3.
        """
        if self.target.transport is Transport.UDP and len(message) > DATAGRAM_BYTES_MAX:
            self.counters.oversize += 1
            log.warning("syslog: found a message of %d bytes, a datagram holds %d", len(message), DATAGRAM_BYTES_MAX)
            return
        dropped = self._backlog.push(Waiting(self._number, rank, message))
        self._number += 1
        self._count_dropped(0 if dropped is None else 1)
        self._arrived.set()

    async def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a message more would not displace another; tells whether there is room after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.waiting >= self._backlog.messages_max:
                    self._changed.clear()
                    await self._changed.wait()
        return self.waiting < self._backlog.messages_max

    async def drain(self, timeout_s: float) -> int:
        """Wait until nothing waits any more, at most `timeout_s`; returns how many messages still do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.waiting:
                    self._changed.clear()
                    await self._changed.wait()
        return self.waiting

    async def _run(self) -> None:
        delay = RECONNECT_MIN_S
        while True:
            began = time.monotonic()
            try:
                if self.target.transport is Transport.UDP:
                    await self._serve_datagrams()
                else:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        reader, writer = await asyncio.open_connection(
                            self.target.host, self.target.port, ssl=self.target.tls
                        )
                    await self._serve_stream(reader, writer)
            except (OSError, TimeoutError) as fault:
                self._note_failure(_reason(fault))
            if time.monotonic() - began > max(delay, CONNECT_TIMEOUT_S):
                delay = RECONNECT_MIN_S  # it worked for a while
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, RECONNECT_MAX_S)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to its end; raises what ended it."""
        _configure(writer)
        self._note_connection()
        in_doubt: deque[tuple[float, Waiting]] = deque(maxlen=IN_DOUBT_MAX)
        closed = asyncio.get_running_loop().create_task(_until_closed(reader))
        try:
            while True:
                item = await self._next(closed)
                in_doubt.append((time.monotonic(), item))
                writer.write(counted(item.message))
                await _first(asyncio.ensure_future(writer.drain()), closed)
                self._note_sent()
        except (OSError, TimeoutError):
            self._take_back(in_doubt)
            raise
        except asyncio.CancelledError:
            if not closed.done():
                await _close(writer)
            raise
        finally:
            closed.cancel()
            await asyncio.gather(closed, return_exceptions=True)
            writer.transport.abort()

    async def _serve_datagrams(self) -> None:
        """A socket for as long as it works; raises what ended it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, protocol = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self), remote_addr=(self.target.host, self.target.port)
            )
        self._note_connection()
        try:
            while True:
                item = await self._next(protocol.lost)
                transport.sendto(item.message)
                self._note_sent()
                await asyncio.sleep(DATAGRAM_PAUSE_S)
        finally:
            transport.close()

    async def _next(self, closed: asyncio.Future[None]) -> Waiting:
        """The next message; raises `OSError` when the connection ends before there is one."""
        while True:
            if closed.done():
                closed.result()
                raise ConnectionResetError("the receiver closed the connection")
            item = self._backlog.pop()
            if item is not None:
                self._writing = True
                return item
            self._arrived.clear()
            arrived = asyncio.ensure_future(self._arrived.wait())
            await _first(arrived, closed)

    def _take_back(self, in_doubt: deque[tuple[float, Waiting]]) -> None:
        since = time.monotonic() - IN_DOUBT_S
        items = [item for moment, item in in_doubt if moment >= since]
        unsent = int(self._writing)  # the last one never left, the others may have arrived
        self._writing = False
        self.counters.repeated += max(0, len(items) - unsent)
        self._count_dropped(len(self._backlog.put_back(items)))
        self._changed.set()

    def _note_sent(self) -> None:
        self._writing = False
        self.counters.sent += 1
        self._changed.set()

    def _note_connection(self) -> None:
        self.counters.connects += 1
        self.failure = ""
        log.info("syslog: sending to %s", self._where)

    def _note_failure(self, reason: str) -> None:
        self.counters.failures += 1
        if reason != self.failure:
            log.warning("syslog %s: %s; %d messages wait", self._where, reason, self.waiting)
        self.failure = reason

    def _count_dropped(self, count: int) -> None:
        if count and not self.counters.dropped:
            log.warning("syslog %s: the backlog is full, the least severe messages are dropped", self._where)
        self.counters.dropped += count

    @property
    def _where(self) -> str:
        return f"{self.target.transport}://{self.target.host}:{self.target.port}"


def tls_context(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS towards a receiver: its name is checked, TLS 1.2 or newer.

    Args:
        ca: authorities that its certificate may come from; None for those of the system.
        certificate: own certificate and intermediates, where the receiver asks for one.
        key: its key; None if the certificate's file holds it.

    Raises:
        ConfigError: a file is missing, or not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as fault:
        files = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        raise ConfigError(f"{files}: found files that TLS refuses ({_reason(fault)}), expected PEM") from fault
    return context


class _Datagrams(asyncio.DatagramProtocol):
    """A receiver that is not there answers a datagram with an error, sometimes; nothing more can be known."""

    def __init__(self, sender: SyslogSender) -> None:
        self._sender = sender
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def error_received(self, exc: Exception) -> None:
        self._sender._note_failure(_reason(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


async def _first(wanted: asyncio.Future[Any], closed: asyncio.Future[None]) -> None:
    """Wait for either; raises what `wanted` raises, or `OSError` if the connection ended first."""
    try:
        await asyncio.wait((wanted, closed), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not wanted.done():
            wanted.cancel()
            await asyncio.gather(wanted, return_exceptions=True)
    if not wanted.cancelled():
        wanted.result()
    if closed.done():
        closed.result()
        raise ConnectionResetError("the receiver closed the connection")


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Read until the receiver closes; it has nothing to say, and what it says is thrown away."""
    while await reader.read(4096):
        pass


async def _close(writer: asyncio.StreamWriter) -> None:
    """Say goodbye, so that what was written arrives."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await writer.wait_closed()


def _configure(writer: asyncio.StreamWriter) -> None:
    # No buffer of asyncio's own: what `drain` waited for is with the operating system. With TLS the limit must not be
    # 0: its transport would pause although nothing is in the buffer.
    encrypted = writer.get_extra_info("ssl_object") is not None
    writer.transport.set_write_buffer_limits(high=int(encrypted), low=0)
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_USER_TIMEOUT", UNANSWERED_S * 1000), ("TCP_KEEPIDLE", UNANSWERED_S)):
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(fault: BaseException) -> str:
    match fault:
        case ssl.SSLCertVerificationError():
            return f"its certificate is refused here: {fault.verify_message}"
        case ssl.SSLError():
            return f"the TLS handshake failed: {fault.reason or fault}"
        case TimeoutError():
            return "no answer in time"
        case OSError():
            return fault.strerror or str(fault)
    return str(fault)
