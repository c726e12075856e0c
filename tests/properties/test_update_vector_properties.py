"""Sums in the ring against whole numbers of Python that have no width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.learning.encoding import Bits, Encoding, Levels, aggregate, encode, rounding_slack
from vedette_core.learning.statistics_slots import (
    LOSS_MAX,
    LOSS_MIN,
    NORM_BINS,
    RANGE_BINS,
    RANGE_WIDTHS_MAX,
    LocalStatistics,
    StatisticsSum,
    merge_range_histograms,
)
from vedette_core.learning.update_vector import (
    GroupSum,
    RingArray,
    RingBits,
    VectorLayout,
    add_group_sums,
    add_ring_sums,
    add_vector,
    check_headroom,
    decode_group_mean,
    frame_sum,
    noise_margin,
    pack_vector,
    read_levels,
    ring_bits,
    unpack_sum,
    vector_from_bytes,
    zero_vector,
)
from vedette_schemas.errors import PeerError, RefusedError

TENSORS = ("dense 1", "dense 2", "output")


@dataclass(frozen=True)
class Group:
    """A group that has encoded something: its parts, and the vectors."""

    encoding: Encoding
    layout: VectorLayout
    ring: RingBits
    levels: list[Levels]
    weights: list[int]
    statistics: list[LocalStatistics]
    noise: list[np.ndarray | None]
    vectors: list[RingArray]

    def unpack(self, total: RingArray, noise_sigma: float = 0.0) -> GroupSum:
        return unpack_sum(
            total,
            sum(self.weights),
            len(self.weights),
            self.layout,
            self.encoding,
            self.ring,
            noise_sigma=noise_sigma,
        )

    def total(self) -> RingArray:
        total = zero_vector(self.layout, self.ring)
        for vector in self.vectors:
            add_vector(total, vector)
        return total


def statistics_of(rng: np.random.Generator, tensors: tuple[str, ...]) -> LocalStatistics:
    known = [t for t in tensors if rng.random() < 0.8]
    ends = {t: np.sort(rng.standard_normal(2) * 2.0 ** rng.integers(-9, 11)) for t in known}
    return LocalStatistics(
        clipped=bool(rng.random() < 0.5),
        norm=float(2.0 ** rng.uniform(-6, 6)),
        loss_before=float(10.0 ** rng.uniform(-11, 11)),
        loss_after=float(rng.choice([0.0, 1e-3, 1e9])),
        ranges={t: (float(low), float(high)) for t, (low, high) in ends.items()},
    )


@st.composite
def groups(draw: st.DrawFn, *, noise_sigma: float = 0.0, small: bool = False) -> Group:
    bits: Bits = draw(st.sampled_from([4, 8, 16]))
    level_max = 2**bits - 1
    ring: RingBits = draw(st.sampled_from([16, 32]))
    room = (2**ring - 1) // level_max if noise_sigma == 0.0 else (2**ring - 1 - 40 * int(noise_sigma + 1)) // level_max
    if room < 1:
        ring, room = 32, 2**15
    members = draw(st.integers(1, min(5 if small else 64, room)))
    heaviest = draw(st.sampled_from([min(8, room // members), room // members]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fullest = draw(st.booleans())
    weights = [heaviest if fullest else int(rng.integers(1, heaviest + 1)) for _ in range(members)]
    encoding = Encoding(int(rng.integers(1, 1025)), float(2.0 ** rng.uniform(-5, 5)), rng.bytes(8), bits)
    tensors = TENSORS[: draw(st.integers(0, 3))]
    layout = VectorLayout(encoding.padded, tensors, statistics=draw(st.booleans()))
    levels: list[Levels] = []
    statistics, noise, vectors = [], [], []
    for weight in weights:
        q = rng.integers(0, level_max + 1, encoding.padded)
        q[:64], q[64:128] = 0, level_max
        levels.append(q.astype(np.uint8) if bits <= 8 else q.astype(np.uint16))
        statistics.append(statistics_of(rng, tensors))
        share = np.rint(rng.normal(0.0, noise_sigma, encoding.padded)).astype(np.int64) if noise_sigma else None
        noise.append(share)
        vectors.append(pack_vector(levels[-1], weight, statistics[-1], layout, encoding, ring, noise=share))
    return Group(encoding, layout, ring, levels, weights, statistics, noise, vectors)


@given(group=groups(), mask_seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_sum_of_vectors_is_the_sum_of_whole_numbers(group: Group, mask_seed: int) -> None:
    rng = np.random.default_rng(mask_seed)
    total = zero_vector(group.layout, group.ring)
    masks = []
    for vector in group.vectors:
        masks.append(rng.integers(0, 2**group.ring, len(vector), dtype=vector.dtype))
        masked = vector.copy()
        add_vector(masked, masks[-1])
        travelled = vector_from_bytes(masked.tobytes(), group.layout, group.ring)
        add_vector(total, travelled)
    for mask in masks:
        np.subtract(total, mask, out=total)
    assert np.array_equal(total, group.total())
    found = group.unpack(total)

    weighted = [[w * int(v) for v in q] for q, w in zip(group.levels, group.weights, strict=True)]
    assert found.levels.dtype == np.int64
    assert found.levels.tolist() == [sum(column) for column in zip(*weighted, strict=True)]
    assert (found.weight, found.survivors) == (sum(group.weights), len(group.weights))
    assert found.clipped == sum(s.clipped for s in group.statistics)
    exact = aggregate(np.stack(group.levels), np.array(group.weights), group.encoding)
    assert np.array_equal(decode_group_mean(found, group.encoding), exact)
    assert (found.statistics is not None) == group.layout.statistics
    if found.statistics is not None:
        check_statistics(group, found.statistics)


def check_statistics(group: Group, found: StatisticsSum) -> None:
    ratios = [s.norm / group.encoding.clip_norm for s in group.statistics]
    edges = [0.0, *(2 ** (k / 2 - 3.5) for k in range(NORM_BINS - 1)), float("inf")]
    expected = [sum(edges[k] * (1 + 1e-12) < r <= edges[k + 1] * (1 + 1e-12) for r in ratios) for k in range(NORM_BINS)]
    assert found.norm_histogram.tolist() == expected
    weights = np.array(group.weights, float)
    for name in ("loss_before", "loss_after"):
        losses = np.clip([getattr(s, name) for s in group.statistics], LOSS_MIN, LOSS_MAX)
        geometric = np.exp((weights * np.log(losses)).sum() / weights.sum())
        assert getattr(found, name) == pytest.approx(geometric, rel=3.3e-4)
    for tensor in group.layout.tensors:
        counts = found.ranges[tensor]
        assert counts.shape == (2, RANGE_BINS)
        known = [s.ranges[tensor] for s in group.statistics if tensor in s.ranges]
        assert counts.sum(axis=1).tolist() == [len(known)] * 2
        assert counts[0, 0] == sum(low >= 0 for low, _ in known)
        assert counts[1, 0] == sum(high <= 0 for _, high in known)


@given(group=groups(small=True), seed=st.integers(0, 2**63), data=st.data())
@settings(max_examples=100)
def test_the_garbage_of_one_member_is_refused_whatever_its_seed(group: Group, seed: int, data: st.DataObject) -> None:
    vectors = list(group.vectors)
    liar = data.draw(st.integers(0, len(vectors) - 1))
    rng = np.random.default_rng(seed)
    vectors[liar] = rng.integers(0, 2**group.ring, len(vectors[liar]), dtype=vectors[liar].dtype)
    total = zero_vector(group.layout, group.ring)
    for vector in vectors:
        add_vector(total, vector)
    with pytest.raises(PeerError) as caught:
        group.unpack(total)
    assert caught.value.reason == "canary"
    for k, place in enumerate(group.layout.canaries()):  # a liar who knows where the canaries are
        assert k < 8
        total[place] = 0
    with pytest.raises(PeerError) as caught:
        group.unpack(total)
    assert caught.value.reason in ("weight", "limit", "statistics")


@given(group=groups(small=True), place=st.integers(0, 1023), beyond=st.integers(1, 2**31), data=st.data())
@settings(max_examples=60)
def test_a_coordinate_out_of_its_range_is_refused(group: Group, place: int, beyond: int, data: st.DataObject) -> None:
    limit = group.encoding.level_max * sum(group.weights)
    spare = 2**group.ring - 1 - limit
    total = group.total()
    if spare == 0:
        total[place] = data.draw(st.integers(0, limit))
        assert group.unpack(total).levels[place] == total[place], "a full ring has no wrong values"
        return
    total[place] = limit + 1 + beyond % spare
    with pytest.raises(PeerError) as caught:
        group.unpack(total)
    assert caught.value.reason == "limit"
    total[place] = limit
    assert group.unpack(total).levels[place] == limit
    total[place] = 0
    assert group.unpack(total).levels[place] == 0


@pytest.mark.parametrize("sigma", [0.4, 3.0, 40.0])
@given(data=st.data())
@settings(max_examples=20)
def test_noise_is_in_the_sum_exactly_and_read_with_its_sign(sigma: float, data: st.DataObject) -> None:
    group = data.draw(groups(noise_sigma=sigma, small=True))
    total = group.total()
    try:
        check_headroom(sum(group.weights), len(group.weights), group.encoding.bits, group.ring, sigma)
    except RefusedError:
        with pytest.raises(RefusedError):
            group.unpack(total, sigma)
        return
    found = group.unpack(total, sigma)
    parts = zip(group.levels, group.weights, group.noise, strict=True)
    weighted = [[w * int(v) + int(e) for v, e in zip(q, n, strict=True)] for q, w, n in parts if n is not None]
    assert found.levels.tolist() == [sum(column) for column in zip(*weighted, strict=True)]
    if sigma > 1:
        assert found.levels.min() < 0, "or the test would not show signs"
    margin = noise_margin(sigma, len(group.weights))
    limit = group.encoding.level_max * sum(group.weights)
    for value, fits in ((-margin, True), (limit + margin, True), (-margin - 1, False), (limit + margin + 1, False)):
        total[17] = value % 2**group.ring
        if fits:
            assert group.unpack(total, sigma).levels[17] == value
        elif limit + 2 * margin + 1 < 2**group.ring:
            with pytest.raises(PeerError, match="coordinates"):
                group.unpack(total, sigma)


@given(
    members=st.integers(1, 70_000),
    weight=st.integers(1, 70_000),
    bits=st.sampled_from([4, 8, 16]),
    sigma=st.sampled_from([0.0, 0.5, 100.0, 1e6]),
)
@settings(max_examples=300)
def test_the_ring_is_the_narrowest_that_holds_the_largest_sum(
    members: int, weight: int, bits: Bits, sigma: float
) -> None:
    values = members * weight * (2**bits - 1) + 1 + 2 * noise_margin(sigma, members)
    if values <= 2**16:
        assert ring_bits(members, weight, bits, sigma) == 16
    elif values <= 2**32:
        assert ring_bits(members, weight, bits, sigma) == 32
        with pytest.raises(RefusedError):
            check_headroom(members * weight, members, bits, 16, sigma)
    else:
        with pytest.raises(RefusedError) as caught:
            ring_bits(members, weight, bits, sigma)
        assert caught.value.rule == "ring"


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    bits=st.sampled_from([4, 8, 16]),
    statistics=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30)
def test_sums_of_groups_are_the_sum_of_all_their_members(
    sizes: list[int], bits: Bits, statistics: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    encoding = Encoding(700, 1.5, b"s", bits)
    layout = VectorLayout(encoding.padded, TENSORS, statistics)
    everyone = zero_vector(layout, 32)
    sums, deltas, weights = [], [], []
    for size in sizes:
        total, weight_sum = zero_vector(layout, 32), 0
        for _ in range(size):
            delta = (rng.standard_normal(700) / 20).astype(np.float32)
            weight = int(rng.integers(1, 9))
            update = encode(delta, encoding, rng)
            vector = pack_vector(update.levels, weight, statistics_of(rng, TENSORS), layout, encoding, 32)
            add_vector(total, vector)
            add_vector(everyone, vector)
            deltas.append(delta)
            weights.append(weight)
            weight_sum += weight
        sums.append(unpack_sum(total, weight_sum, size, layout, encoding, 32))
    first_before = sums[0].levels.copy()
    found = add_group_sums(iter(sums))
    expected = unpack_sum(everyone, sum(weights), sum(sizes), layout, encoding, 32)
    assert np.array_equal(sums[0].levels, first_before), "the groups' own sums stay"
    assert np.array_equal(found.levels, expected.levels)
    assert (found.weight, found.survivors, found.clipped) == (expected.weight, expected.survivors, expected.clipped)
    if statistics:
        assert found.statistics is not None
        assert expected.statistics is not None
        assert np.array_equal(found.statistics.norm_histogram, expected.statistics.norm_histogram)
        assert found.statistics.loss_before == expected.statistics.loss_before
        assert found.statistics.loss_after == expected.statistics.loss_after
        for tensor in TENSORS:
            assert np.array_equal(found.statistics.ranges[tensor], expected.statistics.ranges[tensor])
    mean = decode_group_mean(found, encoding)
    truth = np.average(np.stack(deltas), axis=0, weights=weights)
    error = {4: 0.4, 8: 0.02, 16: 0.01}[bits]
    assert np.linalg.norm(mean - truth) <= error * 1.5
    assert np.linalg.norm(mean) <= 1.5 * (1 + rounding_slack(bits)) * (1 + 1e-6), "of bounded things, a bounded mean"


MAGNITUDE = st.one_of(st.just(0.0), st.floats(2**-5.75, 256.0), st.sampled_from([0.25, 1.0, 2.0, 256.0]))


@given(known=st.lists(st.tuples(MAGNITUDE, MAGNITUDE), min_size=1, max_size=12), unknown=st.integers(0, 14))
@settings(max_examples=200)
def test_merged_ranges_are_those_of_the_ranges_themselves_but_for_a_quarter_octave(
    known: list[tuple[float, float]], unknown: int
) -> None:
    encoding = Encoding(1, 1.0, b"")
    layout = VectorLayout(encoding.padded, ("h",), statistics=True)
    levels = np.zeros(encoding.padded, np.uint8)
    total = zero_vector(layout, 16)
    for k in range(len(known) + unknown):
        ranges = {"h": (-known[k][0], known[k][1])} if k < len(known) else {}
        add_vector(total, pack_vector(levels, 1, LocalStatistics(False, 0.1, 1, 1, ranges), layout, encoding, 16))
    survivors = len(known) + unknown
    statistics = unpack_sum(total, survivors, survivors, layout, encoding, 16).statistics
    assert statistics is not None
    merged = merge_range_histograms(statistics.ranges, survivors)
    if 2 * len(known) < survivors:
        assert merged == {}
        return
    low, high = (median(r[side] for r in known) for side in (0, 1))
    slack = RANGE_WIDTHS_MAX * (low + high)
    exact = min(max(r[0] for r in known), low + slack), min(max(r[1] for r in known), high + slack)
    for found, wanted in zip((-merged["h"][0], merged["h"][1]), exact, strict=True):
        assert wanted * (1 - 1e-12) <= found <= wanted * 2**0.25 * (1 + 1e-12)


@given(data=st.data(), sigma=st.sampled_from([9.0, 300.0]), seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_noise_that_is_added_to_residues_is_in_the_whole_numbers(data: st.DataObject, sigma: float, seed: int) -> None:
    """Read after the noise, sums of one group or several are what whole numbers without a width would be."""
    group = data.draw(groups(noise_sigma=0.0, small=True))
    weight, count = sum(group.weights), len(group.weights)
    parts = data.draw(st.integers(1, 2))
    frame = frame_sum(group.total(), weight, count, group.layout, group.ring)
    total = add_ring_sums([frame] * parts)
    assert (total.weight, total.survivors, total.modulus) == (parts * weight, parts * count, 2**group.ring)
    assert total.clipped == parts * sum(s.clipped for s in group.statistics)
    noise = np.rint(np.random.default_rng(seed).normal(0.0, sigma, group.encoding.padded)).astype(np.int64)
    noised = replace(total, residues=(total.residues + noise).astype(total.residues.dtype))
    try:
        check_headroom(parts * weight, 1, group.encoding.bits, group.ring, sigma)
    except RefusedError:
        with pytest.raises(RefusedError):
            read_levels(noised, group.encoding, sigma, 1)
        return
    weighted = [[w * int(v) for v in q] for q, w in zip(group.levels, group.weights, strict=True)]
    exact = [parts * sum(column) + int(e) for column, e in zip(zip(*weighted, strict=True), noise, strict=True)]
    assert read_levels(noised, group.encoding, sigma, 1).tolist() == exact
    margin, limit = noise_margin(sigma, 1), group.encoding.level_max * parts * weight
    for value, fits in ((-margin, True), (limit + margin, True), (-margin - 1, False), (limit + margin + 1, False)):
        noised.residues[3] = value % 2**group.ring
        if fits:
            assert read_levels(noised, group.encoding, sigma, 1)[3] == value
        elif limit + 2 * margin + 1 < 2**group.ring:
            with pytest.raises(PeerError, match="coordinates"):
                read_levels(noised, group.encoding, sigma, 1)
