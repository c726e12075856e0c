"""Whether scores still follow the law that they were calibrated on, and whether a stream's level has changed.

Three questions, because each is blind to what another sees: the population stability index weighs how far two
distributions are apart, however many scores there are; Kolmogorov's test says whether it can be chance; the adaptive
window finds when a mean changed, at any scale, and forgets what was before. None of them says why: an attack moves
scores too.

Source: Siddiqi 2006, *Credit Risk Scorecards*, §7 (PSI and its customary limits); Kolmogorov 1933, Smirnov 1948 and
Stephens 1970, JRSS B 32(1), §3 (the law of the distance and its correction for small samples); Bifet and Gavaldà 2007,
SDM, §3-4 (ADWIN2: the adaptive window over exponential buckets).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

PSI_SHIFTED: Final = 0.25
"""Customary limit from which a population counts as another one; from 0.1 on it is worth a look."""
PSI_BINS: Final = 10
"""Deciles, as is customary."""
PSI_MASS: Final = 0.5
"""Counts that every bin has before any came: an empty one would make the index infinite."""
ADWIN_BUCKETS: Final = 5
"""M: buckets of one size before two become one. More cut the window finer; 5 is the paper's."""
ADWIN_LEVELS_MAX: Final = 20
"""Sizes of buckets, 1 to 2¹⁹: five millions of values. What is older is forgotten."""
ADWIN_PART_MIN: Final = 5
"""Fewest values on either side of a cut."""


def population_stability(expected: npt.ArrayLike, found: npt.ArrayLike) -> float:
    """PSI of two histograms with the same bins: Σ (fᵢ − eᵢ) ln(fᵢ / eᵢ) over their shares; 0 for equal ones.

    Args:
        expected: ``(bins,)`` counts or weights ≥ 0.
        found: ``(bins,)`` counts ≥ 0.

    Raises:
        ValueError: other shapes, negative counts, or none at all.
    """
    e, f = (np.asarray(x, np.float64).reshape(-1) for x in (expected, found))
    if e.shape != f.shape or not len(e) or (e < 0).any() or (f < 0).any() or e.sum() <= 0 or f.sum() <= 0:
        raise ValueError(f"psi: found {len(e)} and {len(f)} bins, expected as many counts ≥ 0 of both, not all 0")
    # Both are smoothed as if there were as many of each: otherwise a short sample would differ from itself.
    e = e / e.sum() * f.sum()
    p, q = ((x + PSI_MASS) / (x + PSI_MASS).sum() for x in (f, e))
    return float(((p - q) * np.log(p / q)).sum())


def psi_of_p_values(p_values: npt.ArrayLike) -> float:
    """PSI of p-values in (0, 1] against what a calibration that holds gives: as many in each tenth.

    Raises:
        ValueError: there are none.
    """
    places = np.minimum((np.asarray(p_values, np.float64) * PSI_BINS).astype(np.int64), PSI_BINS - 1)
    return population_stability(np.ones(PSI_BINS), np.bincount(places, minlength=PSI_BINS))


def column_stability(reference: npt.ArrayLike, found: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """PSI of each column of newer rows against earlier ones, in tenths of the earlier ones.

    Tenths that have the same end are one: of a column that is nearly always zero, zero and not zero are left. With m
    newer rows chance alone gives about 9 / m.

    Args:
        reference: ``(n, columns)`` finite values.
        found: ``(m, columns)`` finite values.

    Returns:
        ``(columns,) float64`` ≥ 0.

    Raises:
        ValueError: other numbers of columns, or no rows.
    """
    e, f = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    if e.ndim != 2 or f.ndim != 2 or e.shape[1] != f.shape[1] or not len(e) or not len(f):
        raise ValueError(f"column stability: found shapes {e.shape} and {f.shape}, expected rows of as many columns")
    ends = np.quantile(e, np.arange(1, PSI_BINS) / PSI_BINS, axis=0)
    out = np.zeros(e.shape[1])
    for column in range(e.shape[1]):
        edges = np.unique(ends[:, column])
        bins = len(edges) + 1
        counts = [np.bincount(np.searchsorted(edges, x[:, column], side="left"), minlength=bins) for x in (e, f)]
        out[column] = population_stability(*counts)
    return out


def distance_from_even(p_values: npt.ArrayLike) -> float:
    """Kolmogorov's distance of p-values in (0, 1] from even ones: 0 for a calibration that holds exactly.

    Raises:
        ValueError: there are none.
    """
    ordered = np.sort(np.asarray(p_values, np.float64).reshape(-1))
    if not len(ordered):
        raise ValueError("p-values: found none, expected some")
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.maximum(steps - ordered, ordered - (steps - 1.0 / len(ordered))).max())


def kolmogorov_smirnov(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float]:
    """Largest distance of two samples' distribution functions, and how likely one at least as large is by chance.

    The probability is that of independent values: thin out neighbours that depend on each other before.

    Args:
        a: ``(n,)`` values, finite.
        b: ``(m,)`` values, finite.

    Returns:
        D in [0, 1], and its p-value in [0, 1].

    Raises:
        ValueError: an empty sample, or values that are not finite.
    """
    x, y = (np.sort(np.asarray(v, np.float64).reshape(-1)) for v in (a, b))
    if not len(x) or not len(y) or not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError(f"kolmogorov-smirnov: found {len(x)} and {len(y)} values, expected some, all finite")
    both = np.concatenate([x, y])
    distance = np.abs(
        np.searchsorted(x, both, side="right") / len(x) - np.searchsorted(y, both, side="right") / len(y)
    ).max()
    root = math.sqrt(len(x) * len(y) / (len(x) + len(y)))
    return float(distance), kolmogorov_survival(float(distance) * (root + 0.12 + 0.11 / root))


def kolmogorov_survival(x: float) -> float:
    """P(K ≥ x) of Kolmogorov's law, for x ≥ 0."""
    if x < 0.2:
        return 1.0  # within 5e-13
    if x < 1.0:
        # The other form of the same series, which converges where the first one does not.
        terms = (math.exp(-((2 * i - 1) ** 2) * math.pi**2 / (8.0 * x * x)) for i in range(1, 8))
        return 1.0 - math.sqrt(2.0 * math.pi) / x * sum(terms)
    return min(max(2.0 * sum((-1.0) ** (i - 1) * math.exp(-2.0 * (i * x) ** 2) for i in range(1, 16)), 0.0), 1.0)


class AdaptiveWindow:
    """Mean of a stream's newest stretch that shows no change of mean; ADWIN.

    Whenever the mean of some older part and that of the rest differ by more than chance allows, the older part is
    dropped. Buckets of growing size hold it: `ADWIN_BUCKETS` of each power of two, whatever the stream's length.

    Args:
        confidence: δ: bounds how likely a step of a stream without change finds one, for independent values.
    """

    def __init__(self, confidence: float = 0.002) -> None:
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"adaptive window: found confidence {confidence}, expected a probability")
        self._confidence = confidence
        # Newest last, a level of 2^i values a bucket each: (sum, sum of squared deviations from the bucket's mean).
        self._levels: list[list[tuple[float, float]]] = [[]]
        self.changes = 0

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(len(level) << i for i, level in enumerate(self._levels))

    @property
    def mean(self) -> float:
        """Their mean; 0 while there are none."""
        width = self.width
        return sum(total for level in self._levels for total, _ in level) / width if width else 0.0

    def push(self, value: float) -> bool:
        """Add a value in [0, 1].

        Returns:
            Whether the mean has changed: what was before the change is forgotten then.

        Raises:
            ValueError: a value outside.
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"adaptive window: found {value}, expected a value in [0, 1]")
        self._levels[0].append((value, 0.0))
        self._compress()
        changed = False
        while self._cut():
            changed = True
        self.changes += changed
        return changed

    def _compress(self) -> None:
        for i in range(ADWIN_LEVELS_MAX):
            if len(self._levels[i]) <= ADWIN_BUCKETS:
                return
            (a, p), (b, q) = self._levels[i][:2]
            del self._levels[i][:2]
            if i + 1 == ADWIN_LEVELS_MAX:
                return
            if i + 1 == len(self._levels):
                self._levels.append([])
            size = 1 << i
            self._levels[i + 1].append((a + b, p + q + (a - b) ** 2 / (2.0 * size)))

    def _cut(self) -> bool:
        """Drop the oldest bucket if some cut of the window shows a change."""
        buckets = list(self._oldest_first())
        width, total = sum(b[0] for b in buckets), sum(b[1] for b in buckets)
        if width < 2 * ADWIN_PART_MIN:
            return False
        mean = total / width
        spread = sum(deviation + size * (part / size - mean) ** 2 for size, part, deviation in buckets) / width
        log = math.log(2.0 * max(math.log(width), 1.0) / self._confidence)
        older, sum_older = 0, 0.0
        for size, part, _ in buckets[:-1]:
            older, sum_older = older + size, sum_older + part
            newer = width - older
            if older < ADWIN_PART_MIN or newer < ADWIN_PART_MIN:
                continue
            inverse = 1.0 / older + 1.0 / newer
            chance = math.sqrt(2.0 * inverse * spread * log) + 2.0 / 3.0 * inverse * log
            if abs(sum_older / older - (total - sum_older) / newer) > chance:
                del self._levels[-1][0]
                while len(self._levels) > 1 and not self._levels[-1]:
                    del self._levels[-1]
                return True
        return False

    def _oldest_first(self) -> Iterator[tuple[int, float, float]]:
        for i in range(len(self._levels) - 1, -1, -1):
            for total, deviation in self._levels[i]:
                yield 1 << i, total, deviation
