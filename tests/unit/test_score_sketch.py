"""A sketch of scores: what it keeps, how it merges, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_aggregator.fleet_sketch import DEVICE_WEIGHT, FACTOR_MAX, merge_sketches
from vedette_core.learning.calibration import calibrate
from vedette_core.learning.sketch import BUCKETS, COUNT_MAX, RATIO, SKETCH_BYTES_MAX, ScoreSketch
from vedette_device.cold_start import SCORES_KEPT, first_calibration
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import SKETCH_BYTES_MAX as ROUND_SKETCH_BYTES_MAX
from vedette_schemas.telemetry import SCORE_SKETCH_BYTES_MAX


def benign(seed: int, size: int = 800, factor: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(8.0, factor / 16.0, size)


def test_a_threshold_is_the_calibrations_and_at_most_a_bucket_above() -> None:
    scores = benign(1, 5000)
    calibration, sketch = calibrate(scores), ScoreSketch.of(scores)

    for alpha in (0.5, 0.1, 0.01, 0.001):
        exact = calibration.threshold(alpha)
        assert exact <= sketch.threshold(alpha) <= exact * RATIO * (1 + 1e-12)


def test_scores_outside_of_the_range_are_counted_at_its_ends() -> None:
    sketch = ScoreSketch.of([0.0, 1e-9, 1e-3, 1e5, np.inf])

    assert sketch.counts[0] == 3
    assert sketch.counts[-1] == 2
    with pytest.raises(ValueError, match="2 scores that are NaN or negative"):
        ScoreSketch.of([1.0, np.nan, -1.0])


def test_the_largest_sketch_of_a_device_fits_into_its_report() -> None:
    """65,536 scores: 128 of them, two bytes of a varint, in each bucket; what is left makes three-byte ones."""
    counts = np.full(BUCKETS, 128)
    for place in (0, 1, 2):
        counts[place] = (65_536 - 128 * (BUCKETS - 3)) // 3
    assert counts.min() >= 128

    data = ScoreSketch(counts).to_bytes()
    assert len(data) <= SCORE_SKETCH_BYTES_MAX
    assert np.array_equal(ScoreSketch.from_bytes(data).counts, counts)


def test_the_largest_sketch_of_all_fits_its_own_limit() -> None:
    data = ScoreSketch(np.full(BUCKETS, COUNT_MAX // BUCKETS)).to_bytes()

    assert len(data) <= SKETCH_BYTES_MAX
    assert ScoreSketch.from_bytes(data).total == COUNT_MAX // BUCKETS * BUCKETS


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "version"),
        (b"\x02", "version"),
        (b"\x01\x01", "encoding"),  # a bucket without its count
        (b"\x01\x00\x01", "encoding"),  # the same bucket again
        (b"\x01\x01\x00", "encoding"),  # no scores in it
        (b"\x01\x81\x00\x01", "encoding"),  # not minimal
        (b"\x01\xcd\x02\x01", "encoding"),  # bucket 332
        (b"\x01\x01\xff\xff\xff\xff\xff\xff\x01", "encoding"),  # seven bytes
        (b"\x01\x01\xff\xff\xff\xff\xff\x7f", "encoding"),  # more scores than there may be
        (b"\x01" + b"\x01\x01" * (SKETCH_BYTES_MAX // 2), "limit"),
    ],
)
def test_bytes_that_no_sketch_gives_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        ScoreSketch.from_bytes(data)
    assert caught.value.reason == reason


def test_weighing_keeps_the_shape_and_gives_the_very_total() -> None:
    sketch = ScoreSketch.of(benign(2, 10_007))

    for total in (1, 100, 1024, 20_000):
        weighed = sketch.weighing(total)
        assert weighed.total == total
        assert np.abs(weighed.counts / total - sketch.counts / sketch.total).max() <= 1.0 / total
    with pytest.raises(ValueError, match="no scores"):
        ScoreSketch.of([]).weighing(5)


def test_a_merge_that_is_too_large_is_refused() -> None:
    half = ScoreSketch(np.eye(1, BUCKETS, dtype=np.int64)[0] * (COUNT_MAX // 2 + 1))
    with pytest.raises(ValueError, match="expected at most"):
        half.merged(half)


def test_a_new_device_takes_its_first_threshold_from_the_fleet() -> None:
    """Its own benign scores pass it about as often as was asked for, though none of them was seen before."""
    fleet = merge_sketches({f"gw-{i}": ScoreSketch.of(benign(10 + i, factor=0.9 + 0.05 * i)) for i in range(5)})
    assert fleet is not None
    new = benign(99, 100_000)

    calibration = first_calibration(fleet)
    rate = float((new > calibration.threshold(0.01)).mean())
    assert 0.002 < rate < 0.02
    assert calibration.size <= SCORES_KEPT
    assert calibration.threshold(0.01) == pytest.approx(fleet.threshold(0.01), rel=0.06)


def test_a_sketch_of_few_scores_gives_no_threshold() -> None:
    with pytest.raises(RefusedError, match="found a fleet's sketch of 19 scores"):
        first_calibration(ScoreSketch.of(np.ones(19)))


def test_one_device_cannot_move_the_fleets_threshold_far() -> None:
    honest = {f"gw-{i}": ScoreSketch.of(benign(i)) for i in range(20)}
    merged = merge_sketches(honest)
    assert merged is not None
    before = merged.threshold(0.01)

    loud = merge_sketches(honest | {"liar": ScoreSketch.of(np.full(60_000, 5000.0))})
    sly = merge_sketches(honest | {"liar": ScoreSketch.of(np.full(60_000, before * FACTOR_MAX * 0.9))})

    assert loud is not None
    assert loud.threshold(0.01) == before
    assert sly is not None
    assert sly.total == merged.total + DEVICE_WEIGHT
    assert before <= sly.threshold(0.01) <= before * FACTOR_MAX


def test_too_few_devices_make_no_fleet() -> None:
    two = {f"gw-{i}": ScoreSketch.of(benign(i)) for i in range(2)}

    assert merge_sketches(two) is None
    assert merge_sketches(two | {"young": ScoreSketch.of(benign(3, 50))}) is None
    assert merge_sketches(two | {"odd": ScoreSketch.of(benign(3, factor=100.0))}) is None
    assert merge_sketches(two | {"gw-3": ScoreSketch.of(benign(3))}) is not None


def test_an_outline_tells_devices_with_other_scores_apart_and_fits_a_check_in() -> None:
    rng = np.random.default_rng(3)
    quiet = [ScoreSketch.of(rng.gamma(2.0, 0.5, 1000)).outline() for _ in range(2)]
    loud = ScoreSketch.of(4.0 * rng.gamma(2.0, 0.5, 1000)).outline()

    def distance(a: bytes, b: bytes) -> int:
        return sum(abs(x - y) for x, y in zip(a, b, strict=True))

    assert list(loud) == sorted(loud)
    assert len(loud) == 9 <= ROUND_SKETCH_BYTES_MAX
    assert distance(quiet[0], quiet[1]) * 4 < distance(quiet[0], loud)
    assert ScoreSketch.of([]).outline() == b""
    assert ScoreSketch.of([1e9]).outline() == b"\xff" * 9
