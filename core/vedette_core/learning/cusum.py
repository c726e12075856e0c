"""How high a cumulative sum may climb before it is news: from a budget of false alarms to a limit.

The one-sided sum S ← max(0, S + z − k) finds shifts too small for any single window, and any fixed limit h will be
crossed some day by nothing at all. How often, on average, is what an operator can say; h follows.

Source: Page 1954, Biometrika 41; Siegmund 1985, *Sequential Analysis*, §2.6 and eq. 10.14 (Brownian motion with the
correction 1.166 for what a sum overshoots); Newey and West 1987, Econometrica 55(3) (long-run variance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.tail import Float64

REFERENCE: Final = 0.5
"""k, in standard deviations of z: half of the shift that is found soonest, which is one standard deviation."""
OVERSHOOT: Final = 1.166
"""What a normal random walk overshoots at both ends together, in standard deviations: 2 · 0.583."""
EXPONENT_MAX: Final = 600.0
"""Beyond, the exponential would overflow; no budget comes near it."""
SPREAD_MAX: Final = 32.0
"""Largest long-run standard deviation that is believed: of 1,024 windows that say the same."""


def average_run_length(limit: float, *, spread: float = 1.0, reference: float = REFERENCE) -> float:
    """Windows until the sum of standard normal z passes the limit, on average, when nothing happens.

    Args:
        limit: h ≥ 0.
        spread: long-run standard deviation ω of z a window; 1 where windows are independent.
        reference: k > 0.
    """
    exponent = 2.0 * reference * (limit + OVERSHOOT) / spread**2
    return (math.expm1(exponent) - exponent) * spread**2 / (2.0 * reference**2)


def limit_for(run_length: float, *, spread: float = 1.0, reference: float = REFERENCE) -> float:
    """The limit h that is passed once in `run_length` windows, on average, when nothing happens.

    Where windows depend on each other (`spread` > 1) it is passed less often: the approximation knows how far a sum
    strays in the long run, and not that a short excursion is made of windows that say the same. Three to five times
    less often in simulations of moving averages and of first-order autoregression.

    Args:
        run_length: windows, finite and > 0; one that even h = 0 keeps gives 0.
        spread: as for `average_run_length`.
        reference: k > 0.

    Raises:
        ValueError: a number out of its range.
    """
    if not (0.0 < run_length < math.inf and 0.0 < reference < math.inf and 0.0 < spread < math.inf):
        raise ValueError(
            f"cusum: found run length {run_length}, spread {spread} and reference {reference}, expected all above 0"
        )
    wanted = 2.0 * reference**2 * run_length / spread**2
    low, high = 0.0, EXPONENT_MAX
    for _ in range(100):
        middle = 0.5 * (low + high)
        if math.expm1(middle) - middle < wanted:
            low = middle
        else:
            high = middle
    return max(high * spread**2 / (2.0 * reference) - OVERSHOOT, 0.0)


def long_run_spread(z: Float64, entities: Sequence[str], lags: int) -> float:
    """Standard deviation per window of a long sum of z, at least 1: neighbours that look at the same data count less.

    Bartlett's weights keep the estimate positive; it is centred on
    0 and not on the mean, which is what calibrated z have, and errs upwards where they do not.

    Args:
        z: ``(n,)`` of benign windows, oldest first.
        entities: whose window each is.
        lags: windows over which neighbours are alike: those that a model input looks at.

    Raises:
        ValueError: not as many entities as windows.
    """
    names = np.array(entities)
    if len(names) != len(z):
        raise ValueError(f"cusum: found {len(names)} entities of {len(z)} windows")
    total, count = 0.0, 0
    for name in dict.fromkeys(entities):
        own: npt.NDArray[np.float64] = z[names == name]
        total += float(own @ own)
        for lag in range(1, min(lags, len(own) - 1) + 1):
            total += 2.0 * (1.0 - lag / (lags + 1.0)) * float(own[lag:] @ own[:-lag])
        count += len(own)
    return min(max(math.sqrt(max(total, 0.0) / max(count, 1)), 1.0), SPREAD_MAX)
