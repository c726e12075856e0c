"""The count detector's second head: each count by itself, beside the network that sees how they go together.

A network spreads one count's jump over its bottleneck and averages it with all other errors; an ensemble of one robust
statistic a column sees the jump undiluted, and sees nothing of counts that are each usual and never come together.
Both heads are divided by what is large for them on this device's benign windows, and the larger one is the score.

The ensemble is not in the flatbuffer: medians are of one device and never averaged, and ``max`` over columns would be
an operator that the smallest runtimes lack. It is two vectors and a comparison, on a microcontroller as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError, RefusedError

FloatRows = npt.NDArray[np.float64]

MAD_TO_STD: Final = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations. Source: Rousseeuw and Croux 1993."""
SCALE_MIN: Final = 0.25
"""Smallest scale, in log1p: a count that was constant has no deviation, and its first step from 0 to 1 is then 2.8
units, not infinitely many."""
ROWS_MIN: Final = 8
"""Fewest benign rows: below that a median says nothing."""
USUAL_QUANTILE: Final = 0.99
"""Quantile of a head's benign scores that counts as 1, as in `vedette_core.learning.scoring`."""
USUAL_MIN: Final = 1e-6
"""Keeps the quotient finite for a head that is silent on every benign window."""


@dataclass(frozen=True, slots=True)
class CountEnsemble:
    """Median and robust deviation of every column, in `signed_log1p` of the counts.

    Attributes:
        centre: ``(columns,)`` float64, medians.
        scale: ``(columns,)`` float64, at least `SCALE_MIN`.
    """

    centre: FloatRows
    scale: FloatRows

    @classmethod
    def fit(cls, rows: npt.ArrayLike) -> CountEnsemble:
        """Measure benign rows ``(n, columns)``, n ≥ `ROWS_MIN`, in `signed_log1p` of the counts.

        Up to half of the rows of a column may be anything: the median and the median deviation stay bounded.

        Raises:
            RefusedError: too few rows, or values that are not finite.
        """
        x = np.asarray(rows, dtype=np.float64)
        if x.ndim != 2 or len(x) < ROWS_MIN or not x.shape[1]:
            raise RefusedError(
                f"count ensemble: found benign rows of shape {x.shape}, expected (n ≥ {ROWS_MIN}, columns)",
                rule="examples",
            )
        if not np.isfinite(x).all():
            raise RefusedError("count ensemble: found values that are not finite, expected numbers", rule="finite")
        centre = np.median(x, axis=0)
        spread = MAD_TO_STD * np.median(np.abs(x - centre), axis=0)
        return cls(centre, np.maximum(spread, SCALE_MIN))

    def deviations(self, rows: npt.ArrayLike) -> FloatRows:
        """``(n, columns)`` ≥ 0: distance of each count from its median, in robust deviations."""
        x = np.asarray(rows, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.centre):
            raise ValueError(f"rows: found shape {x.shape}, expected (n, {len(self.centre)})")
        return np.asarray(np.abs(x - self.centre) / self.scale)

    def score(self, rows: npt.ArrayLike) -> FloatRows:
        """``(n,)`` ≥ 0, high = anomalous: the largest deviation of a row; NaN where the row has one."""
        return np.asarray(self.deviations(rows).max(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON or msgpack."""
        return {"centre": self.centre.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, plain: Any) -> CountEnsemble:
        """Read `to_dict`'s form back.

        Raises:
            PeerError: another form, or numbers that `fit` cannot have given.
        """
        try:
            if set(plain) != {"centre", "scale"}:
                raise ValueError(f"fields {sorted(plain)}")
            centre, scale = (np.asarray(plain[name], dtype=np.float64) for name in ("centre", "scale"))
            if centre.ndim != 1 or not len(centre) or centre.shape != scale.shape:
                raise ValueError(f"shapes {centre.shape} and {scale.shape}")
            if not (np.isfinite(centre).all() and np.isfinite(scale).all() and (scale >= SCALE_MIN).all()):
                raise ValueError("a centre that is not finite, or a scale below the smallest")
        except (TypeError, ValueError) as fault:
            raise PeerError(f"count ensemble: found {fault}, expected centre and scale", reason="schema") from fault
        return cls(centre, scale)


@dataclass(frozen=True, slots=True)
class ScoreHeads:
    """What is large for each head on one device, and so how they become one score.

    Attributes:
        usual: positive, by head: its `USUAL_QUANTILE` over benign windows.
    """

    usual: Mapping[str, float]

    @classmethod
    def measure(cls, benign: Mapping[str, npt.ArrayLike]) -> ScoreHeads:
        """Measure scores ``(n,)``, n ≥ 1, of held-out benign windows, by head.

        Raises:
            RefusedError: no head, no scores, or scores that are not finite.
        """
        usual = {}
        for name, found in benign.items():
            scores = np.asarray(found, dtype=np.float64)
            if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
                raise RefusedError(
                    f"score head {name}: found scores of shape {scores.shape}, expected one finite number or more",
                    rule="examples",
                )
            usual[name] = max(float(np.quantile(scores, USUAL_QUANTILE)), USUAL_MIN)
        if not usual:
            raise RefusedError("score heads: found none, expected at least one", rule="examples")
        return cls(usual)

    def combine(self, scores: Mapping[str, npt.ArrayLike]) -> FloatRows:
        """``(n,)`` ≥ 0, about 1 or less is usual: the head that is furthest beyond its own usual score.

        Raises:
            ValueError: other heads than those that were measured.
        """
        if set(scores) != set(self.usual):
            raise ValueError(f"score heads: found {sorted(scores)}, expected {sorted(self.usual)}")
        return np.asarray(np.max([np.asarray(scores[name]) / usual for name, usual in self.usual.items()], axis=0))

    def to_dict(self) -> dict[str, float]:
        """Plain form for JSON or msgpack."""
        return dict(self.usual)

    @classmethod
    def from_dict(cls, plain: Any) -> ScoreHeads:
        """Read `to_dict`'s form back.

        Raises:
            PeerError: another form, or a usual score that is not finite and positive.
        """
        if not isinstance(plain, Mapping) or not plain or not all(isinstance(name, str) for name in plain):
            raise PeerError("score heads: found no map of names, expected a usual score by head", reason="schema")
        for name, usual in plain.items():
            if type(usual) is not float or not math.isfinite(usual) or usual <= 0:
                raise PeerError(f"score head {name}: found {usual!r}, expected a positive number", reason="schema")
        return cls(dict(plain))
