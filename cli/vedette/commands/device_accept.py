"""`vedette device accept`: an operator's answer to a false alarm, on the gateway that raised it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def accept_entity(
    config: Annotated[Path, typer.Option("--config", "-c", help="The node's TOML file; it may be running.")],
    alert: Annotated[str, typer.Argument(help="Id of the alert that is answered, or its `evidence`.")] = "",
    task: Annotated[str, typer.Option("--task", "-t", help="Instead of an alert: the detector's task, and …")] = "",
    entity: Annotated[str, typer.Option("--entity", "-e", help="… the address.")] = "",
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why, for whoever looks later.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take it back: the host is a newcomer again.")] = False,
    list_accepted: Annotated[bool, typer.Option("--list", help="What was accepted, and how far learning is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """Learn what a host does, because it is fine: its alert closes, and for a while only loud windows of it alarm."""
    import json

    from vedette_core.runtime.config import load
    from vedette_device import acceptance_operator
    from vedette_device.settings import DeviceSettings

    if list_accepted and (alert or task or entity or undo):
        raise typer.BadParameter("expected --list alone")
    if not list_accepted and not (bool(task) == bool(entity) != bool(alert)):
        raise typer.BadParameter("expected an alert, or --task and --entity, or --list")
    settings = load(DeviceSettings, config)
    if list_accepted:
        rows = acceptance_operator.accepted(settings)
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            far = f" {row['windows']} of {row['of']} windows" if row["stage"] == "learning" else ""
            why = f"  {row['reason']}" if row["reason"] else ""
            by = f"alert {row['alert']}" if row["alert"] else "no alert"
            typer.echo(f"{row['task']} {row['entity']:40} {row['stage']}{far}  {row['at']} uid {row['uid']}, {by}{why}")
        if not rows:
            typer.echo("nothing is accepted")
        return
    if undo:
        gone = acceptance_operator.undo(settings, alert=alert, task=task, entity=entity)
        typer.echo(
            f"{gone.task} {gone.entity}: taken back; it is a newcomer again within seconds of the node's running"
        )
        return
    done = acceptance_operator.accept(settings, alert=alert, task=task, entity=entity, reason=reason)
    typer.echo(
        f"{done.task} {done.entity}: accepted; learnt within seconds of the node's running (--list shows how far)"
    )
    typer.echo("until it is learnt, only windows far beyond what was accepted raise an alert of it")
