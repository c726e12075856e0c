"""`vedette committee`: a helper that opens sums of groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="A helper that opens sums of groups, and sees no update.", no_args_is_help=True)


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see committee.example.toml.")],
) -> None:
    """Sit in the committees of a site's rounds: vote for one survivor set, release shares for that one."""
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load
    from vedette_device.helper_service import serve
    from vedette_device.helper_settings import CommitteeSettings

    settings = load(CommitteeSettings, config)
    logs.configure(settings.log.level, settings.log.format)
    serve(settings)
