"""The embedded broker: no set-up, mutual TLS, revocation, access rules of the topic grammar.

Without a state directory everything is in RAM: after a restart sessions and retained messages are gone, and clients
publish theirs again. With one, what was acknowledged is still there (`vedette_broker.store`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from vedette_broker.credentials import Credentials
from vedette_broker.figures import follow
from vedette_broker.limits import CONNECTIONS_MAX, HANDSHAKES_MAX
from vedette_broker.store import Durability, Store
from vedette_broker.version import check_amqtt
from vedette_core.crypto.certificates import Purpose
from vedette_core.runtime.identity import Bundle, load_tls_identity
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from vedette_broker.hub import Hub

log = logging.getLogger("vedette.broker")

FILES: Final = CONNECTIONS_MAX + HANDSHAKES_MAX + 64
"""Open files of a full broker: connections, store, logs."""


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """Settings of the embedded broker.

    Attributes:
        bundle: directory of the broker's bundle, issued for the role ``broker``; its certificate names the site.
        site: the site that it must be of, where one is configured.
        host: one address of this machine that is not public, or ``localhost``.
        port: TCP port; 0 takes a free one.
        state_dir: where it keeps what survives a restart; None keeps everything in RAM.
        durability: what an acknowledged message survives, where there is a `state_dir`.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8883
    site: str | None = None
    state_dir: Path | None = None
    durability: Durability = Durability.POWER


class EmbeddedBroker:
    """A broker in this process: ``async with EmbeddedBroker(config) as broker``.

    Args:
        config: its settings.
    """

    def __init__(self, config: EmbeddedConfig) -> None:
        self.config = config
        self._counts: Counter[str] = Counter()
        self._hub: Hub | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._port

    @property
    def counts(self) -> Counter[str]:
        """What happened: the keys of `vedette_broker.figures.EVENTS`."""
        return self._counts

    @property
    def hub(self) -> Hub | None:
        """The running broker's state."""
        return self._hub

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
            RefusedError: the address is public, or stands for every address.
            ConfigError: the port is taken, the bundle is missing, expired or not the broker's, the state directory
                cannot be used, or another amqtt is installed.
        """
        check_amqtt()
        from vedette_broker.access import Access
        from vedette_broker.hub import Hub

        host = check_address(self.config.host)
        bundle = Bundle(self.config.bundle)
        identity = load_tls_identity(bundle, time.time(), Purpose.TLS_SERVER)
        if self.config.site not in (None, identity.site):
            raise ConfigError(
                f"{self.config.bundle}: found a bundle of site {identity.site!r}, expected {self.config.site!r}; "
                "correct the setting, or issue the broker's bundle with that site's authority"
            )
        credentials = Credentials(bundle, self._counts)
        self._advise(host, credentials)
        listening = _listen(host, self.config.port)
        for noisy in ("amqtt", "transitions"):
            if logging.getLogger(noisy).level == logging.NOTSET:
                logging.getLogger(noisy).setLevel(logging.WARNING)
        self._port = int(listening.getsockname()[1])
        try:
            store = None if self.config.state_dir is None else Store(self.config.state_dir, self.config.durability)
        except ConfigError:
            listening.close()
            raise
        if store is not None and store.set_aside is not None:
            self._counts["store_set_aside"] += 1
        hub = Hub(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{host}:{self._port}"}},
                "plugins": {
                    "vedette_broker.access.CertificateIdentity": {
                        "site": identity.site,
                        "credentials": credentials,
                    },
                    "vedette_broker.access.GrammarAccess": {"site": identity.site},
                },
            },
            listening,
            credentials,
            Access(identity.site),
            store,
            self._counts,
        )
        await hub.start()
        self._hub = hub
        kept = "in memory" if store is None else f"state in {self.config.state_dir}"
        log.info("site %s: listening on %s port %d (mutual TLS, %s)", identity.site, host, self._port, kept)

    def _advise(self, host: str, credentials: Credentials) -> None:
        if ip_address(host).is_loopback:
            return
        log.warning(
            "listening on %s: the embedded broker is tested against the known attacks and reviewed by nobody "
            "outside; in "
            "production run Mosquitto or NATS with `vedette broker render`", host,
        )  # fmt: skip
        if credentials.revoked is None:
            log.warning("%s: no revocation list: a stolen certificate opens sessions until it ends", self.config.bundle)

    async def stop(self) -> None:
        """Cut the connections, write what survives, and stop."""
        hub, self._hub = self._hub, None
        if hub is not None:
            await hub.shutdown()


async def serve(
    config: EmbeddedConfig, ready: Callable[[int], None] | None = None, metrics: Metrics | None = None
) -> None:
    """Run the broker until SIGTERM or SIGINT.

    Args:
        config: its settings.
        ready: called with the port when it listens.
        metrics: kept up to date while it runs.

    Raises:
        RefusedError: the address is public, or stands for every address.
        ConfigError: as for `EmbeddedBroker.start`.
    """
    _raise_file_limit()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with EmbeddedBroker(config) as broker:
            if ready is not None:
                ready(broker.port)
            following = None if metrics is None else loop.create_task(follow(broker, metrics))
            await stop.wait()
            if following is not None:
                following.cancel()
            log.info("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def check_address(host: str) -> str:
    """Return the address that a host means.

    Raises:
        RefusedError: it is public, stands for every address or for many listeners, or is a name.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or address.is_unspecified or address.is_multicast or address.is_global:
        raise RefusedError(
            f"broker: found address {host!r}, expected one address of this machine that is not public (127.0.0.1, ::1, "
            "10.…, 172.16.…, 192.168.…, fd…): nobody outside has reviewed the embedded broker; where the internet or "
            "every "
            "interface is served, run Mosquitto or NATS: `vedette broker render mosquitto`",
            rule="no-public-address",
        )
    return host


def _raise_file_limit() -> None:
    """Every connection is a file: use as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, FILES) if hard != resource.RLIM_INFINITY else FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
