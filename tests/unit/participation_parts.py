"""One device's participation with its store, its release files and its rows, driven through rounds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from participant_parts import (
    ANCHOR,
    ME,
    OTHERS,
    PEERS,
    SITE,
    TASK,
    TOPICS,
    beacon_of,
    checkins,
    member,
    opened,
    plan_of,
    upload_body,
    uploads,
)

from vedette_core.learning.network import build_network
from vedette_core.learning.round_vector import encoding_of, layout_of, read_sum, ring_of
from vedette_core.learning.spec import dense_spec
from vedette_core.learning.staleness import BufferedDelta
from vedette_core.learning.update_vector import decode_group_mean, vector_from_bytes
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_core.machine import Effect, Persist
from vedette_core.runtime.storage import StateStore
from vedette_device.budget_book import BudgetBook
from vedette_device.participant_events import RosterReceived, RoundOpened, Train
from vedette_device.participation import Participation
from vedette_device.participation_budget import ParticipationLimits
from vedette_device.verified_release import VerifiedRelease, VerifiedTarget
from vedette_schemas.errors import TransientError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant
from vedette_schemas.round import CheckIn, Member, Phase, Plan, Roster, plan_bytes

NETWORK = build_network(dense_spec(6))
SCHEMA = FeatureSchema(use_case="sensor", version=1, columns=tuple("abcdef"), window_s=1.0, history=1)
WEIGHTS = NETWORK.initial_weights(np.random.default_rng(0))
ROWS = np.random.default_rng(1).normal(size=(128, 6)).astype(np.float32)
TENSORS = tuple(sorted({"input", *(layer.name for layer in NETWORK.layers)}))
LATE = f"late/{TASK}"
NO_LIMITS = ParticipationLimits()


def a_plan(staleness_max: int = 2, *, masked: bool = False, **changes: Any) -> Plan:
    """A plan without masks, so that a test can read what was given."""
    return plan_of(
        masked=masked,
        training={"staleness_max": staleness_max, "learning_rate": 0.01},
        update={"tensors": TENSORS},
        feature_schema=SCHEMA.digest,
        network=NETWORK.spec.digest,
        dimension=NETWORK.layout.size,
        **changes,
    )


OUTLINE = b"\x10\x20\x30"


class Detector:
    """Keeps the rows, and counts how often somebody trained on them."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.asked = rows, 0
        self.training_rows = len(rows)

    def training_matrix(self, network: Any) -> np.ndarray:
        self.asked += 1
        return self.rows

    def outline(self) -> bytes:
        return OUTLINE


class Trust:
    """Verified files by digest."""

    beacon_anchor = ANCHOR
    contributing_allowed = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []

    def download(self, target: VerifiedTarget, held: object = None) -> bytes:
        self.downloads.append(target.path)
        return self.files[target.sha256]


class PickyStore(StateStore):
    """A store in which some keys find no room any more."""

    full: tuple[str, ...] = ()

    def put(self, key: str, value: bytes | None) -> None:
        if key in self.full:
            raise TransientError(f"cannot write {key} (database or disk is full)")
        super().put(key, value)


class World:
    """One device's participation with its store, driven through rounds of one plan.

    Args:
        store: where everything is kept.
        plan: every release's.
        rows: what it trains on.
        limits: its own budget.
    """

    def __init__(
        self,
        store: StateStore,
        plan: Plan | None = None,
        rows: np.ndarray = ROWS,
        limits: ParticipationLimits = NO_LIMITS,
    ) -> None:
        self.store, self.plan = store, plan or a_plan()
        self.detector, self.trust = Detector(rows), Trust()
        self.effects: list[Effect] = []
        self.weights_seen: list[tuple[int, bytes]] = []
        self.before_write = asyncio.Event()
        self.go_on: asyncio.Event | None = None
        node = SITE.node(ME)
        identity = SimpleNamespace(
            id=ME, certificate=node.certificate, intermediate=SITE.intermediate, signer=node.signer
        )
        pipeline = SimpleNamespace(task=TASK, schema=SCHEMA, detector=self.detector)
        self.participation = Participation(
            pipeline,  # type: ignore[arg-type]
            identity,  # type: ignore[arg-type]
            TOPICS,
            store,
            self.trust,  # type: ignore[arg-type]
            asyncio.Lock(),
            peers=PEERS,
            budget=BudgetBook(store, limits, 3.0, Path("/nonexistent")),
            cohort="line-a",
            plain_allowed=True,
            on_weights=lambda release, data: self.weights_seen.append((release.version, data)),
        )
        self.version, self.model = 0, ""

    async def begin(self, version: int = 0) -> World:
        """A release is active, and there are rows."""
        await self.participation.start(self.carry_out)
        await self.release(version)
        await self.participation.collected()
        return self

    async def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                if self.go_on is not None and effect.key.endswith("/upload") and effect.value is not None:
                    self.before_write.set()
                    await self.go_on.wait()
                self.store.put(effect.key, effect.value)
            self.effects.append(effect)

    async def release(self, version: int) -> None:
        """A newer release becomes active."""
        weights = write_weights(WeightsFile(NETWORK, WEIGHTS + np.float32(version), SCHEMA))
        packed, digest = plan_bytes(self.plan)
        self.version, self.model = version, hashlib.sha256(weights).hexdigest()
        self.trust.files |= {self.model: weights, digest: packed}
        custom: Any = None
        targets = {
            Variant.WEIGHTS: VerifiedTarget(f"{TASK}/{version}/weights", len(weights), self.model, custom),
            Variant.PLAN: VerifiedTarget(f"{TASK}/{version}/plan", len(packed), digest, custom),
        }
        await self.participation.take_release(VerifiedRelease(TASK, version, (1, version), targets))

    async def open(self, phase: Phase, number: int) -> None:
        body = opened(phase, number, model=self.model, model_version=self.version, plan=plan_bytes(self.plan)[1])
        await self.participation.handle(RoundOpened(body))

    async def to_training(self, number: int) -> Train:
        """The roster of a round holds."""
        await self.open(Phase.CHECKIN, number)
        await self.open(Phase.COLLECT, number)
        said: CheckIn = checkins(self.effects)[-1]
        own = Member(device=ME, epk=said.epk, seq=said.seq, certificate=said.certificate, offer=said.offer, weight=2)
        roster = Roster(
            task=TASK,
            round=number,
            attempt=1,
            gid=0,
            model=self.model,
            model_version=self.version,
            plan=plan_bytes(self.plan)[1],
            beacon=beacon_of(number, self.plan),
            members=(own, *(member(device) for device in OTHERS)),
            deadline_s=opened(Phase.COLLECT).deadline_s,
        )
        await self.participation.handle(RosterReceived(roster))
        return [e for e in self.effects if isinstance(e, Train)][-1]

    async def give(self, number: int) -> np.ndarray:
        """Take part in a round in time: what was given."""
        train = await self.to_training(number)
        await self.participation.train(train)
        return self.given(train)

    async def miss(self, number: int) -> Train:
        """Take part in a round, and be overtaken by its end."""
        train = await self.to_training(number)
        await self.open(Phase.UNMASK, number)
        await self.participation.train(train)
        await self.open(Phase.DONE, number)
        return train

    def given(self, train: Train) -> np.ndarray:
        """The change of the weights in the newest upload."""
        body = upload_body(uploads(self.effects)[-1])
        assert (body.round, body.attempt) == (train.round, train.attempt)
        total = vector_from_bytes(body.vector, layout_of(self.plan), ring_of(self.plan))
        group = read_sum(self.plan, train.roster, [ME], total)
        return decode_group_mean(group, encoding_of(self.plan, train.roster))

    def kept(self) -> BufferedDelta | None:
        """What is on disk for a later round."""
        stored = self.store.get(LATE)
        return None if stored is None else BufferedDelta.from_bytes(stored)
