"""Evidence of tier 2 against real TPMs (swtpm): a good quote holds, and everything that it must not be is refused."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from software_tpm import SoftwareTpm, missing

from vedette_aggregator.attestation_machine import ChallengeAsked, EvidenceReceived, PolicyTaken, VerifierMachine
from vedette_aggregator.enrolments import PASSPORT_PREFIX, WITHDRAWN, Drawn, Enrolments, read_request
from vedette_broker import ca
from vedette_core.attestation.passport import PassportCheck
from vedette_core.attestation.policy import read_policy
from vedette_core.attestation.references import references
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.machine import Count, Effect, Persist, Publish
from vedette_core.runtime.identity import key_ring, load_node
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.attester import Attester, SoftwareProof
from vedette_device.tpm import Tpm
from vedette_schemas import codec
from vedette_schemas.attestation import (
    ENROLMENT_TYPE,
    POLICY_ID,
    POLICY_TYPE,
    AttestationAnswer,
    AttestationPolicy,
    Challenge,
    Claims,
    Enrolment,
    EnrolmentRequest,
    Evidence,
    Measurement,
    binding,
)
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.topics import Topics

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")

SITE, DEVICE, OTHER = "plant-1", "gw-01", "gw-02"
PCRS = (0, 7, 10)
HANDLE = "0x81010110"
FIRMWARE = hashlib.sha256(b"firmware 1.2.3").digest()


@dataclass
class Site:
    """Two gateways with bundles, one TPM, and a verifier whose policy wants what the TPM has now."""

    tpm: SoftwareTpm
    bundles: Path
    store: StateStore
    policy: AttestationPolicy
    machine: VerifierMachine
    enrolment: Enrolment
    now: float = field(default_factory=time.time)
    boots: int = 1

    def attester(self, device: str = DEVICE) -> Attester:
        node = load_node(self.bundles / device, self.now)
        return Attester(node, Tpm(self.tpm.tcti, HANDLE, PCRS), self.boots, bytes(32))

    def key(self, device: str = DEVICE) -> bytes:
        return self.attester(device).node.signer.public_key.public_bytes_raw()

    def nonce(self, device: str = DEVICE) -> bytes:
        (challenge,) = spoken(self.machine.handle(ChallengeAsked(device), self.now), Challenge)
        return bytes(challenge.nonce)

    def evidence(
        self,
        nonce: bytes,
        device: str = DEVICE,
        claims: Callable[[Claims], Claims] = lambda c: c,
        **changes: Any,
    ) -> Evidence:
        """Real evidence of the TPM, about claims as they are or changed, with parts exchanged."""
        attester = self.attester(device)
        packed = codec.pack(claims(attester.claims(nonce)))
        fields = {
            "tier": 2,
            "claims": packed,
            "certificate": attester.node.certificate,
            "intermediate": attester.node.intermediate,
            **attester.proof.prove(binding(device, packed)),
        }
        return Evidence(**{**fields, **changes})

    def answer(self, evidence: Evidence, device: str = DEVICE, **changes: Any) -> AttestationAnswer:
        event = EvidenceReceived(device, self.key(device), evidence, changes.get("enrolment", self.enrolment))
        effects = self.machine.handle(event, self.now)
        (answer,) = spoken(effects, AttestationAnswer)
        for effect in effects:
            if isinstance(effect, Persist):
                self.store.put(effect.key, effect.value)
        assert [e.outcome for e in effects if isinstance(e, Count)] == [answer.rule or "accepted"]
        return answer

    def rule(self, evidence: Evidence, device: str = DEVICE, **changes: Any) -> str:
        """The rule that refuses evidence."""
        answer = self.answer(evidence, device, **changes)
        assert answer.passport == b""
        return answer.rule


def spoken(effects: list[Effect], cls: type[Any]) -> list[Any]:
    return [codec.unpack(cls, codec.unpack(Envelope, e.payload).body) for e in effects if isinstance(e, Publish)]


def verifier_signer() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a verifier of tests").digest()))


def enrol(site_ring: Any, node: Any, tpm: SoftwareTpm, known: Enrolments, now: float) -> Enrolment:
    """The whole way: keys in the TPM, a sealed request, a credential, what the TPM found in it."""
    device_tpm = Tpm(tpm.tcti, HANDLE, PCRS)
    ek, ak = device_tpm.make_keys()
    request = EnrolmentRequest(
        device=node.id, tier=2, certificate=node.certificate, intermediate=node.intermediate, ek_public=ek, ak_public=ak
    )
    read = read_request(seal(request, ENROLMENT_TYPE, node.id, node.signer), site_ring, now)
    drawn = Drawn(os.urandom(32), ec.generate_private_key(ec.SECP256R1()))
    credential = known.begin(read, hashlib.sha256(ek).hexdigest(), drawn, now)
    begun = known.get(node.id)
    assert begun is not None
    assert not begun.activated
    known.finish(node.id, device_tpm.open_credential(credential))
    done = known.get(node.id)
    assert done is not None
    return done


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    made = SoftwareTpm()
    try:
        made.start()
        made.extend(10, FIRMWARE)
        yield made
    finally:
        made.close()


@pytest.fixture
def site(tmp_path: Path, tpm: SoftwareTpm) -> Iterator[Site]:
    now = time.time()
    ca.init(tmp_path / "ca", SITE, now=now)
    for device in (DEVICE, OTHER):
        ca.issue(tmp_path / "ca", device, CertificateRole.DEVICE, now=now)
    aggregator = load_node(ca.issue(tmp_path / "ca", "aggregator", CertificateRole.AGGREGATOR, now=now), now)
    database = Database(tmp_path / "aggregator.db")
    store = StateStore(database)
    node = load_node(tmp_path / "ca" / "bundles" / DEVICE, now)
    enrolment = enrol(key_ring(node.bundle, SITE), node, tpm, Enrolments(store), now)
    device_tpm = Tpm(tpm.tcti, HANDLE, PCRS)
    measured = [
        *Attester(node, SoftwareProof(), 1, bytes(32)).claims(bytes(32)).measurements,
        *(Measurement(component=f"pcr/{i}", digest=value) for i, value in device_tpm.registers().items()),
    ]
    policy = AttestationPolicy(
        site=SITE,
        version=2,
        verifiers=(verifier_signer().public_key.public_bytes_raw(),),
        tier_contribute=2,
        clock_safe=True,
        references=references(measured),
    )
    machine = VerifierMachine(
        Topics(SITE), "aggregator", aggregator.signer, verifier=verifier_signer(), policy=policy, entropy=os.urandom
    )
    yield Site(tpm, tmp_path / "ca" / "bundles", store, policy, machine, enrolment, now)
    database.close()


def test_a_good_quote_holds_and_its_passport_is_good_at_check_in(site: Site) -> None:
    answer = site.answer(site.evidence(site.nonce()))
    assert answer.rule == ""
    passport = PassportCheck(site.policy).check(answer.passport, DEVICE, site.key(), "contribute", site.now + 60)
    assert (passport.device, passport.tier, passport.policy, passport.bootcount) == (DEVICE, 2, 2, 1)


def test_what_the_device_seals_is_what_the_verifier_reads(site: Site) -> None:
    sealed = site.attester().evidence(site.nonce())
    assert site.answer(codec.unpack(Evidence, codec.unpack(Envelope, sealed).body)).rule == ""


# --- the negative cases of docs/protocol.md §4, each with its own rule ---


def test_a_reused_nonce(site: Site) -> None:
    evidence = site.evidence(site.nonce())
    assert site.answer(evidence).rule == ""
    assert site.rule(evidence) == "nonce-reused"


def test_another_devices_nonce(site: Site) -> None:
    assert site.rule(site.evidence(site.nonce(OTHER))) == "nonce-device"


def test_stale_evidence(site: Site) -> None:
    evidence = site.evidence(site.nonce())
    site.now += site.policy.evidence_s + 1
    assert site.rule(evidence) == "stale"


def test_a_wrong_register(site: Site) -> None:
    site.tpm.extend(7, hashlib.sha256(b"another boot loader").digest())
    assert site.rule(site.evidence(site.nonce())) == "wrong-pcr"


def test_registers_as_they_should_be_beside_a_quote_of_what_they_are(site: Site) -> None:
    good = site.evidence(site.nonce()).pcrs
    site.tpm.extend(7, hashlib.sha256(b"another boot loader").digest())
    assert site.rule(site.evidence(site.nonce(), pcrs=good)) == "wrong-pcr"


def with_software(digest: bytes) -> Callable[[Claims], Claims]:
    def change(claims: Claims) -> Claims:
        altered = tuple(
            m.model_copy(update={"digest": digest}) if m.component == "vedette" else m for m in claims.measurements
        )
        return claims.model_copy(update={"measurements": altered})

    return change


def test_unknown_software(site: Site) -> None:
    claims = with_software(hashlib.sha256(b"altered").digest())
    assert site.rule(site.evidence(site.nonce(), claims=claims)) == "unknown-software"


def test_denied_software_and_a_denied_register(site: Site) -> None:
    own = next(m.digest for m in site.attester().claims(bytes(32)).measurements if m.component == "vedette")
    for bad in (own, Tpm(site.tpm.tcti, HANDLE, PCRS).registers()[10]):
        denying = site.policy.model_copy(update={"denied": (bad,)})
        site.machine.handle(PolicyTaken(denying), site.now)
        assert site.rule(site.evidence(site.nonce())) == "denied-software"


def test_debugging(site: Site) -> None:
    claims = site.evidence(site.nonce(), claims=lambda c: c.model_copy(update={"dbgstat": 0}))
    assert site.rule(claims) == "debug"


def test_an_attestation_key_that_was_not_activated(site: Site) -> None:
    begun = site.enrolment.model_copy(update={"activated": False})
    assert site.rule(site.evidence(site.nonce()), enrolment=begun) == "not-activated"
    assert site.rule(site.evidence(site.nonce()), enrolment=None) == "not-enrolled"


def test_a_truncated_quote_and_trailing_bytes(site: Site) -> None:
    quote = site.evidence(site.nonce()).quote
    for changed, rule in ((quote[:-1], "truncated"), (quote + b"\0", "trailing"), (quote[:3], "truncated")):
        assert site.rule(site.evidence(site.nonce(), quote=changed)) == rule


def signed_by_the_tpm(tpm: SoftwareTpm, data: bytes) -> bytes | None:
    """What a restricted key signs of data from outside; None if the TPM refuses."""
    (tpm.folder / "data").write_bytes(data)
    tpm.tool("tpm2_hash", "-C", "o", "-g", "sha256", "-o", "digest", "-t", "ticket", "data")
    done = tpm.tool(
        "tpm2_sign", "-Q", "-c", HANDLE, "-g", "sha256", "-d", "-t", "ticket", "-o", "signed", "digest", check=False
    )
    tpm.tool("tpm2_flushcontext", "-t")
    return (tpm.folder / "signed").read_bytes() if done.returncode == 0 else None


def test_a_wrong_magic_that_the_attestation_key_really_signed(site: Site) -> None:
    """A restricted key signs what it is given unless it looks as if the TPM had made it: the magic is what counts."""
    nonce = site.nonce()
    forged = b"\xffTCH" + site.evidence(nonce).quote[4:]
    signature = signed_by_the_tpm(site.tpm, forged)
    assert signature is not None
    assert site.rule(site.evidence(nonce, quote=forged, quote_signature=signature)) == "magic"
    assert signed_by_the_tpm(site.tpm, b"\xffTCG" + forged[4:]) is None, "the TPM lets nobody forge a quote"


def test_a_wrong_type_that_the_attestation_key_really_signed(site: Site) -> None:
    """A certification of a key carries caller's data, too: with the same binding it is no quote."""
    nonce = site.nonce()
    packed = codec.pack(site.attester().claims(nonce))
    site.tpm.tool("tpm2_createprimary", "-Q", "-C", "o", "-c", "primary.ctx")
    site.tpm.tool("tpm2_flushcontext", "-t")
    site.tpm.tool(
        "tpm2_certify", "-Q", "-c", "primary.ctx", "-C", HANDLE, "-g", "sha256", "-o", "certify", "-s", "certify.sig"
    )
    site.tpm.tool("tpm2_flushcontext", "-t")
    certified = (site.tpm.folder / "certify").read_bytes()
    evidence = site.evidence(
        nonce, quote=certified, quote_signature=(site.tpm.folder / "certify.sig").read_bytes(), claims=lambda c: c
    )
    assert codec.pack(codec.unpack(Claims, evidence.claims)) == packed
    assert site.rule(evidence) == "type"


def test_a_tpm_whose_count_of_starts_went_back(site: Site) -> None:
    """Its state from before, put back: a copy of a machine, or of its flash memory."""
    site.tpm.stop()
    before = site.tpm.copied_state()
    for _ in range(2):
        site.tpm.start()
        site.tpm.stop()
    site.tpm.start()
    site.tpm.extend(10, FIRMWARE)
    assert site.answer(site.evidence(site.nonce())).rule == "", "starts that go up are good, with the same registers"
    site.tpm.stop()
    site.tpm.put_back(before)
    site.tpm.start()
    site.tpm.extend(10, FIRMWARE)
    assert site.rule(site.evidence(site.nonce())) == "boot-count"


def test_a_tpm_whose_power_was_cut(site: Site) -> None:
    """Its clock may have gone back a little, and it says so; the policy decides whether that is good enough."""
    site.tpm.stop(orderly=False)
    site.tpm.start()
    site.tpm.extend(10, FIRMWARE)
    assert site.rule(site.evidence(site.nonce())) == "clock"
    site.machine.handle(PolicyTaken(site.policy.model_copy(update={"clock_safe": False})), site.now)
    assert site.answer(site.evidence(site.nonce())).rule == ""


def test_a_node_whose_count_of_starts_went_back(site: Site) -> None:
    site.boots = 5
    assert site.answer(site.evidence(site.nonce())).rule == ""
    site.boots = 4
    assert site.rule(site.evidence(site.nonce())) == "boot-count"
    assert Enrolments(site.store).get(DEVICE) is not None
    Enrolments(site.store).forget(DEVICE)
    assert site.store.all("attest/") == {PASSPORT_PREFIX + DEVICE: WITHDRAWN}, "keys and counts are forgotten together"


def test_another_devices_result_an_expired_one_and_one_of_an_older_policy(site: Site) -> None:
    sealed = site.answer(site.evidence(site.nonce())).passport
    newer = site.policy.model_copy(update={"version": 3})
    for policy, device, later_s, rule in (
        (site.policy, OTHER, 60, "passport-device"),
        (site.policy, DEVICE, 86_400, "passport-expired"),
        (newer, DEVICE, 60, "passport-policy"),
    ):
        with pytest.raises(RefusedError) as caught:
            PassportCheck(policy).check(sealed, device, site.key(device), "contribute", site.now + later_s)
        assert caught.value.rule == rule


def test_an_older_policy_does_not_come_into_force(site: Site) -> None:
    signer = verifier_signer()
    data = seal(site.policy, POLICY_TYPE, POLICY_ID, signer)
    with pytest.raises(RefusedError) as caught:
        read_policy(data, signer.public_key.public_bytes_raw(), SITE, version_min=3)
    assert caught.value.rule == "older-policy"


def test_a_quote_of_another_device_with_the_same_tpm(site: Site) -> None:
    """The quote is over device and claims: it speaks for nobody else."""
    nonce = site.nonce(OTHER)
    theirs = site.evidence(nonce, OTHER)
    own_quote = site.attester().proof.prove(binding(DEVICE, theirs.claims))
    enrolment = site.enrolment.model_copy(update={"device": OTHER})
    assert site.rule(theirs.model_copy(update=own_quote), OTHER, enrolment=enrolment) == "binding"


# --- who may enrol ---


@pytest.fixture
def second() -> Iterator[SoftwareTpm]:
    made = SoftwareTpm()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_key_is_bound_to_its_tpm(site: Site, second: SoftwareTpm) -> None:
    """An attestation key of one TPM with the endorsement key of another: neither opens the credential."""
    first = Tpm(site.tpm.tcti, HANDLE, PCRS)
    foreign = Tpm(second.tcti, HANDLE, PCRS)
    ek, _ = first.make_keys()
    _, ak = foreign.make_keys()
    node = site.attester().node
    request = EnrolmentRequest(
        device=DEVICE, tier=2, certificate=node.certificate, intermediate=node.intermediate, ek_public=ek, ak_public=ak
    )
    drawn = Drawn(os.urandom(32), ec.generate_private_key(ec.SECP256R1()))
    known = Enrolments(site.store)
    credential = known.begin(request, hashlib.sha256(ek).hexdigest(), drawn, site.now)
    for tpm in (first, foreign):
        with pytest.raises(ConfigError, match="tpm2_activatecredential"):
            tpm.open_credential(credential)
    with pytest.raises(RefusedError) as caught:
        known.finish(DEVICE, os.urandom(32))
    assert caught.value.rule == "not-activated"
    begun = known.get(DEVICE)
    assert begun is not None
    assert not begun.activated


def test_another_endorsement_key_than_a_person_named_is_refused(site: Site) -> None:
    ek, ak = Tpm(site.tpm.tcti, HANDLE, PCRS).make_keys()
    node = site.attester().node
    request = EnrolmentRequest(
        device=DEVICE, tier=2, certificate=node.certificate, intermediate=node.intermediate, ek_public=ek, ak_public=ak
    )
    drawn = Drawn(os.urandom(32), ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(RefusedError) as caught:
        Enrolments(site.store).begin(request, "ab" * 32, drawn, site.now)
    assert caught.value.rule == "endorsement-key"
    swapped = request.model_copy(update={"ak_public": ek})
    with pytest.raises(RefusedError) as caught:
        Enrolments(site.store).begin(swapped, hashlib.sha256(ek).hexdigest(), drawn, site.now)
    assert caught.value.rule == "key-kind"


def test_a_tpm_that_is_not_there_is_the_operators_to_mend(tmp_path: Path) -> None:
    tpm = Tpm(f"swtpm:path={tmp_path}/nothing", HANDLE, PCRS)
    with pytest.raises(ConfigError, match="expected a TPM 2.0"):
        tpm.prove(bytes(32))
    assert replace(tpm, tcti="").tier == 2
