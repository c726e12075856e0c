"""Laws of the robust rules: order, scale and place, what a minority can do, and what equal groups give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vedette_core.learning.robust.defence import ROOTED, RULES, Defence
from vedette_core.learning.robust.norm_gate import NORM_FACTOR
from vedette_core.learning.robust.rule import Context, cap_shares
from vedette_schemas.errors import RefusedError

AVERAGES = ["mean", "trimmed-mean", "median", "geometric-median"]
NAMES = list(RULES)
TRIM = 0.25


@st.composite
def rounds(draw: st.DrawFn, groups_min: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group means of whole quarters (so that sums are exact in any order), weights, and a root update."""
    groups, size = draw(st.integers(groups_min, 12)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1, 4, 40]))
    deltas = rng.integers(-spread, spread + 1, (groups, size)) / 4 + draw(st.integers(-3, 3))
    weights = rng.integers(1, 9, groups).astype(np.float64)
    root = rng.integers(-8, 9, size) / 4 + 0.125
    return deltas.astype(np.float32), weights, root.astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@given(case=rounds(), data=st.data())
def test_the_order_of_the_groups_says_nothing(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    deltas, weights, root = case
    order = np.array(data.draw(st.permutations(range(len(deltas)))))
    context = Context(root=root)
    try:
        found = RULES[name].aggregate(deltas, weights, context)
    except RefusedError as refused:
        with pytest.raises(RefusedError, match=str(refused)[:8]):
            RULES[name].aggregate(deltas[order], weights[order], context)
        return
    other = RULES[name].aggregate(deltas[order], weights[order], context)
    assert other.delta == pytest.approx(found.delta, abs=1e-4 * size_of(deltas))
    if name in ("krum", "multi-krum", *ROOTED):
        assert {int(order[i]) for i, _ in other.dropped} == {i for i, _ in found.dropped}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ROOTED])
@given(case=rounds(), scale=st.sampled_from([0.25, 2.0, 64.0]))
def test_twice_the_deltas_give_twice_the_result(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float
) -> None:
    deltas, weights, _ = case
    try:
        found = RULES[name].aggregate(deltas, weights, Context()).delta
    except RefusedError:
        assume(False)
    scaled = RULES[name].aggregate((scale * deltas).astype(np.float32), weights, Context()).delta
    assert scaled == pytest.approx(scale * found, rel=1e-4, abs=1e-4 * scale * size_of(deltas))


@pytest.mark.parametrize("name", [*AVERAGES, "krum", "multi-krum"])
@given(case=rounds(), shift=st.integers(-40, 40))
def test_a_shift_of_all_groups_shifts_the_result(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], shift: int
) -> None:
    deltas, weights, _ = case
    found = RULES[name].aggregate(deltas, weights, Context()).delta
    shifted = RULES[name].aggregate((deltas + shift).astype(np.float32), weights, Context()).delta
    assert shifted == pytest.approx(found + shift, abs=1e-3 * size_of(deltas))


@pytest.mark.parametrize("name", sorted(ROOTED))
@given(case=rounds(), data=st.data())
def test_trust_takes_no_step_longer_than_the_root_updates_and_none_against_it(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    deltas, weights, root = case
    try:
        found = RULES[name].aggregate(deltas, weights, Context(root=root))
    except RefusedError:
        assume(False)
    length = float(np.linalg.norm(root))
    assert np.linalg.norm(found.delta) <= length * (1 + 1e-5)
    assert found.delta @ root > 0
    boosted = deltas.copy()
    boosted[data.draw(st.integers(0, len(deltas) - 1))] *= np.float32(1e6)
    assert np.linalg.norm(RULES[name].aggregate(boosted, weights, Context(root=root)).delta) <= length * (1 + 1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*ROOTED, "foolsgold")])
@given(case=rounds(), count=st.integers(1, 9))
def test_equal_groups_give_what_they_say(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], count: int
) -> None:
    one = case[0][:1]
    rows, weights = np.repeat(one, count, axis=0), np.arange(1.0, count + 1)
    result = RULES[name].aggregate(rows, weights, Context())
    assert result.delta == pytest.approx(one[0], rel=1e-5, abs=1e-6)
    assert result.dropped == ()
    assert Defence(RULES[name]).aggregate(rows, np.ones(count), Context()).delta == pytest.approx(
        one[0], rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize(("name", "most"), [("median", 0.5), ("trimmed-mean", TRIM)])
@settings(max_examples=60)
@given(case=rounds(groups_min=3), data=st.data())
def test_a_minority_moves_no_coordinate_out_of_the_honest_range(
    name: str, most: float, case: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    deltas, weights, _ = case
    liars = _minority(weights, most, data)
    honest = np.delete(deltas, liars, axis=0)
    deltas[liars] = _outliers(deltas[liars].shape, data)
    delta = RULES[name].aggregate(deltas, weights, Context()).delta
    slack = 1e-4 * size_of(honest)
    assert (delta >= honest.min(axis=0) - slack).all()
    assert (delta <= honest.max(axis=0) + slack).all()


@settings(max_examples=60)
@given(case=rounds(groups_min=3), data=st.data())
def test_a_minority_moves_the_geometric_median_by_no_more_than_its_bound(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    deltas, weights, _ = case
    liars = _minority(weights, 0.5, data)
    bad = float(weights[liars].sum() / weights.sum())
    honest = np.delete(deltas, liars, axis=0).astype(np.float64)
    centre = honest.mean(axis=0)
    radius = np.linalg.norm(honest - centre, axis=1).max()
    deltas[liars] = _outliers(deltas[liars].shape, data)
    delta = RULES["geometric-median"].aggregate(deltas, weights, Context()).delta
    bound = 2 * (1 - bad) / (1 - 2 * bad) * radius
    assert np.linalg.norm(delta - centre) <= bound * 1.01 + 1e-2


@given(data=st.data())
def test_a_minority_of_far_groups_is_never_what_krum_takes(data: st.DataObject) -> None:
    groups = data.draw(st.integers(8, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    deltas = rng.standard_normal((groups, 6)).astype(np.float32)
    liars = data.draw(st.permutations(range(groups)))[: min(int(TRIM * groups), (groups - 3) // 2)]
    deltas[liars] = _outliers((len(liars), 6), data)
    for name in ("krum", "multi-krum"):
        result = RULES[name].aggregate(deltas, np.ones(groups), Context())
        assert result.weights[liars].sum() == 0, name


@pytest.mark.parametrize("name", NAMES)
@given(case=rounds(), data=st.data())
def test_behind_the_gate_no_boost_goes_far(
    name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    """Whatever one or more groups send, the step is no longer than the longer of root and usual norm."""
    deltas, weights, root = case
    usual = 1.5
    boosted = data.draw(st.lists(st.integers(0, len(deltas) - 1), unique=True))
    deltas[boosted] *= np.float32(data.draw(st.sampled_from([2.0, 20.0, 1e9])))
    try:
        result = Defence(RULES[name]).aggregate(deltas, weights, Context(root=root, running_norm=usual))
    except RefusedError:
        return
    slack = 1 + 1e-4
    longest = max(float(np.linalg.norm(root)), usual)
    # A median takes each coordinate from another group: their number enters.
    assert np.linalg.norm(result.delta) <= longest * slack * np.sqrt(deltas.shape[1] if "m" in name else 1)
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1)
    assert all(result.weights[i] == 0 for i in np.flatnonzero(norms > NORM_FACTOR * usual * slack))


@given(
    raw=st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any),
    cap=st.floats(0.01, 1.0),
)
def test_capped_shares_keep_order_cap_and_as_much_of_the_sum_as_can_be(raw: list[int], cap: float) -> None:
    shares = np.array(raw, np.float64) / sum(raw)
    capped = cap_shares(shares, cap)
    assert capped.max() <= cap * (1 + 1e-9)
    assert ((capped > 0) == (shares > 0)).all()
    assert capped.sum() == pytest.approx(min(1.0, cap * np.count_nonzero(shares)))
    ranks = np.argsort(shares, kind="stable")
    assert (np.diff(capped[ranks]) >= -1e-12).all()


def size_of(deltas: np.ndarray) -> float:
    """What tolerances are relative to."""
    return 1.0 + float(np.abs(deltas).max())


def _minority(weights: np.ndarray, most: float, data: st.DataObject) -> list[int]:
    """Groups with less than `most` of the weight, as many as the draw's order lets in."""
    liars: list[int] = []
    for index in data.draw(st.permutations(range(len(weights)))):
        if weights[[*liars, index]].sum() < most * weights.sum() * (1 - 1e-9):
            liars.append(index)
    return liars


def _outliers(shape: tuple[int, ...], data: st.DataObject) -> np.ndarray:
    size = data.draw(st.sampled_from([1e2, 1e5]))
    together = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    signs = np.ones(shape) if together else rng.choice([-1.0, 1.0], shape)
    return (size * signs * (1 + rng.random(shape))).astype(np.float32)
