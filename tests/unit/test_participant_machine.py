"""A device's side of a round: every event in every state, and what it never does."""

from __future__ import annotations

from typing import Any

import pytest
from participant_parts import (
    FEATURE_SCHEMA,
    ME,
    MODEL,
    OTHERS,
    PLAN,
    TASK,
    Gateway,
    answer_of,
    beacon_of,
    checkins,
    contribution,
    member,
    opened,
    release_of,
    subscriptions,
    upload_body,
    uploads,
    written,
)

from vedette_aggregator.admission import check_checkin, check_upload
from vedette_core.machine import Connected, Count, Event, Note, Persist, Publish, Tick, Unsubscribe
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.participant_events import (
    KINDS,
    TABLE,
    Answer,
    ExamplesAvailable,
    ParticipantState,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_device.participant_machine import ROSTER_RETRY_S
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Phase, group_of, transcript_hash
from vedette_schemas.secagg import Close, Opening, Survivor
from vedette_schemas.telemetry import Receipt, ReceiptItem

S = ParticipantState
OTHER_SCHEMA = PLAN.model_copy(update={"feature_schema": "0" * 64})


def gateway_in(state: ParticipantState) -> Gateway:
    """A participant in a state."""
    gateway = Gateway()
    if state is S.UNFIT:
        gateway.ready(plan=OTHER_SCHEMA)
    elif state is S.IDLE:
        gateway.ready(examples=1)
    elif state is S.CHECKED_IN:
        gateway.to_collecting()
    elif state is S.TRAINING:
        gateway.to_training()
    else:
        gateway.to_uploaded()
    assert gateway.machine.state is state
    return gateway


def event_for(kind: type[Event], gateway: Gateway) -> Event:
    """An event that holds as such: whether it is taken depends on the state alone."""
    names: dict[str, Any] = {"task": TASK, "round": 9, "attempt": 1, "gid": 0, "transcript": bytes(32)}
    survivor = Survivor(device=ME, vector=bytes(32), boxes=(), commitments=bytes(32), header=bytes(64), box=b"")
    events: dict[type[Event], Any] = {
        Tick: Tick,
        Connected: Connected,
        RoundOpened: lambda: RoundOpened(opened(Phase.CHECKIN, 2)),
        RosterReceived: lambda: RosterReceived(gateway.roster() if gateway.keys else checked_in().roster()),
        ReceiptReceived: lambda: ReceiptReceived(
            Receipt(device=ME, items=(ReceiptItem(id="alert-1", outcome="accepted"),))
        ),
        ExamplesAvailable: lambda: ExamplesAvailable(1),
        ReleaseVerified: lambda: ReleaseVerified(1, "c" * 64, "d" * 64, PLAN),
        TrainingFinished: trained,
        TrainingFailed: lambda: TrainingFailed(1, 1, "diverged"),
        CloseReceived: lambda: CloseReceived(Close(**names, survivors=(survivor,))),
        OpeningReceived: lambda: OpeningReceived(Opening(**names, survivors=bytes(32), votes=(b"vote",))),
    }
    return events[kind]()  # type: ignore[no-any-return]


def trained() -> TrainingFinished:
    """The end of a training of the first attempt."""
    return TrainingFinished(1, 1, PLAN, contribution())


def checked_in() -> Gateway:
    gateway = Gateway()
    gateway.to_checked_in()
    return gateway


AFTER: dict[tuple[ParticipantState, type[Event]], ParticipantState] = {
    (S.CHECKED_IN, RosterReceived): S.TRAINING,
    (S.TRAINING, TrainingFinished): S.UPLOADED,
    (S.TRAINING, TrainingFailed): S.UPLOADED,
    (S.TRAINING, RoundOpened): S.CHECKED_IN,
    (S.UPLOADED, RoundOpened): S.CHECKED_IN,
    (S.UNFIT, ReleaseVerified): S.IDLE,
}
"""The state after an event, where it is another one."""


def test_the_table_answers_every_event_in_every_state() -> None:
    assert set(TABLE) == {(state, kind) for state in ParticipantState for kind in KINDS}


@pytest.mark.parametrize("kind", list(KINDS), ids=list(KINDS.values()))
@pytest.mark.parametrize("state", list(ParticipantState))
def test_every_event_in_every_state(state: ParticipantState, kind: type[Event]) -> None:
    gateway = gateway_in(state)
    event = event_for(kind, gateway)
    before = dict(gateway.disk)
    effects = gateway.handle(event)
    assert answer_of(effects) == TABLE[state, kind].value
    assert gateway.machine.state is AFTER.get((state, kind), state)
    if TABLE[state, kind] is Answer.DISCARD:
        assert gateway.disk == before
        assert [type(e) for e in effects] == [Count]


def test_an_unknown_event_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        Gateway().machine.handle(Event(), 0.0)


# -- check-in ---------------------------------------------------------------------------------------------------------


def test_a_device_checks_in_when_model_round_and_examples_are_there_in_any_order() -> None:
    steps = {
        "open": lambda g: g.open(Phase.CHECKIN),
        "release": lambda g: g.handle(release_of()),
        "examples": lambda g: g.handle(ExamplesAvailable(64)),
    }
    orders = [("open", "release", "examples"), ("examples", "release", "open"), ("release", "examples", "open")]
    for order in orders:
        gateway = Gateway()
        made = [checkins(steps[name](gateway)) for name in order]
        assert [len(m) for m in made] == [0, 0, 1]


def test_a_checkin_is_one_that_the_aggregator_takes_and_is_on_disk_first() -> None:
    gateway = Gateway()
    gateway.ready()
    effects = gateway.open(Phase.CHECKIN)
    kinds = [type(e) for e in effects]
    assert kinds.index(Persist) < kinds.index(Publish)
    body = checkins(effects)[0]
    check_checkin(body, PLAN, 0)
    assert body.epk == gateway.keys[0].public
    publish = next(e for e in effects if isinstance(e, Publish))
    assert (publish.receipt_id, publish.qos, publish.retain) == (body.id, 1, False)
    assert publish.severity < 50, "a full outbox gives up learning before alerts"


def test_one_checkin_a_round_and_a_new_one_for_the_next() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    assert not checkins(gateway.open(Phase.CHECKIN))
    assert not checkins(gateway.open(Phase.COLLECT)), "its roster may come yet"
    assert len(checkins(gateway.open(Phase.DONE))) == 1, "hours early is fine"
    assert not checkins(gateway.open(Phase.CHECKIN, 2)), "that was for this round"
    assert len(checkins(gateway.open(Phase.CHECKIN, 2, 2))) == 1, "it may have been in the first attempt's roster"
    assert len({k.public for k in gateway.keys}) == 3
    assert gateway.private_keys_on_disk == 1


def test_a_device_that_slept_through_a_round_makes_a_new_key() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    assert len(checkins(gateway.open(Phase.CHECKIN, 3))) == 1
    assert gateway.private_keys_on_disk == 1


def test_a_device_that_comes_late_checks_in_for_the_next_attempt() -> None:
    gateway = Gateway()
    gateway.ready()
    effects = gateway.open(Phase.COLLECT)
    assert len(checkins(effects)) == 1
    assert not subscriptions(effects), "no roster can have it yet"


def test_the_sequence_counts_up_even_if_the_clock_goes_back() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    gateway.now -= 1e6
    gateway.open(Phase.DONE)
    first, second = checkins(gateway.effects)
    assert second.seq == first.seq + 1


def test_a_rejected_checkin_is_dropped_and_tried_again_when_the_aggregator_speaks_again() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    effects = gateway.receipt(checkins(gateway.effects)[0].id, "stale: found 1")
    assert any(isinstance(e, Note) and "stale" in e.text for e in effects)
    assert gateway.machine.state is S.IDLE
    assert gateway.private_keys_on_disk == 0
    assert not checkins(gateway.handle(ExamplesAvailable(500))), "not at once, over and over"
    assert len(checkins(gateway.open(Phase.CHECKIN))) == 1


# -- the group --------------------------------------------------------------------------------------------------------


def test_a_roster_goes_with_the_key_that_it_holds() -> None:
    """A rejected check-in takes a roster along that waited for its release; so does a new key."""
    gateway = Gateway()
    gateway.ready()
    gateway.open(Phase.CHECKIN)
    gateway.open(Phase.COLLECT, model_version=1)
    gateway.handle(RosterReceived(gateway.roster(model_version=1)))
    gateway.receipt(checkins(gateway.effects)[-1].id, "expired: found a certificate that ended")
    assert not any(isinstance(e, Train) for e in gateway.handle(release_of(version=1)))
    gateway.open(Phase.CHECKIN, 2)
    assert gateway.machine.state is S.CHECKED_IN


def test_a_device_goes_to_the_group_that_it_computed_itself() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    effects = gateway.open(Phase.COLLECT, groups=5)
    assert subscriptions(effects) == ["public/round/network/group/" + str(_own_group(5))]


def test_training_is_told_everything_that_binds_it() -> None:
    gateway = Gateway()
    train = gateway.to_training()
    assert train == Train(TASK, 1, 1, 0, MODEL, PLAN, gateway.roster(), gateway.keys[-1])


@pytest.mark.parametrize("place", [(1, 2), (2, 1)])
def test_a_roster_of_another_attempt_is_stale(place: tuple[int, int]) -> None:
    gateway = gateway_in(S.CHECKED_IN)
    effects = gateway.handle(RosterReceived(gateway.roster(*place)))
    assert answer_of(effects) == "discarded"
    assert gateway.machine.state is S.CHECKED_IN


def test_a_device_that_was_not_selected_keeps_its_key_for_the_next_round() -> None:
    gateway = gateway_in(S.CHECKED_IN)
    roster = gateway.roster(members=tuple(member(device) for device in OTHERS))
    effects = gateway.handle(RosterReceived(roster))
    assert [type(e) for e in effects] == [Unsubscribe, Count]
    assert not subscriptions(gateway.handle(ExamplesAvailable(500))), "it does not ask again"
    assert gateway.machine.state is S.CHECKED_IN


def test_training_waits_for_the_verified_model() -> None:
    gateway = Gateway()
    gateway.ready(version=3, model_sha256="3" * 64)
    gateway.open(Phase.CHECKIN)
    gateway.open(Phase.COLLECT)
    effects = gateway.handle(RosterReceived(gateway.roster()))
    assert not any(isinstance(e, Train) for e in effects)
    wrong = gateway.handle(release_of(model_sha256="4" * 64))
    assert not any(isinstance(e, Train) for e in wrong), "a model of that version, but not that model"
    other_plan = gateway.handle(release_of(plan_sha256="4" * 64))
    assert not any(isinstance(e, Train) for e in other_plan)
    effects = gateway.handle(release_of())
    assert any(isinstance(e, Train) for e in effects)


def test_training_waits_for_the_examples() -> None:
    gateway = gateway_in(S.CHECKED_IN)
    gateway.handle(ExamplesAvailable(63))
    assert not any(isinstance(e, Train) for e in gateway.handle(RosterReceived(gateway.roster())))
    assert any(isinstance(e, Train) for e in gateway.handle(ExamplesAvailable(64)))


def test_a_roster_that_does_not_come_is_asked_for_again() -> None:
    gateway = gateway_in(S.CHECKED_IN)
    deadline = gateway.machine.next_deadline()
    assert deadline == gateway.now + ROSTER_RETRY_S
    assert not subscriptions(gateway.handle(Tick()))
    assert subscriptions(gateway.handle(Tick(), ROSTER_RETRY_S)) == ["public/round/network/group/0"]
    gateway.now -= 1e6
    gateway.handle(Tick())
    assert gateway.machine.next_deadline() == gateway.now + ROSTER_RETRY_S
    gateway.handle(RosterReceived(gateway.roster()))
    assert gateway.machine.next_deadline() is None


def test_a_connection_subscribes_to_the_round_and_the_group() -> None:
    assert subscriptions(Gateway().handle(Connected())) == ["public/round/network"]
    expected = ["public/round/network", "public/round/network/group/0"]
    assert subscriptions(gateway_in(S.CHECKED_IN).handle(Connected())) == expected


# -- one upload, for ever ---------------------------------------------------------------------------------------------


def test_the_exact_bytes_are_on_disk_before_the_upload_leaves() -> None:
    gateway = Gateway()
    train = gateway.to_training()
    effects = gateway.handle(gateway.finished(train))
    kinds = [type(e) for e in effects]
    assert written(effects) == [f"participant/{TASK}/upload", f"participant/{TASK}/state"]
    assert kinds.index(Publish) > kinds.index(Persist) + 1
    publish = uploads(effects)[0]
    assert publish.payload in gateway.disk[f"participant/{TASK}/upload"]
    assert Count("rounds_joined", "accepted", TASK) in effects


def test_an_upload_is_one_that_the_aggregator_takes() -> None:
    gateway = Gateway()
    body = upload_body(gateway.to_uploaded())
    roster = gateway.roster()
    check_upload(body, roster, PLAN)
    assert body.transcript == transcript_hash(roster)


def test_there_is_no_second_upload_for_an_attempt_even_after_a_restart() -> None:
    gateway = Gateway()
    first = gateway.to_uploaded()
    gateway.receipt(first.receipt_id or "")
    gateway.restart()
    gateway.ready()
    gateway.open(Phase.COLLECT)
    assert gateway.machine.state is S.UPLOADED
    assert answer_of(gateway.handle(RosterReceived(gateway.roster()))) == "discarded"
    assert answer_of(gateway.handle(trained())) == "discarded"
    assert len(uploads(gateway.effects)) == 1


def test_a_retry_sends_the_same_bytes() -> None:
    gateway = Gateway()
    first = gateway.to_uploaded()
    again = uploads(gateway.restart())
    assert again == [first]
    gateway.receipt(first.receipt_id or "")
    assert not uploads(gateway.restart())


def test_a_crash_between_the_two_writes_still_uses_the_attempt_up() -> None:
    gateway = Gateway()
    gateway.to_training()
    before = gateway.disk[f"participant/{TASK}/state"]
    first = uploads(gateway.handle(trained()))[0]
    gateway.disk[f"participant/{TASK}/state"] = before
    assert uploads(gateway.restart()) == [first]
    assert gateway.machine.state is S.UPLOADED


def test_a_crash_while_training_trains_again() -> None:
    gateway = gateway_in(S.TRAINING)
    gateway.restart()
    gateway.ready()
    gateway.open(Phase.COLLECT)
    effects = gateway.handle(RosterReceived(gateway.roster()))
    assert any(isinstance(e, Train) for e in effects)


def test_the_result_of_an_abandoned_training_is_dropped() -> None:
    gateway = gateway_in(S.TRAINING)
    gateway.open(Phase.CHECKIN, 1, 2)
    assert answer_of(gateway.handle(trained())) == "discarded"
    gateway.open(Phase.COLLECT, 1, 2)
    gateway.handle(RosterReceived(gateway.roster(1, 2)))
    assert gateway.machine.state is S.TRAINING
    assert answer_of(gateway.handle(trained())) == "discarded"
    assert not uploads(gateway.effects)


def test_a_training_that_failed_sits_the_attempt_out() -> None:
    gateway = gateway_in(S.TRAINING)
    effects = gateway.handle(TrainingFailed(1, 1, "diverged"))
    assert any(isinstance(e, Note) and "diverged" in e.text for e in effects)
    gateway.open(Phase.COLLECT)
    assert answer_of(gateway.handle(RosterReceived(gateway.roster()))) == "discarded"
    assert len(checkins(gateway.open(Phase.CHECKIN, 2))) == 1


def test_a_rejected_upload_is_noted_and_given_up() -> None:
    gateway = Gateway()
    first = gateway.to_uploaded()
    effects = gateway.receipt(first.receipt_id or "", "late: found it after the round was closed")
    assert any(isinstance(e, Note) and "late" in e.text for e in effects)
    assert not uploads(gateway.restart())


# -- replays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("older", [(Phase.COLLECT, 4, 9), (Phase.COLLECT, 5, 1), (Phase.CHECKIN, 5, 2)])
def test_an_older_round_is_a_replay(older: tuple[Phase, int, int], restarted: bool) -> None:
    gateway = Gateway()
    gateway.ready()
    gateway.open(Phase.COLLECT, 5, 2)
    if restarted:
        gateway.restart()
        gateway.ready()
    effects = gateway.open(*older)
    assert answer_of(effects) == "discarded"
    assert [type(e) for e in effects] == [Count]


def test_two_different_states_of_one_attempt_are_refused() -> None:
    gateway = gateway_in(S.CHECKED_IN)
    effects = gateway.open(Phase.COLLECT, beacon=b"x" * 32)
    assert answer_of(effects) == "rejected"
    assert any(isinstance(e, Train) for e in gateway.handle(RosterReceived(gateway.roster()))), "the first one counts"


# -- features, keys, store --------------------------------------------------------------------------------------------


def test_a_device_with_other_features_never_trains_and_says_why() -> None:
    gateway = Gateway(feature_schema="0" * 64)
    effects = gateway.handle(release_of())
    assert answer_of(effects) == "rejected"
    note = next(e for e in effects if isinstance(e, Note))
    assert (note.level, FEATURE_SCHEMA[:16] in note.text, "0" * 16 in note.text) == ("error", True, True)
    gateway.handle(ExamplesAvailable(500))
    assert not checkins(gateway.open(Phase.CHECKIN))


def test_a_release_for_other_features_ends_what_was_begun() -> None:
    gateway = gateway_in(S.TRAINING)
    gateway.handle(ReleaseVerified(1, "c" * 64, "d" * 64, OTHER_SCHEMA))
    assert gateway.machine.state is S.UNFIT
    assert gateway.record.key is None
    assert gateway.private_keys_on_disk == 1, "the others' sum is opened with its help all the same"
    assert answer_of(gateway.handle(trained())) == "discarded"
    gateway.open(Phase.DONE)
    assert gateway.private_keys_on_disk == 0


def test_a_private_key_lives_for_its_round_only() -> None:
    gateway = Gateway()
    gateway.to_uploaded()
    assert gateway.private_keys_on_disk == 1
    gateway.ready(examples=1)
    gateway.open(Phase.DONE)
    assert gateway.private_keys_on_disk == 0
    assert "private" not in repr(gateway.keys[0])


def test_a_restart_sends_the_same_checkin_again_until_its_receipt() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    first = checkins(gateway.effects)[0]
    assert checkins(gateway.restart()) == [first]
    gateway.receipt(first.id)
    assert not checkins(gateway.restart())
    gateway.ready()
    gateway.open(Phase.CHECKIN)
    assert len(gateway.keys) == 1


@pytest.mark.parametrize("key", ["state", "upload"])
def test_a_damaged_store_is_the_operators_to_mend(key: str) -> None:
    gateway = gateway_in(S.UPLOADED)
    gateway.disk[f"participant/{TASK}/{key}"] = b"\x93 not it"
    with pytest.raises(ConfigError, match="delete the device's state directory"):
        gateway.restart()


def test_receipts_of_other_messages_are_none_of_its_business() -> None:
    gateway = gateway_in(S.UPLOADED)
    before = dict(gateway.disk)
    gateway.receipt("alert-7.1")
    assert gateway.disk == before


def _own_group(groups: int, device: str = ME) -> int:
    return group_of(beacon_of(1), TASK, device, groups)
