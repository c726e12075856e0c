"""Tables that several components' settings share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vedette_core.runtime.config import Section


class BrokerSection(Section):
    """Where the broker is.

    Attributes:
        host: name or address, as in the broker's certificate.
        port: TCP port.
        keepalive_s: seconds of silence after which either side takes the other for lost.
    """

    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8883
    keepalive_s: Annotated[int, Field(ge=5, le=600)] = 30


class MetricsSection(Section):
    """Prometheus endpoint of a process.

    Attributes:
        enabled: whether it is served.
        host: loopback only: scrape through an agent on the same machine.
        port: TCP port; 0 takes a free one and logs it.
    """

    enabled: bool = False
    host: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9471


class LogSection(Section):
    """What is logged, and how.

    Attributes:
        level: least severe level that is written.
        format: ``plain`` for people, ``json`` for a journal.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["plain", "json"] = "plain"
