"""`vedette config`: check and show settings without starting anything."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vedette_core.runtime.config import Settings

app = typer.Typer(help="Check and show settings.", no_args_is_help=True)


class Component(StrEnum):
    """Whose settings a file holds."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    BROKER = "broker"
    COMMITTEE = "committee"
    AUTHORITY = "authority"
    VALIDATOR = "validator"


@app.command()
def check(
    component: Annotated[Component, typer.Argument(help="Whose settings these are.")],
    file: Annotated[Path, typer.Argument(help="TOML file.")],
) -> None:
    """Read a file as its component would; say what is wrong with it."""
    _load(component, file)
    typer.echo(f"{file}: ok")


@app.command()
def show(
    component: Annotated[Component, typer.Argument(help="Whose settings these are.")],
    file: Annotated[Path, typer.Argument(help="TOML file.")],
) -> None:
    """Print every setting as it is in force (file, environment and defaults), as JSON."""
    typer.echo(_load(component, file).model_dump_json(indent=2))


def _load(component: Component, file: Path) -> Settings:
    from vedette_core.runtime.config import load

    match component:
        case Component.DEVICE:
            from vedette_device.settings import DeviceSettings

            return load(DeviceSettings, file)
        case Component.AGGREGATOR:
            from vedette_aggregator.settings import AggregatorSettings

            return load(AggregatorSettings, file)
        case Component.COMMITTEE:
            from vedette_device.helper_settings import CommitteeSettings

            return load(CommitteeSettings, file)
        case Component.AUTHORITY:
            from vedette_broker.ca_settings import AuthoritySettings

            return load(AuthoritySettings, file)
        case Component.VALIDATOR:
            from vedette_aggregator.validator_settings import ValidatorSettings

            return load(ValidatorSettings, file)
        case Component.BROKER:
            from vedette_broker.settings import BrokerSettings

            return load(BrokerSettings, file)
