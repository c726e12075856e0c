"""The aggregator's side of a round: every event in every state, and what each transition writes and says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from round_effects import notes, one, opened, outcome, persisted, receipts, rosters
from round_fleet import SIX, masked_stage_in, recording
from round_parts import (
    GATEWAYS,
    NOW,
    TASK,
    Stage,
    beacon,
    checkin,
    keys_of,
    plain_vector,
    plan_of,
    root_answer,
    sealed,
    settings,
    stage_in,
    upload,
)

from vedette_aggregator.round_events import (
    KINDS,
    TABLE,
    Answer,
    CheckInReceived,
    ModelReplaced,
    PublishCandidate,
    Quarantined,
    Released,
    ReleaseFailed,
    RootTrained,
    RoundAsked,
    SharesReceived,
    UploadReceived,
    VoteReceived,
)
from vedette_aggregator.round_state import RoundState
from vedette_core.learning.round_vector import layout_of
from vedette_core.machine import Connected, Count, Event, Persist, Publish, Tick
from vedette_schemas.round import Phase, checkin_id, plan_bytes

S = RoundState


def event_for(kind: type[Event], stage: Stage, masked: bool) -> Event:
    """An event that holds as such: whether it is taken depends on the state alone."""
    if kind is CheckInReceived:
        return CheckInReceived(checkin("gw-03", 77))
    if kind is UploadReceived and masked:
        if stage.machine.state in (S.COLLECT, S.CHECKIN):
            return recording().uploads[SIX[0]]
        known = masked_stage_in(S.COLLECT).roster_of(SIX[0])
        body = upload(known, "gw-99", stage.running)  # one that was not among the accepted
        return UploadReceived(body, sealed(body))
    if kind is UploadReceived:
        stand_in = Stage()
        stand_in.to_collect()
        body = upload(rosters(stand_in.effects)[0], "gw-00" if stage.machine.state is S.COLLECT else "gw-03")
        return UploadReceived(body, sealed(body))
    events: dict[type[Event], Event] = {
        Tick: Tick(),
        Connected: Connected(),
        VoteReceived: recording().votes[SIX[0]],
        SharesReceived: recording().shares[SIX[0]],
        RootTrained: root_answer(stage, None),
        Quarantined: Quarantined(frozenset({"gw-02"})),
        Released: Released(stage.machine.model.version + 1, "b" * 64, plan_bytes(stage.plan)[1]),
        ReleaseFailed: ReleaseFailed("the gate said no"),
        ModelReplaced: ModelReplaced(replace(stage.machine.model, version=9, sha256="9" * 64)),
        RoundAsked: RoundAsked(),
    }
    return events[kind]


AFTER: dict[tuple[RoundState, type[Event]], RoundState] = {
    (S.RELEASING, Released): S.INTERVAL,
    (S.RELEASING, ReleaseFailed): S.INTERVAL,
    (S.CHECKIN, ModelReplaced): S.INTERVAL,
    (S.COLLECT, ModelReplaced): S.INTERVAL,
    (S.UNMASK, ModelReplaced): S.INTERVAL,
    (S.RELEASING, ModelReplaced): S.INTERVAL,
}
"""The state after an event where it is another one; deadlines apart, nothing else moves a round."""


def test_the_table_answers_every_event_in_every_state() -> None:
    assert set(TABLE) == {(state, kind) for state in RoundState for kind in KINDS}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("kind", list(KINDS), ids=list(KINDS.values()))
@pytest.mark.parametrize("state", list(RoundState))
def test_every_event_in_every_state(state: RoundState, kind: type[Event], masked: bool) -> None:
    stage = masked_stage_in(state) if masked else stage_in(state)
    event = event_for(kind, stage, masked)
    before = dict(stage.disk)
    effects = stage.handle(event)
    answer, after = TABLE[state, kind], AFTER.get((state, kind), state)
    if state is S.UNMASK and not masked:
        if kind in (VoteReceived, SharesReceived):
            answer = Answer.REJECT  # no group is being opened: there are no masks
        elif kind is RootTrained:
            after = S.INTERVAL  # it could not be trained: the rule has nothing to compare with
    assert outcome(effects) == answer.value
    assert stage.machine.state is after
    if answer is not Answer.ACCEPT:
        assert stage.disk == before, "what is not accepted changes nothing"
    if answer is Answer.DISCARD and kind in (VoteReceived, SharesReceived):
        assert [r.outcome for r in receipts(effects)] == ["accepted"], "so that its sender forgets it"
    elif answer is Answer.DISCARD:
        assert [type(e) for e in effects] == [Count]
    if answer is Answer.REJECT:
        assert [r.outcome for r in receipts(effects)] == ["rejected"]


@pytest.mark.parametrize(
    ("state", "after"),
    [(S.INTERVAL, S.CHECKIN), (S.CHECKIN, S.COLLECT), (S.COLLECT, S.RELEASING), (S.UNMASK, S.INTERVAL)],
)
def test_deadlines_move_the_round(state: RoundState, after: RoundState) -> None:
    stage = stage_in(state)
    if state == S.CHECKIN:
        stage.check_in(GATEWAYS)
    elif state is S.COLLECT:
        for device in GATEWAYS[:2]:
            stage.upload(device)
    deadline = stage.machine.next_deadline()
    assert deadline is not None
    stage.now = deadline - 0.001
    stage.handle(Tick())
    assert stage.machine.state == state
    stage.now = deadline
    stage.handle(Tick())
    assert stage.machine.state == after


def test_an_unknown_event_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        Stage().machine.handle(Event(), NOW)


# -- check-in ---------------------------------------------------------------------------------------------------------


def test_a_receipt_stands_behind_the_write_that_it_acknowledges() -> None:
    stage = stage_in(S.CHECKIN)
    effects = stage.handle(CheckInReceived(checkin("gw-00")))
    kinds = [type(e) for e in effects]
    assert persisted(effects) == [f"round/{TASK}/device/gw-00"]
    assert kinds.index(Persist) < kinds.index(Publish)
    assert receipts(effects)[0].outcome == "accepted"


def test_the_window_begins_when_there_are_enough() -> None:
    stage = stage_in(S.CHECKIN)
    assert opened(stage.effects)[-1].checkin_until_s == 0
    stage.handle(CheckInReceived(checkin("gw-00")))
    stage.handle(Tick(), 10_000.0)
    assert not rosters(stage.effects), "one device alone waits, however long"
    effects = stage.handle(CheckInReceived(checkin("gw-01")))
    assert opened(effects)[0].checkin_until_s == stage.now + stage.rounds.checkin_s
    stage.handle(Tick(), stage.rounds.checkin_s)
    assert stage.machine.state is S.COLLECT


def test_a_waiting_round_is_announced_again() -> None:
    stage = stage_in(S.CHECKIN)
    assert not opened(stage.handle(Tick(), 30.0))
    assert [o.phase for o in opened(stage.handle(Tick(), 30.0))] == [Phase.CHECKIN]
    assert not opened(stage.handle(Tick(), 1.0))


def test_a_checkin_that_comes_again_gets_its_receipt_again_and_changes_nothing() -> None:
    stage = stage_in(S.COLLECT)
    before = dict(stage.disk)
    number = next(iter(stage.machine._book.devices.values())).checkin.seq
    effects = stage.handle(CheckInReceived(checkin("gw-00", number)))
    assert [r.outcome for r in receipts(effects)] == ["accepted"]
    assert stage.disk == before


def test_a_late_checkin_counts_for_the_next_round() -> None:
    stage = stage_in(S.COLLECT)
    stage.handle(CheckInReceived(checkin("gw-03")))
    assert stage.machine.waiting == 1
    assert all(m.device != "gw-03" for r in rosters(stage.effects) for m in r.members)
    for device in GATEWAYS:
        effects = stage.upload(device)
    stage.handle(stage.released(one(effects, PublishCandidate)))
    stage.handle(Tick(), stage.rounds.interval_s)
    stage.handle(CheckInReceived(checkin("gw-00", 2)))
    stage.handle(Tick(), stage.rounds.checkin_s)
    assert {m.device for r in rosters(stage.effects) for m in r.members} == {"gw-00", "gw-03"}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_key_that_another_device_offered_first_is_refused(restarted: bool) -> None:
    """Members refuse a roster in which two have one key: two devices could stop their group with it."""
    stage = stage_in(S.CHECKIN)
    stage.handle(CheckInReceived(checkin("gw-00", 5)))
    if restarted:
        stage.restart()
    key = keys_of("gw-00", 5).public
    stolen = checkin("gw-01", 6, epk=key, id=checkin_id(TASK, key))
    assert receipts(stage.handle(CheckInReceived(stolen)))[0].reason.startswith("key: ")
    assert "gw-01" not in stage.machine._book.devices
    stage.handle(CheckInReceived(checkin("gw-00", 7)))
    assert not receipts(stage.handle(CheckInReceived(stolen)))[0].reason, "nobody offers it any more"


def test_an_older_checkin_never_replaces_a_newer_one() -> None:
    stage = stage_in(S.CHECKIN)
    stage.handle(CheckInReceived(checkin("gw-00", 5)))
    effects = stage.handle(CheckInReceived(checkin("gw-00", 4)))
    assert receipts(effects)[0].reason.startswith("stale: ")
    assert stage.machine._book.devices["gw-00"].checkin.seq == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "ci-network-1"}, "id: check-in of gw-00: found id 'ci-network-1'"),
        ({"feature_schema": "0" * 64}, "schema: check-in of gw-00: found feature schema 0000000000000000"),
        ({"examples_bucket": 5}, "examples: check-in of gw-00: found less than 64, expected 64"),
        ({"epk": bytes(32), "id": checkin_id(TASK, bytes(32))}, "key: the other side's X25519 key: found 00"),
    ],
)
def test_a_checkin_that_does_not_fit_is_refused_with_the_difference(changes: dict[str, Any], reason: str) -> None:
    stage = stage_in(S.CHECKIN)
    effects = stage.handle(CheckInReceived(checkin("gw-00").model_copy(update=changes)))
    item = receipts(effects)[0]
    assert (item.outcome, item.reason[: len(reason)]) == ("rejected", reason)
    assert outcome(effects) == "rejected"
    assert stage.machine.waiting == 0


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_written_then_said_rosters_first() -> None:
    stage = stage_in(S.CHECKIN)
    for device in GATEWAYS:
        stage.handle(CheckInReceived(checkin(device)))
    effects = stage.handle(Tick(), stage.rounds.checkin_s)
    said = [e.topic.removeprefix("vedette/1/plant-1/") for e in effects if isinstance(e, Publish)]
    assert said == ["public/round/network/group/0", "public/round/network"]
    assert all(e.retain and e.qos == 1 for e in effects if isinstance(e, Publish))
    assert persisted(effects)[0] == f"round/{TASK}/state"
    assert persisted(effects)[1:] == [f"round/{TASK}/device/{d}" for d in GATEWAYS], "no key is rostered twice"
    roster, state = rosters(effects)[0], opened(effects)[0]
    assert (roster.model, roster.plan, roster.beacon) == (state.model, state.plan, state.beacon)
    assert roster.deadline_s == state.deadline_s == stage.now + stage.rounds.collect_s
    assert (state.groups, state.beacon) == (1, beacon(1))
    for member in roster.members:
        own = checkin(member.device)
        assert (member.epk, member.seq, member.certificate, member.offer) == (
            own.epk,
            own.seq,
            own.certificate,
            own.offer,
        )
        assert member.weight == 4, "256 examples, of which 64 make weight 1"


def test_a_key_is_in_one_roster_only() -> None:
    stage = stage_in(S.COLLECT)
    stage.handle(Tick(), stage.rounds.collect_s)
    assert (stage.machine.state, stage.machine.attempt) == (S.CHECKIN, 2)
    assert stage.machine.waiting == 0
    assert stage.machine.next_deadline() is not None, "announced again while it waits"


# -- uploads ----------------------------------------------------------------------------------------------------------


def test_an_upload_is_on_disk_as_it_came_before_its_receipt() -> None:
    stage = stage_in(S.COLLECT)
    effects = stage.upload("gw-00")
    kinds = [type(e) for e in effects]
    body = upload(rosters(stage.effects)[0], "gw-00")
    assert stage.disk[f"round/{TASK}/upload/gw-00"] == sealed(body)
    assert kinds.index(Persist) < kinds.index(Publish)


def test_a_duplicate_upload_gets_the_same_receipt_and_counts_once() -> None:
    stage = stage_in(S.COLLECT)
    first = receipts(stage.upload("gw-00"))
    before = dict(stage.disk)
    again = stage.upload("gw-00")
    assert receipts(again) == first
    assert stage.disk == before
    assert stage.machine.uploads == 1


def test_other_bytes_under_a_known_id_do_not_replace_the_first() -> None:
    stage = stage_in(S.COLLECT)
    stage.upload("gw-00")
    before = dict(stage.disk)
    effects = stage.upload("gw-00", loss_after=0.5)
    assert [r.outcome for r in receipts(effects)] == ["accepted"]
    assert stage.disk == before
    assert "other bytes" in notes(effects)


@pytest.mark.parametrize("state", [S.RELEASING, S.INTERVAL, S.CHECKIN])
def test_an_accepted_upload_is_known_after_its_round(state: RoundState) -> None:
    stage = Stage()
    candidate = stage.to_releasing()
    body = upload(rosters(stage.effects)[0], "gw-00")
    if state is not S.RELEASING:
        stage.handle(stage.released(candidate))
    if state is S.CHECKIN:
        stage.handle(Tick(), stage.rounds.interval_s)
    assert stage.machine.state is state
    effects = stage.handle(UploadReceived(body, sealed(body)))
    assert [r.outcome for r in receipts(effects)] == ["accepted"]
    assert outcome(effects) == "accepted"
    stage.restart()
    assert [r.outcome for r in receipts(stage.handle(UploadReceived(body, sealed(body))))] == ["accepted"]


def spoilt(place: int, value: int) -> bytes:
    """A vector of the first device's that is one no longer."""
    plan, stage = plan_of(settings(4, quorum=2)), stage_in(S.COLLECT)
    vector = plain_vector(rosters(stage.effects)[0], "gw-00", plan)
    vector[place] = value
    return vector.tobytes()


LAYOUT = layout_of(plan_of(settings(4, quorum=2)))
WEIGHT, CLIPPED, NORM = (int(place) for place in LAYOUT.content()[:3])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2, "id": "up-network-2-1-gw-00"}, "round: "),
        ({"attempt": 2, "id": "up-network-1-2-gw-00"}, "round: "),
        ({"gid": 1}, "group: "),
        ({"id": "up-network-1-1-gw-01"}, "id: "),
        ({"transcript": bytes(32)}, "transcript: "),
        ({"vector": bytes(1023)}, "dimension: "),
        ({"vector": bytes(4096)}, "dimension: "),
        ({"vector": spoilt(WEIGHT, 3)}, "weight: "),
        ({"vector": spoilt(WEIGHT, 0)}, "weight: "),
        ({"vector": spoilt(0, 4 * 255 + 1)}, "limit: "),
        ({"vector": spoilt(LAYOUT.canaries()[0], 1)}, "canary: "),
        ({"vector": spoilt(CLIPPED, 2)}, "statistics: "),
        ({"vector": spoilt(NORM, 2)}, "statistics: "),
        ({"boxes": (b"x",)}, "boxes: "),
        ({"commitments": (bytes(16),)}, "commitments: "),
    ],
)
def test_an_upload_that_does_not_belong_is_rejected_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    stage = stage_in(S.COLLECT)
    before = dict(stage.disk)
    effects = stage.upload("gw-00", **changes)
    item = receipts(effects)[0]
    assert (item.outcome, item.reason[: len(reason)]) == ("rejected", reason)
    assert "found" in item.reason
    assert stage.disk == before
    assert stage.machine.uploads == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": ()}, "boxes: "),
        ({"boxes": (bytes(10),) * 6}, "boxes: "),
        ({"commitments": ()}, "commitments: "),
        ({"commitments": (bytes(16),) * 7}, "commitments: "),
    ],
)
def test_of_a_masked_upload_the_shape_is_checked(changes: dict[str, Any], reason: str) -> None:
    stage = masked_stage_in(S.COLLECT)
    body = recording().uploads[SIX[0]].body.model_copy(update=changes)
    item = receipts(stage.handle(UploadReceived(body, sealed(body))))[0]
    assert (item.outcome, item.reason[: len(reason)]) == ("rejected", reason)
    assert stage.machine.uploads == 0


def test_an_upload_of_somebody_else_is_rejected() -> None:
    stage = stage_in(S.COLLECT)
    body = upload(rosters(stage.effects)[0], "gw-03")
    assert receipts(stage.handle(UploadReceived(body, sealed(body))))[0].reason.startswith("member: ")


def test_an_upload_at_the_deadline_is_late() -> None:
    stage = stage_in(S.COLLECT)
    stage.upload("gw-00")
    stage.upload("gw-01")
    stage.now += stage.rounds.collect_s
    assert receipts(stage.upload("gw-02"))[0].reason.startswith("late: ")
    assert stage.machine.state is S.RELEASING
