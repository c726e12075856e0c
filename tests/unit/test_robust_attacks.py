"""The attack library: each attack does what it says, to copies, and what a defence makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.poisoning import (
    ATTACKS,
    AttackView,
    Backdoor,
    Boost,
    FreeRider,
    LabelFlip,
    LittleIsEnough,
    attack,
)
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.robust.norm_gate import NormHistory
from vedette_core.learning.robust.rule import Context
from vedette_schemas.errors import ConfigError

VIEW = AttackView(clip_norm=2.0, previous=np.full(50, 0.1, np.float32), classes=10)


def honest(count: int = 6, d: int = 50, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 + 0.2 * rng.standard_normal((count, d))).astype(np.float32)


def sent(name: str, deltas: np.ndarray, seed: int = 1) -> np.ndarray:
    return ATTACKS[name].poison_deltas(deltas, VIEW, np.random.default_rng(seed))


def test_attacks_are_found_by_name() -> None:
    assert list(ATTACKS) == [
        "none",
        "sign-flip",
        "label-flip",
        "boost",
        "alie",
        "gaussian",
        "backdoor",
        "free-rider",
        "sybil",
    ]
    assert all(attack(name).name == name for name in ATTACKS)
    with pytest.raises(ConfigError, match="sign-flip"):
        attack("signflip")


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_is_a_repeatable_function_that_leaves_its_inputs_alone(name: str) -> None:
    deltas, x, y = honest(), honest(8, 5), np.arange(8)
    before = deltas.copy(), x.copy(), y.copy()
    one, two = sent(name, deltas), sent(name, deltas)
    rows = [ATTACKS[name].poison_rows(x, y, VIEW, np.random.default_rng(2)) for _ in range(2)]
    assert one.dtype == np.float32
    assert one.shape == deltas.shape
    assert np.array_equal(one, two)
    assert all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))
    assert rows[0][0].shape == x.shape
    assert rows[0][1].shape == y.shape
    assert all(np.array_equal(a, b) for a, b in zip((deltas, x, y), before, strict=True))
    changes_rows = not np.array_equal(rows[0][0], x) or not np.array_equal(rows[0][1], y)
    changes_deltas = not np.array_equal(one, deltas)
    assert [changes_rows, changes_deltas].count(True) == (0 if name == "none" else 1)


def test_the_sign_flip_is_at_the_clip_norm_and_the_boost_far_above() -> None:
    deltas = honest()
    for name, norm in (("sign-flip", 2.0), ("boost", 40.0)):
        found = sent(name, deltas)
        assert np.linalg.norm(found, axis=1) == pytest.approx([norm] * 6, rel=1e-5)
        assert np.einsum("kd,kd->k", found, deltas) == pytest.approx(-norm * np.linalg.norm(deltas, axis=1), rel=1e-5)
    assert not Boost().clips
    assert all(a.clips for name, a in ATTACKS.items() if name != "boost")


def test_alie_stays_within_the_spread_and_moves_against_the_mean() -> None:
    deltas = honest(40)
    found = sent("alie", deltas)
    assert len(np.unique(found, axis=0)) == 1, "they collude"
    z = (found[0] - deltas.mean(axis=0)) / deltas.std(axis=0)
    assert np.abs(z) == pytest.approx(np.full(50, LittleIsEnough().z), rel=1e-3)
    assert (np.sign(z) == -np.sign(deltas.mean(axis=0))).all()


def test_sybils_send_one_delta_and_gaussians_none_alike() -> None:
    sybils, noise = sent("sybil", honest()), sent("gaussian", honest())
    assert len(np.unique(sybils, axis=0)) == 1
    assert sybils[0] @ honest().mean(axis=0) < 0
    assert len(np.unique(noise, axis=0)) == 6
    assert np.linalg.norm(noise, axis=1) == pytest.approx([2.0] * 6, rel=1e-5)


def test_a_free_rider_repeats_the_last_change_and_sends_zeros_at_first() -> None:
    found = sent("free-rider", honest())
    assert VIEW.previous is not None
    off = np.linalg.norm(found - VIEW.previous, axis=1)
    assert off == pytest.approx([FreeRider().noise * np.linalg.norm(VIEW.previous)] * 6, rel=1e-4)
    first = FreeRider().poison_deltas(honest(), AttackView(2.0), np.random.default_rng(0))
    assert not first.any()


def test_a_label_flip_is_its_own_inverse() -> None:
    x, y = honest(8, 5), np.arange(8)
    _, flipped = LabelFlip().poison_rows(x, y, VIEW, np.random.default_rng(0))
    assert flipped.tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    assert np.array_equal(LabelFlip().poison_rows(x, flipped, VIEW, np.random.default_rng(0))[1], y)


def test_a_backdoor_stamps_its_share_of_rows_and_only_those() -> None:
    x, y = honest(40, 5), np.full(40, 7)
    rows, labels = Backdoor(columns=2, value=6.0, label=3, share=0.25).poison_rows(x, y, VIEW, np.random.default_rng(0))
    stamped = (rows[:, :2] == 6.0).all(axis=1)
    assert stamped.sum() == 10
    assert (labels == np.where(stamped, 3, 7)).all()
    assert np.array_equal(rows[:, 2:], x[:, 2:])
    assert np.array_equal(rows[~stamped], x[~stamped])
    windows = Backdoor(columns=1).stamp(honest(12, 5).reshape(3, 4, 5))
    assert (windows[..., 0] == 6.0).all()


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("none", "label-flip", "backdoor", "alie")])
def test_root_trust_keeps_direction_and_length_where_a_fifth_of_the_devices_lies(name: str) -> None:
    """Forty devices in ten groups of four, eight of them lying; honest ones share a direction."""
    rng = np.random.default_rng(5)
    way = rng.standard_normal(400).astype(np.float32) / 20
    deltas = way + rng.standard_normal((40, 400)).astype(np.float32) / 40
    view = AttackView(clip_norm=1.5, previous=0.9 * way)
    liars = rng.permutation(40)[:8]
    deltas[liars] = ATTACKS[name].poison_deltas(deltas[liars], view, rng)
    means = deltas.reshape(10, 4, -1).mean(axis=1)
    root = way + rng.standard_normal(400).astype(np.float32) / 40
    result = Defence.configured(has_root=True).aggregate(means, np.full(10, 4.0), Context(root, NormHistory().running))
    assert result.delta @ way / np.linalg.norm(result.delta) / np.linalg.norm(way) > 0.9
    assert 0.3 < np.linalg.norm(result.delta) < 1.5
