"""How a round ends, and how it goes on after a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_parts import (
    TASK,
    Stage,
    model_of,
    opened,
    outcome,
    persisted,
    plan_of,
    rosters,
    sealed,
    settings,
    stage_in,
    upload,
)

from vedette_aggregator.round_events import ModelReplaced, PublishCandidate, Released
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Connected, Count, Note, Persist, Tick
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, plan_bytes

S = RoundState
GATEWAYS = ("gw-00", "gw-01", "gw-02")


def test_a_full_group_closes_the_round_at_once_and_the_candidate_follows_the_commit() -> None:
    stage = Stage()
    stage.to_collect()
    stage.upload("gw-00")
    stage.upload("gw-01")
    effects = stage.upload("gw-02")
    kinds = [type(e) for e in effects]
    assert kinds.index(PublishCandidate) > max(i for i, k in enumerate(kinds) if k is Persist)
    candidate = next(e for e in effects if isinstance(e, PublishCandidate)).candidate
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
    assert any(isinstance(e, Note) and e.level == "error" and "expected a quorum of 2" in e.text for e in effects)
    assert stage.machine.model.version == 0
    stage.handle(Tick(), stage.rounds.interval_s)
    assert (stage.machine.round, stage.machine.attempt) == (2, 1)


def test_a_group_below_its_minimum_is_left_out_and_counts_for_nothing() -> None:
    rounds = settings(12, quorum=3, group_size=3, survivors_min=3, checkins_max=12)
    stage = Stage(rounds)
    stage.to_collect([f"gw-{i:02}" for i in range(12)])
    found = rosters(stage.effects)
    assert len(found) > 1
    whole, broken = found[0], found[1]
    for member in whole.members:
        stage.upload(member.device)
    for member in broken.members[:2]:
        stage.upload(member.device)
    effects = stage.handle(Tick(), rounds.collect_s)
    candidate = next(e for e in effects if isinstance(e, PublishCandidate)).candidate
    assert candidate.contributors == tuple(m.device for m in whole.members)
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
    stage.plan = plan_of(replace(stage.rounds, learning_rate=0.1), version=2)
    wanted, new_plan = plan_bytes(stage.plan)
    stage.restart()
    for device in GATEWAYS:
        effects = stage.upload(device)
    handed = next(e for e in effects if isinstance(e, PublishCandidate))
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


@pytest.mark.parametrize("state", list(RoundState))
def test_a_restart_goes_on_exactly(state: RoundState) -> None:
    stage = stage_in(state)
    said = opened(stage.effects)[-1]
    record, deadline = stage.machine._book.record, stage.machine.next_deadline()
    disk = dict(stage.disk)
    effects = stage.restart()
    assert (stage.machine._book.record, stage.machine.next_deadline()) == (record, deadline) or state is S.CHECKIN
    assert stage.machine.state is state
    assert opened(effects) == [said]
    assert stage.disk == disk


def test_after_a_crash_the_candidate_is_identical_to_the_last_bit() -> None:
    stage = Stage()
    first = stage.to_releasing()
    again = next(e for e in stage.restart() if isinstance(e, PublishCandidate))
    assert again.candidate.digest() == first.candidate.digest()
    assert again.candidate.weights.tobytes() == first.candidate.weights.tobytes()
    assert again.plan == first.plan


def test_what_a_crash_left_over_is_cleared_away() -> None:
    stage = stage_in(S.CHECKIN)
    body = upload(rosters(stage_in(S.COLLECT).effects)[0], "gw-00")
    stage.disk[f"round/{TASK}/upload/gw-00"] = sealed(body)
    stage.disk[f"round/{TASK}/model/5"] = b"half a transition"
    stage.restart()
    assert not [key for key in stage.disk if key.endswith(("/upload/gw-00", "/model/5"))]


@pytest.mark.parametrize("key", ["state", "model/0", "device/gw-00"])
def test_a_damaged_store_is_the_operators_to_mend(key: str) -> None:
    stage = stage_in(S.COLLECT)
    stage.disk[f"round/{TASK}/{key}"] = b"\x93 not it"
    with pytest.raises(ConfigError, match="restore the state database"):
        stage.restart()
    del stage.disk[f"round/{TASK}/model/0"]
    with pytest.raises(ConfigError, match=r"(model/0: found nothing|restore the state database)"):
        stage.restart()


def test_a_plan_for_another_model_is_refused() -> None:
    stage = Stage()
    stage.plan = stage.plan.model_copy(update={"dimension": 13})
    stage_plan = Stage().plan
    with pytest.raises(ConfigError, match="found dimension 13 in the plan, expected 12"):
        type(stage.machine)(
            topics=None,  # type: ignore[arg-type]
            aggregator="aggregator",
            signer=None,  # type: ignore[arg-type]
            settings=stage.rounds,
            plan=stage.plan,
            optimiser=None,  # type: ignore[arg-type]
            model=model_of(stage_plan),
            seed=bytes(32),
        )
