"""From an anomaly score to a p-value that keeps its promise, on one device and for one detector.

The calibration is split-conformal: a score is ranked among scores of benign windows that the model was not trained
on. Beyond the largest of them a generalised-Pareto tail says how much further out a score is, within bounds.
Thresholds of other devices are never averaged in: scores of different devices are not on one scale.

Source: Vovk et al. 2005, *Algorithmic Learning in a Random World*, §4.2 (inductive conformal p-values); Bates et al.
2023, arXiv 2104.08279 (use for outlier tests); Siffer et al. 2017, KDD, §3 (peaks over threshold); Hosking and
Wallis 1987, Technometrics 29(3), eq. 2–4 (fit by probability-weighted moments).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError

Float64 = npt.NDArray[np.float64]

SCORES_MIN: Final = 20
"""Fewest calibration scores: with fewer, no p-value could fall below 0.05 and the brake could not tell rare ones."""
SCORES_MAX: Final = 65_536
"""Most calibration scores that are kept or accepted from storage: half a megabyte."""
TAIL_SHARE: Final = 0.1
"""Share of the calibration scores that the tail is fitted to. Five per cent are usual with thousands of scores; a
gateway has hundreds, of which five per cent are too few to tell a shape."""
TAIL_EXCEEDANCES_MIN: Final = 8
"""Fewest exceedances that a tail is fitted to; with fewer there is none, and no p-value below 1 / (n + 1)."""
TAIL_SHAPE_EXCEEDANCES_MIN: Final = 30
"""Fewest exceedances for a law with a shape; with fewer it is exponential, whose one number ten of them can tell."""
TAIL_SHAPE_MAX: Final = 0.5
"""Heaviest tail that is believed. Above it the variance is infinite and so is that of the fit."""
EXTRAPOLATION_MAX: Final = 100.0
"""How many times smaller than 1 / (n + 1) a p-value may get by the tail alone: two decades, no matter how far out the
score is. A fit to a few dozen points cannot vouch for more."""
BRAKE_P: Final = 0.05
"""Scores with a smaller p-value enter a rolling calibration at `BRAKE_RATE` only."""
BRAKE_RATE: Final = 100
"""One of how many rare scores is taken in."""
Z_MIN: Final = -3.0
Z_MAX: Final = 8.0
"""Range of a z-score. Its lower end keeps one unusually quiet window from cancelling several loud ones."""

_NORMAL: Final = NormalDist()


def z_score(p_value: float) -> float:
    """Φ⁻¹(1 − p): the p-value on the scale of a standard normal, in [`Z_MIN`, `Z_MAX`].

    Args:
        p_value: in (0, 1].
    """
    if p_value >= 1.0:
        return Z_MIN
    # −Φ⁻¹(p) is the same number; 1 − p would lose every digit of a small p.
    return min(max(-_NORMAL.inv_cdf(p_value), Z_MIN), Z_MAX)


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
        if self.shape < 1e-9:
            return np.asarray(self.share * np.exp(-beyond))
        return np.asarray(self.share * (1.0 + self.shape * beyond) ** (-1.0 / self.shape))

    def quantile(self, p_value: float) -> float:
        """The score that is passed with probability `p_value` < `share`."""
        ratio = self.share / p_value
        if self.shape < 1e-9:
            return float(self.level + self.scale * np.log(ratio))
        return float(self.level + self.scale / self.shape * (ratio**self.shape - 1.0))


def fit_tail(ordered: Float64) -> Tail | None:
    """Fit the tail to the top `TAIL_SHARE` of benign scores by probability-weighted moments.

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
    mean = float(beyond.mean())
    if mean <= 0.0 or beyond[-1] == beyond[0]:
        return None
    # Second weighted moment, E[x (1 − F(x))], with plotting positions (i + 0.65) / n.
    weighted = float(np.mean(beyond * (1.0 - (np.arange(count) + 0.65) / count)))
    shape = 2.0 - mean / (mean - 2.0 * weighted) if mean > 2.0 * weighted else TAIL_SHAPE_MAX
    shape = min(max(shape, 0.0), TAIL_SHAPE_MAX) if count >= TAIL_SHAPE_EXCEEDANCES_MIN else 0.0
    # With the shape bounded, the scale follows from the mean, which is σ / (1 − ξ).
    return Tail(level, count / len(ordered), shape, mean * (1.0 - shape))


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Benign scores that later scores are ranked among.

    For exchangeable benign scores P(p ≤ t) ≤ t holds for every t ≥ 1 / (n + 1), whatever the scores' law. Below that
    the p-value rests on the fitted tail, is a model's word and not a guarantee, and is never smaller than `floor`.

    Attributes:
        ordered: ``(n,) float64`` benign scores, ascending, finite.
        tail: law of the scores beyond the largest, where there are enough to fit one.
    """

    ordered: Float64
    tail: Tail | None

    @property
    def size(self) -> int:
        """Number n of calibration scores."""
        return len(self.ordered)

    @property
    def floor(self) -> float:
        """Smallest p-value that this calibration ever gives."""
        return 1.0 / (self.size + 1) / (EXTRAPOLATION_MAX if self.tail else 1.0)

    @property
    def largest(self) -> float:
        """The largest benign score."""
        return float(self.ordered[-1])

    def p_values(self, scores: npt.ArrayLike) -> Float64:
        """Conformal p-values (1 + #{benign ≥ score}) / (n + 1), continued by the tail beyond the largest benign score.

        They fall with the score and lie in (0, 1]. The cost is one binary search a score.

        Args:
            scores: ``(m,)`` scores; infinity is allowed.

        Returns:
            ``(m,) float64``.

        Raises:
            ValueError: a score is NaN.
        """
        values = np.atleast_1d(np.asarray(scores, np.float64))
        if np.isnan(values).any():
            raise ValueError(f"scores: found {int(np.isnan(values).sum())} NaN of {values.size}, expected none")
        at_least = self.size - np.searchsorted(self.ordered, values, side="left")
        p: Float64 = np.asarray((1.0 + at_least) / (self.size + 1.0), np.float64)
        if self.tail is not None:
            beyond = at_least == 0
            if beyond.any():
                p[beyond] = np.clip(self.tail.exceedance(values[beyond]), self.floor, 1.0 / (self.size + 1))
        return p

    def threshold(self, alpha: float) -> float:
        """The largest score that is *not* significant at `alpha`: p ≤ α if and only if the score is above it.

        Args:
            alpha: 0 < α < 1. One that is smaller than `floor` is taken for `floor`.
        """
        alpha = max(alpha, self.floor)
        rank = int(alpha * (self.size + 1) * (1.0 + 1e-12))  # α = k / (n + 1) must not lose its k by rounding
        if rank >= 1:
            return float(self.ordered[-rank]) if rank <= self.size else float("-inf")
        if self.tail is None:
            return self.largest
        return max(self.tail.quantile(alpha), self.largest)


def calibrate(scores: npt.ArrayLike) -> Calibration:
    """Calibrate on benign scores.

    Args:
        scores: ``(n,)`` scores of held-out benign windows, in any order.

    Raises:
        ValueError: fewer than `SCORES_MIN`, more than `SCORES_MAX`, or not all finite.
    """
    ordered = np.sort(np.asarray(scores, np.float64).reshape(-1))
    if not SCORES_MIN <= len(ordered) <= SCORES_MAX:
        raise ValueError(f"calibration: found {len(ordered)} scores, expected {SCORES_MIN} to {SCORES_MAX}")
    if not np.isfinite(ordered).all():
        bad = int((~np.isfinite(ordered)).sum())
        raise ValueError(f"calibration: found {bad} scores of {len(ordered)} that are not finite, expected none")
    ordered.setflags(write=False)
    return Calibration(ordered, fit_tail(ordered))


class RollingCalibration:
    """A calibration that follows slow benign change, and that an attacker cannot talk into anything quickly.

    A score with p > `BRAKE_P` is taken in at once, a rarer one only every `BRAKE_RATE`-th time, and none while the
    calibration is frozen (an alert is open). Common and rare scores replace the oldest score *of their own kind*:
    with one common queue the rare ones would be flushed out, the threshold would sink into the bulk of the benign
    scores, and false alarms would grow with every turn.

    Args:
        scores: ``(n,)`` benign scores, oldest first.

    Raises:
        ValueError: as `calibrate`.
    """

    def __init__(self, scores: npt.ArrayLike) -> None:
        self._scores = np.array(scores, np.float64).reshape(-1)
        self._ordered = np.sort(self._scores)
        self._tail = calibrate(self._scores).tail
        self._tail_from = self._level()
        rare = int(BRAKE_P * (len(self._scores) + 1))
        by_score = np.argsort(-self._scores, kind="stable")
        # Positions of each kind, oldest first, and where the next of that kind goes.
        self._places = [np.sort(by_score[rare:]), np.sort(by_score[:rare])]
        self._next = [0, 0]
        self._rare_seen = 0

    @property
    def current(self) -> Calibration:
        """The calibration as it stands; `observe` changes what it refers to."""
        return Calibration(self._ordered, self._tail)

    def observe(self, score: float, p_value: float) -> int | None:
        """Offer a score that was just judged; do not call it while the calibration is frozen.

        Args:
            score: the score.
            p_value: its p-value by `current`.

        Returns:
            The place, 0 … n − 1, of the score that it replaced; None if it was not taken in.
        """
        if not np.isfinite(score):
            return None
        kind = int(p_value <= BRAKE_P)
        if kind:
            self._rare_seen += 1
            if self._rare_seen % BRAKE_RATE:
                return None
        places = self._places[kind]
        place = int(places[self._next[kind]])
        self._next[kind] = (self._next[kind] + 1) % len(places)
        old = float(self._scores[place])
        self._replace(old, score)
        self._scores[place] = score
        if max(old, score) >= self._tail_from:  # below, nothing that the tail is fitted to has changed
            self._tail = fit_tail(self._ordered)
            self._tail_from = self._level()
        return place

    def _level(self) -> float:
        return float(self._ordered[-int(len(self._ordered) * TAIL_SHARE) - 1])

    def _replace(self, old: float, new: float) -> None:
        """Keep `_ordered` in order: move what lies between the two scores by one place."""
        gone = int(np.searchsorted(self._ordered, old))
        at = int(np.searchsorted(self._ordered, new))
        if at > gone:
            self._ordered[gone : at - 1] = self._ordered[gone + 1 : at]
            self._ordered[at - 1] = new
        else:
            self._ordered[at + 1 : gone + 1] = self._ordered[at:gone]
            self._ordered[at] = new

    def to_state(self) -> dict[str, Any]:
        """Plain form for msgpack."""
        return {
            "scores": self._scores.astype("<f8").tobytes(),
            "rare": self._places[1].astype("<u4").tobytes(),
            "next": list(self._next),
            "rare_seen": self._rare_seen,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RollingCalibration:
        """Read `to_state`'s form back.

        Raises:
            PeerError: fields are missing or do not fit each other.
        """
        try:
            rolling = cls(np.frombuffer(state["scores"], "<f8"))
            rare = np.frombuffer(state["rare"], "<u4").astype(np.int64)
            size = len(rolling._scores)
            common = np.setdiff1d(np.arange(size), rare)
            if len(rare) != len(rolling._places[1]) or len(common) != size - len(rare):
                raise ValueError(f"{len(rare)} places of rare scores")
            rolling._places = [common, rare]
            following, seen = [int(i) for i in state["next"]], int(state["rare_seen"])
            if not (0 <= following[0] < len(common) and 0 <= following[1] < len(rare) and seen >= 0):
                raise ValueError(f"next = {following}, rare_seen = {seen}")
        except (KeyError, ValueError, TypeError, IndexError) as fault:
            raise PeerError(f"calibration state: found {fault}, expected what `to_state` gives") from fault
        rolling._next, rolling._rare_seen = following, seen
        return rolling


def smoothing(elapsed: float, half_life: float) -> float:
    """Weight of a new value in an exponential moving average, after `elapsed` with the given half-life (same unit)."""
    return 1.0 - math.pow(0.5, max(elapsed, 0.0) / half_life)
