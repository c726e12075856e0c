"""`vedette alerts`: read what the site's devices report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Read what the site's devices report.", no_args_is_help=True)


@app.command()
def tail(
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Folder of the analytics bundle.")],
    host: Annotated[str, typer.Option("--host", "-h", help="Broker.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8883,
    as_json: Annotated[bool, typer.Option("--json", help="The alerts as they are, one a line.")] = False,
) -> None:
    """Print alerts as they come, until interrupted."""
    import asyncio

    from vedette.observer import Observer, alert_line
    from vedette_schemas import alert as alerts
    from vedette_schemas.alert import Alert

    def show(alert: Alert) -> None:
        typer.echo(alerts.encode(alert).decode() if as_json else alert_line(alert))

    async def follow() -> None:
        async with Observer(bundle, host, port, show) as observer:
            await observer.closed()

    asyncio.run(follow())
