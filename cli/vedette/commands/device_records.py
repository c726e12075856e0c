"""`vedette device list` and `show`: what the aggregator knows of its devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
OUTCOMES = {
    "none": "not part of it",
    "pending": "fetching and testing it",
    "trial": "runs it on trial",
    "confirmed": "has confirmed it",
    "failed": "it failed here",
}
"""What a device says of itself, in words."""


def list_devices(
    config: Config,
    cohort: Annotated[str | None, typer.Option("--cohort", help="Only devices of this kind.")] = None,
    drifting: Annotated[bool, typer.Option("--drifting", help="Only devices that say that something drifts.")] = False,
    as_json: Json = False,
) -> None:
    """List the devices that the aggregator has heard of: status, releases, drift, alerts, participation."""
    from vedette_aggregator.device_report import open_device_reports
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_device_reports(load(AggregatorSettings, config)) as found:
        rows = found.rows()
    rows = [r for r in rows if (cohort is None or r["cohort"] == cohort) and (not drifting or _drift(r))]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    # Numbers and words that always fit; what may be long stands below, one line a device.
    cohorts = ("cohort",) if any(row["cohort"] for row in rows) else ()
    for column in ("device", "status", *cohorts, "seen", "releases", "alerts", "rounds"):
        right = column in ("alerts", "rounds")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        models = " ".join(f"{task}:{about['version']}" for task, about in row["models"].items())
        rounds = sum(each["completed"] for each in row["participation"].values())
        seen = (row["seen"] or "–")[:16]
        kind = (row["cohort"] or "–",) if cohorts else ()
        counts = (str(row["alerts"]), str(rounds))
        table.add_row(row["device"], row["status"], *kind, seen, models or "–", *counts)
    Console().print(table)
    for row in rows:
        marks = _marks(row)
        if marks:
            typer.echo(f"{row['device']}: {'; '.join(marks)}")
    if not rows:
        typer.echo("nobody has said anything yet")


def show_device(
    device: Annotated[str, typer.Argument(help="Id of the device.")], config: Config, as_json: Json = False
) -> None:
    """Print what is known of one device."""
    from vedette_aggregator.device_report import open_device_reports
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_device_reports(load(AggregatorSettings, config)) as found:
        row = found.row(device)
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    cohort = f", cohort {row['cohort']}" if row["cohort"] else ""
    software, seen = row["software"] or "unknown", row["seen"] or "never"
    typer.echo(f"{device}: {row['status']}{cohort}, Vedette {software}, seen {seen}")
    if row["quarantined"]:
        typer.echo(f"  quarantined since {row['quarantined']['since']}: {row['quarantined']['reason']}")
    for task, score in row["suspicion"].items():
        typer.echo(f"  {task}: suspicion {score}")
    for task, model in row["models"].items():
        typer.echo(f"  {task}: release {model['version']} ({model['variant']}, {model['backend']})")
    _print_standing(row)
    for task, detector in row["detectors"].items():
        typer.echo(f"  {task}: {detector['phase']}, {detector['windows']} windows, {detector['alerts_opened']} alerts")
        drift = detector["drift"]
        if drift is not None:
            columns = ", ".join(f"{name} {psi:.2f}" for name, psi in drift["columns"].items()) or "no column"
            kinds = ", ".join(drift["kinds"]) or "nothing"
            typer.echo(
                f"    drifting: {kinds}; PSI {drift['psi']:.3f} (by chance {drift['ks_p']:.2g}), calibration error "
                f"{drift['calibration_error']:.3f}, {columns}"
            )
    for task, taken in row["participation"].items():
        last = f"last in round {taken['last_round']}"
        typer.echo(f"  {task}: {taken['selected']} times drawn, {taken['completed']} updates, {last}")
    for action in row["actions"]:
        typer.echo(f"  {action['at']}  {action['kind']} {action['task']}: {action['outcome']} ({action['reason']})")
    for alert in row["newest_alerts"]:
        typer.echo(f"  {alert['time']}  {alert['severity']} {alert['state']}  {alert['summary']}")


def _marks(row: dict[str, Any]) -> list[str]:
    """What is not as usual about a device, in few words."""
    attestation = row["attestation"] or {}
    return [
        *(["quarantined"] if row["quarantined"] else []),
        *([f"drifting ({_drift(row)})"] if _drift(row) else []),
        *[f"pinned to {task} {version}" for task, version in row["pins"].items()],
        *(["attestation withdrawn"] if attestation.get("withdrawn") else []),
    ]


def _print_standing(row: dict[str, Any]) -> None:
    """Pins, rollouts, attestation and certificate: what a device runs and may do."""
    for task, version in row["pins"].items():
        runs = row["models"].get(task, {}).get("version")
        other = "" if runs in (None, version) else f", runs {runs}: not listed, revoked, or not reached yet"
        typer.echo(f"  {task}: pinned to release {version}{other}")
    for task, rollout in row["rollouts"].items():
        typer.echo(f"  {task}: rollout of release {rollout['candidate']}: {OUTCOMES[rollout['outcome']]}")
    attestation = row["attestation"]
    if attestation is not None:
        held = f"tier {attestation['tier']} until {attestation['until']}" if attestation["until"] else "no passport"
        typer.echo(f"  attestation: {'withdrawn' if attestation['withdrawn'] else held}")
        refused = attestation["last_refusal"]
        if refused is not None:
            typer.echo(f"    last refusal {refused['at']}: {refused['rule']}: {refused['detail']}")
    if row["certificate_until"] is not None:
        typer.echo(f"  certificate of its newest check-in: until {row['certificate_until']}")


def _drift(row: dict[str, Any]) -> str:
    """Tasks and kinds of what drifts; empty where nothing does."""
    return ", ".join(
        f"{task}: {' '.join(detector['drift']['kinds'])}"
        for task, detector in row["detectors"].items()
        if detector["drift"] is not None and detector["drift"]["kinds"]
    )
