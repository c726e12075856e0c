"""`vedette alerts export`: from a source to a sink, until the source ends or the program is interrupted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from vedette.alert_sinks import Sink, open_sink
from vedette.alert_sources import FileAlerts, LiveAlerts
from vedette.alert_targets import Receiver, parse, read_password
from vedette_core.runtime.syslog import tls_context
from vedette_schemas.errors import ConfigError, PeerError

log = logging.getLogger("vedette.alerts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What the command line asked for; either `bundle` or `source` is set.

    Attributes:
        form: name of the format.
        bundle: folder of an analytics bundle, for alerts as they come.
        host: the site's broker.
        port: its port.
        source: file of alerts.
        follow: go on with what is appended to it.
        to: file, URL or ``-``.
        ca: authorities of an encrypted receiver's certificate.
        certificate: own certificate towards it.
        key: its key.
        password_file: file with the password of the broker's user.
        wait_s: longest wait for a receiver that takes nothing.
    """

    form: str
    bundle: Path | None
    host: str
    port: int
    source: Path | None
    follow: bool
    to: str
    ca: Path | None
    certificate: Path | None
    key: Path | None
    password_file: Path | None
    wait_s: float


async def run(export: Export) -> None:
    """Export.

    Raises:
        ConfigError: the parts do not fit together, or a file is missing.
        PeerError: some lines of the file were no alerts; all others were exported.
        TransientError: a broker or receiver is away.
    """
    target = parse(export.to)
    if export.bundle is not None:
        live = LiveAlerts(export.bundle, export.host, export.port)
        async with _sink(export, target, live.site) as sink, live:
            async for alert in live:
                try:
                    await sink.take(alert)
                except PeerError as fault:
                    log.warning("alert %s of %s: %s", alert.id, alert.device, fault)
        return
    assert export.source is not None
    source = FileAlerts(export.source, follow=export.follow)
    async with _sink(export, target, None) as sink:
        async for alert in source:
            try:
                await sink.take(alert)
            except PeerError as fault:
                source.refuse(fault)
    if source.refused:
        raise PeerError(f"{export.source}: found {source.refused} of {source.lines} lines that are no alerts")


def _sink(export: Export, target: Receiver | Path | None, site: str | None) -> Sink:
    encrypted = isinstance(target, Receiver) and target.is_encrypted
    given = [path for path in (export.ca, export.certificate, export.key) if path is not None]
    if given and not encrypted:
        raise ConfigError(f"--to: found {given[0]} for a receiver without TLS, expected syslog+tls:// or mqtts://")
    if export.key is not None and export.certificate is None:
        raise ConfigError("--key: found a key without a certificate, expected --cert as well")
    user = target.user if isinstance(target, Receiver) else None
    if (user is None) != (export.password_file is None):
        raise ConfigError("--password-file: expected it together with a user, as in mqtt://USER@HOST")
    return open_sink(
        export.form,
        target,
        site=site,
        tls=tls_context(export.ca, export.certificate, export.key) if encrypted else None,
        password=None if export.password_file is None else read_password(export.password_file),
        wait_s=export.wait_s,
    )
