"""Is one sample larger than another by more than is allowed? Mann and Whitney's rank test, with a tolerance.

Ranks do not care how large an outlier is, so that one device that reports nonsense moves little. The control sample is
first made larger by what is allowed; then both directions are asked: is the candidate still larger (worse), or is it
smaller (shown not to be worse)? If neither can be told from chance, nothing is known.

Source: Mann and Whitney 1947, Ann. Math. Stat. 18(1); Conover 1999, *Practical Nonparametric Statistics*, §5.1 (ties,
continuity); Wellek 2010, *Testing Statistical Hypotheses of Equivalence and Noninferiority*, ch. 6 (shifted margin).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Verdict(StrEnum):
    """What a comparison says of the candidate."""

    PASS = "pass"
    INCONCLUSIVE = "inconclusive"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a candidate may be larger by: control · (1 + `relative`) + `absolute`."""

    relative: float = 0.0
    absolute: float = 0.0


def larger_p(first: Sequence[float], second: Sequence[float]) -> float:
    """One-sided p-value of "the first sample is not larger than the second", by the normal approximation.

    With ties and continuity corrected. Samples of a handful make the approximation coarse: callers ask for dozens.

    Raises:
        ValueError: an empty sample, or a value that is not finite.
    """
    values = np.concatenate([np.asarray(first, float), np.asarray(second, float)])
    n, m = len(first), len(second)
    if not n or not m or not np.isfinite(values).all():
        raise ValueError(f"rank test: found samples of {n} and {m}, expected finite values in both")
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks = (upper - (counts - 1) / 2.0)[places]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2.0
    total = n + m
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1)) if total > 1 else 0.0
    variance = n * m / 12.0 * (total + 1 - ties)
    if variance <= 0:
        return 1.0  # all values are alike: nothing is larger
    z = (u - n * m / 2.0 - 0.5) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def compare(
    candidate: Sequence[float], control: Sequence[float], tolerance: Tolerance, *, alpha: float, samples_min: int
) -> Verdict:
    """Judge a figure of which more is worse.

    Args:
        candidate: of devices that run the candidate.
        control: of devices that run the baseline at the same time.
        tolerance: what the candidate may be larger by.
        alpha: how often chance alone may be taken for either answer.
        samples_min: fewest samples on each side; with fewer nothing is known.
    """
    if min(len(candidate), len(control)) < max(1, samples_min):
        return Verdict.INCONCLUSIVE
    allowed = [value * (1.0 + tolerance.relative) + tolerance.absolute for value in control]
    if larger_p(candidate, allowed) < alpha:
        return Verdict.WORSE
    return Verdict.PASS if larger_p(allowed, candidate) < alpha else Verdict.INCONCLUSIVE
