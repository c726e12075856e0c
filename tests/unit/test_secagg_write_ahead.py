"""Power cuts in a participant, behind every effect: one upload a roster, with the same bytes for ever, and no key left.

Training and masking are done again in every life, with other randomness, as they would be. What left once under a
transcript must be all that ever leaves under it: two vectors under one mask would show their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from secagg_parts import MODEL, TOPICS, make_plan, make_roster
from secagg_site import NOW, TASK, entropy_of, helper, person, the_authority, the_ring

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.beacon import BeaconChain
from vedette_core.crypto.certificate_chain import der
from vedette_core.machine import Event, Persist, Publish
from vedette_core.secagg.participant import mask_update
from vedette_device.participant_events import (
    ExamplesAvailable,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFinished,
)
from vedette_device.participant_machine import DeviceIdentity, ParticipantMachine
from vedette_device.training import Contribution
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import CheckIn, Member, Phase, Plan, Roster, RoundOpen, Upload, plan_bytes
from vedette_schemas.telemetry import Receipt, ReceiptItem

ME = "gw-003"
CHAIN = BeaconChain(bytes(range(32)), 16)
Mode = Literal["inline", "helpers"]


@dataclass
class Lives:
    """A device that dies and is made again from its disk, and an aggregator that goes on.

    Attributes:
        disk: what is persisted.
        uploads: every upload that ever left.
        keys: private keys that were ever made.
        secrets: own masks' seeds that were ever drawn.
        effects: how many were carried out.
    """

    mode: Mode
    disk: dict[str, bytes] = field(default_factory=dict)
    uploads: list[tuple[Upload, bytes]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    effects: int = 0
    stop: int | None = None
    checkin: CheckIn | None = None
    machine: ParticipantMachine = field(init=False)

    def __post_init__(self) -> None:
        self.plan: Plan = make_plan() if self.mode == "inline" else make_plan(committee="helpers", size=5)
        self.restart()

    def restart(self) -> None:
        """Another life."""
        me = person(ME)
        online = der(the_authority().online)
        identity = DeviceIdentity(ME, me.certificate, online, me.signer, self.plan.feature_schema)
        self.machine, effects = ParticipantMachine.restore(
            dict(self.disk), topics=TOPICS, task=TASK, identity=identity, new_key=self.new_key, peers=the_ring()
        )
        self.carry_out(effects)
        self.tell(ReleaseVerified(0, MODEL, plan_bytes(self.plan)[1], self.plan, CHAIN.anchor))
        self.tell(ExamplesAvailable(500))

    def new_key(self) -> KeyPair:
        """Another one every time."""
        pair = key_pair(entropy_of(f"key {len(self.keys)}")(32))
        self.keys.append(pair.private)
        return pair

    def tell(self, event: Event) -> None:
        """An event, unless it is dead."""
        if self.alive:
            self.carry_out(self.machine.handle(event, NOW))

    @property
    def alive(self) -> bool:
        """Whether this life goes on."""
        return self.stop is None or self.effects < self.stop

    def carry_out(self, effects: Sequence[object]) -> None:
        """In order, until the power goes."""
        for effect in effects:
            if not self.alive:
                return
            self.effects += 1
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value
            elif isinstance(effect, Publish):
                self.take(effect)
            elif isinstance(effect, Train):
                self.tell(self.trained(effect))

    def take(self, effect: Publish) -> None:
        """What the aggregator gets."""
        body = codec.unpack(Envelope, effect.payload).body
        if effect.topic.endswith("/checkin"):
            found = codec.unpack(CheckIn, body)
            if self.checkin is None or found.seq >= self.checkin.seq:
                self.checkin = found
        elif effect.topic.endswith("/upload"):
            self.uploads.append((codec.unpack(Upload, body), effect.payload))
            self.check()

    def trained(self, train: Train) -> TrainingFinished:
        """Trained and masked, with other randomness every time."""
        random = entropy_of(f"life {self.effects} {len(self.secrets)}")

        def noted(count: int) -> bytes:
            drawn = random(count)
            if count == 16:
                self.secrets.append(drawn)
            return drawn

        vector = np.frombuffer(random(96), "<u2").copy()
        masked = mask_update(vector, train.roster, train.plan, ME, train.key, noted)
        made = Contribution(masked.vector, masked.boxes, masked.commitments, 500, False, 2.0, 1.0)
        return TrainingFinished(train.round, train.attempt, train.plan, made)

    def check(self) -> None:
        """What must hold whenever an upload leaves."""
        for field_name in ("transcript", "id"):
            for value in {getattr(u, field_name) for u, _ in self.uploads}:
                sent = {payload for u, payload in self.uploads if getattr(u, field_name) == value}
                assert len(sent) == 1, f"two different uploads under one {field_name}"
        assert not any(s in value for s in self.secrets for value in self.disk.values()), "a mask's seed on the disk"
        kept = {k: v for k, v in self.disk.items() if "committee/" not in k}
        used = [k for k in self.keys if any(k in v for v in kept.values())]
        assert len(used) <= 1, "keys of rounds that are over are on the disk"

    def roster(self, attempt: int) -> Roster | None:
        """The roster with its newest key, if it checked in."""
        if self.checkin is None:
            return None
        found = self.checkin
        own = Member(
            device=ME, epk=found.epk, seq=found.seq, certificate=found.certificate, offer=found.offer, weight=1
        )
        others = [person(f"gw-{i:03}", key=attempt) for i in range(8) if f"gw-{i:03}" != ME]
        helpers = [helper(f"helper-{i:02}", attempt) for i in range(5)] if self.mode == "helpers" else []
        members = sorted([own, *(p.member() for p in others)], key=lambda m: m.device)
        changes = {"beacon": CHAIN.value(1), "attempt": attempt, "members": tuple(members)}
        return make_roster(self.plan, [], helpers, **changes)

    def open(self, phase: Phase, attempt: int) -> None:
        """The aggregator says where the round is."""
        formed = phase is not Phase.CHECKIN
        state = RoundOpen(
            task=TASK,
            round=1,
            attempt=attempt,
            model=MODEL,
            model_version=0,
            plan=plan_bytes(self.plan)[1],
            phase=phase,
            checkin_until_s=NOW,
            deadline_s=NOW + 300 if formed else 0.0,
            groups=1 if formed else 0,
            beacon=CHAIN.value(1) if formed else b"",
        )
        self.tell(RoundOpened(state))

    def course(self) -> None:
        """Two attempts of a round; in each, the roster comes twice, and the receipts once."""
        for attempt in (1, 2):
            self.open(Phase.CHECKIN, attempt)
            self.open(Phase.COLLECT, attempt)
            for _ in range(2):
                roster = self.roster(attempt)
                if roster is not None:
                    self.tell(RosterReceived(roster))
            self.receipts()
            self.open(Phase.UNMASK, attempt)
        self.open(Phase.DONE, 2)

    def receipts(self) -> None:
        """For everything that came."""
        ids = {u.id for u, _ in self.uploads} | ({self.checkin.id} if self.checkin else set())
        items = tuple(ReceiptItem(id=i, outcome="accepted") for i in sorted(ids))
        if items:
            self.tell(ReceiptReceived(Receipt(device=ME, items=items)))


@pytest.mark.parametrize("mode", ["inline", "helpers"])
def test_without_a_power_cut_there_is_one_upload_an_attempt(mode: Mode) -> None:
    """The course does what it is for; in the end, no key of it is left."""
    lives = Lives(mode)
    lives.course()
    assert [u.attempt for u, _ in lives.uploads] == [1, 2]
    assert len(lives.secrets) == 2 * 1, "one seed an upload"
    in_rosters = lives.keys[: len(lives.uploads)]
    assert not any(k in value for k in in_rosters for value in lives.disk.values())


@pytest.mark.parametrize("mode", ["inline", "helpers"])
def test_power_cuts_behind_every_effect(mode: Mode) -> None:
    """Every step; then the whole course again, and once more after another cut right behind the first."""
    whole = Lives(mode)
    whole.course()
    for stop in range(whole.effects + 1):
        lives = Lives(mode)
        lives.stop = stop
        lives.course()
        for again in (2, None):
            lives.stop = None if again is None else lives.effects + again
            lives.restart()
            lives.course()
        lives.check()
        assert len({u.transcript for u, _ in lives.uploads}) <= 2


@pytest.mark.parametrize("seed", range(200))
def test_power_cuts_again_and_again(seed: int) -> None:
    """Three lives that end anywhere, and one that does not."""
    rng = np.random.default_rng(seed)
    lives = Lives("inline" if seed % 2 else "helpers")
    for _ in range(3):
        lives.stop = lives.effects + int(rng.integers(0, 45))
        lives.course()
        lives.restart()
    lives.stop = None
    lives.restart()
    lives.course()
    lives.check()
    assert {u.attempt for u, _ in lives.uploads} <= {1, 2}
