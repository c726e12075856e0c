"""`vedette model candidates` and `diff`, and what `list --all` and `show` say of a release's descent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vedette_aggregator.lineage import Descent, Lineage
    from vedette_aggregator.registry import Registry
    from vedette_core.learning.weights_file import WeightsFile

Config = Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
SHOWN = 50
"""Candidates that are listed unless asked for more."""


def candidates(
    config: Config,
    task: Annotated[str | None, typer.Option("--task", "-t", help="One task; all of them without it.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest of each task.")] = SHOWN,
    rejected: Annotated[bool, typer.Option("--rejected", help="Only those that are no release.")] = False,
    as_json: Json = False,
) -> None:
    """List what rounds made, accepted and rejected, with every validator's verdict; newest last."""
    rows = candidate_rows(config, task, limit)
    if rejected:
        rows = [row for row in rows if row["version"] is None]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    _table(rows)
    for row in rows:
        for verdict in row["verdicts"]:
            if verdict["outcome"] == "reject":
                where = f" ({verdict['cohort']})" if verdict["cohort"] else ""
                typer.echo(
                    f"{row['task']} round {row['round']}: {verdict['validator']}{where}: found {verdict['found']}, "
                    f"expected {verdict['expected']}"
                )
        if row["reason"] and not row["verdicts"]:
            typer.echo(f"{row['task']} round {row['round']}: {row['reason']}")
    if not rows:
        typer.echo("nothing yet: no round has made a candidate")


def diff(
    a: Annotated[str, typer.Argument(help="A release (12), a round's candidate (round-12), or a weights file.")],
    b: Annotated[str, typer.Argument(help="The same; the newer one.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The aggregator's TOML file.")] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task, with releases or candidates.")] = None,
    holdout: Annotated[
        Path | None, typer.Option("--holdout", help="Benign windows of `vedette device windows`, to compare on.")
    ] = None,
    attack: Annotated[
        Path | None, typer.Option("--attack", help="Windows of an attack, in the same form; with --holdout.")
    ] = None,
    moves: Annotated[int, typer.Option("--moves", min=0, max=100, help="Single weights that are named.")] = 5,
    as_json: Json = False,
) -> None:
    """Compare two models: weights, tensor by tensor; what they predict; and their figures side by side."""
    from vedette_aggregator.model_comparison import compare

    if attack is not None and holdout is None:
        raise typer.BadParameter("found --attack without --holdout; expected the benign windows that it is among")
    models = [_weights(each, config, task) for each in (a, b)]
    plain = compare(models[0][0], models[1][0], holdout=holdout, attack=attack, moves=moves)
    plain["metrics"] = _side_by_side(models[0][1], models[1][1])
    if as_json:
        from vedette_aggregator.lineage import json_safe

        typer.echo(json.dumps(json_safe({"a": a, "b": b, **plain}), indent=2))
        return
    _print_diff(a, b, plain)


def candidate_rows(config: Path, task: str | None, limit: int = SHOWN) -> list[dict[str, Any]]:
    """Plain data of the newest candidates of one task, or of all."""
    from vedette_aggregator.lineage import open_lineage
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    settings = load(AggregatorSettings, config)
    lineage = open_lineage(settings)
    tasks = [task] if task is not None else [each.task for each in settings.tasks]
    return [
        {**descent.to_plain(), "history": _history(lineage, each, descent.version)}
        for each in tasks
        for descent in lineage.all(each, limit=limit)
    ]


def print_all(rows: list[dict[str, Any]], as_json: bool) -> None:
    """`model list --all`: every candidate and release, one a line."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _table(rows)


def descent_of(config: Path, task: str, version: int) -> dict[str, Any] | None:
    """What the record knows of a release: its candidate, ancestors and history; None where there is no record."""
    from vedette_schemas.errors import ConfigError

    try:
        lineage = _lineage(config)
    except ConfigError:
        return None  # a repository without an aggregator's state: a backup, or one that never ran
    found = lineage.of_version(task, version)
    if found is None:
        return None
    ancestors = list(lineage.ancestors(task, version))
    return {**found.to_plain(), "ancestors": ancestors, "history": _history(lineage, task, version)}


def note_revoked(config: Path, registry: Registry, task: str) -> None:
    """Write a revocation into the record, if an aggregator has one here; a running one does so, too, and it is once."""
    import time

    from vedette_aggregator.registry_watch import note_revocations

    lineage = _lineage_if_there(config)
    if lineage is not None:
        note_revocations(registry, lineage, task, time.time())


def print_descent(plain: dict[str, Any]) -> None:
    """Lines below those of `model show`."""
    line = " ← ".join(map(str, plain["ancestors"])) or "none known"
    epsilon = "nothing promised" if plain["epsilon"] is None else f"ε {plain['epsilon']:.4g}"
    typer.echo(f"parents: {line}; round {plain['round']}, attempt {plain['attempt']}; privacy: {epsilon}")
    for verdict in plain["verdicts"]:
        where = f" ({verdict['cohort']})" if verdict["cohort"] else ""
        typer.echo(f"  {verdict['outcome']:7} {verdict['validator']}{where}: {verdict['found']}")
    for event in plain["history"]:
        typer.echo(f"  {_moment(event['at_s'])}  {event['what']}  {event['details']}".rstrip())


def _history(lineage: Lineage, task: str, version: int | None) -> list[dict[str, Any]]:
    """What happened to a release; nothing ever does to a candidate that is none."""
    if version is None:
        return []
    return [{"at_s": e.at_s, "what": e.what, "details": e.details} for e in lineage.events(task, version)]


def _lineage(config: Path) -> Lineage:
    from vedette_aggregator.lineage import open_lineage
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    return open_lineage(load(AggregatorSettings, config))


def _weights(name: str, config: Path | None, task: str | None) -> tuple[WeightsFile, dict[str, float]]:
    """A model by its name on the command line, and its figures."""
    from vedette_core.learning.weights_file import FILE_BYTES_MAX, read_weights
    from vedette_core.runtime.durable import file_error
    from vedette_schemas.errors import ConfigError

    number = name.removeprefix("round-")
    if not (number.isascii() and number.isdigit()):
        try:
            with Path(name).open("rb") as stream:
                return read_weights(stream.read(FILE_BYTES_MAX + 1)), {}
        except OSError as fault:
            raise file_error(fault, f"read {name}") from fault
    if config is None or task is None:
        raise ConfigError(f"{name}: found no --config or no --task, expected both with a release or a candidate")
    lineage = _lineage_if_there(config)
    descent = _descent(lineage, task, name, int(number))
    figures = {**descent.metrics, **descent.figures} if descent else {}
    return read_weights(_bytes(config, lineage, task, name, int(number), descent)), figures


def _descent(lineage: Lineage | None, task: str, name: str, number: int) -> Descent | None:
    if lineage is None:
        return None
    return lineage.of_round(task, number) if name.startswith("round-") else lineage.of_version(task, number)


def _bytes(config: Path, lineage: Lineage | None, task: str, name: str, number: int, descent: Descent | None) -> bytes:
    """From the repository where the release is kept there, else from the record."""
    from vedette_schemas.errors import RefusedError
    from vedette_schemas.model import Variant

    state = open_registry(config).state()
    if not name.startswith("round-") and number in state.versions(task):
        return state.target(task, number, Variant.WEIGHTS)[1]
    if lineage is None or descent is None or not descent.weights_sha256:
        raise RefusedError(f"{name} of {task}: found no record of its weights, expected one", rule="version")
    return lineage.weights(task, descent.weights_sha256)


def _lineage_if_there(config: Path) -> Lineage | None:
    from vedette_schemas.errors import ConfigError

    try:
        return _lineage(config)
    except ConfigError:
        return None


def open_registry(config: Path) -> Registry:
    """The release repository that an aggregator's settings name.

    Raises:
        ConfigError: none there, or a damaged one.
    """
    from vedette_aggregator.registry import Registry
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    return Registry(load(AggregatorSettings, config).trust_dir)


def _side_by_side(a: dict[str, float], b: dict[str, float]) -> dict[str, dict[str, float | None]]:
    return {name: {"a": a.get(name), "b": b.get(name)} for name in sorted({*a, *b})}


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("task", "release", "outcome", "since", "round", "parent", "devices", "ε", "made", "figures"):
        left = ("task", "outcome", "since", "made", "figures")
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        figures = {**row["metrics"], **row["figures"]}
        shown = ("loss_before", "loss_after", "holdout_loss", "false_positives", "detected")
        table.add_row(
            row["task"],
            "–" if row["version"] is None else str(row["version"]),
            row["outcome"],
            row["history"][-1]["what"] if row["history"] else "",
            str(row["round"]),
            "–" if row["parent_version"] is None else str(row["parent_version"]),
            str(row["contributors"]),
            "–" if row["epsilon"] is None else f"{row['epsilon']:.3g}",
            _moment(row["made_s"]),
            ", ".join(f"{name} {float(figures[name]):.4g}" for name in shown if name in figures),
        )
    Console().print(table)


def _print_diff(a: str, b: str, plain: dict[str, Any]) -> None:
    whole = plain["weights"]
    typer.echo(
        f"{a} → {b}: {plain['dimension']} weights, relative L2 {whole['relative']:.4g}, cosine {whole['cosine']:.5f}"
    )
    for tensor in plain["tensors"]:
        shape = "×".join(map(str, tensor["shape"]))
        typer.echo(
            f"  {tensor['name']:22} {shape:>10}  relative {tensor['relative']:.4g}  cosine {tensor['cosine']:.5f}"
        )
    for move in plain["moves"]:
        index = ", ".join(map(str, move["index"]))
        typer.echo(f"  {move['tensor']}[{index}]: {move['before']:.5g} → {move['after']:.5g}")
    typer.echo(f"reconstructions {plain['shift']:.4g} times the size of {plain['windows']} windows apart")
    for name, sides in plain["holdout"].items():
        typer.echo(f"  {name}: {sides['a']:.5g} → {sides['b']:.5g}")
    for name, sides in plain["metrics"].items():
        left, right = ("–" if value is None else f"{value:.5g}" for value in (sides["a"], sides["b"]))
        typer.echo(f"  {name}: {left} → {right}")


def _moment(at_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
