from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.learning.encoding import (
    BLOCK,
    Bits,
    Encoding,
    aggregate,
    decode_checked,
    decode_mean,
    encode,
    rotation_seed,
    rounding_slack,
    weigh,
    weighted_sum,
)
from vedette_core.learning.rotation import rotate, rotate_back
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
@settings(max_examples=60)
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
@settings(max_examples=20)
def test_a_delta_above_the_clip_norm_is_scaled_down_to_it(seed: int, scale: float) -> None:
    direction = delta_of("normal", 500, seed)
    encoding = Encoding(500, 0.5, SEED)
    update = encode((direction * 0.5 * scale).astype(np.float32), encoding, np.random.default_rng(seed))
    assert update.clipped
    assert update.norm == pytest.approx(0.5 * scale, rel=1e-3)
    back = aggregate(update.levels[None], np.array([1]), encoding)
    assert np.linalg.norm(back - 0.5 * direction) <= 0.02 * 0.5


@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
@settings(max_examples=20)
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


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_rounding_is_unbiased(bits: Bits) -> None:
    encoding = Encoding(64, 1.0, SEED, bits)
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


class RoundOneWay(np.random.Generator):
    """Rounds everything up (0) or down (1), however often it is asked again: the worst luck there is."""

    draw = 0.0

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.full(size, self.draw)


def generator_of(luck: str, seed: int) -> np.random.Generator:
    if luck == "fair":
        return np.random.default_rng(seed)
    rng = RoundOneWay(np.random.PCG64(0))
    rng.draw = 0.0 if luck == "up" else 1.0
    return rng


def rotated_shape(shape: str, encoding: Encoding, seed: int) -> np.ndarray:
    """A delta of norm C that is a certain thing after the rotation, where the rounding sees it."""
    rng = np.random.default_rng(seed)
    half_step = encoding.step / 2
    if shape == "all alike":
        coordinates = np.full(encoding.padded, rng.choice([-1.0, 1.0]))
    elif shape == "two alike":
        coordinates = np.zeros(encoding.padded)
        coordinates[:2] = 1.0
    elif shape == "between levels":
        coordinates = rng.integers(-20, 21, encoding.padded) * 2 * half_step
    else:
        coordinates = np.abs(rng.standard_normal(encoding.padded)) + 0.1
    return rotate_back(coordinates / np.linalg.norm(coordinates) * encoding.clip_norm, encoding.seed)


@given(
    shape=st.sampled_from([*SHAPES, "all alike", "two alike", "between levels", "one sign"]),
    bits=st.sampled_from([4, 8, 16]),
    luck=st.sampled_from(["fair", "up", "down"]),
    blocks=st.integers(1, 6),
    clip_norm=st.floats(1e-6, 1e6),
    scale=st.sampled_from([0.0, 0.3, 0.999999, 1.0, 3.0, 1e6]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=250)
def test_nothing_that_is_encoded_exceeds_the_clip_norm_by_more_than_the_slack(
    shape: str, bits: Bits, luck: str, blocks: int, clip_norm: float, scale: float, seed: int
) -> None:
    encoding = Encoding(blocks * BLOCK, clip_norm, SEED, bits)
    if shape in SHAPES:
        delta = delta_of(shape, encoding.dimension, seed) * clip_norm
    else:
        delta = rotated_shape(shape, encoding, seed)
    levels = encode((delta * scale).astype(np.float32), encoding, generator_of(luck, seed)).levels
    assert levels.dtype == (np.uint16 if bits == 16 else np.uint8)
    assert levels.max() <= encoding.level_max == 2**bits - 1
    decoded = levels.astype(float) * encoding.step - encoding.limit
    assert np.linalg.norm(decoded) <= clip_norm * (1 + rounding_slack(bits)) * (1 + 1e-12)
    whole = sum((2 * int(level) - encoding.level_max) ** 2 for level in levels)
    assert whole <= encoding.centred_square_max


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bound_is_kept_by_rounding_inwards_when_chance_does_not_help(bits: Bits) -> None:
    """All coordinates alike and all rounded outwards: without the last resort this is above the bound."""
    encoding = Encoding(BLOCK, 2.0, SEED, bits)
    place = encoding.level_max / 2 * (1 + 1 / 4.5)
    assert (2 * np.ceil(place) - encoding.level_max) ** 2 * BLOCK > encoding.centred_square_max
    delta = rotate_back(np.full(BLOCK, 2.0 / BLOCK**0.5), SEED).astype(np.float32)
    levels = encode(delta, encoding, generator_of("up", 0)).levels
    assert set(levels.tolist()) == {int(np.floor(place)), int(np.ceil(place))}, "no further inwards than needed"
    largest = int(levels.max())
    spare = encoding.centred_square_max - sum((2 * int(v) - encoding.level_max) ** 2 for v in levels)
    assert 0 <= spare < (2 * largest - encoding.level_max) ** 2 - (2 * largest - 2 - encoding.level_max) ** 2
    assert np.array_equal(levels, encode(delta, encoding, generator_of("up", 1)).levels)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_slack_is_what_its_proof_asks_for(bits: Bits) -> None:
    towards_the_centre = 1 + Fraction(81, 4) / (2**bits - 1) ** 2
    assert towards_the_centre < (1 + Fraction(rounding_slack(bits))) ** 2
    assert rounding_slack(bits) <= {4: 0.05, 8: 1e-3, 16: 1e-3}[bits]


@given(
    bits=st.sampled_from([4, 8, 16]),
    shape=st.sampled_from(SHAPES),
    dimension=st.sampled_from([1, 1000, 4260]),
    clip_norm=st.floats(1e-3, 1e3),
    norm=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_every_coordinate_is_rounded_to_a_level_next_to_it(
    bits: Bits, shape: str, dimension: int, clip_norm: float, norm: float, seed: int
) -> None:
    encoding = Encoding(dimension, clip_norm, SEED, bits)
    delta = (delta_of(shape, dimension, seed) * clip_norm * norm).astype(np.float32)
    levels = encode(delta, encoding, np.random.default_rng(seed)).levels
    padded = np.zeros(encoding.padded)
    padded[:dimension] = delta
    place = (rotate(padded, SEED) + encoding.limit) / encoding.step
    assert np.abs(levels - np.clip(place, 0, encoding.level_max)).max() < 1.001
    if bits == 16 and np.abs(place - encoding.level_max / 2).max() < encoding.level_max / 2:
        back = aggregate(levels[None], np.array([1]), encoding)
        assert np.linalg.norm(back - delta) <= 1e-4 * clip_norm


@pytest.mark.parametrize("dimension", [4260, 16_837, 100_000])
@pytest.mark.parametrize("degrees", [1.5, 2, 3])
def test_a_heavy_tailed_update_of_eight_bits_is_good_to_two_percent(dimension: int, degrees: float) -> None:
    rng = np.random.default_rng(dimension)
    layers = np.repeat(10.0 ** rng.uniform(-4, 0, 10), -(-dimension // 10))[:dimension]
    delta = rng.standard_t(degrees, dimension) * layers
    delta = (delta / np.linalg.norm(delta)).astype(np.float32)
    encoding = Encoding(dimension, 1.0, SEED)
    back = aggregate(encode(delta, encoding, rng).levels[None], np.array([1]), encoding)
    assert np.linalg.norm(back - delta) <= 0.02
    largest = float(np.abs(delta).max())
    plain = np.rint((delta + largest) / (2 * largest / 255)) * (2 * largest / 255) - largest
    assert np.linalg.norm(back - delta) < np.linalg.norm(plain - delta), "or the rotation would not be worth it"


@given(blocks=st.integers(1, 5), seed=st.binary(max_size=40), number=st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_rotation_keeps_norms_and_can_be_undone(blocks: int, seed: bytes, number: int) -> None:
    vector = np.random.default_rng(number).standard_normal(blocks * BLOCK)
    for kind, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        rotated = rotate(vector.astype(kind), seed)
        assert rotated.dtype == kind
        assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector), rel=tolerance)
        before = rotated.copy()
        assert np.abs(rotate_back(rotated, seed) - vector).max() <= tolerance * 10
        assert np.array_equal(rotated, before), "the argument is left alone"


def test_noise_is_apart_from_the_levels_and_of_the_scale_asked_for() -> None:
    encoding = Encoding(60_000, 1.0, SEED)
    delta = delta_of("normal", 60_000, 1).astype(np.float32)
    plain = encode(delta, encoding, np.random.default_rng(5))
    noisy = encode(delta, encoding, np.random.default_rng(5), noise_sigma=12.5)
    assert plain.noise is None
    assert noisy.noise is not None
    assert np.array_equal(plain.levels, noisy.levels), "levels stay in their range, whatever the noise"
    assert noisy.noise.shape == plain.levels.shape
    assert noisy.noise.dtype == np.int64
    assert noisy.noise.std() == pytest.approx((12.5**2 + 1 / 12) ** 0.5, rel=0.01)
    assert abs(noisy.noise.mean()) < 5 * 12.5 / 60_000**0.5
    sums = weigh(noisy.levels, 3) + noisy.noise
    shift = decode_checked(sums, 3, encoding) - decode_checked(weigh(noisy.levels, 3), 3, encoding)
    expected = rotate_back(noisy.noise * (encoding.step / 3), SEED)[:60_000]
    assert np.abs(shift - expected).max() < 1e-6, "one unit of noise is one step of an update of weight 1"
    for sigma in (-1.0, float("nan"), float("inf"), 2.0**32):
        with pytest.raises(ValueError, match="standard deviation"):
            encode(delta, encoding, np.random.default_rng(5), noise_sigma=sigma)


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
    with pytest.raises(PeerError, match="expected 0 to 30"):
        decode_mean(np.full(BLOCK, 31, np.int64), 2, Encoding(20, 1.0, SEED, 4))
    with pytest.raises(ValueError, match="of weight 1 or more"):
        decode_checked(np.zeros(BLOCK, np.int64), 0, encoding)
    with pytest.raises(ValueError, match="found 12 bits"):
        Encoding(20, 1.0, SEED, 12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected \\(20,\\)"):
        encode(np.zeros(21, np.float32), encoding, np.random.default_rng(0))
