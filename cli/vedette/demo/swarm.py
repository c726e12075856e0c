"""Many light nodes in one process: ``python -m vedette.demo.swarm FILE.toml``, with a line of JSON for what happens.

====================  =================================================================================
``what``              fields
====================  =================================================================================
``joined``            device, round, attempt, gid, members, committee: it is in a roster that it believes
``uploaded``          device, round, attempt, gid: its masked update is written down, and on its way
``vanished, back``    device (round, attempt, gid): it left without a word, and came back from its disk
``close``             device, round, attempt, gid, survivors: it is asked to vote for a survivor set
``attested``          device: the verifier gave it an attestation result
``release``           device, version, sha256: it verified a release and has its weights
``revocations``       device, number: it believes a newer revocation list
====================  =================================================================================
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vedette.demo.light_node import LightNode, RoundWatch, Vanishes
from vedette.demo.light_rows import LightRows, cut, recorded, synthetic
from vedette.demo.recordings import SHIPPED
from vedette.demo.swarm_settings import SwarmSettings
from vedette_core.runtime import logs
from vedette_core.runtime.config import load
from vedette_core.runtime.jobs import run_until_signal
from vedette_schemas.errors import VedetteError

log = logging.getLogger("vedette.swarm")


def rows_of(settings: SwarmSettings) -> list[LightRows]:
    """Rows for each node, in the nodes' order.

    Raises:
        ConfigError: recordings that cannot be used.
    """
    wanted, nodes = settings.rows, len(settings.nodes)
    if wanted.source == "synthetic":
        found = synthetic(nodes, wanted.count)
    else:
        found = cut(recorded(wanted.data or SHIPPED), nodes)[0]
    return [LightRows(settings.task, x) for x in found]


def vanishing(devices: tuple[str, ...], share: float, seed: int) -> Vanishes:
    """Who vanishes in which round: a fresh draw a round, of ``round(share · devices)``."""

    @cache
    def drawn(number: int) -> frozenset[str]:
        order = np.random.default_rng([seed, number]).permutation(len(devices))
        return frozenset(devices[int(i)] for i in order[: round(share * len(devices))])

    return lambda device, number: device in drawn(number)


def line_writer(out: TextIO) -> Callable[..., None]:
    """Writes a line of JSON a call."""

    def say(what: str, **fields: Any) -> None:
        out.write(json.dumps({"what": what, **fields}) + "\n")
        out.flush()

    return say


async def run(settings: SwarmSettings, stop: asyncio.Event, say: Callable[..., None]) -> None:
    """Run every node until `stop` is set.

    Raises:
        VedetteError: a node cannot start.
    """
    rows = await asyncio.to_thread(rows_of, settings)
    devices = tuple(node.device for node in settings.nodes)
    vanishes = vanishing(devices, settings.vanish.share, settings.vanish.seed)
    training, watch = asyncio.Lock(), RoundWatch()
    nodes = [
        LightNode(section, settings, own, training=training, watch=watch, vanishes=vanishes, say=say)
        for section, own in zip(settings.nodes, rows, strict=True)
    ]
    if settings.insecure_plain_updates:
        log.warning("INSECURE: updates may leave these nodes unmasked; the aggregator can read each of them")
    await asyncio.gather(*(node.run(stop) for node in nodes))


def main(arguments: list[str]) -> int:
    """Run a swarm until SIGTERM or SIGINT; returns the exit status."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m vedette.demo.swarm FILE.toml\n")
        return 2
    try:
        settings = load(SwarmSettings, Path(arguments[0]))
        logs.configure(settings.log.level, settings.log.format)
        run_until_signal(lambda stop: run(settings, stop, line_writer(sys.stdout)))
    except VedetteError as error:
        sys.stderr.write(f"vedette swarm: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
