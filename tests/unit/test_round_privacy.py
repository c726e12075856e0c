"""What a round costs its devices, what it may not cost, and what the defence makes of groups that lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from round_effects import every, notes, one, opened, outcome, rosters
from round_fleet import Fleet
from round_parts import (
    DIMENSION,
    GATEWAYS,
    TASK,
    Fresh,
    Stage,
    delta_of,
    devices_in,
    masked_settings,
    plan_of,
    root_answer,
    settings,
)

from vedette_aggregator.round_events import PublishCandidate, RootTrained, Suspect, TrainRoot
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Count, Tick
from vedette_core.privacy.events import PrivacyEvent
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, read_plan

S = RoundState
NOISE: dict[str, Any] = {"noise_multiplier": 1.0, "participations_max": 2, "epsilon_max": 50.0, "delta": 1e-5}


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_every_release_is_in_the_ledger_with_everybody_in_it() -> None:
    fleet = Fleet(Stage(masked_settings(**NOISE)))
    (six,) = devices_in([6])
    fleet.run(six, without=six[:1])
    stored = fleet.stage.disk[f"privacy/{TASK}/event/1.1"]
    event = PrivacyEvent.from_bytes(stored, "event")
    assert (event.round, event.attempt, event.noise_multiplier) == (1, 1, 1.0)
    assert (event.clip_norm, event.weight_max, event.scope.value) == (2.0, 8, "total")
    assert event.devices == six[1:], "whose update is in no sum pays nothing"


def test_devices_out_of_budget_are_not_selected() -> None:
    stage = Stage(settings(4, quorum=2, **NOISE))
    first = GATEWAYS[:2]
    for _ in range(2):
        stage.handle(stage.released(stage.to_releasing(first)))
    stage.to_collect([*GATEWAYS, "gw-03"])
    assert [m.device for m in rosters(stage.effects)[0].members] == ["gw-02", "gw-03"]
    assert sorted(stage.machine._book.waiting) == list(first)


def test_epsilon_is_a_budget_as_well() -> None:
    # One release with z = 1 is ε = 4.38 at δ = 1e-5, and two of them are 6.6.
    stage = Stage(settings(4, quorum=2, **(NOISE | {"participations_max": 100, "epsilon_max": 5.0})))
    stage.release(GATEWAYS[:2])
    stage.to_collect([*GATEWAYS, "gw-03"])
    assert [m.device for m in rosters(stage.effects)[0].members] == ["gw-02", "gw-03"]
    ledger = stage.machine.memory.ledger
    assert ledger.spent("gw-00", 2).epsilon(1e-5) == pytest.approx(4.377178, abs=1e-6)


def test_a_round_without_devices_in_budget_is_given_up_and_says_why() -> None:
    stage = Stage(settings(4, quorum=2, attempts_max=2, **NOISE))
    for _ in range(2):
        stage.release(GATEWAYS)
    stage.to_checkin()
    stage.check_in(GATEWAYS)
    stage.to_deadline()
    effects = stage.to_deadline()
    assert opened(effects)[-1].phase is Phase.FAILED
    assert "found 0 devices in groups (3 are out of budget, blamed or quarantined), expected a quorum of 2" in notes(
        effects
    )
    assert stage.machine.model.version == 2


def test_a_budget_that_shrank_while_a_round_was_open_refuses_its_release() -> None:
    stage = Stage(settings(4, quorum=2, **NOISE))
    stage.release(GATEWAYS)
    stage.to_collect()
    # Somebody released the same devices elsewhere meanwhile: as after a restored backup.
    stored = PrivacyEvent.from_bytes(stage.disk[f"privacy/{TASK}/event/1.1"], "event")
    twin = PrivacyEvent(TASK, 1, 2, stored.noise_multiplier, 2.0, 8, stored.scope, stored.devices)
    stage.disk[f"privacy/{TASK}/event/1.2"] = twin.to_bytes()
    stage.restart()
    for device in GATEWAYS:
        effects = stage.upload(device)
    assert not every(effects, PublishCandidate)
    assert opened(effects)[-1].phase is Phase.FAILED
    assert "participation 3" in notes(effects)
    assert stage.machine.model.version == 1
    assert f"privacy/{TASK}/event/2.1" not in stage.disk


def test_a_new_period_gives_a_new_budget_and_folds_the_old_one() -> None:
    stage = Stage(settings(4, quorum=2, **(NOISE | {"period_rounds": 2})))
    for _ in range(3):
        stage.release(GATEWAYS)
    events = sorted(k for k in stage.disk if k.startswith(f"privacy/{TASK}/event/"))
    assert events == [f"privacy/{TASK}/event/3.1"]
    assert f"privacy/{TASK}/history" in stage.disk
    stage.restart()
    ledger = stage.machine.memory.ledger
    assert ledger.releases == 3
    assert (ledger.spent("gw-00", 3).releases, ledger.spent_ever("gw-00").releases) == (1, 3)


# -- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_drawn_once_and_the_candidate_with_it_is_handed_out_again() -> None:
    entropy = Fresh()
    stage = Stage(settings(4, quorum=2, **NOISE), entropy=entropy)
    handed = stage.to_releasing()
    assert entropy.asked == 1
    for _ in range(3):
        again = one(stage.restart(), PublishCandidate)
        assert again.candidate.digest() == handed.candidate.digest()
    assert entropy.asked == 1
    stage.handle(stage.released(handed))
    assert f"round/{TASK}/candidate" not in stage.disk


def test_noise_has_the_size_that_the_plan_says() -> None:
    def spread(z: float) -> float:
        found = []
        for seed in range(40):
            entropy = np.random.default_rng([seed, int(10 * z)]).bytes
            stage = Stage(settings(4, quorum=2, **(NOISE | {"noise_multiplier": z})), entropy=entropy)
            found.append(stage.to_releasing().candidate.weights)
        return float(np.std(np.stack(found) - np.mean(found, axis=0)))

    # σ of the sum is z · C · W = 2 z · 8, spread over 1,024 rotated coordinates; the mean divides by the weight of 12.
    for z in (1.0, 4.0):
        assert spread(z) == pytest.approx(z * 2.0 * 8 / 12, rel=0.15)


def test_a_total_is_noised_once_and_groups_each() -> None:
    for rule, draws, scope in (("mean", 1, "total"), ("trimmed-mean", 2, "group")):
        entropy = Fresh()
        stage = Stage(settings(8, quorum=2, groups=2, rule=rule, **NOISE), entropy=entropy)
        assert plan_of(stage.rounds).privacy.scope == scope
        stage.to_releasing([d for group in devices_in([3, 3]) for d in group])
        assert entropy.asked == draws


def test_with_noise_nothing_rides_along_that_has_none() -> None:
    candidate = Stage(settings(4, quorum=2, **NOISE)).to_releasing().candidate
    assert not candidate.ranges
    assert "loss_before" not in candidate.metrics
    assert candidate.metrics["clipped_share"] == 0.0, "the count was not noised, and is not told"


def test_noise_of_the_devices_needs_none_of_the_aggregator() -> None:
    entropy = Fresh()
    fleet = Fleet(Stage(masked_settings(device_noise=True, **NOISE), entropy=entropy))
    (six,) = devices_in([6])
    candidate = fleet.run(six).candidate
    assert fleet.stage.running.update.noise_sigma > 0
    assert entropy.asked == 0
    off = candidate.weights - np.mean([delta_of(d) for d in six], axis=0)
    assert float(np.abs(off).max()) > 0.1, "without noise it is within 0.02"


@pytest.mark.parametrize(
    "changes", [{"participations_max": 0}, {"epsilon_max": 0.0}], ids=["participations", "epsilon"]
)
def test_noise_without_a_budget_promises_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="both above 0"):
        plan_of(masked_settings(**(NOISE | changes)))


# -- adaptive clipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "direction"), [(0.1, -1), (20.0, 1)], ids=["nobody clips", "all clip"])
def test_the_clip_norm_follows_the_share_that_clips(scale: float, direction: int) -> None:
    stage = Stage(settings(4, quorum=2, adaptive_clip=0.5))
    norms = [stage.plan.update.clip_norm]
    for _ in range(3):
        stage.to_collect()
        for device in GATEWAYS:
            delta = np.asarray(delta_of(device) * scale, np.float32)
            effects = stage.upload(device, delta=delta)
        handed = one(effects, PublishCandidate)
        stage.handle(stage.released(handed))
        plan = read_plan(handed.plan)
        norms.append(plan.update.clip_norm)
        assert plan.version == len(norms)
    assert norms == pytest.approx([2.0 * np.exp(direction * 0.1 * i) for i in range(4)])
    stage.to_checkin()
    assert stage.running.update.clip_norm == norms[-1], "and it is what the next round runs under"


def test_without_adapting_the_clip_norm_is_the_operators() -> None:
    stage = Stage()
    handed = stage.to_releasing()
    assert read_plan(handed.plan) == stage.plan


def test_adapting_under_noise_pays_for_the_count() -> None:
    entropy = Fresh()
    stage = Stage(settings(4, quorum=2, adaptive_clip=0.5, **NOISE), entropy=entropy)
    handed = stage.to_releasing()
    assert entropy.asked == 2, "one for the count, one for the sum"
    assert read_plan(handed.plan).update.clip_norm != 2.0


# -- root set and rules -----------------------------------------------------------------------------------------------


def root() -> np.ndarray:
    """The direction of honest updates."""
    return np.full(DIMENSION, 0.25, np.float32)


def test_the_root_set_is_asked_when_groups_are_open_and_waited_for() -> None:
    stage = Stage(has_root=True)
    asked = one(stage.to_collect(), TrainRoot)
    assert (asked.round, asked.attempt, asked.plan) == (1, 1, stage.plan)
    np.testing.assert_array_equal(asked.weights, stage.machine.model.weights)
    for device in GATEWAYS:
        effects = stage.upload(device)
    assert not every(effects, PublishCandidate)
    assert stage.machine.state is S.UNMASK
    effects = stage.handle(root_answer(stage, root()))
    candidate = one(effects, PublishCandidate).candidate
    assert float(np.linalg.norm(candidate.weights)) == pytest.approx(float(np.linalg.norm(root())), rel=0.01)


def test_an_answer_that_is_early_is_kept_and_one_of_another_attempt_is_not() -> None:
    stage = Stage(has_root=True)
    stage.to_collect()
    assert outcome(stage.handle(RootTrained(1, 2, root()))) == "discarded"
    assert outcome(stage.handle(RootTrained(2, 1, root()))) == "discarded"
    assert outcome(stage.handle(root_answer(stage, root()))) == "accepted"
    for device in GATEWAYS:
        effects = stage.upload(device)
    assert every(effects, PublishCandidate)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_without_an_answer_by_the_deadline_the_old_release_stays(masked: bool) -> None:
    (six,) = devices_in([6])
    stage = Stage(masked_settings(masked=masked), has_root=True)
    fleet = Fleet(stage)
    if masked:
        fleet.collect(six)
        fleet.open_sums(fleet.upload_all(six))
    else:
        stage.to_collect(six)
        for device in six:
            stage.upload(device)
    assert stage.machine.state is S.UNMASK
    assert not every(stage.handle(Tick(), 119.0), PublishCandidate)
    effects = stage.to_deadline()
    assert not every(effects, PublishCandidate)
    assert opened(effects)[-1].phase is Phase.FAILED
    assert "root update: found none, expected one trained on the root set" in notes(effects)
    assert stage.machine.model.version == 0


def test_another_rule_goes_on_without_the_root_set() -> None:
    stage = Stage(settings(4, quorum=2, rule="median"), has_root=True)
    stage.to_collect()
    for device in GATEWAYS:
        stage.upload(device)
    assert every(stage.to_deadline(), PublishCandidate)


def test_after_a_restart_the_root_set_is_asked_again() -> None:
    stage = Stage(has_root=True)
    stage.to_collect()
    stage.handle(root_answer(stage, root()))
    assert one(stage.restart(), TrainRoot).attempt == 1
    for device in GATEWAYS:
        stage.upload(device)
    assert one(stage.restart(), TrainRoot).attempt == 1
    assert every(stage.handle(root_answer(stage, root())), PublishCandidate)


def test_a_sign_flipping_group_is_dropped_where_there_is_a_root() -> None:
    good, bad = devices_in([5, 5])
    fleet = Fleet(Stage(masked_settings(2, rule="fltrust"), has_root=True))
    fleet.collect([*good, *bad])
    fleet.stage.handle(root_answer(fleet.stage, root()))
    effects = fleet.upload_all(good)
    for device in bad:
        effects += fleet.upload(device, delta=np.asarray(-2.0 * delta_of(device), np.float32))
    effects = fleet.open_sums(effects)
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.metrics["groups_dropped"] == 1
    assert Count("groups_dropped", "trust", TASK) in effects
    honest = np.mean([delta_of(d) for d in good], axis=0)
    cosine = float(candidate.weights @ honest / np.linalg.norm(candidate.weights) / np.linalg.norm(honest))
    assert cosine > 0.99


def test_the_mean_has_no_defence_against_it() -> None:
    good, bad = devices_in([5, 5])
    stage = Stage(settings(10, quorum=2, groups=2, group_size=5, rule="mean"))
    stage.to_collect([*good, *bad])
    for device in (*good, *bad):
        effects = stage.upload(
            device, delta=np.asarray(delta_of(device) * (-2.0 if device in bad else 1.0), np.float32)
        )
    candidate = one(effects, PublishCandidate).candidate
    honest = np.mean([delta_of(d) for d in good], axis=0)
    assert float(candidate.weights @ honest) < 0


def test_a_boosted_group_is_dropped_by_its_norm() -> None:
    groups = devices_in([3, 3, 3])
    stage = Stage(settings(12, quorum=2, groups=3, clip_norm=100.0, bits=16))
    everybody = [d for group in groups for d in group]
    stage.to_collect(everybody)
    for device in everybody:
        boost = 50.0 if device in groups[2] else 1.0
        effects = stage.upload(device, delta=np.asarray(delta_of(device) * boost, np.float32))
    assert Count("groups_dropped", "norm", TASK) in effects
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.metrics["update_norm"] < 2.0


def test_usual_norms_are_remembered_over_rounds_and_restarts() -> None:
    stage = Stage(settings(4, quorum=2, clip_norm=100.0, bits=16))
    stage.release()
    stage.restart()
    usual = stage.machine.memory.norms.running
    assert usual is not None
    stage.to_collect()
    for device in GATEWAYS:  # one group alone is its own median: only what came before holds it
        effects = stage.upload(device, delta=np.asarray(delta_of(device) * 50.0, np.float32))
    assert not every(effects, PublishCandidate)
    assert opened(effects)[-1].phase is Phase.FAILED
    assert "group norms: found" in notes(effects)
    stage.to_collect()
    for device in GATEWAYS:
        effects = stage.upload(device, delta=np.asarray(delta_of(device) * 2.0, np.float32))
    candidate = one(effects, PublishCandidate).candidate
    assert candidate.metrics["update_norm"] == pytest.approx(usual, rel=0.01), "shortened to the usual length"


def test_who_keeps_bad_company_is_named_once_and_not_shut_out() -> None:
    fleet = tuple(f"gw-{i:02}" for i in range(12))
    liar = fleet[3]
    stage = Stage(settings(12, quorum=2, groups=4, group_size=6, epoch_rounds=1, suspicion_min=2.0), has_root=True)
    named: list[Suspect] = []
    for _ in range(60):
        stage.to_checkin()
        stage.check_in([d for d in fleet if d not in stage.machine._book.waiting])
        stage.to_deadline()
        stage.handle(root_answer(stage, root()))
        members = [m.device for r in rosters(stage.effects) for m in r.members]
        for device in members:
            sign = -8.0 if device == liar else 1.0
            effects = stage.upload(device, delta=np.asarray(sign * delta_of(device), np.float32))
        named += every(effects, Suspect)
        stage.handle(stage.released(one(effects, PublishCandidate)))
        stage.restart()
        if named:
            break
    assert [n.device for n in named] == [liar]
    assert named[0].score >= 2.0
    stage.to_collect(fleet)
    assert any(r.member(liar) for r in rosters(stage.effects)), "a person decides"
