"""`vedette evaluate`: detection quality on public recordings, beside simple peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class SuiteName(StrEnum):
    """Which use case."""

    NETWORK = "network"
    SENSOR = "sensor"
    BEHAVIOUR = "behaviour"


def evaluate(
    suite: Annotated[SuiteName, typer.Option("--suite", help="Use case.")],
    data: Annotated[Path, typer.Option("--data", envvar="VEDETTE_DATA", help="Folder of the developer pack.")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="One set; repeat for more. All of the suite without it.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=20, help="Seeds 0, 1, … to average over.")] = 1,
    noise: Annotated[
        float, typer.Option("--noise", min=0.0, max=100.0, help="Noise multiplier of the federated rounds' sums.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for JSON, CSV, Markdown and SVG files.")] = None,
) -> None:
    """Train, calibrate and judge the detectors on labelled recordings, in the order of time, beside simple peers.

    Thresholds are fixed before the test stretch; attacks are in the test stretch alone. A set that cannot be read or
    evaluated is reported as failed, and the command then ends with a status of its own.
    """
    import json
    import platform

    from vedette import __version__
    from vedette.evaluation import report
    from vedette.evaluation.datasets import loaders
    from vedette.evaluation.runner import SetResult
    from vedette.evaluation.runner import evaluate as evaluate_set
    from vedette.exit_codes import ExitCode
    from vedette_schemas.errors import ConfigError, VedetteError

    known = loaders(suite.value)
    chosen = list(dict.fromkeys(sets or known))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ConfigError(f"--set: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    if not data.is_dir():
        raise ConfigError(f"{data}: found no folder, expected the developer pack; see --data")
    results: dict[str, SetResult] = {}
    with _progress(quiet=as_json, total=len(chosen)) as (say, done):
        for name in chosen:
            say(f"{name}: reading")
            try:
                results[name] = evaluate_set(known[name](data), range(seeds), noise_multiplier=noise, say=say)
            except (VedetteError, OSError) as fault:
                results[name] = SetResult({"suite": suite.value, "failed": str(fault)}, {})
            done()
    document: dict[str, Any] = {
        "version": __version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "suite": suite.value,
        "seeds": seeds,
        "sets": {name: result.figures for name, result in results.items()},
    }
    if out is not None:
        written = report.write(out, document, results)
        typer.echo(f"{out}: {len(written)} files", err=True)
    typer.echo(json.dumps(document, indent=2) if as_json else report.markdown(document["sets"]), nl=as_json)
    failed = [name for name, result in results.items() if "failed" in result.figures or "failures" in result.figures]
    for name in failed:
        why = results[name].figures.get("failed") or results[name].figures["failures"]
        typer.echo(f"vedette evaluate: {name}: {why}", err=True)
    if failed:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@contextmanager
def _progress(*, quiet: bool, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield (lambda _: None), (lambda: None)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield (lambda text: bar.update(task, description=text)), (lambda: bar.advance(task))
