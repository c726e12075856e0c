"""Rounds as they go: a clean one, and one for everything that the protocol is meant to survive.

Each scenario runs the real machines, intake and envelopes of an aggregator and a few gateways; its transcript (event in
→ effects out) is in ``golden/``. The observer checks every step of every scenario against the invariants. What happens
from the close of a group on is in ``test_unmasking_scenarios``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fleet_simulator.problem import TASK
from fleet_simulator.simulation import Fleet
from fleet_simulator.site import AGGREGATOR
from golden_transcript import assert_golden
from round_stories import about, at_key, at_write, ended, fleet, process

from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.round import ROSTER_TYPE, Phase, Roster
from vedette_schemas.topics import FlStep

HOUR_S = 3600.0
FIVE = {f"gw-0{i}" for i in range(5)}
SIX = FIVE | {"gw-05"}

# -- what should happen -----------------------------------------------------------------------------------------------


def test_a_clean_round() -> None:
    story = fleet(devices=5)
    story.start()
    story.run_until_ended(1, 600.0)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert all(not gateway.outbox for gateway in story.gateways.values())
    assert story.aggregator.machine.model.version == 1
    assert story.observer.adversary.openings == 1
    assert_golden("clean_round", about(story, "aggregator", "gw-00"))


def test_a_clean_round_without_masks() -> None:
    """Where the operator of every device allows it: the aggregator reads each update, and asks no committee."""
    story = fleet(devices=5, masked=False)
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert not any("ask " in line for line in story.transcript.lines)
    assert_golden("without_masks", about(story, "aggregator"))


def test_a_device_that_does_not_allow_it_gives_nothing_without_masks() -> None:
    story = fleet(devices=6, masked=False)
    story.gateways["gw-05"].plain_allowed = False
    story.start()
    story.run_until_ended(1, 600.0)
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert story.gateways["gw-05"].outbox == []


def test_rounds_lead_to_the_fleets_weighted_mean() -> None:
    story = fleet(devices=5)
    story.start()
    story.run_until_ended(25, 25 * 400.0)
    locals_ = [g.local for g in story.gateways.values()]
    # The roster's weights: what the bucket of a device's examples says, 64 of which weigh 1.
    weights = [max(1, min(8, (1 << local.examples.bit_length() - 1) // 64)) for local in locals_]
    mean = sum(w * local.centre for w, local in zip(weights, locals_, strict=True)) / sum(weights)
    found = float(abs(story.aggregator.machine.model.weights - mean).max())
    # 25 steps of 0.2 leave 0.4 % of the first distance (about 3); rounding adds about as much a round.
    assert found < 0.05, f"{found:.4f} from the weighted mean"


# -- devices ----------------------------------------------------------------------------------------------------------


def test_a_device_that_comes_late_is_in_the_next_round() -> None:
    story = fleet()
    late = story.gateways["gw-05"]
    for each in story.processes:
        if each is not late:
            each.boot()
    story.scheduler.after(64.0, late.boot)
    story.run_until_ended(2, 900.0)
    assert ended(story) == [(1, Phase.DONE), (2, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert story.observer.accepted[2, 1].keys() == SIX
    assert_golden("late_device", about(story, "gw-05"))


def test_a_device_that_trains_for_too_long_still_opens_the_sum_of_the_others() -> None:
    story = fleet()
    slow = story.gateways["gw-05"]
    slow.training_s = 400.0
    story.start()
    story.scheduler.after(470.0, lambda: setattr(slow, "training_s", 10.0))
    story.run_until_ended(2, 1500.0)
    assert ended(story) == [(1, Phase.DONE), (2, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert story.observer.accepted[2, 1].keys() == SIX
    assert_golden("slow_device", about(story, "gw-05"))


def test_a_late_update_is_given_to_a_later_round() -> None:
    story = fleet(devices=7, staleness_max=2, uploads_wanted=5)
    slow = story.gateways["gw-06"]
    slow.training_s = 60.0
    story.start()
    story.run_until_ended(3, 1500.0)
    assert [phase for _, phase in ended(story)] == [Phase.DONE] * 3
    assert story.observer.late_updates > 0
    assert_golden("late_update", about(story, "gw-06"))


def test_an_upload_that_comes_again_counts_once() -> None:
    story = fleet()
    story.gateways["gw-05"].training_s = 60.0
    story.start()
    story.run(80.0)
    topic = story.site.topics.fl("gw-00", TASK, FlStep.UPLOAD)
    sealed = story.aggregator.disk.data[f"round/{TASK}/upload/gw-00"]
    for _ in range(3):
        story.broker.inject(topic, sealed, retain=False)
    story.run(90.0)
    assert story.aggregator.machine.uploads == 5
    story.run_until_ended(1, 600.0)
    story.broker.inject(topic, sealed, retain=False)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.rejected == [], "known is accepted, also after the round"
    assert_golden("duplicate_upload", about(story, "aggregator ← upload", "gw-00      ← receipt"))


def test_a_device_with_other_features_never_takes_part() -> None:
    story = fleet()
    story.gateways["gw-05"].feature_schema = "0" * 64
    story.start()
    story.run_until_ended(1, 600.0)
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert story.gateways["gw-05"].disk.below("participant/network/upload") == {}
    assert story.gateways["gw-05"].outbox == []
    assert_golden("wrong_schema", about(story, "gw-05"))


# -- the other side lies ----------------------------------------------------------------------------------------------


def test_a_forged_roster_makes_nobody_train() -> None:
    """The aggregator itself signs a roster in which gw-00 has another key: its neighbours would mask for that one."""
    story = fleet()
    _forge_rosters(story, lambda roster: _with_key(roster, "gw-00", bytes(32)))
    story.start()
    story.run(80.0)
    assert not story.observer.accepted
    assert all(g.disk.below("participant/network/upload") == {} for g in story.gateways.values())
    assert_golden("forged_roster", about(story, "gw-00", "gw-01"))


def test_a_roster_of_four_makes_nobody_train() -> None:
    """Too small a group, although everything in it is true."""
    story = fleet()
    _forge_rosters(story, lambda roster: roster.model_copy(update={"members": roster.members[:4]}))
    story.start()
    story.run(80.0)
    assert not story.observer.accepted
    assert_golden("small_roster", about(story, "gw-00"))


def test_a_roster_that_somebody_else_signed_is_not_even_looked_at() -> None:
    story = fleet()
    _forge_rosters(story, lambda roster: roster, signer="gw-01")
    story.start()
    story.run(80.0)
    assert not story.observer.accepted
    assert all(gateway.refused["signature"] == 1 for gateway in story.gateways.values())


def test_an_old_round_that_comes_again_is_ignored() -> None:
    story = fleet()
    story.start()
    story.run(65.0)
    topic = story.site.topics.round(TASK)
    old = story.broker.retained[topic]
    story.run_until_ended(1, 600.0)
    story.run(story.scheduler.now + 5.0)
    before = [len(gateway.disk.data) for gateway in story.gateways.values()]
    lines = len(story.transcript.lines)
    story.broker.inject(topic, old, retain=True)
    story.run(story.scheduler.now + 5.0)
    assert [len(gateway.disk.data) for gateway in story.gateways.values()] == before
    assert story.transcript.lines[lines:] == [], "nobody did anything"
    story.gateways["gw-00"].crash()
    story.run_until_ended(2, 900.0)
    assert ended(story) == [(1, Phase.DONE), (2, Phase.DONE)]
    assert story.observer.accepted[2, 1].keys() == SIX


# -- too few ----------------------------------------------------------------------------------------------------------


def test_too_few_uploads_are_tried_again_then_given_up_and_the_next_round_succeeds() -> None:
    story = fleet(attempts_max=2)
    for name in ("gw-04", "gw-05"):
        story.gateways[name].training_s = 1e6
    story.start()
    story.run_until_ended(1, 2000.0)
    assert ended(story) == [(1, Phase.FAILED)]
    assert story.aggregator.machine.model.version == 0
    assert story.observer.accepted.keys() == {(1, 1), (1, 2)}
    assert not any("ask " in line for line in story.transcript.lines), "no committee is asked to open four updates"
    assert_golden("quorum_missed", about(story, "aggregator"))
    for gateway in story.gateways.values():
        gateway.training_s = 10.0
    story.run_until_ended(2, 4000.0)
    assert ended(story)[1] == (2, Phase.DONE)


def test_a_candidate_that_is_not_released_leaves_the_model_as_it_is() -> None:
    story = fleet()
    story.policy.refused_rounds.add(1)
    story.start()
    story.run_until_ended(2, 900.0)
    assert ended(story) == [(1, Phase.FAILED), (2, Phase.DONE)]
    assert story.observer.releases == 1


def test_a_budget_that_is_used_up_ends_learning_for_its_period() -> None:
    story = fleet(noise_multiplier=1.0, epsilon_max=100.0, participations_max=2, period_rounds=4)
    story.start()
    story.run_until_ended(5, 10_000.0)
    phases = [phase for _, phase in ended(story)]
    assert phases == [Phase.DONE, Phase.DONE, Phase.FAILED, Phase.FAILED, Phase.DONE], "a period is counted in rounds"
    assert_golden("budget_used_up", [line for line in about(story, "gw-00") if "public" not in line])


# -- the broker is away -----------------------------------------------------------------------------------------------


def test_the_broker_is_away_for_an_hour_and_forgets_everything() -> None:
    story = _broker_away(forget=True)
    assert_golden("broker_away", about(story, "aggregator"))


def test_the_broker_is_away_for_an_hour_and_remembers() -> None:
    _broker_away(forget=False)


def _broker_away(*, forget: bool) -> Fleet:
    """It goes while the devices train, so that their uploads of the first attempt come an hour late."""
    story = fleet()
    story.start()
    story.run(65.0)
    story.broker.stop(forget=forget)
    story.run(65.0 + HOUR_S)
    assert ended(story) == []
    assert [g.outbox for g in story.gateways.values()] == [[f"up-{TASK}-1-1-gw-0{i}"] for i in range(6)]
    story.broker.start()
    story.run_until_ended(1, 65.0 + HOUR_S + 600.0)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted.keys() == {(1, 2)}, "the second attempt, with fresh keys"
    assert {device for device, _ in story.observer.rejected} == SIX
    assert all(reason.startswith("round: ") for _, reason in story.observer.rejected)
    return story


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_the_aggregator_dies_between_acceptance_and_release() -> None:
    story = fleet(devices=5)
    story.aggregator.disk.power_switch = at_key("registry/1", "before")
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == FIVE
    assert_golden("aggregator_crash", about(story, "aggregator"))


@pytest.mark.parametrize("name", [AGGREGATOR, "gw-00"])
def test_a_node_dies_at_each_of_its_writes(name: str) -> None:
    """In every such story the first round ends with everybody's update, in its first attempt, and the same model."""
    clean = _story_of_a_crash(name, 0, "before")
    writes = process(clean, name).disk.writes
    assert writes > 10
    for number in range(1, writes + 1):
        for moment in ("before", "after"):
            story = _story_of_a_crash(name, number, moment)
            told = f"{name} dies {moment} write {number}: {ended(story)}, {story.observer.accepted}"
            assert process(story, name).crashes == 1, told
            assert ended(story) == [(1, Phase.DONE)], told
            assert story.observer.accepted[1, 1].keys() == FIVE, told
            assert all(not gateway.outbox for gateway in story.gateways.values()), told


def _story_of_a_crash(name: str, number: int, moment: str) -> Fleet:
    story = fleet(devices=5)
    story.gateways["gw-01"].training_s = 40.0  # so that the round is still open when a crashed device is back
    process(story, name).disk.power_switch = at_write(number, moment)
    story.start()
    story.run_until_ended(1, 900.0)
    # Long enough for receipts and the next check-in, too short for the next round to open.
    story.run(story.scheduler.now + 60.0)
    return story


def _forge_rosters(story: Fleet, change: Callable[[Roster], Roster], signer: str = AGGREGATOR) -> None:
    honest = story.broker.publish

    def publish(topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if story.site.topics.parse(topic).kind == "group":
            roster = codec.unpack(Roster, codec.unpack(Envelope, payload).body)
            payload = seal(change(roster), ROSTER_TYPE, AGGREGATOR, story.site.node(signer).signer)
        honest(topic, payload, qos, retain)

    story.broker.publish = publish  # type: ignore[method-assign]


def _with_key(roster: Roster, device: str, key: bytes) -> Roster:
    members = [m.model_copy(update={"epk": key}) if m.device == device else m for m in roster.members]
    return roster.model_copy(update={"members": tuple(members)})
