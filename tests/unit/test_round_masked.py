"""Rounds whose sums only a committee can open: drop-outs, too few votes, wrong answers, and devices that lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from round_effects import every, notes, one, opened, persisted, receipts, rosters
from round_fleet import (
    fleet_of,
    garbage,
    questions,
    wrong_boxes,
)
from round_parts import TASK, Stage, delta_of, helper_names, masked_settings

from vedette_aggregator.round_events import PublishCandidate
from vedette_aggregator.round_openings import ASK_AGAIN_S
from vedette_aggregator.round_state import RoundState
from vedette_core.learning.round_vector import layout_of
from vedette_core.machine import Connected, Count, Persist, Publish, Tick
from vedette_schemas.round import Phase
from vedette_schemas.secagg import Close, Opening

S = RoundState
Q = 5
"""Votes and shares that six members need."""


def mean_of(devices: tuple[str, ...]) -> np.ndarray:
    """What the aggregate must be, but for rounding: all weigh the same here."""
    return np.asarray(np.mean([delta_of(d) for d in devices], axis=0))


# -- what goes well ---------------------------------------------------------------------------------------------------


def test_the_sum_is_opened_and_nothing_else() -> None:
    fleet, (six,) = fleet_of()
    candidate = fleet.run(six).candidate
    assert candidate.contributors == six
    np.testing.assert_allclose(candidate.weights, mean_of(six), atol=0.02)
    assert [len(sets) for sets in fleet.asked.values()] == [1]
    fleet.stage.handle(fleet.stage.released(one(fleet.stage.effects, PublishCandidate)))
    assert fleet.stage.machine.state is S.INTERVAL
    assert not [k for k in fleet.stage.disk if "/vote/" in k or "/shares/" in k or "/upload/" in k]


def test_the_aggregate_is_that_of_the_same_updates_without_masks() -> None:
    fleet, (six,) = fleet_of()
    masked = fleet.run(six).candidate
    stage = Stage(masked_settings(masked=False))
    stage.to_collect(six)
    for device in six:
        effects = stage.upload(device)
    plain = one(effects, PublishCandidate).candidate
    # Another plan gives another rotation, and so another rounding: within a step or two a coordinate.
    np.testing.assert_allclose(masked.weights, plain.weights, atol=0.02)
    same = ("participants", "groups", "weight", "loss_before", "loss_after", "clipped_share")
    assert [masked.metrics[k] for k in same] == [plain.metrics[k] for k in same]


def test_who_drops_out_before_uploading_is_not_in_the_sum_and_still_votes() -> None:
    fleet, (six,) = fleet_of()
    candidate = fleet.run(six, without=six[:1]).candidate
    assert candidate.contributors == six[1:]
    np.testing.assert_allclose(candidate.weights, mean_of(six[1:]), atol=0.02)


def test_who_drops_out_after_uploading_costs_nothing_as_long_as_enough_answer() -> None:
    fleet, (six,) = fleet_of()
    fleet.silent = {six[0]}
    assert fleet.run(six).candidate.contributors == six


def test_the_steps_are_written_before_they_are_said() -> None:
    fleet, (six,) = fleet_of()
    fleet.collect(six)
    effects = fleet.upload_all(six)
    assert opened(effects)[-1].phase is Phase.UNMASK
    assert questions(effects) == [(d, Close) for d in six]
    asked = next(i for i, e in enumerate(effects) if isinstance(e, Publish) and e.topic.endswith("/down/committee"))
    closed = max(i for i, e in enumerate(effects) if isinstance(e, Persist) and e.key == f"round/{TASK}/state")
    assert closed < asked, "the survivor set is on disk before anybody hears of it"
    answers = fleet.answers(effects)
    for number, vote in enumerate(answers, start=1):
        effects = fleet.stage.handle(vote)
        assert persisted(effects) == [f"round/{TASK}/vote/0/{vote.body.member}"]
        assert [r.outcome for r in receipts(effects)] == ["accepted"]
        if number < Q:
            assert not questions(effects)
        elif number == Q:
            # Whoever has not voted yet is asked for that: it has nothing to open before.
            assert questions(effects) == [(d, Opening if d != vote_less(answers, Q) else Close) for d in six]


def vote_less(answers: list[Any], count: int) -> str:
    """The member whose vote comes last."""
    return str(answers[count].body.member)


def test_ledger_then_candidate_then_transition_then_candidate_leaves() -> None:
    fleet, (six,) = fleet_of()
    fleet.run(six)
    effects = fleet.stage.effects
    handed = next(i for i, e in enumerate(effects) if isinstance(e, PublishCandidate))
    written = [e.key for e in effects[:handed] if isinstance(e, Persist) and e.value is not None]
    ledger, candidate = written.index(f"privacy/{TASK}/event/1.1"), written.index(f"round/{TASK}/candidate")
    assert ledger < candidate < len(written) - 1
    assert written[-1] == f"round/{TASK}/state"


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_opened_each_by_itself() -> None:
    fleet, (first, second) = fleet_of(2)
    candidate = fleet.run([*first, *second], without=second[:1]).candidate
    everybody = tuple(sorted((*first, *second[1:])))
    assert candidate.contributors == everybody
    assert candidate.metrics["groups"] == 2
    np.testing.assert_allclose(candidate.weights, mean_of(everybody), atol=0.05)
    assert {place: len(sets) for place, sets in fleet.asked.items()} == {(1, 1, 0): 1, (1, 1, 1): 1}


def test_a_garbage_upload_drops_its_group_and_the_other_carries_the_round() -> None:
    fleet, (first, second) = fleet_of(2)
    fleet.collect([*first, *second])
    plan = fleet.stage.running
    effects = fleet.upload_all([*first, *second[1:]])
    effects += fleet.upload(second[0], vector=garbage(plan, layout_of(plan).length))
    effects = fleet.open_sums(effects)
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.contributors == first
    assert candidate.metrics["groups_dropped"] == 1
    assert Count("groups_dropped", "canary", TASK) in effects
    assert "group 1 dropped: canary" in notes(effects)


def test_garbage_in_the_only_group_is_tried_again_and_then_given_up() -> None:
    fleet, (six,) = fleet_of(attempts_max=2)
    for attempt in (1, 2):
        fleet.collect(six)
        assert fleet.stage.machine.attempt == attempt
        plan = fleet.stage.running
        effects = fleet.upload_all(six[1:])
        effects += fleet.upload(six[0], vector=garbage(plan, layout_of(plan).length))
        effects = fleet.open_sums(effects)
        assert "(group 0: canary), expected a quorum of 5" in notes(effects)
    assert opened(effects)[-1].phase is Phase.FAILED
    assert fleet.stage.machine.model.version == 0
    assert not every(fleet.stage.effects, PublishCandidate)
    assert not [k for k in fleet.stage.disk if k.startswith("privacy/")], "nothing was released"


def test_a_group_that_cannot_be_opened_is_left_out() -> None:
    fleet, (first, second) = fleet_of(2)
    fleet.silent = set(second[:2])
    fleet.collect([*first, *second])
    effects = fleet.open_sums(fleet.upload_all([*first, *second]))
    assert not every(effects, PublishCandidate), "the other group may still be opened"
    effects = fleet.stage.to_deadline()
    assert one(effects, PublishCandidate).candidate.contributors == first
    assert f"no answer of {', '.join(sorted(second[:2]))}" in notes(effects)


# -- too few ----------------------------------------------------------------------------------------------------------


def test_too_few_votes_are_tried_again_and_then_the_round_is_given_up() -> None:
    fleet, (six,) = fleet_of(attempts_max=2)
    fleet.silent = set(six[:2])
    for attempt in (1, 2):
        fleet.collect(six)
        effects = fleet.open_sums(fleet.upload_all(six))
        assert fleet.stage.machine.state is S.UNMASK
        assert len([k for k in fleet.stage.disk if "/vote/" in k]) == 4
        effects = fleet.stage.to_deadline()
        assert not [k for k in fleet.stage.disk if "/vote/" in k or "/upload/" in k]
        assert "found 0 uploads in 0 groups that could be opened, expected a quorum of 5" in notes(effects)
        assert opened(effects)[-1].phase is (Phase.CHECKIN if attempt == 1 else Phase.FAILED)
    assert fleet.stage.machine.model.version == 0
    fleet.silent = set()
    assert fleet.run(six).candidate.round == 2


def test_the_next_attempt_has_other_keys() -> None:
    fleet, (six,) = fleet_of()
    fleet.silent = set(six[:2])
    fleet.collect(six)
    first = rosters(fleet.stage.effects)[0]
    fleet.open_sums(fleet.upload_all(six))
    fleet.stage.to_deadline()
    assert fleet.stage.machine.waiting == 0, "no key is rostered twice"
    fleet.collect(six)
    second = rosters(fleet.stage.effects)[0]
    assert (first.attempt, second.attempt) == (1, 2)
    assert not {m.epk for m in first.members} & {m.epk for m in second.members}


def test_whoever_has_not_answered_is_asked_again() -> None:
    fleet, (six,) = fleet_of()
    fleet.collect(six)
    votes = fleet.answers(fleet.upload_all(six))
    fleet.stage.handle(votes[0])
    assert not questions(fleet.stage.handle(Tick(), ASK_AGAIN_S - 1))
    assert questions(fleet.stage.handle(Tick(), 1)) == [(d, Close) for d in six if d != votes[0].body.member]
    assert fleet.stage.machine.next_deadline() == fleet.stage.now + ASK_AGAIN_S
    assert questions(fleet.stage.handle(Connected())) == [(d, Close) for d in six if d != votes[0].body.member]


def test_a_member_that_missed_the_close_is_asked_for_its_vote_when_others_have_enough() -> None:
    fleet, (six,) = fleet_of()
    late, dies = six[0], six[1]
    fleet.silent = {late}
    fleet.collect(six)
    votes = fleet.answers(fleet.upload_all(six))
    assert len(votes) == Q
    for vote in votes:
        effects = fleet.stage.handle(vote)
    fleet.silent = {dies}  # it voted, and then it lost its power
    shares = fleet.answers([e for e in effects if f"/{late}/" not in getattr(e, "topic", "")])
    for share in shares:
        fleet.stage.handle(share)
    assert fleet.stage.machine.state is S.UNMASK, "four shares do not suffice"
    effects = fleet.stage.handle(Tick(), ASK_AGAIN_S)
    assert sorted(questions(effects)) == sorted([(late, Close), (dies, Opening)])
    assert one(fleet.open_sums(effects), PublishCandidate).candidate.contributors == six, "shown the votes at once"


# -- whoever is to blame ----------------------------------------------------------------------------------------------


def test_a_device_that_dealt_wrong_shares_sits_the_epoch_out() -> None:
    fleet, (seven,) = fleet_of(sizes=7)
    liar, others = seven[0], seven[1:]
    fleet.collect(seven)
    boxes = wrong_boxes(fleet.stage.roster_of(liar), liar, fleet.stage.running)
    effects = fleet.upload_all(others)
    effects += fleet.upload(liar, boxes=boxes)
    effects = fleet.open_sums(effects)
    assert f"wrong shares of {liar}, who sits the epoch out" in notes(effects)
    assert (fleet.stage.machine.state, fleet.stage.machine.attempt) == (S.CHECKIN, 2)
    fleet.stage.restart()
    fleet.collect(seven)
    candidate = one(fleet.open_sums(fleet.upload_all(others)), PublishCandidate)
    assert candidate.candidate.contributors == others
    assert all(r.member(liar) is None for r in rosters(fleet.stage.effects))
    fleet.stage.handle(fleet.stage.released(candidate))
    fleet.collect(seven)
    assert all(r.member(liar) is None for r in fleet.stage.machine._book.rosters), "the epoch goes on without it"


# -- helpers ----------------------------------------------------------------------------------------------------------


def test_helpers_open_the_sums_of_all_groups() -> None:
    fleet, (first, second) = fleet_of(2, committee="helpers", committee_size=5)
    helpers = helper_names(5)
    candidate = fleet.run([*first, *second], helpers=helpers, without=first[:1])
    assert candidate.candidate.contributors == tuple(sorted((*first[1:], *second)))
    found = rosters(fleet.stage.effects)
    assert [[m.device for m in r.committee] for r in found] == [helpers, helpers]
    assert all(m.weight == 0 for r in found for m in r.committee)
    assert {who for who, _ in questions(fleet.stage.effects)} == set(helpers), "devices are done when they uploaded"
    assert {role for device, role, _, _ in fleet.stage.machine.certificates if device in helpers} == {"unmask"}


def test_a_round_waits_for_helpers_and_draws_no_more_than_it_lists() -> None:
    fleet, (six,) = fleet_of(committee="helpers", committee_size=3)
    fleet.stage.to_checkin()
    fleet.stage.check_in(six)
    assert opened(fleet.stage.effects)[-1].checkin_until_s == 0, "without helpers nobody could open the sum"
    fleet.stage.check_in(helper_names(1))
    assert fleet.stage.machine._book.record.deadline is None
    fleet.stage.check_in(helper_names(4)[1:])
    fleet.stage.to_deadline()
    listed = {m.device for m in rosters(fleet.stage.effects)[0].committee}
    assert len(listed) == 3
    waiting = [h for h in helper_names(4) if h not in listed]
    assert fleet.stage.machine._book.helpers == waiting, "whose key was not used waits for the next round"


def test_too_few_helpers_answer() -> None:
    fleet, (six,) = fleet_of(committee="helpers", committee_size=3)
    fleet.silent = {"helper-0", "helper-1"}
    fleet.collect(six, helper_names(3))
    fleet.open_sums(fleet.upload_all(six))
    assert fleet.stage.machine.state is S.UNMASK
    effects = fleet.stage.to_deadline()
    assert opened(effects)[-1].phase is Phase.CHECKIN
    assert "no answer of helper-0, helper-1" in notes(effects)
