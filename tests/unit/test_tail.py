"""The tail against scipy's generalised Pareto law, and what a calibration makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from vedette_core.learning.calibration import RANKS_ENOUGH, TAIL_RANKS, calibrate
from vedette_core.learning.tail import TAIL_SHAPE_MAX, Tail, fit_tail, weighted_moments

SHAPES = (0.0, 0.1, 0.3, 0.5)
LAWS = {
    "lognormal": stats.lognorm(0.5),
    "gamma": stats.gamma(2),
    "pareto": stats.genpareto(0.3),
    "half-normal": stats.halfnorm(),
    "beta": stats.beta(2, 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_law_is_scipys(shape: float) -> None:
    tail = Tail(level=2.0, share=0.1, shape=shape, scale=0.7)
    oracle = stats.genpareto(shape, loc=2.0, scale=0.7)
    scores = np.linspace(2.0, 30.0, 200)

    assert tail.exceedance(scores) == pytest.approx(0.1 * oracle.sf(scores), rel=1e-9)
    for p in (0.05, 0.01, 1e-4, 1e-7):
        assert tail.quantile(p) == pytest.approx(float(oracle.isf(p / 0.1)), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_fit_finds_a_laws_parameters_and_no_worse_than_likelihood(shape: float) -> None:
    """On samples as small as a gateway's, of shapes that are believed; likelihood is scipy's."""
    oracle, rng = stats.genpareto(shape, scale=2.0), np.random.default_rng(1)
    samples = [np.sort(oracle.rvs(60, random_state=rng)) for _ in range(60)]
    ours = np.array([weighted_moments(s) for s in samples])
    theirs = np.array([stats.genpareto.fit(s, floc=0.0)[::2] for s in samples])

    assert ours[:, 0].mean() == pytest.approx(shape, abs=0.1)
    assert ours[:, 1].mean() == pytest.approx(2.0, rel=0.1)
    far = [oracle.sf(stats.genpareto.isf(0.01, x, scale=y)) for x, y in ours]
    far_theirs = [oracle.sf(stats.genpareto.isf(0.01, x, scale=y)) for x, y in theirs]
    error, error_theirs = (np.sqrt(np.mean((np.array(f) / 0.01 - 1) ** 2)) for f in (far, far_theirs))
    assert error < 1.1 * error_theirs


def test_weighted_moments_of_a_long_sample_are_exact() -> None:
    sample = np.sort(stats.genpareto(0.25, scale=3.0).rvs(200_000, random_state=np.random.default_rng(2)))

    shape, scale = weighted_moments(sample)

    assert shape == pytest.approx(0.25, abs=0.02)
    assert scale == pytest.approx(3.0, rel=0.02)


def test_a_law_with_an_end_and_one_without_a_mean_are_not_believed() -> None:
    rng = np.random.default_rng(3)
    bounded = fit_tail(np.sort(rng.random(2000)))
    heavy = fit_tail(np.sort(stats.genpareto(1.5).rvs(2000, random_state=rng)))

    assert bounded is not None
    assert bounded.shape == 0.0
    assert heavy is not None
    assert heavy.shape == TAIL_SHAPE_MAX


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("size", [100, 200, 500])
def test_small_calibrations_let_through_what_they_promise(name: str, size: int) -> None:
    """At α = 1 %, where ranks alone would rest on the largest few scores: nearer to the promise, and not above it."""
    law, rng, alpha = LAWS[name], np.random.default_rng(4), 0.01
    with_tail, by_rank = [], []
    for _ in range(300):
        calibration = calibrate(law.rvs(size, random_state=rng))
        with_tail.append(float(law.sf(calibration.threshold(alpha))) / alpha)
        by_rank.append(float(law.sf(calibration.ordered[-int(alpha * (size + 1))])) / alpha)

    error, error_by_rank = (np.sqrt(np.mean((np.array(r) - 1.0) ** 2)) for r in (with_tail, by_rank))
    assert np.mean(with_tail) < 1.15
    assert np.mean(with_tail) > 0.6
    assert error < error_by_rank


@pytest.mark.parametrize("size", [RANKS_ENOUGH, 4320])
def test_a_large_calibration_is_ranked_without_the_tail(size: int) -> None:
    calibration = calibrate(np.random.default_rng(5).random(size))  # an end at 1, which no believed tail has

    for rank in (1, 3, TAIL_RANKS):
        assert calibration.threshold(rank / (size + 1)) == calibration.ordered[-rank]
    just_above = np.nextafter(calibration.ordered[-3], np.inf)
    assert calibration.p_values([just_above])[0] == pytest.approx(3 / (size + 1))


def test_the_tail_never_makes_a_rank_look_rarer() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        calibration = calibrate(rng.gamma(1.5, size=150))
        within = calibration.ordered[-20:]
        ranks = 1 + np.array([(calibration.ordered >= s).sum() for s in within])

        assert (calibration.p_values(within) >= ranks / 151 - 1e-12).all()
