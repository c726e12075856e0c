"""From an anomaly score to a p-value that keeps its promise, on one device and for one detector.

The calibration is split-conformal: a score is ranked among scores of benign windows that the model was not trained
on. Beyond the largest of them a generalised-Pareto tail (`vedette_core.learning.tail`) says how much further out a
score is, within bounds. With fewer than `RANKS_ENOUGH` of them the tail has a say among the largest ones as well: the
larger of both p-values counts. Thresholds of other devices are never averaged in.

Source: Vovk et al. 2005, *Algorithmic Learning in a Random World*, §4.2 (inductive conformal p-values); Bates et al.
2023, arXiv 2104.08279 (use for outlier tests); Siffer et al. 2017, KDD, §3 (peaks over threshold).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.tail import TAIL_SHARE, Float64, Tail, fit_tail
from vedette_schemas.errors import PeerError

SCORES_MIN: Final = 20
"""Fewest calibration scores: with fewer, no p-value could fall below 0.05 and the brake could not tell rare ones."""
SCORES_MAX: Final = 65_536
"""Most calibration scores that are kept or accepted from storage: half a megabyte."""
TAIL_RANKS: Final = 10
"""Ranks below this are backed by the tail in a small calibration. Of 100 scores the largest one alone would decide at
α = 1 %: in nine of ten samples of several laws the rate that it let through was 0.05 to 3 times α."""
RANKS_ENOUGH: Final = 1000
"""10 / α at α = 1 %: a calibration from here on is ranked without the tail, down to the largest score. With fewer the
rate at 1 % was nearer to its promise with the tail for each of five laws (100 scores: root mean square error 0.77–0.96
of α, against 0.88–1.04 without); with more, the tail turned 0.1 % into a fiftieth of it where scores have an upper
end."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Benign scores that later scores are ranked among.

    For exchangeable benign scores P(p ≤ t) ≤ t holds for every t ≥ 1 / (n + 1), whatever the scores' law. Below that
    the p-value rests on the fitted tail, is a model's word and not a guarantee, and is never smaller than `floor`.
    Above it the tail can only make a p-value larger, which takes nothing from the promise.

    Attributes:
        ordered: ``(n,) float64`` benign scores, ascending, finite.
        tail: law of the largest scores and beyond, where there are enough to fit one.
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

    @property
    def _backed(self) -> int:
        """The last rank that the tail has a say in, and what it says at most; beyond all scores the rank is 1."""
        return TAIL_RANKS if self.size < RANKS_ENOUGH else 1

    def p_values(self, scores: npt.ArrayLike) -> Float64:
        """Conformal p-values r / (n + 1), r = 1 + #{benign ≥ score}, and by the tail where they end.

        They fall with the score and lie in (0, 1]. The cost is one binary search a score.

        Args:
            scores: ``(m,)`` scores; infinity is allowed.

        Returns:
            ``(m,) float64``.

        Raises:
            ValueError: a score is NaN.
        """
        values = np.atleast_1d(np.asarray(scores, np.float64))
        places, backed = self.size + 1, self._backed
        ranks = places - self.ordered.searchsorted(values, side="left")
        p: Float64 = np.asarray(ranks / places, np.float64)
        few = ranks <= backed
        if not np.count_nonzero(few):  # faster than `any`; NaN would be here, for it is sorted behind every score
            return p
        if np.isnan(values).any():
            raise ValueError(f"scores: found {int(np.isnan(values).sum())} NaN of {values.size}, expected none")
        if self.tail is not None:
            tail = np.clip(self.tail.exceedance(values[few]), self.floor, backed / places)
            # Beyond all of them the rank has nothing more to say.
            p[few] = np.where(ranks[few] == 1, tail, np.maximum(tail, p[few]))
        return p

    def threshold(self, alpha: float) -> float:
        """The largest score that is *not* significant at `alpha`: p ≤ α if and only if the score is above it.

        Args:
            alpha: 0 < α < 1. One that is smaller than `floor` is taken for `floor`.
        """
        alpha = max(alpha, self.floor)
        rank = int(alpha * (self.size + 1) * (1.0 + 1e-12))  # α = k / (n + 1) must not lose its k by rounding
        if rank > self.size:
            return float("-inf")
        ranked = float(self.ordered[-rank]) if rank >= 1 else self.largest
        if self.tail is None or rank >= self._backed:
            return ranked
        return max(self.tail.quantile(alpha), ranked)


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
