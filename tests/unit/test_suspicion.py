"""Blame by the company that devices keep: who is found, who is not proposed, and what is stored."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from vedette_core.learning.suspicion import (
    DEVICES_MAX,
    GROUPS_MIN,
    OBSERVATIONS_MIN,
    Z_MAX,
    Record,
    Suspicions,
    robust_z,
)
from vedette_schemas.errors import ConfigError

DEVICES, DIMENSION = 512, 256


def epochs(count: int, bad_share: float, group_size: int, seed: int) -> tuple[Suspicions, set[str]]:
    """Sign-flipping devices among honest ones, whose updates are a shared direction and more of their own."""
    rng = np.random.default_rng(seed)
    names = [f"gw-{i:03d}" for i in range(DEVICES)]
    bad = rng.permutation(DEVICES)[: round(bad_share * DEVICES)]
    own = rng.standard_normal((DEVICES, DIMENSION))
    suspicions = Suspicions()
    for _ in range(count):
        root = rng.standard_normal(DIMENSION)
        noise = 0.5 * own + rng.standard_normal((DEVICES, DIMENSION))
        deltas = 0.25 * root + noise * 0.5
        deltas[bad] *= -1.0
        order = rng.permutation(DEVICES).reshape(-1, group_size)
        means = deltas[order].mean(axis=1)
        cosines = means @ root / np.linalg.norm(means, axis=1) / np.linalg.norm(root)
        suspicions = suspicions.after([[names[i] for i in group] for group in order], cosines)
    return suspicions, {names[i] for i in bad}


def found_share(count: int, bad_share: float, group_size: int) -> float:
    shares = []
    for seed in range(3):
        suspicions, bad = epochs(count, bad_share, group_size, seed)
        top = {device for device, _ in suspicions.ranked()[: len(bad)]}
        shares.append(len(top & bad) / len(bad))
    return float(np.mean(shares))


def test_liars_are_found_over_epochs_and_sooner_in_small_groups() -> None:
    shares = {(m, n): found_share(n, 0.05, m) for m in (8, 16, 32) for n in (10, 30)}
    print({key: round(value, 2) for key, value in shares.items()})
    assert shares[8, 10] > 0.7
    assert shares[8, 30] > 0.95
    assert shares[16, 30] > 0.7
    assert all(shares[m, 30] > shares[m, 10] for m in (16, 32)), "more epochs tell more"
    assert shares[8, 10] > shares[16, 10] > shares[32, 10], "larger groups hide more"


def test_proposals_are_mostly_liars_and_an_honest_fleet_has_few() -> None:
    suspicions, bad = epochs(30, 0.05, 8, seed=7)
    proposed = [device for device, _ in suspicions.suspects()]
    assert len(bad & set(proposed)) >= 0.8 * len(bad)
    assert len(bad & set(proposed)) >= 0.5 * len(proposed)
    honest, _ = epochs(30, 0.0, 8, seed=8)
    assert len(honest.suspects()) < 0.02 * DEVICES


def test_nobody_is_proposed_before_it_was_seen_in_enough_different_groups() -> None:
    names = [f"d{i}" for i in range(8)]
    pairs = [names[i : i + 2] for i in range(0, 8, 2)]
    always_same = Suspicions()
    for _ in range(40):
        always_same = always_same.after(pairs, np.array([-0.9, 0.80, 0.81, 0.82]))
    assert always_same.ranked()[0][1] > 5
    assert always_same.records["d0"].observations == 40
    assert always_same.suspects() == [], "its neighbour could be the liar as well"
    rng = np.random.default_rng(0)
    drawn = Suspicions()
    for epoch in range(30):
        order = [names[i] for i in rng.permutation(8)]
        groups = [order[i : i + 2] for i in range(0, 8, 2)]
        cosines = np.array([-0.9 if "d3" in group else 0.8 + 0.01 * rng.random() for group in groups])
        drawn = drawn.after(groups, cosines)
        if len(drawn.records["d3"].groups) < OBSERVATIONS_MIN:
            assert "d3" not in dict(drawn.suspects(0.1)), epoch
    assert drawn.suspects()[0][0] == "d3"


def test_blame_of_one_epoch_is_clipped_and_decays() -> None:
    groups = [[f"d{i}"] for i in range(5)]
    once = Suspicions(decay=0.5).after(groups, np.array([-1.0, 0.8, 0.8, 0.81, 0.82]))
    assert Z_MAX - 1.0 < once.records["d0"].blame < Z_MAX
    quiet = once
    for _ in range(40):
        quiet = quiet.after([[f"e{i}"] for i in range(5)], np.full(5, 0.5))
    assert abs(quiet.records["d0"].blame) < 1e-9


def test_epochs_of_few_groups_say_nothing() -> None:
    few = [[f"d{i}"] for i in range(GROUPS_MIN - 1)]
    assert Suspicions().after(few, np.linspace(-1, 1, len(few))) == Suspicions()


def test_equal_cosines_blame_nobody() -> None:
    assert np.all(robust_z(np.full(9, 0.3)) == 0)
    assert np.abs(robust_z(0.3 + 1e-9 * np.arange(9))).max() < 1e-3, "rounding is no evidence"


@pytest.mark.parametrize(
    ("groups", "cosines"),
    [
        ([["a"], ["b"], ["c"], ["d"]], np.zeros(3)),
        ([["a"], ["b"], ["c"], ["a"]], np.zeros(4)),
        ([["a"], ["b"], ["c"], ["d"]], np.array([0.0, np.nan, 0.0, 0.0])),
        ([["a"], ["b"], ["c"], ["d"]], np.array([0.0, 1.5, 0.0, 0.0])),
    ],
)
def test_epochs_that_cannot_be_are_refused(groups: list[list[str]], cosines: np.ndarray) -> None:
    with pytest.raises(ValueError):
        Suspicions().after(groups, cosines)


def test_who_left_or_was_cleared_is_forgotten() -> None:
    suspicions, _ = epochs(2, 0.05, 8, seed=0)
    assert set(suspicions.without(["gw-000"]).records) == set(suspicions.records) - {"gw-000"}


def test_the_state_comes_back_as_it_was_and_goes_on_alike() -> None:
    suspicions, _ = epochs(7, 0.05, 8, seed=1)
    again = Suspicions.from_bytes(suspicions.to_bytes())
    assert again == suspicions
    assert again.to_bytes() == suspicions.to_bytes()
    groups = [[f"gw-{i:03d}"] for i in range(4)]
    cosines = np.array([0.1, 0.2, 0.3, -0.4])
    assert again.after(groups, cosines) == suspicions.after(groups, cosines)


ROW = ["gw", 1.0, 2.0, 3, [1, 2]]


@pytest.mark.parametrize(
    "plain",
    [
        [],
        {"format": 1, "decay": 0.9},
        {"format": 2, "decay": 0.9, "records": []},
        {"format": 1, "decay": 0.0, "records": []},
        {"format": 1, "decay": float("nan"), "records": []},
        {"format": 1, "decay": 0.9, "records": 5},
        {"format": 1, "decay": 0.9, "records": [ROW, ROW]},
        {"format": 1, "decay": 0.9, "records": [ROW[:4]]},
        {"format": 1, "decay": 0.9, "records": [["", *ROW[1:]]]},
        {"format": 1, "decay": 0.9, "records": [["gw", float("inf"), *ROW[2:]]]},
        {"format": 1, "decay": 0.9, "records": [["gw", 1.0, -1.0, *ROW[3:]]]},
        {"format": 1, "decay": 0.9, "records": [["gw", 1.0, 1.0, True, []]]},
        {"format": 1, "decay": 0.9, "records": [["gw", 1.0, 1.0, 1, [1, 2]]]},
        {"format": 1, "decay": 0.9, "records": [["gw", 1.0, 1.0, 2, [1, -2]]]},
        {"format": 1, "decay": 0.9, "records": [["gw", 1.0, 1.0, 2, [1, "x"]]]},
    ],
)
def test_a_damaged_state_is_the_operators_to_settle(plain: object) -> None:
    assert Suspicions.from_bytes(msgpack.packb({"format": 1, "decay": 0.9, "records": [ROW]})).records["gw"].blame == 1
    with pytest.raises(ConfigError, match="suspicions"):
        Suspicions.from_bytes(msgpack.packb(plain))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\xdd\xff\xff\xff\xff"])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Suspicions.from_bytes(data)
    whole = Suspicions().after([["a"], ["b"], ["c"], ["d"]], np.array([0.0, 0.1, 0.2, 0.3])).to_bytes()
    for end in range(len(whole)):
        with pytest.raises(ConfigError):
            Suspicions.from_bytes(whole[:end])


def test_the_number_of_devices_is_bounded_and_the_last_seen_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette_core.learning.suspicion.DEVICES_MAX", 10)
    suspicions = Suspicions().after([[f"old-{i}", f"old-{i}b"] for i in range(4)], np.zeros(4))
    suspicions = suspicions.after([[f"new-{i}", f"new-{i}b"] for i in range(4)], np.zeros(4))
    assert len(suspicions.records) == 10 < DEVICES_MAX
    assert sum(device.startswith("new") for device in suspicions.records) == 8


def test_a_device_without_observations_is_not_suspicious() -> None:
    assert Record().suspicion == 0.0
