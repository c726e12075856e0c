"""What ends by itself in the release repository, said while there is time: its metadata, and the beacon's chain.

The chain has an end (`vedette_core.crypto.beacon`): once its epochs are used up, every round of the task fails until
people have signed the anchor of a longer one. Epochs follow from the number of the round, so that they count on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.registry import Registry
from vedette_aggregator.round_state import RoundKeys, RoundRecord
from vedette_aggregator.settings import AggregatorSettings, TaskSection
from vedette_aggregator.state_file import open_state
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import StateStore
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import epoch_of
from vedette_schemas.trust import BEACON_EPOCHS_MAX

log = logging.getLogger("vedette.aggregator")

SHORT_PART: Final = 8
"""The log begins to warn when this part of the chain is left. At ten rounds an epoch that is days before the end if a
round takes a minute, and years if there are four a day; the alert rule looks at the pace."""


@dataclass(frozen=True, slots=True)
class BeaconUse:
    """How far a task has used the beacon's chain.

    Attributes:
        task: the task.
        epoch: that of its newest round, 0 before the first.
        length: epochs of the chain.
    """

    task: str
    epoch: int
    length: int

    @property
    def left(self) -> int:
        """Epochs after this one."""
        return max(0, self.length - self.epoch)

    @property
    def advice(self) -> str:
        """What people have to do."""
        if self.length >= BEACON_EPOCHS_MAX:
            return (
                f"raise epoch_rounds of {self.task}, and replace the chain at the same time (`vedette trust renew`, or "
                "`vedette trust root rotate`, with --rotate beacon)"
            )
        longer = min(2 * self.length, BEACON_EPOCHS_MAX)
        return (
            "give the site a longer one (`vedette trust renew`, or `vedette trust root rotate`, with --rotate beacon "
            f"--beacon-epochs {longer})"
        )


def beacon_uses(length: int, tasks: Iterable[TaskSection], rounds: Mapping[str, int]) -> tuple[BeaconUse, ...]:
    """One for each task.

    Args:
        length: epochs of the chain.
        tasks: their settings.
        rounds: number of each task's newest round.
    """
    return tuple(
        BeaconUse(t.task, epoch_of(rounds[t.task], t.round.epoch_rounds) if rounds[t.task] else 0, length)
        for t in tasks
    )


def beacon_uses_of(settings: AggregatorSettings, length: int) -> tuple[BeaconUse, ...]:
    """The same, read beside an aggregator that may be running.

    Raises:
        ConfigError: there is no state, or it cannot be read.
    """
    rounds = {}
    with open_state(settings) as database:
        store = StateStore(database)
        for task in settings.tasks:
            key = RoundKeys(task.task).state
            stored = store.get(key)
            rounds[task.task] = RoundRecord.from_bytes(stored, key).round if stored is not None else 0
    return beacon_uses(length, settings.tasks, rounds)


class TrustWatch:
    """Shows what is left, and says so in the log when it is little.

    Args:
        registry: the release repository.
        tasks: settings of the tasks.
        metrics: the aggregator's.
    """

    def __init__(self, registry: Registry, tasks: Iterable[TaskSection], metrics: Metrics) -> None:
        self._registry, self._tasks, self._metrics = registry, tuple(tasks), metrics
        self._said: dict[str, int] = {}

    def look(self, rounds: Mapping[str, int]) -> None:
        """Look at the repository.

        Args:
            rounds: number of each task's newest round.

        Raises:
            ConfigError: it cannot be read.
        """
        self._metrics.set("trust_expiry_timestamp_seconds", value=self._registry.expires()["timestamp"])
        try:
            length = self._registry.beacon_anchor.length
        except ConfigError:
            return  # said where rounds ask for it
        for use in beacon_uses(length, self._tasks, rounds):
            self._metrics.set("beacon_epochs_left", use.task, value=use.left)
            self._say(use)

    def _say(self, use: BeaconUse) -> None:
        """Each time that the half of what was left is gone, and not every minute."""
        limit = use.length // SHORT_PART
        if use.left > limit:
            self._said.pop(use.task, None)
        elif use.task not in self._said or use.left <= self._said[use.task]:
            self._said[use.task] = use.left // 2 if use.left else -1
            log.warning(
                "%s: %d of the beacon's %d epochs are left; without one no round can be had: %s",
                use.task,
                use.left,
                use.length,
                use.advice,
            )
