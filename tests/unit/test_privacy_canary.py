"""Measured, not reckoned: what an attacker who knows everything but one update really tells apart.

The attacker of the definition: it knows all other updates, chose the one in question (the canary), and has only to say
whether the canary was in the sum. Its hits and false alarms give a lower bound of ε; the accountant's must lie above.

Source: Jagielski, Ullman and Oprea 2020, arXiv 2006.07709, section 4 (the bound, with Clopper–Pearson intervals).
"""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vedette_core.privacy.accountant import epsilon_after, gaussian_epsilon
from vedette_core.privacy.noise import add_noise, noise_sigma

DELTA = 0.01
"""Large, so that the sets of outcomes in which ε shows are likely enough to be counted."""
TRIALS = 200_000
CONFIDENCE = 0.999
CLIP_NORM, WEIGHT, DIMENSION = 1.0, 2, 4
STEP = 0.002


def canary() -> np.ndarray:
    """A weighted update at the full norm, in levels from the centre."""
    return np.full(DIMENSION, round(WEIGHT * CLIP_NORM / STEP / math.sqrt(DIMENSION)), np.int64)


def scores(present: bool, sigma: float, releases: int, seed: int) -> np.ndarray:
    """What the best attacker looks at, a trial each: the noised sums less what it knows, along the canary."""
    calls = itertools.count()
    others = np.arange(DIMENSION, dtype=np.int64) * 1000
    total = np.zeros(TRIALS)
    for _ in range(releases):
        sums = np.tile(others + (canary() if present else 0), (TRIALS, 1))
        noised = add_noise(sums, sigma, lambda n: hashlib.shake_256(b"%d/%d" % (seed, next(calls))).digest(n))
        total += (noised - others) @ canary() / np.linalg.norm(canary())
    return total


def measured_epsilon(sigma: float, releases: int) -> float:
    """Lower bound of ε at `DELTA`, holding with `CONFIDENCE`; the threshold is chosen on other trials."""
    with_it, without = scores(True, sigma, releases, 1), scores(False, sigma, releases, 2)

    def bound(threshold: float, hits: np.ndarray, alarms: np.ndarray) -> float:
        risk = (1 - CONFIDENCE) / 2
        true, false = int((hits > threshold).sum()), int((alarms > threshold).sum())
        rate_low = float(stats.beta.ppf(risk, true, TRIALS - true + 1)) if true else 0.0
        false_high = float(stats.beta.ppf(1 - risk, false + 1, TRIALS - false)) if false < TRIALS else 1.0
        return math.log((rate_low - DELTA) / false_high) if rate_low > DELTA else -math.inf

    candidates = np.quantile(with_it, np.linspace(0.02, 0.98, 49))
    best = max(candidates, key=lambda threshold: bound(threshold, with_it, without))
    return bound(best, scores(True, sigma, releases, 3), scores(False, sigma, releases, 4))


@pytest.mark.parametrize(("z", "releases"), [(1.0, 1), (2.0, 1), (3.0, 4)])
def test_no_attack_finds_more_than_the_accountant_says(z: float, releases: int) -> None:
    measured = measured_epsilon(noise_sigma(z, CLIP_NORM, WEIGHT, STEP), releases)
    accounted = epsilon_after(z, releases, DELTA)
    assert measured <= accounted
    assert measured > 0.6 * accounted, "the attack is too weak to say anything"


def test_the_attack_finds_noise_that_is_less_than_was_accounted() -> None:
    measured = measured_epsilon(noise_sigma(0.6, CLIP_NORM, WEIGHT, STEP), 1)
    assert measured > gaussian_epsilon(1.0, DELTA)


def test_the_attack_finds_a_release_that_was_not_counted() -> None:
    measured = measured_epsilon(noise_sigma(2.0, CLIP_NORM, WEIGHT, STEP), 4)
    assert measured > epsilon_after(2.0, 2, DELTA)
