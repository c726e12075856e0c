"""A participant's masked upload and its part in the committee: written down first, erased when used, said once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from group_parts import Rest
from participant_parts import (
    ME,
    SCARCE,
    TASK,
    Gateway,
    PowerCutError,
    answer_of,
    body_of,
    checkins,
    key_of,
    notes,
    of_step,
    plan_of,
    release_of,
    result,
    upload_body,
    uploads,
    written,
)

from vedette_core.machine import Persist, Publish
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_core.secagg.seat import Seat
from vedette_device.participant_events import (
    ParticipantState,
    RosterReceived,
    Train,
    TrainingFailed,
)
from vedette_device.training import contribute
from vedette_schemas.round import Phase, Plan, Roster
from vedette_schemas.secagg import Vote

SEAT = f"committee/{TASK}/seat/0"
STATE = f"participant/{TASK}/state"
UPLOAD = f"participant/{TASK}/upload"


def seat_of(gateway: Gateway) -> Seat:
    return Seat.from_bytes(gateway.disk[SEAT], SEAT)


def trained(absent: Sequence[str] = ()) -> tuple[Gateway, Rest, Publish]:
    """A gateway whose upload is on its way, and the rest of its group."""
    gateway = Gateway()
    train = gateway.to_training()
    publish = uploads(gateway.handle(gateway.finished(train)))[0]
    return gateway, Rest(train.roster, train.plan, upload_body(publish), absent), publish


# -- the key's life ---------------------------------------------------------------------------------------------------


def test_a_member_of_the_group_has_its_seat_on_disk_before_it_trains() -> None:
    gateway = Gateway()
    gateway.to_collecting()
    effects = gateway.handle(RosterReceived(gateway.roster()))
    kinds = [type(e) for e in effects]
    assert SEAT in written(effects)
    assert kinds.index(Train) > max(i for i, e in enumerate(effects) if isinstance(e, Persist))
    seat = seat_of(gateway)
    assert (seat.roster, seat.key) == (gateway.roster(), gateway.keys[-1])


def test_the_private_key_goes_from_the_record_with_the_upload_and_from_the_seat_with_the_shares() -> None:
    gateway = Gateway()
    train = gateway.to_training()
    private = gateway.keys[-1].private
    assert private in gateway.disk[STATE]
    assert private in gateway.disk[SEAT]

    publish = uploads(gateway.handle(gateway.finished(train)))[0]
    assert private not in gateway.disk[STATE] + gateway.disk[UPLOAD]
    assert private in gateway.disk[SEAT], "boxes are opened with it"

    rest = Rest(train.roster, train.plan, upload_body(publish))
    rest.vote()
    gateway.handle(CloseReceived(rest.close()))
    assert private in gateway.disk[SEAT]
    gateway.handle(OpeningReceived(rest.opening()))
    assert seat_of(gateway).key is None
    assert seat_of(gateway).boxes == ()
    assert gateway.private_keys_on_disk == 0


def test_a_training_that_failed_leaves_the_key_to_the_committees_seat_alone() -> None:
    gateway = Gateway()
    gateway.to_training()
    gateway.handle(TrainingFailed(1, 1, "diverged"))
    assert gateway.record.key is not None
    assert gateway.record.key.private == b""
    assert seat_of(gateway).key == gateway.keys[-1]
    assert gateway.record.spent == (), "nothing was given"


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FAILED])
def test_with_the_attempt_the_seat_ends(phase: Phase) -> None:
    gateway, rest, _ = trained()
    rest.vote()
    gateway.ready(examples=1)
    gateway.open(phase)
    assert SEAT not in gateway.disk
    assert gateway.private_keys_on_disk == 0
    assert not of_step(gateway.handle(CloseReceived(rest.close())), "vote")


def test_with_the_next_attempt_the_seat_ends() -> None:
    gateway, _, _ = trained()
    gateway.open(Phase.CHECKIN, 1, 2)
    assert SEAT not in gateway.disk
    assert gateway.private_keys_on_disk == 1, "that of the new check-in"


# -- what leaves ------------------------------------------------------------------------------------------------------


def vector_under(plan: Plan, entropy: int) -> np.ndarray:
    """What leaves for the same training, keys and rounding."""
    train = Gateway(plan=plan, plain_allowed=True).to_training()
    made = contribute(
        plan,
        train.roster,
        ME,
        train.key,
        result(),
        rng=np.random.default_rng(1),
        entropy=np.random.default_rng(entropy).bytes,
    )
    return np.frombuffer(made.vector, "<u2")


def test_of_the_update_nothing_is_to_be_seen_in_the_upload() -> None:
    plain, again = vector_under(plan_of(masked=False), 1), vector_under(plan_of(masked=False), 2)
    masked, other = vector_under(plan_of(), 1), vector_under(plan_of(), 2)
    assert (plain == again).all(), "without masks the same leaves"
    assert len(masked) == len(plain) > 1000
    # Uniform vectors of so many elements of 16 bits agree in 0.02 places on average.
    assert max(int((a == b).sum()) for a, b in ((plain, masked), (plain, other), (masked, other))) < 5


def test_a_groups_sum_is_what_the_devices_gave() -> None:
    gateway, rest, _ = trained(absent=("gw-03",))
    rest.vote()
    (vote,) = of_step(gateway.handle(CloseReceived(rest.close())), "vote")
    rest.take(vote.payload)
    (shares,) = of_step(gateway.handle(OpeningReceived(rest.opening())), "shares")
    rest.take(shares.payload)
    rest.release()
    assert rest.unmasking.try_open()
    assert (rest.sum() == rest.plain_sum()).all()


# -- the committee ----------------------------------------------------------------------------------------------------


def test_a_vote_is_on_disk_before_it_leaves_and_said_again_with_the_same_bytes() -> None:
    gateway, rest, _ = trained()
    effects = gateway.handle(CloseReceived(rest.close()))
    assert answer_of(effects) == "accepted"
    kinds = [type(e) for e in effects]
    assert kinds.index(Persist) < kinds.index(Publish)
    (vote,) = of_step(effects, "vote")
    assert vote.receipt_id == body_of(vote.payload, Vote).id
    assert body_of(vote.payload, Vote).complaints == ()
    gateway.restart()
    assert of_step(gateway.handle(CloseReceived(rest.close())), "vote") == [vote]


def test_a_second_survivor_set_gets_no_vote() -> None:
    gateway, rest, _ = trained()
    gateway.handle(CloseReceived(rest.close()))
    close = rest.close()
    other = close.model_copy(update={"survivors": close.survivors[:-1]})
    effects = gateway.handle(CloseReceived(other))
    assert not of_step(effects, "vote")
    assert "found a second survivor set" in notes(effects)


def test_shares_are_said_again_with_the_same_bytes_although_the_key_is_gone() -> None:
    gateway, rest, _ = trained()
    rest.vote()
    gateway.handle(CloseReceived(rest.close()))
    (shares,) = of_step(gateway.handle(OpeningReceived(rest.opening())), "shares")
    gateway.restart()
    assert of_step(gateway.handle(OpeningReceived(rest.opening())), "shares") == [shares]


def test_shares_are_given_only_against_enough_votes() -> None:
    gateway, rest, _ = trained(absent=("gw-06", "gw-07"))
    rest.vote()
    gateway.handle(CloseReceived(rest.close()))
    effects = gateway.handle(OpeningReceived(rest.opening()))
    assert not of_step(effects, "shares"), "5 votes are there, 6 are needed"
    assert "found 5 valid votes, expected 6 or more" in notes(effects)


def test_a_member_that_did_not_upload_helps_the_others_all_the_same() -> None:
    """It trained too slowly: it knows who is in the group, and its seat is on disk."""
    gateway = Gateway()
    train = gateway.to_training()
    rest = Rest(train.roster, train.plan, None)
    gateway.open(Phase.UNMASK)
    gateway.restart()
    (vote,) = of_step(gateway.handle(CloseReceived(rest.close())), "vote")
    rest.take(vote.payload)
    rest.vote()
    (shares,) = of_step(gateway.handle(OpeningReceived(rest.opening())), "shares")
    rest.take(shares.payload)
    rest.release()
    assert rest.unmasking.try_open()
    assert (rest.sum() == rest.plain_sum()).all()


def test_a_device_that_no_plan_fits_any_more_still_helps_to_open_what_it_was_in() -> None:
    gateway, rest, _ = trained()
    gateway.handle(release_of(plan_of(masked=False), version=1))
    assert gateway.machine.state is ParticipantState.UNFIT
    assert len(of_step(gateway.handle(CloseReceived(rest.close())), "vote")) == 1


def test_a_device_that_opened_its_groups_sum_gives_no_upload_to_it_any_more() -> None:
    """Its upload would be one that nobody asks the committee for again, with its shares already out."""
    gateway = Gateway()
    train = gateway.to_training()
    rest = Rest(train.roster, train.plan, None)
    rest.vote()
    gateway.handle(CloseReceived(rest.close()))
    effects = gateway.handle(OpeningReceived(rest.opening()))
    (shares,) = of_step(effects, "shares")
    assert max(i for i, e in enumerate(effects) if isinstance(e, Persist)) < effects.index(shares)
    assert gateway.private_keys_on_disk == 0, "the key is gone before the shares leave"
    assert answer_of(gateway.handle(gateway.finished(train))) == "discarded"
    gateway.restart()
    gateway.ready()
    gateway.open(Phase.COLLECT)
    assert not any(isinstance(e, Train) for e in gateway.handle(RosterReceived(train.roster)))
    assert not uploads(gateway.effects)


# -- unmasking --------------------------------------------------------------------------------------------------------


def test_a_training_that_unmasking_overtakes_is_abandoned_and_the_next_attempt_asked_for() -> None:
    gateway = Gateway()
    train = gateway.to_training()
    effects = gateway.open(Phase.UNMASK)
    (offer,) = checkins(effects)
    assert offer.epk == key_of(ME, 1).public
    assert gateway.record.key is not None
    assert gateway.record.key.earliest == (1, 2)
    assert gateway.machine.state is ParticipantState.CHECKED_IN
    assert answer_of(gateway.handle(gateway.finished(train))) == "discarded"
    assert not uploads(gateway.effects)
    assert gateway.record.spent == ()


@pytest.mark.parametrize("uploaded", [False, True])
def test_once_unmasking_has_begun_the_key_of_the_attempt_is_of_no_use(uploaded: bool) -> None:
    gateway = Gateway()
    if uploaded:
        gateway.to_uploaded()
    else:
        gateway.to_collecting()
    assert len(checkins(gateway.open(Phase.UNMASK))) == 1
    assert answer_of(gateway.open(Phase.COLLECT)) == "discarded", "a round does not go back"
    assert not checkins(gateway.open(Phase.UNMASK)), "one offer is enough"
    gateway.open(Phase.CHECKIN, 1, 2)
    gateway.open(Phase.COLLECT, 1, 2)
    effects = gateway.handle(RosterReceived(gateway.roster(1, 2)))
    assert any(isinstance(e, Train) for e in effects)


def test_what_was_offered_while_unmasking_holds_for_the_next_round() -> None:
    gateway = Gateway()
    gateway.to_uploaded()
    gateway.open(Phase.UNMASK)
    assert not checkins(gateway.open(Phase.DONE))
    assert not checkins(gateway.open(Phase.CHECKIN, 2))
    gateway.open(Phase.COLLECT, 2)
    effects = gateway.handle(RosterReceived(gateway.roster(2)))
    assert any(isinstance(e, Train) for e in effects)


# -- crashes ----------------------------------------------------------------------------------------------------------


class Story:
    """A round from the check-in to its end, whose aggregator says again whatever is asked for again.

    Args:
        crash_after: effects after which the power fails; None if it does not.
    """

    def __init__(self, crash_after: int | None) -> None:
        self.gateway = Gateway(plan=SCARCE)
        self.gateway.crash_after = crash_after
        self.roster: Roster | None = None
        self.rest: Rest | None = None
        self.trainings = 0
        self.crashed = False

    def tell(self) -> None:
        """Tell it; after a power cut, from the start."""
        steps = [
            self.gateway.ready,
            lambda: self.gateway.open(Phase.CHECKIN),
            lambda: self.gateway.open(Phase.COLLECT),
            self.train,
            self.acknowledge,
            lambda: self.gateway.open(Phase.UNMASK),
            self.close,
            self.opening,
            lambda: self.gateway.open(Phase.DONE),
        ]
        for number, step in enumerate(steps):
            try:
                step()
            except PowerCutError:
                self.crashed = True
                self.gateway.crash_after = None
                self.gateway.restart()
                for again in steps[: number + 1]:
                    again()

    def train(self) -> None:
        self.roster = self.roster or self.gateway.roster()
        for effect in self.gateway.handle(RosterReceived(self.roster)):
            if isinstance(effect, Train):
                self.trainings += 1
                # Another rounding and other masks every time: what left before must not leave in another form.
                self.gateway.handle(self.gateway.finished(effect, seed=self.trainings))

    def acknowledge(self) -> None:
        for publish in uploads(self.gateway.effects):
            self.gateway.receipt(publish.receipt_id or "")

    def close(self) -> None:
        if self.rest is None:
            assert self.roster is not None
            self.rest = Rest(self.roster, SCARCE, upload_body(uploads(self.gateway.effects)[0]))
            self.rest.vote()
        self.gateway.handle(CloseReceived(self.rest.close()))

    def opening(self) -> None:
        assert self.rest is not None
        self.gateway.handle(OpeningReceived(self.rest.opening()))


def effects_of_a_round() -> int:
    story = Story(None)
    story.tell()
    return len(story.gateway.effects)


@pytest.mark.parametrize("crash_after", range(effects_of_a_round()))
def test_wherever_the_power_fails_the_same_bytes_leave_or_none(crash_after: int) -> None:
    story = Story(crash_after)
    story.tell()
    gateway = story.gateway
    assert story.crashed
    for step in ("upload", "vote", "shares"):
        left = {publish.payload for publish in of_step(gateway.effects, step)}
        assert len(left) == 1, f"{step}: {len(left)} different messages left"
    assert gateway.record.spent == ((1, 1, 1),), "the promise to the device counts one contribution"
    assert gateway.record.used == (1, 1)
    assert story.roster is not None
    entry = story.roster.member(ME)
    key = next(k for k in gateway.keys if entry is not None and k.public == entry.epk)
    assert not any(key.private in value for value in gateway.disk.values())
    assert SEAT not in gateway.disk


def test_a_power_cut_behind_the_upload_leaves_no_key_in_the_record() -> None:
    gateway = Gateway()
    train = gateway.to_training()
    before = gateway.disk[STATE]
    gateway.handle(gateway.finished(train))
    gateway.disk[STATE] = before
    assert gateway.keys[-1].private in before
    gateway.restart()
    assert gateway.keys[-1].private not in gateway.disk[STATE]
    assert gateway.record.spent == ((1, 1, 1),)
