"""The scenario ``revoked-device`` is judged by what nodes saw and what the aggregator logged."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_scenarios import at, told

from vedette.demo.revoked_device import (
    DEVICES,
    REVOKED,
    ROUNDS_AFTER,
    broken_revoked,
    refusals,
    revoked_figures,
)

KEPT: dict[str, Any] = {
    "revoked": REVOKED,
    "devices": DEVICES,
    "list_before": 1,
    "list_after": 2,
    "rounds_with_it_before": 2,
    "in_a_roster_afterwards": [],
    "rounds_released_afterwards": ROUNDS_AFTER,
    "refused": {"checkin": 3},
    "told_why": True,
    "nodes_with_the_list": DEVICES - 1,
    "reconnect_refused": True,
}


def test_figures_tell_before_from_after() -> None:
    rounds = {1: ("a", REVOKED, "b"), 2: ("a", REVOKED, "b"), 3: ("a", "b"), 4: ("a",)}
    diary = told(*(at("joined", name, number=number) for number, names in rounds.items() for name in names))
    assert revoked_figures(diary, 2, [3, 4]) == {
        "rounds_with_it_before": 2,
        "in_a_roster_afterwards": [],
        "rounds_released_afterwards": 2,
        "others_in_rosters_afterwards": 1,
    }
    assert revoked_figures(diary, 1, [])["in_a_roster_afterwards"] == [2]
    assert revoked_figures(told(), 0, [])["others_in_rosters_afterwards"] == 0


def test_refusals_are_those_of_the_revoked_device_for_that_reason() -> None:
    def line(device: str, step: str, why: str) -> str:
        return f"12:00:00 info    vedette.aggregator: vedette/1/s/device/{device}/up/fl/network/{step}: {why}"

    revoked = f"certificate of {REVOKED}: found it revoked (key-compromise, list 2), expected one in force"
    log = "\n".join(
        [
            line(REVOKED, "checkin", revoked),
            line(REVOKED, "upload", revoked),
            line(REVOKED, "upload", revoked),
            line(REVOKED, "checkin", "found another task"),
            line("light-04", "checkin", "certificate of light-04: found it revoked"),
        ]
    )
    assert refusals(log) == {"checkin": 1, "upload": 2}
    assert refusals("") == {}


def test_lists_are_in_the_diary() -> None:
    diary = told(*({"what": "revocations", "device": "d0", "number": n} for n in (1, 2)))
    assert diary.lists == {"d0": 2}


def test_nothing_is_broken_when_all_was_kept() -> None:
    assert broken_revoked(KEPT) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds_with_it_before": 0}, "in no round before"),
        ({"list_after": 3}, "next number"),
        ({"in_a_roster_afterwards": [4]}, r"rounds \[4\] after"),
        ({"refused": {}}, "nothing that light-03 said was refused"),
        ({"told_why": False}, "not told why"),
        ({"reconnect_refused": False}, "let light-03 in again"),
        ({"rounds_released_afterwards": 1}, "1 of 3 rounds"),
        ({"nodes_with_the_list": 3}, "3 nodes have the list"),
    ],
)
def test_a_promise_that_was_not_kept_is_named(change: dict[str, Any], said: str) -> None:
    (found,) = broken_revoked(KEPT | change)
    assert re.search(said, found)
