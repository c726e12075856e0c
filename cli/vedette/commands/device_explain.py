"""`vedette device explain`: why an alert was raised, on the gateway that raised it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain_alert(
    config: Annotated[Path, typer.Option("--config", "-c", help="The node's TOML file; it may be running.")],
    alert: Annotated[str, typer.Argument(help="Id of the alert, or its `evidence`; without it, what is kept.")] = "",
    list_kept: Annotated[bool, typer.Option("--list", help="The alerts that evidence is kept for.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, see docs/operations.md.")] = False,
) -> None:
    """Tell why an alert was raised: values and usual ranges, shares of the error, integrated gradients, time course."""
    if alert and list_kept:
        raise typer.BadParameter("expected an alert to explain, or --list")
    import json

    from vedette import explanation_text
    from vedette_core.runtime.config import load
    from vedette_device.evidence_store import open_kept
    from vedette_device.explanation import explain
    from vedette_device.scored_input import ENSEMBLE
    from vedette_device.settings import DeviceSettings
    from vedette_schemas.errors import VedetteError

    settings = load(DeviceSettings, config)
    with open_kept(settings.state_dir) as kept:
        if not alert:
            found = kept.alerts()
            if as_json:
                typer.echo(json.dumps([explanation_text.kept_row(*each) for each in found], indent=2))
            else:
                explanation_text.print_kept(found)
            return
        evidence = kept.evidence(alert)
        weights: bytes | VedetteError = b""
        if evidence.input.head != ENSEMBLE:
            try:
                weights = kept.weights(evidence.model)
            except VedetteError as fault:
                weights = fault
    explained = explain(evidence, weights)
    if as_json:
        typer.echo(json.dumps(explanation_text.document(explained), indent=2))
    else:
        explanation_text.print_explanation(explained)
