"""Rules that believe a group as far as it points the way of an update trained on a small clean root set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.rule import (
    NORM_TINY,
    Context,
    Float64,
    RobustResult,
    cap_shares,
    checked,
    combine,
    cosines_to,
    directions_of,
    dropped_for,
    norms_of,
)
from vedette_schemas.errors import RefusedError

AGREEMENT_MIN: Final = 1e-6
"""Cosines below are rounding, and no agreement: in float64, of float32 vectors."""
CLEAN_QUANTILE: Final = 0.9
"""Groups above this quantile of agreement are taken for free of liars: with groups of 8 of which 20 % of the devices
lie, 17 % are."""
LENGTHENING_MAX: Final = 2.0
"""Most that a step is lengthened for the liars in its groups. Where they halve the agreement, more would mean noise."""


@dataclass(frozen=True, slots=True)
class FlTrust:
    """Mean of the groups' directions, weighted by how far they agree with the root update, as long as the root update.

    Trust is ReLU(cos(group, root)): who points away counts nothing. Every group's norm becomes the root update's, so
    that a boost buys nothing. One group is rescaled to the root update's norm, or refused if it points away.

    It was made for single devices' updates, which are as noisy as the root update. Means of groups are less so, and
    stretching them to the root update's norm makes long and noisy steps late in training: see `RootTrust`.

    Raises (in `aggregate`):
        RefusedError: ``root`` without a root update that has a direction; ``trust`` where no group agrees with it.

    Source: Cao et al. 2021, NDSS, arXiv 2012.13995, section 4.3, algorithm 2; on groups' means instead of devices'.
    """

    name: str = "fltrust"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        root = checked_root(context.root, vectors.shape[1])
        picked = _trusted(shares, cosines_to(vectors, root), context)
        length = float(np.linalg.norm(root))
        return RobustResult(combine(directions_of(vectors) * length, picked), picked, dropped_for("trust", picked <= 0))


@dataclass(frozen=True, slots=True)
class RootTrust:
    """FLTrust for means of groups: the same trust, but steps as long as groups' means usually are.

    All groups get one length: the median norm of those that are trusted, and never more than the root update's norm.
    Liars within trusted groups make the step shorter than honest devices alone would; the groups that agree best show
    by how much, and the step is lengthened by as much: by the `CLEAN_QUANTILE` of the cosines over their mean in the
    result, at most `LENGTHENING_MAX`, and again never beyond the root update's norm. One group is shortened to the
    root update's norm if it is longer, or refused if it points away.

    What it does not do: a group that mixes honest and lying devices keeps its place as long as it points the right way
    at all; and a targeted backdoor, whose update points the right way, passes.

    Raises (in `aggregate`): as `FlTrust`.

    Source: trust as in Cao et al. 2021, arXiv 2012.13995; the length is our own, measured in ``bench/poisoning.py``.
    """

    name: str = "root-trust"

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """See `Rule.aggregate`."""
        vectors, shares = checked(deltas, weights)
        root = checked_root(context.root, vectors.shape[1])
        cosines = cosines_to(vectors, root)
        picked = _trusted(shares, cosines, context)
        usual = float(np.median(norms_of(vectors[picked > 0])))
        agreement = float(picked @ cosines) / float(picked.sum())
        lengthening = float(np.clip(np.quantile(cosines, CLEAN_QUANTILE) / agreement, 1.0, LENGTHENING_MAX))
        length = min(usual * lengthening, float(np.linalg.norm(root)))
        return RobustResult(combine(directions_of(vectors) * length, picked), picked, dropped_for("trust", picked <= 0))


def checked_root(root: Float32 | None, size: int) -> Float64:
    """The root update in float64.

    Raises:
        RefusedError: there is none, it is not finite, or it has no direction.
        ValueError: it has another size than the groups' means.
    """
    if root is None:
        raise RefusedError("root update: found none, expected one trained on the root set", rule="root")
    if root.shape != (size,):
        raise ValueError(f"root update: found shape {root.shape}, expected ({size},)")
    vector = root.astype(np.float64)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm <= NORM_TINY:
        raise RefusedError(f"root update: found norm {norm}, expected a finite one above 0", rule="root")
    return vector


def _trusted(shares: Float64, cosines: Float64, context: Context) -> Float64:
    """Shares ``(G,)`` by weight and trust, capped."""
    picked = np.where(cosines > AGREEMENT_MIN, shares * cosines, 0.0)
    total = float(picked.sum())
    if total <= NORM_TINY:
        raise RefusedError(
            f"root trust: found cosines {cosines.min():.3f} to {cosines.max():.3f} of {len(cosines)} groups to the "
            "root update, expected at least one above 0",
            rule="trust",
        )
    return cap_shares(picked / total, context.share_max)
