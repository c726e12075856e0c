"""Settings of a swarm: the demo's scenarios write them, `vedette.demo.swarm` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection
from vedette_device.settings import AttestationSection, SpoolSection, Task
from vedette_schemas.topics import ID_PATTERN

NODES_MAX = 256
"""Each has a thread of its own for its MQTT session."""


class NodeSection(Section):
    """One light node.

    Attributes:
        device: its id, as in its certificate.
        bundle: folder of its certificates and keys.
        attack: an attack of `vedette_core.learning.poisoning` by name; ``none`` for an honest node.
    """

    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    bundle: Path
    attack: str = "none"


class RowsSection(Section):
    """What the nodes train on.

    Attributes:
        source: ``recordings`` cuts the benign training windows of recorded gateways, ``synthetic`` makes rows up.
        data: folder of the recordings.
        count: rows a node, of synthetic ones.
    """

    source: Literal["recordings", "synthetic"] = "recordings"
    data: Path | None = None
    count: Annotated[int, Field(ge=1, le=10_000)] = 64


class VanishSection(Section):
    """Who vanishes: in every round anew, after its check-in, until the round is over.

    Attributes:
        share: part of all nodes.
        seed: of the draw.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0


class SwarmSettings(Settings):
    """Many participants in one process.

    Attributes:
        site: the site's id.
        state_dir: folder with a folder a node: its outbox, its machine's state, its release metadata.
        trust_root: the releases' ``root.json``.
        task: the task that they take part in.
        insecure_plain_updates: whether updates may leave that the aggregator can read.
        nodes: the nodes.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    state_dir: Path
    trust_root: Path
    task: Task = "network"
    insecure_plain_updates: bool = False
    broker: BrokerSection = BrokerSection()
    spool: SpoolSection = SpoolSection(resend_s=5.0)
    attestation: AttestationSection = AttestationSection()
    log: LogSection = LogSection(level="warning")
    rows: RowsSection = RowsSection()
    vanish: VanishSection = VanishSection()
    nodes: Annotated[tuple[NodeSection, ...], Field(min_length=1, max_length=NODES_MAX)]
