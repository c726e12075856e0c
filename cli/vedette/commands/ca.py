"""`vedette ca`: the site's certificate authority."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The site's certificate authority.", no_args_is_help=True)
Directory = Annotated[Path, typer.Option("--dir", "-d", help="Folder of the certificate authority.")]


class RoleName(StrEnum):
    """Whom a bundle is for."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    ANALYTICS = "analytics"
    BROKER = "broker"
    COMMITTEE = "committee"


@app.command()
def init(
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id, [a-z0-9-]{1,60}.")],
    directory: Directory = Path("ca"),
) -> None:
    """Make a certificate authority: an offline root and an online intermediate."""
    from vedette_broker import ca

    root = ca.init(directory, site, now=time.time())
    typer.echo(f"{directory}: certificate authority of {site}; keep {root.parent} offline")


@app.command()
def issue(
    holder: Annotated[
        str, typer.Argument(help="Id of the node; aggregator, analytics and broker have their own name as id.")
    ],
    directory: Directory = Path("ca"),
    role: Annotated[RoleName, typer.Option("--role", "-r", help="What the node is.")] = RoleName.DEVICE,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Broker only: name or address that clients call it by.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that was issued before.")] = False,
) -> None:
    """Make a node's bundle: fresh keys and certificates that live seven days."""
    from vedette_broker import ca
    from vedette_core.crypto.certificates import CertificateRole

    bundle = ca.issue(
        directory, holder, CertificateRole(role.value), now=time.time(), hosts=tuple(host or ()), replace=replace
    )
    typer.echo(f"{bundle}: bundle of {holder}; move it to the node")


@app.command("list")
def list_issued(
    directory: Directory = Path("ca"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List every bundle that was issued, and until when it lasts."""
    from dataclasses import asdict

    from vedette_broker import ca

    issued = ca.list_issued(directory)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in issued], indent=2))
        return
    for line in issued:
        until = datetime.fromtimestamp(line.not_after, UTC)
        typer.echo(f"{line.id:30} {line.role:12} until {until:%Y-%m-%d %H:%M} UTC")
