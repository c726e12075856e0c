"""Entry point: the command tree, and how errors reach a person.

Heavy imports stay inside the commands that need them, so that ``vedette --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vedette import __version__
from vedette.commands import (
    aggregator,
    alerts,
    attest,
    broker,
    ca,
    committee,
    config,
    demo,
    device,
    evaluate,
    init,
    model,
    policy,
    privacy,
    rollout,
    trust,
    validator,
)
from vedette.exit_codes import ExitCode, exit_code
from vedette_schemas.errors import VedetteError

app = typer.Typer(
    name="vedette",
    help="Secures IoT sites from the edge: detection on gateways, models that learn together, signed releases.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(init.app, name="init")
app.add_typer(broker.app, name="broker")
app.add_typer(device.app, name="device")
app.add_typer(aggregator.app, name="aggregator")
app.add_typer(committee.app, name="committee")
app.add_typer(model.app, name="model")
app.add_typer(rollout.app, name="rollout")
app.add_typer(trust.app, name="trust")
app.add_typer(validator.app, name="validator")
app.add_typer(privacy.app, name="privacy")
app.add_typer(policy.app, name="policy")
app.add_typer(ca.app, name="ca")
app.add_typer(attest.app, name="attest")
app.add_typer(alerts.app, name="alerts")
app.add_typer(config.app, name="config")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vedette {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Secures IoT sites from the edge: detection on gateways, models that learn together, signed releases."""


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit status."""
    try:
        app()
    except VedetteError as error:
        typer.echo(f"vedette: {error}", err=True)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.FAILURE)


if __name__ == "__main__":
    main()
