"""`vedette validator`: an independent second signature under releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="An independent second signature under releases.", no_args_is_help=True)


@app.callback()
def validator() -> None:
    """An independent second signature under releases."""


@app.command()
def run(
    repository: Annotated[
        Path, typer.Option("--repository", help="The aggregator's trust_dir, or a synchronised copy of it.")
    ],
    root: Annotated[Path, typer.Option("--root", help="root.json that you were given by a way that you trust.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="The validator's private key (`vedette trust key new`).")],
    state_dir: Annotated[Path, typer.Option("--state-dir", help="Folder of its own: the newest root that it saw.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Limits and windows by task; see validator.example.toml.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="File whose first line is the passphrase; mode 600.")
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; exit status 7 if something was refused.")] = False,
) -> None:
    """Check each release that the aggregator proposes, and sign it or say why not. Runs until it is stopped."""
    import logging
    import time

    from vedette.exit_codes import ExitCode
    from vedette_aggregator.ceremony_keys import read_passphrase, read_signer
    from vedette_aggregator.validator import Validator
    from vedette_aggregator.validator_settings import ValidatorSettings
    from vedette_core.runtime.config import load
    from vedette_core.runtime.logs import configure
    from vedette_schemas.errors import VedetteError

    configure("info", "plain")
    secret = None if passphrase_file is None else read_passphrase(passphrase_file)
    settings = ValidatorSettings() if config is None else load(ValidatorSettings, config)
    validator = Validator(repository, root, state_dir, read_signer(key, secret), settings)
    if once:
        looked = validator.look(time.time())
        for each in looked:
            typer.echo(f"{each.task}, role {each.role_version}: {each.refused or 'signed'}")
        if any(each.refused for each in looked):
            raise typer.Exit(ExitCode.CHECK_FAILED)
        return
    log = logging.getLogger("vedette.validator")
    while True:
        try:
            validator.look(time.time())
        except VedetteError as fault:
            log.error("%s; looking again", fault)
        time.sleep(every)


@app.command("list")
def list_verdicts(
    state_dir: Annotated[Path, typer.Option("--state-dir", help="The folder that `run` was given.")],
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print what the validator said of each proposal, and what it measured; newest last."""
    import json
    from dataclasses import asdict
    from datetime import UTC, datetime

    from vedette_aggregator.validator_record import ValidatorRecord

    said = [each for each in ValidatorRecord(state_dir).all() if each.refused or not refused]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in said], indent=2))
        return
    for each in said:
        at = datetime.fromtimestamp(each.at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        typer.echo(f"{at}  {each.task}, role {each.role_version}: {each.refused or 'signed'}")
        for release, verdicts in each.releases.items():
            for verdict in verdicts:
                where = f" ({verdict['cohort']})" if verdict["cohort"] else ""
                typer.echo(f"    {release}: {verdict['outcome']:7} {verdict['validator']}{where}: {verdict['found']}")
    if not said:
        typer.echo("nothing yet")
