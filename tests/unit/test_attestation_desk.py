"""The verifier inside of the aggregator: calls of devices, passports at check-in, policies that come and go."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from attestation_parts import a_claims, a_policy, digest
from cryptography import x509

from vedette_aggregator.attestation_desk import POLICY_KEY, AttestationDesk
from vedette_aggregator.attestation_keys import load_public, load_signer, make_key
from vedette_aggregator.claimed_identity import learn
from vedette_aggregator.enrolments import PASSPORT_PREFIX, WITHDRAWN, Enrolments
from vedette_aggregator.revocation_watch import RevocationWatch
from vedette_aggregator.settings import AttestationSection
from vedette_broker import ca
from vedette_broker.ca_revocation import revoke
from vedette_core.attestation.passport import issue_passport
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.machine import Count, Effect, Publish
from vedette_core.runtime.identity import NodeIdentity, key_ring, load_node
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas import codec
from vedette_schemas.attestation import (
    ANSWER_TYPE,
    CHALLENGE_TYPE,
    EVIDENCE_TYPE,
    POLICY_ID,
    POLICY_TYPE,
    REQUEST_TYPE,
    STATEMENT_TYPE,
    AggregatorStatement,
    AttestationAnswer,
    AttestationRequest,
    Challenge,
    Evidence,
)
from vedette_schemas.envelope import kind_of, seal, unseal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.round import CheckIn, checkin_id
from vedette_schemas.topics import Topics

SITE, DEVICE, OTHER = "plant-1", "gw-01", "gw-02"
TOPICS = Topics(SITE)


class Hands:
    """A shell that keeps what it is told to publish and count."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.published: list[Publish] = []
        self.counted: list[str] = []

    async def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self.published.append(effect)
            elif isinstance(effect, Count):
                self.counted.append(effect.outcome)
            elif hasattr(effect, "key"):
                self._store.put(effect.key, effect.value)


class Office:
    """A desk with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, time.time()
        ca.init(folder / "ca", SITE, now=self.now)
        roles = {
            DEVICE: CertificateRole.DEVICE,
            OTHER: CertificateRole.DEVICE,
            "aggregator": CertificateRole.AGGREGATOR,
        }
        for holder, role in roles.items():
            ca.issue(folder / "ca", holder, role, now=self.now)
        for name in ("policy.key", "verifier.key", "other.key"):
            make_key(folder / name)
        self.store = StateStore(Database(folder / "state" / "aggregator.db"))
        self.hands = Hands(self.store)
        self.put_policy()

    def node(self, holder: str = DEVICE) -> NodeIdentity:
        return load_node(self.folder / "ca" / "bundles" / holder, self.now)

    def policy(self, **changes: Any) -> Any:
        changes = {"verifiers": (load_public(self.folder / "verifier.key.pub"),), **changes}
        return a_policy(**changes)

    def put_policy(self, by: str = "policy.key", **changes: Any) -> None:
        sealed = seal(self.policy(**changes), POLICY_TYPE, POLICY_ID, load_signer(self.folder / by))
        path = self.folder / "attestation.policy"
        path.write_bytes(sealed)
        # Two writes within a tick of the file system's clock are told apart by nothing else.
        os.utime(path, ns=(0, time.monotonic_ns()))

    def section(self, **changes: Any) -> AttestationSection:
        fields = {
            "policy": self.folder / "attestation.policy",
            "policy_key": self.folder / "policy.key.pub",
            "verifier_key": self.folder / "verifier.key",
        }
        return AttestationSection(**{**fields, **changes})

    def desk(self, **changes: Any) -> AttestationDesk:
        node, shell = self.node("aggregator"), cast(Shell, self.hands)
        ring = key_ring(node.bundle, SITE)
        return AttestationDesk(self.section(**changes), node, TOPICS, shell, self.store, ring)

    def take(self, desk: AttestationDesk, payload: bytes, device: str = DEVICE) -> None:
        parsed = TOPICS.parse(TOPICS.rpc_up(device, "attest"))
        asyncio.run(desk.take(parsed, payload, self.now))

    def request(self, device: str = DEVICE, by: str = "") -> bytes:
        node, sealing = self.node(device), self.node(by or device)
        body = AttestationRequest(device=device, certificate=node.certificate, intermediate=node.intermediate)
        return seal(body, REQUEST_TYPE, sealing.id, sealing.signer)

    def evidence(self, nonce: bytes, device: str = DEVICE, **claims: Any) -> bytes:
        node = self.node(device)
        key = node.signer.public_key.public_bytes_raw()
        body = Evidence(
            tier=0,
            claims=codec.pack(a_claims(eat_nonce=nonce, ueid=device, cnf=key, **claims)),
            certificate=node.certificate,
            intermediate=node.intermediate,
        )
        return seal(body, EVIDENCE_TYPE, device, node.signer)

    def said(self) -> Challenge | AttestationAnswer:
        """The newest thing that the desk said to a device."""
        node = self.node("aggregator")
        ring = key_ring(node.bundle, SITE)
        ring.learn(node.certificate, self.now, intermediate=node.intermediate)
        payload = self.hands.published[-1].payload
        if kind_of(payload) == CHALLENGE_TYPE:
            return unseal(Challenge, payload, CHALLENGE_TYPE, ring, sender="aggregator")[0]
        return unseal(AttestationAnswer, payload, ANSWER_TYPE, ring, sender="aggregator")[0]

    def attested(self, desk: AttestationDesk, device: str = DEVICE, **claims: Any) -> AttestationAnswer:
        """A device asks and answers; returns what became of it."""
        self.take(desk, self.request(device), device)
        challenge = self.said()
        assert isinstance(challenge, Challenge)
        self.take(desk, self.evidence(challenge.nonce, device, **claims), device)
        answer = self.said()
        assert isinstance(answer, AttestationAnswer)
        return answer

    def check_in(self, passport: bytes, device: str = DEVICE, role: Any = "contribute") -> CheckIn:
        node = self.node(device)
        return CheckIn(
            id=checkin_id("network", bytes(32)),
            task="network",
            device=device,
            certificate=node.certificate,
            intermediate=node.intermediate,
            epk=bytes(32),
            offer=bytes(64),
            role=role,
            examples_bucket=7,
            feature_schema="f" * 64,
            model_version=0,
            attestation=passport,
        )


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def rule_at(desk: AttestationDesk, body: CheckIn, now: float) -> str:
    with pytest.raises(RefusedError) as caught:
        desk.admit(body, now)
    return caught.value.rule


def test_a_device_is_attested_and_admitted(office: Office) -> None:
    desk = office.desk()
    answer = office.attested(desk)
    assert answer.rule == ""
    desk.admit(office.check_in(answer.passport), office.now + 60)
    assert office.hands.counted == ["challenged", "accepted"]
    assert office.hands.published[-1].topic == TOPICS.rpc_down(DEVICE, "attest")


def test_without_a_policy_nothing_is_asked_and_nobody_is_kept_out(office: Office) -> None:
    desk = office.desk(policy=None)
    desk.admit(office.check_in(b""), office.now)
    assert desk.policy is None
    with pytest.raises(PeerError, match="no policy is set"):
        office.take(desk, office.request())


def test_a_refusal_at_check_in_is_answered_with_its_rule_in_front(office: Office) -> None:
    desk = office.desk()
    with pytest.raises(PeerError) as caught:
        asyncio.run(desk.receive(office.check_in(b""), office.now))
    assert caught.value.reason == "attestation"
    assert str(caught.value).startswith("passport-missing: found ")
    assert office.hands.counted == ["passport-missing"]


def test_what_came_of_somebody_else_is_refused(office: Office) -> None:
    desk = office.desk()
    for payload in (
        office.request(OTHER),  # on the topic of another
        office.request(DEVICE, by=OTHER),  # sealed by another
        office.request()[:-1],
        seal(a_policy(), POLICY_TYPE, DEVICE, office.node().signer),
        b"\xc1",
    ):
        with pytest.raises(PeerError):
            office.take(desk, payload)
    assert office.hands.published == []
    asyncio.run(desk.take(TOPICS.parse(TOPICS.rpc_up(DEVICE, "renew")), b"", office.now))  # the authority's
    assert office.hands.published == []


def test_a_certificate_that_ended_is_refused(office: Office) -> None:
    desk, request = office.desk(), office.request()
    office.now += 8 * 86_400
    with pytest.raises(PeerError):
        office.take(desk, request)


def test_a_certificate_that_cannot_be_read_is_a_peers_fault(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = key_ring(office.node("aggregator").bundle, SITE)

    def broken(*_: object, **__: object) -> None:
        raise x509.InvalidVersion("found version 7", 7)

    monkeypatch.setattr(ring, "learn", broken)
    with pytest.raises(PeerError) as caught:
        learn(ring, DEVICE, b"c", b"i", office.now)
    assert caught.value.reason == "certificate"


def test_the_newest_result_makes_up_for_one_that_ran_out(office: Office) -> None:
    desk = office.desk()
    first = office.attested(desk).passport
    late = office.now + 86_000
    old = office.check_in(first)
    desk.admit(old, late)
    assert rule_at(desk, old, late + 1000) == "passport-expired"
    office.now += 43_200
    second = office.attested(desk).passport
    desk.admit(old, office.now + 50_000)
    desk.admit(office.check_in(second), office.now + 50_000)
    assert rule_at(desk, office.check_in(b""), office.now) == "passport-missing", "it has to be shown all the same"
    assert rule_at(desk, office.check_in(first, OTHER), office.now) == "passport-device"


def test_refused_evidence_withdraws_what_was_there(office: Office) -> None:
    desk = office.desk()
    good = office.check_in(office.attested(desk).passport)
    desk.admit(good, office.now)
    assert office.attested(desk, dbgstat=0).rule == "debug"
    assert rule_at(desk, good, office.now) == "passport-withdrawn"
    assert office.store.get(PASSPORT_PREFIX + DEVICE) == WITHDRAWN
    assert rule_at(office.desk(), good, office.now) == "passport-withdrawn", "nor after a restart"
    assert office.attested(desk).rule == ""
    desk.admit(good, office.now)


def test_what_is_forgotten_of_a_device_makes_no_old_passport_good_again(office: Office) -> None:
    desk = office.desk()
    good = office.check_in(office.attested(desk).passport)
    assert office.attested(desk, dbgstat=0).rule == "debug"
    Enrolments(office.store).forget(DEVICE)
    assert rule_at(desk, good, office.now) == "passport-withdrawn"
    assert office.attested(desk, dbgstat=0).rule == "debug"
    desk = office.desk()
    assert rule_at(desk, good, office.now) == "passport-withdrawn", "nor after a restart"
    again = office.attested(desk, bootcount=1)
    assert again.rule == "", "it begins again with lower counts"
    desk.admit(office.check_in(again.passport), office.now)


def test_a_helper_needs_the_tier_of_helpers(office: Office) -> None:
    office.put_policy(tier_unmask=1)
    desk = office.desk()
    answer = office.attested(desk)
    desk.admit(office.check_in(answer.passport), office.now)
    assert rule_at(desk, office.check_in(answer.passport, role="unmask"), office.now) == "passport-tier"


def test_the_aggregators_own_key_makes_no_passports(office: Office) -> None:
    desk, node = office.desk(), office.node()
    key = node.signer.public_key.public_bytes_raw()
    forged = issue_passport(office.policy(), DEVICE, key, 0, 1, office.node("aggregator").signer, office.now)
    assert rule_at(desk, office.check_in(forged), office.now) == "passport-signature"


# --- certificates that are renewed, and revoked ---


def watched(office: Office) -> tuple[AttestationDesk, RevocationWatch]:
    """A desk whose ring hears of revocations, as in the service."""
    node = office.node("aggregator")
    ring = key_ring(node.bundle, SITE)
    desk = AttestationDesk(office.section(), node, TOPICS, cast(Shell, office.hands), office.store, ring)
    listed = office.folder / "ca" / "crl.pem"
    return desk, RevocationWatch(ring, office.store, node.bundle, listed, TOPICS, Metrics(AGGREGATOR_METRICS))


def test_a_renewed_certificate_keeps_its_passport(office: Office) -> None:
    desk, passport = office.desk(), b""
    before = office.node()
    passport = office.attested(desk).passport
    ca.renew(office.folder / "ca", DEVICE, now=office.now + 60)
    office.now += 61
    after = office.node()
    assert after.certificate != before.certificate, "another certificate, of the same signing key"
    assert after.signer.public_key.public_bytes_raw() == before.signer.public_key.public_bytes_raw()
    desk.admit(office.check_in(passport), office.now)
    restarted = office.desk()
    restarted.admit(office.check_in(passport), office.now)
    office.now = time.time()  # the desk's own clock is the challenge's
    assert office.attested(restarted).rule == "", "and it is attested with the new certificate"


def test_another_signing_key_needs_a_passport_of_its_own(office: Office) -> None:
    desk = office.desk()
    passport = office.attested(desk).passport
    ca.issue(office.folder / "ca", DEVICE, CertificateRole.DEVICE, now=office.now, replace=True)
    assert rule_at(desk, office.check_in(passport), office.now + 1) == "passport-key"


@pytest.mark.parametrize("renewed", [False, True], ids=["as issued", "after a renewal"])
def test_behind_a_revocation_there_is_no_challenge_no_passport_and_no_check_in(office: Office, renewed: bool) -> None:
    desk, watch = watched(office)
    passport = office.attested(desk).passport
    if renewed:
        ca.renew(office.folder / "ca", DEVICE, now=office.now)
    body, request = office.check_in(passport), office.request()
    desk.admit(body, office.now + 1)
    office.take(desk, request)
    challenge = office.said()
    assert isinstance(challenge, Challenge)
    said, evidence = len(office.hands.published), office.evidence(challenge.nonce)
    revoke(office.folder / "ca", DEVICE, RevocationReason.KEY_COMPROMISE, now=office.now + 1)
    assert watch.poll(office.now + 1)
    for payload in (request, evidence):
        with pytest.raises(PeerError) as caught:
            office.take(desk, payload)
        assert caught.value.reason == "revoked"
    assert len(office.hands.published) == said, "no challenge, and no passport for the answer to an earlier one"
    with pytest.raises(PeerError) as caught:
        desk.admit(body, office.now + 1)
    assert caught.value.reason == "revoked"
    again, _ = watched(office)
    with pytest.raises(PeerError):
        again.admit(body, office.now + 1)
    office.attested(desk, OTHER)
    desk.admit(office.check_in(cast(AttestationAnswer, office.said()).passport, OTHER), office.now + 1)


# --- policies ---


def follow(desk: AttestationDesk) -> None:
    desk._look_at = 0.0
    asyncio.run(desk.follow_policy())


def test_a_newer_policy_counts_at_once_and_asks_everybody(office: Office) -> None:
    desk = office.desk()
    old = office.check_in(office.attested(desk).passport)
    office.put_policy(version=4)
    follow(desk)
    office.now = time.time()  # the desk's own clock gave the challenge
    assert rule_at(desk, old, office.now) == "passport-policy"
    challenge = office.said()
    assert isinstance(challenge, Challenge)
    office.take(desk, office.evidence(challenge.nonce))
    desk.admit(old, office.now)
    before = len(office.hands.published)
    follow(desk)
    assert len(office.hands.published) == before, "an unchanged file asks for nothing"


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"denied": (bytes(32),)}, {"version": 9, "by": "other.key"}, {"version": 9, "site": "plant-2"}],
    ids=str,
)
def test_another_policy_leaves_the_one_in_force(
    office: Office, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk = office.desk()
    office.put_policy(**changes)
    follow(desk)
    assert desk.policy is not None
    assert desk.policy.version == 3
    assert "stays in force" in caplog.text
    (office.folder / "attestation.policy").unlink()
    follow(desk)
    assert desk.policy.version == 3


def test_an_older_policy_is_refused_after_a_restart_too(office: Office) -> None:
    office.put_policy(version=7)
    office.desk()
    office.put_policy(version=6)
    with pytest.raises(RefusedError) as caught:
        office.desk()
    assert caught.value.rule == "older-policy"


def test_another_policy_of_the_same_version_is_refused_after_a_restart_too(office: Office) -> None:
    """The passports of the first would count on, whatever the second denies."""
    office.desk()
    office.desk()
    office.put_policy(denied=(bytes(32),))
    with pytest.raises(RefusedError, match="another one of version 3") as caught:
        office.desk()
    assert caught.value.rule == "older-policy"
    office.store.put(POLICY_KEY, b"3")
    office.desk()  # a state from before digests were kept says nothing of it


def test_settings_that_cannot_work_are_said(office: Office) -> None:
    for changes, says in (
        ({"policy_key": None}, "policy_key"),
        ({"verifier_key": None}, "verifier_key"),
        ({"verifier_key": office.folder / "other.key"}, "does not list"),
        ({"policy": office.folder / "missing"}, "cannot be read"),
        ({"policy_key": office.folder / "other.key.pub"}, "signature"),
        ({"policy_key": office.folder / "verifier.key"}, "PEM public key"),
    ):
        with pytest.raises(ConfigError, match=says):
            office.desk(**changes)


# --- its own measurement ---


def test_the_aggregator_says_what_it_runs_and_claims_no_more(office: Office) -> None:
    statement = office.desk().statement()
    assert (statement.topic, statement.retain) == (TOPICS.attestation, True)
    node = office.node("aggregator")
    ring = key_ring(node.bundle, SITE)
    ring.learn(node.certificate, office.now, intermediate=node.intermediate)
    body, _ = unseal(AggregatorStatement, statement.payload, STATEMENT_TYPE, ring, sender="aggregator")
    assert (body.tier, body.evidence, body.policy, body.aggregator) == (0, b"", 3, "aggregator")
    assert {"vedette", "startup", "dependency/cryptography"} <= {m.component for m in body.measurements}
    assert digest("") not in {m.digest for m in body.measurements}
