"""`vedette init`: a site from nothing: certificates, release repository, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    directory: Annotated[Path, typer.Argument(help="New folder for the site's files.")],
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id, [a-z0-9-]{1,60}.")] = "site-1",
    devices: Annotated[str, typer.Option("--devices", "-d", help="Ids of the device nodes, with commas.")] = "gw-01",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="TCP port of the broker.")] = 8883,
) -> None:
    """Make a site: certificate authority, a bundle a node, release repository, a settings file a component."""
    from vedette.site import create

    made = create(directory, site, [d.strip() for d in devices.split(",") if d.strip()], port=port)
    typer.echo(f"{directory}: site {site}; three processes make it run:")
    typer.echo(f"  vedette broker run -c {made.broker_config}")
    typer.echo(f"  vedette aggregator run -c {made.aggregator_config}")
    for config in made.device_configs.values():
        typer.echo(f"  vedette device run -c {config}    # give it a source first: [network], [sensor] or [behaviour]")
