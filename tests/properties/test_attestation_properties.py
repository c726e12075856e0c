"""Laws of attestation: what is written is read again, what is damaged is refused by a rule, nothing else comes out."""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from attestation_parts import (
    AK_ATTRIBUTES,
    DEVICE,
    EK_ATTRIBUTES,
    SoftTpm,
    a_claims,
    an_evidence,
    appraised,
    p256,
    public_area,
)

from vedette_core.attestation.boot_chain import boot, check_chain
from vedette_core.attestation.rules import RULES
from vedette_core.attestation.tpm_credential import TOOLS_HEADER, make_credential
from vedette_core.attestation.tpm_public import read_attestation_key, read_endorsement_key, read_public
from vedette_core.attestation.tpm_quote import check_quote_signature, read_quote
from vedette_schemas import codec
from vedette_schemas.attestation import Claims, Evidence, Passport
from vedette_schemas.errors import PeerError, RefusedError

BYTES32 = st.binary(min_size=32, max_size=32)
REGISTERS = st.dictionaries(st.integers(0, 23), BYTES32, min_size=1, max_size=24)


@given(registers=REGISTERS, extra=st.binary(max_size=64), reset_count=st.integers(0, 2**32 - 1), safe=st.integers(0, 1))
def test_a_quote_that_a_tpm_makes_is_read_as_it_is(
    registers: dict[int, bytes], extra: bytes, reset_count: int, safe: int
) -> None:
    tpm = SoftTpm(registers=registers, reset_count=reset_count, safe=safe)
    attested = tpm.attest(extra)
    found = read_quote(attested, DEVICE)
    assert (found.extra, found.reset_count, found.clock_safe) == (extra, reset_count, bool(safe))
    assert found.selection == tuple(sorted(registers))
    check_quote_signature(tpm.key.public_key(), tpm.sign(attested), attested, DEVICE)


def rule_of(call: Callable[[], object]) -> str | None:
    """The rule that refuses; None if nothing does. Any other exception is a fault."""
    try:
        call()
    except RefusedError as refused:
        return refused.rule
    return None


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The data with bytes exchanged, a part cut out, or bytes put in."""
    place = st.integers(0, len(data))
    return st.one_of(
        st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255)).map(
            lambda change: data[: change[0]] + bytes([data[change[0]] ^ change[1]]) + data[change[0] + 1 :]
        ),
        st.tuples(place, place).map(lambda cut: data[: min(cut)] + data[max(cut) :]),
        st.tuples(place, st.binary(min_size=1, max_size=8)).map(lambda put: data[: put[0]] + put[1] + data[put[0] :]),
        st.binary(max_size=200),
    )


GOOD_QUOTE = SoftTpm().attest(bytes(32))
GOOD_SIGNATURE = SoftTpm().sign(GOOD_QUOTE)


@given(data=damaged(GOOD_QUOTE))
def test_a_damaged_quote_is_refused_by_a_rule_or_no_longer_signed(data: bytes) -> None:
    tpm = SoftTpm()
    key, signature = tpm.key.public_key(), tpm.sign(GOOD_QUOTE)
    rule = rule_of(lambda: read_quote(data, DEVICE)) or rule_of(
        lambda: check_quote_signature(key, signature, data, DEVICE)
    )
    assert rule in RULES or data == GOOD_QUOTE


@pytest.mark.parametrize("length", range(len(GOOD_QUOTE)))
def test_every_beginning_of_a_quote_is_truncated(length: int) -> None:
    with pytest.raises(RefusedError) as caught:
        read_quote(GOOD_QUOTE[:length], DEVICE)
    assert caught.value.rule == "truncated"


@given(data=damaged(GOOD_SIGNATURE))
def test_a_damaged_signature_does_not_hold(data: bytes) -> None:
    key = SoftTpm().key.public_key()
    assert rule_of(lambda: check_quote_signature(key, data, GOOD_QUOTE, DEVICE)) in RULES or data == GOOD_SIGNATURE


@given(data=damaged(public_area(p256("key"), AK_ATTRIBUTES)))
def test_a_damaged_public_area_has_another_name_or_is_refused(data: bytes) -> None:
    good = read_public(public_area(p256("key"), AK_ATTRIBUTES), "key")
    rule = rule_of(lambda: read_public(data, "key"))
    assert (
        rule in RULES or read_public(data, "key").name != good.name or data == public_area(p256("key"), AK_ATTRIBUTES)
    )


@given(attributes=st.integers(0, 2**32 - 1))
@example(attributes=AK_ATTRIBUTES | 1 << 17)
@example(attributes=EK_ATTRIBUTES | 1 << 18)
def test_a_key_is_one_kind_or_the_other_and_mostly_neither(attributes: int) -> None:
    kinds = []
    area = public_area(p256("key"), attributes)
    for read, wanted in ((read_attestation_key, 1 << 18), (read_endorsement_key, 1 << 17)):
        rule = rule_of(partial(read, area, DEVICE))
        assert rule in (None, "key-kind")
        kinds += [wanted] if rule is None else []
    restricted = attributes & 0x10032 == 0x10032
    uses = attributes & (1 << 17 | 1 << 18)
    assert kinds == ([uses] if restricted and uses in (1 << 17, 1 << 18) else [])


@pytest.mark.parametrize(("curve", "kind"), [(4, 0x23), (3, 0x01), (0, 0x23)])
def test_another_curve_or_algorithm_is_another_kind_of_key(curve: int, kind: int) -> None:
    with pytest.raises(RefusedError) as caught:
        read_public(public_area(p256("key"), AK_ATTRIBUTES, curve=curve, kind=kind), "key")
    assert caught.value.rule == "key-kind"


def test_a_point_that_is_not_on_the_curve_is_no_key() -> None:
    area = public_area(p256("key"), AK_ATTRIBUTES)
    with pytest.raises(RefusedError) as caught:
        read_public(area[:-1] + bytes([area[-1] ^ 1]), "key")
    assert caught.value.rule == "key-kind"


# --- credentials: opened by what a TPM does, written a second time ---


def opened(credential: bytes, endorsement: ec.EllipticCurvePrivateKey, name: bytes) -> bytes:
    """``TPM2_ActivateCredential`` after Part 1 §24, with the library's own CFB."""
    assert credential.startswith(TOOLS_HEADER)
    rest = credential[len(TOOLS_HEADER) :]
    size = struct.unpack(">H", rest[:2])[0]
    blob, wrapped = rest[2 : 2 + size], rest[2 + size :]
    integrity, hidden = blob[2:34], blob[34:]
    (point_size,) = struct.unpack(">H", wrapped[:2])
    assert len(wrapped) == 2 + point_size
    x, y = wrapped[4:36], wrapped[38:70]
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
    shared = endorsement.exchange(ec.ECDH(), numbers.public_key())
    own = endorsement.public_key().public_numbers().x.to_bytes(32, "big")
    seed = hashlib.sha256(b"\0\0\0\1" + shared + b"IDENTITY\0" + x + own).digest()
    key = hmac.digest(seed, b"\0\0\0\1INTEGRITY\0" + (256).to_bytes(4, "big"), "sha256")
    if not hmac.compare_digest(hmac.digest(key, hidden + name, "sha256"), integrity):
        raise ValueError("integrity")
    storage = hmac.digest(seed, b"\0\0\0\1STORAGE\0" + name + (128).to_bytes(4, "big"), "sha256")[:16]
    plain, feedback = b"", bytes(16)
    for start in range(0, len(hidden), 16):
        part = hidden[start : start + 16]
        counter = Cipher(algorithms.AES(storage), modes.CTR(feedback)).encryptor()
        plain += counter.update(part)  # one block of counter mode is the same as one of feedback mode
        feedback = part.ljust(16, b"\0")
    assert plain[:2] == b"\0\x20"
    return plain[2:]


@settings(max_examples=25)
@given(secret=BYTES32, number=st.integers(1, 2**64))
def test_a_credential_is_opened_by_its_endorsement_key_for_its_attestation_key_alone(
    secret: bytes, number: int
) -> None:
    ek, ephemeral = p256(f"ek {number}"), p256(f"ephemeral {number}")
    endorsement = read_endorsement_key(public_area(ek, EK_ATTRIBUTES), DEVICE)
    name = read_attestation_key(public_area(p256("ak"), AK_ATTRIBUTES), DEVICE).name
    credential = make_credential(endorsement, name, secret, ephemeral)
    assert opened(credential, ek, name) == secret
    for other_key, other_name in ((p256("another"), name), (ek, name[:-1] + bytes([name[-1] ^ 1]))):
        with pytest.raises(ValueError, match="integrity"):
            opened(credential, other_key, other_name)


# --- boot chains ---

NAMES = st.lists(st.sampled_from(["loader", "shim", "kernel", "image"]), min_size=1, max_size=6)


@settings(max_examples=50)
@given(secret=BYTES32, names=NAMES, data=st.data())
def test_other_software_is_another_key_that_nobody_vouches_for(
    secret: bytes, names: list[str], data: st.DataObject
) -> None:
    layers = [(name, data.draw(BYTES32)) for name in names]
    made = boot(secret, layers)
    assert check_chain(made.root, made.layers, DEVICE) == made.key.public_key().public_bytes_raw()
    at = data.draw(st.integers(0, len(layers) - 1))
    changed = [(n, hashlib.sha256(d).digest() if i == at else d) for i, (n, d) in enumerate(layers)]
    other = boot(secret, changed)
    assert other.root == made.root
    assert other.key.public_key().public_bytes_raw() != made.key.public_key().public_bytes_raw()
    mixed = (*other.layers[:at], made.layers[at], *other.layers[at + 1 :])
    if mixed != other.layers and at + 1 < len(layers):
        with pytest.raises(RefusedError) as caught:
            check_chain(made.root, mixed, DEVICE)
        assert caught.value.rule == "boot-chain"


# --- messages ---


@given(data=damaged(codec.pack(an_evidence(2))))
def test_damaged_evidence_is_refused_before_it_is_believed(data: bytes) -> None:
    try:
        evidence = codec.unpack(Evidence, data)
    except PeerError:
        return
    # Certificates are the envelope's matter: what they say is looked at before.
    assert rule_of(lambda: appraised(evidence)) in RULES or appraised(evidence).claims == a_claims()


@given(data=st.one_of(damaged(codec.pack(a_claims())), st.binary(max_size=400)))
def test_claims_and_passports_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    for cls in (Claims, Passport):
        try:
            message = codec.unpack(cls, data)
        except PeerError:
            continue
        assert codec.unpack(cls, codec.pack(message)) == message
