from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from vedette_core.learning.encoding import Encoding
from vedette_core.learning.statistics_slots import (
    NORM_BINS,
    NORM_EDGES,
    RANGE_BINS,
    RANGE_EDGES,
    LocalStatistics,
    StatisticsSum,
    add_statistics,
    merge_range_histograms,
    statistics_length,
    statistics_slots,
)
from vedette_core.learning.update_vector import (
    CANARIES,
    GroupSum,
    RingArray,
    VectorLayout,
    add_group_sums,
    add_vector,
    check_headroom,
    decode_group_mean,
    noise_margin,
    pack_vector,
    ring_bits,
    unpack_sum,
    vector_from_bytes,
    zero_vector,
)
from vedette_schemas.errors import PeerError, RefusedError

ENCODING = Encoding(20, 2.0, b"seed")
PLAIN = VectorLayout(1024)
FULL = VectorLayout(1024, ("h", "out"), statistics=True)
QUIET = LocalStatistics(clipped=False, norm=1.0, loss_before=0.5, loss_after=0.25, ranges={"h": (-1.0, 2.0)})
LOUD = LocalStatistics(clipped=True, norm=9.0, loss_before=2.0, loss_after=1.0, ranges={"h": (0.5, 4.0)})
LEVELS = (np.arange(1024) % 256).astype(np.uint8)


def sum_of(layout: VectorLayout = FULL, ring: int = 16) -> RingArray:
    total = zero_vector(layout, ring)  # type: ignore[arg-type]
    for weight, statistics in ((3, QUIET), (1, LOUD)):
        add_vector(total, pack_vector(LEVELS, weight, statistics, layout, ENCODING, ring))  # type: ignore[arg-type]
    return total


def unpack(total: RingArray, layout: VectorLayout = FULL, ring: int = 16) -> GroupSum:
    return unpack_sum(total, 4, 2, layout, ENCODING, ring)  # type: ignore[arg-type]


def statistics_of(group: GroupSum) -> StatisticsSum:
    assert group.statistics is not None
    return group.statistics


def test_the_vector_of_a_plain_update_byte_by_byte() -> None:
    """What travels is a contract between versions: levels times weight, then weight and clipped bit among canaries."""
    vector = pack_vector(LEVELS, 3, LOUD, PLAIN, ENCODING, 16)
    control = [0, 0, 0, 3, 0, 0, 0, 0, 1, 0]
    assert vector.tobytes() == struct.pack("<1034H", *(3 * int(v) for v in LEVELS), *control)
    wide = pack_vector(LEVELS, 3, LOUD, PLAIN, ENCODING, 32)
    assert wide.tobytes() == struct.pack("<1034I", *(3 * int(v) for v in LEVELS), *control)
    assert PLAIN.length == 1034
    assert [c - 1024 for c in PLAIN.canaries()] == [0, 1, 2, 4, 5, 6, 7, 9]


def test_the_control_slots_of_a_full_update_one_by_one() -> None:
    vector = pack_vector(LEVELS, 3, QUIET, FULL, ENCODING, 16)
    assert FULL.length == 1024 + 2 + 16 + 8 + 2 * 2 * 57 + 8
    canaries = FULL.canaries()
    assert len(set(canaries)) == CANARIES
    assert canaries[-1] == FULL.length - 1
    assert set(np.diff(canaries).tolist()) <= {FULL.control_slots // 8, FULL.control_slots // 8 + 1}
    content = [int(v) for k, v in enumerate(vector) if k >= 1024 and k not in canaries]
    assert content[:2] == [3, 0]
    norms, content = content[2:18], content[18:]
    assert norms == [int(k == 5) for k in range(NORM_BINS)], "1 is half the clip norm: 2^-1 is the edge of bin 5"
    codes = [round((math.log10(loss) + 9) / 18 * 65535) for loss in (0.5, 0.25)]
    digits = [3 * int(f"{code:04x}"[k], 16) for code in codes for k in range(4)]
    assert content[:8] == digits
    content = content[8:]
    assert content[:57] == [int(k == 24 - 0) for k in range(57)], "1 = 2^(24/4 - 6)"
    assert content[57:114] == [int(k == 28) for k in range(57)], "2 = 2^(28/4 - 6)"
    assert content[114:] == [0] * 114, "a tensor that it does not know"


def test_bins_are_where_the_page_says() -> None:
    assert len(NORM_EDGES) == NORM_BINS - 1
    assert NORM_EDGES[7] == 1.0
    assert list(NORM_EDGES) == pytest.approx([2 ** (k / 2) for k in range(-7, 8)])
    assert len(RANGE_EDGES) == RANGE_BINS
    assert RANGE_EDGES[0] == 0.0
    assert RANGE_EDGES[1:] == pytest.approx([2 ** (k / 4) for k in range(-23, 33)])
    assert RANGE_EDGES[-1] == 2.0**8

    def bins(low: float, high: float) -> tuple[int, int]:
        slots = statistics_slots(LocalStatistics(False, 0, 1, 1, {"h": (low, high)}), 1, 1.0, ("h",))[24:]
        return int(np.argmax(slots[:57])), int(np.argmax(slots[57:]))

    assert bins(0.0, 0.0) == (0, 0)
    assert bins(1.0, 2.0) == (0, 28), "nothing below zero"
    assert bins(-2.0, -1.0) == (28, 0), "nothing above it"
    assert bins(-1e-9, 1e30) == (1, 56)
    assert bins(-1.0, np.nextafter(1.0, 2)) == (24, 25)


@pytest.mark.parametrize("ring", [16, 32])
def test_a_group_is_read_from_its_sum(ring: int) -> None:
    group = unpack(sum_of(ring=ring), ring=ring)
    assert np.array_equal(group.levels, 4 * LEVELS.astype(int))
    assert (group.weight, group.survivors, group.clipped) == (4, 2, 1)
    statistics = statistics_of(group)
    assert statistics.norm_histogram.tolist() == [int(k in (5, 12)) for k in range(16)]
    assert statistics.loss_before == pytest.approx(0.5**0.75 * 2.0**0.25, rel=3.3e-4), "geometric, by weight"
    assert statistics.loss_after == pytest.approx(0.25**0.75, rel=3.3e-4)
    assert set(statistics.ranges) == {"h", "out"}
    assert merge_range_histograms(statistics.ranges, 2) == {"h": (-1.0, 4.0)}
    mean = decode_group_mean(group, ENCODING)
    assert mean.dtype == np.float32
    assert mean.shape == (20,)
    plain = unpack(sum_of(PLAIN, ring), PLAIN, ring)
    assert plain.statistics is None
    assert plain.clipped == 1


@pytest.mark.parametrize("loss", [0.0, 1e-300, 1e-9, 1.0, 3.7e5, 1e9, 1e300])
def test_losses_of_any_size_are_said(loss: float) -> None:
    statistics = LocalStatistics(False, 1.0, loss, loss, {})
    total = pack_vector(LEVELS, 7, statistics, FULL, ENCODING, 16)
    found = statistics_of(unpack_sum(total, 7, 1, FULL, ENCODING, 16))
    assert found.loss_before == found.loss_after == pytest.approx(min(max(loss, 1e-9), 1e9), rel=3.3e-4)


def refused(total: RingArray, layout: VectorLayout = FULL) -> str:
    with pytest.raises(PeerError) as caught:
        unpack(total, layout)
    return caught.value.reason


@pytest.mark.parametrize("layout", [PLAIN, FULL])
def test_every_slot_of_the_control_part_is_checked(layout: VectorLayout) -> None:
    good = sum_of(layout)
    content = layout.content().tolist()
    for place in range(layout.coordinates, layout.length):
        for change in (1, -1, 2**15):
            total = good.copy()
            total[place] = (int(total[place]) + change) % 2**16
            position = content.index(place) if place in content else None
            if position is None:
                assert refused(total, layout) == "canary"
            elif position == 0:
                assert refused(total, layout) == "weight"
            elif position == 1:
                changed = 1 + change
                if 0 <= changed <= 2:
                    assert unpack(total, layout).clipped == changed
                else:
                    assert refused(total, layout) == "statistics"
            elif 18 <= position < 26:  # digits: any up to 15 times the weight
                if int(total[place]) <= 15 * 4:
                    unpack(total, layout)
                else:
                    assert refused(total, layout) == "statistics"
            else:
                assert refused(total, layout) == "statistics"


def test_a_digit_of_a_loss_is_at_most_fifteen_times_the_weight() -> None:
    total = sum_of()
    first = FULL.content()[2 + 16]
    total[first] = 15 * 4
    assert statistics_of(unpack(total)).loss_before > 1e7
    total[first] += 1
    assert refused(total) == "statistics"


def test_a_range_that_more_report_than_there_are_is_refused() -> None:
    total = sum_of()
    out = FULL.content()[2 + 16 + 8 + 114 :]
    total[out[0]], total[out[57]] = 2, 2
    counts = statistics_of(unpack(total)).ranges["out"]
    assert counts[:, 0].tolist() == [2, 2]
    total[out[0]], total[out[57]] = 3, 3
    assert refused(total) == "statistics"


def test_a_coordinate_beyond_the_weight_is_refused() -> None:
    total = sum_of()
    total[5] = 4 * 255
    assert unpack(total).levels[5] == 1020
    total[5] += 1
    assert refused(total) == "limit"
    total[5] = 2**16 - 1
    assert refused(total) == "limit"


def test_the_weight_and_number_of_the_survivors_are_not_the_sums_to_say() -> None:
    total = sum_of()
    for weight, survivors, reason in ((5, 2, "weight"), (3, 2, "weight"), (4, 3, "statistics"), (4, 1, "statistics")):
        with pytest.raises(PeerError) as caught:
            unpack_sum(total, weight, survivors, FULL, ENCODING, 16)
        assert caught.value.reason == reason
    for weight, survivors in ((4, 0), (4, 5), (0, 0)):
        with pytest.raises(ValueError, match="survivors"):
            unpack_sum(total, weight, survivors, FULL, ENCODING, 16)


def test_a_vector_left_in_or_out_is_found() -> None:
    total = sum_of()
    add_vector(total, pack_vector(LEVELS, 2, QUIET, FULL, ENCODING, 16))
    assert refused(total) == "weight"


@pytest.mark.parametrize(
    ("members", "weight", "bits", "width"),
    [(257, 1, 8, 16), (258, 1, 8, 32), (64, 4, 8, 16), (64, 8, 8, 32), (1, 1, 16, 16), (2, 1, 16, 32), (64, 68, 4, 16)],
)
def test_the_width_of_the_ring(members: int, weight: int, bits: int, width: int) -> None:
    assert ring_bits(members, weight, bits) == width  # type: ignore[arg-type]


def test_a_sum_that_no_ring_holds_is_refused() -> None:
    assert ring_bits(2**16 + 1, 1, 16) == 32, "65,537 · 65,535 = 2^32 − 1"
    with pytest.raises(RefusedError, match="found sums over 4295032831 values") as caught:
        ring_bits(2**16 + 2, 1, 16)
    assert caught.value.rule == "ring"
    with pytest.raises(ValueError, match="found 0 members"):
        ring_bits(0, 1, 8)
    assert noise_margin(15.99, 1) == 128
    assert ring_bits(1, 256, 8, 15.99) == 32, "256 · 255 + 2 · 128 = 65,536: one value too many"
    with pytest.raises(RefusedError):
        check_headroom(256, 1, 8, 16, 15.99)


def test_noise_needs_room_on_both_sides() -> None:
    assert noise_margin(0.0, 64) == 0
    assert noise_margin(10.0, 64) == math.ceil(8 * math.sqrt(64 * (100 + 1 / 12)))
    assert ring_bits(64, 4, 8) == 16
    assert ring_bits(64, 4, 8, 10.0) == 32
    check_headroom(250, 1, 8, 16, 100.0)
    with pytest.raises(RefusedError, match="ring of 16 bits") as caught:
        check_headroom(255, 1, 8, 16, 100.0)
    assert caught.value.rule == "ring"
    noise = np.full(1024, -50)
    total = pack_vector(np.zeros(1024, np.uint8), 1, QUIET, PLAIN, ENCODING, 16, noise=noise)
    group = unpack_sum(total, 1, 1, PLAIN, ENCODING, 16, noise_sigma=10.0)
    assert set(group.levels.tolist()) == {-50}
    assert np.isfinite(decode_group_mean(group, ENCODING)).all()
    with pytest.raises(PeerError, match="found coordinates"):
        unpack_sum(total, 1, 1, PLAIN, ENCODING, 16)
    with pytest.raises(RefusedError):
        unpack_sum(total, 1, 1, PLAIN, ENCODING, 16, noise_sigma=1e4)


def test_vectors_travel_as_their_bytes() -> None:
    vector = pack_vector(LEVELS, 3, QUIET, FULL, ENCODING, 32)
    data = vector.tobytes()
    assert np.array_equal(vector_from_bytes(data, FULL, 32), vector)
    assert np.array_equal(vector_from_bytes(memoryview(data), FULL, 32), vector)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(PeerError) as caught:
            vector_from_bytes(wrong, FULL, 32)
        assert caught.value.reason == "schema"
    with pytest.raises(PeerError):
        vector_from_bytes(data, FULL, 16)


def test_a_sum_is_taken_in_place() -> None:
    total = zero_vector(FULL, 16)
    address = total.ctypes.data
    vector = vector_from_bytes(pack_vector(LEVELS, 3, QUIET, FULL, ENCODING, 16).tobytes(), FULL, 16)
    for _ in range(200):
        add_vector(total, vector)
    assert total.ctypes.data == address
    assert total[:1024].tolist() == [int(v) * 600 % 2**16 for v in LEVELS], "it wraps as the ring does"


@pytest.mark.parametrize(
    "values",
    [
        {"norm": math.nan},
        {"norm": math.inf},
        {"loss_before": math.nan},
        {"loss_after": math.inf},
        {"ranges": {"h": (-math.inf, 0.0)}},
        {"ranges": {"h": (0.0, math.nan)}},
    ],
)
def test_statistics_that_are_not_finite_are_refused(values: dict[str, object]) -> None:
    given = {"clipped": False, "norm": 1.0, "loss_before": 1.0, "loss_after": 1.0, "ranges": {}}
    LocalStatistics(**given)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="expected a finite number") as caught:
        LocalStatistics(**(given | values))  # type: ignore[arg-type]
    assert caught.value.rule == "finite"


def test_calls_that_cannot_be_meant_are_faults() -> None:
    with pytest.raises(ValueError, match="found norm -1"):
        LocalStatistics(False, -1.0, 1, 1)
    with pytest.raises(ValueError, match="low ≤ high"):
        LocalStatistics(False, 1.0, 1, 1, {"h": (1.0, 0.0)})
    with pytest.raises(ValueError, match="sorted"):
        VectorLayout(1024, ("b", "a"))
    with pytest.raises(ValueError, match="each once"):
        VectorLayout(1024, ("a", "a"))
    with pytest.raises(ValueError, match="found 0 coordinates"):
        VectorLayout(0)
    strange = LocalStatistics(False, 1.0, 1, 1, {"x": (0.0, 1.0)})
    with pytest.raises(ValueError, match=r"\['x'\]"):
        pack_vector(LEVELS, 1, strange, FULL, ENCODING, 16)
    with pytest.raises(ValueError, match="expected 1024"):
        pack_vector(LEVELS, 1, QUIET, VectorLayout(2048), ENCODING, 16)
    with pytest.raises(ValueError, match="levels: found uint8 \\(1023,\\)"):
        pack_vector(LEVELS[1:], 1, QUIET, FULL, ENCODING, 16)
    with pytest.raises(ValueError, match="found up to 255, expected up to 15"):
        pack_vector(LEVELS, 1, QUIET, FULL, Encoding(20, 2.0, b"seed", 4), 16)
    for weight in (0, -1, 258):
        with pytest.raises(ValueError, match="expected 1 to 257"):
            pack_vector(LEVELS, weight, QUIET, FULL, ENCODING, 16)
    with pytest.raises(ValueError, match="noise: found int64 \\(3,\\)"):
        pack_vector(LEVELS, 1, QUIET, FULL, ENCODING, 16, noise=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="found 24 bits"):
        zero_vector(FULL, 24)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found uint32"):
        add_vector(zero_vector(FULL, 16), zero_vector(FULL, 32))
    with pytest.raises(ValueError, match="expected 16 bits"):
        unpack(zero_vector(FULL, 32))
    with pytest.raises(ValueError, match="found none"):
        add_group_sums([])
    plain, full = unpack(sum_of(PLAIN), PLAIN), unpack(sum_of())
    with pytest.raises(ValueError, match="expected \\(1024,\\) without"):
        add_group_sums([plain, full])
    other = VectorLayout(1024, ("h",), statistics=True)
    with pytest.raises(ValueError, match=r"expected \['h', 'out'\]"):
        add_statistics(statistics_of(full), statistics_of(unpack(sum_of(other), other)))


def test_one_device_cannot_spoil_the_quantisers_resolution() -> None:
    histogram = np.zeros((2, RANGE_BINS), np.int64)
    histogram[:, 24] = 4
    histogram[:, 56] = 1
    assert merge_range_histograms({"h": histogram}, 5) == {"h": (-9.0, 9.0)}, "four median widths beyond the median"
    assert merge_range_histograms({"h": histogram}, 10) == {"h": (-9.0, 9.0)}
    assert merge_range_histograms({"h": histogram}, 11) == {}, "fewer than half know it"
    assert merge_range_histograms({"h": np.zeros((2, RANGE_BINS), np.int64)}, 1) == {}
    low, high = merge_range_histograms({"h": np.eye(2, RANGE_BINS, dtype=np.int64)[[0, 0]]}, 1)["h"]
    assert (low, high) == (0.0, 0.0)
    assert math.copysign(1, low) == 1.0


def test_statistics_take_the_room_that_the_layout_gives() -> None:
    for tensors in ((), ("a",), ("a", "b", "c")):
        assert len(statistics_slots(LocalStatistics(False, 1, 1, 1), 1, 1.0, tensors)) == statistics_length(tensors)
        bare, full = VectorLayout(1024, tensors), VectorLayout(1024, tensors, statistics=True)
        assert full.length - bare.length == statistics_length(tensors)
        assert bare.length == 1024 + 2 + CANARIES
