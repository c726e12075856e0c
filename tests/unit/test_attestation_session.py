"""A node's session with its verifier: what it takes in, what makes it ask again, and what it counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.machine import Effect, Publish
from vedette_core.runtime.identity import key_ring, load_node
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.attestation_session import BOOTS_KEY, AttestationSession, count_start
from vedette_device.settings import AttestationSection
from vedette_schemas.attestation import (
    ANSWER_TYPE,
    CHALLENGE_TYPE,
    EVIDENCE_TYPE,
    PASSPORT_TYPE,
    REQUEST_TYPE,
    VERIFIER_ID,
    AttestationAnswer,
    Challenge,
    Passport,
)
from vedette_schemas.codec import Message
from vedette_schemas.envelope import kind_of, seal
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.telemetry import Receipt, ReceiptItem
from vedette_schemas.topics import Topics

SITE, DEVICE, OTHER = "plant-1", "gw-01", "gw-02"
TOPICS = Topics(SITE)
NONCE = bytes(range(32))


class Hands:
    """A shell that keeps what it is told to publish, and does what only the session knows."""

    def __init__(self) -> None:
        self.published: list[bytes] = []

    async def carry_out(self, effects: Sequence[Effect], special: Callable[[Effect], Awaitable[None]]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self.published.append(effect.payload)
            elif type(effect).__name__ in ("MakeEvidence", "Attested"):
                await special(effect)


class Node:
    """A node with its session, and the aggregator's and another's keys to speak with."""

    def __init__(self, folder: Path) -> None:
        self.now = time.time()
        ca.init(folder / "ca", SITE, now=self.now)
        ca.issue(folder / "ca", "aggregator", CertificateRole.AGGREGATOR, now=self.now)
        for device in (DEVICE, OTHER):
            ca.issue(folder / "ca", device, CertificateRole.DEVICE, now=self.now)
        self.bundles = folder / "ca" / "bundles"
        node = load_node(self.bundles / DEVICE, self.now)
        ring = key_ring(node.bundle, SITE)
        for sender in ("aggregator", OTHER):
            known = load_node(self.bundles / sender, self.now)
            ring.learn(known.certificate, self.now, intermediate=known.intermediate)
        self.store = StateStore(Database(folder / "device.db"))
        self.hands, self.told = Hands(), 0
        self.session = AttestationSession(
            node, AttestationSection(enabled=True), None, TOPICS, cast(Shell, self.hands), self.store, ring, self._told
        )

    async def _told(self) -> None:
        self.told += 1

    def sealed(self, body: Message, kind: str, sender: str = "aggregator") -> bytes:
        return seal(body, kind, sender, load_node(self.bundles / sender, self.now).signer)

    async def challenged(self) -> None:
        """A challenge comes, and is answered with evidence."""
        body = Challenge(device=DEVICE, nonce=NONCE, expires_s=self.now + 120)
        await self.session.take(self.session.topic, self.sealed(body, CHALLENGE_TYPE))
        for _ in range(2400):
            if kind_of(self.hands.published[-1]) == EVIDENCE_TYPE:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("no evidence")

    def answer(self, device: str = DEVICE) -> AttestationAnswer:
        passport = Passport(
            device=device, key=bytes(32), tier=0, policy=1, bootcount=1, iat=self.now, exp=self.now + 600
        )
        sealed = seal(passport, PASSPORT_TYPE, VERIFIER_ID, load_node(self.bundles / OTHER, self.now).signer)
        return AttestationAnswer(device=device, nonce=NONCE, passport=sealed)

    async def attested(self) -> None:
        await self.session.connected()
        await self.challenged()
        await self.session.take(self.session.topic, self.sealed(self.answer(), ANSWER_TYPE))
        await asyncio.sleep(0)  # whoever waits is told beside everything else


def rejected(reason: str) -> Receipt:
    return Receipt(device=DEVICE, items=(ReceiptItem(id="ci-network-1", outcome="rejected", reason=reason),))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_it_asks_measures_and_has_a_passport(node: Node) -> None:
    asyncio.run(node.attested())
    assert [kind_of(p) for p in node.hands.published] == [REQUEST_TYPE, EVIDENCE_TYPE]
    assert node.session.passport() == node.answer().passport
    assert node.told == 1


def test_it_believes_the_aggregator_alone_and_only_what_is_for_it(node: Node) -> None:
    challenge = Challenge(device=DEVICE, nonce=NONCE, expires_s=node.now)
    elsewhere = challenge.model_copy(update={"device": OTHER})
    for topic, payload in (
        (node.session.topic, node.sealed(challenge, CHALLENGE_TYPE, OTHER)),
        (node.session.topic, node.sealed(challenge, ANSWER_TYPE)),
        (node.session.topic, node.sealed(elsewhere, CHALLENGE_TYPE)),
        (node.session.topic, node.sealed(challenge, CHALLENGE_TYPE)[:-1]),
        (node.session.topic, b"\xc1"),
        (TOPICS.rpc_down(OTHER, "attest"), node.sealed(challenge, CHALLENGE_TYPE)),
        (TOPICS.rpc_down(DEVICE, "renew"), node.sealed(challenge, CHALLENGE_TYPE)),
    ):
        with pytest.raises(PeerError):
            asyncio.run(node.session.take(topic, payload))
    assert node.hands.published == []


@pytest.mark.parametrize(
    ("reason", "asks"),
    [
        ("attestation: passport-expired: found a result until 1", True),
        ("attestation: passport-withdrawn: found newer evidence", True),
        ("attestation: passport-tier: found tier 0, expected tier 1", False),
        ("stale: found number 3", False),
    ],
)
def test_a_rejected_passport_is_asked_for_again_unless_another_would_be_the_same(
    node: Node, reason: str, asks: bool
) -> None:
    async def run() -> None:
        await node.attested()
        await node.session.heard(rejected(reason))

    asyncio.run(run())
    assert (kind_of(node.hands.published[-1]) == REQUEST_TYPE) is asks
    assert (node.session.passport() == b"") is asks


def test_starts_are_counted_and_a_broken_count_is_said(node: Node) -> None:
    assert node.store.get(BOOTS_KEY) == b"1"
    assert [count_start(node.store) for _ in range(3)] == [2, 3, 4]
    node.store.put(BOOTS_KEY, b"many")
    with pytest.raises(ConfigError, match="restore"):
        count_start(node.store)
