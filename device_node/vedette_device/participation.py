"""Carries out what the participant machine of a task asks for: fetch the round's model, train, encode."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from vedette_core.learning.weights_file import read_weights
from vedette_core.machine import Effect, Event
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.storage import StateStore
from vedette_device.participant_events import (
    ExamplesAvailable,
    KeyPair,
    ReleaseVerified,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_device.pipeline import Pipeline
from vedette_device.training import Contribution, contribute
from vedette_device.trust import TrustClient
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import RefusedError, VedetteError
from vedette_schemas.model import Variant
from vedette_schemas.round import read_plan
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.rounds")

WEIGHTS_KEPT: Final = 2
"""Weights files in memory: the current round's, and the one before while a release changes."""

CarryOut = Callable[[Sequence[Effect]], Awaitable[None]]


class Participation:
    """This device's part in the rounds of one task.

    Args:
        pipeline: the task's detector, which keeps the training rows.
        node: who this device is.
        topics: the site's topics.
        store: where the machine persists.
        trust: finds and downloads releases.
        training: held while a model trains: one training at a time leaves the processor to detection.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        node: NodeIdentity,
        topics: Topics,
        store: StateStore,
        trust: TrustClient,
        training: asyncio.Lock,
    ) -> None:
        self.task = pipeline.task
        self._pipeline, self._trust, self._training = pipeline, trust, training
        self.machine, self._resume = ParticipantMachine.restore(
            store.all(f"participant/{self.task}/"),
            topics=topics,
            task=self.task,
            identity=DeviceIdentity(node.id, node.certificate, node.intermediate, node.signer, pipeline.schema.digest),
            new_key=new_key,
        )
        self._weights: OrderedDict[str, bytes] = OrderedDict()
        self._carry_out: CarryOut | None = None
        self._turn = asyncio.Lock()

    async def start(self, carry_out: CarryOut) -> None:
        """Finish what a crash interrupted."""
        self._carry_out = carry_out
        await carry_out(self._resume)

    async def handle(self, event: Event) -> None:
        """Give the machine an event, and carry out what it answers."""
        assert self._carry_out is not None
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turn:
            await self._carry_out(self.machine.handle(event, time.time()))

    async def take_release(self, release: VerifiedRelease) -> None:
        """A verified release became the active one: fetch its weights and plan, and tell the machine.

        Raises:
            TransientError: they did not come; try again.
            PeerError: they are not what the metadata say.
        """
        weights, plan = release.targets.get(Variant.WEIGHTS), release.targets.get(Variant.PLAN)
        if weights is None or plan is None:
            raise RefusedError(f"release {self.task} {release.version}: found no weights or no plan", rule="variant")
        if weights.sha256 not in self._weights:
            self._weights[weights.sha256] = await asyncio.to_thread(self._trust.download, weights)
            while len(self._weights) > WEIGHTS_KEPT:
                self._weights.popitem(last=False)
        packed = await asyncio.to_thread(self._trust.download, plan)
        await self.handle(ReleaseVerified(release.version, weights.sha256, plan.sha256, read_plan(packed)))

    async def train(self, effect: Train) -> None:
        """Train, and tell the machine how it went."""
        try:
            async with self._training:
                contribution = await self._contribute(effect)
        except (VedetteError, ValueError) as fault:
            log.warning("%s round %d.%d: %s", self.task, effect.round, effect.attempt, fault)
            await self.handle(TrainingFailed(effect.round, effect.attempt, str(fault)[:200]))
            return
        log.info(
            "%s round %d.%d: trained on %d windows, loss %.4g → %.4g",
            self.task,
            effect.round,
            effect.attempt,
            contribution.num_examples,
            contribution.loss_before,
            contribution.loss_after,
        )
        await self.handle(TrainingFinished(effect.round, effect.attempt, contribution))

    async def _contribute(self, effect: Train) -> Contribution:
        if not self._trust.contributing_allowed:
            raise RefusedError("found release metadata that have expired, expected fresh ones", rule="stale")
        if effect.model_sha256 not in self._weights:
            raise RefusedError(f"found no weights file {effect.model_sha256[:12]}… here", rule="model")
        model = read_weights(self._weights[effect.model_sha256])
        rows = self._pipeline.detector.training_matrix(model.network)
        return await asyncio.to_thread(
            contribute,
            effect.plan,
            model.network,
            model.weights,
            rows,
            seed=effect.seed,
            rng=np.random.default_rng(),
        )

    async def collected(self) -> None:
        """There are more rows to train on."""
        await self.handle(ExamplesAvailable(self._pipeline.detector.training_rows))


def new_key() -> KeyPair:
    """A fresh X25519 key pair."""
    private = X25519PrivateKey.generate()
    return KeyPair(private.private_bytes_raw(), private.public_key().public_bytes_raw())
