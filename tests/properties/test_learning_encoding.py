from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.learning.encoding import (
    BLOCK,
    Encoding,
    aggregate,
    decode_mean,
    encode,
    rotation_seed,
    sum_bits,
    update_weight,
    weigh,
    weighted_sum,
)
from vedette_schemas.errors import PeerError, RefusedError

SEED = bytes(range(32))
SHAPES = ("normal", "spike", "one block", "constant", "heavy tail")


def delta_of(shape: str, dimension: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if shape == "spike":
        vector = np.zeros(dimension)
        vector[rng.integers(dimension)] = 1.0
    elif shape == "one block":
        vector = np.zeros(dimension)
        vector[:100] = rng.standard_normal(min(100, dimension))
    elif shape == "constant":
        vector = np.ones(dimension)
    elif shape == "heavy tail":
        vector = rng.standard_t(2, dimension)
    else:
        vector = rng.standard_normal(dimension)
    return vector / np.linalg.norm(vector)


@given(
    shape=st.sampled_from(SHAPES),
    dimension=st.sampled_from([1, 100, 1023, 1024, 1025, 3968, 9000]),
    clip_norm=st.floats(0.01, 50),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_one_update_comes_back_within_two_percent(shape: str, dimension: int, clip_norm: float, seed: int) -> None:
    delta = (delta_of(shape, dimension, seed) * clip_norm * 0.999).astype(np.float32)
    encoding = Encoding(dimension, clip_norm, SEED)
    update = encode(delta, encoding, np.random.default_rng(seed))
    assert update.levels.dtype == np.uint8
    assert update.levels.shape == (encoding.padded,)
    assert encoding.padded % BLOCK == 0
    assert not update.clipped
    back = aggregate(update.levels[None], np.array([1]), encoding)
    assert np.linalg.norm(back - delta) <= 0.02 * clip_norm


@given(seed=st.integers(0, 2**32), scale=st.floats(1.01, 1e6))
@settings(max_examples=20, deadline=None)
def test_a_delta_above_the_clip_norm_is_scaled_down_to_it(seed: int, scale: float) -> None:
    direction = delta_of("normal", 500, seed)
    encoding = Encoding(500, 0.5, SEED)
    update = encode((direction * 0.5 * scale).astype(np.float32), encoding, np.random.default_rng(seed))
    assert update.clipped
    assert update.norm == pytest.approx(0.5 * scale, rel=1e-3)
    back = aggregate(update.levels[None], np.array([1]), encoding)
    assert np.linalg.norm(back - 0.5 * direction) <= 0.02 * 0.5


@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_the_aggregate_is_the_weighted_mean(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    encoding = Encoding(700, 1.0, SEED)
    deltas = np.stack([delta_of("normal", 700, seed + i) * rng.random() for i in range(count)]).astype(np.float32)
    weights = rng.integers(1, 9, count)
    levels = np.stack([encode(d, encoding, rng).levels for d in deltas])
    mean = aggregate(levels, weights, encoding)
    expected = (weights[:, None] * deltas).sum(axis=0) / weights.sum()
    assert mean.dtype == np.float32
    assert np.linalg.norm(mean - expected) <= 0.02
    shuffled = rng.permutation(count)
    assert np.array_equal(mean, aggregate(levels[shuffled], weights[shuffled], encoding)), "integers sum in any order"


def test_sums_are_whole_numbers_that_masks_may_be_added_to() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, BLOCK)).astype(np.uint8)
    weights = np.array([1, 255, 7])
    total = weighted_sum(levels, weights)
    assert total.dtype == np.int64
    assert np.array_equal(total, sum(levels[i].astype(int) * int(weights[i]) for i in range(3)))
    masks = rng.integers(0, 2**32, BLOCK, dtype=np.uint64)
    ring = (weigh(levels[0], 1).astype(np.uint64) + masks) % 2**32
    assert np.array_equal((ring - masks) % 2**32, levels[0])


def test_rounding_is_unbiased() -> None:
    encoding = Encoding(64, 1.0, SEED)
    delta = delta_of("normal", 64, 1).astype(np.float32)
    rng = np.random.default_rng(2)
    levels = np.stack([encode(delta, encoding, rng).levels for _ in range(400)])
    one = aggregate(levels[:1], np.array([1]), encoding)
    many = aggregate(levels, np.ones(400, np.int64), encoding)
    assert np.linalg.norm(many - delta) < 0.15 * np.linalg.norm(one - delta)


def test_everyone_in_a_round_rotates_alike_and_the_next_round_differs() -> None:
    def seed(**changes: object) -> bytes:
        values = {
            "task": "network",
            "round_number": 3,
            "attempt": 1,
            "model": "ab" * 32,
            "plan": "cd" * 32,
            "beacon": b"b" * 32,
        }
        return rotation_seed(**{**values, **changes})  # type: ignore[arg-type]

    others = [
        seed(task="sensor"),
        seed(round_number=4),
        seed(attempt=2),
        seed(model="ac" * 32),
        seed(plan="ce" * 32),
        seed(beacon=b"c" * 32),
    ]
    assert seed() == seed()
    assert len({seed(), *others}) == 7
    delta = delta_of("normal", 50, 0).astype(np.float32)
    levels = encode(delta, Encoding(50, 1.0, seed()), np.random.default_rng(0)).levels
    wrong = aggregate(levels[None], np.array([1]), Encoding(50, 1.0, others[0]))
    assert np.linalg.norm(wrong - delta) > 0.5


class RoundHalfUp(np.random.Generator):
    """Rounds up from a half on, so that levels are determined."""

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.full(size, 0.5)


def test_the_rotation_is_its_definition_and_never_changes() -> None:
    """Participants of a round run different versions: computed here from the definition, and a golden value."""
    dimension = 1500
    delta = delta_of("heavy tail", dimension, 5).astype(np.float32)
    label = b"vedette rotation 1" + (6).to_bytes(4, "big") + b"golden"
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(label).digest(512), np.uint8)).astype(float)
    first, second = 2 * bits[:2048] - 1, 2 * bits[2048:] - 1
    hadamard = np.ones((1, 1))
    while len(hadamard) < BLOCK:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    hadamard /= 32.0
    x = np.concatenate([delta.astype(float), np.zeros(548)]) * first
    halves = hadamard @ x[:1024], hadamard @ x[1024:]
    mixed = np.stack(halves, axis=1).reshape(-1) * second
    rotated = np.concatenate([hadamard @ mixed[:1024], hadamard @ mixed[1024:]])
    limit = 4.5 / 2048**0.5
    expected = np.floor(np.clip((rotated + limit) / (2 * limit / 255), 0, 255) + 0.5)
    levels = encode(delta, Encoding(dimension, 1.0, b"golden"), RoundHalfUp(np.random.PCG64(0))).levels
    assert np.abs(levels - expected).max() <= 1, "only ties may differ"
    assert (levels != expected).mean() < 0.01

    short = np.array([0.5, -0.25, 0.125, 0, 0, 0.0625, -0.5, 0.25], np.float32)
    golden = encode(short, Encoding(8, 1.0, b"golden"), RoundHalfUp(np.random.PCG64(0))).levels
    assert golden[:12].tolist() == [148, 122, 137, 132, 135, 131, 147, 102, 129, 124, 127, 167]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_is_not_contributed(value: float) -> None:
    delta = np.zeros(20, np.float32)
    delta[7] = value
    with pytest.raises(RefusedError, match="found 1 of 20 values that are not finite"):
        encode(delta, Encoding(20, 1.0, SEED), np.random.default_rng(0))


def test_what_cannot_be_a_sum_of_updates_is_refused() -> None:
    encoding = Encoding(20, 1.0, SEED)
    good = encode(np.zeros(20, np.float32), encoding, np.random.default_rng(0)).levels
    with pytest.raises(PeerError, match="k ≥ 1"):
        weighted_sum(np.zeros((0, BLOCK), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(PeerError, match="with 2 weights"):
        weighted_sum(good[None], np.array([1, 1]))
    with pytest.raises(PeerError, match="found weight 0"):
        weighted_sum(good[None], np.array([0]))
    with pytest.raises(PeerError, match="found levels of type int16"):
        weigh(good.astype(np.int16), 1)  # type: ignore[arg-type]
    with pytest.raises(PeerError, match="expected \\(1024,\\)"):
        decode_mean(np.zeros(10, np.int64), 1, encoding)
    with pytest.raises(PeerError, match="expected 0 to 510"):
        decode_mean(np.full(BLOCK, 511, np.int64), 2, encoding)
    with pytest.raises(PeerError, match="expected 0 to 0"):
        decode_mean(np.zeros(BLOCK, np.int64), 0, encoding)
    with pytest.raises(ValueError, match="expected \\(20,\\)"):
        encode(np.zeros(21, np.float32), encoding, np.random.default_rng(0))


@pytest.mark.parametrize(("examples", "weight"), [(0, 1), (1, 1), (499, 1), (1500, 3), (10**9, 8)])
def test_no_claim_of_examples_passes_the_largest_weight(examples: int, weight: int) -> None:
    assert update_weight(examples, examples_reference=500, weight_max=8) == weight


def test_the_ring_is_wide_enough_for_the_largest_sum() -> None:
    assert [sum_bits(w) for w in (1, 256, 257, 258, 32 * 8)] == [16, 16, 16, 32, 16]
    assert 257 * 255 == 2**16 - 1
