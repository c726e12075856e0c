"""`vedette privacy`: what rounds have cost the devices' privacy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vedette_core.privacy.report import PrivacyRow

app = typer.Typer(help="What rounds have cost the devices' privacy.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """What rounds have cost the devices' privacy."""


@app.command()
def show(
    config: Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print what was spent, task by task, and what a further round would cost."""
    import json

    from vedette_aggregator.privacy_report import privacy_rows_of
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    rows = privacy_rows_of(load(AggregatorSettings, config))
    if as_json:
        typer.echo(json.dumps([_plain(row) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("task", "releases", "round", "most exposed", "times", "ε spent", "of at most", "ε after one more"):
        table.add_column(column, justify="left" if column in ("task", "most exposed") else "right")
    for row in rows:
        plain = _plain(row)
        after = plain["epsilon_further"] + (" (refused)" if row.would_be_refused else "")
        table.add_row(
            row.task,
            str(row.releases),
            str(row.round),
            row.most_exposed or "nobody",
            str(row.participations),
            plain["epsilon_period"],
            plain["epsilon_max"],
            after,
        )
    console = Console()
    console.print(table)
    for row in rows:
        if row.noise_multiplier == 0:
            console.print(f"{row.task}: no noise is added, so that nothing is promised; see its privacy table")
        else:
            ever = _plain(row)["epsilon_ever"]
            console.print(
                f"{row.task}: rounds {row.period[0]}–{row.period[1]} are one period; δ = {row.budget.delta:g}; over "
                f"all periods the most exposed device has ε = {ever}"
            )


def _plain(row: PrivacyRow) -> dict[str, Any]:
    from math import isinf

    from vedette_core.privacy.exposure import epsilon_text

    return {
        "task": row.task,
        "round": row.round,
        "period": list(row.period),
        "releases": row.releases,
        "most_exposed": row.most_exposed,
        "participations": row.participations,
        "participations_max": row.budget.participations_max,
        "epsilon_period": epsilon_text(row.epsilon_period),
        "epsilon_max": "no limit" if isinf(row.budget.epsilon_max) else f"{row.budget.epsilon_max:g}",
        "delta": row.budget.delta,
        "most_exposed_ever": row.most_exposed_ever,
        "participations_ever": row.participations_ever,
        "epsilon_ever": epsilon_text(row.epsilon_ever),
        "noise_multiplier": row.noise_multiplier,
        "epsilon_further": epsilon_text(row.epsilon_further),
        "devices_asked": row.asked,
        "devices_refused": row.refused,
        "would_be_refused": row.would_be_refused,
    }
