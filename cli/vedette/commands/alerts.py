"""`vedette alerts`: read what the site's devices report, and hand it on in the form that other tools read."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Read what the site's devices report.", no_args_is_help=True)


class Format(StrEnum):
    """A form that alerts are exported in."""

    OCSF = "ocsf"
    EVE = "eve"
    CEF = "cef"
    STIX = "stix"
    HOMEASSISTANT = "homeassistant"
    JSONL = "jsonl"


@app.command()
def tail(
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Folder of the analytics bundle.")],
    host: Annotated[str, typer.Option("--host", "-h", help="Broker.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8883,
    as_json: Annotated[bool, typer.Option("--json", help="The alerts as they are, one a line.")] = False,
) -> None:
    """Print alerts as they come, until interrupted."""
    import asyncio

    from vedette.alert_sources import LiveAlerts
    from vedette.observer import alert_line
    from vedette_schemas import alert as alerts

    async def follow() -> None:
        async with LiveAlerts(bundle, host, port) as source:
            async for alert in source:
                # An alert's text may come from the network: it must not steer the terminal.
                if as_json:
                    line = alerts.encode(alert).decode()
                    typer.echo(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", line))
                else:
                    typer.echo("".join(c if c.isprintable() else "\ufffd" for c in alert_line(alert)))

    asyncio.run(follow())


@app.command()
def export(
    form: Annotated[Format, typer.Option("--format", help="See docs/alert-formats.md.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Folder of an analytics bundle: alerts as they come.")
    ] = None,
    host: Annotated[str, typer.Option("--host", "-h", help="Broker of the site.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8883,
    source: Annotated[
        Path | None, typer.Option("--from", help="File of alerts, one JSON a line, instead of the broker; - is stdin.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is appended to the file.")] = False,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="A file, - for stdout, syslog+tls://, syslog+tcp://, syslog+udp:// or, for Home Assistant, mqtt[s]://[USER@]HOST[:PORT].",
        ),
    ] = "-",
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Authorities of the receiver's certificate; the system's if not given.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--cert", help="Own certificate, if the receiver asks for one.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key.")] = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="File with the password of the user in --to.")
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Longest wait for a syslog receiver that takes nothing, in seconds.")
    ] = 30.0,
) -> None:
    """Hand alerts on: OCSF, EVE, CEF, STIX, Home Assistant, or as they are."""
    if (bundle is None) == (source is None):
        raise typer.BadParameter("expected one of the two: --bundle for alerts as they come, or --from for a file")
    import asyncio

    from vedette.alert_export import Export, run

    asyncio.run(
        run(
            Export(
                form=form.value,
                bundle=bundle,
                host=host,
                port=port,
                source=source,
                follow=follow,
                to=to,
                ca=ca,
                certificate=certificate,
                key=key,
                password_file=password_file,
                wait_s=wait_s,
            )
        )
    )
