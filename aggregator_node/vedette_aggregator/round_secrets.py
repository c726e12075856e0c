"""What rounds draw upon and nobody else may see beforehand: the seed of the selection, and the values of the beacon."""

from __future__ import annotations

import os
from typing import Final

from vedette_aggregator.registry import Registry
from vedette_core.runtime.storage import StateStore

SEED_KEY: Final = "aggregator/seed"
BEACONS_KEPT: Final = 9


class RoundSecrets:
    """The secrets of one aggregator.

    Args:
        store: where the seed lies.
        registry: holds the beacon's chain.
    """

    def __init__(self, store: StateStore, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._beacons: dict[int, bytes] = {}

    def seed(self) -> bytes:
        """32 bytes for the random selection, made once."""
        seed = self._store.get(SEED_KEY)
        if seed is None:
            seed = os.urandom(32)
            self._store.put(SEED_KEY, seed)
        return seed

    def beacon(self, epoch: int) -> bytes:
        """The value of an epoch; read once, because the registry verifies itself for it.

        Raises:
            ConfigError: the chain is used up, or its seed is missing.
        """
        if epoch not in self._beacons:
            kept = list(self._beacons.items())[-(BEACONS_KEPT - 1) :]
            self._beacons = {epoch: self._registry.beacon(epoch)} | dict(kept)
        return self._beacons[epoch]

    def forget_beacons(self) -> None:
        """People may have replaced the chain."""
        self._beacons.clear()
