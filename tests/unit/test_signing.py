"""Signers keep their key to themselves; key rings learn only from certificates that hold."""

from __future__ import annotations

import itertools
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vedette_core.crypto import signing
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import (
    LEAF_DAYS,
    CertificateRole,
    Issuer,
    Purpose,
    make_intermediate,
    make_leaf,
    make_root,
)
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_schemas.codec import Message
from vedette_schemas.envelope import Signer, Verifier, seal, unseal
from vedette_schemas.errors import PeerError

NOW = 1_800_000_000.0
DAY_S = 86_400
SERIALS = itertools.count(2**64)


class Site:
    """A site's authority, and certificates of it."""

    def __init__(self, name: str = "lab") -> None:
        self.name = name
        root_key, online_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = make_root(root_key, name, now=NOW, serial=next(SERIALS))
        self.online = make_intermediate(
            Issuer(self.root, root_key), online_key.public_key(), name, now=NOW, serial=next(SERIALS)
        )
        self._issuer = Issuer(self.online, online_key)

    def certificate(
        self, holder: str, signer: Ed25519Signer, now: float = NOW, role: CertificateRole = CertificateRole.DEVICE
    ) -> bytes:
        return der(
            make_leaf(
                self._issuer,
                signer.public_key,
                holder=holder,
                role=role,
                site=self.name,
                purpose=Purpose.SIGNING,
                now=now,
                serial=next(SERIALS),
            )
        )

    def ring(self) -> KeyRing:
        return KeyRing(self.root, self.name, [self.online])


ALICE, BOB = Ed25519Signer.from_seed(b"a" * 32), Ed25519Signer.from_seed(b"b" * 32)


def test_the_signature_is_that_of_rfc_8032() -> None:
    """Test 1 of RFC 8032 §7.1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signer = Ed25519Signer.from_seed(seed)
    assert signer.public_key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert signer.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signer_shows_nothing_of_its_key() -> None:
    assert repr(ALICE) == "Ed25519Signer(<redacted>)"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ALICE)


def test_a_ring_verifies_who_it_has_learnt() -> None:
    site = Site()
    ring = site.ring()
    assert ring.learn(site.certificate("dev-1", ALICE), NOW).id == "dev-1"
    assert "dev-1" in ring
    assert len(ring) == 1
    ring.verify("dev-1", ALICE.sign(b"data"), b"data")
    assert ring.identity("dev-1").role is CertificateRole.DEVICE


@pytest.mark.parametrize(
    ("sender", "signature", "data", "reason"),
    [
        ("dev-1", ALICE.sign(b"data"), b"Data", "signature"),
        ("dev-1", BOB.sign(b"data"), b"data", "signature"),
        ("dev-1", b"", b"data", "signature"),
        ("dev-1", bytes(64), b"data", "signature"),
        ("dev-2", ALICE.sign(b"data"), b"data", "unknown-sender"),
        ("", ALICE.sign(b"data"), b"data", "unknown-sender"),
    ],
)
def test_a_wrong_signature_and_an_unknown_sender_are_told_apart(
    sender: str, signature: bytes, data: bytes, reason: str
) -> None:
    site = Site()
    ring = site.ring()
    ring.learn(site.certificate("dev-1", ALICE), NOW)
    with pytest.raises(PeerError) as refused:
        ring.verify(sender, signature, data)
    assert refused.value.reason == reason


def test_the_issuer_may_travel_with_the_certificate() -> None:
    site = Site()
    ring = KeyRing(site.root, "lab")
    with pytest.raises(PeerError, match="issuer"):
        ring.learn(site.certificate("dev-1", ALICE), NOW)
    ring.learn(site.certificate("dev-1", ALICE), NOW, intermediate=der(site.online))
    assert "dev-1" in ring


def test_nothing_is_learnt_from_a_chain_that_does_not_hold() -> None:
    site, foreign, elsewhere = Site(), Site(), Site("elsewhere")
    ring = site.ring()
    for certificate, intermediate in (
        (foreign.certificate("dev-1", BOB), b""),
        (foreign.certificate("dev-1", BOB), der(foreign.online)),
        (elsewhere.certificate("dev-1", BOB), der(elsewhere.online)),
        (site.certificate("dev-1", BOB, now=NOW - 8 * DAY_S), b""),
        (b"nonsense", b""),
        (b"\x00" * 4000, b""),
    ):
        with pytest.raises(PeerError):
            ring.learn(certificate, NOW, intermediate=intermediate)
    assert len(ring) == 0


def test_the_sender_and_the_role_can_be_demanded() -> None:
    site = Site()
    ring = site.ring()
    with pytest.raises(PeerError, match="expected 'dev-2'"):
        ring.learn(site.certificate("dev-1", ALICE), NOW, sender="dev-2")
    with pytest.raises(PeerError, match="expected aggregator"):
        ring.learn(site.certificate("dev-1", ALICE), NOW, role=CertificateRole.AGGREGATOR)
    assert len(ring) == 0


def test_the_newer_certificate_counts_in_whatever_order_they_come() -> None:
    site = Site()
    older, newer = site.certificate("dev-1", ALICE, NOW - DAY_S), site.certificate("dev-1", BOB, NOW)
    for order in ((older, newer), (newer, older)):
        ring = site.ring()
        for certificate in order:
            ring.learn(certificate, NOW)
        ring.verify("dev-1", BOB.sign(b"x"), b"x")
        with pytest.raises(PeerError):
            ring.verify("dev-1", ALICE.sign(b"x"), b"x")


def test_keys_end_with_their_certificates() -> None:
    site = Site()
    ring = site.ring()
    ring.learn(site.certificate("dev-1", ALICE, NOW - DAY_S), NOW)
    ring.learn(site.certificate("dev-2", BOB, NOW), NOW)
    assert ring.forget_expired(NOW + LEAF_DAYS * DAY_S - 1) == ("dev-1",)
    assert "dev-2" in ring
    ring.forget("dev-2")
    ring.forget("dev-2")
    assert len(ring) == 0


def test_a_full_ring_takes_nobody_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "SENDERS_MAX", 1)
    site = Site()
    ring = site.ring()
    ring.learn(site.certificate("dev-1", ALICE), NOW)
    ring.learn(site.certificate("dev-1", BOB), NOW)
    with pytest.raises(PeerError, match="full ring"):
        ring.learn(site.certificate("dev-2", BOB), NOW)
    later = NOW + LEAF_DAYS * DAY_S + 1
    ring.learn(site.certificate("dev-2", BOB, later), later)
    assert "dev-1" not in ring, "its certificate has ended"
    assert len(ring) == 1


def test_signer_and_ring_are_what_the_envelope_wants() -> None:
    class Body(Message):
        value: int

    site = Site()
    ring = site.ring()
    ring.learn(site.certificate("dev-1", ALICE), NOW)
    signer: Signer = ALICE
    verifier: Verifier = ring
    sealed = seal(Body(value=1), "test.body", "dev-1", signer)
    assert unseal(Body, sealed, "test.body", verifier) == (Body(value=1), "dev-1")
    with pytest.raises(PeerError):
        unseal(Body, seal(Body(value=1), "test.body", "dev-1", BOB), "test.body", verifier)
