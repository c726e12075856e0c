"""How a group's sum is opened, and what happens where it is not: from the close on.

As in ``test_round_scenarios``, each transcript is in ``golden/``. Of the devices ``00`` is short for ``gw-00``.
"""

from __future__ import annotations

import numpy as np
import pytest
from fleet_simulator.problem import TASK
from fleet_simulator.simulation import Fleet
from golden_transcript import assert_golden
from round_stories import about, at_key, at_write, ended, fleet, vanish

from vedette_schemas.round import Phase, transcript_hash

EIGHT = {f"gw-0{i}" for i in range(8)}
UNMASKING = ("aggregator ← upload", "aggregator ← vote", "aggregator ← shares", "aggregator ← tick", "aggregator ← rel")


def eight() -> Fleet:
    """Eight devices, of which six votes and six shares open a sum; the last upload comes a minute later."""
    story = fleet(devices=8)
    story.gateways["gw-07"].training_s = 60.0
    return story


def after_collect(story: Fleet, *names: str) -> list[str]:
    """The transcript about these from the last upload on."""
    lines = about(story, *(names or UNMASKING))
    last = max(i for i, line in enumerate(lines) if "upload of" in line)
    return lines[last:]


# -- who is not there -------------------------------------------------------------------------------------------------


def test_a_fifth_of_the_devices_vanishes_after_its_check_in() -> None:
    story = fleet(devices=10, group_size=10)
    vanish(story, 30.0, "gw-03", "gw-08")
    story.start()
    story.run_until_ended(1, 900.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == {f"gw-0{i}" for i in range(10)} - {"gw-03", "gw-08"}
    assert_golden("dropout", about(story, "aggregator"))


def test_too_few_survivors_in_one_group_leave_it_closed() -> None:
    """Of twelve devices in two groups, two of one vanish: its four updates are never opened, the other group's are."""
    story = fleet(devices=12, groups=2, group_size=7, seed=_seed_of_two_groups())
    story.start()
    story.run(61.25)
    first, second = story.aggregator.machine._book.rosters
    for member in first.members[4:]:
        story.gateways[member.device].training_s = 1e6
    story.run_until_ended(1, 900.0)
    assert ended(story) == [(1, Phase.DONE)]
    adversary = story.observer.adversary
    assert adversary.open_parts(adversary.groups[transcript_hash(first)]) == []
    assert len(adversary.open_parts(adversary.groups[transcript_hash(second)])) == 1
    asked = " ".join(line for line in story.transcript.lines if "→ ask" in line)
    assert not any(member.device in asked or f" {member.device[3:]}" in asked for member in first.members)
    assert_golden("too_few_survivors", after_collect(story))


def _seed_of_two_groups() -> int:
    for seed in range(1, 50):
        story = fleet(devices=12, groups=2, group_size=7, seed=seed)
        story.start()
        story.run(62.0)
        if sorted(len(r.members) for r in story.aggregator.machine._book.rosters) in ([5, 7], [6, 6]):
            return seed
    raise AssertionError("no seed makes two groups of five to seven")


def test_committee_members_are_away_and_the_others_suffice() -> None:
    story = eight()
    vanish(story, 100.0, "gw-00", "gw-01")
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == EIGHT, "the updates of those who are away count"
    assert_golden("committee_away", after_collect(story))


def test_too_many_committee_members_are_away_and_the_attempt_is_repeated() -> None:
    story = eight()
    vanish(story, 100.0, "gw-00", "gw-01", "gw-02", for_s=250.0)
    story.start()
    story.run_until_ended(1, 900.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.aggregator.machine.attempt == 2
    first, second = story.observer.adversary.groups.values()
    assert not first.opened
    assert second.opened
    assert_golden("committee_missing", after_collect_of_first(story))


def after_collect_of_first(story: Fleet) -> list[str]:
    """From the close of the first attempt to the check-in of the second."""
    lines = about(story, *UNMASKING)
    first = next(i for i, line in enumerate(lines) if "unmask" in line)
    last = next(i for i, line in enumerate(lines) if "say round 1.2 checkin" in line)
    return lines[first : last + 1]


def test_a_vote_that_comes_late_makes_up_for_a_member_that_went_away() -> None:
    """gw-00 misses the close; gw-01 and gw-02 vote and vanish. Six shares are needed: the latecomer's is the sixth."""
    story = eight()
    story.start()
    story.scheduler.after(100.0, lambda: story.gateways["gw-00"].link.cut(40.0))
    vanish(story, 121.66, "gw-01", "gw-02")
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.aggregator.machine.attempt == 1
    assert_golden("late_vote", after_collect(story))


# -- who lies ---------------------------------------------------------------------------------------------------------


def test_a_device_that_dealt_wrong_shares_is_named_and_left_out() -> None:
    story = fleet(devices=6, liars={"gw-02": frozenset({"commitments"})})
    story.start()
    story.run_until_ended(1, 900.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.aggregator.machine.attempt == 2
    assert "gw-02" in story.observer.accepted[1, 1]
    assert "gw-02" not in story.observer.accepted[1, 2]
    assert_golden("blamed", after_collect_of_first(story) + after_collect(story)[-14:])


def test_members_that_give_wrong_shares_are_left_out() -> None:
    story = fleet(devices=8, liars={name: frozenset({"shares"}) for name in ("gw-01", "gw-06")})
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.aggregator.machine.attempt == 1
    assert_golden("wrong_shares", after_collect(story))


def test_garbage_costs_its_group_and_no_other() -> None:
    seed = _seed_of_two_groups()
    story = fleet(devices=12, groups=2, group_size=7, seed=seed, liars={"gw-00": frozenset({"garbage"})})
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    home = story.observer.accepted[1, 1]
    assert len(home) == 12, "under its mask, nobody can tell it from an update"
    assert any("dropped: " in line for line in story.transcript.lines)
    assert_golden("garbage", after_collect(story)[-24:])


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_aggregator_dies_at_each_step_of_the_unmasking(moment: str) -> None:
    """Whatever it was about to write: the same members are asked, nobody answers twice, and the model is the same."""
    clean = fleet(devices=6)
    writes: list[tuple[str, int]] = []
    clean.aggregator.disk.power_switch = lambda number, key: writes.append((key, number))
    clean.start()
    clean.run_until_ended(1, 600.0)
    votes = [number for key, number in writes if "/vote/" in key]
    model = next(number for key, number in writes if key.endswith("model/1"))
    steps = range(min(votes) - 1, model)
    kinds = {key.split("/")[2] for key, number in writes if number in steps and key.count("/") > 1}
    assert kinds >= {"state", "vote", "shares", "event", "memory", "candidate", "device"}
    for number in steps:
        story = fleet(devices=6)
        story.aggregator.disk.power_switch = at_write(number, moment)
        story.start()
        story.run_until_ended(1, 900.0)
        assert story.aggregator.crashes == 1
        assert ended(story) == [(1, Phase.DONE)], f"dies {moment} write {number}"
        assert story.aggregator.machine.attempt == 1, f"dies {moment} write {number}"
        found, expected = story.aggregator.machine.model.weights, clean.aggregator.machine.model.weights
        assert np.array_equal(found, expected), f"dies {moment} write {number}"


def test_the_aggregator_dies_while_shares_come_in() -> None:
    story = fleet(devices=6)
    story.aggregator.disk.power_switch = at_key(f"round/{TASK}/shares/0/", "after", which=2)
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert_golden("unmasking_crash", after_collect(story, "aggregator"))


# -- helpers ----------------------------------------------------------------------------------------------------------


def test_helpers_open_the_sum_of_devices_that_went_away() -> None:
    """Every device leaves after its upload: whoever speaks once can sleep, if helpers open the sums."""
    story = fleet(devices=6, helpers=6, committee="helpers", committee_size=6)
    for name in story.gateways:
        vanish(story, 71.45, name)
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert len(story.observer.accepted[1, 1]) == 6
    assert_golden("helpers", about(story, "aggregator", "helper-0"))


def test_helpers_are_missing_and_the_round_waits_for_them() -> None:
    story = fleet(devices=6, helpers=6, committee="helpers", committee_size=6)
    for name in ("helper-0", "helper-1", "helper-2"):
        vanish(story, 0.5, name, for_s=600.0)
    story.start()
    story.run(500.0)
    assert ended(story) == []
    story.run_until_ended(1, 1200.0)
    assert ended(story) == [(1, Phase.DONE)]
