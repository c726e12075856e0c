"""How far beyond a high level benign scores go: peaks over threshold, fitted by probability-weighted moments.

Weighted moments instead of the paper's maximum likelihood: a gateway fits ten to some hundred exceedances, where they
are no less exact for the shapes that are believed, always exist, and need no iteration. The law is
fitted anew whenever one of its scores changes, which is what makes it the streaming one of the paper.

Source: Siffer et al. 2017, KDD, §3 (SPOT: peaks over threshold on streams); Hosking and Wallis 1987, Technometrics
29(3), eq. 2-4 (the fit) and §5 (its errors against likelihood's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

TAIL_SHARE: Final = 0.1
"""Share of the calibration scores that the tail is fitted to. Five per cent are usual with thousands of scores; a
gateway has hundreds, of which five per cent are too few to tell a shape."""
TAIL_EXCEEDANCES_MIN: Final = 8
"""Fewest exceedances that a tail is fitted to; with fewer there is none, and no p-value below 1 / (n + 1)."""
TAIL_SHAPE_EXCEEDANCES_MIN: Final = 30
"""Fewest exceedances for a law with a shape; with fewer it is exponential, whose one number ten of them can tell."""
TAIL_SHAPE_MAX: Final = 0.5
"""Heaviest tail that is believed. Above it the variance is infinite and so is that of the fit."""
EXPONENTIAL_BELOW: Final = 1e-9
"""Shapes below this are computed as 0: the law's formula would divide by them."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Generalised-Pareto law of how far scores pass a high level.

    Attributes:
        level: the score from which on it speaks.
        share: part of the calibration scores above the level.
        shape: ξ in [0, `TAIL_SHAPE_MAX`]; 0 is the exponential law. A fit with a finite end point is not believed:
            it would call the first score beyond that point impossible.
        scale: σ > 0, in the score's unit.
    """

    level: float
    share: float
    shape: float
    scale: float

    def exceedance(self, scores: Float64) -> Float64:
        """Probability of a score at least this large, for scores ≥ `level`; ``(n,) float64``."""
        beyond = np.maximum(scores - self.level, 0.0) / self.scale
        if self.shape < EXPONENTIAL_BELOW:
            return np.asarray(self.share * np.exp(-beyond))
        return np.asarray(self.share * (1.0 + self.shape * beyond) ** (-1.0 / self.shape))

    def quantile(self, p_value: float) -> float:
        """The score that is passed with probability `p_value` < `share`."""
        ratio = self.share / p_value
        if self.shape < EXPONENTIAL_BELOW:
            return float(self.level + self.scale * np.log(ratio))
        return float(self.level + self.scale / self.shape * (ratio**self.shape - 1.0))


def fit_tail(ordered: Float64) -> Tail | None:
    """Fit the tail to the top `TAIL_SHARE` of benign scores.

    Args:
        ordered: ``(n,)`` scores, ascending.

    Returns:
        The tail; None where there are fewer than `TAIL_EXCEEDANCES_MIN` exceedances, or all are equal.
    """
    count = int(len(ordered) * TAIL_SHARE)
    if count < TAIL_EXCEEDANCES_MIN:
        return None
    level = float(ordered[-count - 1])
    beyond = ordered[-count:] - level
    if beyond[-1] == beyond[0] or float(beyond.mean()) <= 0.0:
        return None
    shape, scale = weighted_moments(beyond)
    bounded = min(max(shape, 0.0), TAIL_SHAPE_MAX) if count >= TAIL_SHAPE_EXCEEDANCES_MIN else 0.0
    if bounded != shape:
        # With the shape bounded, the scale follows from the mean, which is σ / (1 − ξ).
        scale = float(beyond.mean()) * (1.0 - bounded)
    return Tail(level, count / len(ordered), bounded, scale)


def weighted_moments(beyond: Float64) -> tuple[float, float]:
    """Shape ξ and scale σ of a generalised-Pareto law with the sample's first two weighted moments.

    Args:
        beyond: ``(n,)`` exceedances ≥ 0, ascending, of which at least one is larger than 0.

    Returns:
        ξ < 1 and σ > 0, not bounded; ξ = `TAIL_SHAPE_MAX` where the moments are those of no such law.
    """
    count, mean = len(beyond), float(beyond.mean())
    # Second weighted moment, E[x (1 − F(x))], with plotting positions (i + 0.65) / n.
    weighted = float(np.mean(beyond * (1.0 - (np.arange(count) + 0.65) / count)))
    shape = 2.0 - mean / (mean - 2.0 * weighted) if mean > 2.0 * weighted else TAIL_SHAPE_MAX
    return shape, mean * (1.0 - shape)
