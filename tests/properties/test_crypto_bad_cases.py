"""Keys, boxes and key streams that a peer could send to do harm, and the published vectors, through our own functions.

The cases are of the kinds that Wycheproof collects; they are computed here, with a curve of our own.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_curve25519 import P, is_on_montgomery_curve, ladder, small_order_points, x25519

from vedette_core.crypto.agreement import BOX_OVERHEAD, derive, key_pair, open_box, seal_box, shared_secret
from vedette_core.crypto.masks import MaskExpander, RingVector
from vedette_schemas.errors import PeerError

TOP_BIT = 1 << 255


def little(number: int) -> bytes:
    return number.to_bytes(32, "little")


def agreed(private: bytes, public: bytes) -> bytes | None:
    """The secret, or None where the key was refused for the declared reason."""
    try:
        return shared_secret(private, public)
    except PeerError as refused:
        reason = refused.reason
    assert reason == "key"
    return None


# --- X25519 -----------------------------------------------------------------------------------------------------------

SMALL_ORDER = sorted({(1 + y) * pow(1 - y, -1, P) % P for _, y in small_order_points()[1:]} | {0, P - 1})
"""On the curve the u of orders 2, 4 and 8, on the twist -1, of order 4; 0 also stands for both neutral elements."""
SMALL_ORDER_ENCODINGS = [
    little(u + extra + top) for u in SMALL_ORDER for extra in (0, P) if u + extra < 2**255 for top in (0, TOP_BIT)
]
PRIVATES = [bytes(32), b"\xff" * 32, bytes(range(32)), little(1), little(TOP_BIT), little(8), little(P)]
"""The clamped ones differ by much less than these."""


def test_the_small_orders_are_five_and_have_fourteen_encodings() -> None:
    assert [u for u in SMALL_ORDER if ladder(8, u) != 0] == []
    assert len(SMALL_ORDER) == 5
    assert len(set(SMALL_ORDER_ENCODINGS)) == 14
    assert "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800" in {
        e.hex() for e in SMALL_ORDER_ENCODINGS
    }


@pytest.mark.parametrize("public", SMALL_ORDER_ENCODINGS, ids=bytes.hex)
def test_a_point_of_small_order_is_refused(public: bytes) -> None:
    for private in PRIVATES:
        assert x25519(private, public) == bytes(32)
        with pytest.raises(PeerError, match="small order") as refused:
            shared_secret(private, public)
        assert refused.value.reason == "key"


@pytest.mark.parametrize("u", range(2, 19))
@pytest.mark.parametrize("top", [0, TOP_BIT])
def test_other_encodings_that_are_not_canonical_mean_what_the_rfc_says(u: int, top: int) -> None:
    private = PRIVATES[2]
    canonical = agreed(private, little(u))
    assert canonical == x25519(private, little(u))
    assert canonical is not None
    assert agreed(private, little(u + P + top)) == canonical
    assert agreed(private, little(u + top)) == canonical


def test_a_point_of_the_twist_gives_what_the_ladder_gives() -> None:
    twisted = [u for u in range(2, 60) if not is_on_montgomery_curve(u)]
    assert len(twisted) > 20
    for u, private in itertools.product(twisted[:8], PRIVATES):
        assert agreed(private, little(u)) == x25519(private, little(u))


@pytest.mark.parametrize(
    "u",
    [
        2**255 - 1,
        P - 2,
        P - 3,
        9,
        16,
        2**252,
        2**254,
        int("0f" * 31, 16),
        int("ffffffff00000000" * 3, 16),
        sum(1 << bit for bit in range(0, 255, 51)),
        sum(1 << bit for bit in range(25, 255, 51)),
        (1 << 204) - 1,
    ],
)
def test_carries_at_the_edges_of_limbs(u: int) -> None:
    for private in PRIVATES:
        assert agreed(private, little(u)) == x25519(private, little(u))


@given(private=st.binary(min_size=32, max_size=32), public=st.binary(min_size=32, max_size=32))
@example(private=bytes(32), public=bytes(32))
@settings(max_examples=150)
def test_any_two_keys_agree_on_the_reference_or_not_at_all(private: bytes, public: bytes) -> None:
    expected = x25519(private, public)
    assert agreed(private, public) == (expected if any(expected) else None)
    assert key_pair(private).public == x25519(private, little(9))


@given(public=st.binary(max_size=80).filter(lambda p: len(p) != 32))
def test_bytes_of_another_length_are_refused(public: bytes) -> None:
    assert agreed(PRIVATES[2], public) is None


@pytest.mark.parametrize(
    ("scalar", "u", "expected"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_of_rfc_7748(scalar: str, u: str, expected: str) -> None:
    """§5.2; the second u has its top bit set."""
    assert shared_secret(bytes.fromhex(scalar), bytes.fromhex(u)).hex() == expected
    assert x25519(bytes.fromhex(scalar), bytes.fromhex(u)).hex() == expected


def test_x25519_of_rfc_7748_a_thousand_times() -> None:
    """§5.2, the test by iteration."""
    k = u = little(9)
    for count in range(1000):
        k, u = shared_secret(k, u), k
        if count == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_the_exchange_of_rfc_7748() -> None:
    """§6.1."""
    alice = key_pair(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = key_pair(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert shared_secret(alice.private, bob.public).hex() == shared_secret(bob.private, alice.public).hex() == secret


# --- HKDF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf_of_rfc_5869(secret: bytes, salt: bytes, info: bytes, expected: str) -> None:
    """Appendix A, the three cases of SHA-256."""
    assert derive(secret, salt, info, len(expected) // 2).hex() == expected


# --- AES-256-GCM ------------------------------------------------------------------------------------------------------

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NONCE, OTHER_NONCE = bytes(range(12)), bytes(range(1, 13))
BOX = seal_box(KEY, b"share", b"th|dev-1|3", NONCE)
OTHER_BOX = seal_box(KEY, b"share", b"th|dev-1|3", OTHER_NONCE)


def refuses(key: bytes, box: bytes, associated: bytes) -> bool:
    """Whether it does not open, for the declared reason; every other fault ends the test."""
    try:
        open_box(key, box, associated)
    except PeerError as refused:
        reason = refused.reason
    else:
        return False
    assert reason == "box"
    return True


def test_no_bit_of_a_box_can_be_changed() -> None:
    assert open_box(KEY, BOX, b"th|dev-1|3") == b"share"
    for place, bit in itertools.product(range(len(BOX)), range(8)):
        changed = bytearray(BOX)
        changed[place] ^= 1 << bit
        assert refuses(KEY, bytes(changed), b"th|dev-1|3"), (place, bit)


def test_no_part_of_a_box_can_be_cut_off_or_added() -> None:
    for size in range(len(BOX)):
        assert refuses(KEY, BOX[:size], b"th|dev-1|3")
        assert refuses(KEY, BOX[size + 1 :], b"th|dev-1|3")
        assert refuses(KEY, BOX[:size] + BOX[size + 1 :], b"th|dev-1|3")
    for extra in (b"\x00", bytes(16), BOX):
        assert refuses(KEY, BOX + extra, b"th|dev-1|3")
        assert refuses(KEY, extra + BOX, b"th|dev-1|3")


def test_nothing_can_be_exchanged_between_two_boxes() -> None:
    body = len(BOX) - 16
    for box in (
        OTHER_NONCE + BOX[12:],
        NONCE + OTHER_BOX[12:],
        BOX[:12] + OTHER_BOX[12:body] + BOX[body:],
        BOX[:body] + OTHER_BOX[body:],
        BOX[:body] + bytes(16),
        BOX[:body] + b"\xff" * 16,
        BOX[:body] + bytes(b ^ 0xFF for b in BOX[body:]),
        BOX[:body] + BOX[:body:-1] + BOX[body : body + 1],
        bytes(12) + BOX[12:],
        BOX[12:] + BOX[:12],
    ):
        assert len(box) == len(BOX)
        assert refuses(KEY, box, b"th|dev-1|3")


@pytest.mark.parametrize(
    "associated", [b"", b"th|dev-1|4", b"th|dev-1|3\x00", b"\x00th|dev-1|3", b"th|dev-1|", b"TH|DEV-1|3", b"share"]
)
def test_a_box_belongs_to_its_associated_data(associated: bytes) -> None:
    assert refuses(KEY, BOX, associated)
    assert refuses(KEY, seal_box(KEY, b"", associated, NONCE), b"th|dev-1|3")


def test_what_is_associated_is_not_what_is_in_the_box() -> None:
    """Where one ends and the other begins is authenticated: no byte wanders over the border."""
    for cut in range(1, 5):
        moved = BOX[:12] + BOX[12 + cut :]
        assert refuses(KEY, moved, b"th|dev-1|3" + BOX[12 : 12 + cut])
        assert refuses(KEY, moved, b"th|dev-1|3" + b"share"[:cut])


def test_another_key_opens_nothing() -> None:
    assert refuses(OTHER_KEY, BOX, b"th|dev-1|3")
    assert refuses(bytes(32), BOX, b"th|dev-1|3")


def test_an_empty_box_is_one_that_was_sealed() -> None:
    assert open_box(KEY, seal_box(KEY, b"", b"", NONCE), b"") == b""
    for box in (b"", bytes(BOX_OVERHEAD - 1), bytes(BOX_OVERHEAD), b"\xff" * BOX_OVERHEAD, NONCE + bytes(16)):
        assert refuses(KEY, box, b"")


@given(box=st.binary(max_size=100), associated=st.binary(max_size=40))
def test_bytes_that_are_no_box(box: bytes, associated: bytes) -> None:
    assert refuses(KEY, box, associated)


def test_gcm_of_its_authors() -> None:
    """McGrew and Viega, "The Galois/Counter Mode of operation", appendix B, test cases 13, 14 and 16 (AES-256)."""
    zeros = bytes(12)
    assert seal_box(bytes(32), b"", b"", zeros).hex() == zeros.hex() + "530f8afbc74536b9a963b4f1c4cb738b"
    assert seal_box(bytes(32), bytes(16), b"", zeros).hex() == (
        zeros.hex() + "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plaintext = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    box = seal_box(key, plaintext, associated, nonce)
    assert box.hex() == (
        "cafebabefacedbaddecaf888522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert open_box(key, box, associated) == plaintext


# --- AES-256-CTR ------------------------------------------------------------------------------------------------------


def counter_stream(key: bytes, first: int, blocks: int) -> bytes:
    """Counter mode by hand: each counter, big-endian, through the bare block cipher."""
    counters = b"".join((first + i).to_bytes(16, "big") for i in range(blocks))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)  # the mode that shows the cipher bare


def test_counter_mode_by_hand_is_that_of_sp_800_38a() -> None:
    """F.5.5, CTR-AES256."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plaintext = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    stream = counter_stream(key, int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16), 4)
    assert bytes(p ^ s for p, s in zip(plaintext, stream, strict=True)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


@given(
    seed=st.binary(min_size=16, max_size=16),
    transcript=st.binary(min_size=32, max_size=32),
    length=st.integers(1, 4000),
    bits=st.sampled_from([16, 32]),
)
@settings(max_examples=60)
def test_a_mask_is_counter_mode_from_zero(seed: bytes, transcript: bytes, length: int, bits: int) -> None:
    expander = MaskExpander(length, 16 if bits == 16 else 32)
    vector: RingVector = np.zeros(length, expander.dtype)
    expander.subtract(vector, seed, transcript)
    expander.add(vector, seed, transcript)
    assert not vector.any()
    expander.add(vector, seed, transcript)
    size = length * bits // 8
    key = derive(seed, transcript, b"vedette mask 1")
    assert vector.tobytes() == counter_stream(key, 0, -(-size // 16))[:size]
    at_once = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))
    assert vector.tobytes() == at_once
