"""`vedette device`: the node on a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The node on a gateway.", no_args_is_help=True)


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see device.example.toml.")],
) -> None:
    """Watch traffic and sensors, raise alerts, learn with the others, apply releases."""
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load
    from vedette_device.service import serve
    from vedette_device.settings import DeviceSettings

    settings = load(DeviceSettings, config)
    logs.configure(settings.log.level, settings.log.format)
    serve(settings)
