"""The aggregator's shell: owns the MQTT session, the clock and the store; feeds events in, carries effects out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from datetime import datetime
from functools import partial
from typing import Final

from vedette_aggregator import alert_store, device_book
from vedette_aggregator.actions import Hands
from vedette_aggregator.alert_store import AlertStore
from vedette_aggregator.attestation_desk import AttestationDesk
from vedette_aggregator.exclusions import Exclusions
from vedette_aggregator.first_values import show_zeros
from vedette_aggregator.fleet import Fleet
from vedette_aggregator.fleet_event_machine import FleetEventSettings
from vedette_aggregator.fleet_watch import FleetWatch
from vedette_aggregator.gate_watch import watch_gate
from vedette_aggregator.intake import AlertReceived, Intake, StateReceived, TelemetryReceived
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.publication import Publication, retained_messages
from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_watch import ForeignReleases, RegistryFollower, note_revocations, once_signed
from vedette_aggregator.release_attempts import attempt_release
from vedette_aggregator.releases import Releases, TaskModel, server_optimiser
from vedette_aggregator.revocation_watch import RevocationWatch
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollouts import RolloutParts, Rollouts
from vedette_aggregator.root_set import RootSet
from vedette_aggregator.round_events import (
    CheckInReceived,
    ModelReplaced,
    PublishCandidate,
    Quarantined,
    Released,
    ReleaseFailed,
    RootTrained,
    SharesReceived,
    Suspect,
    TrainRoot,
    UploadReceived,
    VoteReceived,
)
from vedette_aggregator.round_gauges import show_protection, show_release, show_round
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_messages import RoundMessages
from vedette_aggregator.round_secrets import RoundSecrets
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_setup import RoundParts
from vedette_aggregator.round_state import RoundState
from vedette_aggregator.settings import AggregatorSettings, TaskSection
from vedette_aggregator.state_file import state_path
from vedette_aggregator.trust_watch import TrustWatch
from vedette_core.crypto.signing import KeyRing
from vedette_core.learning.robust.defence import Defence
from vedette_core.machine import Connected, Effect, Event, Publish, Tick
from vedette_core.runtime.identity import client_context, key_ring, load_node
from vedette_core.runtime.jobs import Jobs, run_until_signal
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics, resident_bytes, serve_configured
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_core.runtime.own_certificate import OwnCertificate
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.alert import Alert
from vedette_schemas.errors import ConfigError, PeerError, TransientError, VedetteError
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.aggregator")

TICK_S: Final = 0.1
TICK_ANYWAY_S: Final = 60.0
"""Machines get a tick this often whatever their deadline says: after the clock was set back it may be far away."""
HOUSEKEEPING_S: Final = 60.0
"""Each look at the release metadata reads them from disk; the shortest of their lives is a day."""
SAID_AGAIN_EVERY: Final = 15
"""Every so many looks all retained state is put out again: a NATS cluster may acknowledge what it does not retain."""
QUARANTINE_S: Final = 2.0
"""How soon a quarantine that a person added is seen."""
CONNECT_TIMEOUT_S: Final = 30.0
RELEASE_RETRY_S: Final = 5.0


class AggregatorService:
    """One aggregator.

    Args:
        settings: its settings.
        plain: whether updates travel without masks.

    Raises:
        ConfigError: a bundle, repository or state directory that cannot be used.
    """

    def __init__(self, settings: AggregatorSettings, *, plain: bool = False) -> None:
        self._settings, self._plain = settings, plain
        if plain:
            log.warning("INSECURE: rounds run without masking; every update can be read by this aggregator")
        self._node = load_node(settings.identity.bundle, time.time())
        if (self._node.id, self._node.site) != (settings.aggregator, settings.site):
            raise ConfigError(
                f"identity: found a bundle of {self._node.id} at {self._node.site}, "
                f"expected {settings.aggregator} at {settings.site}; correct [identity] bundle, or site and aggregator"
            )
        self._topics = Topics(settings.site)
        self._say = RoundMessages(self._topics, self._node.id, self._node.signer)
        self._metrics = Metrics(AGGREGATOR_METRICS)
        self._database = Database(state_path(settings), alert_store.TABLES + device_book.TABLES)
        self._store, self._lineage = StateStore(self._database), Lineage(self._database.path)
        self._alerts = AlertStore(self._database)
        self._fleet = Fleet(self._metrics, FleetEventSettings(**settings.fleet_events.model_dump()))
        self._registry = Registry(settings.trust_dir)
        self._link = MqttLink(
            LinkConfig(
                settings.broker.host,
                settings.broker.port,
                self._node.id,
                client_context(self._node.bundle),
                clean_session=False,
                keepalive_s=settings.broker.keepalive_s,
            ),
            self._take,
            on_connect=self._connected,
        )
        self._shell = Shell(self._link, self._store, self._metrics)
        ring = key_ring(self._node.bundle, settings.site)
        self._attestation = AttestationDesk(
            settings.attestation, self._node, self._topics, self._shell, self._store, ring
        )
        self._releases: dict[str, Releases] = {}
        self._machines: dict[str, RoundMachine] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._roots: dict[str, RootSet] = {}
        self._suspicion_min = {task.task: task.defence.suspicion_min for task in settings.tasks}
        self._secrets = RoundSecrets(self._store, self._registry)
        self._quarantine_at = 0.0
        self._resume: dict[str, list[Effect]] = {}
        self._jobs = Jobs()
        self._foreign = ForeignReleases(self._registry, self._metrics)
        self._trust = TrustWatch(self._registry, settings.tasks, self._metrics)
        self._follower = RegistryFollower(self._registry, self._put_out, self._changed_beside)
        for task in settings.tasks:
            self._add_task(task)
        bundle, listed = self._node.bundle, settings.identity.revocation_list
        self._revocations = RevocationWatch(ring, self._store, bundle, listed, self._topics, self._metrics)
        self._exclusions = Exclusions(Quarantine(self._store), self._revocations, self._metrics)
        self._own = OwnCertificate(self._node, self._link, self._metrics)
        self._intake = self._make_intake(ring)
        hands = Hands(self._shell.carry_out, self._shell.publish, self._put_out, self._handle, self._follow_releases)
        self._watch = FleetWatch(
            settings, self._fleet, self._database, self._metrics, self._registry, self._node, hands
        )
        show_zeros(self._metrics, tuple(self._machines))
        for name in self._machines:
            show_protection(self._metrics, name, self._machines[name], self._suspicion_min[name])
        self._rollouts = self._make_rollouts()

    def _add_task(self, task: TaskSection) -> None:
        model = TaskModel.of(task)
        settings = RoundSettings(
            **task.round.model_dump(),
            **task.training.model_dump(),
            **task.privacy.model_dump(),
            rule=task.defence.rule,
            suspicion_min=task.defence.suspicion_min,
            masked=not self._plain,
        )
        plan = model.plan(settings, task.task)
        if task.defence.root_set is not None:
            self._roots[task.task] = RootSet.load(task.defence.root_set, model.network, model.schema)
        releases = Releases(self._registry, task, model)
        watch_gate(releases.gate, self._lineage, self._metrics, lambda: self._machines[task.task])
        self._turns[task.task] = asyncio.Lock()
        self._releases[task.task] = releases
        parts = RoundParts(
            topics=self._topics,
            aggregator=self._node.id,
            signer=self._node.signer,
            settings=settings,
            plan=plan,
            optimiser=server_optimiser(task),
            defence=Defence.configured(settings.robust_rule, has_root=task.task in self._roots),
            has_root=task.task in self._roots,
            beacon=self._secrets.beacon,
            seed=self._secrets.seed(),
            entropy=os.urandom,
            admit=self._attestation.admit,
        )
        persisted = self._store.all(f"round/{task.task}/") | self._store.all(f"privacy/{task.task}/")
        self._machines[task.task], self._resume[task.task] = RoundMachine.restore(
            persisted, parts, once_signed(lambda: releases.initial(plan, time.time()))
        )

    def _make_rollouts(self) -> Rollouts:
        parts = RolloutParts(
            registry=self._registry,
            store=self._store,
            shell=self._shell,
            metrics=self._metrics,
            jobs=self._jobs,
            messages=RolloutMessages(self._topics, self._node.id, self._node.signer),
            put_out=self._put_out,
            follow=self._follow_releases,
            lineage=self._lineage,
            promoted=self._promoted,
        )
        rollouts = Rollouts.of(self._settings.tasks, parts, self._releases)
        self._watch.actions.take_back = rollouts.roll_back
        return rollouts

    async def _promoted(self, task: str, version: int) -> None:
        await self._watch.active(task, version, time.time(), fresh=True, promoted=True)

    def _make_intake(self, ring: KeyRing) -> Intake:
        intake = Intake(self._topics, ring, self._machines)
        for machine in self._machines.values():
            for device in intake.remember(machine.certificates, time.time()):
                log.info("%s: its certificate no longer holds; it must check in again", device)
        return intake

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        stop_serving = serve_configured(self._metrics, self._settings.metrics)
        await self._link.subscribe(f"{self._topics.root}/device/+/up/#", 1)
        await self._link.subscribe(self._topics.revoked, 1)
        await self._link.start()
        background = [
            asyncio.create_task(job, name=name)
            for name, job in (
                ("publisher", self._shell.run()),
                ("ticker", self._tick()),
                ("housekeeper", self._keep_house()),
            )
        ]
        try:
            for task, effects in self._resume.items():
                await self._carry_out(task, effects)
            await self._rollouts.start()
            for task in self._machines:
                await self._follow_releases(task)
            stopped = asyncio.create_task(stop.wait(), name="stop")
            done, _ = await asyncio.wait([stopped, *background], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopped}:
                job.result()
        finally:
            for job in background:
                job.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._jobs.cancel()
            await self._link.stop()
            self._watch.flush(time.time(), at_once=True)
            stop_serving()
            self._database.close()

    # -- what comes in ------------------------------------------------------------------------------------------------

    async def _take(self, message: MqttMessage) -> None:
        kind = "unknown"
        try:
            parsed = self._topics.parse(message.topic)
            kind = parsed.kind
            if kind == "rpc":  # all others are between a node and the authority
                await self._attestation.take(parsed, message.payload, time.time())
                return
            if kind == "revoked":
                if self._revocations.take(message.payload):
                    self._publish_revocations()  # an older one of ours may have taken its place
                    await self._follow_exclusions()
                return
            await self._sort(self._intake.take(message.topic, message.payload, time.time()), len(message.payload))
        except PeerError as error:
            self._metrics.inc("messages", kind, error.reason)
            log.info("%s: %s", message.topic, error)
            self._refuse(message, error)
        except TransientError as error:
            # No receipt: the device keeps it and sends it again.
            self._metrics.inc("messages", kind, "deferred")
            log.warning("%s: %s", message.topic, error)
        else:
            self._metrics.inc("messages", kind, "accepted")

    def _refuse(self, message: MqttMessage, fault: PeerError) -> None:
        answer = self._intake.hopeless(message.topic, message.payload, fault)
        if answer is not None:
            device, message_id = answer
            self._shell.publish(self._say.receipt(device, message_id, f"{fault.reason}: {fault}"))

    async def _sort(self, event: Event, payload_bytes: int) -> None:
        match event:
            case CheckInReceived(body):
                await self._attestation.receive(body, time.time())
                self._watch.take_cohort(body.device, body.cohort, time.time())
                await self._handle(body.task, event)
            case UploadReceived(body):
                self._metrics.inc("update_bytes", body.task, by=payload_bytes)
                await self._handle(body.task, event)
            case VoteReceived(answer) | SharesReceived(answer):
                await self._handle(answer.task, event)
            case AlertReceived(body):
                await self._take_alert(body)
            case StateReceived(body):
                await self._watch.take_state(body, time.time())
                self._foreign.take(body)
                await self._rollouts.take_state(body)
            case TelemetryReceived(body):
                await self._watch.take_report(body, time.time())
                await self._rollouts.take_report(body)

    async def _take_alert(self, alert: Alert) -> None:
        if self._alerts.add(alert, time.time()):
            await self._watch.take_alert(alert, time.time())
            labels = (alert.model.task, alert.severity.value, alert.kind, alert.state.value)
            self._metrics.inc("alerts_received", *labels)
            self._metrics.observe(
                "alert_delay_seconds",
                value=max(0.0, time.time() - datetime.fromisoformat(alert.window_end).timestamp()),
            )
            await self._rollouts.take_alert(alert)
        self._shell.publish(self._say.receipt(alert.device, f"{alert.id}.{alert.seq}"))

    def _connected(self, session_present: bool) -> None:
        self._metrics.inc("broker_connects")
        self._jobs.start(self._publish_again(), "republish")
        self._jobs.start(self._attestation.publish_own(), "own-measurement")

    async def _publish_again(self) -> None:
        """The broker may have forgotten everything: put all retained state back."""
        self._publish_revocations()
        await self._rollouts.connected()
        for task in self._machines:
            await self._handle(task, Connected())
        while True:
            try:
                self._put_out(await asyncio.to_thread(self._registry.retained))
            except (TransientError, ConfigError) as error:
                log.error("%s; trying again", error)
                await asyncio.sleep(RELEASE_RETRY_S)
            else:
                return

    # -- machines -----------------------------------------------------------------------------------------------------

    async def _handle(self, task: str, event: Event) -> None:
        machine = self._machines[task]
        before = machine.state
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turns[task]:
            await self._carry_out(task, machine.handle(event, time.time()))
        if machine.state is not before or isinstance(
            event, (CheckInReceived, UploadReceived, VoteReceived, SharesReceived, Released)
        ):
            show_round(self._metrics, task, machine)
        if isinstance(event, (Released, ModelReplaced)):
            await self._watch.active(task, machine.model.version, time.time(), fresh=isinstance(event, Released))
        if isinstance(event, Released):
            await self._rollouts.look(task)

    async def _follow_releases(self, task: str) -> None:
        """After a rollback or a revocation rounds start from another release than they went on with: begin from it."""
        machine, wanted = self._machines[task], self._rollouts.rounds_from(task)
        version = self._registry.active(task) if wanted is None else wanted
        if machine.state is RoundState.RELEASING or version is None or version == machine.model.version:
            return
        await self._handle(task, ModelReplaced(self._releases[task].model_of(version)))

    async def _changed_beside(self, task: str) -> None:
        self._secrets.forget_beacons()
        await asyncio.to_thread(note_revocations, self._registry, self._lineage, task, time.time())
        await self._rollouts.look(task)
        await self._follow_releases(task)

    async def _carry_out(self, task: str, effects: list[Effect]) -> None:
        await self._shell.carry_out(effects, partial(self._special, task))

    async def _special(self, task: str, effect: Effect) -> None:
        match effect:
            case PublishCandidate():
                self._jobs.start(self._release(task, effect), f"release-{task}")
            case TrainRoot():
                self._jobs.start(self._train_root(effect), f"root-{task}")
            case Suspect(device=device, score=score, observations=observations):
                log.warning(
                    "%s: the groups of %s stand out (suspicion %.1f over %d rounds): look at it, and quarantine it "
                    "with `vedette device quarantine add %s` if it is to blame",
                    task,
                    device,
                    score,
                    observations,
                    device,
                )
            case _:
                raise AssertionError(f"nobody carries out {effect!r}")

    async def _train_root(self, effect: TrainRoot) -> None:
        delta = None
        try:
            delta = await asyncio.to_thread(self._roots[effect.task].train, effect.plan, effect.weights)
        except VedetteError as error:
            log.error("root set of %s: %s", effect.task, error)
        await self._handle(effect.task, RootTrained(effect.round, effect.attempt, delta))

    async def _release(self, task: str, effect: PublishCandidate) -> None:
        patience_s = self._settings.validator_patience_s
        made = await attempt_release(self._releases[task], task, effect, patience_s)
        if isinstance(made, ReleaseFailed):
            await self._end_release(task, made)
            return
        released, publication = made
        self._put_out(publication)
        show_release(self._metrics, task, released.version, effect.candidate)
        show_protection(self._metrics, task, self._machines[task], self._suspicion_min[task])
        await self._end_release(task, released)

    async def _end_release(self, task: str, answer: Released | ReleaseFailed) -> None:
        await self._handle(task, answer)
        try:
            # What people went back from or revoked meanwhile was not followed then; nor, if a crash came behind the
            # publication, while this process was away.
            await self._follow_releases(task)
        except VedetteError as error:
            log.error("release of %s: %s", task, error)

    def _put_out(self, publication: Publication) -> None:
        for topic, payload in retained_messages(self._topics, publication):
            self._shell.publish(Publish(topic, payload, retain=True))
        self._follower.note(publication)

    # -- time ---------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        anyway = time.monotonic() + TICK_ANYWAY_S
        while True:
            await asyncio.sleep(TICK_S)
            overdue = time.monotonic() >= anyway
            if overdue:
                anyway = time.monotonic() + TICK_ANYWAY_S
            await self._attestation.follow_policy()
            self._watch.flush(time.time())
            await self._follow_quarantine()
            await self._follower.look()
            await self._rollouts.tick()
            for task, machine in self._machines.items():
                deadline = machine.next_deadline()
                if overdue or (deadline is not None and deadline <= time.time()):
                    await self._handle(task, Tick())

    async def _follow_quarantine(self) -> None:
        """What a person wrote beside this process counts within seconds."""
        if time.monotonic() < self._quarantine_at:
            return
        self._quarantine_at = time.monotonic() + QUARANTINE_S
        if self._revocations.poll(time.time()):
            self._publish_revocations()
        await self._follow_exclusions()

    async def _follow_exclusions(self) -> None:
        if self._exclusions.look():
            for task in self._machines:
                await self._handle(task, Quarantined(self._exclusions.devices))

    def _publish_revocations(self) -> None:
        if (publication := self._revocations.publication()) is not None:
            self._shell.publish(publication)

    async def _keep_house(self) -> None:
        for number in itertools.count(1):
            self._metrics.set("resident_memory_bytes", value=resident_bytes())
            if (renewed := self._own.look()) is not None:
                self._revocations.follow(renewed.bundle)
            self._fleet.tick(time.time())
            try:
                if publication := await asyncio.to_thread(self._registry.refresh_timestamp, time.time()):
                    self._put_out(publication)
                await asyncio.to_thread(self._trust.look, {t: m.round for t, m in self._machines.items()})
            except VedetteError as error:
                log.error("release metadata: %s", error)
            if number % SAID_AGAIN_EVERY == 0 and self._link.connected:
                self._jobs.start(self._publish_again(), "republish")
            await asyncio.sleep(HOUSEKEEPING_S)


def serve(settings: AggregatorSettings, *, plain: bool = False) -> None:
    """Run an aggregator until SIGTERM or SIGINT.

    Raises:
        VedetteError: it cannot start, or cannot go on.
    """
    run_until_signal(AggregatorService(settings, plain=plain).run)
