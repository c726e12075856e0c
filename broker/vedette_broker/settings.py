"""Settings of the embedded broker; every key is in ``broker/broker.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import LogSection
from vedette_schemas.topics import ID_PATTERN


class ListenSection(Section):
    """Where the broker listens.

    Attributes:
        host: a loopback address; any other is refused until the embedded broker is hardened.
        port: TCP port.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8883


class BrokerSettings(Settings):
    """The embedded broker.

    Attributes:
        site: the site's id.
        bundle: folder that ``vedette ca issue`` made for it (role ``broker``).
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    bundle: Path
    listen: ListenSection = ListenSection()
    log: LogSection = LogSection()
