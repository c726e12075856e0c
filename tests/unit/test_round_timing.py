"""When rounds open, how long they wait, whom they draw: schedules, deadlines, buffers, quarantine and epochs."""

from __future__ import annotations

from typing import Any

import pytest
from round_effects import every, one, opened, receipts, rosters
from round_fleet import Fleet, masked_stage_in, recording
from round_parts import (
    GATEWAYS,
    NOW,
    TASK,
    Stage,
    beacon,
    devices_in,
    masked_settings,
    sealed,
    settings,
    upload,
)

from vedette_aggregator.round_events import (
    PublishCandidate,
    Quarantined,
    ReleaseFailed,
    RoundAsked,
    UploadReceived,
)
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Tick
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, group_of, read_plan

S = RoundState
HOUR = 3600.0
MIDNIGHT = NOW - NOW % (24 * HOUR)
SIXTEEN = tuple(f"gw-{i:02}" for i in range(16))


# -- when -------------------------------------------------------------------------------------------------------------


def quiet(**changes: Any) -> Stage:
    """A machine that starts at two in the morning, where nothing opens before six."""
    stage = Stage(settings(4, quorum=2, quiet_hours=("22:00-06:00",), **changes))
    stage.now = MIDNIGHT + 2 * HOUR
    return stage


def test_no_round_opens_in_quiet_hours_and_a_restart_in_them_goes_on() -> None:
    stage = quiet()
    assert not opened(stage.handle(Tick()))
    assert (stage.machine.state, stage.machine.next_deadline()) == (S.INTERVAL, MIDNIGHT + 6 * HOUR)
    stage.restart()
    assert stage.machine.next_deadline() == MIDNIGHT + 6 * HOUR
    stage.now = MIDNIGHT + 6 * HOUR - 1
    assert not opened(stage.handle(Tick()))
    assert [o.phase for o in opened(stage.handle(Tick(), 1.0))] == [Phase.CHECKIN]


def test_an_open_round_goes_on_into_quiet_hours_and_the_next_waits_for_their_end() -> None:
    stage = quiet()
    stage.now = MIDNIGHT + 22 * HOUR - 1
    candidate = stage.to_releasing()
    assert stage.now > MIDNIGHT + 22 * HOUR
    effects = stage.handle(stage.released(candidate))
    assert opened(effects)[-1].next_round_s == MIDNIGHT + 30 * HOUR == stage.machine.next_deadline()


def test_rounds_per_day_are_points_of_a_grid() -> None:
    stage = Stage(settings(4, quorum=2, rounds_per_day=4.0, interval_s=0.0))
    stage.now = MIDNIGHT + HOUR
    stage.release()
    stage.to_checkin()
    assert stage.now == MIDNIGHT + 6 * HOUR
    stage.to_releasing()
    effects = stage.handle(ReleaseFailed("the gate said no"))
    assert opened(effects)[-1].next_round_s == MIDNIGHT + 12 * HOUR, "a failed round delays nothing"


def test_a_point_of_the_grid_that_went_by_is_not_made_up_for() -> None:
    stage = Stage(settings(4, quorum=2, rounds_per_day=4.0, interval_s=0.0))
    stage.now = MIDNIGHT + HOUR
    stage.release()
    stage.now = MIDNIGHT + 10 * HOUR
    effects = stage.handle(Tick())
    assert (stage.machine.state, opened(effects)[-1].next_round_s) == (S.INTERVAL, MIDNIGHT + 12 * HOUR)


# -- how long ---------------------------------------------------------------------------------------------------------


def test_as_many_uploads_as_are_wanted_close_the_round() -> None:
    stage = Stage(settings(4, quorum=2, uploads_wanted=2, attempts_max=1))
    stage.to_collect([*GATEWAYS, "gw-03"])
    assert len(rosters(stage.effects)[0].members) == 3, "130 % of two"
    drawn = [m.device for m in rosters(stage.effects)[0].members]
    stage.upload(drawn[0])
    assert one(stage.upload(drawn[1]), PublishCandidate).candidate.contributors == tuple(drawn[:2])
    assert receipts(stage.upload(drawn[2]))[0].reason.startswith("late: "), "it gives to a later round"


def test_every_group_must_have_enough_before_wanted_uploads_close_them() -> None:
    first, second = devices_in([4, 4])
    stage = Stage(settings(8, quorum=2, groups=2, survivors_min=3, uploads_wanted=6, selection="all"))
    stage.to_collect([*first, *second])
    assert sum(len(r.members) for r in rosters(stage.effects)) == 8
    for device in (*first, *second[:2]):
        assert not every(stage.upload(device), PublishCandidate), "two uploads alone are not opened"
    candidate = one(stage.upload(second[2]), PublishCandidate).candidate
    assert candidate.contributors == tuple(sorted((*first, *second[:3])))


def test_the_deadline_follows_what_lately_was_enough() -> None:
    stage = Stage(settings(16, quorum=2, group_size=16, deadline_mads=4.0))
    stage.to_collect(SIXTEEN)
    assert stage.machine.next_deadline() == stage.now + 300.0, "nothing was seen yet"
    for i, device in enumerate(SIXTEEN):
        stage.now += 4.0
        stage.upload(device)
        assert stage.machine.state is (S.COLLECT if i < 15 else S.RELEASING)
    stage.handle(stage.released(one(stage.effects, PublishCandidate)))
    stage.restart()
    stage.to_collect(SIXTEEN)
    # Uploads took 4, 8 … 64 s: the median is 34, and half of them are within 16 of it.
    assert stage.machine.next_deadline() == stage.now + 34.0 + 4.0 * 16.0


def test_who_is_late_is_refused_and_still_moves_the_next_deadline() -> None:
    stage = Stage(settings(16, quorum=2, group_size=16, deadline_mads=4.0, attempts_max=1), has_root=True)
    stage.to_collect(SIXTEEN)
    for device in SIXTEEN[:8]:
        stage.upload(device)
    stage.to_deadline()
    assert stage.machine.state is S.UNMASK
    for device in SIXTEEN[8:]:
        assert receipts(stage.upload(device))[0].reason.startswith("late: ")
    times = stage.machine._book.record.upload_times
    assert times == (0.0,) * 8 + (300.0,) * 8


def test_nobody_moves_the_deadline_by_sending_again_or_from_outside() -> None:
    stage = Stage(settings(16, quorum=2, group_size=16, deadline_mads=4.0))
    stage.to_collect(SIXTEEN[:8])
    roster = rosters(stage.effects)[0]
    stranger, broken = upload(roster, "gw-40"), upload(roster, SIXTEEN[0], vector=b"")
    for _ in range(20):
        for body in (stranger, broken):
            assert receipts(stage.handle(UploadReceived(body, sealed(body))))[0].outcome == "rejected"
    assert len(stage.machine._book.record.upload_times) <= 1


# -- who --------------------------------------------------------------------------------------------------------------


def test_quarantined_devices_are_not_drawn() -> None:
    stage = Stage()
    stage.handle(Quarantined(frozenset({"gw-01"})))
    stage.to_collect()
    assert [m.device for m in rosters(stage.effects)[0].members] == ["gw-00", "gw-02"]
    assert stage.machine.waiting == 1, "its check-in stays"
    stage.handle(Quarantined(frozenset()))
    for device in ("gw-00", "gw-02"):
        effects = stage.upload(device)
    stage.handle(stage.released(one(effects, PublishCandidate)))
    stage.to_checkin()
    stage.check_in(["gw-00"])
    stage.to_deadline()
    assert [m.device for m in rosters(stage.effects)[0].members] == ["gw-00", "gw-01"]


def test_a_round_waits_for_others_than_the_quarantined_and_goes_on_when_they_are_let_out() -> None:
    stage = Stage()
    stage.handle(Quarantined(frozenset({"gw-01"})))
    stage.to_checkin()
    stage.check_in(["gw-00", "gw-01"])
    assert opened(stage.effects)[-1].checkin_until_s == 0
    effects = stage.handle(Quarantined(frozenset()))
    assert opened(effects)[-1].checkin_until_s == stage.now + stage.rounds.checkin_s
    stage.to_deadline()
    assert stage.machine.state is S.COLLECT


def test_a_quarantine_during_a_round_holds_from_the_next_attempt_on() -> None:
    stage = Stage()
    stage.to_collect()
    stage.handle(Quarantined(frozenset({"gw-02"})))
    assert stage.machine.state is S.COLLECT
    stage.to_deadline()
    assert stage.machine.attempt == 2
    stage.to_collect()
    assert [m.device for m in rosters(stage.effects)[0].members] == ["gw-00", "gw-01"]


def test_everybody_has_a_turn() -> None:
    stage = Stage(settings(4, quorum=2, checkins_max=2, uploads_wanted=2))
    turns: list[str] = []
    for _ in range(2):
        stage.to_checkin()
        stage.check_in([d for d in (*GATEWAYS, "gw-03") if d not in stage.machine._book.waiting])
        stage.to_deadline()
        drawn = [m.device for m in rosters(stage.effects)[0].members]
        turns += drawn
        for device in drawn:
            effects = stage.upload(device)
        stage.handle(stage.released(one(effects, PublishCandidate)))
    assert sorted(turns) == [*GATEWAYS, "gw-03"]


# -- epochs -----------------------------------------------------------------------------------------------------------


def test_the_number_of_groups_follows_the_fleet_when_an_epoch_begins() -> None:
    stage = Stage(settings(16, quorum=2, group_size=8, survivors_min=3, groups=0, epoch_rounds=2))
    few = SIXTEEN[:6]
    plan = read_plan(stage.release(few).plan)
    assert (plan.groups.groups, plan.version) == (1, 1)
    stage.to_collect(SIXTEEN[:12])
    drawn = [m.device for m in rosters(stage.effects)[0].members]
    assert len(drawn) == 8, "within an epoch the group stays as it is, and the rest waits"
    before = len(stage.effects)
    for device in drawn:
        stage.upload(device)
    handed = one(stage.effects[before:], PublishCandidate)
    plan = read_plan(handed.plan)
    assert (plan.groups.groups, plan.version) == (2, 2)
    stage.handle(stage.released(handed))
    stage.to_checkin()
    stage.check_in([d for d in SIXTEEN[:12] if d not in stage.machine._book.waiting])
    stage.to_deadline()
    found = rosters(stage.effects)
    assert [r.gid for r in found] == [0, 1]
    for roster in found:
        assert roster.beacon == beacon(2)
        assert {group_of(beacon(2), TASK, m.device, 2) for m in roster.members} == {roster.gid}


def test_a_fleet_that_doubles_gets_more_groups_at_once() -> None:
    stage = Stage(settings(16, quorum=2, group_size=4, survivors_min=2, groups=0, epoch_rounds=100, checkins_max=16))
    plan = read_plan(stage.release(SIXTEEN[:4]).plan)
    assert plan.groups.groups == 1
    stage.to_collect(SIXTEEN)
    drawn = [m.device for m in rosters(stage.effects)[0].members]
    before = len(stage.effects)
    for device in drawn:
        stage.upload(device)
    assert read_plan(one(stage.effects[before:], PublishCandidate).plan).groups.groups > 1


def test_groups_that_the_operator_names_stay() -> None:
    stage = Stage(settings(16, quorum=2, group_size=4, groups=1, epoch_rounds=1))
    assert read_plan(stage.release(SIXTEEN[:4]).plan).groups.groups == 1


def test_a_beacon_chain_that_is_used_up_ends_the_round_and_says_so() -> None:
    def none(epoch: int) -> bytes:
        raise ConfigError(f"beacon: found no value for epoch {epoch}; make a new chain")

    stage = Stage(beacons=none)
    effects = stage.to_collect()
    assert opened(effects)[-1].phase is Phase.FAILED
    assert stage.machine.model.version == 0


# -- the steps of the opening -----------------------------------------------------------------------------------------


def test_after_a_restart_an_open_sum_is_aggregated_at_once() -> None:
    fleet = Fleet(masked_stage_in(S.UNMASK))
    votes, shares = recording().votes, recording().shares
    for vote in votes.values():
        fleet.stage.handle(vote)
    effects = [e for answer in shares.values() for e in fleet.stage.handle(answer)]
    handed = one(effects, PublishCandidate)
    cut = masked_stage_in(S.UNMASK)
    for vote in votes.values():
        cut.handle(vote)
    for answer in shares.values():  # written down, and then the power failed: no transition
        cut.disk[f"round/{TASK}/shares/0/{answer.body.member}"] = answer.sealed
    cut.restart()
    deadline = cut.machine.next_deadline()
    assert deadline is not None
    assert deadline <= cut.now
    assert one(cut.handle(Tick()), PublishCandidate).candidate.digest() == handed.candidate.digest()


@pytest.mark.parametrize(
    "changes", [{"unmask_s": 0.0}, {"attempts_max": 17}, {"quorum": 40, "checkins_max": 16}, {"collect_s": 0.0}]
)
def test_settings_that_no_round_can_keep_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="round: found"):
        masked_settings(**changes)


# -- before its time --------------------------------------------------------------------------------------------------


def ended(**changes: Any) -> Stage:
    """A machine that waits for its second round."""
    stage = Stage(settings(4, quorum=2, interval_s=6 * HOUR, **changes))
    stage.handle(stage.released(stage.to_releasing()))
    assert stage.machine.state is S.INTERVAL
    return stage


def test_a_round_that_is_asked_for_opens_now_and_over_a_restart() -> None:
    stage = ended()
    assert stage.machine.next_deadline() == stage.now + 6 * HOUR
    stage.handle(RoundAsked())
    stage.restart()
    assert [o.round for o in opened(stage.handle(Tick()))] == [2]


def test_quiet_hours_and_a_grid_stay_what_they_are() -> None:
    night = quiet()
    night.handle(RoundAsked())
    assert not opened(night.handle(Tick()))
    assert night.machine.next_deadline() == MIDNIGHT + 6 * HOUR
    grid = ended(rounds_per_day=4.0)
    due = grid.machine.next_deadline()
    assert due is not None
    grid.handle(RoundAsked())
    found = grid.machine.next_deadline()
    assert found is not None
    assert found % (6 * HOUR) == 0
    assert grid.now <= found <= due
