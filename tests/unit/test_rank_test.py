"""The rank test behind a rollout's gates, against scipy and against what it must not do."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.rank_test import Tolerance, Verdict, compare, larger_p


@pytest.mark.parametrize("seed", range(20))
def test_it_is_scipys_with_ties_and_without(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.3, 1, 8 + seed), rng.normal(0, 1, 70 - seed)
    if seed % 2:
        first, second = np.round(first), np.round(second)
    expected = stats.mannwhitneyu(first, second, alternative="greater", method="asymptotic").pvalue
    assert larger_p(list(first), list(second)) == pytest.approx(expected, rel=1e-9)


def test_alike_values_are_never_larger() -> None:
    assert larger_p([0.0] * 60, [0.0] * 60) == 1.0


@pytest.mark.parametrize("bad", [([], [1.0]), ([1.0], []), ([float("nan")], [1.0]), ([1.0], [float("inf")])])
def test_samples_that_cannot_be_ranked_are_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="expected finite values"):
        larger_p(*bad)


def test_three_answers() -> None:
    rng = np.random.default_rng(7)
    control = list(rng.normal(10, 1, 100))
    tolerance = Tolerance(relative=0.2)

    def judged(mean: float, samples: int = 100) -> Verdict:
        return compare(list(rng.normal(mean, 1, samples)), control, tolerance, alpha=0.01, samples_min=50)

    assert judged(10.0) is Verdict.PASS
    assert judged(15.0) is Verdict.WORSE
    assert judged(12.0) is Verdict.INCONCLUSIVE, "exactly what is allowed"
    assert judged(15.0, samples=49) is Verdict.INCONCLUSIVE, "too few to say anything"


def test_quiet_fleets_pass_only_with_room_above_zero() -> None:
    quiet = [0.0] * 60
    assert compare(quiet, quiet, Tolerance(0.5, 0.1), alpha=0.01, samples_min=50) is Verdict.PASS
    assert compare(quiet, quiet, Tolerance(0.5), alpha=0.01, samples_min=50) is Verdict.INCONCLUSIVE


def test_one_liar_among_many_decides_nothing() -> None:
    rng = np.random.default_rng(3)
    control, honest = list(rng.normal(10, 1, 100)), list(rng.normal(10, 1, 95))
    assert compare([*honest, *[1e9] * 5], control, Tolerance(0.2), alpha=0.01, samples_min=50) is Verdict.PASS


def test_chance_alone_is_seldom_taken_for_worse() -> None:
    rng = np.random.default_rng(11)
    worse = sum(
        compare(list(rng.normal(0, 1, 60)), list(rng.normal(0, 1, 60)), Tolerance(), alpha=0.01, samples_min=50)
        is Verdict.WORSE
        for _ in range(1000)
    )
    # Ten are expected; thirty are more than six standard deviations away.
    assert worse < 30
