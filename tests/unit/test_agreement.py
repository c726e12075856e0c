"""Two sides agree on a secret, derive keys from it, and open each other's boxes."""

from __future__ import annotations

import dataclasses

import pytest

from vedette_core.crypto.agreement import (
    BOX_OVERHEAD,
    KeyPair,
    derive,
    key_pair,
    open_box,
    seal_box,
    shared_secret,
)
from vedette_schemas.errors import PeerError

ALICE, BOB, EVE = (key_pair(bytes([i]) * 32) for i in (1, 2, 3))
KEY, NONCE = b"k" * 32, b"n" * 12


def test_two_sides_agree_and_a_third_does_not() -> None:
    secret = shared_secret(ALICE.private, BOB.public)
    assert secret == shared_secret(BOB.private, ALICE.public)
    assert len(secret) == 32
    assert secret != shared_secret(EVE.private, ALICE.public)
    assert secret != shared_secret(EVE.private, BOB.public)


def test_a_key_pair_shows_its_public_half_only() -> None:
    shown = repr(ALICE)
    assert "private" not in shown
    assert repr(ALICE.private) not in shown
    assert repr(ALICE.public) in shown
    with pytest.raises(dataclasses.FrozenInstanceError):
        ALICE.private = bytes(32)  # type: ignore[misc]


def test_a_key_pair_is_determined_by_its_private_half() -> None:
    assert key_pair(ALICE.private) == ALICE == KeyPair(ALICE.private, ALICE.public)
    assert len({ALICE.public, BOB.public, EVE.public}) == 3


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_private_key_of_another_length_is_our_own_fault(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes, expected 32"):
        key_pair(bytes(size))
    with pytest.raises(ValueError, match=f"{size} bytes, expected 32"):
        shared_secret(bytes(size), BOB.public)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_public_key_of_another_length_is_the_other_sides(size: int) -> None:
    with pytest.raises(PeerError, match=f"{size} bytes, expected 32") as refused:
        shared_secret(ALICE.private, bytes(size))
    assert refused.value.reason == "key"


def test_keys_for_different_uses_have_nothing_in_common() -> None:
    derived = {
        derive(secret, salt, info)
        for secret in (b"s" * 32, b"t" * 32)
        for salt in (b"a" * 32, b"b" * 32)
        for info in (b"", b"one", b"two")
    }
    assert len(derived) == 12
    assert {len(key) for key in derived} == {32}


def test_a_shorter_key_is_the_beginning_of_a_longer_one() -> None:
    assert derive(b"s", b"salt", b"info", 100)[:16] == derive(b"s", b"salt", b"info", 16)
    assert len(derive(b"s", b"salt", b"info", 8160)) == 8160


@pytest.mark.parametrize("length", [-1, 0, 8161])
def test_a_key_has_a_length_that_hkdf_gives(length: int) -> None:
    with pytest.raises(ValueError, match=f"length of {length} bytes"):
        derive(b"s", b"salt", b"info", length)


@pytest.mark.parametrize("plaintext", [b"", b"x", b"share" * 100])
def test_a_box_opens_to_what_was_sealed(plaintext: bytes) -> None:
    box = seal_box(KEY, plaintext, b"round 7", NONCE)
    assert len(box) == len(plaintext) + BOX_OVERHEAD
    assert box[:12] == NONCE
    assert open_box(KEY, box, b"round 7") == plaintext
    assert len(plaintext) < 5 or plaintext not in box


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_box_key_has_256_bits_and_no_fewer(size: int) -> None:
    """The library would take 16 and 24 bytes."""
    with pytest.raises(ValueError, match=f"{size} bytes, expected 32"):
        seal_box(bytes(size), b"", b"", NONCE)
    with pytest.raises(ValueError, match=f"{size} bytes, expected 32"):
        open_box(bytes(size), seal_box(KEY, b"", b"", NONCE), b"")


@pytest.mark.parametrize("size", [0, 8, 11, 13, 16])
def test_a_nonce_has_96_bits(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes, expected 12"):
        seal_box(KEY, b"", b"", bytes(size))
