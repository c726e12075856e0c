"""`vedette rollout`: how far new releases have come, and what a person decides about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vedette_aggregator.rollout_events import Verb
    from vedette_aggregator.settings import AggregatorSettings

app = typer.Typer(help="How far new releases have come in the fleet, and decisions about them.", no_args_is_help=True)

Config = Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")]
Task = Annotated[str | None, typer.Option("--task", "-t", help="The task; needed where several are staged.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides, for the record; your user name without it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say whether it could be done.")]
Wait = Annotated[float, typer.Option("--wait", min=0, max=600, help="Seconds to wait for the aggregator's answer.")]
Version = Annotated[int, typer.Option("--version", "-v", min=1, help="Release version.")]
Device = Annotated[str, typer.Argument(help="Id of the device.")]

WAIT_S = 10.0


@app.command("list")
def list_rollouts(config: Config, as_json: AsJson = False) -> None:
    """Print where the rollout of every task is."""
    import json

    from vedette_aggregator.rollout_desk import open_desk

    with open_desk(_settings(config)) as desk:
        rows = [desk.row(task) for task in desk.tasks]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("task", "rollout", "phase", "release", "over", "stage", "devices", "since"):
        right = column in ("rollout", "release", "over", "stage")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        stage = "" if row["stage_percent"] is None else f"{row['stage_percent']:g} %"
        numbers = (str(row["candidate"]), str(row["baseline"])) if row["rollout"] else ("", "")
        devices = f"{row['exposed']} of {row['fleet']}" if row["fleet"] else ""
        first = (row["task"], str(row["rollout"]), row["phase"])
        table.add_row(*first, *numbers, stage, devices, (row["since"] or "")[:16])
    Console().print(table)
    for row in rows:
        if row["reason"]:
            typer.echo(f"{row['task']}: {row['reason']}")
    if not rows:
        typer.echo("no task has enabled = true in its [tasks.rollout] table: every release is active at once")


@app.command()
def show(config: Config, task: Task = None, as_json: AsJson = False) -> None:
    """Print a task's rollout with its pins, those before it, and who decided what."""
    import json

    from vedette_aggregator.rollout_desk import open_desk

    with open_desk(_settings(config)) as desk:
        found = desk.details(desk.task(task))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if name not in ("history", "audit", "pins"):
            typer.echo(f"{name.replace('_', ' '):16} {'' if value is None else value}")
    for device, version in found["pins"].items():
        typer.echo(f"pinned           {device} to release {version}")
    for past in found["history"]:
        typer.echo(
            f"rollout {past['rollout']}: release {past['candidate']} over {past['baseline']} {past['phase']} at "
            f"{past['ended']}, {past['exposed']} devices exposed: {past['reason']}"
        )
    for entry in found["audit"]:
        about = f" {entry['about']}" if entry["about"] else ""
        typer.echo(f"{entry['at']}  {entry['by']}: {entry['verb']}{about}: {entry['outcome']}")


@app.command()
def create(
    config: Config,
    version: Version,
    task: Task = None,
    by: By = None,
    wait: Wait = WAIT_S,
    dry_run: DryRun = False,
) -> None:
    """Begin a rollout of a listed release that has ended before; new releases begin theirs by themselves."""
    from vedette_aggregator.rollout_events import Verb

    _ask(config, task, Verb.CREATE, by, wait, dry_run, version=version)


_DECISIONS = {
    "start": "Let a rollout begin that waits for it (approve = [0] in the settings).",
    "approve": "Approve the stage that a rollout waits to begin.",
    "pause": "Stop exposing devices; those that run the candidate keep it.",
    "resume": "Go on with a paused rollout: its stage is watched once more, from the beginning.",
    "promote": "Make the candidate everybody's release now, whatever the gates say.",
    "abort": "End a rollout: devices go back to the old release; rounds still go on from the candidate.",
    "rollback": "Take the candidate back from devices and rounds alike; also when it was promoted already.",
}
"""What people decide about the rollout under way: it needs no more words than the task's."""


def _add_decision(name: str, says: str) -> None:
    @app.command(name, help=says)
    def decide(config: Config, task: Task = None, by: By = None, wait: Wait = WAIT_S, dry_run: DryRun = False) -> None:
        from vedette_aggregator.rollout_events import Verb

        _ask(config, task, Verb(name), by, wait, dry_run)


for _name, _says in _DECISIONS.items():
    _add_decision(_name, _says)


@app.command()
def pin(
    device: Device,
    config: Config,
    version: Version,
    task: Task = None,
    by: By = None,
    wait: Wait = WAIT_S,
    dry_run: DryRun = False,
) -> None:
    """Tie a device to a listed release, whatever the rollout does; it then counts in no cohort."""
    from vedette_aggregator.rollout_events import Verb

    _ask(config, task, Verb.PIN, by, wait, dry_run, device=device, version=version)


@app.command()
def unpin(
    device: Device,
    config: Config,
    task: Task = None,
    by: By = None,
    wait: Wait = WAIT_S,
    dry_run: DryRun = False,
) -> None:
    """Let a device follow the rollout again."""
    from vedette_aggregator.rollout_events import Verb

    _ask(config, task, Verb.UNPIN, by, wait, dry_run, device=device)


def _ask(
    config: Path,
    task: str | None,
    verb: Verb,
    by: str | None,
    wait_s: float,
    dry_run: bool,
    *,
    device: str = "",
    version: int = 0,
) -> None:
    import getpass

    from vedette_aggregator.rollout_desk import open_desk

    with open_desk(_settings(config)) as desk:
        chosen = desk.task(task)
        request = desk.ask(chosen, verb, by or getpass.getuser(), device=device, version=version, dry_run=dry_run)
        if dry_run:
            typer.echo(f"{chosen}: {verb.value} could be done")
            return
        record = desk.wait(chosen, request, wait_s)
        if record is None:
            typer.echo(f"{chosen}: {verb.value} is written down; the aggregator has not answered yet. Does it run?")
            return
        typer.echo(f"{chosen}: {verb.value} done; the rollout of release {record.candidate} is {record.phase.value}")


def _settings(config: Path) -> AggregatorSettings:
    from vedette_aggregator import settings
    from vedette_core.runtime.config import load

    return load(settings.AggregatorSettings, config)
