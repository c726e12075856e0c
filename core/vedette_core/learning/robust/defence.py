"""The chain that a round's groups go through: finite → norm gate → rule, with no group above 2/G."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.averages import CoordinateMedian, GeometricMedian, TrimmedMean, WeightedMean
from vedette_core.learning.robust.norm_gate import NORM_FACTOR, norm_gate
from vedette_core.learning.robust.root_trust import FlTrust, RootTrust
from vedette_core.learning.robust.rule import Context, Float64, RobustResult, Rule, dropped_for
from vedette_core.learning.robust.selection import FoolsGold, Krum
from vedette_schemas.errors import ConfigError, RefusedError

AUTO: Final = "auto"
"""The rule's name that takes root trust where there is a root set, else the trimmed mean."""
SHARE_FACTOR: Final = 2.0
"""No group has more than this many times its even share, 1/G, of the result."""

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            WeightedMean(),
            TrimmedMean(),
            CoordinateMedian(),
            GeometricMedian(),
            Krum(),
            Krum(multi=True),
            FlTrust(),
            RootTrust(),
            FoolsGold(),
        )
    }
)
"""Every rule by its name."""
ROOTED: Final = frozenset({"fltrust", "root-trust"})
"""Rules that need a root update."""


@dataclass(frozen=True, slots=True)
class Defence:
    """A rule behind the gates that every rule should stand behind.

    Attributes:
        rule: what makes one update of the groups that pass.
        norm_factor: see `norm_gate`.
    """

    rule: Rule
    norm_factor: float = NORM_FACTOR

    @classmethod
    def configured(cls, name: str = AUTO, *, has_root: bool) -> Defence:
        """The defence that a setting names.

        Args:
            name: `AUTO` or a key of `RULES`.
            has_root: whether the aggregator has a root set.

        Raises:
            ConfigError: no such rule, or one that needs a root set without it.
        """
        if name == AUTO:
            name = "root-trust" if has_root else "trimmed-mean"
        if name not in RULES:
            raise ConfigError(f"robust rule: found {name!r}, expected {AUTO!r} or one of {', '.join(RULES)}")
        if name in ROOTED and not has_root:
            raise ConfigError(f"robust rule: found {name!r} without a root set; name one, or choose 'trimmed-mean'")
        return cls(RULES[name])

    def aggregate(self, deltas: Float32, weights: Float64, context: Context) -> RobustResult:
        """The round's update, see `Rule.aggregate`; indices and shares are of the groups that came in.

        A group with values that are not finite is dropped by itself: else one liar could stop every round.

        Raises:
            RefusedError: what the gates or the rule refuse; ``finite`` if no group is.
        """
        if deltas.ndim != 2 or weights.shape != (len(deltas),):
            raise ValueError(f"group means: found shapes {deltas.shape} and {weights.shape}, expected (G, d) and (G,)")
        if len(deltas) == 0:
            raise RefusedError("group means: found 0 groups, expected at least 1", rule="empty")
        broken = np.asarray(~np.isfinite(deltas).all(axis=1))
        if broken.all():
            raise RefusedError(f"group means: found values that are not finite in all {len(deltas)}", rule="finite")
        sound = np.flatnonzero(~broken)
        gated = norm_gate(deltas[sound].astype(np.float64), context.running_norm, self.norm_factor)
        kept = sound[gated.kept]
        share_max = min(1.0, SHARE_FACTOR / len(deltas), context.share_max)
        cosines = context.cosines
        if cosines is not None and cosines.shape != (len(deltas), len(deltas)):
            raise RefusedError(
                f"robust rule: found a memory of shape {cosines.shape} for {len(deltas)} groups; they must be the same "
                "from round to round",
                rule="history",
            )
        if cosines is not None:
            cosines = cosines[np.ix_(kept, kept)]
        result = self.rule.aggregate(
            gated.vectors.astype(np.float32), weights[kept], replace(context, share_max=share_max, cosines=cosines)
        )
        shares = np.zeros(len(deltas))
        shares[kept] = result.weights
        dropped = [*dropped_for("finite", broken)]
        dropped += [(int(sound[index]), reason) for index, reason in gated.dropped]
        dropped += [(int(kept[index]), reason) for index, reason in result.dropped]
        return RobustResult(
            result.delta,
            shares,
            tuple(sorted(dropped)),
            gated.median_norm,
            _widened(result.cosines, context.cosines, kept, len(deltas)),
        )


def _widened(
    cosines: Float64 | None, before: Float64 | None, kept: npt.NDArray[np.intp], groups: int
) -> Float64 | None:
    """The memory of the groups that passed, amid that of all; who was dropped keeps what was known."""
    if cosines is None:
        return None
    wide = np.eye(groups) if before is None else before.copy()
    wide[np.ix_(kept, kept)] = cosines
    return wide
