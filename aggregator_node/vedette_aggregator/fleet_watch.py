"""Hands what devices say of themselves to everybody who needs it: metrics, the book on disk, and actions."""

from __future__ import annotations

import logging

from vedette_aggregator.actions import Actions, Hands
from vedette_aggregator.cold_starts import ColdStarts
from vedette_aggregator.command_post import CommandPost
from vedette_aggregator.device_book import DeviceBook
from vedette_aggregator.fleet import Fleet
from vedette_aggregator.fleet_drift import CohortDrift
from vedette_aggregator.registry import Registry
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.alert import Alert, AlertState
from vedette_schemas.errors import TransientError
from vedette_schemas.telemetry import DeviceState, Telemetry
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.fleet")


class FleetWatch:
    """One place where states, reports, check-ins and alerts of devices come in.

    Args:
        settings: the aggregator's.
        fleet: makes the fleet's metrics.
        database: opened with the book's tables.
        metrics: the aggregator's.
        registry: where a release is taken back.
        node: own id and signer, for commands.
        hands: what actions are done with.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        fleet: Fleet,
        database: Database,
        metrics: Metrics,
        registry: Registry,
        node: NodeIdentity,
        hands: Hands,
    ) -> None:
        self._fleet, self._book, self._cohorts = fleet, DeviceBook(database), CohortDrift(metrics)
        post = CommandPost(Topics(settings.site), node, StateStore(database), hands.publish)
        self.actions = Actions(settings, database, self._book, metrics, registry, post, hands)
        self._cold_starts = ColdStarts(fleet, post, metrics) if settings.actions.cold_start else None

    def take_cohort(self, device: str, cohort: str, now: float) -> None:
        """What kind of device one says it is."""
        self._fleet.take_cohort(device, cohort)
        self._book.take_cohort(device, cohort, now)

    async def take_state(self, state: DeviceState, now: float) -> None:
        """A device is online, stopped or lost; or runs another release."""
        if not self._fleet.take_state(state):
            return
        self._book.take_state(state, now)
        if state.status != "online":
            self._cohorts.forget(state.device)
            await self.actions.device_left(state.device, now)

    async def take_report(self, report: Telemetry, now: float) -> None:
        """A node report.

        Raises:
            PeerError: a sketch that is none.
        """
        if not self._fleet.take_report(report):
            return
        self._book.take_report(report, now)
        self._cohorts.take(report, self._fleet.cohort(report.device))
        await self.actions.took_report(report.device, report.detectors, now)
        if self._cold_starts is not None:
            self._cold_starts.take(report, now)

    async def take_alert(self, alert: Alert, now: float) -> None:
        """An alert that was not here before."""
        self._fleet.take_alert(alert, now)
        if alert.state is AlertState.OPEN:
            await self.actions.alert_opened(alert.device, alert.model.task, alert.model.version, now)

    async def active(self, task: str, version: int, now: float, *, fresh: bool, promoted: bool = False) -> None:
        """Another release is the active one: a new one, or (not fresh) one that was gone back to.

        A candidate is new twice: when its rollout begins, and when it is promoted.
        """
        await self.actions.released(task, version, now, fresh=fresh, promoted=promoted)

    def flush(self, now: float, *, at_once: bool = False) -> None:
        """Write what is new, if it is time."""
        try:
            self._book.flush(now, at_once=at_once)
        except TransientError as error:
            log.warning("%s", error)
