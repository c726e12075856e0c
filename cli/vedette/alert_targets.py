"""Where exported alerts go to, as it is written on the command line: standard output, a file, or a URL."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vedette_schemas.errors import ConfigError

PASSWORD_BYTES_MAX: Final = 4096


class Scheme(StrEnum):
    """How a receiver is reached."""

    SYSLOG_UDP = "syslog+udp"
    SYSLOG_TCP = "syslog+tcp"
    SYSLOG_TLS = "syslog+tls"
    MQTT = "mqtt"
    MQTTS = "mqtts"


DEFAULT_PORTS: Final = {
    Scheme.SYSLOG_UDP: 514,
    Scheme.SYSLOG_TCP: 601,
    Scheme.SYSLOG_TLS: 6514,
    Scheme.MQTT: 1883,
    Scheme.MQTTS: 8883,
}
SHORT: Final = {"udp": Scheme.SYSLOG_UDP, "tcp": Scheme.SYSLOG_TCP, "tls": Scheme.SYSLOG_TLS}
"""Also accepted: what is sent over a bare transport is syslog."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver on the network.

    Attributes:
        scheme: how to reach it.
        host: name or address.
        port: its port.
        user: who to log in as, for MQTT; None for nobody.
    """

    scheme: Scheme
    host: str
    port: int
    user: str | None = None

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in (Scheme.SYSLOG_TLS, Scheme.MQTTS)

    @property
    def is_mqtt(self) -> bool:
        """Whether it is a broker."""
        return self.scheme in (Scheme.MQTT, Scheme.MQTTS)


def parse(text: str) -> Receiver | Path | None:
    """What ``--to`` says: a receiver, a file, or None for standard output (``-``).

    Raises:
        ConfigError: a URL of another kind, without a host, with a password or with a path.
    """
    if text == "-":
        return None
    if "://" not in text:
        return Path(text)
    expected = f"expected {', '.join(f'{s}://HOST[:PORT]' for s in Scheme)}, a file or -"
    name = text.partition("://")[0]
    try:
        scheme = SHORT.get(name) or Scheme(name)
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as fault:
        raise ConfigError(f"--to: found {_shown(text)!r} ({fault}), {expected}") from None
    if url.password is not None:
        raise ConfigError("--to: found a password in the URL, where every process sees it; use --password-file")
    if not host or url.path.strip("/") or url.query or url.fragment:
        raise ConfigError(f"--to: found {_shown(text)!r}, {expected}")
    if url.username is not None and scheme not in (Scheme.MQTT, Scheme.MQTTS):
        raise ConfigError(f"--to: found a user in {_shown(text)!r}; syslog knows no users")
    return Receiver(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, url.username)


def read_password(path: Path) -> str:
    """The password that is the first line of a file.

    Raises:
        ConfigError: missing, unreadable, empty, or others may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            data = file.read(PASSWORD_BYTES_MAX)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read ({fault}), expected a password") from fault
    if mode & 0o077:
        raise ConfigError(f"{path}: found mode {mode:04o}, expected 0600: others may read the password; chmod 600 it")
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: found an empty first line, expected a password")
    return lines[0]


def _shown(text: str) -> str:
    """The URL without what might be a password."""
    before, at, after = text.rpartition("@")
    return f"{before.partition('://')[0]}://…@{after}" if at else text
