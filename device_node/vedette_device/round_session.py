"""A node's session with its site for the sake of rounds: MQTT, outbox, verified messages, verified releases.

What carries a task's machine through its rounds (`RoundMember`) is handed in; the session feeds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel

from vedette_core.machine import Connected, Event, Tick
from vedette_core.runtime.identity import AGGREGATOR_ID, NodeIdentity, client_context, key_ring, learn_aggregator
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_core.runtime.sections import BrokerSection
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, Outbox, StateStore
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.attestation_session import AttestationSession
from vedette_device.credentials import Credentials
from vedette_device.intake import Intake
from vedette_device.participant_events import ReceiptReceived, RosterReceived, RoundOpened
from vedette_device.release_follower import ReleaseFollower
from vedette_device.retained import RetainedReader
from vedette_device.round_models import RoundModels
from vedette_device.settings import AttestationSection, SpoolSection
from vedette_device.trust import TrustClient
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import PeerError, VedetteError
from vedette_schemas.topics import Topics
from vedette_schemas.trust import TIMESTAMP_FILE, announced_version

log = logging.getLogger("vedette.session")

DRAIN_S: Final = 3.0
"""Seconds that whoever stops a node waits for receipts: what has none is sent at the next start."""
TICK_S: Final = 0.5
TICK_ANYWAY_S: Final = 60.0


class RoundMember(Protocol):
    """Whose rounds these are."""

    async def start(self) -> None:
        """Finish what a crash interrupted; before anything comes in."""

    async def handle(self, task: str, event: Event) -> None:
        """Take one verified event of a task."""

    async def take_release(self, release: VerifiedRelease) -> None:
        """Take the release that a task's rounds start from; may raise what a download raises."""

    async def attested(self) -> None:
        """There is an attestation result to check in with."""

    def next_deadline(self, task: str) -> float | None:
        """When a task wants a `Tick`, epoch seconds."""

    def renewed(self, node: NodeIdentity) -> None:
        """The node has newer certificates, of the same signing key."""


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a session is made of.

    Attributes:
        broker: where the broker is.
        spool: how much waits for receipts.
        trust_root: the releases' ``root.json``.
        database: the node's SQLite file.
        trust_dir: where the newest release metadata are kept.
        tasks: whose rounds are followed.
        attestation: how it shows what runs here.
        settings: what is measured as its configuration.
    """

    broker: BrokerSection
    spool: SpoolSection
    trust_root: Path
    database: Path
    trust_dir: Path
    tasks: Sequence[str]
    attestation: AttestationSection | None = None
    settings: BaseModel | None = None


class RoundSession:
    """One node's session.

    Args:
        node: who it is.
        parts: see `SessionParts`.

    Attributes:
        topics: the site's topics.
        metrics: the node's metrics.
        store: where its machines persist.
        peers: knows the site's authorities, and the aggregator's key.
        shell: carries effects out.
        jobs: what runs beside it.
        credentials: the node's own certificates, and the newest revocation list.
        trust: finds and downloads releases; there once it runs.
        attestation: gets this node's attestation results; None where it is not enabled.

    Raises:
        ConfigError: a bundle, root of trust or state directory that cannot be used.
    """

    def __init__(self, node: NodeIdentity, parts: SessionParts) -> None:
        self._node, self._parts = node, parts
        self.topics = Topics(node.site)
        self.metrics = Metrics(DEVICE_METRICS)
        self._database = Database(parts.database)
        self.store = StateStore(self._database)
        spool = parts.spool
        outbox = Outbox(self._database, messages_max=spool.messages_max, bytes_max=spool.bytes_max)
        self.peers = key_ring(node.bundle, node.site)
        learn_aggregator(self.peers, node.bundle, time.time())
        self._intake = Intake(self.topics, node.id, AGGREGATOR_ID, parts.tasks, self.peers)
        broker = parts.broker
        context = client_context(node.bundle)
        self._link = MqttLink(
            LinkConfig(broker.host, broker.port, node.id, context, keepalive_s=broker.keepalive_s),
            self._take,
            on_connect=self._connected,
        )
        self.shell = Shell(self._link, self.store, self.metrics, outbox, spool.resend_s)
        self.jobs = Jobs()
        self.credentials = Credentials(
            node, self.peers, self.topics, self._link, self.shell, self.store, self.metrics, self._renewed
        )
        self._follower = ReleaseFollower(
            self._refresh, lambda: self._link.connected, lambda: self.trust.timestamp_version
        )
        self._round_models = RoundModels()
        self._reader: RetainedReader | None = None
        self._member: RoundMember | None = None
        self.attestation = self._attest()

    async def run(self, member: RoundMember, stop: asyncio.Event, *, drain_s: float = DRAIN_S) -> None:
        """Feed a member until `stop` is set.

        Args:
            member: whose rounds these are.
            stop: ends the session.
            drain_s: seconds to wait for receipts at the end.
        """
        self._member = member
        timestamp = self.topics.trust(TIMESTAMP_FILE)
        self._reader = RetainedReader(self._link, asyncio.get_running_loop(), kept=(timestamp,))
        self.trust = TrustClient(
            self._parts.trust_dir, self._parts.trust_root, self.topics, self._parts.tasks, self._reader, time.time
        )
        await member.start()
        for topic in (self.topics.receipt(self._node.id), self.topics.committee(self._node.id), timestamp):
            await self._link.subscribe(topic)
        if self.attestation is not None:
            await self._link.subscribe(self.attestation.topic)
        await self.credentials.subscribe()
        await self._link.start()
        background = [
            asyncio.create_task(self.shell.run(), name="publisher"),
            asyncio.create_task(self._follower.run(), name="releases"),
            asyncio.create_task(self.credentials.run(), name="credentials"),
            asyncio.create_task(self._tick(), name="ticker"),
        ]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([stopping, *background], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopping}:
                job.result()
        finally:
            await self.shell.drained(drain_s)
            for job in (*background, stopping):
                job.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.jobs.cancel()
            if self.attestation is not None:
                await self.attestation.stop()
            await self._link.stop()
            self._database.close()

    async def _take(self, message: MqttMessage) -> None:
        kind = "unknown"
        try:
            kind = self.topics.parse(message.topic).kind
            assert self._reader is not None, "there before anything is subscribed to"
            if not self._reader.take(message.topic, message.payload) and message.payload:
                await self._sort(kind, message)
        except PeerError as error:
            self.metrics.inc("messages", kind, error.reason)
            log.info("%s: %s", message.topic, error)
        else:
            self.metrics.inc("messages", kind, "accepted")

    async def _sort(self, kind: str, message: MqttMessage) -> None:
        if kind in ("trust", "artifact"):
            # What a refresh reads itself does not come here: it would ask for the next refresh for ever.
            if message.topic == self.topics.trust(TIMESTAMP_FILE):
                self._follower.announced(announced_version(message.payload))
            return
        if self.attestation is not None and message.topic == self.attestation.topic:
            await self.attestation.take(message.topic, message.payload)
            return
        if await self.credentials.take(message):
            return
        event = self._intake.take(message.topic, message.payload)
        member = self._follow()
        if isinstance(event, RoundOpened) and self._round_models.opened(event.body):
            self._follower.want()
        match event:
            case RoundOpened(body) | RosterReceived(body) | CloseReceived(body) | OpeningReceived(body):
                await member.handle(body.task, event)
            case ReceiptReceived(receipt):
                for item in receipt.items:
                    if item.outcome == "rejected":
                        log.warning("%s: the aggregator rejected %s: %s", self._node.id, item.id, item.reason)
                    self.shell.receipt(item.id)
                for task in self._parts.tasks:
                    await member.handle(task, event)
                if self.attestation is not None:
                    await self.attestation.heard(receipt)

    def _renewed(self, node: NodeIdentity) -> None:
        self._node = node
        if self.attestation is not None:
            self.attestation.renewed(node)
        self._follow().renewed(node)

    def _connected(self, session_present: bool) -> None:
        self.metrics.inc("broker_connects")
        self.jobs.start(self._after_connect(), "after-connect")

    async def _after_connect(self) -> None:
        self.shell.flush()
        self._follower.want()
        if self.attestation is not None:
            await self.attestation.connected()
        for task in self._parts.tasks:
            await self._follow().handle(task, Connected())

    def _attest(self) -> AttestationSession | None:
        parts = self._parts
        if parts.attestation is None or not parts.attestation.enabled:
            return None
        return AttestationSession(
            self._node,
            parts.attestation,
            parts.settings,
            self.topics,
            self.shell,
            self.store,
            self.peers,
            self._attested,
        )

    async def _attested(self) -> None:
        await self._follow().attested()

    def _follow(self) -> RoundMember:
        assert self._member is not None, "there before anything comes in"
        return self._member

    async def _refresh(self) -> bool:
        try:
            for active in await asyncio.to_thread(self.trust.refresh):
                chosen = self._round_models.choose(active, self.trust.listed(active.task))
                await self._follow().take_release(chosen)
        except VedetteError as error:
            log.warning("%s: %s", self._node.id, error)
            return False
        for task, fault in self.trust.faults.items():
            log.warning("%s: %s", task, fault)
        return True

    async def _tick(self) -> None:
        anyway = time.monotonic() + TICK_ANYWAY_S
        while True:
            await asyncio.sleep(TICK_S)
            overdue = time.monotonic() >= anyway
            if overdue:
                anyway = time.monotonic() + TICK_ANYWAY_S
            if self.attestation is not None:
                await self.attestation.tick(overdue)
            for task in self._parts.tasks:
                deadline = self._follow().next_deadline(task)
                if deadline is not None and deadline <= time.time():
                    await self._follow().handle(task, Tick())
