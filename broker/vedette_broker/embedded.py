"""The embedded broker: no set-up, mutual TLS, access rules of the topic grammar, on loopback only.

Everything is in RAM: after a restart sessions and retained messages are gone, and clients publish theirs again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vedette_core.crypto.certificates import Purpose
from vedette_core.runtime.identity import Bundle, load_tls_identity, server_context
from vedette_schemas.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from vedette_broker.hub import Hub

log = logging.getLogger("vedette.broker")


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """Settings of the embedded broker.

    Attributes:
        bundle: directory of the broker's bundle, issued for the role ``broker``; its certificate names the site.
        site: the site that it must be of, where one is configured.
        host: a loopback address, or ``localhost``.
        port: TCP port; 0 takes a free one.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8883
    site: str | None = None


class EmbeddedBroker:
    """A broker in this process: ``async with EmbeddedBroker(config) as broker``.

    Args:
        config: its settings.
    """

    def __init__(self, config: EmbeddedConfig) -> None:
        self.config = config
        self._hub: Hub | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._port

    @property
    def counts(self) -> Counter[str]:
        """What happened: ``connect_accepted connect_refused subscribe_denied publish_accepted publish_denied
        publish_oversize message_dropped retained_dropped``.
        """
        return Counter() if self._hub is None else self._hub.counts

    async def __aenter__(self) -> EmbeddedBroker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.

        Raises:
            RefusedError: the address is not loopback.
            ConfigError: the port is taken, or the bundle is missing, expired or not the broker's.
        """
        from vedette_broker.hub import Hub

        host = check_loopback(self.config.host)
        bundle = Bundle(self.config.bundle)
        identity = load_tls_identity(bundle, time.time(), Purpose.TLS_SERVER)
        if self.config.site not in (None, identity.site):
            raise ConfigError(
                f"{self.config.bundle}: found a bundle of site {identity.site!r}, expected {self.config.site!r}; "
                "correct the setting, or issue the broker's bundle with that site's authority"
            )
        context = server_context(bundle)
        listener = _listen(host, self.config.port)
        for noisy in ("amqtt", "transitions"):
            if logging.getLogger(noisy).level == logging.NOTSET:
                logging.getLogger(noisy).setLevel(logging.WARNING)
        self._port = int(listener.getsockname()[1])
        hub = Hub(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{host}:{self._port}"}},
                "plugins": {
                    "vedette_broker.access.CertificateIdentity": {
                        "site": identity.site,
                        "bundle": str(self.config.bundle),
                    },
                    "vedette_broker.access.GrammarAccess": {"site": identity.site},
                },
            },
            listener,
            context,
        )
        await hub.start()
        self._hub = hub
        log.info("site %s: listening on %s port %d (mutual TLS, in memory)", identity.site, host, self._port)

    async def stop(self) -> None:
        """Cut the connections and stop; what is retained is lost."""
        hub, self._hub = self._hub, None
        if hub is not None:
            await hub.shutdown()


async def serve(config: EmbeddedConfig, ready: Callable[[int], None] | None = None) -> None:
    """Run the broker until SIGTERM or SIGINT.

    Args:
        config: its settings.
        ready: called with the port when it listens.

    Raises:
        RefusedError: the address is not loopback.
        ConfigError: the port is taken, or the bundle is missing, expired or not the broker's.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with EmbeddedBroker(config) as broker:
            if ready is not None:
                ready(broker.port)
            await stop.wait()
            log.info("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def check_loopback(host: str) -> str:
    """Return the loopback address that a host means.

    Raises:
        RefusedError: it is not loopback.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise RefusedError(
            f"broker: found address {host!r}, expected a loopback address (127.0.0.1, ::1): the embedded broker is not "
            "yet hardened for a network; run Mosquitto there: `vedette broker render mosquitto`",
            rule="loopback-only",
        )
    return host


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except (OSError, OverflowError) as fault:
        listener.close()
        raise ConfigError(
            f"broker: cannot listen on {host} port {port} ({getattr(fault, 'strerror', None) or fault}); stop what "
            "listens there or choose another port"
        ) from fault
    return listener
