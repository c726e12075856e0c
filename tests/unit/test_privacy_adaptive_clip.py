from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from vedette_core.privacy.accountant import composed_multiplier
from vedette_core.privacy.adaptive_clip import (
    ClipBounds,
    count_sigma,
    next_clip_norm,
    noisy_clipped_share,
    sum_multiplier,
)
from vedette_schemas.errors import RefusedError

WIDE = ClipBounds(1e-6, 1e6)


def entropy_of(seed: int) -> Callable[[int], bytes]:
    calls = itertools.count()
    return lambda size: hashlib.shake_256(b"%d/%d" % (seed, next(calls))).digest(size)


@pytest.mark.parametrize(("clipped", "exponent"), [(0.5, 0.0), (1.0, 0.1), (0.0, -0.1), (0.75, 0.05)])
def test_the_norm_moves_by_the_published_rule(clipped: float, exponent: float) -> None:
    assert next_clip_norm(2.0, clipped, WIDE) == pytest.approx(2.0 * math.exp(exponent))


@pytest.mark.parametrize("clipped", [-1e9, -0.3, 1.3, 1e9, math.inf, -math.inf])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
def test_noise_on_the_share_never_moves_it_by_more_than_the_rate_says(clipped: float, quantile: float) -> None:
    moved = next_clip_norm(1.0, clipped, WIDE, target_quantile=quantile)
    assert math.exp(-0.2) * (1 - 1e-12) <= moved <= math.exp(0.2) * (1 + 1e-12)


def test_the_norm_stays_within_its_bounds_and_comes_back_to_them() -> None:
    bounds = ClipBounds(0.5, 2.0)
    assert next_clip_norm(1.95, 1.0, bounds) == 2.0
    assert next_clip_norm(0.51, 0.0, bounds) == 0.5
    assert next_clip_norm(9.0, 0.5, bounds) == 2.0
    assert next_clip_norm(0.01, 0.5, bounds) == 0.5


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.9])
def test_it_finds_the_quantile_under_noise(quantile: float) -> None:
    """Log-normal norms, 400 devices a round, from a start that is ten times too large."""
    rng, entropy = np.random.default_rng(3), entropy_of(3)
    norm, reached = 10.0, []
    for number in range(300):
        norms = rng.lognormal(0.0, 0.5, 400)
        share = noisy_clipped_share(int((norms > norm).sum()), 400, count_sigma(400, 2.0), entropy)
        norm = next_clip_norm(norm, share, WIDE, target_quantile=quantile)
        if number >= 200:
            reached.append(float((rng.lognormal(0.0, 0.5, 4000) <= norm).mean()))
    assert np.mean(reached) == pytest.approx(quantile, abs=0.03)


@pytest.mark.parametrize(("z", "devices"), [(0.5, 1000), (2.0, 100), (4.0, 20), (4.0, 1)])
def test_sum_and_count_together_cost_what_the_ledger_counts(z: float, devices: int) -> None:
    """The count's multiplier is 2σ_b, as a bit moves it by ½ from where a zero update's would be."""
    sigma = count_sigma(devices, z)
    assert composed_multiplier([sum_multiplier(z, sigma), 2.0 * sigma]) == pytest.approx(z, rel=1e-12)
    assert z < sum_multiplier(z, sigma) <= 1.033 * z


def test_a_twentieth_of_a_large_fleet_is_the_papers_noise() -> None:
    assert count_sigma(2000, 2.0) == 100.0
    assert count_sigma(20, 2.0) == 4.0


@pytest.mark.parametrize("sigma", [0.0, 1.0, -1.0, math.nan])
def test_a_count_that_gives_everything_away_is_refused(sigma: float) -> None:
    with pytest.raises(RefusedError, match="clipped count") as refusal:
        sum_multiplier(2.0, sigma)
    assert refusal.value.rule == "noise"


def test_the_noisy_share_has_the_noise_that_was_asked_for() -> None:
    entropy = entropy_of(7)
    shares = np.array([noisy_clipped_share(30, 100, 5.0, entropy) for _ in range(4000)])
    assert shares.mean() == pytest.approx(0.3, abs=4 * 0.05 / math.sqrt(4000))
    assert shares.std() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("modulus", [2**16, 2**32])
def test_a_count_is_noised_as_a_residue_and_read_afterwards(modulus: int) -> None:
    """A liar's count at either end of the ring: one device more or less moves the share by what one device can."""
    for count in (0, 100, modulus // 2, modulus - 1):
        here, there = (noisy_clipped_share(c % modulus, 100, 5.0, entropy_of(3), modulus) for c in (count, count + 1))
        assert abs(there - here) <= 0.01 + 1e-9
    assert noisy_clipped_share(10_000, 100, 5.0, entropy_of(3), modulus) == 1.0 + 8 * 0.05
    assert noisy_clipped_share(modulus - 9_000, 100, 5.0, entropy_of(3), modulus) == -8 * 0.05


def test_a_count_without_enough_noise_is_not_released() -> None:
    with pytest.raises(RefusedError):
        noisy_clipped_share(3, 10, 0.0, entropy_of(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: next_clip_norm(0.0, 0.5, WIDE),
        lambda: next_clip_norm(math.nan, 0.5, WIDE),
        lambda: next_clip_norm(1.0, math.nan, WIDE),
        lambda: next_clip_norm(1.0, 0.5, WIDE, target_quantile=1.1),
        lambda: next_clip_norm(1.0, 0.5, WIDE, learning_rate=-0.1),
        lambda: ClipBounds(0.0, 1.0),
        lambda: ClipBounds(2.0, 1.0),
        lambda: ClipBounds(1.0, math.inf),
        lambda: count_sigma(0, 1.0),
        lambda: count_sigma(1, math.nan),
        lambda: sum_multiplier(0.0, 1.0),
        lambda: noisy_clipped_share(-1, 10, 5.0, entropy_of(0)),
        lambda: noisy_clipped_share(2**16, 10, 5.0, entropy_of(0), 2**16),
        lambda: noisy_clipped_share(3, 2**16, 5.0, entropy_of(0), 2**16),
        lambda: noisy_clipped_share(0, 0, 5.0, entropy_of(0)),
    ],
)
def test_what_is_no_setting_is_a_fault(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
