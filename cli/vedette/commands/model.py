"""`vedette model`: the releases of a site, and what microcontrollers need of them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vedette.commands import model_lineage
from vedette.commands.model_lineage import open_registry
from vedette.exit_codes import ExitCode

if TYPE_CHECKING:
    from vedette_aggregator.listed_releases import ListedReleases

app = typer.Typer(help="Releases of a site: list, show, compare, verify, revoke, export.", no_args_is_help=True)
app.command("candidates")(model_lineage.candidates)
app.command("diff")(model_lineage.diff)
Config = Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")]
Task = Annotated[str | None, typer.Option("--task", "-t", help="One task; all of them without it.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


class TargetName(StrEnum):
    """What a model is exported as."""

    TFLM = "tflm"
    C_ARRAY = "c-array"
    TFLITE = "tflite"


class VariantName(StrEnum):
    """Which artifact of a release."""

    INT8 = "int8"
    INT16X8 = "int16x8"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@app.command("list")
def list_releases(
    config: Config,
    task: Task = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every candidate and release on record, those that are not kept, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the releases that are kept, newest last, with the bytes of each of their files."""
    if everything:
        model_lineage.print_all(model_lineage.candidate_rows(config, task, limit=10_000), as_json)
        return
    state = open_registry(config).state()
    rows = [_row(state, each, version) for each in _tasks(state, task) for version in state.versions(each)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("task", "release", "", "round", "devices", "files (bytes)", "metrics"):
        table.add_column(column, justify="right" if column in ("release", "round", "devices") else "left")
    for row in rows:
        files = ", ".join(f"{name} {about['bytes']}" for name, about in row["files"].items())
        metrics = ", ".join(f"{name} {value}" for name, value in row["metrics"].items()) or "none"
        marks = "active" if row["active"] else ""
        table.add_row(row["task"], str(row["version"]), marks, str(row["round"]), str(row["devices"]), files, metrics)
    Console().print(table)


@app.command()
def show(
    config: Config,
    task: Annotated[str, typer.Option("--task", "-t", help="The task.")],
    version: Annotated[
        int | None, typer.Option("--version", "-v", min=0, help="The active release without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a release is made of: its network, its files and digests, and what a microcontroller needs."""
    from vedette_aggregator.arena import estimate_arena
    from vedette_aggregator.graph_reader import read_graph
    from vedette_aggregator.microcontroller import MICRO_VARIANTS
    from vedette_core.learning.weights_file import read_weights
    from vedette_schemas.model import Variant

    state = open_registry(config).state()
    chosen = _version(state, task, version)
    descent = model_lineage.descent_of(config, task, chosen)
    if descent is not None and chosen not in state.versions(task):
        _show_record(task, chosen, descent, as_json)
        return
    row = _row(state, task, chosen)
    row["lineage"] = descent
    model = read_weights(state.target(task, chosen, Variant.WEIGHTS)[1])
    row["network"] = {**model.network.spec.to_dict(), "weights": model.network.layout.size}
    row["columns"] = list(model.schema.columns)
    for variant in MICRO_VARIANTS:
        if variant.value in row["files"]:
            arena = estimate_arena(read_graph(state.target(task, chosen, variant)[1]))
            row["files"][variant.value]["arena_bytes"] = arena.recommended_bytes
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    network = row["network"]
    typer.echo(f"{task} {chosen}{' (active)' if row['active'] else ''}: round {row['round']}, {row['devices']} devices")
    typer.echo(f"network: {network['kind']}, input {network['input_shape']}, {network['weights']} weights")
    for name, about in row["files"].items():
        arena_text = f", arena about {about['arena_bytes']} bytes" if "arena_bytes" in about else ""
        typer.echo(f"  {name:8} {about['bytes']:>8} bytes  {about['sha256']}{arena_text}")
    for name, value in row["metrics"].items():
        typer.echo(f"  {name}: {value}")
    if descent is not None:
        model_lineage.print_descent(descent)


@app.command()
def revoke(
    task: Annotated[str, typer.Argument(help="The task.")],
    version: Annotated[int, typer.Argument(min=0, help="The release.")],
    config: Config,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; goes to every device.")],
    sha256: Annotated[
        list[str] | None,
        typer.Option("--sha256", help="Digest that devices reported, for a release that is not ours; repeat."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
) -> None:
    """Revoke a release for good: devices drop it at once; if it was active, the newest older one becomes active."""
    import time

    registry = open_registry(config)
    if dry_run:
        is_news, after = registry.after_revocation(task, version, reason, sha256 or ())
        said = "would be revoked" if is_news else "is revoked already"
        typer.echo(f"{task} {version} {said}; active would be {after}; nothing was changed")
        return
    registry.revoke(task, version, reason, time.time(), sha256 or ())
    model_lineage.note_revoked(config, registry, task)
    typer.echo(f"{task} {version} is revoked; active is {registry.active(task)}")
    typer.echo("a running aggregator publishes it within seconds; devices drop it when they hear of it")


@app.command()
def verify(config: Config, task: Task = None, as_json: Json = False) -> None:
    """Check signatures and digests of all kept releases, and run each artifact against its weights in numpy."""
    from vedette_aggregator.release_check import check_release

    registry = open_registry(config)
    state = registry.state()
    findings = [
        finding
        for each in _tasks(state, task)
        for version in state.versions(each)
        for finding in check_release(state, each, version)
    ]
    if any(finding.fault for finding in findings):
        # This takes a while, and a running aggregator tidies away what it no longer lists.
        state = registry.state()
        findings = [each for each in findings if not each.fault or each.version in state.versions(each.task)]
    faults = sum(bool(finding.fault) for finding in findings)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for found in findings:
            said = found.fault or ("ok" if not found.error else f"ok, off by {found.error:.2g} of the output's range")
            typer.echo(f"{found.task} {found.version} {found.variant.value:8} {found.sha256[:12]}…  {said}")
        typer.echo(f"signatures hold; {len(findings)} files, {faults} with a fault")
    if faults:
        raise typer.Exit(ExitCode.INTEGRITY)


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files; made if it is not there.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The aggregator's TOML file.")] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task, with --config.")] = None,
    version: Annotated[
        int | None, typer.Option("--version", "-v", min=0, help="The active release without it.")
    ] = None,
    variant: Annotated[VariantName, typer.Option("--variant", help="Which artifact.")] = VariantName.INT8,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A .tflite artifact instead of a release.")] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Digest that --file must have.")] = None,
    target: Annotated[TargetName, typer.Option("--target", help="What to write.")] = TargetName.TFLM,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files of an earlier export.")] = False,
) -> None:
    """Write an artifact as source code for TensorFlow Lite Micro, as a C array, or as it is."""
    import hashlib

    from vedette_aggregator.microcontroller import Target
    from vedette_aggregator.microcontroller import export as export_files
    from vedette_core.runtime.durable import file_error
    from vedette_schemas.errors import ConfigError, PeerError
    from vedette_schemas.model import MODEL_BYTES_MAX, Variant

    if (config is None) == (file is None) or (config is not None and task is None):
        raise typer.BadParameter("found neither or both of --config with --task, and --file; expected one of them")
    if config is not None and task is not None:
        state = open_registry(config).state()
        _, data = state.target(task, _version(state, task, version), Variant(variant.value))
    else:
        assert file is not None
        try:
            with file.open("rb") as stream:
                data = stream.read(MODEL_BYTES_MAX + 1)
        except OSError as fault:
            raise file_error(fault, f"read {file}") from fault
        if len(data) > MODEL_BYTES_MAX:
            raise ConfigError(f"{file}: found more than {MODEL_BYTES_MAX} bytes, expected a .tflite artifact")
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256.lower():
            raise PeerError(f"{file}: found sha256 {found}, expected {sha256}", reason="digest")
    files = export_files(data, Target(target.value))
    present = sorted(name for name in files if (out / name).exists())
    if present and not replace:
        raise ConfigError(f"{out}: found {', '.join(present)} there; expected none of them, or --replace")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as fault:
        raise file_error(fault, f"write to {out}") from fault
    typer.echo(f"{out}: {', '.join(files)}; artifact of {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    if file is not None and sha256 is None:
        typer.echo("nothing vouches for this file: compare its digest with that of `vedette model show`", err=True)


def _show_record(task: str, version: int, descent: dict[str, Any], as_json: bool) -> None:
    """A release whose files the repository no longer keeps."""
    if as_json:
        typer.echo(json.dumps({"task": task, "version": version, "active": False, "lineage": descent}, indent=2))
        return
    typer.echo(f"{task} {version} (no longer kept): round {descent['round']}, {descent['contributors']} devices")
    for name, sha256 in descent["files"].items():
        typer.echo(f"  {name:8} {sha256}")
    model_lineage.print_descent(descent)


def _tasks(state: ListedReleases, task: str | None) -> tuple[str, ...]:
    return (task,) if task is not None else state.tasks


def _version(state: ListedReleases, task: str, version: int | None) -> int:
    from vedette_schemas.errors import RefusedError

    chosen = version if version is not None else state.active(task)
    if chosen is None:
        raise RefusedError(f"task {task}: found no active release, expected one; has a round run yet?", rule="version")
    return chosen


def _row(state: ListedReleases, task: str, version: int) -> dict[str, Any]:
    from vedette_schemas.model import Variant

    listed = state.listed(task, version)
    said = listed[Variant.WEIGHTS].custom
    return {
        "task": task,
        "version": version,
        "active": said.active,
        "round": said.round,
        "devices": said.contributors,
        "feature_schema": said.feature_schema,
        "metrics": dict(said.metrics),
        "files": {
            variant.value: {"bytes": target.length, "sha256": target.sha256}
            for variant, target in sorted(listed.items(), key=lambda each: list(Variant).index(each[0]))
        },
    }
