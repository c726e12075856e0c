"""`vedette device enrol`: a new node gets its certificates; its keys are made here and stay here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def enrol(
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="New folder for keys and certificates.")],
    ticket: Annotated[Path, typer.Option("--ticket", help="Ticket of the token; nothing in it is secret.")],
    token: Annotated[
        str,
        typer.Option("--token", "-t", envvar="VEDETTE_TOKEN", help="The token; arguments are seen by every user here."),
    ] = "",
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds the token, 0600.")] = None,
    host: Annotated[str, typer.Option("--host", help="The site's broker, as in its certificate.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="TCP port of the broker.")] = 8883,
    serial: Annotated[str, typer.Option("--serial", help="Serial number of this hardware.")] = "",
    request: Annotated[
        Path | None, typer.Option("--request", help="Without a network: write the request here, and stop.")
    ] = None,
    reply: Annotated[
        Path | None, typer.Option("--reply", help="Without a network: the authority's answer to the request.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, max=3600, help="Seconds to wait for an answer.")] = 60.0,
) -> None:
    """Enrol this node: make keys, prove the token, get certificates for them, over the broker or by carrying files."""
    import asyncio
    import time

    from vedette_core.crypto.enrolment_token import parse_token
    from vedette_core.runtime.bundle_requests import enrolment_request, install, read_ticket
    from vedette_core.runtime.enrolment import enrol_over_mqtt, take_answer
    from vedette_core.runtime.identity import read_file, read_secret
    from vedette_core.runtime.sections import BrokerSection
    from vedette_schemas.errors import ConfigError, PeerError

    if bool(token) == (token_file is not None):
        raise ConfigError("token: found none or two, expected --token, VEDETTE_TOKEN or --token-file")
    if request is not None and reply is not None:
        raise ConfigError("found --request and --reply, expected one of them: first the one, then the other")
    try:
        secret = parse_token(read_secret(token_file).decode("ascii", "replace") if token_file is not None else token)
        public = read_file(ticket)
        anchors, _ = read_ticket(public, secret)
    except PeerError as fault:
        raise ConfigError(f"{ticket}: {fault}" if "ticket" in str(fault) else str(fault)) from fault
    if request is not None:
        request.write_bytes(enrolment_request(bundle, secret, serial))
        typer.echo(f"{request}: carry it to the authority (`vedette ca enrol`); the keys stay in {bundle}")
        return
    if reply is not None:
        sealed = enrolment_request(bundle, secret, serial)
        who = install(bundle, take_answer(sealed)(read_file(reply)), anchors, now=time.time())
    else:
        broker = BrokerSection(host=host, port=port)
        who = asyncio.run(enrol_over_mqtt(bundle, secret, public, broker, serial=serial, timeout_s=timeout))
    typer.echo(f"{bundle}: certificates of {who.id} ({who.role}) at {who.site}")
