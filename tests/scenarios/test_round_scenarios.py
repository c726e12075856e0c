"""Rounds as they go: a clean one, and one for everything that the protocol is meant to survive.

Each scenario runs the real machines, intake and envelopes of an aggregator and a few gateways; its transcript (event in
→ effects out) is in ``golden/``. The observer checks every step of every scenario against the invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleet_simulator.disk import Verdict
from fleet_simulator.problem import TASK, settings
from fleet_simulator.simulation import Fleet
from fleet_simulator.site import AGGREGATOR
from golden_transcript import assert_golden

from vedette_schemas import codec
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.round import ROSTER_TYPE, Phase, Roster
from vedette_schemas.topics import FlStep

HOUR_S = 3600.0
AGAIN = "          (and again)"


def fleet(devices: int = 3, **changes: float) -> Fleet:
    """A fleet of which two devices make a quorum."""
    return Fleet(seed=1, devices=devices, rounds=settings(devices, **{"quorum": 2, **changes}))


def about(story: Fleet, *names: str) -> list[str]:
    """The transcript's paragraphs about these nodes."""
    paragraphs: list[list[str]] = []
    for line in story.transcript.lines:
        if "→" not in line:
            paragraphs.append([])
        paragraphs[-1].append(line)
    kept: list[list[str]] = []
    for paragraph in paragraphs:
        if paragraph[0][10:].startswith(tuple(names)):
            if not (kept and _untimed(kept[-1]) == _untimed(paragraph)):
                kept.append(paragraph)
            elif kept[-1][-1] != AGAIN:
                kept[-1].append(AGAIN)
    return [line for paragraph in kept for line in paragraph]


def _untimed(paragraph: list[str]) -> list[str]:
    return [line[10:] for line in paragraph if line != AGAIN]


def ended(story: Fleet) -> list[tuple[int, Phase]]:
    return story.observer.ended


# -- what should happen -----------------------------------------------------------------------------------------------


def test_a_clean_round() -> None:
    story = fleet(devices=2)
    story.start()
    story.run_until_ended(1, 600.0)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == {"gw-00", "gw-01"}
    assert all(not gateway.outbox for gateway in story.gateways.values())
    assert story.aggregator.machine.model.version == 1
    assert_golden("clean_round", story.transcript.lines)


def test_rounds_lead_to_the_fleets_weighted_mean() -> None:
    story = fleet(devices=4)
    story.start()
    story.run_until_ended(25, 25 * 400.0)
    locals_ = [g.local for g in story.gateways.values()]
    weights = [max(1, min(8, round(local.examples / 64))) for local in locals_]
    mean = sum(w * local.centre for w, local in zip(weights, locals_, strict=True)) / sum(weights)
    found = float(abs(story.aggregator.machine.model.weights - mean).max())
    # 25 steps of 0.2 leave 0.4 % of the first distance (about 3); rounding adds about as much a round.
    assert found < 0.05, f"{found:.4f} from the weighted mean"


# -- devices ----------------------------------------------------------------------------------------------------------


def test_a_device_that_comes_late_is_in_the_next_round() -> None:
    story = fleet()
    late = story.gateways["gw-02"]
    for process in story.processes:
        if process is not late:
            process.boot()
    story.scheduler.after(64.0, late.boot)
    story.run_until_ended(2, 900.0)
    assert ended(story) == [(1, Phase.DONE), (2, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == {"gw-00", "gw-01"}
    assert story.observer.accepted[2, 1].keys() == {"gw-00", "gw-01", "gw-02"}
    assert_golden("late_device", about(story, "gw-02"))


def test_a_device_that_trains_for_too_long_is_told_so_and_goes_on() -> None:
    story = fleet()
    slow = story.gateways["gw-02"]
    slow.training_s = 400.0
    story.start()
    story.scheduler.after(470.0, lambda: setattr(slow, "training_s", 10.0))
    story.run_until_ended(2, 1500.0)
    assert ended(story) == [(1, Phase.DONE), (2, Phase.DONE)]
    assert "gw-02" not in story.observer.accepted[1, 1]
    assert "gw-02" in story.observer.accepted[2, 1]
    assert_golden("slow_device", about(story, "gw-02"))


def test_an_upload_that_comes_again_counts_once() -> None:
    story = fleet()
    story.gateways["gw-02"].training_s = 60.0
    story.start()
    story.run(80.0)
    topic = story.site.topics.fl("gw-00", TASK, FlStep.UPLOAD)
    sealed = story.aggregator.disk.data[f"round/{TASK}/upload/gw-00"]
    for _ in range(3):
        story.broker.inject(topic, sealed, retain=False)
    story.run(90.0)
    assert story.aggregator.machine.uploads == 2
    story.run_until_ended(1, 600.0)
    story.broker.inject(topic, sealed, retain=False)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.rejected == [], "known is accepted, also after the round"
    assert_golden("duplicate_upload", about(story, "aggregator ← upload", "gw-00      ← receipt"))


def test_a_device_with_other_features_never_takes_part() -> None:
    story = fleet()
    story.gateways["gw-02"].feature_schema = "0" * 64
    story.start()
    story.run_until_ended(1, 600.0)
    assert story.observer.accepted[1, 1].keys() == {"gw-00", "gw-01"}
    assert story.gateways["gw-02"].disk.below("participant/network/upload") == {}
    assert story.gateways["gw-02"].outbox == []
    assert_golden("wrong_schema", about(story, "gw-02"))


# -- the other side lies ----------------------------------------------------------------------------------------------


def test_a_forged_roster_makes_nobody_train() -> None:
    """The aggregator itself signs a roster in which gw-00 has another key: its neighbours would mask for that one."""
    story = fleet()
    _forge_rosters(story, lambda roster: _with_key(roster, "gw-00", bytes(32)))
    story.start()
    story.run(80.0)
    assert "gw-00" not in story.observer.accepted.get((1, 1), {})
    assert story.gateways["gw-00"].disk.below("participant/network/upload") == {}
    assert_golden("forged_roster", about(story, "gw-00"))


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
    assert story.observer.accepted[2, 1].keys() == {"gw-00", "gw-01", "gw-02"}


# -- too few ----------------------------------------------------------------------------------------------------------


def test_too_few_uploads_are_tried_again_then_given_up_and_the_next_round_succeeds() -> None:
    story = fleet(attempts_max=2)
    for name in ("gw-01", "gw-02"):
        story.gateways[name].training_s = 1e6
    story.start()
    story.run_until_ended(1, 2000.0)
    assert ended(story) == [(1, Phase.FAILED)]
    assert story.aggregator.machine.model.version == 0
    assert story.observer.accepted.keys() == {(1, 1), (1, 2)}
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
    assert [g.outbox for g in story.gateways.values()] == [[f"up-{TASK}-1-1-gw-0{i}"] for i in range(3)]
    story.broker.start()
    story.run_until_ended(1, 65.0 + HOUR_S + 600.0)
    story.run(story.scheduler.now + 5.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted.keys() == {(1, 2)}, "the second attempt, with fresh keys"
    assert sorted(device for device, _ in story.observer.rejected) == ["gw-00", "gw-01", "gw-02"]
    assert all(reason.startswith("round: ") for _, reason in story.observer.rejected)
    return story


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_the_aggregator_dies_between_acceptance_and_release() -> None:
    story = fleet(devices=2)
    story.aggregator.disk.power_switch = _at_key("registry/1", "before")
    story.start()
    story.run_until_ended(1, 600.0)
    assert ended(story) == [(1, Phase.DONE)]
    assert story.observer.accepted[1, 1].keys() == {"gw-00", "gw-01"}
    assert_golden("aggregator_crash", about(story, "aggregator"))


def test_the_aggregator_dies_at_each_of_its_writes() -> None:
    _dies_at_each_write(AGGREGATOR)


def test_a_device_dies_at_each_of_its_writes() -> None:
    _dies_at_each_write("gw-00")


def _dies_at_each_write(name: str) -> None:
    """In every such story the first round ends with everybody's update, in its first attempt."""
    clean = _story_of_a_crash(name, 0, "before")
    writes = _process(clean, name).disk.writes
    assert writes > 5
    for number in range(1, writes + 1):
        for moment in ("before", "after"):
            story = _story_of_a_crash(name, number, moment)
            told = f"{name} dies {moment} write {number}: {ended(story)}, {story.observer.accepted}"
            assert _process(story, name).crashes == 1, told
            assert ended(story) == [(1, Phase.DONE)], told
            assert story.observer.accepted[1, 1].keys() == {"gw-00", "gw-01", "gw-02"}, told
            assert all(not gateway.outbox for gateway in story.gateways.values()), told


def _story_of_a_crash(name: str, number: int, moment: str) -> Fleet:
    story = fleet()
    story.gateways["gw-01"].training_s = 40.0  # so that the round is still open when a crashed device is back
    _process(story, name).disk.power_switch = lambda found, _key: moment if found == number else None
    story.start()
    story.run_until_ended(1, 900.0)
    # Long enough for receipts and the next check-in, too short for the next round to open.
    story.run(story.scheduler.now + 60.0)
    return story


def _at_key(key: str, moment: Verdict) -> Callable[[int, str], Verdict]:
    """A power switch that goes once, at the first write of a key."""
    waiting = [moment]
    return lambda _number, found: waiting.pop() if waiting and found == key else None


def _process(story: Fleet, name: str):  # type: ignore[no-untyped-def]
    return story.observer.processes[name]


def _forge_rosters(story: Fleet, change: Callable[[Roster], Roster], signer: str = AGGREGATOR) -> None:
    honest = story.broker.publish

    def publish(topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if story.site.topics.parse(topic).kind == "group":
            roster = codec.unpack(Roster, codec.unpack(Envelope, payload).body)
            payload = seal(change(roster), ROSTER_TYPE, AGGREGATOR, story.site.node(signer).signer)
        honest(topic, payload, qos, retain)

    story.broker.publish = publish  # type: ignore[method-assign]


def _with_key(roster: Roster, device: str, key: bytes) -> Roster:
    members: Sequence = [m.model_copy(update={"epk": key}) if m.device == device else m for m in roster.members]
    return roster.model_copy(update={"members": tuple(members)})
