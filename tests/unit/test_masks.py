"""Masks: the same for the same seed, gone in the sum of two, like noise to everyone else."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats  # type: ignore[import-untyped]

from vedette_core.crypto import masks
from vedette_core.crypto.masks import CHUNK_BYTES, MaskExpander, RingVector

SEED, OTHER_SEED = bytes(range(16)), bytes(range(1, 17))
TRANSCRIPT, OTHER_TRANSCRIPT = hashlib.sha256(b"round 1").digest(), hashlib.sha256(b"round 2").digest()
Bits = Literal[16, 32]
CHUNK_U16 = CHUNK_BYTES // 2
"""Coordinates of a chunk of the smaller ring."""


def mask(length: int, bits: Bits, seed: bytes = SEED, transcript: bytes = TRANSCRIPT) -> RingVector:
    expander = MaskExpander(length, bits)
    vector: RingVector = np.zeros(length, expander.dtype)
    expander.add(vector, seed, transcript)
    return vector


def hkdf(seed: bytes, transcript: bytes) -> bytes:
    """HKDF-SHA256 for one block, from HMAC alone."""
    extracted = hmac.digest(transcript, seed, "sha256")
    return hmac.digest(extracted, b"vedette mask 1\x01", "sha256")


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 1000, CHUNK_U16 - 1, CHUNK_U16, CHUNK_U16 + 1, 3 * CHUNK_U16 + 5])
def test_a_mask_is_the_key_stream_in_one_piece(length: int, bits: Bits) -> None:
    size = length * bits // 8
    encryptor = Cipher(algorithms.AES(hkdf(SEED, TRANSCRIPT)), modes.CTR(bytes(16))).encryptor()
    expected = np.frombuffer(encryptor.update(bytes(size)), f"<u{bits // 8}")
    np.testing.assert_array_equal(mask(length, bits), expected)


@pytest.mark.parametrize("chunk", [4, 16, 64, 100, 1 << 20])
def test_the_stream_does_not_depend_on_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mask(1001, 32)
    monkeypatch.setattr(masks, "CHUNK_BYTES", chunk)
    np.testing.assert_array_equal(mask(1001, 32), expected)


def test_the_first_bytes_stay_what_they_are() -> None:
    """Nodes of two versions that expand differently would make sums that nobody can read."""
    assert mask(8, 16).tobytes().hex() == "b652ae9d6caa98036decf216d7b59d88"
    assert mask(4, 32).tobytes() == mask(8, 16).tobytes()


@pytest.mark.parametrize("bits", [16, 32])
def test_what_was_added_is_subtracted_and_the_ring_wraps(bits: Bits) -> None:
    expander = MaskExpander(5000, bits)
    original = np.random.default_rng(1).integers(0, 2**bits, 5000).astype(expander.dtype)
    vector: RingVector = original.copy()
    expander.add(vector, SEED, TRANSCRIPT)
    masked = [int(v) for v in vector[:100]]
    assert masked == [(int(o) + int(m)) % 2**bits for o, m in zip(original, mask(100, bits), strict=False)]
    assert any(m < int(o) for m, o in zip(masked, original, strict=False))
    expander.subtract(vector, SEED, TRANSCRIPT)
    np.testing.assert_array_equal(vector, original)


def test_an_expander_remembers_nothing_between_two_masks() -> None:
    expander = MaskExpander(CHUNK_U16 + 3, 16)
    vector: RingVector = np.zeros(CHUNK_U16 + 3, expander.dtype)
    expander.add(vector, OTHER_SEED, TRANSCRIPT)
    expander.subtract(vector, OTHER_SEED, TRANSCRIPT)
    expander.add(vector, SEED, TRANSCRIPT)
    np.testing.assert_array_equal(vector, mask(CHUNK_U16 + 3, 16))


@pytest.mark.parametrize("bits", [16, 32])
def test_masks_of_a_group_are_gone_in_its_sum(bits: Bits) -> None:
    """Every pair's mask is added by one and subtracted by the other, as in secure aggregation."""
    members, length, rng = 5, 300, np.random.default_rng(2)
    expander = MaskExpander(length, bits)
    updates = [rng.integers(0, 256, length).astype(expander.dtype) for _ in range(members)]
    uploads: list[RingVector] = [u.copy() for u in updates]
    for i in range(members):
        for j in range(i + 1, members):
            seed = hashlib.sha256(bytes([i, j])).digest()[:16]
            expander.add(uploads[i], seed, TRANSCRIPT)
            expander.subtract(uploads[j], seed, TRANSCRIPT)
    assert all(not np.array_equal(u, v) for u, v in zip(updates, uploads, strict=True))
    np.testing.assert_array_equal(np.sum(uploads, axis=0, dtype=expander.dtype), np.sum(updates, axis=0))


def test_a_part_of_a_larger_array_can_be_masked() -> None:
    expander = MaskExpander(100, 16)
    rows = np.zeros((3, 200), np.uint16)
    expander.add(rows[1, ::2], SEED, TRANSCRIPT)
    np.testing.assert_array_equal(rows[1, ::2], mask(100, 16))
    assert not rows[0].any()
    assert not rows[2].any()
    assert not rows[1, 1::2].any()


@pytest.mark.parametrize(
    "accumulator",
    [
        np.zeros(9, np.uint16),
        np.zeros(11, np.uint16),
        np.zeros((10, 1), np.uint16),
        np.zeros((), np.uint16),
        np.zeros(10, np.uint32),
        np.zeros(10, np.int16),
        np.zeros(10, ">u2"),
        np.zeros(10, np.float32),
        np.zeros(20, np.uint8),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_another_accumulator_is_refused_and_not_touched(accumulator: RingVector) -> None:
    expander = MaskExpander(10, 16)
    for change in (expander.add, expander.subtract):
        with pytest.raises(ValueError, match=r"expected <u2\(10,\)"):
            change(accumulator, SEED, TRANSCRIPT)
    assert not accumulator.any()


def test_a_read_only_accumulator_is_refused() -> None:
    accumulator = np.zeros(10, np.uint16)
    accumulator.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        MaskExpander(10, 16).add(accumulator, SEED, TRANSCRIPT)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_seed_has_128_bits(size: int) -> None:
    with pytest.raises(ValueError, match=f"seed of {size} bytes, expected 16"):
        mask(10, 16, seed=bytes(size))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_transcript_is_a_digest(size: int) -> None:
    """HKDF would take a shorter one for the same padded with zeros."""
    with pytest.raises(ValueError, match=f"transcript of {size} bytes, expected 32"):
        mask(10, 16, transcript=bytes(size))


@pytest.mark.parametrize(("length", "bits"), [(0, 16), (-1, 32), (10, 8), (10, 64), (10, 0)])
def test_there_is_no_other_ring(length: int, bits: Bits) -> None:
    with pytest.raises(ValueError, match="expected"):
        MaskExpander(length, bits)


def test_memory_does_not_grow_with_the_vector() -> None:
    small, large = MaskExpander(10, 16), MaskExpander(10**9, 32)
    assert len(small._output) < 64
    assert len(large._output) < CHUNK_BYTES + 16
    assert large._zeros.nbytes == CHUNK_BYTES


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("constant", [0, 1, 255])
def test_masked_bytes_of_a_constant_update_are_uniform(constant: int, bits: Bits) -> None:
    """Byte by byte, and each byte of a coordinate by itself: no carry and no order shows through."""
    expander = MaskExpander(200_000, bits)
    vector: RingVector = np.full(200_000, constant, expander.dtype)
    expander.add(vector, SEED, TRANSCRIPT)
    columns = vector.view(np.uint8).reshape(200_000, -1)
    for found in (columns.ravel(), *columns.T):
        assert stats.chisquare(np.bincount(found, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("seed", "transcript"),
    [(OTHER_SEED, TRANSCRIPT), (SEED, OTHER_TRANSCRIPT), (OTHER_SEED, OTHER_TRANSCRIPT), (bytes(16), TRANSCRIPT)],
)
def test_another_seed_and_another_transcript_give_unrelated_masks(seed: bytes, transcript: bytes) -> None:
    first, second = mask(100_000, 16), mask(100_000, 16, seed, transcript)
    assert stats.pearsonr(first.astype(float), second.astype(float)).pvalue > 1e-4
    # What remains of two vectors under unrelated masks is as uniform as each.
    difference = (first - second).view(np.uint8)
    assert stats.chisquare(np.bincount(difference, minlength=256)).pvalue > 1e-4


def test_a_mask_is_unrelated_to_itself_a_little_later() -> None:
    stream = mask(100_000, 16).astype(float)
    for lag in (1, 2, 8, CHUNK_U16 // 2):
        assert stats.pearsonr(stream[:-lag], stream[lag:]).pvalue > 1e-4


def test_the_same_seed_and_transcript_give_the_same_mask() -> None:
    np.testing.assert_array_equal(mask(100_000, 16), mask(100_000, 16))
    np.testing.assert_array_equal(mask(50_000, 32).view(np.uint16), mask(100_000, 16))
