"""Rules that compare groups with each other: Krum and multi-Krum (who has neighbours), FoolsGold (who is a copy)."""

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
    dropped_for,
)
from vedette_schemas.errors import RefusedError

BAD_SHARE: Final = 0.25
"""Share of the groups that Krum takes for bad if nothing else is said."""
TIE: Final = 1e-9
"""Scores that differ by less than this part of the largest distance are the same: they came out of rounding."""
COSINE_DECAY: Final = 0.8
"""What FoolsGold's memory keeps from one round to the next: about five rounds count."""
LOGIT_MIN: Final = 1e-5
"""FoolsGold's shares are kept this far from 0 and 1, where the logit has no value."""


@dataclass(frozen=True, slots=True)
class Krum:
    """The mean of the group (or of the `best` groups) with the nearest neighbours.

    A group's score is the sum of squared distances to its G − f − 2 nearest others (at least one). Krum takes the
    group with the least score; groups that tie are averaged, so that their order says nothing: two groups always tie.
    Multi-Krum takes the weighted mean of the G − f best. Fewer than 2f + 3 groups lower f to what they can bear.

    `Context.share_max` binds multi-Krum; it cannot bind Krum, which is one group by definition.

    Attributes:
        bad_share: f / G, 0 ≤ share < 1/2.
        multi: whether the G − f best count, or only the best.

    Source: Blanchard et al. 2017, NeurIPS, section 4 (Krum), section 5 (multi-Krum).
    """

    bad_share: float = BAD_SHARE
    multi: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bad_share < 0.5:
            raise ValueError(f"bad_share: found {self.bad_share}, expected 0 to below 0.5")

    @property
    def name(self) -> str:
        """``krum`` or ``multi-krum``."""
        return "multi-krum" if self.multi else "krum"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        groups = len(vectors)
        bad = max(0, min(int(self.bad_share * groups), (groups - 3) // 2))
        distances = _squared_distances(vectors)
        ranked = np.sort(distances, axis=1)[:, 1 : 1 + max(1, groups - bad - 2)]  # the first is its own, 0
        scores = ranked.sum(axis=1) if groups > 1 else np.zeros(1)
        last = np.sort(scores)[groups - bad - 1 if self.multi else 0]
        chosen = scores <= last + TIE * distances.max()
        picked = np.where(chosen, shares, 0.0)
        picked /= picked.sum()
        if self.multi:
            picked = cap_shares(picked, context.share_max)
        return RobustResult(combine(vectors, picked), picked, dropped_for("distant", ~chosen))


@dataclass(frozen=True, slots=True)
class FoolsGold:
    """Gives less to groups that are more alike than honest ones are: copies of one colluding update.

    It is meant for groups of stable devices, over rounds; the memory is the decayed mean of the groups' cosines. It is
    worse than none against a single liar where honest groups are alike (large groups, similar data): it takes from
    them and believes the one that differs. It is here to compare, and for fleets whose groups differ.

    Fewer than three groups cannot be told apart and count as in the mean. Where every group looks like a copy of some
    other, nothing is left.

    Attributes:
        decay: part of the memory that a round keeps, 0 ≤ decay < 1.

    Raises (in `aggregate`):
        RefusedError: ``history`` where the memory is of another number of groups; ``trust`` where all look alike.

    Source: Fung et al. 2020, RAID, algorithm 1 (κ = 1), with decayed cosines in the place of summed updates.
    """

    decay: float = COSINE_DECAY
    name: str = "foolsgold"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        groups = len(vectors)
        units = directions_of(vectors)
        cosines = np.clip(units @ units.T, -1.0, 1.0)
        if context.cosines is not None:
            if context.cosines.shape != cosines.shape or not np.isfinite(context.cosines).all():
                raise RefusedError(
                    f"foolsgold: found a memory of shape {context.cosines.shape}, expected {cosines.shape}: "
                    "its groups must be the same from round to round",
                    rule="history",
                )
            cosines = self.decay * context.cosines + (1.0 - self.decay) * cosines
        if groups < 3:
            shares = cap_shares(shares, context.share_max)
            return RobustResult(combine(vectors, shares), shares, cosines=cosines)
        trust = _dissimilarity(cosines)
        picked = shares * trust
        if picked.sum() <= 0:
            raise RefusedError(f"foolsgold: found {groups} groups that are copies of each other", rule="trust")
        picked = cap_shares(picked / picked.sum(), context.share_max)
        return RobustResult(combine(vectors, picked), picked, dropped_for("copy", trust <= 0), cosines=cosines)


def _dissimilarity(cosines: Float64) -> Float64:
    """FoolsGold's learning rates ``(G,)`` in 0…1: 1 for the least alike, 0 for copies."""
    others = cosines - 2.0 * np.eye(len(cosines))  # so that nobody is its own neighbour
    largest = others.max(axis=1)
    # Pardoning: who is less alike than its neighbour is not blamed for the neighbour's copies.
    mine, theirs = np.broadcast_arrays(largest[:, None], largest[None, :])
    pardon = np.divide(mine, theirs, out=np.ones_like(cosines), where=(mine < theirs) & (theirs > 0))
    alike = (others * np.where(others > 0, pardon, 1.0)).max(axis=1)
    trust = np.clip(1.0 - alike, 0.0, 1.0)
    if trust.max() <= LOGIT_MIN:
        return np.zeros(len(trust))
    trust = np.clip(trust / trust.max(), LOGIT_MIN, 1.0 - LOGIT_MIN)
    rates: Float64 = np.clip(np.log(trust / (1.0 - trust)) + 0.5, 0.0, 1.0)
    return rates


def _squared_distances(vectors: Float64) -> Float64:
    """``(G, G)`` squared distances, differences first: a Gram matrix would lose near neighbours in rounding."""
    return np.stack([np.square(vectors - row).sum(axis=1) for row in vectors])
