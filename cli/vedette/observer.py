"""What a subscriber sees of a site: alerts, device states, node reports, rounds. Reads only what its role may read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vedette.demo.judge import Sighting
from vedette_core.runtime.identity import client_context, key_ring, learn_aggregator, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas import alert as alerts
from vedette_schemas import codec, envelope
from vedette_schemas.alert import Alert, AlertState
from vedette_schemas.errors import PeerError
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.round import Phase, RoundOpen
from vedette_schemas.telemetry import DeviceState, Telemetry
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.observer")
CONNECT_TIMEOUT_S: Final = 30.0
"""As the aggregator's: a broker that has just begun, or a cluster that has yet to agree on a leader, takes its time."""
WATCHED: Final = (
    "device/+/up/alert",
    "device/+/up/state",
    "device/+/up/telemetry",
    "public/round/+",
    "public/rollout/+",
)
"""What is subscribed to, below the site's root."""


class Observer:
    """A read-only subscriber with the ``analytics`` role.

    Args:
        bundle: folder of the analytics bundle.
        host: the broker's host.
        port: the broker's port.
        on_alert: called for every alert that comes in.

    Attributes:
        alerts: every alert message, in order of arrival.
        states: newest state a device.
        reports: newest node report a device.
        rounds: newest announcement a task.
        completed: (task, round) of the rounds that were released.
        failed: (task, round) of the rounds that were given up.
        attempts: highest attempt of each (task, round).
        activated: (device, task, version) → sha256 of every release that a device reported active.
        rejected: messages that were not what their topic says.
        rollouts: states of a task's rollouts, as they came.
        seen_at: (epoch seconds, alert) of every alert, as they came.
    """

    def __init__(self, bundle: Path, host: str, port: int, on_alert: Callable[[Alert], None] | None = None) -> None:
        now = time.time()
        node = load_node(bundle, now)
        self._ring = key_ring(node.bundle, node.site)
        self._aggregator = learn_aggregator(self._ring, node.bundle, now).id
        self._topics = Topics(node.site)
        self._on_alert = on_alert
        self._link = MqttLink(LinkConfig(host, port, node.id, client_context(node.bundle)), self._take)
        self.alerts: list[Alert] = []
        self.states: dict[str, DeviceState] = {}
        self.reports: dict[str, Telemetry] = {}
        self.rounds: dict[str, RoundOpen] = {}
        self.completed: set[tuple[str, int]] = set()
        self.failed: set[tuple[str, int]] = set()
        self.attempts: dict[tuple[str, int], int] = {}
        self.activated: dict[tuple[str, str, int], str] = {}
        self.rejected = 0
        self.rollouts: dict[str, list[RolloutState]] = {}
        self.seen_at: list[tuple[float, Alert]] = []
        self._seen: set[tuple[str, str, int]] = set()

    async def __aenter__(self) -> Self:
        await self._link.start()
        root = self._topics.root
        for below in WATCHED:
            await self._link.subscribe(f"{root}/{below}", 1)
        await self._link.wait_connected(CONNECT_TIMEOUT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; harmless if it has ended."""
        await self._link.stop()

    async def closed(self) -> None:
        """Wait for ever; a reader that only prints has nothing else to do."""
        await asyncio.Event().wait()

    def phase(self, task: str) -> Phase | None:
        """Where a task's round is, as announced last."""
        return self.rounds[task].phase if task in self.rounds else None

    def sightings(self) -> list[Sighting]:
        """Alerts in the form in which they are judged; messages that only close an alert are none."""
        return [
            Sighting(
                a.device,
                "sensor" if a.detector == "sensor" else "network",
                _seconds(a.window_start),
                _seconds(a.window_end),
                a.state is AlertState.OPEN,
            )
            for a in self.alerts
            if a.state is not AlertState.CLOSED
        ]

    async def _take(self, message: MqttMessage) -> None:
        try:
            self._sort(message)
        except PeerError as error:
            self.rejected += 1
            log.warning("%s: %s", message.topic, error)

    def _sort(self, message: MqttMessage) -> None:
        parsed = self._topics.parse(message.topic)
        match parsed.kind:
            case "alert":
                alert = alerts.decode(message.payload)
                key = (alert.device, alert.id, alert.seq)
                if alert.device != parsed.device:
                    raise PeerError(f"alert of {alert.device} on the topic of {parsed.device}", reason="sender")
                if key not in self._seen:
                    self._seen.add(key)
                    self.alerts.append(alert)
                    self.seen_at.append((time.time(), alert))
                    if self._on_alert is not None:
                        self._on_alert(alert)
            case "state":
                state = codec.unpack_json(DeviceState, message.payload)
                self.states[state.device] = state
                for model in state.models:
                    self.activated[(state.device, model.task, model.version)] = model.digest
            case "telemetry":
                report = codec.unpack(Telemetry, message.payload)
                self.reports[report.device] = report
            case "rollout":
                state_of, _ = envelope.unseal(
                    RolloutState, message.payload, ROLLOUT_TYPE, self._ring, sender=self._aggregator
                )
                self.rollouts.setdefault(state_of.task, []).append(state_of)
            case "round":
                opened, _ = envelope.unseal(
                    RoundOpen, message.payload, "round.open", self._ring, sender=self._aggregator
                )
                self.rounds[opened.task] = opened
                place = (opened.task, opened.round)
                self.attempts[place] = max(opened.attempt, self.attempts.get(place, 0))
                if opened.phase is Phase.DONE:
                    self.completed.add(place)
                elif opened.phase is Phase.FAILED:
                    self.failed.add(place)


def _seconds(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()


def alert_line(alert: Alert) -> str:
    """One line for a terminal: when, how bad, whose, what."""
    return f"{alert.time[:19]} {alert.severity.value:8} {alert.device} {alert.state.value:7} {alert.summary}"
