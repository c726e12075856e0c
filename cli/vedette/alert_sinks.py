"""What exported alerts are given to: lines, a syslog receiver, or Home Assistant's broker."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from vedette import __version__
from vedette.alert_targets import Receiver, Scheme
from vedette_core.export import cef, eve, home_assistant, ocsf, rfc5424, stix
from vedette_core.export.facts import json_line
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage, Will
from vedette_core.runtime.syslog import SyslogSender, SyslogTarget, Transport
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert
from vedette_schemas.errors import ConfigError, TransientError

Convert = Callable[[Alert], bytes]
FORMATS: Final[dict[str, Convert]] = {
    "ocsf": lambda alert: json_line(ocsf.finding(alert, __version__)),
    "eve": lambda alert: json_line(eve.event(alert)),
    "cef": lambda alert: cef.line(alert, __version__).encode(),
    "stix": lambda alert: json_line(stix.bundle(alert)),
    "jsonl": alerts.encode,
}
"""Formats in which an alert is one line."""
CONNECT_TIMEOUT_S: Final = 10.0
GOODBYE_S: Final = 2.0
"""Who interrupts a program does not want to wait for a receiver that is away."""
TRANSPORTS: Final = {
    Scheme.SYSLOG_UDP: Transport.UDP,
    Scheme.SYSLOG_TCP: Transport.TCP,
    Scheme.SYSLOG_TLS: Transport.TLS,
}


class Sink(Protocol):
    """Takes alerts, within ``async with``; leaving it in good order waits until they are delivered."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def take(self, alert: Alert) -> None:
        """Take one alert.

        Raises:
            PeerError: the alert has no form in this format.
            TransientError: the receiver did not take it in time.
        """


class Lines:
    """A line an alert, to a file or to standard output; each is there at once.

    Args:
        path: file to append to; None for standard output.
        convert: an alert → its lines, without line ends.
    """

    def __init__(self, path: Path | None, convert: Callable[[Alert], list[bytes]]) -> None:
        self._path, self._convert = path, convert
        self._file: BinaryIO = sys.stdout.buffer

    async def __aenter__(self) -> Self:
        if self._path is not None:
            try:
                self._file = self._path.open("ab")
            except OSError as fault:
                raise ConfigError(f"{self._path}: cannot be written ({fault.strerror})") from fault
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            self._file.close()

    async def take(self, alert: Alert) -> None:
        """Write its lines."""
        for line in self._convert(alert):
            self._file.write(line + b"\n")
        self._file.flush()


class Syslog:
    """A syslog receiver.

    Args:
        target: the receiver.
        convert: an alert → the document that its message carries.
        patient: wait for the receiver rather than let the backlog overflow: a file does not run away.
        wait_s: longest wait for a receiver that takes nothing, in the end and while patient.
    """

    def __init__(self, target: SyslogTarget, convert: Convert, *, patient: bool, wait_s: float) -> None:
        self._sender = SyslogSender(target)
        self._convert, self._patient, self._wait_s = convert, patient, wait_s
        self._number = 0

    async def __aenter__(self) -> Self:
        await self._sender.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = await self._sender.drain(self._wait_s if kind is None else min(self._wait_s, GOODBYE_S))
        await self._sender.__aexit__(kind, error, trace)
        lost = left + self._sender.counters.dropped + self._sender.counters.oversize
        if lost and kind is None:
            raise self._undelivered(lost)

    async def take(self, alert: Alert) -> None:
        """Hand its message to the sender."""
        message = rfc5424.message(alert, self._convert(alert), self._number, __version__)
        if self._patient and not await self._sender.wait_for_room(self._wait_s):
            raise self._undelivered(self._sender.waiting + 1)
        self._number += 1
        self._sender.offer(message, alert.severity.rank)

    def _undelivered(self, count: int) -> TransientError:
        where = f"{self._sender.target.transport}://{self._sender.target.host}:{self._sender.target.port}"
        reason = self._sender.failure or "the receiver is too slow, or a message too large"
        return TransientError(f"syslog receiver {where}: {count} alerts were not delivered ({reason})")


class HomeAssistant:
    """Home Assistant's own broker.

    Args:
        link: whom to connect to, with the will that says that the exporter is gone.
        site: the site whose availability is published while connected; None where the export ends with its file.
    """

    def __init__(self, link: LinkConfig, site: str | None) -> None:
        self._availability = None if site is None else home_assistant.availability_topic(site)
        self._board = home_assistant.Board(__version__, availability=site is not None)
        self._link = MqttLink(link, _ignore, on_connect=self._greet)
        self._greetings: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._link.start()
        try:
            await self._link.wait_connected(CONNECT_TIMEOUT_S)
        except BaseException:
            await self._link.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._availability is not None and self._link.connected:
            await self._link.publish(self._availability, home_assistant.OFFLINE, retain=True)
        await self._link.stop()

    async def take(self, alert: Alert) -> None:
        """Publish what it changes; returns when the broker has it."""
        for publication in self._board.take(alert):
            await self._link.publish(publication.topic, publication.payload, retain=publication.retain)

    def _greet(self, _session_present: bool) -> None:
        if self._availability is not None:
            task = asyncio.get_running_loop().create_task(
                self._link.publish(self._availability, home_assistant.ONLINE, retain=True)
            )
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)


def home_assistant_lines(*, availability: bool) -> Callable[[Alert], list[bytes]]:
    """What would be published to Home Assistant's broker, as lines: topic, payload, whether it is retained."""
    board = home_assistant.Board(__version__, availability=availability)

    def convert(alert: Alert) -> list[bytes]:
        return [
            json.dumps({"topic": p.topic, "retain": p.retain, "qos": 1, "payload": p.payload.decode()}).encode()
            for p in board.take(alert)
        ]

    return convert


def open_sink(
    form: str,
    target: Receiver | Path | None,
    *,
    site: str | None,
    tls: ssl.SSLContext | None,
    password: str | None,
    wait_s: float,
) -> Sink:
    """The sink for a format and a target.

    Args:
        form: one of `FORMATS`, or ``homeassistant``.
        target: as `vedette.alert_targets.parse` reads it.
        site: the site whose alerts come live; None for those of a file.
        tls: context for an encrypted receiver, None for any other.
        password: for a broker with a user.
        wait_s: longest wait for a receiver that takes nothing.

    Raises:
        ConfigError: the format does not go there.
    """
    at_home = form == "homeassistant"
    if not isinstance(target, Receiver):
        convert = FORMATS.get(form)
        if convert is None:
            return Lines(target, home_assistant_lines(availability=False))
        return Lines(target, lambda alert: [convert(alert)])
    if at_home != target.is_mqtt:
        expected = "mqtt:// or mqtts://" if at_home else "syslog+tls://, syslog+tcp:// or syslog+udp://"
        raise ConfigError(f"--to: found {target.scheme}:// for format {form}, expected {expected}, a file or -")
    if not at_home:
        receiver = SyslogTarget(TRANSPORTS[target.scheme], target.host, target.port, tls)
        return Syslog(receiver, FORMATS[form], patient=site is None, wait_s=wait_s)
    will = None if site is None else Will(home_assistant.availability_topic(site), home_assistant.OFFLINE)
    login = None if target.user is None else (target.user, password or "")
    client = f"vedette-alerts-{'file' if site is None else site}"
    return HomeAssistant(LinkConfig(target.host, target.port, client, tls, will=will, login=login), site)


async def _ignore(_message: MqttMessage) -> None:
    """Nothing is subscribed to."""
