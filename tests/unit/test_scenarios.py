"""The demo's scenarios are judged by what nodes saw and what the aggregator recorded, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vedette.demo.diary import Diary, DiaryReader
from vedette.demo.dropout import broken_dropout, dropout_figures
from vedette.demo.poisoned_figures import (
    broken_poisoned,
    group_figures,
    proposed,
    round_at,
    seen_groups,
    suspicion_figures,
)
from vedette.demo.stage import ReleaseFacts
from vedette.demo.swarm import line_writer
from vedette_aggregator.company import Company

PLACE = (1, 1)


def told(*entries: dict[str, Any]) -> Diary:
    diary = Diary()
    for entry in entries:
        diary.take(json.dumps(entry))
    return diary


def at(what: str, device: str, gid: int = 0, number: int = 1, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"what": what, "device": device, "round": number, "attempt": attempt, "gid": gid, **more}


def a_round(number: int = 1) -> list[dict[str, Any]]:
    """Two groups of three; one device of the first vanishes."""
    joined = [at("joined", f"d{i}", gid=i // 3, number=number) for i in range(6)]
    uploads = [at("uploaded", f"d{i}", gid=i // 3, number=number) for i in range(6) if i != 2]
    closes = [
        at("close", "d0", gid=0, number=number, survivors=["d0", "d1"]),
        at("close", "d3", gid=1, number=number, survivors=["d3", "d4", "d5"]),
    ]
    return [*joined, at("vanished", "d2", number=number), *uploads, *closes]


def test_a_diary_knows_rosters_by_group_and_who_came_back() -> None:
    diary = told(*a_round(), {"what": "back", "device": "d2"}, at("joined", "d0", number=2))
    assert diary.rostered(PLACE) == {f"d{i}" for i in range(6)}
    assert diary.joined[PLACE][1] == {"d3", "d4", "d5"}
    assert diary.returns == 1
    assert (diary.last_round_of("d0"), diary.last_round_of("d1"), diary.last_round_of("nobody")) == (2, 1, 0)


def test_a_release_that_is_looked_at_again_does_not_make_a_device_older() -> None:
    diary = told(*({"what": "release", "device": "d0", "version": v, "sha256": ""} for v in (0, 2, 1)))
    assert diary.versions == {"d0": 2}


def test_masks_opened_are_each_survivors_own_and_those_shared_with_who_is_missing() -> None:
    # First group: two survivors, one of three is missing. Second: three survivors, nobody is missing.
    assert told(*a_round()).secrets_opened(PLACE) == (2 + 3, 2 * 1)


def test_a_swarms_output_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    reader = DiaryReader(path)
    assert reader.read() == Diary()
    with path.open("w") as file:
        say = line_writer(file)
        say("joined", device="d0", round=1, attempt=1, gid=0)
        file.write('{"what": "uploaded", "device": "d0", "rou')
        file.flush()
        assert reader.read().uploaded == {}
        file.write('nd": 1, "attempt": 1, "gid": 0}\n')
        file.flush()
        diary = reader.read()
    assert diary.rostered(PLACE) == diary.uploaded[PLACE] == {"d0"}


def figures_of(diary: Diary, opened: int = 2) -> dict[str, Any]:
    figures = dropout_figures(diary, {1: ReleaseFacts(1, 5, opened, 0)}, {1: 1})
    return {"devices": 6, "rounds_wanted": 1, "devices_with_newest_release": 6} | figures


def test_dropout_figures_count_what_nodes_and_releases_say() -> None:
    figures = figures_of(told(*a_round()))
    assert figures["rostered_per_round"] == [6]
    assert figures["vanished_per_round"] == [1]
    assert figures["vanished_share"] == pytest.approx(1 / 6, abs=1e-3)
    assert figures["uploads_per_round"] == figures["updates_in_release"] == [5]
    assert (figures["groups"], figures["groups_opened"]) == ([2], [2])
    assert (figures["own_masks_opened"], figures["pair_masks_opened"]) == (5, 2)


def test_what_was_released_of_a_group_that_did_not_open_is_not_made_up() -> None:
    figures = figures_of(told(*a_round()), opened=1)
    assert (figures["own_masks_opened"], figures["pair_masks_opened"]) == (None, None)


def test_figures_are_of_the_attempt_that_was_released() -> None:
    second = [entry | {"attempt": 2} for entry in a_round() if entry["what"] != "vanished"]
    figures = dropout_figures(told(*a_round(), *second), {1: ReleaseFacts(1, 6, 2, 0)}, {1: 2})
    assert figures["vanished_per_round"] == [0]
    assert figures["attempts"] == 2


def test_no_round_at_all_gives_figures_too() -> None:
    figures = dropout_figures(Diary(), {}, {1: 3})
    assert (figures["rounds_completed"], figures["attempts"], figures["vanished_share"]) == (0, 3, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds_completed": 4}, "4 of 5 rounds completed"),
        ({"vanished_share": 0.1}, "10% of the rostered devices vanished"),
        ({"devices_with_newest_release": 29}, "1 devices do not have the newest release"),
    ],
)
def test_a_promise_of_dropout_that_was_not_kept_is_named(change: dict[str, Any], said: str) -> None:
    kept = {
        "rounds_completed": 5,
        "rounds_wanted": 5,
        "vanished_share": 0.2,
        "devices": 30,
        "devices_with_newest_release": 30,
    }
    assert broken_dropout(kept) == []
    (broken,) = broken_dropout(kept | change)
    assert said in broken


# -- poisoned devices -------------------------------------------------------------------------------------------------

LOG = """
07:00:01 info    vedette.shell: network round 2.1: 12 devices in 3 groups
07:00:02 warning vedette.shell: network round 2.1: group 1 dropped: trust
07:00:03 info    vedette.shell: network round 2.1: released as version 2
07:00:03 warning vedette.aggregator: quarantined: liar
07:00:04 info    vedette.shell: network round 3: open on release 2
"""


def company() -> Company:
    made = Company(2)
    made.cosines = {0: (0.8, 1), 1: (-0.4, 1), 2: (0.2, 1)}
    made.members = {0: {"a", "b", "c", "d"}, 1: {"liar", "e", "f", "g"}, 2: {"h", "i", "other-liar", "j"}}
    return made


def test_groups_are_what_the_aggregator_remembers_and_why_they_were_dropped_what_it_logged() -> None:
    groups = seen_groups({2: company()}, {"liar", "other-liar"}, LOG)
    assert [(g.round, g.gid, g.members, g.liars, g.cosine, g.dropped) for g in groups] == [
        (2, 0, 4, 0, 0.8, ""),
        (2, 1, 4, 1, -0.4, "trust"),
        (2, 2, 4, 1, 0.2, ""),
    ]


def test_groups_with_liars_are_set_beside_the_others() -> None:
    figures = group_figures(seen_groups({2: company()}, {"liar", "other-liar"}, LOG))
    assert figures["groups_with_poisoned"] == {"seen": 2, "dropped": {"trust": 1}, "cosine_to_root": -0.1}
    assert figures["groups_without"] == {"seen": 1, "dropped": {}, "cosine_to_root": 0.8}
    assert figures["share_of_devices_in_groups_with_poisoned"] == pytest.approx(2 / 3, abs=1e-3)
    assert figures["share_of_weight_of_groups_with_poisoned"] == pytest.approx(0.2 / (0.2 + 0.8))


def test_a_round_in_which_nothing_is_trusted_gives_nobody_weight() -> None:
    bad = Company(1)
    bad.cosines, bad.members = {0: (-1.0, 1)}, {0: {"liar", "a"}}
    assert group_figures(seen_groups({1: bad}, {"liar"}, ""))["share_of_weight_of_groups_with_poisoned"] == 0.0


def test_the_round_of_a_log_line_is_the_last_one_before_it() -> None:
    assert round_at(LOG, "quarantined: ") == 2
    assert round_at(LOG, "nothing of the kind") is None
    assert round_at("quarantined: liar", "quarantined: ") == 0


SUSPECTS = [
    {"task": "network", "device": "liar", "suspicion": 4.5, "observations": 9},
    {"task": "network", "device": "new", "suspicion": 3.9, "observations": 4},
    {"task": "network", "device": "unlucky", "suspicion": 3.1, "observations": 9},
    {"task": "network", "device": "other-liar", "suspicion": 1.2, "observations": 9},
]


def test_who_is_proposed_has_enough_suspicion_and_was_seen_often_enough() -> None:
    assert proposed(SUSPECTS, 3.0) == ["liar", "unlucky"]


def test_ranks_are_told_of_every_liar_found_or_not() -> None:
    figures = suspicion_figures(SUSPECTS, ("liar", "other-liar", "unseen"), 3.0)
    assert figures["suspicion"] == {
        "liar": {"rank": 1, "suspicion": 4.5, "observations": 9},
        "other-liar": {"rank": 4, "suspicion": 1.2, "observations": 9},
        "unseen": {"rank": None, "suspicion": 0.0, "observations": None},
    }
    assert figures["suspicion_of_most_suspicious_honest"] == 3.9
    assert figures["proposed_but_honest"] == ["unlucky"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benign_loss": {"defended": 1.5, "plain_mean": 1.4}}, "benign loss 1.5 with the defence, 1.4 without"),
        ({"share_of_weight_of_groups_with_poisoned": 0.6}, "60% of the weight and 50% of devices"),
        ({"confirmed_by_a_person": []}, "no poisoned device was proposed"),
        ({"in_a_roster_afterwards": ["liar"]}, "in a roster afterwards: liar"),
    ],
)
def test_a_promise_about_poisoned_devices_that_was_not_kept_is_named(change: dict[str, Any], said: str) -> None:
    kept = {
        "benign_loss": {"defended": 0.8, "plain_mean": 1.4},
        "share_of_weight_of_groups_with_poisoned": 0.3,
        "share_of_devices_in_groups_with_poisoned": 0.5,
        "confirmed_by_a_person": ["liar"],
        "in_a_roster_afterwards": [],
    }
    assert broken_poisoned(kept) == []
    (broken,) = broken_poisoned(kept | change)
    assert said in broken
