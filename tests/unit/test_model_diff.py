"""What lies between two models."""

from __future__ import annotations

import numpy as np
import pytest
from gate_parts import NETWORK, trained

from vedette_core.learning.drift import distance_from_even
from vedette_core.learning.model_diff import MOVES_MAX, diff_models
from vedette_core.learning.model_quality import (
    area_under_roc,
    measure_benign,
    prediction_shift,
    weight_change,
)
from vedette_schemas.errors import PeerError


def test_a_model_and_itself() -> None:
    _, weights = trained()
    found = diff_models(NETWORK, weights, weights)
    assert (found.whole.change, found.whole.relative) == (0.0, 0.0)
    assert found.whole.cosine == pytest.approx(1.0)
    assert found.moves == ()
    assert [t.name for t in found.tensors] == [name for name, _ in NETWORK.layout.entries]


def test_one_weight_that_moved_is_found_where_it_is() -> None:
    _, before = trained()
    names = [name for name, _ in NETWORK.layout.entries]
    for name in names:
        after = before.copy()
        tensor = NETWORK.layout.named(after)[name]
        index = tuple(n - 1 for n in tensor.shape)
        tensor[index] += 3.0
        found = diff_models(NETWORK, before, after, moves=4)
        assert [(m.tensor, m.index) for m in found.moves] == [(name, index)]
        assert found.moves[0].after - found.moves[0].before == pytest.approx(3.0, rel=1e-5)
        assert {t.name for t in found.tensors if t.change.change} == {name}
        assert found.whole.change == pytest.approx(3.0, rel=1e-5)


def test_moves_come_largest_first_and_bounded() -> None:
    before, after = trained()
    moves = diff_models(NETWORK, before, after, moves=20).moves
    sizes = [abs(m.after - m.before) for m in moves]
    assert len(sizes) == 20
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(np.abs(after - before).max()), rel=1e-6)
    with pytest.raises(ValueError, match="moves: found"):
        diff_models(NETWORK, before, after, moves=MOVES_MAX + 1)
    with pytest.raises(PeerError):
        diff_models(NETWORK, before, after[:-1])


def test_changes_of_weights_by_hand() -> None:
    found = weight_change(np.array([3.0, 4.0], np.float32), np.array([3.0, 0.0], np.float32))
    assert (found.norm, found.change, found.relative, found.cosine) == (3.0, 4.0, 0.8, 0.6)
    zero = np.zeros(2, np.float32)
    assert weight_change(zero, zero).relative == 0.0
    assert weight_change(zero, np.ones(2, np.float32)).relative == float("inf")
    with pytest.raises(ValueError, match="weights: found"):
        weight_change(zero, np.zeros(3, np.float32))


def test_shift_by_hand() -> None:
    one = np.ones((4, 2), np.float32)
    assert prediction_shift(one, one, one) == 0.0
    assert prediction_shift(3 * one, one, one) == pytest.approx(2.0)
    assert prediction_shift(np.full((4, 2), np.nan, np.float32), one, one) == float("inf")


def test_area_by_hand_and_by_counting() -> None:
    assert area_under_roc(np.array([1.0, 2.0]), np.array([3.0])) == 1.0
    assert area_under_roc(np.array([1.0, 2.0]), np.array([2.0])) == 0.75
    rng = np.random.default_rng(0)
    benign, attack = rng.integers(0, 9, 40).astype(float), rng.integers(3, 12, 30).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in attack for b in benign]
    assert area_under_roc(benign, attack) == pytest.approx(float(np.mean(pairs)))


def test_distance_from_even_p_values() -> None:
    even = (np.arange(100) + 0.5) / 100
    assert distance_from_even(even) == pytest.approx(0.005)
    assert distance_from_even(np.full(10, 0.001)) == pytest.approx(0.999)
    with pytest.raises(ValueError, match="benign windows: found 10"):
        measure_benign(NETWORK, lambda x: x, np.zeros((10, *NETWORK.input_shape), np.float32), 0.01)
