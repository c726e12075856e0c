"""What committees answer, where it does not count: late, doubled, of others, for other sets, or wrong."""

from __future__ import annotations

from typing import Any

import pytest
from round_effects import notes, one, outcome, receipts
from round_fleet import (
    SIX,
    Answer,
    Fleet,
    fleet_of,
    masked_stage_in,
    questions,
    recording,
    resealed,
)

from vedette_aggregator.round_events import PublishCandidate
from vedette_aggregator.round_state import RoundState

S = RoundState
Q = 5
"""Votes and shares that six members need."""


def unmasking() -> tuple[Fleet, list[Answer]]:
    """A fleet that has been asked for its votes, and the votes."""
    fleet, (six,) = fleet_of()
    fleet.collect(six)
    return fleet, list(fleet.answers(fleet.upload_all(six)))


def test_a_vote_and_shares_that_come_again_get_their_receipt_again_and_count_once() -> None:
    fleet, votes = unmasking()
    for _ in range(Q + 1):
        effects = fleet.stage.handle(votes[0])
        assert [r.outcome for r in receipts(effects)] == ["accepted"]
        assert not questions(effects), "one vote, however often it comes"
    for vote in votes[1:]:
        effects = fleet.stage.handle(vote)
    shares = recording().shares[SIX[0]]
    fleet.stage.handle(shares)
    before = dict(fleet.stage.disk)
    for _ in range(Q + 1):
        assert [r.outcome for r in receipts(fleet.stage.handle(shares))] == ["accepted"]
        assert fleet.stage.disk == before
    assert fleet.stage.machine.state is S.UNMASK


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"survivors": b"s" * 32}, "survivors: "),
        ({"transcript": b"t" * 32}, "survivors: "),
        ({"id": "vo-network-1-1-0-gw-99"}, "survivors: "),
        ({"gid": 1}, "group: "),
        ({"member": "gw-99", "id": "vo-network-1-1-0-gw-99"}, "member: "),
    ],
)
def test_a_vote_for_something_else_or_of_somebody_else_is_refused(changes: dict[str, Any], reason: str) -> None:
    fleet, votes = unmasking()
    before = dict(fleet.stage.disk)
    effects = fleet.stage.handle(resealed(votes[0], **changes))
    item = receipts(effects)[0]
    assert (outcome(effects), item.outcome, item.reason[: len(reason)]) == ("rejected", "rejected", reason)
    assert fleet.stage.disk == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"survivors": b"s" * 32}, "survivors: "),
        ({"id": "sh-network-1-1-0-gw-99"}, "survivors: "),
        ({"gid": 1}, "group: "),
        ({"member": "gw-99", "id": "sh-network-1-1-0-gw-99"}, "member: "),
    ],
)
def test_shares_of_something_else_or_of_somebody_else_are_refused(changes: dict[str, Any], reason: str) -> None:
    fleet, votes = unmasking()
    for vote in votes:
        fleet.stage.handle(vote)
    before = dict(fleet.stage.disk)
    effects = fleet.stage.handle(resealed(recording().shares[SIX[0]], **changes))
    item = receipts(effects)[0]
    assert (outcome(effects), item.outcome, item.reason[: len(reason)]) == ("rejected", "rejected", reason)
    assert fleet.stage.disk == before


def test_shares_of_the_wrong_shape_are_refused() -> None:
    fleet, _ = unmasking()
    shares = recording().shares[SIX[0]]
    row = shares.body.shares[0]
    for rows in ((row.model_copy(update={"pairs": (bytes(16),)}),), (row.model_copy(update={"device": "gw-99"}),)):
        item = receipts(fleet.stage.handle(resealed(shares, shares=rows)))[0]
        assert item.reason.startswith("shares: ")


@pytest.mark.parametrize("state", [S.INTERVAL, S.CHECKIN, S.COLLECT, S.RELEASING, S.FINISHED])
def test_late_answers_are_forgotten_with_a_receipt(state: RoundState) -> None:
    stage = masked_stage_in(state)
    before = dict(stage.disk)
    for event in (recording().votes[SIX[0]], recording().shares[SIX[0]]):
        effects = stage.handle(event)
        assert (outcome(effects), [r.outcome for r in receipts(effects)]) == ("discarded", ["accepted"])
    assert stage.disk == before


def test_answers_of_an_earlier_attempt_are_forgotten() -> None:
    fleet, (six,) = fleet_of()
    fleet.silent = set(six[:2])
    fleet.collect(six)
    old = fleet.answers(fleet.upload_all(six))[0]
    fleet.stage.to_deadline()
    fleet.collect(six)
    fleet.upload_all(six)
    assert fleet.stage.machine.state is S.UNMASK
    effects = fleet.stage.handle(old)
    assert (outcome(effects), [r.outcome for r in receipts(effects)]) == ("discarded", ["accepted"])
    assert not [k for k in fleet.stage.disk if "/vote/" in k]


def test_a_member_that_lies_about_its_shares_changes_nothing() -> None:
    fleet, votes = unmasking()
    for vote in votes:
        fleet.stage.handle(vote)
    for member in SIX:
        shares: Answer = recording().shares[member]
        if member == SIX[0]:
            rows = tuple(row.model_copy(update={"own": b"l" * 16}) for row in recording().shares[member].body.shares)
            shares = resealed(shares, shares=rows)
        effects = fleet.stage.handle(shares)
    assert one(effects, PublishCandidate).candidate.contributors == SIX
    assert f"shares of {SIX[0]} contradicted most devices" in notes(effects)
