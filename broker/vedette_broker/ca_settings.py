"""Settings of the authority's process; every key is in ``broker/ca.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection


class AllowSection(Section):
    """Who may enrol; with neither, every token that is in force.

    Attributes:
        file: ids and hardware serial numbers, one a line.
        program: asked for each new node; exit status 0 allows.
    """

    file: Path | None = None
    program: Path | None = None


class AuthoritySettings(Settings):
    """The process that answers requests for certificates.

    Attributes:
        authority: folder of the certificate authority.
        broker: the site's broker.
        allow: who may enrol.
    """

    authority: Path
    broker: BrokerSection = BrokerSection()
    allow: AllowSection = AllowSection()
    metrics: MetricsSection = MetricsSection(port=9473)
    log: LogSection = LogSection()
