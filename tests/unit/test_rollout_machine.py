"""A rollout by example: stages, gates, people, crashes."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_parts import TASK, RolloutBench, digest, fast

from vedette_aggregator.rollout_events import (
    ActiveSeen,
    CandidateListed,
    DeviceReported,
    FollowRounds,
    ReleaseUnlisted,
    Requested,
    Verb,
)
from vedette_aggregator.rollout_machine import RolloutMachine
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import Phase, record_key
from vedette_core.crypto.cohorts import bucket
from vedette_core.machine import Connected
from vedette_schemas.errors import ConfigError
from vedette_schemas.rollout import MEMBERS_MAX, PPM, RolloutPhase


@pytest.fixture
def bench() -> RolloutBench:
    return RolloutBench()


def test_the_whole_way_of_a_good_release(bench: RolloutBench) -> None:
    bench.begin()
    sizes, controls = [], []
    for _ in bench.settings.stages:
        assert bench.phase is Phase.RUNNING
        sizes.append(len(bench.exposed()))
        controls.append(len(bench.control()))
        bench.pass_stage()
    assert sizes == [5, 10, 50, 100]
    assert controls == [5, 10, 50, 0]
    assert (bench.phase, bench.activations) == (Phase.PROMOTING, [2])
    assert bench.state.state is RolloutPhase.RUNNING, "nobody is told before signed metadata say so"
    bench.activated()
    assert (bench.phase, bench.state.state, bench.machine.record.active) == (Phase.PROMOTED, RolloutPhase.PROMOTED, 2)
    assert [s.seq for s in bench.said] == list(range(1, len(bench.said) + 1))


def test_the_control_cohort_keeps_its_devices_until_the_last_stage(bench: RolloutBench) -> None:
    bench.begin()
    first = set(bench.control())
    for _ in range(2):
        bench.pass_stage()
        assert first <= set(bench.control())
        assert not first & set(bench.exposed())


def test_a_small_fleet_is_halved(bench: RolloutBench) -> None:
    bench = RolloutBench(6)
    bench.begin()
    assert (len(bench.exposed()), len(bench.control())) == (3, 3)
    alone = RolloutBench(1)
    alone.begin()
    assert (alone.phase, alone.said) == (Phase.WAITING, [])
    alone.tick(alone.settings.pause_s_max)
    assert alone.phase is Phase.ABORTED


def test_missing_evidence_pauses_and_a_person_may_go_on(bench: RolloutBench) -> None:
    bench.begin()
    bench.confirm()
    bench.tick(150.0)
    assert bench.phase is Phase.RUNNING, "it is waited for"
    bench.tick(51.0)
    assert bench.phase is Phase.PAUSED
    assert "not enough is known: alerts" in bench.machine.record.reason
    assert bench.state.state is RolloutPhase.PAUSED
    bench.ask(Verb.RESUME)
    assert bench.state.state is RolloutPhase.RUNNING
    bench.pass_stage()
    assert bench.machine.record.stage == 1


@pytest.mark.parametrize("outcome", ["pending", "trial", "none"])
def test_devices_that_do_not_confirm_pause_it(bench: RolloutBench, outcome: str) -> None:
    bench.begin()
    bench.confirm(outcome=outcome)
    bench.measure()
    bench.tick(201.0)
    assert bench.phase is Phase.PAUSED
    assert "0 of 5 exposed devices that are here confirmed it" in bench.machine.record.reason


def test_a_device_that_is_still_about_an_older_candidate_confirms_nothing(bench: RolloutBench) -> None:
    bench.begin()
    for device in bench.exposed():
        bench.send(DeviceReported(device, True, 1, 1, "confirmed"))
    bench.measure()
    bench.tick(201.0)
    assert bench.phase is Phase.PAUSED


def test_half_of_the_exposed_devices_away_says_nothing(bench: RolloutBench) -> None:
    bench.begin()
    bench.confirm()
    bench.measure()
    for device in bench.exposed()[:3]:
        bench.send(DeviceReported(device, False, 2, 2, "confirmed"))
    bench.tick(201.0)
    assert bench.phase is Phase.PAUSED


@pytest.mark.parametrize(
    ("figure", "factor", "phase"),
    [
        ("alerts_per_hundred", 50.0, Phase.ROLLED_BACK),
        ("surprise", 3.0, Phase.ROLLED_BACK),
        ("latency_us", 2.0, Phase.PAUSED),
        ("memory_bytes", 1.6, Phase.PAUSED),
    ],
)
def test_a_worse_figure(bench: RolloutBench, figure: str, factor: float, phase: Phase) -> None:
    bench.begin()
    bench.confirm()
    bench.measure(worse=lambda value: value * factor + (figure == "alerts_per_hundred"), name=figure)
    bench.tick(101.0)
    assert bench.phase is phase, bench.machine.record.reason


def test_mass_alerts_roll_back_before_any_soak(bench: RolloutBench) -> None:
    bench.begin()
    one, two, *_ = bench.exposed()
    bench.alert([one], 50, 2)
    assert bench.phase is Phase.RUNNING, "one device alone may be broken, or lie"
    bench.alert([two], 3, 2)
    assert (bench.phase, bench.state.state) == (Phase.ROLLED_BACK, RolloutPhase.ROLLED_BACK)
    assert bench.activations == [], "the active release was the old one all the time"
    assert FollowRounds(TASK) in bench.effects
    assert bench.machine.record.audit[-1].by == "aggregator"


def test_alerts_of_everybody_are_not_the_releases_fault(bench: RolloutBench) -> None:
    bench.begin()
    bench.alert(bench.control(), 3, 1)
    bench.alert(bench.exposed(), 3, 2)
    assert bench.phase is Phase.RUNNING


def test_alerts_of_devices_that_are_not_exposed_or_run_something_else_do_not_count(bench: RolloutBench) -> None:
    bench.begin()
    others = [d for d in bench.devices if d not in bench.exposed()]
    bench.alert(others, 3, 2)
    bench.alert(bench.exposed(), 3, 1)
    assert bench.phase is Phase.RUNNING


def test_failures_roll_back_and_one_alone_asks_a_person(bench: RolloutBench) -> None:
    bench.begin()
    one, two, *others = bench.exposed()
    bench.confirm([two, *others])
    bench.confirm([one], "failed")
    bench.measure()
    bench.tick(101.0)
    assert bench.phase is Phase.PAUSED
    bench.confirm([two], "failed")
    assert bench.phase is Phase.ROLLED_BACK


def test_a_paused_rollout_still_goes_back(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PAUSE)
    bench.alert(bench.exposed(), 3, 2)
    assert bench.phase is Phase.ROLLED_BACK


def test_what_comes_of_a_withdrawn_release_is_withdrawn_too(bench: RolloutBench) -> None:
    bench.begin()
    bench.listed(3)
    assert bench.machine.record.rounds_from({1, 2, 3}) == 3
    bench.alert(bench.exposed(), 3, 2)
    assert bench.machine.record.rounds_from({1, 2, 3}) == 1
    assert bench.phase is Phase.ROLLED_BACK, "release 3 was made from release 2"
    bench.listed(4, parent=3)
    assert bench.machine.record.rounds_from({1, 2, 3, 4}) == 1
    bench.listed(5, parent=1)
    assert (bench.phase, bench.machine.record.candidate, bench.machine.record.baseline) == (Phase.WAITING, 5, 1)
    assert bench.machine.record.rounds_from({1, 5}) == 5
    assert bench.machine.record.rounds_from({1}) == 1, "what is not listed any more is not gone on from"


def test_the_newest_candidate_waits_and_older_ones_are_dropped(bench: RolloutBench) -> None:
    bench.begin()
    bench.listed(3)
    bench.listed(4)
    assert bench.machine.record.queued == 4
    bench.ask(Verb.PROMOTE)
    bench.activated()
    assert (bench.phase, bench.machine.record.candidate, bench.machine.record.baseline) == (Phase.WAITING, 4, 2)
    assert [p.phase for p in bench.machine.record.history] == [Phase.PROMOTED]


def test_an_aborted_candidate_stays_what_rounds_go_on_from(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.ABORT)
    assert (bench.phase, bench.state.state) == (Phase.ABORTED, RolloutPhase.ABORTED)
    assert bench.machine.record.rounds_from({1, 2}) == 2
    bench.listed(3)
    bench.tick()
    assert (bench.phase, bench.machine.record.candidate) == (Phase.RUNNING, 3)


def test_a_promoted_release_can_be_rolled_back(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PROMOTE)
    bench.activated()
    bench.ask(Verb.ROLLBACK)
    assert (bench.phase, bench.activations) == (Phase.REVERTING, [2, 1])
    bench.restart()
    assert bench.activations == [2, 1, 1], "it is asked for again"
    bench.activated()
    assert (bench.phase, bench.state.state, bench.machine.record.active) == (
        Phase.ROLLED_BACK,
        RolloutPhase.ROLLED_BACK,
        1,
    )
    assert bench.machine.record.rounds_from({1, 2}) == 1


def test_somebody_else_makes_a_release_active() -> None:
    bench = RolloutBench()
    bench.begin()
    bench.send(ActiveSeen(0, digest(0)))
    assert (bench.phase, bench.machine.record.active) == (Phase.ABORTED, 0)
    assert bench.machine.record.rounds_from({0, 1, 2}) == 0


def test_a_promotion_before_the_first_stage_is_said(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PROMOTE)
    bench.activated()
    bench.listed(3)
    bench.ask(Verb.PROMOTE)
    bench.activated()
    assert (bench.state.candidate, bench.state.state) == (3, RolloutPhase.PROMOTED)


def test_a_promoted_release_that_somebody_else_replaced_is_not_promoted_any_more(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PROMOTE)
    bench.activated()
    bench.send(ActiveSeen(1, digest(1)))
    assert (bench.state.candidate, bench.state.state) == (2, RolloutPhase.ABORTED)
    assert bench.machine.record.rounds_from({1, 2}) == 1


def test_a_candidate_that_is_revoked_ends_its_rollout(bench: RolloutBench) -> None:
    bench.begin()
    assert bench.send(ReleaseUnlisted(7)) == []
    bench.ask(Verb.PROMOTE)
    bench.send(ReleaseUnlisted(2))
    assert (bench.phase, bench.state.state) == (Phase.ROLLED_BACK, RolloutPhase.ROLLED_BACK)


def test_there_is_no_way_back_to_a_release_that_is_gone(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PROMOTE)
    bench.activated()
    bench.ask(Verb.ROLLBACK)
    bench.send(ReleaseUnlisted(1))
    assert (bench.phase, bench.machine.record.active) == (Phase.ABORTED, 2)


def test_stages_wait_for_approval() -> None:
    bench = RolloutBench(settings=fast(approve=(0.0, 10.0)))
    bench.begin()
    assert (bench.phase, bench.said) == (Phase.WAITING, [])
    bench.ask(Verb.APPROVE)
    bench.tick()
    assert bench.phase is Phase.RUNNING
    bench.pass_stage()
    assert (bench.phase, bench.machine.record.awaits) == (Phase.PAUSED, 10.0)
    assert len(bench.exposed()) == 5
    bench.ask(Verb.APPROVE)
    bench.tick()
    assert (bench.phase, bench.machine.record.stage, len(bench.exposed())) == (Phase.RUNNING, 1, 10)


def test_no_more_are_exposed_in_an_hour_than_allowed() -> None:
    bench = RolloutBench(settings=fast(exposed_per_hour=7, soak_s=10.0))
    bench.begin()
    assert len(bench.exposed()) == 5
    bench.pass_stage()
    assert (bench.machine.record.stage, len(bench.exposed())) == (1, 7)
    bench.tick(1800.0)
    assert (bench.machine.record.stage, len(bench.exposed())) == (1, 7), "and the soak has not begun"
    bench.tick(1801.0)
    assert len(bench.exposed()) == 10


def test_nobody_decides(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PAUSE)
    bench.tick(bench.settings.pause_s_max + 1.0)
    assert (bench.phase, bench.state.state) == (Phase.ABORTED, RolloutPhase.ABORTED)


def test_pins_travel_and_are_no_sample(bench: RolloutBench) -> None:
    bench.ask(Verb.PIN, device="gw-001", version=1)
    assert bench.machine.record.audit[-1].outcome.startswith("refused: pin: found no rollout")
    bench.begin()
    pinned = bench.exposed()[0]
    bench.ask(Verb.PIN, device=pinned, version=1)
    assert [(p.device, p.version) for p in bench.state.pins] == [(pinned, 1)]
    assert pinned not in bench.exposed()
    bench.alert([pinned], 3, 2)
    assert bench.machine._watch.tallies.candidate == {}
    bench.ask(Verb.UNPIN, device=pinned)
    assert bench.state.pins == ()
    bench.ask(Verb.UNPIN, device=pinned)
    assert "refused: unpin" in bench.machine.record.audit[-1].outcome


@pytest.mark.parametrize("verb", [v for v in Verb if v not in (Verb.PIN, Verb.UNPIN)])
def test_what_means_nothing_now_is_refused_and_written_down(verb: Verb) -> None:
    bench = RolloutBench()
    before = bench.machine.record
    bench.ask(verb, version=9)
    entry = bench.machine.record.audit[-1]
    assert (entry.by, entry.verb) == ("someone", verb.value)
    assert entry.outcome.startswith(f"refused: {verb.value}: found")
    assert (bench.machine.record.phase, bench.machine.record.seq) == (before.phase, before.seq)
    assert [key for key in bench.stored if key.startswith("rollout-request/")] == []


def test_a_request_is_answered_once(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.PAUSE)
    asked = bench.machine.record.done[-1]
    bench.ask(Verb.RESUME)
    effects = bench.send(Requested(asked, Verb.PAUSE, "someone", bench.now))
    assert bench.phase is Phase.RUNNING
    assert [type(e).__name__ for e in effects] == ["Persist"], "only the request is removed"


def test_an_aborted_candidate_can_be_tried_again(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.ROLLBACK)
    bench.ask(Verb.CREATE, version=2)
    assert (bench.phase, bench.machine.record.number) == (Phase.WAITING, 2)
    assert bench.machine.record.rounds_from({1, 2}) == 2
    bench.tick()
    assert bench.state.rollout == 2
    assert bench.state.salt != bench.said[0].salt


def test_after_a_restart_it_is_where_it_was(bench: RolloutBench) -> None:
    bench.begin()
    bench.pass_stage()
    exposed, control, seq = bench.exposed(), bench.control(), bench.state.seq
    bench.alert(exposed[:1], 3, 2)
    bench.tick(6.0)
    bench.restart()
    assert (bench.state.seq, bench.exposed(), bench.control()) == (seq, exposed, control)
    bench.alert(exposed[1:3], 3, 2)
    assert bench.phase is Phase.ROLLED_BACK, "what was counted before still counts"


def test_part_of_the_fleet_begins_no_stage(bench: RolloutBench) -> None:
    """After a restart only a few devices are known at first; shares made of them would expose too many."""
    bench.begin()
    bench.confirm()
    bench.measure()
    exposed = bench.exposed()
    devices, bench.devices = bench.devices, bench.devices[:20]
    bench.restart()
    bench.devices = devices
    bench.confirm(exposed)
    bench.measure()
    bench.tick(101.0)
    assert (bench.machine.record.stage, bench.state.share_ppm) == (0, bench.said[0].share_ppm)
    bench.report_fleet()
    bench.confirm(exposed)
    bench.tick(1.0)
    assert bench.machine.record.stage == 1


def test_the_fleet_is_counted_before_a_stage_begins() -> None:
    bench = RolloutBench(settings=fast(settle_s=60.0))
    bench.begin()
    assert bench.phase is Phase.WAITING
    bench.tick(60.0)
    assert bench.phase is Phase.RUNNING


def test_the_state_is_renewed_and_repeated(bench: RolloutBench) -> None:
    bench.begin()
    bench.ask(Verb.ABORT)
    before = bench.state
    bench.send(Connected())
    assert bench.state == before
    bench.tick(bench.settings.state_life_s / 2)
    assert (bench.state.seq, bench.state.state) == (before.seq + 1, before.state)
    assert bench.state.expires_s > before.expires_s


def test_the_same_listing_again_changes_nothing(bench: RolloutBench) -> None:
    bench.begin()
    before = bench.machine.record
    assert bench.send(CandidateListed(2, digest(2), digest(1))) == []
    assert bench.send(ActiveSeen(1, digest(1))) == []
    assert bench.machine.record == before


def test_a_damaged_record_stops_the_start(bench: RolloutBench) -> None:
    with pytest.raises(ConfigError, match="damaged record"):
        RolloutMachine.restore({record_key(TASK): b"\xc1"}, TASK, fast(), bench.messages, bench.entropy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stages": (10.0, 5.0, 100.0)}, "rising"),
        ({"stages": (1.0, 50.0)}, "end with 100"),
        ({"stages": (0.0, 100.0)}, "above 0"),
        ({"approve": (7.0,)}, "one of the stages"),
        ({"from_version": 1}, "2 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RolloutSettings(**changes)


def test_shares_are_exact(bench: RolloutBench) -> None:
    bench.begin()
    assert bench.state.share_ppm + bench.state.control_ppm <= PPM
    assert len(bench.exposed()) == bench.machine.record.exposed == 5


def _unpinned_exposed(bench: RolloutBench) -> list[str]:
    pinned = {pin.device for pin in bench.state.pins}
    return [d for d in bench.exposed() if d not in pinned]


def test_a_device_that_was_pinned_when_its_cohort_was_drawn_is_not_in_it_afterwards(bench: RolloutBench) -> None:
    bench.begin()
    lowest = min(bench.devices, key=lambda d: bucket(bench.state.salt, d))
    bench.ask(Verb.ABORT)
    bench.ask(Verb.PIN, device=lowest, version=1)
    bench.salts -= 1  # the next rollout draws the same salt
    bench.ask(Verb.CREATE, version=2)
    bench.tick()
    first = bench.exposed()
    assert len(first) == 5
    bench.ask(Verb.UNPIN, device=lowest)
    assert bucket(bench.state.salt, lowest) < bench.state.share_ppm
    assert bench.exposed() == first
    bench.pass_stage()
    assert len(bench.exposed()) == 10
    assert {*first, lowest} <= set(bench.exposed()), "the lowest come first, and nobody goes"


def test_devices_that_nobody_knew_when_a_cohort_was_drawn_are_not_in_it(bench: RolloutBench) -> None:
    bench.begin()
    first, share = bench.exposed(), bench.state.share_ppm
    bench.devices += [d for i in range(200) if bucket(bench.state.salt, d := f"new-{i}") < share]
    assert len(bench.devices) > 105, "some would be below the share"
    bench.report_fleet()
    assert bench.exposed() == first
    bench.restart()
    bench.tick()
    assert bench.exposed() == first
    new = [d for d in bench.devices if d.startswith("new-")]
    bench.alert(new, 3, 2)
    assert bench.phase is Phase.RUNNING
    assert bench.machine._watch.tallies.candidate == {}, "what they say about the candidate counts nowhere"


def test_cohorts_that_are_too_large_to_be_named_are_shares_and_keep_who_was_named() -> None:
    bench = RolloutBench(2 * MEMBERS_MAX + 88)
    bench.begin()
    for percent, named in ((1.0, 6), (10.0, 60), (50.0, 0)):
        assert bench.settings.stages[bench.machine.record.stage] == percent
        assert len(bench.state.members) == named
        wanted = bench.machine.record.target
        assert len(bench.exposed()) == wanted
        before = set(bench.exposed())
        bench.pass_stage()
        assert before <= set(bench.exposed())
