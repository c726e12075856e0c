"""`vedette device`: the node on a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vedette.commands import device_accept, device_explain, device_records, enrol

app = typer.Typer(help="The node on a gateway.", no_args_is_help=True)
app.command("list")(device_records.list_devices)
app.command("show")(device_records.show_device)
app.command("explain")(device_explain.explain_alert)
app.command("accept")(device_accept.accept_entity)
quarantine = typer.Typer(help="Devices that a person keeps out of rounds.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")
app.command("enrol")(enrol.enrol)


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file, see device.example.toml.")],
    insecure_plain_updates: Annotated[
        bool,
        typer.Option(
            "--insecure-plain-updates",
            help="Allow updates that the aggregator can read. Loudly logged; for a site without masking.",
        ),
    ] = False,
) -> None:
    """Watch traffic and sensors, raise alerts, learn with the others, apply releases."""
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load
    from vedette_device.service import serve
    from vedette_device.settings import DeviceSettings

    settings = load(DeviceSettings, config)
    logs.configure(settings.log.level, settings.log.format)
    serve(settings, plain_allowed=insecure_plain_updates)


@app.command()
def windows(
    config: Annotated[Path, typer.Option("--config", "-c", help="The node's TOML file; the node must be stopped.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New .npz file.")],
    task: Annotated[str, typer.Option("--task", "-t", help="Task whose windows are wanted.")] = "network",
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="Most windows.")] = 512,
) -> None:
    """Write clean windows of a node that you trust: the aggregator's root set against poisoned updates."""
    from vedette_core.runtime.config import load
    from vedette_device.root_windows import write_root_windows
    from vedette_device.settings import DeviceSettings

    found = write_root_windows(load(DeviceSettings, config), task, count, out)
    typer.echo(f"{out}: {found} windows of {task}; name it as root_set in [tasks.defence], or as a holdout")


@quarantine.command("list")
def quarantine_list(
    config: Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Devices that are kept out of rounds, and devices whose groups stand out."""
    import json

    from vedette_aggregator.quarantine import open_quarantine
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_quarantine(load(AggregatorSettings, config)) as found:
        kept_out, suspects = found.entries(), found.suspects()
    if as_json:
        typer.echo(json.dumps({"quarantined": kept_out, "suspects": suspects}, indent=2))
        return
    for entry in kept_out:
        typer.echo(f"{entry['device']:30} since {entry['since']}  {entry['reason']}")
    for suspect in suspects:
        typer.echo(
            f"{suspect['device']:30} suspicion {suspect['suspicion']:.1f} in {suspect['task']} "
            f"({suspect['observations']} epochs)"
        )
    if not kept_out and not suspects:
        typer.echo("nobody is quarantined, and nobody stands out")


@quarantine.command("add")
def quarantine_add(
    device: Annotated[str, typer.Argument(help="Id of the device.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why, for whoever looks later.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Keep a device out of rounds until it is released; it goes on detecting. The aggregator may be running."""
    from vedette_aggregator.quarantine import open_quarantine
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_quarantine(load(AggregatorSettings, config)) as found:
        found.add(device, reason, dry_run=dry_run)
    typer.echo(f"{device}: {'would be ' if dry_run else ''}kept out of rounds")


@quarantine.command("release")
def quarantine_release(
    device: Annotated[str, typer.Argument(help="Id of the device.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Let a device take part again."""
    from vedette_aggregator.quarantine import open_quarantine
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_quarantine(load(AggregatorSettings, config)) as found:
        found.release(device, dry_run=dry_run)
    typer.echo(f"{device}: {'would take' if dry_run else 'takes'} part again")
