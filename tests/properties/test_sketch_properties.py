"""What a sketch promises, for any scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vedette_aggregator.fleet_sketch import merge_sketches
from vedette_core.learning.sketch import BUCKETS, RATIO, ScoreSketch
from vedette_schemas.errors import PeerError

SCORES = st.lists(st.floats(0.0, 1e6), max_size=200)
IN_RANGE = st.lists(st.floats(1e-3, 9e3), min_size=1, max_size=200)


@given(SCORES, SCORES, SCORES)
def test_merging_is_exact_in_any_order_and_grouping(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = (ScoreSketch.of(s) for s in (a, b, c))
    at_once = ScoreSketch.of(a + b + c).to_bytes()

    assert x.merged(y).merged(z).to_bytes() == at_once
    assert x.merged(y.merged(z)).to_bytes() == at_once
    assert z.merged(x).merged(y).to_bytes() == at_once


@given(IN_RANGE, st.floats(0.001, 0.999))
def test_a_threshold_is_within_one_bucket(scores: list[float], alpha: float) -> None:
    ordered = np.sort(scores)
    rank = min(max(int(alpha * (len(ordered) + 1) * (1.0 + 1e-12)), 1), len(ordered))
    exact = ordered[-rank]

    found = ScoreSketch.of(scores).threshold(alpha)
    assert exact <= found * (1 + 1e-12)
    assert found <= exact * RATIO * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(0, BUCKETS - 1), st.integers(1, 2**31)), max_size=60))
def test_bytes_and_back(filled: list[tuple[int, int]]) -> None:
    counts = np.zeros(BUCKETS, np.int64)
    for place, count in filled:
        counts[place] = count
    data = ScoreSketch(counts).to_bytes()

    assert np.array_equal(ScoreSketch.from_bytes(data).counts, counts)


@given(st.binary(max_size=80))
def test_whatever_is_read_is_written_the_same(data: bytes) -> None:
    for candidate in (data, b"\x01" + data):
        try:
            sketch = ScoreSketch.from_bytes(candidate)
        except PeerError:
            continue
        assert sketch.to_bytes() == candidate


@given(st.permutations(range(6)))
def test_the_fleets_sketch_is_the_same_whatever_the_order(order: list[int]) -> None:
    made = {f"gw-{i}": ScoreSketch.of(np.random.default_rng(i).gamma(4.0, 0.1, 150 + 300 * i)) for i in range(6)}
    sorted_merge = merge_sketches(made)
    shuffled = merge_sketches({f"gw-{i}": made[f"gw-{i}"] for i in order})

    assert sorted_merge is not None
    assert shuffled is not None
    assert sorted_merge.to_bytes() == shuffled.to_bytes()
