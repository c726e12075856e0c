"""Signatures and keys that are almost right, through the ring that every envelope is verified with.

The cases are of the kinds that Wycheproof collects. Where it matters, the rest of a signature is computed anew for the
part that is wrong, so that only a verifier that overlooks just this part would take it.
"""

from __future__ import annotations

import hashlib
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from reference_curve25519 import (
    BASE,
    NEUTRAL,
    ORDER,
    P,
    add,
    challenge,
    encode,
    encodings,
    multiply,
    point_with,
    secret_scalar,
    small_order_points,
)

from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import (
    CertificateRole,
    Issuer,
    Purpose,
    make_intermediate,
    make_leaf,
    make_root,
)
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_schemas.errors import PeerError

NOW = 1_800_000_000.0
SIGNER = Ed25519Signer.from_seed(b"a" * 32)
OTHER = Ed25519Signer.from_seed(b"b" * 32)
PUBLIC = SIGNER.public_key.public_bytes_raw()
MESSAGE = b"DSSEv1 4 body 5 hello"
SCALAR = secret_scalar(b"a" * 32)
NONCE = 0x1234567890ABCDEF1234567890ABCDEF1234567890ABCDEF
R = encode(multiply(NONCE, BASE))
SMALL_ORDER = small_order_points()
SMALL_ORDER_ENCODINGS = sorted({e for point in SMALL_ORDER for e in encodings(point)})


def signature_with(r: bytes, nonce: int, message: bytes = MESSAGE) -> bytes:
    """R as it is given, and the S that belongs to it."""
    s = (nonce + challenge(r, PUBLIC, message) * SCALAR) % ORDER
    return r + s.to_bytes(32, "little")


class Authority:
    """A site that certifies whatever bytes one calls a key."""

    def __init__(self) -> None:
        root_key, self._key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = make_root(root_key, "lab", now=NOW, serial=2**64)
        self.online = make_intermediate(
            Issuer(self.root, root_key), self._key.public_key(), "lab", now=NOW, serial=2**64 + 1
        )

    def certificate(self, public: bytes) -> bytes:
        return der(
            make_leaf(
                Issuer(self.online, self._key),
                Ed25519PublicKey.from_public_bytes(public),
                holder="dev-1",
                role=CertificateRole.DEVICE,
                site="lab",
                purpose=Purpose.SIGNING,
                now=NOW,
                serial=2**64 + 2,
            )
        )

    def ring(self) -> KeyRing:
        return KeyRing(self.root, "lab", [self.online])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def ring(authority: Authority) -> KeyRing:
    ring = authority.ring()
    ring.learn(authority.certificate(PUBLIC), NOW)
    return ring


def refuses(ring: KeyRing, signature: bytes, message: bytes = MESSAGE) -> bool:
    """Whether it does not hold, for the declared reason; every other fault ends the test."""
    try:
        ring.verify("dev-1", signature, message)
    except PeerError as refused:
        reason = refused.reason
    else:
        return False
    assert reason == "signature"
    return True


GOOD = SIGNER.sign(MESSAGE)
GOOD_S = int.from_bytes(GOOD[32:], "little")


def test_the_signatures_that_are_changed_below_hold(ring: KeyRing) -> None:
    assert encode(multiply(SCALAR, BASE)) == PUBLIC
    assert not refuses(ring, GOOD)
    assert not refuses(ring, signature_with(R, NONCE))


def test_no_bit_of_a_signature_can_be_changed(ring: KeyRing) -> None:
    for place, bit in itertools.product(range(64), range(8)):
        changed = bytearray(GOOD)
        changed[place] ^= 1 << bit
        assert refuses(ring, bytes(changed)), (place, bit)


def test_no_part_of_a_signature_can_be_cut_off_or_added(ring: KeyRing) -> None:
    for size in range(64):
        assert refuses(ring, GOOD[:size])
        assert refuses(ring, GOOD[size + 1 :])
        assert refuses(ring, GOOD[:size] + GOOD[size + 1 :])
        assert refuses(ring, GOOD[:size] + b"\x00" + GOOD[size:])
    for extra in (b"\x00", bytes(32), b"\x20" * 32, GOOD, bytes(1000)):
        assert refuses(ring, GOOD + extra)
        assert refuses(ring, extra + GOOD)
    assert refuses(ring, GOOD.hex().encode())


@pytest.mark.parametrize(
    "s",
    [
        *(GOOD_S + k * ORDER for k in range(1, 15)),
        *(GOOD_S + (1 << bit) for bit in (252, 253, 254, 255)),
        GOOD_S + P,
        ORDER - GOOD_S,
        2**256 - 1 - GOOD_S,
    ],
)
def test_s_has_one_value_and_no_other_that_is_congruent(ring: KeyRing, s: int) -> None:
    assert refuses(ring, GOOD[:32] + s.to_bytes(32, "little"))


def test_special_values_of_both_halves(ring: KeyRing) -> None:
    special_r = [*SMALL_ORDER_ENCODINGS, PUBLIC, b"\xff" * 32, *(n.to_bytes(32, "little") for n in (2, ORDER, P - 2))]
    special_s = [n.to_bytes(32, "little") for n in (0, 1, 8, ORDER - 1, ORDER, ORDER + 1, 8 * ORDER, P, 2**256 - 1)]
    for r, s in itertools.product(special_r, special_s):
        assert refuses(ring, r + s), (r.hex(), s.hex())
    for r in special_r:
        assert refuses(ring, r + GOOD[32:])
    for s in special_s:
        assert refuses(ring, GOOD[:32] + s)
    assert refuses(ring, GOOD[32:] + GOOD[:32])


def test_no_bit_of_r_can_be_changed_even_with_an_s_that_belongs_to_it(ring: KeyRing) -> None:
    """A verifier that decodes R leniently, or compares a part of it, would take these; bit 255 is the sign."""
    for bit in range(256):
        r = (int.from_bytes(R, "little") ^ 1 << bit).to_bytes(32, "little")
        assert refuses(ring, signature_with(r, NONCE)), bit
    for r in (bytes(32), b"\xff" * 32, bytes(b ^ 0xFF for b in R), R[::-1]):
        assert refuses(ring, signature_with(r, NONCE))


def test_r_with_a_part_of_small_order(ring: KeyRing) -> None:
    """Verifiers that multiply by the cofactor take these: two of them would not agree on what is signed."""
    point = multiply(NONCE, BASE)
    assert [p for p in SMALL_ORDER if p == NEUTRAL] == [NEUTRAL]
    for torsion in SMALL_ORDER[1:]:
        assert refuses(ring, signature_with(encode(add(point, torsion)), NONCE))


def test_r_of_small_order(ring: KeyRing) -> None:
    """All but the neutral element, canonically written: that is what a signer says who chose the nonce zero."""
    assert len(SMALL_ORDER_ENCODINGS) == 14
    for r in SMALL_ORDER_ENCODINGS:
        assert refuses(ring, signature_with(r, 0)) == (r != encode(NEUTRAL))


@pytest.mark.parametrize(
    "message", [b"", MESSAGE[:-1], MESSAGE + b"\x00", b"\x00" + MESSAGE, MESSAGE.upper(), MESSAGE * 2, GOOD, PUBLIC]
)
def test_a_signature_is_of_one_message(ring: KeyRing, message: bytes) -> None:
    assert refuses(ring, GOOD, message)
    assert refuses(ring, SIGNER.sign(message))
    assert not refuses(ring, SIGNER.sign(message), message)


def test_a_signature_is_of_one_key(ring: KeyRing) -> None:
    assert refuses(ring, OTHER.sign(MESSAGE))
    # As if the other one's were made for our key: R and the challenge are right, the scalar is not.
    s = (NONCE + challenge(R, PUBLIC, MESSAGE) * secret_scalar(b"b" * 32)) % ORDER
    assert refuses(ring, R + s.to_bytes(32, "little"))
    negated = (NONCE - challenge(R, PUBLIC, MESSAGE) * SCALAR) % ORDER
    assert refuses(ring, R + negated.to_bytes(32, "little"))


@pytest.mark.parametrize("flag", [0, 1])
def test_signatures_of_the_other_variants(ring: KeyRing, flag: int) -> None:
    """Ed25519ctx and Ed25519ph (RFC 8032 §5.1) are made with the same key and are not ours."""
    signed = hashlib.sha512(MESSAGE).digest() if flag else MESSAGE
    domain = b"SigEd25519 no Ed25519 collisions" + bytes([flag, 3]) + b"ctx"
    digest = hashlib.sha512(domain + R + PUBLIC + signed).digest()
    s = (NONCE + int.from_bytes(digest, "little") * SCALAR) % ORDER
    assert refuses(ring, R + s.to_bytes(32, "little"))
    assert refuses(ring, SIGNER.sign(hashlib.sha512(MESSAGE).digest()))


@pytest.mark.parametrize("y", [y for y in range(2, 20) if point_with(y) is None])
def test_a_key_that_is_not_on_the_curve_verifies_nothing(authority: Authority, y: int) -> None:
    public = y.to_bytes(32, "little")
    ring = authority.ring()
    with pytest.raises(PeerError):
        _learn_and_verify(ring, authority.certificate(public), [encode(NEUTRAL) + bytes(32), bytes(64), GOOD])


@pytest.mark.parametrize("public", SMALL_ORDER_ENCODINGS, ids=bytes.hex)
def test_a_key_of_small_order_is_not_learnt(authority: Authority, public: bytes) -> None:
    """Under such a key, one signature holds for every message, or for every second, fourth or eighth."""
    ring = authority.ring()
    with pytest.raises(PeerError):
        ring.learn(authority.certificate(public), NOW)


def _learn_and_verify(ring: KeyRing, certificate: bytes, signatures: list[bytes]) -> None:
    """Learning may refuse; where it does not, none of the signatures may hold, and the last refusal is raised."""
    ring.learn(certificate, NOW)
    assert all(refuses(ring, s) for s in signatures)
    ring.verify("dev-1", signatures[-1], MESSAGE)
