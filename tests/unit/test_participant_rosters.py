"""Which rosters and plans a participant believes: none that it would not have put itself into."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from participant_parts import (
    CHAIN,
    FEATURE_SCHEMA,
    ME,
    NOW,
    OTHERS,
    SCARCE,
    SITE,
    TASK,
    Gateway,
    answer_of,
    checkins,
    key_of,
    member,
    notes,
    plan_of,
    release_of,
    uploads,
)

from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_intermediate, make_leaf, make_root
from vedette_core.machine import Effect
from vedette_device.participant_events import (
    ExamplesAvailable,
    ParticipantState,
    RosterReceived,
    Train,
)
from vedette_device.participant_state import SPENT_MAX, ParticipantRecord, StoredUpload
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Member, Phase, Plan, PrivacyPlan, Roster, group_of, plan_bytes

DAY_S = 86_400.0


def others(**changes: Any) -> tuple[Member, ...]:
    """The other members; the changes are to the first of them."""
    return (member(OTHERS[0], **changes), *(member(device) for device in OTHERS[1:]))


def with_others(gateway: Gateway, **changes: Any) -> Roster:
    """The roster, one other member's entry changed."""
    return gateway.roster(members=(gateway.own_entry(), *others(**changes)))


def foreign_certificate(device: str, site: str = "plant-1", issued: float = NOW) -> bytes:
    """A certificate for this device from an authority that is not the site's."""
    root_key, online_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = make_root(root_key, site, now=issued, serial=2**64)
    online = make_intermediate(Issuer(root, root_key), online_key.public_key(), site, now=issued, serial=2**64 + 1)
    return leaf(Issuer(online, online_key), device, issued)


def leaf(issuer: Issuer, holder: str, issued: float, role: CertificateRole = CertificateRole.DEVICE) -> bytes:
    """A signing certificate for this node."""
    made = make_leaf(
        issuer,
        SITE.node(holder).signer.public_key,
        holder=holder,
        role=role,
        site="plant-1",
        purpose=Purpose.SIGNING,
        now=issued,
        serial=2**64 + 2,
    )
    return der(made)


def wants_training(effects: list[Effect]) -> bool:
    return any(isinstance(e, Train) for e in effects)


AT_ONCE: dict[str, tuple[Callable[[Gateway], Roster], str]] = {
    "other model": (lambda g: g.roster(model="9" * 64), "found model "),
    "other version": (lambda g: g.roster(model_version=5), "found model_version 5"),
    "other plan": (lambda g: g.roster(plan="9" * 64), "found plan "),
    "other beacon than the round's": (lambda g: g.roster(beacon=b"x" * 32), "found beacon "),
    "other deadline": (lambda g: g.roster(deadline_s=1.0), "found deadline_s 1.0"),
    "other group": (lambda g: g.roster(gid=1), "found group 1, expected group 0"),
    "own key changed": (
        lambda g: g.roster(members=(g.own_entry(epk=b"x" * 32), *others())),
        "for this device, expected " + key_of(ME, 0).public.hex()[:16],
    ),
}
"""What does not even fit the round's state or the device's own check-in."""

BY_PLAN: dict[str, tuple[Callable[[Gateway], Roster], str]] = {
    "too few members": (
        lambda g: g.roster(members=(g.own_entry(), *(member(d) for d in OTHERS[:3]))),
        "found 4 members, expected 5 to 8",
    ),
    "too many members": (
        lambda g: g.roster(members=(g.own_entry(), *others(), member("gw-08"))),
        "found 9 members, expected 5 to 8",
    ),
    "weight of nothing": (
        lambda g: with_others(g, weight=0),
        f"found weight 0 of {OTHERS[0]}, expected 1 to 8",
    ),
    "weight above the plan's": (
        lambda g: with_others(g, weight=9),
        f"found weight 9 of {OTHERS[0]}, expected 1 to 8",
    ),
    "own weight above the plan's": (
        lambda g: g.roster(members=(g.own_entry(weight=9), *others())),
        f"found weight 9 of {ME}",
    ),
    "a key twice": (
        lambda g: with_others(g, epk=key_of(OTHERS[1]).public),
        "found one key for two of them",
    ),
    "own key for another, too": (
        lambda g: with_others(g, epk=g.own_entry().epk),
        "found one key for two of them",
    ),
    "key exchanged by the aggregator": (
        lambda g: with_others(g, epk=key_of("mallory").public),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "offer forged": (
        lambda g: with_others(g, offer=bytes(64)),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "offer of another's": (
        lambda g: with_others(g, offer=member(OTHERS[1]).offer),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "offer of another check-in": (
        lambda g: with_others(g, seq=7),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "offer of another task": (
        lambda g: with_others(g, task="sensor"),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "offer of a helper": (
        lambda g: with_others(g, role="unmask"),
        f"found a key for {OTHERS[0]} that it did not sign",
    ),
    "own offer forged": (
        lambda g: g.roster(members=(g.own_entry(offer=bytes(64)), *others())),
        f"found a key for {ME} that it did not sign",
    ),
    "another's certificate": (
        lambda g: with_others(g, certificate=SITE.node(OTHERS[1]).certificate),
        f"found that of '{OTHERS[1]}', expected '{OTHERS[0]}'",
    ),
    "the aggregator as member": (
        lambda g: g.roster(members=(member("aggregator"), g.own_entry(), *others())[:8]),
        "found role aggregator, expected device",
    ),
    "certificate of a stranger": (
        lambda g: with_others(g, certificate=foreign_certificate(OTHERS[0])),
        OTHERS[0],
    ),
    "certificate that has ended": (
        lambda g: with_others(g, certificate=leaf(SITE._issuer, OTHERS[0], NOW - 30 * DAY_S)),
        "ended",
    ),
    "certificate of nonsense": (lambda g: with_others(g, certificate=b"nonsense"), "certificate: found"),
    "helpers that the plan knows nothing of": (
        lambda g: g.roster(committee=(member("opener-1", weight=0, role="unmask"),)),
        "found a committee of 1, expected none beside the members",
    ),
}
"""What the round's state says, too, but not what the site's keys signed."""


@pytest.mark.parametrize("case", AT_ONCE)
def test_a_roster_that_does_not_fit_is_refused_and_the_right_one_waited_for(case: str) -> None:
    gateway = Gateway()
    gateway.to_collecting()
    make, found = AT_ONCE[case]
    effects = gateway.handle(RosterReceived(make(gateway)))
    assert answer_of(effects) == "rejected"
    assert found in notes(effects)
    assert gateway.machine.state is ParticipantState.CHECKED_IN
    assert wants_training(gateway.handle(RosterReceived(gateway.roster())))


@pytest.mark.parametrize("case", BY_PLAN)
def test_a_roster_against_the_signed_plan_is_sat_out(case: str) -> None:
    gateway = Gateway()
    gateway.to_collecting()
    make, found = BY_PLAN[case]
    effects = gateway.handle(RosterReceived(make(gateway)))
    assert not wants_training(effects)
    assert "sits out" in notes(effects)
    assert found in notes(effects)
    assert gateway.machine.state is ParticipantState.CHECKED_IN
    assert answer_of(gateway.handle(RosterReceived(gateway.roster()))) == "discarded", "one roster an attempt"
    assert not any(key.startswith(f"committee/{TASK}/seat") for key in gateway.disk), "no seat beside such people"
    (again,) = checkins(gateway.open(Phase.CHECKIN, 1, 2))
    assert again.epk != key_of(ME, 0).public, "the next attempt has a key of its own"


def test_a_certificate_that_ends_while_a_device_sleeps_counts_no_more() -> None:
    gateway = Gateway()
    gateway.to_collecting()
    roster = gateway.roster()
    effects = gateway.handle(RosterReceived(roster), after_s=10 * DAY_S)
    assert not wants_training(effects)
    assert "ended" in notes(effects)


# -- the beacon -------------------------------------------------------------------------------------------------------


def test_a_beacon_that_the_aggregator_chose_is_not_believed() -> None:
    gateway = Gateway()
    gateway.to_checked_in()
    gateway.open(Phase.COLLECT, beacon=b"x" * 32)
    effects = gateway.handle(RosterReceived(gateway.roster(beacon=b"x" * 32)))
    assert not wants_training(effects)
    assert "the aggregator opened another value" in notes(effects)


def test_an_older_epochs_beacon_is_not_believed() -> None:
    """The value of an epoch that is over is known to everybody: groups could be chosen by waiting."""
    gateway = Gateway()
    gateway.ready()
    older = CHAIN.value(1)
    gateway.open(Phase.CHECKIN, 11)
    gateway.open(Phase.COLLECT, 11, beacon=older)
    effects = gateway.handle(RosterReceived(gateway.roster(11, beacon=older)))
    assert not wants_training(effects)
    assert "beacon of epoch 2: found a value" in notes(effects)


def test_without_an_anchor_of_the_offline_keys_no_beacon_is_believed() -> None:
    gateway = Gateway()
    gateway.ready(anchor=None)
    gateway.open(Phase.CHECKIN)
    gateway.open(Phase.COLLECT)
    effects = gateway.handle(RosterReceived(gateway.roster()))
    assert not wants_training(effects)
    assert "found no anchor of the beacon in the release metadata" in notes(effects)


# -- groups and committees --------------------------------------------------------------------------------------------

SEVEN = plan_of(groups={"groups": 7})


def own_group(device: str = ME) -> int:
    return group_of(CHAIN.value(1), TASK, device, 7)


def neighbours(inside: bool) -> list[str]:
    """Devices of the own group, or of the other ones."""
    return [d for d in (f"gw-{i:02}" for i in range(1, 100)) if (own_group(d) == own_group()) is inside]


@pytest.mark.parametrize("stranger", [False, True])
def test_a_member_whom_the_beacon_puts_elsewhere_is_not_sat_beside(stranger: bool) -> None:
    gateway = Gateway(plan=SEVEN)
    gateway.to_checked_in()
    gateway.open(Phase.COLLECT, groups=7)
    names = sorted([*neighbours(inside=True)[:5], *neighbours(inside=False)[:stranger]])
    roster = gateway.roster(gid=own_group(), members=(gateway.own_entry(), *(member(d) for d in names)))
    effects = gateway.handle(RosterReceived(roster))
    assert wants_training(effects) is not stranger
    if stranger:
        assert f"found {neighbours(inside=False)[0]} in it, expected it in group" in notes(effects)


def test_fewer_groups_than_the_plan_says_are_not_believed() -> None:
    """An aggregator that announces one group could choose among all devices whom to put beside whom."""
    gateway = Gateway(plan=SEVEN)
    gateway.to_checked_in()
    gateway.open(Phase.COLLECT, groups=1)
    effects = gateway.handle(RosterReceived(gateway.roster()))
    assert not wants_training(effects)
    assert "where the beacon puts it" in notes(effects)


def test_a_smaller_group_has_a_committee_as_long_as_one_is_safe() -> None:
    gateway = Gateway()
    gateway.to_collecting()
    roster = gateway.roster(members=(gateway.own_entry(), *(member(d) for d in OTHERS[:4])))
    assert wants_training(gateway.handle(RosterReceived(roster))), "5 members, of whom 3 may be corrupt"


HELPED = plan_of(groups={"committee": "helpers", "committee_size": 4, "votes_min": 3, "threshold": 3, "corrupt_max": 1})


def helpers(count: int, certified: CertificateRole = CertificateRole.COMMITTEE, **changes: Any) -> tuple[Member, ...]:
    """Helpers as a roster lists them."""
    names = [f"opener-{i}" for i in range(count)]
    values: dict[str, Any] = {"weight": 0, "role": "unmask"} | changes
    return tuple(member(n, certificate=leaf(SITE._issuer, n, NOW - DAY_S, certified), **values) for n in names)


@pytest.mark.parametrize(
    ("committee", "found"),
    [
        (lambda: helpers(4), ""),
        (lambda: helpers(2), ""),
        (lambda: helpers(1), "found a committee of 1, expected 2 to 4 members"),
        (lambda: helpers(5), "found a committee of 5, expected 2 to 4 members"),
        (tuple, "found a committee of 0, expected helpers"),
        (lambda: helpers(4, weight=1), "found a helper with a weight"),
        (lambda: helpers(4, role="contribute"), "found a key for opener-0 that it did not sign"),
        (lambda: helpers(4, CertificateRole.DEVICE), "found role device, expected committee"),
        (lambda: (member(OTHERS[0], weight=0, role="unmask", number=2), *helpers(2)), "as member and as helper"),
    ],
    ids=["all", "fewer", "too few", "too many", "none", "weight", "offer", "device", "member"],
)
def test_helpers_are_those_that_the_plan_allows(committee: Callable[[], tuple[Member, ...]], found: str) -> None:
    gateway = Gateway(plan=HELPED)
    gateway.to_collecting()
    effects = gateway.handle(RosterReceived(gateway.roster(committee=committee())))
    assert wants_training(effects) is not bool(found)
    assert found in notes(effects)
    assert not any(key.startswith(f"committee/{TASK}/seat") for key in gateway.disk), "the helpers sit there"


# -- plans ------------------------------------------------------------------------------------------------------------

UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "sums of four": ({"groups": {"survivors_min": 4}}, "found survivors_min 4, expected at least 5"),
    "votes for two sets": ({"groups": {"votes_min": 5, "threshold": 4}}, "two survivor sets could be opened"),
    "corrupt members open it": ({"groups": {"threshold": 3}}, "found threshold 3 with 3 corrupt"),
    "nobody to open it": ({"groups": {"committee": "none"}}, "found masking without a committee"),
    "a committee of some": ({"groups": {"committee_size": 7}}, "found an inline committee of 7"),
    "quorum below a group": ({"groups": {"quorum": 1}}, "found quorum 1"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_an_unsafe_plan_is_never_trained_under(case: str) -> None:
    changes, found = UNSAFE[case]
    gateway = Gateway(plan=plan_of(**changes), plain_allowed=True)
    effects = gateway.handle(release_of(gateway.plan))
    assert answer_of(effects) == "rejected"
    assert found in notes(effects)
    assert gateway.machine.state is ParticipantState.UNFIT
    gateway.handle(ExamplesAvailable(500))
    assert not checkins(gateway.open(Phase.CHECKIN))


def test_a_plan_without_masking_is_refused_unless_the_operator_allows_it() -> None:
    plain = plan_of(masked=False)
    careful, careless = Gateway(plan=plain), Gateway(plan=plain, plain_allowed=True)
    assert "found a plan without masking" in notes(careful.handle(release_of(plain)))
    assert careful.machine.state is ParticipantState.UNFIT
    careful.handle(ExamplesAvailable(500))
    assert not checkins(careful.open(Phase.CHECKIN))

    upload = careless.to_uploaded()
    assert careless.machine.state is ParticipantState.UPLOADED
    assert upload in uploads(careless.effects)
    assert not any(key.startswith(f"committee/{TASK}/seat") for key in careless.disk), "there is nothing to open"


def test_a_device_takes_part_again_once_the_plan_is_one_that_it_accepts() -> None:
    gateway = Gateway()
    gateway.handle(release_of(plan_of(masked=False)))
    assert gateway.machine.state is ParticipantState.UNFIT
    gateway.to_training()


def test_an_allowance_for_plain_updates_does_not_weaken_masked_rosters() -> None:
    gateway = Gateway(plain_allowed=True)
    gateway.to_collecting()
    effects = gateway.handle(RosterReceived(with_others(gateway, offer=bytes(64))))
    assert not wants_training(effects)


# -- how often --------------------------------------------------------------------------------------------------------


def test_a_device_takes_part_as_often_as_the_plan_promises_and_counts_for_itself() -> None:
    gateway = Gateway(plan=SCARCE)
    for number in (1, 2):
        gateway.to_uploaded(number)
        gateway.restart()
    gateway.ready()
    assert not checkins(gateway.open(Phase.DONE, 2)), "round 3 is of the same period"
    assert not checkins(gateway.open(Phase.CHECKIN, 3))
    assert len(checkins(gateway.open(Phase.DONE, 3))) == 1, "round 4 begins a new one"
    gateway.to_training(4)


def test_two_attempts_of_one_round_count_twice() -> None:
    gateway = Gateway(plan=SCARCE)
    gateway.to_uploaded(1, 1)
    gateway.to_uploaded(1, 2)
    assert gateway.record.spent == ((1, 1, 2),)
    assert not checkins(gateway.open(Phase.CHECKIN, 1, 3))


def scarce(period_rounds: int, participations_max: int = 2) -> Plan:
    return plan_of(privacy=PrivacyPlan(participations_max=participations_max, period_rounds=period_rounds))


def test_a_plan_with_other_periods_forgets_nothing_of_its_own_period() -> None:
    """Periods of one round, whatever was given in them, lie within one of a thousand, too."""
    gateway = Gateway(plan=scarce(1000))
    gateway.to_uploaded(1)
    gateway.plan = scarce(1)
    gateway.to_uploaded(2)
    gateway.plan = scarce(1000)
    gateway.restart()
    gateway.ready()
    assert not checkins(gateway.open(Phase.CHECKIN, 3)), "two of two"
    assert gateway.record.spent == ((1, 1, 1), (2, 2, 1))


@pytest.mark.parametrize("length", [1, 7, 1000, 1_000_000])
def test_under_one_plan_the_count_is_exact_however_long_it_is(length: int) -> None:
    plan, record, given = scarce(length), ParticipantRecord(), list[int]()
    for number in range(1, 3001, 2):
        for _ in range(1 + number % 3):
            record = replace(record, spent=record.spent_after(plan, number))
            given.append(number)
        period = (number - 1) // length
        assert record.count(plan, number) == sum((n - 1) // length == period for n in given)
        assert len(record.spent) <= SPENT_MAX
    assert sum(count for _, _, count in record.spent) == len(given)
    assert ParticipantRecord.from_bytes(record.to_bytes(), "here") == record


def test_under_plans_that_change_the_count_is_never_less_than_what_was_given() -> None:
    rng = random.Random(7)
    record, given, number = ParticipantRecord(), list[int](), 1
    for _ in range(3000):
        number += rng.choice([0, 1, 1, 5])
        length = rng.choice([1, 2, 3, 10, 999, 1000, 5000, 1_000_000])
        plan = scarce(length)
        record = replace(record, spent=record.spent_after(plan, number))
        given.append(number)
        period = (number - 1) // length
        assert record.count(plan, number) >= sum((n - 1) // length == period for n in given)
        assert len(record.spent) <= SPENT_MAX
        assert record.is_exhausted(scarce(1_000_000, len(given)), number)


@pytest.mark.parametrize("spent", [(0, 2), ((1, 1),), ((3, 2, 1),), ((1, 1, 0),), ((1, 1, 1.5),), None, 7], ids=str)
def test_a_count_of_another_form_is_not_read(spent: Any) -> None:
    """Of the first form, too: which rounds it counted can no longer be said."""
    damaged = replace(ParticipantRecord(), spent=spent)
    with pytest.raises(ConfigError, match="stored here: found .* expected format 2"):
        ParticipantRecord.from_bytes(damaged.to_bytes(), "here")
    with pytest.raises(ConfigError, match="stored here: found .* expected format 2"):
        StoredUpload.from_bytes(StoredUpload((1, 1), "up", b"", spent).to_bytes(), "here")
    first = msgpack.unpackb(ParticipantRecord().to_bytes()) | {"format": 1, "spent": (0, 2)}
    with pytest.raises(ConfigError, match="found another format"):
        ParticipantRecord.from_bytes(msgpack.packb(first), "here")


def test_a_roster_does_not_make_a_device_pass_its_promise() -> None:
    """A key that was offered before the promise changed is of no use to the aggregator, either."""
    gateway = Gateway()
    gateway.to_uploaded(1)
    gateway.open(Phase.CHECKIN, 2)
    once = plan_of(privacy=SCARCE.privacy.model_copy(update={"participations_max": 1}))
    gateway.handle(release_of(once))
    gateway.open(Phase.COLLECT, 2, plan=plan_bytes(once)[1])
    effects = gateway.handle(RosterReceived(gateway.roster(2, plan=plan_bytes(once)[1])))
    assert not wants_training(effects)
    assert "participations used up" in notes(effects)


def test_a_device_whose_own_budget_is_spent_stays_away_and_says_nothing() -> None:
    asked: list[tuple[float, int]] = []
    answer = "quiet hours"

    def may_join(now: float, number: int) -> str:
        asked.append((now, number))
        return answer

    gateway = Gateway(may_join=may_join)
    gateway.ready()
    assert not checkins(gateway.open(Phase.CHECKIN, 3))
    assert asked[-1] == (gateway.now, 3)
    assert gateway.keys == []
    answer = ""
    assert len(checkins(gateway.open(Phase.CHECKIN, 3))) == 1
    assert checkins(gateway.effects)[-1].feature_schema == FEATURE_SCHEMA
