"""Accepts connections: limits before TLS, the newest TLS context for each, and nothing that a slow peer can hold up.

`asyncio.start_server` would keep the context that it was started with, and would not let unfinished handshakes be
counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from vedette_broker.limits import (
    ADDRESS_HANDSHAKES_MAX,
    CONNECT_TIMEOUT_S,
    CONNECTIONS_MAX,
    HANDSHAKES_MAX,
    PACKET_BYTES_MAX,
)
from vedette_broker.session_log import SessionEvent, SessionLog

log = logging.getLogger("vedette.broker")

ACCEPT_PAUSE_S: Final = 0.2
"""After a failed accept: no file descriptors, most likely, and they come back when connections end."""
SHUTDOWN_S: Final = 1.0
"""For the goodbye of TLS; a peer that does not answer it is cut."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Callable[[], None]], Awaitable[None]]
"""Serves a connection; the last argument is called when the peer has said who it is."""


class Listener:
    """The listening socket's owner.

    Args:
        listening: bound, listening, not blocking.
        serve: serves one connection until its end.
        context: the TLS context for a new connection.
        counts: where `connect_refused` and `handshake_failed` are counted.
        sessions: where they are logged.
    """

    def __init__(
        self,
        listening: socket.socket,
        serve: Serve,
        context: Callable[[], ssl.SSLContext],
        counts: Counter[str],
        sessions: SessionLog,
    ) -> None:
        self._socket, self._serve, self._context, self._counts = listening, serve, context, counts
        self._sessions = sessions
        self._greeted: set[asyncio.Task[None]] = set()
        self._unknown: Counter[str] = Counter()
        self._accepting = asyncio.create_task(self._accept(), name="broker-accept")

    @property
    def unknown(self) -> int:
        """Connections that have not said who they are."""
        return self._unknown.total()

    def close(self) -> None:
        """Accept nothing more and end what is still in its handshake; connections that are served are their owner's."""
        self._accepting.cancel()
        for task in self._greeted:
            task.cancel()
        self._socket.close()

    async def wait_closed(self) -> None:
        """Wait until nothing runs here any more."""
        await asyncio.gather(self._accepting, *self._greeted, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._socket)
            except OSError as fault:
                log.warning("cannot accept a connection: %s", fault.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            host = str(address[0])
            full = len(self._greeted) >= CONNECTIONS_MAX + HANDSHAKES_MAX or self._unknown.total() >= HANDSHAKES_MAX
            if full or self._unknown[host] >= ADDRESS_HANDSHAKES_MAX:
                self._counts["connect_refused"] += 1
                self._sessions.say(SessionEvent.REFUSED, host, "too many connections that have not said who they are")
                accepted.close()
                continue
            self._unknown[host] += 1
            task = loop.create_task(self._greet(accepted, host))
            self._greeted.add(task)
            task.add_done_callback(self._greeted.discard)

    async def _greet(self, accepted: socket.socket, host: str) -> None:
        known = False

        def identified() -> None:
            nonlocal known
            if not known:
                known = True
                self._unknown[host] -= 1
                if not self._unknown[host]:
                    del self._unknown[host]

        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=PACKET_BYTES_MAX, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._context(),
                ssl_handshake_timeout=CONNECT_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
            await self._serve(reader, asyncio.StreamWriter(transport, protocol, reader, loop), identified)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError) as fault:
            self._counts["handshake_failed"] += 1
            self._sessions.say(SessionEvent.REFUSED, host, f"no TLS session: {str(fault) or repr(fault)}")
        finally:
            identified()
