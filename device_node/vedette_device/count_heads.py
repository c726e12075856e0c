"""The behaviour detector's two heads as one score: the network's errors, and each count by itself.

The network sees which counts go together, and dilutes the jump of one; the ensemble sees the jump, and nothing else
(`vedette_core.learning.count_ensemble`). The ensemble is measured on the training rows and both heads on rows that
neither has seen, so that what is usual of the two is measured in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette_core.learning.count_ensemble import CountEnsemble, ScoreHeads
from vedette_core.learning.layout import Float32
from vedette_core.learning.spec import COUNTS, NetworkSpec
from vedette_device.scored_input import ENSEMBLE, NETWORK
from vedette_schemas.errors import PeerError

FloatRows = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CountHeads:
    """Both heads of one model on one device.

    Attributes:
        ensemble: usual value and deviation of each count, in `signed_log1p`.
        usual: what is large for each head.
    """

    ensemble: CountEnsemble
    usual: ScoreHeads

    @classmethod
    def measure(cls, training: FloatRows, held_out: FloatRows, network_scores: FloatRows) -> CountHeads:
        """Measure both heads.

        Args:
            training: ``(n, columns)`` benign rows in `signed_log1p`.
            held_out: ``(m, columns)`` other ones.
            network_scores: ``(m,)`` what the network's head makes of the second ones.

        Raises:
            RefusedError: too few rows.
        """
        ensemble = CountEnsemble.fit(training)
        usual = ScoreHeads.measure({NETWORK: network_scores, ENSEMBLE: ensemble.score(held_out)})
        return cls(ensemble, usual)

    def judge(
        self, rows: FloatRows, network_scores: FloatRows, squared_ratio: Float32
    ) -> tuple[FloatRows, Float32, npt.NDArray[np.bool_]]:
        """One score a row, and what each column had to do with it.

        Args:
            rows: ``(n, columns)`` in `signed_log1p`, not clipped.
            network_scores: ``(n,)``.
            squared_ratio: ``(n, windows, columns)`` squared error of the network over the usual one.

        Returns:
            ``(n,)`` scores, about 1 or less is usual; ``(n, windows, columns)`` squared shares of the head that is
            the further beyond its usual score: the ensemble's are all in the newest window; and ``(n,)`` whether that
            head is the ensemble.
        """
        deviations = self.ensemble.deviations(rows)
        by_ensemble = np.asarray(deviations.max(axis=1))
        scores = self.usual.combine({NETWORK: network_scores, ENSEMBLE: by_ensemble})
        leads = by_ensemble / self.usual.usual[ENSEMBLE] > network_scores / self.usual.usual[NETWORK]
        shares = squared_ratio.copy()
        shares[leads] = 0.0
        shares[leads, -1] = np.square(deviations[leads])
        return scores, shares, np.asarray(leads)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for msgpack."""
        return {"ensemble": self.ensemble.to_dict(), "usual": self.usual.to_dict()}

    @classmethod
    def from_dict(cls, plain: Any, columns: int) -> CountHeads:
        """Read `to_dict`'s form back.

        Raises:
            PeerError: another form, or of another number of columns.
        """
        if not isinstance(plain, Mapping) or set(plain) != {"ensemble", "usual"}:
            raise PeerError("count heads: found another form, expected ensemble and usual", reason="schema")
        heads = cls(CountEnsemble.from_dict(plain["ensemble"]), ScoreHeads.from_dict(plain["usual"]))
        if len(heads.ensemble.centre) != columns or set(heads.usual.usual) != {NETWORK, ENSEMBLE}:
            raise PeerError(
                f"count heads: found {len(heads.ensemble.centre)} columns and heads {sorted(heads.usual.usual)}, "
                f"expected {columns}, {ENSEMBLE} and {NETWORK}",
                reason="schema",
            )
        return heads


def has_heads(spec: NetworkSpec) -> bool:
    """Whether a network is scored with the ensemble beside it."""
    return spec.kind == COUNTS
