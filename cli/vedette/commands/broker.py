"""`vedette broker`: the embedded broker, and the files that make another broker keep the same rules."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The embedded broker, and settings for others.", no_args_is_help=True)


class Engine(StrEnum):
    """A broker that settings can be written for."""

    MOSQUITTO = "mosquitto"


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see broker.example.toml.")],
) -> None:
    """Run the embedded broker: mutual TLS, access by the topic grammar."""
    import asyncio

    from vedette_broker.embedded import EmbeddedConfig, serve
    from vedette_broker.settings import BrokerSettings
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load

    settings = load(BrokerSettings, config)
    logs.configure(settings.log.level, settings.log.format)

    embedded = EmbeddedConfig(
        settings.bundle,
        settings.listen.host,
        settings.listen.port,
        settings.site,
        settings.state_dir,
        settings.durability,
    )
    asyncio.run(serve(embedded))


@app.command()
def render(
    engine: Annotated[Engine, typer.Argument(help="For which broker.")],
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Where the broker's bundle will lie.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the files to.")],
    state: Annotated[Path, typer.Option("--state", help="Where the broker keeps what must survive.")] = Path(
        "/var/lib/mosquitto"
    ),
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8883,
) -> None:
    """Write settings with which another broker keeps the same access rules and limits."""
    from vedette_broker.mosquitto import MosquittoConfig, render

    where = str(out.resolve())
    files = render(MosquittoConfig(site, str(bundle.resolve()), where, str(state), host, port))
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
        typer.echo(out / name)
