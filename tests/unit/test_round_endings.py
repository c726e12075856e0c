"""How a round ends, and how it goes on after a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_effects import notes, one, opened, outcome, persisted, rosters
from round_fleet import SIX, masked_stage_in, recording
from round_parts import GATEWAYS, TASK, Stage, devices_in, model_of, plan_of, sealed, settings, stage_in, upload

from vedette_aggregator.round_events import ModelReplaced, PublishCandidate, Released
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Connected, Count, Persist, Tick
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, plan_bytes

S = RoundState


def test_a_full_group_closes_the_round_at_once_and_the_candidate_follows_the_commit() -> None:
    stage = Stage()
    stage.to_collect()
    stage.upload("gw-00")
    stage.upload("gw-01")
    effects = stage.upload("gw-02")
    handed = [type(e) for e in effects].index(PublishCandidate)
    before = [e for e in effects[:handed] if isinstance(e, Persist)]
    behind = [e for e in effects[handed:] if isinstance(e, Persist)]
    assert before[-1].key == f"round/{TASK}/state"
    assert all(e.value is None for e in behind if "/upload/" in e.key)
    assert f"round/{TASK}/candidate" in [e.key for e in before]
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.contributors == GATEWAYS
    assert candidate.metrics["participants"] == 3
    assert (candidate.parent_version, candidate.parent_sha256) == (0, "a" * 64)


def test_too_few_uploads_are_tried_again_and_then_the_round_is_given_up() -> None:
    stage = Stage(settings(4, quorum=2, attempts_max=2))
    stage.to_collect()
    stage.upload("gw-00")
    effects = stage.handle(Tick(), stage.rounds.collect_s)
    assert [(o.attempt, o.phase) for o in opened(effects)] == [(2, Phase.CHECKIN)]
    assert Count("rounds", "retried", TASK) in effects
    assert f"round/{TASK}/upload/gw-00" not in stage.disk
    stage.to_collect()
    effects = stage.handle(Tick(), stage.rounds.collect_s)
    assert [(o.attempt, o.phase) for o in opened(effects)] == [(2, Phase.FAILED)]
    assert "failed: attempt 2: found 0 uploads, 0 in groups of 2 or more, expected a quorum of 2" in notes(effects)
    assert stage.machine.model.version == 0
    stage.handle(Tick(), stage.rounds.interval_s)
    assert (stage.machine.round, stage.machine.attempt) == (2, 1)


def test_a_group_below_its_minimum_is_left_out_and_counts_for_nothing() -> None:
    rounds = settings(8, quorum=3, group_size=4, survivors_min=3, groups=2)
    stage = Stage(rounds)
    whole, broken = devices_in([4, 4])
    stage.to_collect([*whole, *broken])
    assert len(rosters(stage.effects)) == 2
    for device in (*whole, *broken[:2]):
        stage.upload(device)
    effects = stage.to_deadline()
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.contributors == whole
    assert candidate.metrics["groups"] == 1


def test_a_release_starts_the_next_round_from_the_candidate() -> None:
    stage = Stage()
    candidate = stage.to_releasing()
    effects = stage.handle(stage.released(candidate))
    keys = persisted(effects)
    assert keys.index(f"round/{TASK}/model/1") < keys.index(f"round/{TASK}/state") < keys.index(f"round/{TASK}/model/0")
    assert [o.phase for o in opened(effects)] == [Phase.DONE]
    assert opened(effects)[0].model_version == 0, "the ended round started from the old model"
    assert (stage.machine.model.version, stage.machine.model.round) == (1, 1)
    np.testing.assert_array_equal(stage.machine.model.weights, candidate.candidate.weights)
    effects = stage.handle(Tick(), stage.rounds.interval_s)
    assert (opened(effects)[0].round, opened(effects)[0].model_version, opened(effects)[0].model) == (2, 1, "b" * 64)
    assert not [key for key in stage.disk if "/upload/" in key]


def test_a_changed_plan_takes_effect_with_the_release_that_carries_it() -> None:
    stage = Stage()
    stage.to_collect()
    _, old_plan = plan_bytes(stage.plan)
    stage.rounds = replace(stage.rounds, learning_rate=0.1)
    stage.plan = plan_of(stage.rounds)
    wanted, new_plan = plan_bytes(plan_of(stage.rounds, version=2))
    stage.restart()
    for device in GATEWAYS:
        effects = stage.upload(device)
    handed = one(effects, PublishCandidate)
    assert (handed.candidate.plan, handed.plan) == (old_plan, wanted)
    stage.handle(stage.released(handed))
    assert opened(stage.handle(Tick(), stage.rounds.interval_s))[0].plan == new_plan


def test_a_release_with_another_plan_than_handed_over_is_a_fault_of_the_caller() -> None:
    stage = Stage()
    stage.to_releasing()
    with pytest.raises(ValueError, match="another plan"):
        stage.handle(Released(1, "b" * 64, "0" * 64))


def test_the_same_release_twice_counts_once() -> None:
    stage = Stage()
    answer = stage.released(stage.to_releasing())
    stage.handle(answer)
    assert outcome(stage.handle(answer)) == "discarded"
    stage.handle(Tick(), stage.rounds.interval_s)
    stage.to_collect()
    for device in GATEWAYS:
        stage.upload(device)
    assert stage.machine.state is S.RELEASING
    assert outcome(stage.handle(answer)) == "discarded", "the answer to the round before"


def test_rounds_max_ends_the_task_and_more_of_them_wake_it() -> None:
    stage = stage_in(S.FINISHED)
    assert stage.machine.next_deadline() is None
    assert opened(stage.effects)[-1].next_round_s == 0
    stage.rounds = replace(stage.rounds, rounds_max=2)
    stage.restart()
    stage.handle(Tick())
    assert (stage.machine.state, stage.machine.round) == (S.CHECKIN, 2)


def test_a_replaced_model_is_what_the_next_round_starts_from() -> None:
    stage = stage_in(S.COLLECT)
    stage.handle(ModelReplaced(replace(model_of(stage.plan, 7), sha256="7" * 64)))
    assert opened(stage.effects)[-1].phase is Phase.FAILED
    stage.restart()
    effects = stage.handle(Tick(), stage.rounds.interval_s)
    assert (opened(effects)[0].model_version, opened(effects)[0].model) == (7, "7" * 64)
    assert [k for k in stage.disk if "/model/" in k] == [f"round/{TASK}/model/7"]


def test_connected_says_what_is_retained_again() -> None:
    stage = stage_in(S.COLLECT)
    effects = stage.handle(Connected())
    assert (rosters(effects), opened(effects)) == (rosters(stage.effects), [opened(stage.effects)[-1]])
    assert not persisted(effects)
    assert not opened(Stage().handle(Connected())), "before the first round there is nothing to say"


def test_a_clock_that_is_set_back_delays_by_one_window_at_most() -> None:
    stage = stage_in(S.COLLECT)
    stage.now -= 1e6
    stage.handle(Tick())
    assert stage.machine.next_deadline() == stage.now + stage.rounds.collect_s


# -- restart ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("state", list(RoundState))
def test_a_restart_goes_on_exactly(state: RoundState, masked: bool) -> None:
    stage = masked_stage_in(state) if masked else stage_in(state)
    said = opened(stage.effects)[-1]
    record, deadline = stage.machine._book.record, stage.machine.next_deadline()
    disk = dict(stage.disk)
    effects = stage.restart()
    assert stage.machine._book.record == record
    assert stage.machine.next_deadline() == deadline or state is S.CHECKIN or (masked and state is S.UNMASK)
    assert stage.machine.state is state
    assert opened(effects) == [said]
    assert stage.disk == disk


def test_after_a_crash_the_candidate_is_identical_to_the_last_bit() -> None:
    stage = Stage()
    first = stage.to_releasing()
    again = one(stage.restart(), PublishCandidate)
    assert again.candidate.digest() == first.candidate.digest()
    assert again.candidate.weights.tobytes() == first.candidate.weights.tobytes()
    assert again.plan == first.plan


def test_what_a_crash_left_over_is_cleared_away() -> None:
    stage = stage_in(S.CHECKIN)
    body = upload(rosters(stage_in(S.COLLECT).effects)[0], "gw-00")
    left_over = {
        f"round/{TASK}/upload/gw-00": sealed(body),
        f"round/{TASK}/model/5": b"half a transition",
        f"round/{TASK}/candidate": b"half a transition",
        f"round/{TASK}/vote/0/{SIX[0]}": recording().votes[SIX[0]].sealed,
        f"round/{TASK}/shares/0/{SIX[0]}": recording().shares[SIX[0]].sealed,
    }
    before = dict(stage.disk)
    stage.disk |= left_over
    stage.restart()
    assert stage.disk == before


@pytest.mark.parametrize("key", ["state", "model/0", "device/gw-00", "candidate", "memory"])
def test_a_damaged_store_is_the_operators_to_mend(key: str) -> None:
    stage = stage_in(S.RELEASING if key in ("candidate", "memory") else S.COLLECT)
    stage.disk[f"round/{TASK}/{key}"] = b"\x93 not it"
    with pytest.raises(ConfigError, match="restore the state database"):
        stage.restart()


@pytest.mark.parametrize(("state", "key"), [(S.COLLECT, "model/0"), (S.RELEASING, "candidate")])
def test_a_store_with_a_hole_is_the_operators_to_mend(state: RoundState, key: str) -> None:
    stage = stage_in(state)
    del stage.disk[f"round/{TASK}/{key}"]
    with pytest.raises(ConfigError, match=rf"{key}: found nothing.*; restore the state database"):
        stage.restart()


def test_a_plan_for_another_model_is_refused() -> None:
    stage = Stage()
    stage.plan = stage.plan.model_copy(update={"dimension": 13})
    with pytest.raises(ConfigError, match="found dimension 13 in the plan, expected 12"):
        RoundMachine(stage.parts(), model_of(Stage().plan))
