"""Settings of the embedded broker; every key is in ``broker/broker.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vedette_broker.store import Durability
from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import LogSection, MetricsSection
from vedette_schemas.topics import ID_PATTERN


class ListenSection(Section):
    """Where the broker listens.

    Attributes:
        host: one address of this machine; public ones and those for every interface are refused.
        port: TCP port.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8883


class BrokerSettings(Settings):
    """The embedded broker.

    Attributes:
        site: the site's id.
        bundle: folder that ``vedette ca issue`` made for it (role ``broker``).
        state_dir: folder for what survives a restart; without one everything is in RAM.
        durability: what an acknowledged message survives.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    bundle: Path
    state_dir: Path | None = None
    durability: Durability = Durability.POWER
    listen: ListenSection = ListenSection()
    metrics: MetricsSection = MetricsSection(port=9472)
    log: LogSection = LogSection()
