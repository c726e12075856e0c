"""The people of a secure-aggregation benchmark: nodes that have checked in, their plan, and helpers at work.

Signatures are made and verified. What is left out is what happens once and is remembered: certificate chains
(`vedette_core.crypto.signing.KeyRing` keeps those that held).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vedette_core.crypto.agreement import KeyPair, key_pair
from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.machine import Note, Publish
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, Seated
from vedette_core.secagg.membership import Peers, PeerSource
from vedette_schemas.envelope import Signer, pre_authentication_encoding, unseal
from vedette_schemas.errors import PeerError
from vedette_schemas.round import (
    DIMENSION_MAX,
    OFFER_TYPE,
    GroupPlan,
    Member,
    Plan,
    Roster,
    TrainingPlan,
    UpdatePlan,
    group_of,
    offer_statement,
    plan_bytes,
)
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, Close, Opening
from vedette_schemas.topics import Topics

TASK: Final = "bench"
AGGREGATOR: Final = "aggregator"
TENSORS: Final = ("code", "hidden", "input", "output")
"""Activation ranges ride in the vector, as by default: those of a small autoencoder."""
CERTIFICATE_BYTES: Final = 600
"""About what an Ed25519 leaf of the site's authority has."""
CLIP_NORM: Final = 1.0
NOW: Final = 1_700_000_000.0

MODEL: Final = "0" * 64
BEACON: Final = hashlib.sha256(b"bench beacon").digest()

Clock = Callable[[], float]
Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Sizes of a plan.

    Attributes:
        members_max: largest group; fixes the ring together with `weight_max`.
        weight_max: largest weight.
        survivors_min: fewest uploads of a group.
        committee: listed helpers; the other three as in `GroupPlan`.
        bits: of a level.
        inline: whether the members themselves are the committee.
    """

    members_max: int = 32
    weight_max: int = 8
    survivors_min: int = 5
    committee: int = 15
    votes_min: int = 10
    threshold: int = 10
    corrupt_max: int = 4
    bits: Literal[4, 8, 16] = 8
    inline: bool = False


class NodeKeys(Peers, PeerSource, Protocol):
    """What a node believes signatures by, at all times and in a roster."""


class SiteKeys:
    """Everybody's verified signing keys: what a node's ring holds once it has seen the certificates."""

    def __init__(self) -> None:
        self.keys: dict[str, Ed25519PublicKey] = {}

    def fork(self) -> Self:
        """The same: certificates are not what is measured."""
        return self

    def learn(self, certificate: bytes, now: float, **_: Any) -> None:
        """The chain has held before."""

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Verify for real."""
        try:
            self.keys[sender].verify(signature, data)
        except (KeyError, InvalidSignature) as fault:
            raise PeerError(f"{sender}: found a signature that its key did not make", reason="signature") from fault


@dataclass(frozen=True, slots=True)
class Node:
    """A device or helper: its id, its signing key, and its key of this round."""

    name: str
    signer: Signer
    pair: KeyPair
    offer: bytes

    @classmethod
    def make(cls, name: str, role: str, entropy: Entropy, keys: SiteKeys) -> Self:
        """A node that has checked in."""
        signer = Ed25519Signer.from_seed(entropy(32))
        keys.keys[name] = signer.public_key
        return cls(name, signer, *check_in(name, role, signer, entropy))

    def member(self, weight: int) -> Member:
        """Its entry in a roster."""
        certificate = hashlib.shake_128(self.name.encode()).digest(CERTIFICATE_BYTES)
        return Member(
            device=self.name, epk=self.pair.public, seq=1, certificate=certificate, offer=self.offer, weight=weight
        )


def check_in(name: str, role: str, signer: Signer, entropy: Entropy) -> tuple[KeyPair, bytes]:
    """A fresh key, and the signature that makes others believe it."""
    pair = key_pair(entropy(32))
    statement = offer_statement(TASK, name, 1, pair.public, role)
    return pair, signer.sign(pre_authentication_encoding(OFFER_TYPE, name, statement))


class HelperSeat:
    """A committee member at work on one group, with its processor time."""

    def __init__(
        self, node: Node, roster: Roster, plan: Plan, keys: NodeKeys, clock: Clock = time.process_time
    ) -> None:
        self.name = node.name
        self.seconds = 0.0
        self._keys, self._clock = keys, clock
        self._machine = CommitteeMember(
            topics=Topics("site"), task=TASK, member=node.name, signer=node.signer, peers=keys
        )
        self._machine.handle(Seated(roster, plan, node.pair), NOW)

    def vote(self, close: bytes) -> bytes:
        """Its sealed vote."""
        start = self._clock()
        body, _ = unseal(Close, close, CLOSE_TYPE, self._keys, sender=AGGREGATOR)
        vote = self._say(CloseReceived(body))
        self.seconds += self._clock() - start
        return vote

    def release(self, opening: bytes) -> bytes:
        """Its sealed shares."""
        start = self._clock()
        body, _ = unseal(Opening, opening, OPENING_TYPE, self._keys, sender=AGGREGATOR)
        shares = self._say(OpeningReceived(body))
        self.seconds += self._clock() - start
        return shares

    def _say(self, event: CloseReceived | OpeningReceived) -> bytes:
        effects = self._machine.handle(event, NOW)
        said = [effect.payload for effect in effects if isinstance(effect, Publish)]
        if len(said) != 1:
            notes = [effect.text for effect in effects if isinstance(effect, Note)]
            raise AssertionError(f"{self.name} did not answer {type(event).__name__}: {notes}")
        return said[0]


def make_plan(shape: GroupShape, d: int, groups: int) -> Plan:
    """The plan of a shape. Its dimension is what one message allows at most; larger models are measured bare."""
    return Plan(
        task=TASK,
        version=1,
        feature_schema=MODEL,
        network=MODEL,
        dimension=min(d, DIMENSION_MAX),
        training=TrainingPlan(local_epochs=1, batch_size=32, learning_rate=0.01, examples_min=1),
        update=UpdatePlan(
            clip_norm=CLIP_NORM, bits=shape.bits, weight_max=shape.weight_max, examples_reference=1, tensors=TENSORS
        ),
        groups=GroupPlan(
            group_size=shape.members_max,
            members_max=shape.members_max,
            groups=groups,
            survivors_min=shape.survivors_min,
            quorum=shape.survivors_min,
            checkins_max=groups * shape.members_max,
            committee="inline" if shape.inline else "helpers",
            committee_size=shape.committee,
            votes_min=shape.votes_min,
            threshold=shape.threshold,
            corrupt_max=shape.corrupt_max,
        ),
    )


def make_roster(
    plan: Plan, gid: int, devices: Sequence[Node], weights: Sequence[int], helpers: Sequence[Node]
) -> Roster:
    """A group's roster; both lists of nodes are sorted by id."""
    return Roster(
        task=TASK,
        round=1,
        attempt=1,
        gid=gid,
        model=MODEL,
        model_version=0,
        plan=plan_bytes(plan)[1],
        beacon=BEACON,
        members=tuple(node.member(weight) for node, weight in zip(devices, weights, strict=True)),
        committee=tuple(node.member(0) for node in helpers),
        deadline_s=NOW,
    )


def ids_of_group(gid: int, groups: int, count: int) -> list[str]:
    """Device ids that the beacon puts into a group, sorted."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        name = f"device-{number}"
        if groups == 1 or group_of(BEACON, TASK, name, groups) == gid:
            found.append(name)
        number += 1
    return sorted(found)
