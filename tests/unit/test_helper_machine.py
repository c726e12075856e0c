"""A committee helper: it offers keys, sits only where a roster holds, says everything once, and keeps no key."""

from __future__ import annotations

from typing import Any

import pytest
from group_parts import Rest
from participant_parts import (
    NOW,
    PEERS,
    SITE,
    TASK,
    TOPICS,
    Gateway,
    answer_of,
    body_of,
    checkins,
    key_of,
    member,
    notes,
    of_step,
    opened,
    plan_of,
    release_of,
    subscriptions,
    upload_body,
    uploads,
)

from vedette_core.crypto.agreement import KeyPair
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Purpose, make_leaf
from vedette_core.machine import Connected, Effect, Event, Persist, Publish, Tick
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, Seated
from vedette_device import helper_machine
from vedette_device.helper_machine import HelperMachine
from vedette_device.participant_events import ReceiptReceived, RosterReceived, RoundOpened
from vedette_device.participant_messages import DeviceIdentity
from vedette_device.participant_state import ParticipantRecord, state_key
from vedette_schemas.round import CheckIn, Member, Phase, Roster, Upload, plan_bytes
from vedette_schemas.secagg import Vote
from vedette_schemas.telemetry import Receipt, ReceiptItem

NAME = "opener-0"
SECOND = "opener-1"
"""The other helper: nobody opens a group alone."""
PLAN = plan_of(groups={"committee": "helpers", "committee_size": 2, "votes_min": 2, "threshold": 2, "corrupt_max": 1})
DIGEST = plan_bytes(PLAN)[1]


def certificate(name: str = NAME) -> bytes:
    made = make_leaf(
        SITE._issuer,
        SITE.node(name).signer.public_key,
        holder=name,
        role=CertificateRole.COMMITTEE,
        site="plant-1",
        purpose=Purpose.SIGNING,
        now=NOW - 3600,
        serial=2**64 + 5,
    )
    return der(made)


class Opener:
    """A helper's machine with its disk."""

    def __init__(self) -> None:
        self.disk: dict[str, bytes] = {}
        self.effects: list[Effect] = []
        self.keys: list[KeyPair] = []
        self.certificate = certificate()
        self.machine: HelperMachine
        self.restart()

    def restart(self) -> list[Effect]:
        node = SITE.node(NAME)
        self.machine, effects = HelperMachine.restore(
            dict(self.disk),
            topics=TOPICS,
            task=TASK,
            identity=DeviceIdentity(NAME, self.certificate, SITE.intermediate, node.signer, "0" * 64, "unmask"),
            new_key=self._new_key,
            peers=PEERS,
        )
        self._carry_out(effects)
        return effects

    def handle(self, event: Event) -> list[Effect]:
        effects = self.machine.handle(event, NOW)
        self._carry_out(effects)
        return effects

    def open(self, phase: Phase, number: int = 1, attempt: int = 1) -> list[Effect]:
        return self.handle(RoundOpened(opened(phase, number, attempt, plan=DIGEST)))

    def to_collecting(self) -> CheckIn:
        self.handle(release_of(PLAN))
        self.open(Phase.CHECKIN)
        self.open(Phase.COLLECT)
        return checkins(self.effects)[-1]

    def entry(self, **changes: Any) -> Member:
        """Its entry in a roster: what it said."""
        said = checkins(self.effects)[-1]
        values: dict[str, Any] = {
            "device": NAME,
            "epk": said.epk,
            "seq": said.seq,
            "certificate": said.certificate,
            "offer": said.offer,
            "weight": 0,
        }
        return Member(**(values | changes))

    @property
    def record(self) -> ParticipantRecord:
        """What it has written down of itself."""
        return ParticipantRecord.from_bytes(self.disk[state_key(TASK)], state_key(TASK))

    @property
    def private_keys_on_disk(self) -> int:
        return sum(any(k.private in value for value in self.disk.values()) for k in self.keys)

    def _new_key(self) -> KeyPair:
        self.keys.append(key_of(NAME, len(self.keys)))
        return self.keys[-1]

    def _carry_out(self, effects: list[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Persist):
                if effect.value is None:
                    self.disk.pop(effect.key, None)
                else:
                    self.disk[effect.key] = effect.value


def group(opener: Opener, **changes: Any) -> tuple[Gateway, Roster]:
    """A device that waits for its roster, and the roster with this helper in it."""
    gateway = Gateway(plan=PLAN)
    gateway.to_collecting()
    return gateway, gateway.roster(committee=committee(opener), **changes)


def committee(opener: Opener, **changes: Any) -> tuple[Member, ...]:
    """Both helpers, as a roster lists them."""
    return opener.entry(**changes), member(SECOND, weight=0, role="unmask", certificate=certificate(SECOND))


def to_seated() -> tuple[Opener, Rest]:
    """It sits in the committee of a group that has uploaded."""
    opener = Opener()
    opener.to_collecting()
    gateway, roster = group(opener)
    return opener, seat_in(opener, gateway, roster)


def seat_in(opener: Opener, gateway: Gateway, roster: Roster) -> Rest:
    """It takes a seat; everybody uploads, and the other helper waits to vote."""
    gateway.handle(RosterReceived(roster))
    train = next(e for e in gateway.effects if type(e).__name__ == "Train")
    upload = uploads(gateway.handle(gateway.finished(train)))[0]  # type: ignore[arg-type]
    return seat_beside(opener, roster, upload_body(upload))


def seat_beside(opener: Opener, roster: Roster, upload: Upload | None = None) -> Rest:
    """It takes a seat in a group whose first device uploaded this, or nothing."""
    assert answer_of(opener.handle(RosterReceived(roster))) == "accepted"
    rest = Rest(roster, PLAN, upload)
    node = CommitteeMember(topics=TOPICS, task=TASK, member=SECOND, signer=SITE.node(SECOND).signer, peers=PEERS)
    node.handle(Seated(roster, PLAN, key_of(SECOND)), NOW)
    rest.members = {SECOND: node}
    return rest


@pytest.fixture
def two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same devices may be a second group: who belongs where is not what these tests are about."""
    monkeypatch.setattr(helper_machine, "check_against_plan", lambda *_: None)


def opening_of(opener: Opener, rest: Rest) -> OpeningReceived:
    """Both have voted."""
    (vote,) = of_step(opener.handle(asked(rest)), "vote")
    rest.take(vote.payload)
    rest.vote()
    return OpeningReceived(rest.opening())


def asked(rest: Rest) -> CloseReceived:
    return CloseReceived(rest.unmasking.close_for(NAME))


def test_a_helper_offers_a_key_of_its_role_where_the_plan_wants_helpers() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    effects = opener.open(Phase.CHECKIN)
    (said,) = checkins(effects)
    assert (said.device, said.role, said.feature_schema) == (NAME, "unmask", PLAN.feature_schema)
    kinds = [type(e) for e in effects]
    assert kinds.index(Persist) < kinds.index(Publish)
    assert not checkins(opener.open(Phase.CHECKIN)), "once a round"

    idle = Opener()
    idle.handle(release_of(plan_of()))
    assert not checkins(idle.open(Phase.CHECKIN)), "here the members open their own sums"


def test_a_helper_does_not_help_under_a_plan_that_keeps_no_promise() -> None:
    opener = Opener()
    unsafe = plan_of(
        groups={"committee": "helpers", "committee_size": 4, "votes_min": 2, "threshold": 2, "corrupt_max": 1}
    )
    effects = opener.handle(release_of(unsafe))
    assert answer_of(effects) == "rejected"
    assert "two survivor sets could be opened" in notes(effects)
    assert not checkins(opener.open(Phase.CHECKIN))


def test_a_helper_votes_and_releases_once_and_erases_its_seats_key() -> None:
    opener, rest = to_seated()
    (vote,) = of_step(opener.handle(asked(rest)), "vote")
    rest.take(vote.payload)
    rest.vote()
    opener.restart()
    assert of_step(opener.handle(asked(rest)), "vote") == [vote]
    (shares,) = of_step(opener.handle(OpeningReceived(rest.opening())), "shares")
    rest.take(shares.payload)
    rest.release()
    assert rest.unmasking.try_open()
    assert (rest.sum() == rest.plain_sum()).all()
    opener.open(Phase.DONE)
    assert opener.machine.seats == ()
    assert not any(key_of(NAME, 0).private in value for value in opener.disk.values())


@pytest.mark.usefixtures("two_groups")
def test_the_private_key_goes_with_the_first_release_and_stays_away() -> None:
    """Not only with the word that the round is over: the aggregator may never say it."""
    opener, rest = to_seated()
    effects = opener.handle(opening_of(opener, rest))
    kinds = [e.key if isinstance(e, Persist) else type(e).__name__ for e in effects]
    assert kinds.index(state_key(TASK)) < kinds.index("Publish"), "written before the shares leave"
    assert opener.private_keys_on_disk == 0
    opener.restart()
    opener.handle(release_of(PLAN))
    opener.open(Phase.UNMASK)
    late = rest.roster.model_copy(update={"gid": 1})
    assert answer_of(opener.handle(RosterReceived(late))) == "discarded", "the collection is over"
    assert opener.machine.seats == (0,)
    assert len(checkins(opener.open(Phase.CHECKIN, 1, 2))) == 1, "the next attempt gets a key of its own"


@pytest.mark.usefixtures("two_groups")
def test_seats_with_one_key_are_opened_each_by_itself() -> None:
    opener = Opener()
    opener.to_collecting()
    gateway, roster = group(opener)
    rest = seat_in(opener, gateway, roster)
    other = seat_beside(opener, roster.model_copy(update={"gid": 1}))
    assert opener.machine.seats == (0, 1)
    assert of_step(opener.handle(opening_of(opener, rest)), "shares")
    assert opener.record.key is not None
    assert opener.record.key.private == b""
    assert opener.private_keys_on_disk == 1, "the other seat has its copy"
    opener.restart()
    assert of_step(opener.handle(opening_of(opener, other)), "shares")
    assert opener.private_keys_on_disk == 0


def test_a_key_for_the_next_attempt_gets_no_seat_in_this_one() -> None:
    """It would be seated again in the next one: one key for two attempts."""
    opener = Opener()
    opener.handle(release_of(PLAN))
    opener.open(Phase.COLLECT)
    assert opener.record.key is not None
    assert opener.record.key.earliest == (1, 2)
    gateway, roster = group(opener)
    assert answer_of(opener.handle(RosterReceived(roster))) == "discarded"
    assert opener.machine.seats == ()
    opener.open(Phase.CHECKIN, 1, 2)
    opener.open(Phase.COLLECT, 1, 2)
    gateway.to_collecting(1, 2)
    due = gateway.roster(1, 2, committee=committee(opener))
    assert answer_of(opener.handle(RosterReceived(due))) == "accepted"
    assert len(opener.keys) == 1


def test_a_seat_survives_a_restart_and_ends_with_the_attempt() -> None:
    opener, rest = to_seated()
    opener.restart()
    assert opener.machine.seats == (0,)
    opener.handle(release_of(PLAN))
    opener.open(Phase.CHECKIN, 1, 2)
    assert opener.machine.seats == ()
    assert opener.private_keys_on_disk == 1, "that of the new check-in"
    assert not of_step(opener.handle(asked(rest)), "vote")


def test_a_helper_votes_for_one_set_only() -> None:
    opener, rest = to_seated()
    opener.handle(asked(rest))
    close = rest.unmasking.close_for(NAME)
    effects = opener.handle(CloseReceived(close.model_copy(update={"survivors": close.survivors[:-1]})))
    assert not of_step(effects, "vote")
    votes = [body_of(e.payload, Vote).survivors for e in of_step(opener.effects, "vote")]
    assert votes == [rest.unmasking.survivors]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"epk": key_of("mallory").public}, "found another key for this helper"),
        ({"offer": bytes(64)}, f"found a key for {NAME} that it did not sign"),
        ({"weight": 1}, "found a helper with a weight"),
    ],
    ids=["key", "offer", "weight"],
)
def test_a_roster_that_does_not_hold_gets_no_seat(change: dict[str, Any], found: str) -> None:
    opener = Opener()
    opener.to_collecting()
    _, roster = group(opener)
    forged = roster.model_copy(update={"committee": committee(opener, **change)})
    effects = opener.handle(RosterReceived(forged))
    assert answer_of(effects) == "rejected"
    assert found in notes(effects)
    assert opener.machine.seats == ()
    assert answer_of(opener.handle(RosterReceived(roster))) == "accepted"


def test_members_whom_the_beacon_puts_elsewhere_get_no_help() -> None:
    opener = Opener()
    opener.to_collecting()
    _, roster = group(opener)
    effects = opener.handle(RosterReceived(roster.model_copy(update={"beacon": b"x" * 32})))
    assert answer_of(effects) == "rejected"
    few = roster.model_copy(update={"members": roster.members[:4]})
    assert "found 4 members, expected 5 to 8" in notes(opener.handle(RosterReceived(few)))
    strangers = (*roster.members[:-1], member("gw-07", offer=bytes(64)))
    swapped = roster.model_copy(update={"members": strangers})
    assert "found a key for gw-07 that it did not sign" in notes(opener.handle(RosterReceived(swapped)))


def test_without_an_anchor_a_helper_believes_no_roster() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN, anchor=None))
    opener.open(Phase.CHECKIN)
    opener.open(Phase.COLLECT)
    _, roster = group(opener)
    assert "found no anchor of the beacon" in notes(opener.handle(RosterReceived(roster)))
    assert opener.machine.seats == ()


@pytest.mark.parametrize("changes", [{"round": 2}, {"attempt": 2}, {"model": "9" * 64}, {"committee": ()}], ids=str)
def test_a_roster_of_another_place_or_without_it_is_let_fall(changes: dict[str, Any]) -> None:
    opener = Opener()
    opener.to_collecting()
    _, roster = group(opener)
    effects = opener.handle(RosterReceived(roster.model_copy(update=changes)))
    assert answer_of(effects) == "discarded"
    assert opener.machine.seats == ()


def test_a_roster_that_comes_before_its_rounds_state_is_not_lost() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    opener.open(Phase.CHECKIN)
    _, roster = group(opener)
    assert answer_of(opener.handle(RosterReceived(roster))) == "discarded"
    opener.open(Phase.COLLECT)
    assert opener.machine.seats == (0,)


def test_a_retained_roster_of_before_does_not_replace_one_that_waits() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    opener.open(Phase.CHECKIN, 2)
    gateway = Gateway(plan=PLAN)
    gateway.to_collecting(2)
    roster = gateway.roster(2, committee=committee(opener))
    opener.handle(RosterReceived(roster))
    opener.handle(RosterReceived(roster.model_copy(update={"round": 1, "attempt": 16})))
    opener.open(Phase.COLLECT, 2)
    assert opener.machine.seats == (0,)


def test_an_earlier_attempts_roster_does_not_replace_a_later_ones_before_either_is_here() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    opener.open(Phase.CHECKIN, 1, 2)
    gateway = Gateway(plan=PLAN)
    gateway.to_collecting(1, 2)
    roster = gateway.roster(1, 2, committee=committee(opener))
    opener.handle(RosterReceived(roster.model_copy(update={"attempt": 3})))
    opener.handle(RosterReceived(roster))
    assert [r.attempt for r in opener.machine._rosters.values()] == [3]
    opener.open(Phase.COLLECT, 1, 2)
    assert answer_of(opener.handle(RosterReceived(roster))) == "accepted", "said again when it is due"


def test_rosters_that_no_seat_can_come_of_are_not_kept() -> None:
    opener = Opener()
    opener.to_collecting()
    _, roster = group(opener)

    def hears(**changes: Any) -> None:
        for gid in range(1, 9):
            opener.handle(RosterReceived(roster.model_copy(update={"gid": gid, **changes})))

    hears(committee=())
    opener.handle(RosterReceived(roster))
    assert opener.machine._rosters == {}, "neither those that are others' nor those that have become seats"
    hears(attempt=2)
    assert len(opener.machine._rosters) == 8
    opener.open(Phase.DONE, 1, 2)
    assert opener.machine._rosters == {}, "over"
    hears(attempt=2)
    opener.restart()
    hears()
    assert opener.machine._rosters == {}, "over, whatever the broker retains"


def test_a_rejected_checkin_is_tried_again_when_the_aggregator_speaks_again() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    (said,) = checkins(opener.open(Phase.CHECKIN))
    item = ReceiptItem(id=said.id, outcome="rejected", reason="stale: found 1")
    effects = opener.handle(ReceiptReceived(Receipt(device=NAME, items=(item,))))
    assert "stale" in notes(effects)
    assert opener.private_keys_on_disk == 0
    assert len(checkins(opener.open(Phase.CHECKIN))) == 1


def test_a_restart_sends_the_same_checkin_again_until_its_receipt() -> None:
    opener = Opener()
    opener.handle(release_of(PLAN))
    (said,) = checkins(opener.open(Phase.CHECKIN))
    assert checkins(opener.restart()) == [said]
    item = ReceiptItem(id=said.id, outcome="accepted")
    opener.handle(ReceiptReceived(Receipt(device=NAME, items=(item,))))
    assert not checkins(opener.restart())


def test_an_older_round_is_a_replay() -> None:
    opener = Opener()
    opener.to_collecting()
    opener.open(Phase.COLLECT, 3)
    assert answer_of(opener.open(Phase.COLLECT, 2)) == "discarded"


def test_a_connection_subscribes_to_every_groups_roster() -> None:
    opener = Opener()
    assert subscriptions(opener.handle(Connected())) == [
        f"public/round/{TASK}",
        TOPICS.groups(TASK).removeprefix(TOPICS.root + "/"),
    ]
    assert answer_of(opener.handle(Tick())) == "accepted"
    assert opener.machine.next_deadline() is None
