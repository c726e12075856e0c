"""`vedette demo`: the whole loop on recorded attacks, with nothing to set up; and what can go wrong, on request."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vedette.demo.judge import Verdict
    from vedette.demo.runner import DemoOptions


class Scenario(StrEnum):
    """What is shown."""

    ATTACKS = "attacks"
    DROPOUT = "dropout"
    POISONED = "poisoned-device"
    TAMPERED = "tampered-device"
    REVOKED = "revoked-device"
    STOLEN_KEY = "stolen-release-key"
    BAD_RELEASE = "bad-release"


def demo(
    once: Annotated[bool, typer.Option("--once", help="One pass without the live table: plain lines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of recordings; the shipped ones by default.")
    ] = None,
    speed: Annotated[
        float, typer.Option("--speed", min=0, max=1000, help="Factor on the replay's speed; 0 is as fast as possible.")
    ] = 1.0,
    keep: Annotated[Path | None, typer.Option("--keep", help="New folder to keep settings, state and logs in.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=10, help="Seconds after which to give up.")] = 300.0,
    scenario: Annotated[
        Scenario,
        typer.Option(
            "--scenario",
            help="attacks; or dropout: a fifth of the devices vanish in every round; or poisoned-device: some lie; or "
            "tampered-device: one runs altered software; or revoked-device: nobody listens to one any more; or "
            "stolen-release-key: a thief signs a release; or bad-release: a release floods alerts.",
        ),
    ] = Scenario.ATTACKS,
    insecure_plain_updates: Annotated[
        bool, typer.Option("--insecure-plain-updates", help="Run rounds without masking. Loudly said.")
    ] = False,
) -> None:
    """Replay recorded attacks to a fleet of device nodes that detect them, learn together and apply signed releases."""
    if insecure_plain_updates:
        typer.echo("vedette demo: INSECURE: rounds run without masking; the aggregator can read every update", err=True)
    if scenario is not Scenario.ATTACKS:
        _play(scenario, as_json=as_json, data=data, keep=keep, timeout_s=timeout, plain=insecure_plain_updates)
        return
    import asyncio
    import json

    from vedette.demo.plan import Pace
    from vedette.demo.recordings import SHIPPED
    from vedette.demo.runner import DemoOptions
    from vedette.demo.summary import broken_promises

    options = DemoOptions(data or SHIPPED, Pace(speed), keep, timeout, insecure_plain_updates)
    figures, verdict = asyncio.run(_watch(options, live=not (once or as_json), quiet=as_json))
    broken = broken_promises(figures)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _print_summary(figures, verdict)
    _end(broken)


def _play(
    scenario: Scenario, *, as_json: bool, data: Path | None, keep: Path | None, timeout_s: float, plain: bool
) -> None:
    import asyncio
    import json

    from vedette.demo.bad_release import broken_bad_release, run_bad_release
    from vedette.demo.dropout import broken_dropout, run_dropout
    from vedette.demo.poisoned_device import run_poisoned
    from vedette.demo.poisoned_figures import broken_poisoned
    from vedette.demo.recordings import SHIPPED
    from vedette.demo.revoked_device import broken_revoked, run_revoked
    from vedette.demo.stage import ScenarioOptions
    from vedette.demo.stolen_key import broken_stolen_key, run_stolen_key
    from vedette.demo.tampered_device import broken_tampered, run_tampered

    options = ScenarioOptions(data or SHIPPED, keep, timeout_s, plain, _quiet if as_json else typer.echo)
    run, broken = {
        Scenario.DROPOUT: (run_dropout, broken_dropout),
        Scenario.POISONED: (run_poisoned, broken_poisoned),
        Scenario.TAMPERED: (run_tampered, broken_tampered),
        Scenario.REVOKED: (run_revoked, broken_revoked),
        Scenario.STOLEN_KEY: (run_stolen_key, broken_stolen_key),
        Scenario.BAD_RELEASE: (run_bad_release, broken_bad_release),
    }[scenario]
    figures = asyncio.run(run(options))
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _print_figures(figures)
    _end(broken(figures))


def _end(broken: list[str]) -> None:
    from vedette.exit_codes import ExitCode

    for promise in broken:
        typer.echo(f"vedette demo: {promise}", err=True)
    if broken:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _quiet(line: str) -> None:
    """JSON alone goes to standard output."""


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures.items():
        for below, inner in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{name} {below}".replace("_", " ").strip()
            table.add_row(label, ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner))
    console = Console()
    console.print()
    console.print(table)


async def _watch(options: DemoOptions, *, live: bool, quiet: bool) -> tuple[dict[str, Any], Verdict]:
    from rich.console import Console
    from rich.live import Live

    from vedette.demo.runner import run
    from vedette.demo.table import LiveTable
    from vedette.observer import Observer, alert_line
    from vedette_schemas.alert import Alert, AlertState

    if quiet:
        return await run(options)
    console = Console()
    if not live or not console.is_terminal:

        def line(alert: Alert) -> None:
            if alert.state is AlertState.OPEN:
                typer.echo(alert_line(alert))

        return await run(options, on_alert=line)
    table = LiveTable(("network", "sensor"), "plain" if options.plain else "masked")
    with Live(console=console, auto_refresh=False, transient=False) as view:

        def look(observer: Observer) -> None:
            view.update(table.draw(observer), refresh=True)

        return await run(options, on_alert=table.take, on_look=look)


def _print_summary(figures: dict[str, Any], verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    days = sum(figures["benign_device_days"].values())
    rounds = ", ".join(f"{task} {n}" for task, n in figures["rounds_by_task"].items())
    for name, value in (
        ("attacks alerted", f"{figures['attacks_detected']} of {figures['attacks_total']}"),
        ("false alerts", f"{figures['false_alerts']} in {days:.2f} benign device-days"),
        ("alert after", f"{figures['detection_delay_s_p50']} s of recorded time (median)"),
        ("windows scored", f"{figures['windows_scored']:,}, {figures['score_us_p50']} µs each (median)"),
        ("rounds", f"{rounds}; updates {figures['protection']}"),
        ("releases activated", f"{figures['releases_activated']}, all signed: {figures['releases_verified']}"),
        (
            "rollouts promoted",
            f"{figures['rollouts_promoted']} of {figures['rollouts_total']}; "
            f"{figures['devices_on_newest_release']} devices end on the newest releases",
        ),
        ("sent a device and round", f"{figures['bytes_up_per_device_round']:,} bytes"),
        ("memory a device", f"{figures['rss_mb_device']} MB"),
        ("took", f"{figures['seconds']} s"),
    ):
        table.add_row(name, value)
    console = Console()
    console.print()
    console.print(table)
    for episode in verdict.missed:
        console.print(f"missed: {episode.gateway} {episode.source} {episode.kind} at {episode.entity}", style="yellow")
