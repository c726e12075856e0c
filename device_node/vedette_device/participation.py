"""Carries out what the participant machine of a task asks for: fetch the round's model, train, encode."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import numpy as np

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.signing import KeyRing
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.network import Network
from vedette_core.learning.staleness import BufferedDelta, discounted, usable
from vedette_core.learning.weights_file import read_weights
from vedette_core.machine import Effect, Event, Persist
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.storage import StateStore
from vedette_device.budget_book import BudgetBook
from vedette_device.participant_events import (
    ExamplesAvailable,
    ReleaseVerified,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_device.participant_state import upload_key
from vedette_device.training import Contribution, contribute, train_locally
from vedette_device.trust import TrustClient
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import RefusedError, TransientError, VedetteError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant
from vedette_schemas.round import read_plan
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.rounds")

WEIGHTS_KEPT: Final = 2
"""Weights files in memory: the current round's, and the one before while a release changes."""

CarryOut = Callable[[Sequence[Effect]], Awaitable[None]]


class TrainingRows(Protocol):
    """Whoever keeps a task's training rows: a detector."""

    @property
    def training_rows(self) -> int:
        """How many there are."""

    def training_matrix(self, network: Network) -> Float32:
        """All of them, ``(n, *input_shape)`` float32, scaled and taken to be benign."""

    def outline(self) -> bytes:
        """What kind of device this is, for a diverse selection: at most 32 bytes, maybe none."""


class Learner(Protocol):
    """What a participation needs of a task's pipeline."""

    @property
    def task(self) -> str:
        """The task."""

    @property
    def schema(self) -> FeatureSchema:
        """What its rows hold."""

    @property
    def detector(self) -> TrainingRows:
        """Who keeps its rows."""


class Participation:
    """This device's part in the rounds of one task.

    Args:
        pipeline: the task's, whose detector keeps the training rows.
        node: who this device is.
        topics: the site's topics.
        store: where the machine persists.
        trust: finds and downloads releases.
        training: held while a model trains: one training at a time leaves the processor to detection.
        peers: the site's anchors, to believe the certificates of others by.
        budget: what the operator lets this device spend.
        cohort: what kind of device this is, in the operator's words.
        passport: the attestation result that holds now, where one is asked for.
        plain_allowed: whether an update may leave that the aggregator can read.
        on_weights: called with each verified release that rounds start from, and its checked weights file.
    """

    def __init__(
        self,
        pipeline: Learner,
        node: NodeIdentity,
        topics: Topics,
        store: StateStore,
        trust: TrustClient,
        training: asyncio.Lock,
        *,
        peers: KeyRing,
        budget: BudgetBook,
        cohort: str = "",
        passport: Callable[[], bytes] | None = None,
        plain_allowed: bool = False,
        on_weights: Callable[[VerifiedRelease, bytes], None] | None = None,
    ) -> None:
        self.task = pipeline.task
        self._on_weights = on_weights
        self._pipeline, self._trust, self._training = pipeline, trust, training
        self._device, self._store, self._budget = node.id, store, budget
        self._peers = peers
        self.machine, self._resume = ParticipantMachine.restore(
            store.all(f"participant/{self.task}/") | store.all(f"committee/{self.task}/"),
            topics=topics,
            task=self.task,
            identity=DeviceIdentity(
                node.id,
                node.certificate,
                node.intermediate,
                node.signer,
                pipeline.schema.digest,
                cohort=cohort,
                passport=passport,
            ),
            new_key=new_key,
            peers=peers,
            plain_allowed=plain_allowed,
            may_join=lambda now, number: budget.refusal(now, self.task, number),
            sketch=pipeline.detector.outline,
        )
        self._weights: OrderedDict[str, bytes] = OrderedDict()
        self._late = self._load_late()
        self._carry_out: CarryOut | None = None
        self._turn = asyncio.Lock()

    async def start(self, carry_out: CarryOut) -> None:
        """Finish what a crash interrupted."""
        self._carry_out = carry_out
        await carry_out(self._resume)

    async def handle(self, event: Event) -> None:
        """Give the machine an event, and carry out what it answers."""
        await self._step(event)

    async def _step(self, event: Event) -> Sequence[Effect]:
        assert self._carry_out is not None
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turn:
            effects = self.machine.handle(event, time.time())
            await self._carry_out(effects)
            return effects

    async def take_release(self, release: VerifiedRelease) -> None:
        """A verified release is what rounds start from: fetch its weights and plan, and tell the machine.

        Raises:
            TransientError: they did not come; try again.
            PeerError: they are not what the metadata say.
        """
        weights, plan = release.targets.get(Variant.WEIGHTS), release.targets.get(Variant.PLAN)
        if weights is None or plan is None:
            raise RefusedError(f"release {self.task} {release.version}: found no weights or no plan", rule="variant")
        if weights.sha256 not in self._weights:
            self._weights[weights.sha256] = await asyncio.to_thread(self._trust.download, weights, self._weights.get)
            while len(self._weights) > WEIGHTS_KEPT:
                self._weights.popitem(last=False)
        if self._on_weights is not None:
            self._on_weights(release, self._weights[weights.sha256])
        packed = await asyncio.to_thread(self._trust.download, plan)
        anchor = self._trust.beacon_anchor
        await self.handle(ReleaseVerified(release.version, weights.sha256, plan.sha256, read_plan(packed), anchor))

    async def train(self, effect: Train) -> None:
        """Train, and tell the machine how it went; what comes too late for its round is kept for a later one."""
        try:
            async with self._training:
                result, late = await self._result(effect)
            made = await asyncio.to_thread(self._mask, effect, result)
        except (VedetteError, ValueError) as fault:
            log.warning("%s round %d.%d: %s", self.task, effect.round, effect.attempt, fault)
            await self.handle(TrainingFailed(effect.round, effect.attempt, str(fault)[:200]))
            return
        log.info(
            "%s round %d.%d: trained on %d windows, loss %.4g → %.4g",
            self.task,
            effect.round,
            effect.attempt,
            made.num_examples,
            made.loss_before,
            made.loss_after,
        )
        effects = await self._step(TrainingFinished(effect.round, effect.attempt, effect.plan, made))
        if not any(isinstance(e, Persist) and e.key == upload_key(self.task) for e in effects):
            # No upload was made of it, and none can be any more.
            self._keep_late(effect, late or _buffered(effect, result))

    def _mask(self, effect: Train, result: TrainingResult) -> Contribution:
        return contribute(
            effect.plan,
            effect.roster,
            self._device,
            effect.key,
            result,
            rng=np.random.default_rng(),
            entropy=os.urandom,
        )

    async def _result(self, effect: Train) -> tuple[TrainingResult, BufferedDelta | None]:
        """What this round is given, and the late update that it is made of, if it is one."""
        if not self._trust.contributing_allowed:
            raise RefusedError("found release metadata that have expired, expected fresh ones", rule="stale")
        self._peers.revocations.check_fresh(time.time())
        late = self._take_late()
        if late is not None and _fits(late, effect):
            return _discounted(late, effect), late
        if effect.model_sha256 not in self._weights:
            raise RefusedError(f"found no weights file {effect.model_sha256[:12]}… here", rule="model")
        model = read_weights(self._weights[effect.model_sha256])
        rows = self._pipeline.detector.training_matrix(model.network)

        cpu_s = 0.0

        def train() -> TrainingResult:
            nonlocal cpu_s
            began = time.thread_time()
            try:
                return train_locally(effect.plan, model.network, model.weights, rows, np.random.default_rng())
            finally:
                cpu_s = time.thread_time() - began

        try:
            return await asyncio.to_thread(train), None
        finally:
            self._budget.record(time.time(), self.task, effect.round, cpu_s)

    async def attested(self) -> None:
        """There is an attestation result to check in with."""
        await self.collected()

    async def collected(self) -> None:
        """There are more rows to train on."""
        await self.handle(ExamplesAvailable(self._pipeline.detector.training_rows))

    # -- late updates -------------------------------------------------------------------------------------------------

    @property
    def _late_key(self) -> str:
        return f"late/{self.task}"

    def _load_late(self) -> BufferedDelta | None:
        stored = self._store.get(self._late_key)
        return None if stored is None else BufferedDelta.from_bytes(stored)

    def _keep_late(self, effect: Train, late: BufferedDelta) -> None:
        """The round went on without this update: a later one may have it."""
        if effect.plan.training.staleness_max == 0:
            return
        self._late = late
        try:
            self._store.put(self._late_key, late.to_bytes())
        except TransientError as fault:
            log.warning("%s: the late update is lost at the next start: %s", self.task, fault)
        log.info("%s round %d.%d: too late; kept for a later round", self.task, effect.round, effect.attempt)

    def _take_late(self) -> BufferedDelta | None:
        """The late update, if there is one. It is given once: erased before it is used."""
        late = self._late
        if late is not None:
            self._store.put(self._late_key, None)
            self._late = None
        return late


def _buffered(effect: Train, result: TrainingResult) -> BufferedDelta:
    """What a training made, to be given to a later round."""
    return BufferedDelta(
        effect.plan.network,
        effect.model_version,
        result.delta,
        result.num_examples,
        result.loss_before,
        result.loss_after,
        tuple((name, low, high) for name, (low, high) in sorted(result.activation_ranges.items())),
    )


def _fits(late: BufferedDelta, effect: Train) -> bool:
    """Whether a round may have a late update; one that it may not have is of no use to later ones, either."""
    plan = effect.plan
    return late.network == plan.network and usable(late, effect.model_version, plan.training.staleness_max)


def _discounted(late: BufferedDelta, effect: Train) -> TrainingResult:
    """A late update as a round has it."""
    plan = effect.plan
    delta = discounted(
        late,
        network=plan.network,
        model_version=effect.model_version,
        staleness_max=plan.training.staleness_max,
        clip_norm=plan.update.clip_norm,
    )
    log.info(
        "%s round %d.%d: gives the update of release %d", effect.task, effect.round, effect.attempt, late.model_version
    )
    ranges = {name: (low, high) for name, low, high in late.ranges}
    return TrainingResult(delta, late.loss_before, late.loss_after, late.num_examples, ranges)


def new_key() -> KeyPair:
    """A fresh X25519 key pair."""
    return key_pair(os.urandom(32))
