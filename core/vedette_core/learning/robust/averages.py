"""Rules that know nothing but the groups' means: weighted mean, coordinate-wise ones, and the geometric median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.rule import (
    Context,
    Float64,
    RobustResult,
    cap_shares,
    checked,
    combine,
    directions_of,
    norms_of,
)

TRIM_SHARE: Final = 0.25
"""Weight that the trimmed mean leaves out at either end: groups of 8 of which 3 % of the devices lie are bad in 22 % of
the cases, and half of the groups still count in each coordinate."""
COLUMNS_AT_ONCE: Final = 8_192
"""Coordinates that are sorted at once: some megabytes for a hundred groups."""
WEISZFELD_STEPS: Final = 100
"""Most iterations; a dozen are usual, and a collinear configuration converges slowly without ever mattering."""
WEISZFELD_TOLERANCE: Final = 1e-9
"""Stops where an iteration moves the point by less, in units of the nearest group's distance from the start."""
WEISZFELD_SMOOTHING: Final = 1e-6
"""Distances count at least this part of that unit: keeps the quotient finite where the point meets a group."""


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The plain mean, weighted by what groups count. No defence but the cap; the measure of all others."""

    name: str = "mean"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        shares = cap_shares(shares, context.share_max)
        return RobustResult(combine(vectors, shares), shares)


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """For each coordinate the mean of the middle, after `trim_share` of the weight was cut off at either end.

    Weight is cut, not groups: a group at the edge counts in part, so that one, two and three groups work as well (one
    is itself, two are their mean). As long as the groups that lie have at most `trim_share` of the weight, no
    coordinate leaves the range of the honest groups.

    Attributes:
        trim_share: 0 ≤ share < 1/2; 0 is the mean.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2, with weights.
    """

    trim_share: float = TRIM_SHARE
    name: str = "trimmed-mean"

    def __post_init__(self) -> None:
        if not 0 <= self.trim_share < 0.5:
            raise ValueError(f"trim_share: found {self.trim_share}, expected 0 to below 0.5")

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        return _coordinatewise(vectors, cap_shares(shares, context.share_max), self.trim_share)


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """For each coordinate the weighted median; the mean of both middle values where the weight splits evenly.

    Groups that lie with less than half of the weight cannot move a coordinate out of the honest groups' range.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 1, with weights.
    """

    name: str = "median"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        return _coordinatewise(vectors, cap_shares(shares, context.share_max), None)


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The point with the least weighted sum of distances to the groups' means.

    Groups that lie with a share α < 1/2 of the weight can move it by at most 2 (1 − α) / (1 − 2α) times the distance of
    the farthest honest group from any point one measures from.

    Source: Weiszfeld's iteration, smoothed: Pillutla et al. 2022, arXiv 1912.13445 (RFA), algorithm 2; the bound is its
    lemma for weighted points, after Minsker 2015; when a group is itself the median: Vardi & Zhang 2000, PNAS 97.
    """

    name: str = "geometric-median"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        shares = cap_shares(shares, context.share_max)
        total = shares.sum()
        # From the median of each coordinate, not from the mean: the mean is where outliers want it to start.
        point = _coordinatewise(vectors, shares / total, None).delta.astype(np.float64)
        distances = norms_of(vectors - point)
        # The nearest group's distance, not the median one, which liars can stretch: smoothing would lend them pull.
        unit = float(distances[distances > 0].min()) if distances.any() else 0.0
        pulls = shares @ directions_of(vectors - point)
        if unit == 0 or float(np.linalg.norm(pulls)) < float(shares[distances == 0].sum()):
            here = np.where(distances == 0, shares, 0.0)  # the others cannot pull it off who lie there: it is optimal
            return RobustResult((total * point).astype(np.float32), total * here / here.sum())
        current = shares
        for _ in range(WEISZFELD_STEPS):
            pull = shares / np.maximum(norms_of(vectors - point), WEISZFELD_SMOOTHING * unit)
            current = total * pull / pull.sum()
            moved = current @ vectors / total
            step = float(np.linalg.norm(moved - point))
            point = moved
            if step <= WEISZFELD_TOLERANCE * unit:
                break
        return RobustResult(combine(vectors, current), current)


def _coordinatewise(vectors: Float64, shares: Float64, trim_share: float | None) -> RobustResult:
    """Mean of the middle of each coordinate; `trim_share` None keeps only the very middle.

    The cuts are relative to the sum of the shares, which a cap may have left below 1; so is the result.
    """
    groups, size = vectors.shape
    total = float(shares.sum())
    delta = np.empty(size)
    used = np.zeros(groups)
    for start in range(0, size, COLUMNS_AT_ONCE):
        block = vectors[:, start : start + COLUMNS_AT_ONCE]
        order = np.argsort(block, axis=0, kind="stable")
        upper = np.cumsum(shares[order] / total, axis=0)
        lower = upper - shares[order] / total
        if trim_share is None:
            kept = ((lower < 0.5 + 1e-12) & (upper > 0.5 - 1e-12)).astype(np.float64)  # two where 1/2 is an edge
        else:
            kept = np.clip(np.minimum(upper, 1.0 - trim_share) - np.maximum(lower, trim_share), 0.0, None)
        kept /= kept.sum(axis=0)
        delta[start : start + COLUMNS_AT_ONCE] = np.sum(kept * np.take_along_axis(block, order, axis=0), axis=0)
        np.add.at(used, order, kept)
    return RobustResult((total * delta).astype(np.float32), total * used / size)
