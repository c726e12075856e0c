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
    NATS = "nats"


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see broker.example.toml.")],
) -> None:
    """Run the embedded broker: mutual TLS, access by the topic grammar."""
    import asyncio

    from vedette_broker.embedded import EmbeddedConfig, serve
    from vedette_broker.settings import BrokerSettings
    from vedette_core.runtime import logs, metrics
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
    table = None
    if settings.metrics.enabled:
        table = metrics.Metrics(metrics.BROKER_METRICS)
        metrics.serve_configured(table, settings.metrics)
    asyncio.run(serve(embedded, metrics=table))


@app.command()
def render(
    engine: Annotated[Engine, typer.Argument(help="For which broker.")],
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Where the broker's bundle will lie.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the files to.")],
    state: Annotated[
        Path | None, typer.Option("--state", help="Where the broker keeps what must survive [/var/lib/{engine}].")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8883,
    authority: Annotated[
        Path | None, typer.Option("--ca", help="NATS: folder of the certificate authority, whose ids become its users.")
    ] = None,
    nats_version: Annotated[
        str, typer.Option("--nats-version", help="NATS: the release that will read it, as 2.9 (Debian 12) or 2.15.")
    ] = "2.9",
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", help="NATS: a server of the cluster, as NAME=HOST; three times or more."),
    ] = None,
    users_only: Annotated[
        bool, typer.Option("--users-only", help="NATS: write the users again, and nothing else; then reload.")
    ] = False,
) -> None:
    """Write settings with which another broker keeps the same access rules and limits."""
    from vedette.broker_files import nats_files, write
    from vedette_broker.mosquitto import MosquittoConfig, render
    from vedette_core.runtime.identity import Bundle

    where, folder = out.resolve(), bundle.resolve()
    kept = str(state or f"/var/lib/{engine.value}")
    if engine is Engine.MOSQUITTO:
        revocations = Bundle(folder).crl.exists()
        config = MosquittoConfig(site, str(folder), str(where), kept, host, port, revocations=revocations)
        files = {name: text.encode() for name, text in render(config).items()}
    else:
        files = nats_files(
            site, folder, where, kept, host, port, authority, nats_version, cluster or [], users_only=users_only
        )
    for path in write(out, files):
        typer.echo(path)
