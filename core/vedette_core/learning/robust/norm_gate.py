"""How long a group's mean may be: what the rounds before say, and a gate that holds this round to it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from vedette_core.learning.robust.rule import Dropped, Float64, dropped_for, norms_of
from vedette_schemas.errors import ConfigError, RefusedError

NORM_FACTOR: Final = 3.0
"""A group is dropped above this many median norms. In ``bench/poisoning_classification.py``'s very uneven
fleet, honest groups of 8 stay below 1.3 in 25 rounds; with one device that sends 20 clip norms a group has above 7."""
HISTORY_ROUNDS: Final = 9
"""Rounds whose median norms make the running one: norms shrink as a model converges, so older ones say little, and to
move the median of 9 a liar must hold the majority of the groups in 5 rounds."""


@dataclass(frozen=True, slots=True)
class NormHistory:
    """Median norms of the last rounds' groups, oldest first.

    Attributes:
        norms: at most `HISTORY_ROUNDS` L2 norms, each finite and > 0.
    """

    norms: tuple[float, ...] = ()

    @property
    def running(self) -> float | None:
        """The running median norm; None before the first round."""
        return median(self.norms) if self.norms else None

    def after(self, median_norm: float) -> NormHistory:
        """With one more round's `RobustResult.median_norm`; a round of zeros changes nothing."""
        if not np.isfinite(median_norm) or median_norm < 0:
            raise ValueError(f"median norm: found {median_norm}, expected a finite one ≥ 0")
        return NormHistory((*self.norms, float(median_norm))[-HISTORY_ROUNDS:]) if median_norm > 0 else self

    def to_list(self) -> list[float]:
        """Plain form for msgpack."""
        return list(self.norms)

    @classmethod
    def from_list(cls, plain: Any) -> NormHistory:
        """Read `to_list`'s form back.

        Raises:
            ConfigError: it is something else: the aggregator's own stored state is damaged.
        """
        if not isinstance(plain, list) or len(plain) > HISTORY_ROUNDS:
            raise ConfigError(f"norm history: found {type(plain).__name__}, expected at most {HISTORY_ROUNDS} numbers")
        if not all(isinstance(n, float) and np.isfinite(n) and n > 0 for n in plain):
            raise ConfigError(f"norm history: found {plain}, expected finite numbers above 0; delete the stored state")
        return cls(tuple(plain))


@dataclass(frozen=True, slots=True)
class Gated:
    """What passed.

    Attributes:
        vectors: ``(k, d)`` float64 means that stay, none longer than the running norm.
        kept: ``(k,)`` their indices in what came in.
        dropped: the others.
        median_norm: of all that came in.
    """

    vectors: Float64
    kept: list[int]
    dropped: Dropped
    median_norm: float


def norm_gate(vectors: Float64, running_norm: float | None, factor: float = NORM_FACTOR) -> Gated:
    """Drop what is far too long, and shorten the rest to the usual length.

    "Far too long" is `factor` times the smaller of this round's median and, where one is known, the running norm:
    where most groups of one round lie, the rounds before still count. One group alone is its own median: it is dropped
    only by what came before.

    Args:
        vectors: ``(G, d)`` finite means, G ≥ 1.
        running_norm: see `NormHistory.running`; None lets this round's median stand in.
        factor: ≥ 1.

    Raises:
        RefusedError: ``norm``, if no group passes.
    """
    norms = norms_of(vectors)
    middle = float(np.median(norms))
    usual = running_norm if running_norm is not None else middle
    limit = factor * (min(middle, usual) if middle > 0 else usual)
    long = norms > limit
    if long.all():
        raise RefusedError(
            f"group norms: found {norms.min():.4g} to {norms.max():.4g}, expected at most {limit:.4g} "
            f"({factor:g} × the usual {usual:.4g})",
            rule="norm",
        )
    scale = np.minimum(1.0, np.divide(usual, norms, out=np.ones_like(norms), where=norms > 0))
    kept = np.flatnonzero(~long)
    return Gated(vectors[kept] * scale[kept, None], [int(i) for i in kept], dropped_for("norm", long), middle)
