"""What happens beside the aggregator: commands change its repository, and devices may run what it never signed.

Whoever has the release keys and a way to the broker can make devices run a release of his. They say so in their state,
and the repository does not list it: that is how the theft is seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.countersigning import AwaitsValidatorError
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry import Registry
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.errors import VedetteError
from vedette_schemas.telemetry import ActiveModel, DeviceState
from vedette_schemas.trust import TIMESTAMP_FILE

log = logging.getLogger("vedette.aggregator")

LOOK_S: Final = 2.0
"""How soon a release that a person revoked, or a root that people signed, goes out."""
REVOKED: Final = "revoked"
REPORTED_MAX: Final = 10_000
"""Findings that are logged, each once: a device that lies must not fill the log. The metric counts all of them."""


def once_signed(make: Callable[[], GlobalModel]) -> GlobalModel:
    """A task's first model; where a validator signs, too, wait for it: nothing can begin before."""
    while True:
        try:
            return make()
        except AwaitsValidatorError as fault:
            log.warning("%s", fault)
            time.sleep(LOOK_S)


def note_revocations(registry: Registry, lineage: Lineage, task: str, now: float) -> None:
    """Write into the record of each revoked release that it is, once, whoever revoked it and by which way.

    Args:
        registry: the repository.
        lineage: the record.
        task: the task.
        now: epoch seconds.
    """
    try:
        for revoked in registry.revoked(task):
            if all(event.what != REVOKED for event in lineage.events(task, revoked.version)):
                lineage.record(task, revoked.version, REVOKED, now, revoked.reason)
    except VedetteError as fault:
        log.error("record of %s: %s", task, fault)  # it is revoked all the same


class RegistryFollower:
    """Publishes what an operator's command changed in the repository.

    Args:
        registry: the repository.
        put_out: publishes.
        follow: makes a task's rounds go on from the release that is active now; called again if it raised.
    """

    def __init__(
        self, registry: Registry, put_out: Callable[[Publication], None], follow: Callable[[str], Awaitable[None]]
    ) -> None:
        self._registry, self._put_out, self._follow = registry, put_out, follow
        self._mark = registry.mark()
        self._behind: set[str] = set()
        self._look_at = 0.0

    def note(self, publication: Publication) -> None:
        """Remember what this process changed and published itself: that is no news.

        Unless somebody else's change lies in between, which that publication does not hold in full.
        """
        if publication.follows == self._mark:
            self._mark = _mark_of(publication)

    async def look(self) -> None:
        """Look whether something changed, every `LOOK_S` seconds at most."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        try:
            await asyncio.to_thread(self._registry.complete, time.time())
            if await asyncio.to_thread(self._registry.mark) != self._mark:
                publication = await asyncio.to_thread(self._registry.retained)
                log.info("the release repository was changed beside this process; publishing it")
                self._put_out(publication)
                self._mark, self._behind = _mark_of(publication), set(self._registry.tasks)
        except VedetteError as error:
            log.error("release repository: %s", error)
        for task in sorted(self._behind):
            try:
                await self._follow(task)
                self._behind.discard(task)
            except VedetteError as error:
                log.error("release repository: %s is to be followed again: %s", task, error)


def _mark_of(publication: Publication) -> str:
    return hashlib.sha256(publication.metadata[TIMESTAMP_FILE]).hexdigest()


class ForeignReleases:
    """Compares what devices say that they run with what the repository lists.

    Args:
        registry: the repository.
        metrics: gets the number of devices.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry, self._metrics = registry, metrics
        self._mark, self._known = "", dict[str, dict[int, frozenset[str]]]()
        self._revoked: Mapping[str, frozenset[str]] = {}
        self._devices: dict[str, set[str]] = {task: set() for task in registry.tasks}
        self._reported: set[tuple[str, str]] = set()
        for task in registry.tasks:
            metrics.set("foreign_release_devices", task, value=0)

    def take(self, state: DeviceState) -> None:
        """Look at a device's state."""
        try:
            self._take(state)
        except VedetteError as error:
            log.error("release repository: %s", error)

    def _take(self, state: DeviceState) -> None:
        running = {model.task: model for model in state.models}
        for task, devices in self._devices.items():
            model = running.get(task)
            if model is not None and self._is_foreign(task, model):
                devices.add(state.device)
                self._report(state.device, model)
            else:
                devices.discard(state.device)
            self._metrics.set("foreign_release_devices", task, value=len(devices))

    def _is_foreign(self, task: str, model: ActiveModel) -> bool:
        """Not listed; a release from before those that are kept is none of them, and cannot be told."""
        for fresh in (False, True):
            if fresh:
                self._read()
            listed = self._known.get(task, {})
            if model.digest in listed.get(model.version, ()) or model.digest in self._revoked.get(task, ()):
                return False
        return not listed or model.version >= min(listed)

    def _read(self) -> None:
        mark = self._registry.mark()
        if mark == self._mark:
            return
        for task in self._registry.tasks:
            versions = self._registry.versions(task)
            listed = {v: self._registry.listed(task, v).values() for v in versions}
            self._known[task] = {v: frozenset(t.sha256 for t in targets) for v, targets in listed.items()}
        self._revoked = {
            task: frozenset(d for r in self._registry.revoked(task) for d in r.sha256) for task in self._registry.tasks
        }
        self._mark = mark

    def _report(self, device: str, model: ActiveModel) -> None:
        finding = (device, model.digest)
        if finding in self._reported or len(self._reported) >= REPORTED_MAX:
            return
        self._reported.add(finding)
        log.error(
            "%s runs release %d of %s (sha256 %s) that this repository never signed: the release keys may be stolen. "
            "Replace them (`vedette trust root rotate`, or `vedette trust renew`, with --rotate), then revoke it: "
            "vedette model revoke %s %d --sha256 %s --reason …",
            device,
            model.version,
            model.task,
            model.digest,
            model.task,
            model.version,
            model.digest,
        )
