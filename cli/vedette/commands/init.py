"""`vedette init`: a site from nothing, or a node: certificates, release repository, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _SiteByDefault(TyperGroup):
    """``vedette init DIR`` is ``vedette init site DIR``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["site", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_SiteByDefault,
    help="Make a ready site (certificate authority, bundles, release repository, settings), or a ready node.",
    no_args_is_help=True,
)


@app.command("site")
def init_site(
    directory: Annotated[Path, typer.Argument(help="New folder for the site's files.")],
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id, [a-z0-9-]{1,60}.")] = "site-1",
    devices: Annotated[str, typer.Option("--devices", "-d", help="Ids of the device nodes, with commas.")] = "gw-01",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="TCP port of the broker.")] = 8883,
) -> None:
    """Make a site: certificate authority, a bundle a node, release repository, a settings file a component."""
    from vedette.site import DEFAULT_TASKS, create
    from vedette.site_rollout import rollout_lines, rollout_table

    names = [d.strip() for d in devices.split(",") if d.strip()]
    tasks = [{**task, "rollout": rollout_table(len(names))} for task in DEFAULT_TASKS]
    made = create(directory, site, names, port=port, tasks=tasks)
    typer.echo(f"{directory}: site {site}; three processes make it run, a fourth renews certificates:")
    typer.echo(f"  vedette broker run -c {made.broker_config}")
    typer.echo(f"  vedette aggregator run -c {made.aggregator_config}")
    typer.echo(f"  vedette ca serve -c {made.authority_config}")
    for config in made.device_configs.values():
        typer.echo(f"  vedette device run -c {config}    # give it a source first: [network], [sensor] or [behaviour]")
    typer.echo(f"  {rollout_lines(len(names))}")


@app.command("device")
def init_device(
    directory: Annotated[Path, typer.Argument(help="New folder for the node's files.")],
    root: Annotated[Path, typer.Option("--root", help="The site's root.json, carried here by hand.")],
    ticket: Annotated[Path | None, typer.Option("--ticket", help="Ticket of a token: enrol now.")] = None,
    token: Annotated[
        str,
        typer.Option("--token", "-t", envvar="VEDETTE_TOKEN", help="The token; arguments are seen by every user here."),
    ] = "",
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that holds the token, 0600.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Bundle that `vedette ca issue` made, instead of a token.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The site's broker, as in its certificate.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="TCP port of the broker.")] = 8883,
    serial: Annotated[str, typer.Option("--serial", help="Serial number of this hardware.")] = "",
) -> None:
    """Make a node's folder: certificates by token or from a bundle, and settings that only need a source."""
    from vedette import node_folder
    from vedette.commands.enrol import enrol
    from vedette_core.runtime.sections import BrokerSection
    from vedette_schemas.errors import ConfigError

    if (bundle is None) == (ticket is None):
        raise ConfigError("found neither or both of --bundle and --ticket, expected one of them")
    place = node_folder.prepare(directory, root)
    if bundle is not None:
        node_folder.take_bundle(bundle, place)
    else:
        assert ticket is not None
        enrol(place, ticket, token, token_file, host, port, serial)
    made = node_folder.finish(place, root, BrokerSection(host=host, port=port))
    command = "device" if made.config.name == "device.toml" else "committee"
    typer.echo(f"{directory}: node {made.node.id} of {made.node.site}")
    typer.echo(
        f"  vedette {command} run -c {made.config}" + ("    # give it a source first" if command == "device" else "")
    )
