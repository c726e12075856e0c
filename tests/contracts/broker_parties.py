"""Brokers under test, and parties that speak through them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vedette.demo.fleet import free_port
from vedette_broker import ca
from vedette_broker.ca_store import load_issuer
from vedette_broker.embedded import EmbeddedBroker, EmbeddedConfig
from vedette_broker.mosquitto import CONF, MosquittoConfig, render
from vedette_broker.nats import CONF as NATS_CONF
from vedette_broker.nats import USERS as NATS_USERS
from vedette_broker.nats import NatsConfig, render_users
from vedette_broker.nats import render as render_nats
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import Revocation, make_list
from vedette_core.runtime.durable import replace_file
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas.topics import Topics

SITE = "lab"
TOPICS = Topics(SITE)
WAIT_S = 60.0
"""How long a test waits for what must come; never for what must not."""
NATS = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin")
ENGINES = ("embedded", "mosquitto", "nats")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Authority:
    """A site's certificate authority with one bundle a party."""

    directory: Path
    bundles: dict[str, Path]

    def context(self, party: str) -> Any:
        return client_context(Bundle(self.bundles[party]))


def make_authority(
    directory: Path, devices: Sequence[str], now: float | None = None, helpers: Sequence[str] = ()
) -> Authority:
    moment = time.time() if now is None else now
    ca.init(directory, SITE, now=moment)
    bundles = {}
    for role in (CertificateRole.BROKER, CertificateRole.AGGREGATOR, CertificateRole.ANALYTICS):
        bundles[role.value] = ca.issue(directory, role.value, role, now=moment)
    for device in devices:
        bundles[device] = ca.issue(directory, device, CertificateRole.DEVICE, now=moment)
    for helper in helpers:
        bundles[helper] = ca.issue(directory, helper, CertificateRole.COMMITTEE, now=moment)
    return Authority(directory, bundles)


def write_revocations(authority: Authority, number: int, holders: Sequence[str]) -> None:
    """Put a revocation list into the broker's bundle, signed by the online authority."""
    issuer, _ = load_issuer(authority.directory, time.time())
    leaves = [load_certificates(Bundle(authority.bundles[h]).tls_certificate.read_bytes())[0] for h in holders]
    data = make_list(issuer, number, [Revocation(leaf.serial_number, time.time()) for leaf in leaves], now=time.time())
    pem = x509.load_der_x509_crl(data).public_bytes(Encoding.PEM)
    replace_file(Bundle(authority.bundles["broker"]).crl, pem, 0o644)


class BrokerUnderTest(Protocol):
    """A broker that a test can stop and start again on the same port."""

    name: str
    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Embedded:
    """The embedded broker on a loop of its own, in a thread."""

    name = "embedded"

    def __init__(self, authority: Authority, state: Path | None = None) -> None:
        self._bundle, self._state = authority.bundles["broker"], state
        self.port = free_port()
        self.broker: EmbeddedBroker | None = None

    def start(self) -> None:
        ready: threading.Event = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(WAIT_S)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with EmbeddedBroker(EmbeddedConfig(self._bundle, port=self.port, state_dir=self._state)) as self.broker:
            ready.set()
            await self._stop.wait()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


class Mosquitto:
    """Mosquitto as a child process, with the configuration that we render."""

    name = "mosquitto"

    def __init__(self, authority: Authority, directory: Path) -> None:
        self._authority, self._directory = authority, directory
        (directory / "state").mkdir(parents=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        config = MosquittoConfig(
            site=SITE,
            bundle=str(self._authority.bundles["broker"]),
            directory=str(self._directory),
            state_directory=str(self._directory / "state"),
            port=self.port,
            run_as="root" if os.geteuid() == 0 else "",
            revocations=Bundle(self._authority.bundles["broker"]).crl.exists(),
        )
        for name, text in render(config).items():
            (self._directory / name).write_text(text)
            (self._directory / name).chmod(0o600)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._directory / CONF)], stdout=log, stderr=log)
        wait_for_port(self.port, self._process, self._directory / "log")

    def reload(self) -> None:
        """Take up another revocation list, as far as Mosquitto does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None


class Nats:
    """NATS as a child process, with the configuration that we render and users made of what the authority issued."""

    name = "nats"

    def __init__(self, authority: Authority, directory: Path) -> None:
        self._authority, self._directory = authority, directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self._client_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def write_users(self, without: Sequence[str] = ()) -> None:
        """Write the file of users: everybody that has a bundle, but for some."""
        issued = [(i.id, CertificateRole(i.role)) for i in ca.list_issued(self._authority.directory)]
        text = render_users(SITE, [(holder, role) for holder, role in issued if holder not in without])
        (self._directory / NATS_USERS).write_text(text)

    def start(self) -> None:
        assert NATS is not None
        config = NatsConfig(
            site=SITE,
            bundle=str(self._authority.bundles["broker"]),
            state_directory=str(self._directory / "state"),
            port=self.port,
            client_port=self._client_port,
            version=nats_version(NATS),
        )
        (self._directory / NATS_CONF).write_text(render_nats(config))
        self.write_users()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([NATS, "-c", str(self._directory / NATS_CONF)], stdout=log, stderr=log)
        wait_for_port(self.port, self._process, self._directory / "log")

    def reload(self, without: Sequence[str] = ()) -> None:
        """Take up another file of users."""
        assert self._process is not None
        self.write_users(without)
        log, said = self._directory / "log", "Reloaded server configuration"
        before = log.read_text().count(said)
        self._process.send_signal(signal.SIGHUP)
        limit = time.monotonic() + WAIT_S
        while log.read_text().count(said) == before:
            assert time.monotonic() < limit, f"the broker does not reload: {log.read_text()[-2000:]}"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None


def nats_version(program: str) -> tuple[int, int]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.split(":")[1].strip().removeprefix("v").split(".")[:2]
    return int(major), int(minor)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + WAIT_S
    while not answers(port):
        said = log.read_text()[-2000:]
        assert process.poll() is None, f"the broker ended: {said}"
        assert time.monotonic() < limit, f"the broker does not listen: {said}"
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def make_broker(name: str, authority: Authority, directory: Path) -> BrokerUnderTest:
    if name == "embedded":
        return Embedded(authority)
    if name == "nats":
        if NATS is None:
            pytest.skip("nats-server is not installed (Debian package nats-server)")
        return Nats(authority, directory)
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (Debian package mosquitto)")
    return Mosquitto(authority, directory)


@dataclass
class Party:
    """A link, and what it received."""

    link: MqttLink
    id: str
    received: list[MqttMessage] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def payloads(self) -> list[bytes]:
        return [m.payload for m in self.received]

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            heard = [payload[:60] for payload in self.payloads[-20:]]
            raise AssertionError(f"{self.id} has waited {WAIT_S:g} s in vain; the last that came: {heard}") from None

    async def until_payload(self, payload: bytes) -> None:
        await self.until_payloads({payload})

    async def until_payloads(self, payloads: AbstractSet[bytes]) -> None:
        await self.until(lambda: payloads <= set(self.payloads))


@asynccontextmanager
async def party(
    broker: BrokerUnderTest,
    authority: Authority,
    who: str,
    filters: Sequence[str] = (),
    *,
    wait: bool = True,
    handler: Callable[[MqttMessage], Any] | None = None,
    **config: Any,
) -> AsyncIterator[Party]:
    """Connect as a party, subscribed with QoS 1 to filters below the site's root."""
    config.setdefault("tls", authority.context(config.pop("certificate_of", who)))
    config.setdefault("client_id", who)
    me: Party

    async def take(message: MqttMessage) -> None:
        me.received.append(message)
        me.changed.set()
        if handler is not None:
            await handler(message)

    link = MqttLink(LinkConfig(host="127.0.0.1", port=broker.port, **config), take)
    me = Party(link, who)
    for topic_filter in filters:
        await link.subscribe(path(topic_filter), 1)
    async with link:
        if wait:
            await link.wait_connected(WAIT_S)
        yield me


def path(below: str) -> str:
    """A topic or filter below the site's root; `below` may also be a whole one."""
    return below if below.startswith(("vedette/", "#", "+", "$")) else f"{TOPICS.root}/{below}"
