"""Settings of a committee helper; every key is in ``device_node/committee.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vedette_core.runtime.config import Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection
from vedette_device.settings import AttestationSection, IdentitySection, SpoolSection, Task
from vedette_schemas.topics import ID_PATTERN


class CommitteeSettings(Settings):
    """A helper that opens sums of groups, and sees no update.

    Attributes:
        site: the site's id.
        member: own id, as in the certificate of role ``committee``.
        state_dir: where keys of running rounds live until their shares are released.
        tasks: tasks whose sums it helps to open.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    member: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    state_dir: Path
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, max_length=8)]
    identity: IdentitySection
    broker: BrokerSection = BrokerSection()
    spool: SpoolSection = SpoolSection()
    attestation: AttestationSection = AttestationSection()
    metrics: MetricsSection = MetricsSection(port=9472)
    log: LogSection = LogSection()
