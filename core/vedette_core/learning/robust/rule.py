"""What every robust rule takes and gives, and the parts that several are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_schemas.errors import RefusedError

Float64 = npt.NDArray[np.float64]
Dropped = tuple[tuple[int, str], ...]
"""(index of the group, short stable word that says why), in the order of the indices."""

NORM_TINY: Final = 1e-30
"""Below this an L2 norm is nothing: the vector has no direction that could be compared or rescaled."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may know beside the groups' means.

    Attributes:
        root: ``(d,)`` float32 update that the aggregator trained itself, from the round's model on a small clean root
            set with the plan's own hyperparameters; None if there is no root set.
        running_norm: usual L2 norm of a group's mean, see `NormHistory.running`; None before the first round.
        share_max: largest share of the result that a weighing rule gives one group, 0 < share ≤ 1.
        cosines: ``(G, G)`` float64 decayed mean cosines between the groups, from the round before; only for rules with
            a memory, and only where a group is the same devices as in the round before.
    """

    root: Float32 | None = None
    running_norm: float | None = None
    share_max: float = 1.0
    cosines: Float64 | None = None


@dataclass(frozen=True, slots=True)
class RobustResult:
    """What a rule made of a round.

    Attributes:
        delta: ``(d,)`` float32; finite.
        weights: ``(G,)`` float64 ≥ 0: each group's share in `delta`, 0 for a dropped one. They sum to 1, or to less
            where a cap could not be met otherwise. For rules that choose anew for each coordinate: the mean share.
        dropped: groups that do not count at all, and why.
        median_norm: median L2 norm of the means that came in, for `NormHistory.after`; 0.0 where no gate measured it.
        cosines: what `Context.cosines` is in the next round; None for rules without a memory.
    """

    delta: Float32
    weights: Float64
    dropped: Dropped = ()
    median_norm: float = 0.0
    cosines: Float64 | None = None


class Rule(Protocol):
    """Makes one update of many groups' means. Deterministic, and (but for rounding) blind to the groups' order."""

    @property
    def name(self) -> str:
        """What settings and transcripts call it."""

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """The round's update.

        Args:
            deltas: ``(G, d)`` float32 group means, G ≥ 1, finite.
            weights: ``(G,)`` float64 > 0: what each group counts (sum of its devices' weights).
            context: what else is known.

        Raises:
            RefusedError: there is nothing that could be aggregated; `rule` says why: ``empty``, ``finite``,
                ``weights``, ``root``, ``trust``, ``history``.
            ValueError: shapes that do not belong together.
        """


def checked(deltas: Float32, weights: Float64) -> tuple[Float64, Float64]:
    """The means and the weights' shares (sum 1) in float64, after every check that all rules have in common.

    Raises:
        RefusedError: no groups, values that are not finite, weights that are not positive.
        ValueError: other shapes than ``(G, d)`` and ``(G,)``.
    """
    if deltas.ndim != 2 or weights.shape != (len(deltas),):
        raise ValueError(f"group means: found shapes {deltas.shape} and {weights.shape}, expected (G, d) and (G,)")
    if deltas.size == 0:
        raise RefusedError(f"group means: found {len(deltas)} of {deltas.shape[1]} weights", rule="empty")
    broken = ~np.isfinite(deltas).all(axis=1)
    if broken.any():
        raise RefusedError(
            f"group means: found values that are not finite in {int(broken.sum())} of {len(deltas)}", rule="finite"
        )
    if not np.isfinite(weights).all() or weights.min() <= 0:
        raise RefusedError(f"group weights: found {weights.min()} to {weights.max()}, expected > 0", rule="weights")
    shares = weights / weights.max()  # first: a sum of large weights must not overflow
    return deltas.astype(np.float64), shares / shares.sum()


def norms_of(vectors: Float64) -> Float64:
    """L2 norms ``(k,)`` of the rows of ``(k, d)``; float32 inputs cannot overflow them."""
    norms: Float64 = np.sqrt(np.einsum("gd,gd->g", vectors, vectors))
    return norms


def directions_of(vectors: Float64) -> Float64:
    """Rows of ``(k, d)`` scaled to length 1; a row without a direction becomes zeros."""
    norms = norms_of(vectors)
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > NORM_TINY)
    return vectors * scale[:, None]


def cosines_to(vectors: Float64, reference: Float64) -> Float64:
    """Cosines ``(k,)`` of the rows to ``(d,)``; 0 where one of them has no direction."""
    products = directions_of(vectors) @ directions_of(reference[None])[0]
    cosines: Float64 = np.clip(products, -1.0, 1.0)
    return cosines


def cap_shares(shares: Float64, share_max: float) -> Float64:
    """Shares of which none is above the cap; what the large ones lose goes to the others in proportion.

    Where too few groups have a share at all, the sum stays below 1 and the step becomes shorter: a group does not get
    more say because others were dropped.

    Args:
        shares: ``(G,)`` float64 ≥ 0 with sum 1.
        share_max: 0 < share ≤ 1.
    """
    if not 0 < share_max <= 1:
        raise ValueError(f"share_max: found {share_max}, expected more than 0 and at most 1")
    capped = shares.copy()
    full = np.zeros(len(shares), bool)
    for _ in range(len(shares)):  # each pass fills at least one group
        over = ~full & (capped > share_max)
        if not over.any():
            break
        full |= over
        rest = ~full & (capped > 0)
        capped[full] = share_max
        if rest.any():
            capped[rest] *= max(0.0, 1.0 - share_max * full.sum()) / capped[rest].sum()
    return capped


def combine(vectors: Float64, shares: Float64) -> Float32:
    """Σ share · vector as ``(d,)`` float32."""
    return np.asarray(shares @ vectors).astype(np.float32)


def dropped_for(reason: str, mask: npt.NDArray[np.bool_]) -> Dropped:
    """The marked groups, all for one reason."""
    return tuple((int(index), reason) for index in np.flatnonzero(mask))
