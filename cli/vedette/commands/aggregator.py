"""`vedette aggregator`: rounds and releases of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Rounds and releases of a site.", no_args_is_help=True)


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see aggregator.example.toml.")],
    insecure_plain_updates: Annotated[
        bool,
        typer.Option(
            "--insecure-plain-updates", help="Run rounds without masking: every update can be read here. Loudly logged."
        ),
    ] = False,
) -> None:
    """Run federated rounds, publish signed releases, take alerts in, serve fleet metrics."""
    from vedette_aggregator.service import serve
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load

    settings = load(AggregatorSettings, config)
    logs.configure(settings.log.level, settings.log.format)
    serve(settings, plain=insecure_plain_updates)
