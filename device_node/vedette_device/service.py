"""The device node's shell: owns the MQTT session, the clock and the store; feeds events in, carries effects out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Final, Literal

from vedette_core.machine import Connected, Effect, Publish, Tick
from vedette_core.runtime.identity import (
    AGGREGATOR_ID,
    NodeIdentity,
    client_context,
    key_ring,
    learn_aggregator,
    load_node,
)
from vedette_core.runtime.jobs import Jobs, run_until_signal
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics, resident_bytes, serve_configured
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage, Will
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, Outbox, OutboxMessage, StateStore
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device import evidence_store
from vedette_device.artifact_download import How
from vedette_device.attestation_session import AttestationSession
from vedette_device.budget_book import BudgetBook
from vedette_device.cohort_machine import Announce, LookAgain, ReleasesListed, RolloutReceived
from vedette_device.cohorts import Cohorts
from vedette_device.command_machine import KEY as COMMAND_KEY
from vedette_device.command_machine import CommandReceived
from vedette_device.commands import Commands
from vedette_device.credentials import Credentials
from vedette_device.enforcement import Enforcement
from vedette_device.intake import Intake
from vedette_device.participant_events import ReceiptReceived, RosterReceived, RoundOpened, Train
from vedette_device.participation import Participation
from vedette_device.pipeline import Pipeline
from vedette_device.release_follower import ReleaseFollower
from vedette_device.retained import RetainedReader
from vedette_device.round_models import RoundModels
from vedette_device.settings import DeviceSettings
from vedette_device.trust import TrustClient
from vedette_device.update_events import (
    Activate,
    Confirm,
    DropRevoked,
    FallBack,
    ReleaseAnnounced,
    ReleasesRevoked,
    ReportState,
    SelfTest,
    Stage,
)
from vedette_device.updates import Updates
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, PeerError, VedetteError
from vedette_schemas.telemetry import DeviceState, Telemetry
from vedette_schemas.topics import Topics
from vedette_schemas.trust import TIMESTAMP_FILE, announced_version

log = logging.getLogger("vedette.device")

TICK_S: Final = 0.2
TICK_ANYWAY_S: Final = 60.0
"""Machines get a tick this often whatever their deadline says: after the clock was set back it may be far away."""
DRAIN_STOPPED_S: Final = 3.0
"""Seconds that an operator who stops a node waits for receipts: what has none is sent at the next start."""
DRAIN_ENDED_S: Final = 60.0
"""The same at the end of a recording, where nobody waits, and there may be no next start."""
_UPDATE_EFFECTS: Final = (Stage, SelfTest, Activate, Confirm, FallBack, DropRevoked, ReportState)


class DeviceService:
    """One device node.

    Args:
        settings: its settings.
        plain_allowed: whether updates may leave that the aggregator can read.

    Raises:
        ConfigError: a bundle, source, root of trust or state directory that cannot be used.
    """

    def __init__(self, settings: DeviceSettings, *, plain_allowed: bool = False) -> None:
        self._settings = settings
        self._plain_allowed = plain_allowed
        if plain_allowed:
            log.warning("INSECURE: updates may leave this device unmasked; the aggregator can read each of them")
        self._node = load_node(settings.identity.bundle, time.time())
        if (self._node.id, self._node.site) != (settings.device, settings.site):
            raise ConfigError(
                f"identity: found a bundle of {self._node.id} at {self._node.site}, expected {settings.device} at "
                f"{settings.site}; correct [identity] bundle, or site and device"
            )
        sections = settings.detectors()
        if not sections:
            raise ConfigError("settings: found no detector, expected a [network], [sensor] or [behaviour] table")
        if len({s.task for s in sections}) != len(sections):
            raise ConfigError("settings: found two detectors of one task, expected a task each")
        self._topics = Topics(settings.site)
        self._session, self._seq, self._state_seq = secrets.token_hex(8), 0, 0
        self._metrics = Metrics(DEVICE_METRICS)
        self._database = Database(settings.state_dir / "device.db", evidence_store.TABLES)
        self._store = StateStore(self._database)
        outbox = Outbox(self._database, messages_max=settings.spool.messages_max, bytes_max=settings.spool.bytes_max)
        self._outbox = outbox
        kept = evidence_store.EvidenceStore(self._database, settings.evidence)
        self._pipelines = {s.task: Pipeline(settings, s, self._store, self._metrics, kept) for s in sections}
        self._peers = ring = key_ring(self._node.bundle, settings.site)
        learn_aggregator(ring, self._node.bundle, time.time())
        self._intake = Intake(self._topics, self._node.id, AGGREGATOR_ID, self._pipelines, ring)
        self._link = MqttLink(
            LinkConfig(
                settings.broker.host,
                settings.broker.port,
                self._node.id,
                client_context(self._node.bundle),
                keepalive_s=settings.broker.keepalive_s,
                will=Will(self._topics.state(self._node.id), self._state("lost")),
            ),
            self._take,
            on_connect=self._connected,
        )
        self._shell = Shell(self._link, self._store, self._metrics, outbox, settings.spool.resend_s)
        self._shell.on_published = self._count_bytes
        self._shell.on_dropped = self._count_dropped
        self._credentials = Credentials(
            self._node, ring, self._topics, self._link, self._shell, self._store, self._metrics, self._renewed
        )
        self._bytes_up = self._dropped = 0
        self._leaving = False
        self._started = time.monotonic()
        self._jobs = Jobs()
        self._commands = Commands(self._node.id, self._pipelines, self._store.get(COMMAND_KEY), self._metrics)
        self._follower = ReleaseFollower(
            self._refresh, lambda: self._link.connected, lambda: self._trust.timestamp_version
        )
        self._updates: dict[str, Updates] = {}
        self._participations: dict[str, Participation] = {}
        self._attestation = self._attest() if settings.attestation.enabled else None
        tasks = tuple(self._pipelines)
        self._cohorts = Cohorts(self._node.id, tasks, self._store, self._carry_out, self._publish_state)
        self._round_models = RoundModels()
        self._policy = Enforcement(settings, self._store, self._metrics) if settings.policy.enabled else None

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until every recording has ended, or `stop` is set.

        Raises:
            SourceError: a source broke; what came before it was scored and sent.
        """
        stop_serving = serve_configured(self._metrics, self._settings.metrics)
        await self._assemble()
        if self._policy is not None:
            await self._policy.start()
            self._jobs.start(self._policy.run(), "policy")
        await self._link.subscribe(self._topics.receipt(self._node.id))
        await self._link.subscribe(self._topics.committee(self._node.id))
        if self._attestation is not None:
            await self._link.subscribe(self._attestation.topic)
        await self._link.subscribe(self._topics.command(self._node.id))
        await self._link.subscribe(self._topics.trust(TIMESTAMP_FILE))
        await self._credentials.subscribe()
        for task in self._pipelines:
            await self._link.subscribe(self._topics.rollout(task))
        await self._link.start()
        background = [
            asyncio.create_task(job, name=name)
            for name, job in (
                ("publisher", self._shell.run()),
                ("ticker", self._tick()),
                ("reporter", self._report()),
                ("releases", self._follower.run()),
                ("credentials", self._credentials.run()),
                *((f"updates-{task}", u.run(self._carry_out)) for task, u in self._updates.items()),
            )
        ]
        sources = asyncio.create_task(self._watch(), name="sources")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        patience_s = DRAIN_STOPPED_S
        try:
            done, _ = await asyncio.wait([sources, stopping, *background], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopping}:
                job.result()
            if sources in done:
                log.info("every recording has ended")
                patience_s = DRAIN_ENDED_S
        finally:
            sources.cancel()
            await asyncio.gather(sources, return_exceptions=True)
            await self._leave(patience_s)
            for job in (*background, stopping):
                job.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._jobs.cancel()
            if self._attestation is not None:
                await self._attestation.stop()
            if self._policy is not None:
                await self._policy.stop()
            await self._link.stop()
            stop_serving()
            self._database.close()
        for pipeline in self._pipelines.values():
            if pipeline.fault is not None:
                raise pipeline.fault

    async def _watch(self) -> None:
        await asyncio.gather(*(p.run(self._carry_out_quickly) for p in self._pipelines.values()))

    # -- putting it together ------------------------------------------------------------------------------------------

    def _attest(self) -> AttestationSession:
        return AttestationSession(
            self._node,
            self._settings.attestation,
            self._settings,
            self._topics,
            self._shell,
            self._store,
            self._peers,
            self._attested,
            lambda: [u.active.active_model() for u in self._updates.values() if u.active is not None],
        )

    async def _attested(self) -> None:
        for participation in self._participations.values():
            await participation.attested()

    async def _assemble(self) -> None:
        state_dir, training = self._settings.state_dir, asyncio.Lock()
        learning = self._settings.participation
        budget = BudgetBook(self._store, learning.limits(), learning.core_watts)
        self._reader = RetainedReader(
            self._link, asyncio.get_running_loop(), kept=(self._topics.trust(TIMESTAMP_FILE),)
        )
        self._trust = TrustClient(
            state_dir / "trust",
            self._settings.identity.trust_root,
            self._topics,
            tuple(self._pipelines),
            self._reader,
            time.time,
        )
        self._trust.downloads.on_download = self._count_download
        for task, pipeline in self._pipelines.items():
            saved = self._store.get(f"update/{task}")
            self._updates[task] = Updates(
                self._node.id,
                pipeline,
                state_dir / "models" / task,
                saved,
                self._trust,
                self._publish_state,
                self._settings.model_bytes_max,
            )
            self._participations[task] = Participation(
                pipeline,
                self._node,
                self._topics,
                self._store,
                self._trust,
                training,
                peers=self._peers,
                budget=budget,
                cohort=learning.cohort,
                passport=None if self._attestation is None else self._attestation.passport,
                plain_allowed=self._plain_allowed,
                on_weights=pipeline.keep_weights,
            )
            pipeline.on_collected = partial(self._announce_rows, task)
        for updates in self._updates.values():
            await updates.start(self._carry_out)
        for participation in self._participations.values():
            await participation.start(self._carry_out)

    def _announce_rows(self, task: str) -> None:
        # In the background: a participant may wait for room on the disk, and detection does not.
        self._jobs.start(self._participations[task].collected(), f"rows-{task}")

    # -- what comes in ------------------------------------------------------------------------------------------------

    async def _take(self, message: MqttMessage) -> None:
        kind = "unknown"
        try:
            kind = self._topics.parse(message.topic).kind
            if not self._reader.take(message.topic, message.payload) and message.payload:
                await self._sort(kind, message)
        except PeerError as error:
            self._metrics.inc("messages", kind, error.reason)
            log.info("%s: %s", message.topic, error)
        else:
            self._metrics.inc("messages", kind, "accepted")

    async def _sort(self, kind: str, message: MqttMessage) -> None:
        if kind in ("trust", "artifact"):
            # What a refresh reads itself does not come here: it would ask for the next refresh for ever.
            if message.topic == self._topics.trust(TIMESTAMP_FILE):
                self._follower.announced(announced_version(message.payload))
            return
        if self._attestation is not None and message.topic == self._attestation.topic:
            await self._attestation.take(message.topic, message.payload)
            return
        if await self._credentials.take(message):
            return
        event = self._intake.take(message.topic, message.payload)
        match event:
            case RolloutReceived(state):
                await self._cohorts.step(state.task, event)
            case RoundOpened(body):
                if self._round_models.opened(body):
                    self._follower.want()
                await self._participations[body.task].handle(event)
            case RosterReceived(roster):
                await self._participations[roster.task].handle(event)
            case CloseReceived(work) | OpeningReceived(work):
                await self._participations[work.task].handle(event)
            case CommandReceived():
                await self._commands.take(event, self._carry_out)
            case ReceiptReceived(receipt):
                for item in receipt.items:
                    if item.outcome == "rejected":
                        log.warning("the aggregator rejected %s: %s", item.id, item.reason)
                    self._shell.receipt(item.id)
                for participation in self._participations.values():
                    await participation.handle(event)
                if self._attestation is not None:
                    await self._attestation.heard(receipt)

    def _connected(self, session_present: bool) -> None:
        self._metrics.inc("broker_connects")
        self._jobs.start(self._after_connect(), "after-connect")

    async def _after_connect(self) -> None:
        self._publish_state("stopped" if self._leaving else "online")
        self._shell.flush()
        self._follower.want()
        if self._attestation is not None:
            await self._attestation.connected()
        for participation in self._participations.values():
            await participation.handle(Connected())

    def _renewed(self, node: NodeIdentity) -> None:
        if self._attestation is not None:
            self._attestation.renewed(node)
        for participation in self._participations.values():
            participation.machine.take_certificate(node.certificate, node.intermediate)

    # -- what goes out ------------------------------------------------------------------------------------------------

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        await self._shell.carry_out(effects, self._special)

    async def _carry_out_quickly(self, effects: Sequence[Effect]) -> None:
        """For detection: a full disk must not hold an alert back, it is worth more than the record of it."""
        await self._shell.carry_out(effects, must_persist=False)
        if self._policy is not None:
            for effect in effects:
                if isinstance(effect, Publish):  # an alert, and on its way: what is done about it comes second
                    self._policy.take(effect.payload)

    async def _special(self, effect: Effect) -> None:
        if isinstance(effect, Announce):
            self._updates[effect.release.task].post(ReleaseAnnounced(effect.release))
        elif isinstance(effect, LookAgain):
            self._follower.want()
        elif isinstance(effect, Train):
            self._jobs.start(self._participations[effect.task].train(effect), f"train-{effect.task}")
        elif isinstance(effect, _UPDATE_EFFECTS):
            task = effect.task if isinstance(effect, (FallBack, DropRevoked, ReportState)) else effect.model.task
            await self._updates[task].special(effect)
        else:
            raise AssertionError(f"nobody carries out {effect!r}")

    # -- releases -----------------------------------------------------------------------------------------------------

    async def _refresh(self) -> bool:
        try:
            releases = await asyncio.to_thread(self._trust.refresh)
            for task, updates in self._updates.items():
                updates.post(ReleasesRevoked(self._trust.revoked(task)))
            for active in releases:
                task, listed = active.task, self._trust.listed(active.task)
                await self._cohorts.step(task, ReleasesListed(active, listed))
                await self._participations[task].take_release(self._round_models.choose(active, listed))
        except VedetteError as error:
            self._metrics.inc("updates", "", type(error).__name__)
            log.warning("%s", error)
            return False
        for task, fault in self._trust.faults.items():
            log.warning("%s: %s", task, fault)
        return True

    # -- reports ------------------------------------------------------------------------------------------------------

    def _state(self, status: Literal["online", "stopped", "lost"]) -> bytes:
        self._state_seq += 1
        is_assembled = hasattr(self, "_round_models")  # the will is made before everything else
        actives = [u.active for u in self._updates.values()] if is_assembled else []
        return codec.pack_json(
            DeviceState(
                device=self._node.id,
                status=status,
                session=self._session,
                seq=self._state_seq,
                time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                software=version("vedette"),
                models=tuple(active.active_model() for active in actives if active is not None),
                rollouts=self._cohorts.progress(self._updates) if is_assembled else (),
            )
        )

    def _publish_state(self, status: Literal["online", "stopped"] = "online") -> None:
        self._shell.publish(Publish(self._topics.state(self._node.id), self._state(status), retain=True))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.telemetry_s)
            self._publish_telemetry()

    def _publish_telemetry(self, qos: int = 0) -> None:
        self._seq += 1
        spool_messages, spool_bytes, rss = self._outbox.messages, self._outbox.bytes, resident_bytes()
        self._metrics.set("spool_messages", value=spool_messages)
        self._metrics.set("spool_bytes", value=spool_bytes)
        self._metrics.set("resident_memory_bytes", value=rss)
        report = Telemetry(
            device=self._node.id,
            session=self._session,
            seq=self._seq,
            time_s=time.time(),
            uptime_s=time.monotonic() - self._started,
            rss_bytes=rss,
            cpu_s=time.process_time(),
            spool_messages=spool_messages,
            spool_bytes=spool_bytes,
            spool_dropped=self._dropped,
            bytes_up=self._bytes_up,
            detectors=tuple(p.report() for p in self._pipelines.values()),
        )
        self._shell.publish(Publish(self._topics.telemetry(self._node.id), codec.pack(report), qos=qos))

    async def _leave(self, patience_s: float) -> None:
        """Say goodbye: the last report, the last receipts, and that it stopped on purpose."""
        self._leaving = True
        if self._link.connected:
            self._publish_telemetry(qos=1)
        if not await self._shell.drained(patience_s):
            log.warning("%d messages have no receipt yet; they are sent at the next start", self._outbox.messages)
        self._publish_telemetry(qos=1)
        self._publish_state("stopped")
        await self._shell.said()

    def _count_bytes(self, publication: Publish) -> None:
        if "/up/fl/" in publication.topic:
            self._bytes_up += len(publication.payload)

    def _count_download(self, task: str, how: How, fetched_bytes: int) -> None:
        self._metrics.inc("artifacts", task, how)
        self._metrics.inc("artifact_bytes", task, how, by=fetched_bytes)

    def _count_dropped(self, message: OutboxMessage) -> None:
        self._dropped += 1
        self._metrics.inc("spool_dropped", self._topics.parse(message.topic).kind)

    async def _tick(self) -> None:
        anyway = time.monotonic() + TICK_ANYWAY_S
        while True:
            await asyncio.sleep(TICK_S)
            overdue = time.monotonic() >= anyway
            if overdue:
                anyway = time.monotonic() + TICK_ANYWAY_S
            if self._attestation is not None:
                await self._attestation.tick(overdue)
            for participation in self._participations.values():
                if overdue or _is_due(participation.machine.next_deadline()):
                    await participation.handle(Tick())
            await self._cohorts.tick(overdue)
            for updates in self._updates.values():
                if overdue or _is_due(updates.machine.next_deadline()):
                    updates.post(Tick())


def _is_due(deadline: float | None) -> bool:
    return deadline is not None and deadline <= time.time()


def serve(settings: DeviceSettings, *, plain_allowed: bool = False) -> None:
    """Run a device node until its recordings end, or SIGTERM or SIGINT.

    Raises:
        VedetteError: it cannot start, or a source broke.
    """
    run_until_signal(lambda stop: DeviceService(settings, plain_allowed=plain_allowed).run(stop))
