"""The chain around a rule: the norm gate, the cap, what is dropped and why, and the memory of norms."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.robust.defence import AUTO, RULES, Defence
from vedette_core.learning.robust.norm_gate import HISTORY_ROUNDS, NormHistory, norm_gate
from vedette_core.learning.robust.rule import Context
from vedette_schemas.errors import ConfigError, RefusedError


def groups(count: int = 9, d: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.ones(d) + 0.5 * rng.standard_normal((count, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_gate_drops_what_is_far_too_long_and_shortens_the_rest() -> None:
    rows = groups()
    rows[3] *= 20
    rows[5] *= 2
    gated = norm_gate(rows.astype(np.float64), None)
    assert gated.dropped == ((3, "norm"),)
    assert gated.kept == [0, 1, 2, 4, 5, 6, 7, 8]
    assert gated.median_norm == pytest.approx(1.0)
    assert np.linalg.norm(gated.vectors, axis=1).max() <= 1.0 + 1e-6
    assert np.linalg.norm(norm_gate(0.5 * rows[:3].astype(np.float64), 1.0).vectors, axis=1) == pytest.approx(
        [0.5] * 3
    ), "short ones are not lengthened"


def test_what_came_before_holds_a_round_in_which_most_lie() -> None:
    rows = groups()
    rows[:7] *= 20
    assert norm_gate(rows.astype(np.float64), None).dropped == (), "without a past the liars are the median"
    assert [i for i, _ in norm_gate(rows.astype(np.float64), 1.0).dropped] == list(range(7))


def test_one_group_is_held_by_the_past_only() -> None:
    alone = 5.0 * groups(1).astype(np.float64)
    assert norm_gate(alone, None).kept == [0]
    assert np.linalg.norm(norm_gate(alone, 2.0).vectors) == pytest.approx(2.0)
    with pytest.raises(RefusedError) as refused:
        norm_gate(alone, 1.0)
    assert refused.value.rule == "norm"


def test_groups_of_zeros_pass() -> None:
    rows = np.zeros((4, 3))
    assert norm_gate(rows, None).kept == [0, 1, 2, 3]
    mixed = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert norm_gate(mixed, 1.0).dropped == ()


def test_a_setting_names_the_rule() -> None:
    assert Defence.configured(has_root=True).rule.name == "root-trust"
    assert Defence.configured(AUTO, has_root=False).rule.name == "trimmed-mean"
    assert Defence.configured("median", has_root=True).rule is RULES["median"]
    with pytest.raises(ConfigError, match="robust rule"):
        Defence.configured("medain", has_root=True)
    for name in ("fltrust", "root-trust"):
        assert Defence.configured(name, has_root=True).rule.name == name
        with pytest.raises(ConfigError, match="root set"):
            Defence.configured(name, has_root=False)


@pytest.mark.parametrize("name", list(RULES))
def test_indices_and_shares_are_of_the_groups_that_came_in(name: str) -> None:
    rows = groups()
    rows[0] = np.nan
    rows[4] *= 50
    rows[7] = -rows[7]
    result = Defence(RULES[name]).aggregate(rows, np.ones(9), Context(root=np.ones(40, np.float32)))
    reasons = dict(result.dropped)
    assert reasons[0] == "finite"
    assert reasons[4] == "norm"
    assert result.weights.shape == (9,)
    assert result.weights[0] == result.weights[4] == 0
    assert all(result.weights[index] == 0 for index in reasons)
    assert list(reasons) == sorted(reasons)
    if name in ("fltrust", "root-trust"):
        assert reasons[7] == "trust"
    assert np.isfinite(result.delta).all()
    if name == "foolsgold":
        assert result.delta.sum() < 0, "its known weakness: the one that differs from all others is the one it believes"
    else:
        assert result.delta.sum() > 0


def test_no_group_has_more_than_twice_its_even_share() -> None:
    weights = np.array([100.0, *np.ones(9)])
    result = Defence(RULES["mean"]).aggregate(groups(10), weights, Context())
    assert result.weights.max() == pytest.approx(0.2)
    assert result.weights.sum() == pytest.approx(1.0)
    few = groups(10)
    few[2:] *= -1
    trusted = Defence(RULES["fltrust"]).aggregate(few, np.ones(10), Context(root=np.ones(40, np.float32)))
    assert trusted.weights.sum() == pytest.approx(0.4), "two of ten may not move the model as far as ten"


def test_one_liar_with_nan_does_not_stop_a_round_but_all_do() -> None:
    rows = np.full((3, 4), np.nan, np.float32)
    with pytest.raises(RefusedError) as refused:
        Defence(RULES["mean"]).aggregate(rows, np.ones(3), Context())
    assert refused.value.rule == "finite"
    with pytest.raises(RefusedError) as refused:
        Defence(RULES["mean"]).aggregate(rows[:0], np.ones(0), Context())
    assert refused.value.rule == "empty"
    with pytest.raises(ValueError):
        Defence(RULES["mean"]).aggregate(rows, np.ones(2), Context())


def test_a_memory_goes_past_groups_that_were_dropped() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)
    defence = Defence(RULES["foolsgold"])
    first = defence.aggregate(rows, np.ones(6), Context())
    assert first.cosines is not None
    rows[2] *= 100
    second = defence.aggregate(rows, np.ones(6), Context(cosines=first.cosines))
    assert second.cosines is not None
    assert second.cosines.shape == (6, 6)
    assert second.cosines[2] == pytest.approx(first.cosines[2]), "nothing was learnt of it"
    with pytest.raises(RefusedError) as refused:
        defence.aggregate(rows[:5], np.ones(5), Context(cosines=first.cosines))
    assert refused.value.rule == "history"


def test_the_running_norm_is_the_median_of_the_last_rounds() -> None:
    history = NormHistory()
    assert history.running is None
    for norm in (4.0, 2.0, 3.0):
        history = history.after(norm)
    assert history.running == 3.0
    assert history.after(0.0) == history
    for _ in range(20):
        history = history.after(1.0)
    assert len(history.norms) == HISTORY_ROUNDS
    assert history.running == 1.0
    assert NormHistory.from_list(history.to_list()) == history
    for norm in (-1.0, float("nan")):
        with pytest.raises(ValueError):
            history.after(norm)


@pytest.mark.parametrize("plain", [None, {}, [1], ["1"], [0.0], [float("inf")], [True], [1.0] * (HISTORY_ROUNDS + 1)])
def test_a_damaged_memory_is_the_operators_to_settle(plain: object) -> None:
    with pytest.raises(ConfigError, match="norm history"):
        NormHistory.from_list(plain)


def test_the_whole_chain_is_deterministic_and_changes_no_input() -> None:
    rows = groups()
    before = rows.copy()
    for name in RULES:
        results = [
            Defence(RULES[name]).aggregate(rows, np.ones(9), Context(root=np.ones(40, np.float32))) for _ in range(2)
        ]
        assert results[0].delta.tobytes() == results[1].delta.tobytes()
        assert results[0].weights.tobytes() == results[1].weights.tobytes()
    assert np.array_equal(rows, before)
