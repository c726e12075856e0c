"""Each robust rule by example: what it keeps, what it drops and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.robust.averages import CoordinateMedian, GeometricMedian, TrimmedMean, WeightedMean
from vedette_core.learning.robust.defence import RULES
from vedette_core.learning.robust.root_trust import FlTrust, RootTrust
from vedette_core.learning.robust.rule import Context, Rule, cap_shares
from vedette_core.learning.robust.selection import FoolsGold, Krum
from vedette_schemas.errors import RefusedError

NAMES = [
    "mean",
    "trimmed-mean",
    "median",
    "geometric-median",
    "krum",
    "multi-krum",
    "fltrust",
    "root-trust",
    "foolsgold",
]
ROOTED = ("fltrust", "root-trust")


def of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def test_every_rule_is_registered_by_its_name() -> None:
    assert list(RULES) == NAMES
    assert all(rule.name == name for name, rule in RULES.items())


def test_the_mean_is_weighted() -> None:
    result = WeightedMean().aggregate(of([0.0, 4.0], [4.0, 0.0]), np.array([3.0, 1.0]), Context())
    assert result.delta.tolist() == [1.0, 3.0]
    assert result.delta.dtype == np.float32
    assert result.weights.tolist() == [0.75, 0.25]


def test_the_median_splits_weight_and_averages_an_even_split() -> None:
    median = CoordinateMedian()
    assert median.aggregate(of([1.0], [2.0], [9.0]), ones(3), Context()).delta == 2.0
    assert median.aggregate(of([1.0], [2.0], [4.0], [9.0]), ones(4), Context()).delta == 3.0
    assert median.aggregate(of([1.0], [2.0], [9.0]), np.array([1.0, 1.0, 5.0]), Context()).delta == 9.0
    assert median.aggregate(of([1.0, 7.0], [2.0, -3.0], [9.0, 0.0]), ones(3), Context()).delta.tolist() == [2.0, 0.0]


def test_the_trimmed_mean_cuts_weight_at_both_ends() -> None:
    rows = of([-100.0], [1.0], [3.0], [100.0])
    result = TrimmedMean(0.25).aggregate(rows, ones(4), Context())
    assert result.delta == 2.0
    assert result.weights == pytest.approx([0.0, 0.5, 0.5, 0.0])
    # A group at the edge counts in part: of three, a quarter cut leaves 1/12, 1/3, 1/12.
    partly = TrimmedMean(0.25).aggregate(of([0.0], [6.0], [18.0]), ones(3), Context())
    assert partly.delta == pytest.approx((0 * 1 + 6 * 4 + 18 * 1) / 6)
    assert TrimmedMean(0.0).aggregate(rows, ones(4), Context()).delta == 1.0
    with pytest.raises(ValueError):
        TrimmedMean(0.5)


def test_the_geometric_median_of_a_triangle_is_its_fermat_point() -> None:
    angles = 2 * np.pi * np.arange(3) / 3
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) + 5
    assert GeometricMedian().aggregate(corners, ones(3), Context()).delta == pytest.approx([5.0, 5.0], abs=1e-5)
    # With more than half of the weight in one place, that place is the median.
    heavy = GeometricMedian().aggregate(corners, np.array([5.0, 1.0, 1.0]), Context())
    assert heavy.delta == pytest.approx(corners[0], abs=1e-3)


def test_krum_takes_one_of_the_crowd_and_multi_krum_all_but_the_far_ones() -> None:
    rows = of([0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.1, 0.1], [0.05, 0.05], [9.0, 9.0], [-9.0, 9.0], [0.1, 0.05])
    best = Krum().aggregate(rows, ones(8), Context())
    assert best.delta == pytest.approx([0.05, 0.05])
    assert best.weights[4] == 1.0
    many = Krum(multi=True).aggregate(rows, ones(8), Context())
    assert many.dropped == ((5, "distant"), (6, "distant"))
    assert many.delta == pytest.approx(rows[[0, 1, 2, 3, 4, 7]].mean(axis=0))
    with pytest.raises(ValueError):
        Krum(0.5)


def test_fltrust_rescales_drops_and_weighs_by_agreement() -> None:
    root = np.array([2.0, 0.0], np.float32)
    result = FlTrust().aggregate(of([40.0, 0.0], [-1.0, 0.0], [0.3, 0.4]), ones(3), Context(root=root))
    assert result.dropped == ((1, "trust"),)
    assert result.weights == pytest.approx([1.0 / 1.6, 0.0, 0.6 / 1.6])
    assert np.linalg.norm(result.delta) <= 2.0 + 1e-6
    assert result.delta[0] > 0


def test_fltrust_with_one_group_rescales_it_or_refuses_it() -> None:
    root = np.array([0.0, 3.0], np.float32)
    (alone,) = [FlTrust().aggregate(of([0.0, 600.0]), ones(1), Context(root=root))]
    assert alone.delta == pytest.approx([0.0, 3.0])
    with pytest.raises(RefusedError, match="cosines") as refused:
        FlTrust().aggregate(of([0.0, -1.0]), ones(1), Context(root=root))
    assert refused.value.rule == "trust"


def test_root_trust_gives_all_groups_their_usual_length_and_never_more_than_the_root_updates() -> None:
    root = np.array([9.0, 0.0], np.float32)
    rows = of([2.0, 0.0], [2.0, 0.0], [8.0, 0.0], [-5.0, 0.0])
    result = RootTrust().aggregate(rows, ones(4), Context(root=root))
    assert result.delta == pytest.approx([2.0, 0.0]), "the median of those that are trusted"
    assert result.dropped == ((3, "trust"),)
    short = RootTrust().aggregate(rows, ones(4), Context(root=root / 90))
    assert short.delta == pytest.approx([0.1, 0.0])
    alone = RootTrust().aggregate(of([0.0, 600.0]), ones(1), Context(root=root[::-1]))
    assert alone.delta == pytest.approx([0.0, 9.0])
    with pytest.raises(RefusedError) as refused:
        RootTrust().aggregate(of([0.0, -600.0]), ones(1), Context(root=root[::-1]))
    assert refused.value.rule == "trust"


def test_root_trust_lengthens_a_step_that_liars_have_shortened() -> None:
    angle = np.radians(45)
    mixed = [[float(np.cos(angle)), float(np.sin(angle)) * sign] for sign in (1, -1)] * 8
    rows = of(*mixed, *[[1.0, 0.0]] * 4)
    root = np.array([5.0, 0.0], np.float32)
    result = RootTrust().aggregate(rows, ones(20), Context(root=root))
    assert result.delta[0] == pytest.approx(1.0, rel=1e-5), "as long as those that are free of liars"
    assert abs(result.delta[1]) < 1e-6


@pytest.mark.parametrize("rule", [FlTrust(), RootTrust()])
@pytest.mark.parametrize("root", [None, np.zeros(2, np.float32), np.array([np.nan, 1.0], np.float32)])
def test_trust_needs_a_root_update_with_a_direction(rule: Rule, root: np.ndarray | None) -> None:
    with pytest.raises(RefusedError) as refused:
        rule.aggregate(of([1.0, 1.0]), ones(1), Context(root=root))
    assert refused.value.rule == "root"
    with pytest.raises(ValueError):
        rule.aggregate(of([1.0, 1.0]), ones(1), Context(root=np.ones(3, np.float32)))


def test_foolsgold_drops_copies_and_remembers() -> None:
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((6, 50)).astype(np.float32)
    copies = np.tile(rng.standard_normal(50).astype(np.float32), (4, 1))
    rows = np.concatenate([honest, copies])
    first = FoolsGold().aggregate(rows, ones(10), Context())
    assert [index for index, _ in first.dropped] == [6, 7, 8, 9]
    # Honest this once: the copies of the rounds before still count.
    later = np.concatenate([honest, rng.standard_normal((4, 50)).astype(np.float32)])
    second = FoolsGold().aggregate(later, ones(10), Context(cosines=first.cosines))
    fresh = FoolsGold().aggregate(later, ones(10), Context())
    assert second.weights[6:].sum() < 0.5 * fresh.weights[6:].sum()
    with pytest.raises(RefusedError) as refused:
        FoolsGold().aggregate(rows[:9], ones(9), Context(cosines=first.cosines))
    assert refused.value.rule == "history"
    with pytest.raises(RefusedError) as refused:
        FoolsGold().aggregate(copies, ones(4), Context())
    assert refused.value.rule == "trust"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_few_groups_give_something_between_them(name: str, groups: int) -> None:
    rows = of([3.0, 4.0], [4.0, 3.0], [3.6, 3.6])[:groups]
    result = RULES[name].aggregate(rows, ones(groups), Context(root=np.array([3.0, 3.0], np.float32)))
    assert result.weights.sum() == pytest.approx(1.0)
    assert np.isfinite(result.delta).all()
    cosine = result.delta @ [1.0, 1.0] / np.linalg.norm(result.delta) / 2**0.5
    assert cosine > 0.97
    if groups == 1 and name not in ROOTED:
        assert result.delta == pytest.approx(rows[0])
    if groups == 2 and name not in ROOTED:
        assert result.delta == pytest.approx([3.5, 3.5]), "neither is to be preferred"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("deltas", "weights", "rule"),
    [
        (np.zeros((0, 3), np.float32), np.ones(0), "empty"),
        (np.zeros((2, 0), np.float32), np.ones(2), "empty"),
        (of([1.0, np.nan], [1.0, 1.0]), np.ones(2), "finite"),
        (of([1.0, 1.0], [np.inf, 1.0]), np.ones(2), "finite"),
        (of([1.0, 1.0], [1.0, 1.0]), np.array([1.0, 0.0]), "weights"),
        (of([1.0, 1.0], [1.0, 1.0]), np.array([1.0, -1.0]), "weights"),
        (of([1.0, 1.0], [1.0, 1.0]), np.array([1.0, np.nan]), "weights"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(name: str, deltas: np.ndarray, weights: np.ndarray, rule: str) -> None:
    context = Context(root=np.ones(deltas.shape[1], np.float32))
    with pytest.raises(RefusedError) as refused:
        RULES[name].aggregate(deltas, weights, context)
    assert refused.value.rule == rule


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_belong_together_are_a_programming_fault(name: str) -> None:
    rule: Rule = RULES[name]
    for deltas, weights in ((np.zeros(3, np.float32), np.ones(3)), (np.zeros((2, 3), np.float32), np.ones(3))):
        with pytest.raises(ValueError):
            rule.aggregate(deltas, weights, Context(root=np.ones(3, np.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_groups_without_any_change_are_no_division_by_zero(name: str) -> None:
    with np.errstate(all="raise"):
        if name in (*ROOTED, "foolsgold"):
            rows = np.concatenate([np.zeros((3, 4), np.float32), np.eye(4, dtype=np.float32)])
        else:
            rows = np.zeros((7, 4), np.float32)
        result = RULES[name].aggregate(rows, ones(7), Context(root=np.ones(4, np.float32)))
    assert np.isfinite(result.delta).all()


def test_the_cap_moves_weight_to_others_and_shortens_the_step_where_there_are_none() -> None:
    assert cap_shares(np.array([0.7, 0.2, 0.1]), 0.5) == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert cap_shares(np.array([0.8, 0.15, 0.05]), 0.4) == pytest.approx([0.4, 0.4, 0.2])
    assert cap_shares(np.array([0.9, 0.1, 0.0, 0.0]), 0.25) == pytest.approx([0.25, 0.25, 0.0, 0.0])
    assert cap_shares(np.array([1.0]), 1.0).tolist() == [1.0]
    for cap in (0.0, 1.5):
        with pytest.raises(ValueError):
            cap_shares(np.array([1.0]), cap)


@pytest.mark.parametrize("name", ["mean", "geometric-median", "multi-krum", *ROOTED, "foolsgold"])
def test_weighing_rules_keep_to_the_cap(name: str) -> None:
    rng = np.random.default_rng(3)
    rows = (np.ones(6) + 0.3 * rng.standard_normal((10, 6))).astype(np.float32)
    weights = np.array([50.0, *np.ones(9)])
    result = RULES[name].aggregate(rows, weights, Context(root=np.ones(6, np.float32), share_max=0.2))
    assert result.weights.max() <= 0.2 + 1e-9 if name != "geometric-median" else result.weights[0] < 0.4
