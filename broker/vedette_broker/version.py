"""The one release of amqtt whose internals the embedded broker was written against."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from vedette_schemas.errors import ConfigError

AMQTT_VERSION: Final = "0.12.1"
"""As in pyproject.toml; another one is taken up by going through docs/adr/0017 and the attacks in tests/contracts."""


def check_amqtt() -> None:
    """Check which amqtt is installed, before any of it is imported.

    Raises:
        ConfigError: none, or another release than the pinned one.
    """
    try:
        found = version("amqtt")
    except PackageNotFoundError:
        raise ConfigError(
            f"amqtt: not installed, expected release {AMQTT_VERSION}: install `vedette[broker]`, or run Mosquitto or "
            f"NATS "
            "(`vedette broker render`)"
        ) from None
    if found != AMQTT_VERSION:
        raise ConfigError(
            f"amqtt: found release {found}, expected exactly {AMQTT_VERSION}: the embedded broker replaces parts of "
            f"it that "
            f"another release may have changed; install amqtt=={AMQTT_VERSION}"
        )
