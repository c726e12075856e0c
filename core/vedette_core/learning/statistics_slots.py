"""What a device says about its own training, as whole numbers whose sum over a group can be read.

Nothing of it may be sent by itself once uploads are masked, and of a sum only, everything must be a count or a linear
code:

- The norm of the update is a one-hot vector over `NORM_BINS` bins; the sum is a histogram.
- A loss is a 16-bit code on a logarithmic scale, sent as `LOSS_DIGITS` digits of base `LOSS_BASE`, each times the
  weight. The digits' sums give back the sum of the weighted codes exactly, and their mean is the code of the weighted
  **geometric** mean of the losses. Digits are not larger than the smallest width of a level, so that whatever ring
  holds the sum of levels holds theirs.
- An activation range (low, high) is the two magnitudes max(0, −low) and max(0, high), each one-hot over `RANGE_BINS`
  bins. From histograms over all groups, a range can be merged that one device cannot spoil.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError, RefusedError

Counts = npt.NDArray[np.int64]

QUARTERS: Final = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^0, 2^¼, 2^½, 2^¾, written down: a power function's last bit is not the same on every machine."""


def _power(quarters: int) -> float:
    return math.ldexp(QUARTERS[quarters % 4], quarters // 4)


NORM_BINS: Final = 16
NORM_EDGES: Final = tuple(_power(2 * k - 14) for k in range(NORM_BINS - 1))
"""Upper edges of all norm bins but the last, in clip norms: 2^-3.5, 2^-3 … 2^3.5. Bins 0…7 are norms up to the clip
norm, bins 8…15 those above it."""
LOSS_MIN: Final = 1e-9
LOSS_MAX: Final = 1e9
"""Losses outside are said as the nearer of the two. Neighbouring codes are 0.063 % apart."""
LOSS_CODE_MAX: Final = 65_535
LOSS_BASE: Final = 16
LOSS_DIGITS: Final = 4
RANGE_BINS: Final = 57
RANGE_EDGES: Final = (0.0, *(_power(k - 24) for k in range(1, RANGE_BINS)))
"""Upper edges of the range bins: zero, then 2^-5.75, 2^-5.5 … 2^8. What is smaller but not zero is in the second bin,
what is larger in the last. A magnitude is said too large by a factor of up to 2^¼, never too small below 2^8."""
RANGE_WIDTHS_MAX: Final = 4.0
"""How many median widths a merged range may stick out: bounds what one device can do to the quantiser's resolution."""

_LOG_SPAN: Final = math.log(LOSS_MAX / LOSS_MIN)
_DIGIT_VALUES: Final = tuple(LOSS_BASE**k for k in reversed(range(LOSS_DIGITS)))


@dataclass(frozen=True, slots=True)
class LocalStatistics:
    """What a device knows of its own training step. It stays there; only sums of its slots are seen.

    Attributes:
        clipped: whether the clip norm bit.
        norm: L2 norm of the delta before clipping, ≥ 0.
        loss_before: loss of the round's model on the device's rows, ≥ 0.
        loss_after: the same after local training, ≥ 0.
        ranges: smallest and largest activation (low ≤ high) by tensor.

    Raises:
        RefusedError: a value is not finite: the device sits the round out.
        ValueError: a negative norm or loss, or a range that ends before it begins.
    """

    clipped: bool
    norm: float
    loss_before: float
    loss_after: float
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {"norm": self.norm, "loss before": self.loss_before, "loss after": self.loss_after}
        bounds = {f"{end} of {name}": r[k] for name, r in self.ranges.items() for k, end in enumerate(("low", "high"))}
        for name, value in (named | bounds).items():
            if not math.isfinite(value):
                raise RefusedError(f"statistics: found {name} {value}, expected a finite number", rule="finite")
            if name in named and value < 0.0:
                raise ValueError(f"statistics: found {name} {value}, expected at least 0")
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"statistics: found range {low} to {high} of tensor {name}, expected low ≤ high")


@dataclass(frozen=True, slots=True, eq=False)
class StatisticsSum:
    """The statistics of one group's survivors, or of several groups' (`add_statistics`).

    Attributes:
        weight: sum of the survivors' weights, ≥ 1.
        survivors: how many they are, ≥ 1.
        norm_histogram: ``(NORM_BINS,)`` int64 devices by norm over clip norm; see `NORM_EDGES`.
        loss_codes_before: sum of weight × code of the loss before training.
        loss_codes_after: the same after training.
        ranges: by tensor, ``(2, RANGE_BINS)`` int64: devices by magnitude below zero, and by magnitude above zero.
    """

    weight: int
    survivors: int
    norm_histogram: Counts
    loss_codes_before: int
    loss_codes_after: int
    ranges: Mapping[str, Counts]

    @property
    def loss_before(self) -> float:
        """Weighted geometric mean of the losses before training, in [`LOSS_MIN`, `LOSS_MAX`]."""
        return _loss_of(self.loss_codes_before / self.weight)

    @property
    def loss_after(self) -> float:
        """The same after training."""
        return _loss_of(self.loss_codes_after / self.weight)


def statistics_length(tensors: tuple[str, ...]) -> int:
    """Slots that the statistics take."""
    return NORM_BINS + 2 * LOSS_DIGITS + 2 * RANGE_BINS * len(tensors)


def statistics_slots(statistics: LocalStatistics, weight: int, clip_norm: float, tensors: tuple[str, ...]) -> Counts:
    """One device's slots: norm, both losses, and the ranges tensor after tensor; all zero for one it does not know.

    Args:
        statistics: the device's.
        weight: of its update, ≥ 1.
        clip_norm: the round's, > 0.
        tensors: names that have slots.

    Returns:
        ``(statistics_length(tensors),)`` int64 ≥ 0.

    Raises:
        ValueError: a range of a tensor that has no slots: plan and network are not of one mind.
    """
    strangers = sorted(set(statistics.ranges) - set(tensors))
    if strangers:
        raise ValueError(f"statistics: found ranges of {strangers}, expected some of {list(tensors)}")
    slots = np.zeros(statistics_length(tensors), np.int64)
    slots[np.searchsorted(NORM_EDGES, statistics.norm / clip_norm)] = 1
    at = NORM_BINS
    for loss in (statistics.loss_before, statistics.loss_after):
        code = _loss_code(loss)
        slots[at : at + LOSS_DIGITS] = [code // value % LOSS_BASE * weight for value in _DIGIT_VALUES]
        at += LOSS_DIGITS
    for tensor in tensors:
        if tensor in statistics.ranges:
            low, high = statistics.ranges[tensor]
            slots[at + _range_bin(-low)] = 1
            slots[at + RANGE_BINS + _range_bin(high)] = 1
        at += 2 * RANGE_BINS
    return slots


def read_statistics(slots: Counts, weight: int, survivors: int, tensors: tuple[str, ...]) -> StatisticsSum:
    """The statistics behind a sum of `statistics_slots`.

    Args:
        slots: ``(statistics_length(tensors),)`` int64 ≥ 0.
        weight: sum of the survivors' weights.
        survivors: how many they are.
        tensors: names that have slots.

    Raises:
        PeerError: counts that so many devices cannot have: someone's vector was no encoding.
    """
    norms = slots[:NORM_BINS].copy()
    _expect("norm histogram", int(norms.sum()), survivors, survivors)
    at = NORM_BINS
    codes = []
    for name in ("loss before", "loss after"):
        digits = slots[at : at + LOSS_DIGITS]
        _expect(f"largest digit of the {name}", int(digits.max()), 0, (LOSS_BASE - 1) * weight)
        codes.append(sum(int(digit) * value for digit, value in zip(digits, _DIGIT_VALUES, strict=True)))
        at += LOSS_DIGITS
    ranges = {}
    for tensor in tensors:
        counts = slots[at : at + 2 * RANGE_BINS].reshape(2, RANGE_BINS).copy()
        below, above = (int(n) for n in counts.sum(axis=1))
        _expect(f"lower ends of tensor {tensor}", below, 0, survivors)
        _expect(f"upper ends of tensor {tensor}", above, below, below)
        ranges[tensor] = counts
        at += 2 * RANGE_BINS
    return StatisticsSum(weight, survivors, norms, codes[0], codes[1], MappingProxyType(ranges))


def add_statistics(first: StatisticsSum, second: StatisticsSum) -> StatisticsSum:
    """The statistics of the survivors of both.

    Raises:
        ValueError: they are about different tensors.
    """
    if first.ranges.keys() != second.ranges.keys():
        raise ValueError(f"statistics: found tensors {sorted(second.ranges)}, expected {sorted(first.ranges)}")
    return StatisticsSum(
        first.weight + second.weight,
        first.survivors + second.survivors,
        first.norm_histogram + second.norm_histogram,
        first.loss_codes_before + second.loss_codes_before,
        first.loss_codes_after + second.loss_codes_after,
        MappingProxyType({tensor: counts + second.ranges[tensor] for tensor, counts in first.ranges.items()}),
    )


def merge_range_histograms(ranges: Mapping[str, Counts], survivors: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest activation a tensor over all devices, outliers held back.

    A tensor counts if at least half of the devices report it. Its range reaches to the edge of the outermost bin that
    a device is in, but sticks out of the median range by no more than `RANGE_WIDTHS_MAX` median widths. It always
    holds zero.

    Args:
        ranges: by tensor, ``(2, RANGE_BINS)`` counts, as in `StatisticsSum.ranges`.
        survivors: devices behind the counts, ≥ 1.
    """
    merged = {}
    for tensor, (below, above) in sorted(ranges.items()):
        reported = int(below.sum())
        if reported == 0 or 2 * reported < survivors:
            continue
        low, high = _median_edge(below), _median_edge(above)
        slack = RANGE_WIDTHS_MAX * (low + high)
        merged[tensor] = (0.0 - min(_outermost_edge(below), low + slack), min(_outermost_edge(above), high + slack))
    return merged


def _expect(what: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        expected = str(most) if least == most else f"{least} to {most}"
        raise PeerError(f"statistics of a group: found {found} as {what}, expected {expected}", reason="statistics")


def _loss_code(loss: float) -> int:
    inside = min(max(loss, LOSS_MIN), LOSS_MAX)
    return round(math.log(inside / LOSS_MIN) / _LOG_SPAN * LOSS_CODE_MAX)


def _loss_of(code: float) -> float:
    return min(max(LOSS_MIN * math.exp(code / LOSS_CODE_MAX * _LOG_SPAN), LOSS_MIN), LOSS_MAX)


def _range_bin(magnitude: float) -> int:
    return min(int(np.searchsorted(RANGE_EDGES, max(0.0, magnitude))), RANGE_BINS - 1)


def _median_edge(counts: Counts) -> float:
    """Median of the devices' edges; of an even number, the mean of the middle two."""
    ranks = np.cumsum(counts)
    count = int(ranks[-1])
    lower, upper = (int(np.searchsorted(ranks, rank)) for rank in ((count + 1) // 2, count // 2 + 1))
    return (RANGE_EDGES[lower] + RANGE_EDGES[upper]) / 2.0


def _outermost_edge(counts: Counts) -> float:
    return RANGE_EDGES[int(np.flatnonzero(counts)[-1])]
