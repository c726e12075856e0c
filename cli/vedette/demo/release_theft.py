"""A thief of release keys, as the scenario ``stolen-release-key`` plays him: the aggregator's keys, and its bundle.

He has what lies on the aggregator's disk and nothing of what people keep: no root key, no targets key.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vedette_aggregator.artifacts import assumed_ranges, build_artifacts
from vedette_aggregator.publication import Publication, retained_messages
from vedette_aggregator.registry import Registry
from vedette_core.learning.weights_file import WeightsFile, read_weights
from vedette_core.runtime.identity import client_context, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas.model import Variant
from vedette_schemas.topics import Topics

BLUNT: Final = np.float32(0.05)
"""What every weight of the thief's model is multiplied by: it answers nearly nothing to whatever it is shown, passes
a device's self-test, which refuses models that are worse than none, and finds hardly anything."""
CONNECT_S: Final = 20.0


class ReleaseThief:
    """Signs releases with stolen keys, and publishes them under the aggregator's name.

    Args:
        trust: the site's release repository, copied without what is not on the aggregator.
        loot: where the copy goes.
        bundle: the aggregator's certificates and keys.
        port: the broker's, on loopback.
    """

    def __init__(self, trust: Path, loot: Path, bundle: Path, port: int) -> None:
        shutil.copytree(trust, loot / "trust")
        shutil.copytree(bundle, loot / "bundle")
        self._registry, self._bundle, self._port = Registry(loot / "trust"), loot / "bundle", port
        self._topics = Topics(self._registry.site)
        self._good: WeightsFile | None = None
        self._made = 0

    def forge(self, task: str) -> tuple[int, frozenset[str], Publication]:
        """A blunt model as the task's next release, properly signed with what he has.

        Returns:
            Its version, the digests of its files but the plan, and what belongs on retained topics.
        """
        active = self._registry.active(task)
        assert active is not None, "the scenario waits for a release first"
        said, data = self._registry.target(task, active, Variant.WEIGHTS)
        good = self._good = self._good or read_weights(data)
        self._made += 1
        weights = (good.weights * (BLUNT / np.float32(self._made))).astype(np.float32)
        made = build_artifacts(
            good.network, weights, task=task, schema=good.schema, ranges=assumed_ranges(good.network, weights)
        )
        version = self._registry.next_version(task)
        plan = self._registry.target(task, active, Variant.PLAN)
        files = {variant: artifact.data for variant, artifact in made.items()} | {Variant.PLAN: plan[1]}
        custom = {
            variant: said.model_copy(
                update={
                    "version": version,
                    "variant": variant,
                    "format": {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}.get(variant, "tflite"),
                    "diff": None,
                }
            )
            for variant in files
        }
        publication = self._registry.publish(task, version, files, custom, time.time())
        return version, frozenset(artifact.sha256 for artifact in made.values()), publication

    async def publish(self, publication: Publication) -> None:
        """Put it onto the site's retained topics, in the aggregator's place."""
        node = load_node(self._bundle, time.time())
        link = MqttLink(LinkConfig("127.0.0.1", self._port, node.id, client_context(node.bundle)), _ignore)
        await link.start()
        try:
            await link.wait_connected(CONNECT_S)
            messages: Sequence[tuple[str, bytes]] = retained_messages(self._topics, publication)
            await asyncio.gather(*(link.publish(topic, payload, retain=True) for topic, payload in messages))
        finally:
            await link.stop()


async def _ignore(message: MqttMessage) -> None:
    """He only speaks."""
