"""Every invariant is broken here on purpose: an observer who overlooks a fault proves nothing.

Each test takes a rule out of an honest machine, and expects the observer to name what comes of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from broken_rules import LONG_S, Patch, private_fleet, sees, two_faced
from fleet_simulator import secrecy
from fleet_simulator.accounts import Accounts
from fleet_simulator.liars import LyingAggregator
from fleet_simulator.network import Weather
from fleet_simulator.oracle import WrongAggregateError
from fleet_simulator.secrecy import Adversary
from fleet_simulator.simulation import Fleet

from vedette_aggregator import aggregation, round_memory
from vedette_aggregator.round_book import RoundBook
from vedette_core.learning import round_vector
from vedette_core.learning.encoding import encode
from vedette_core.learning.update_vector import decode_group_mean
from vedette_core.machine import Effect, Persist
from vedette_core.privacy.events import FoldedHistory
from vedette_core.privacy.ledger import Ledger
from vedette_core.secagg import committee, parameters
from vedette_core.secagg.aggregator import Unmasking
from vedette_core.secagg.committee import CommitteeMember
from vedette_core.secagg.secrets import others
from vedette_device import participant_machine
from vedette_device.participant_state import ParticipantRecord
from vedette_schemas.round import transcript_hash
from vedette_schemas.secagg import DeviceShares

# -- sums -------------------------------------------------------------------------------------------------------------


def test_a_sum_that_is_off(monkeypatch: Patch) -> None:
    honest = Unmasking.unmask

    def unmask(self: Unmasking, total: np.ndarray) -> None:
        honest(self, total)
        total[7] += 1

    monkeypatch.setattr(Unmasking, "unmask", unmask)
    story = Fleet(seed=3)
    story.start()
    with pytest.raises(WrongAggregateError, match="1 elements of the sum"):
        story.run(LONG_S)


def test_a_mean_that_is_off(monkeypatch: Patch) -> None:
    honest = decode_group_mean
    monkeypatch.setattr(aggregation, "decode_group_mean", lambda total, encoding: honest(total, encoding) * 1.01)
    story = Fleet(seed=3)
    story.start()
    with pytest.raises(WrongAggregateError, match="off by"):
        story.run(LONG_S)


def test_an_update_that_its_device_did_not_make(monkeypatch: Patch) -> None:
    """Encoded, masked, summed and decoded without a fault: only the true deltas tell that it is another one."""
    honest = encode
    monkeypatch.setattr(round_vector, "encode", lambda delta, *rest, **more: honest(delta * 1.5, *rest, **more))
    story = Fleet(seed=3)
    story.start()
    with pytest.raises(WrongAggregateError, match="off the plain mean"):
        story.run(LONG_S)


def test_an_upload_that_is_left_out(monkeypatch: Patch) -> None:
    honest = RoundBook.survivors_of
    monkeypatch.setattr(RoundBook, "survivors_of", lambda self, gid: honest(self, gid)[1:])
    sees("accepted, but not in the sum", Fleet(seed=3, devices=7))


def test_noise_that_is_not_there(monkeypatch: Patch) -> None:
    monkeypatch.setattr(aggregation, "add_noise", lambda sums, sigma, entropy: sums)
    story = private_fleet()
    story.start()
    with pytest.raises(WrongAggregateError, match="standard deviations"):
        story.run(LONG_S)


# -- once -------------------------------------------------------------------------------------------------------------


def test_a_second_upload(monkeypatch: Patch) -> None:
    """A participant that forgets, at a restart, which attempt it has used."""
    monkeypatch.setattr(participant_machine, "upload_key", lambda task: f"forgotten/{task}")
    monkeypatch.setattr(ParticipantRecord, "with_used", lambda self, place, spent: self)
    story = Fleet(seed=3)
    for gateway in story.gateways.values():
        gateway.training_s = 10.0 if gateway.name == "gw-00" else 250.0
    story.scheduler.after(90.0, story.gateways["gw-00"].crash)
    story.observer.disks.check = lambda processes, corrupt: None
    monkeypatch.setattr(Accounts, "upload", lambda *_: None)
    sees("two different uploads", story, 300.0)


def test_a_key_that_is_used_twice(monkeypatch: Patch) -> None:
    monkeypatch.setattr(RoundBook, "mark_used", lambda self, out: None)
    story = Fleet(seed=3)
    for gateway in list(story.gateways.values())[1:]:
        gateway.training_s = 1e6
    story.gateways["gw-00"].link.cut(1e6)
    story.broker.weather.loss = 0.5
    sees("its key is in rosters of", story)


def test_a_second_vote(monkeypatch: Patch) -> None:
    honest = CommitteeMember._find

    def forgets(self: CommitteeMember, body: Any) -> Any:
        seat = honest(self, body)
        return None if seat is None else replace(seat, survivors=b"", vote=b"")

    monkeypatch.setattr(CommitteeMember, "_find", forgets)
    sees("voted twice", two_faced())


def test_second_shares(monkeypatch: Patch) -> None:
    """A member that keeps its key and forgets that it spoke: the same shares, but of those it cares to give."""
    honest_find, honest_release = CommitteeMember._find, CommitteeMember._release
    given = [0]

    def keeps(self: CommitteeMember, seat: Any, out: list[Effect]) -> None:
        kept = replace(seat, key=seat.key or self._seats[seat.roster.gid].key)
        if seat.shares:
            kept = replace(kept, boxes=self._seats[seat.roster.gid].boxes)
        self._seats[seat.roster.gid] = kept
        out.append(Persist(self._seat_key(seat.roster.gid), replace(kept, key=None).to_bytes()))

    def find(self: CommitteeMember, body: Any) -> Any:
        seat = honest_find(self, body)
        return seat if seat is None else replace(seat, shares=b"")

    def release(self: CommitteeMember, seat: Any) -> Any:
        given[0] += 1
        return honest_release(self, seat)[given[0] % 2 :]

    monkeypatch.setattr(CommitteeMember, "_put", keeps)
    monkeypatch.setattr(CommitteeMember, "_find", find)
    monkeypatch.setattr(CommitteeMember, "_release", release)
    # Shares that take their time are asked for again.
    sees("released shares twice", Fleet(seed=3, weather=Weather(jitter_s=30.0)))


# -- secrets ----------------------------------------------------------------------------------------------------------


def _gives_everything(self: CommitteeMember, seat: Any) -> tuple[DeviceShares, ...]:
    rows = []
    for device, box in seat.boxes:
        own, *pairs = self._shares_in(seat, device, box, transcript_hash(seat.roster)) or [b""]
        rows.append(DeviceShares(device=device, own=own, pairs=tuple(pairs)))
    return tuple(rows)


def test_both_secrets_of_a_device(monkeypatch: Patch) -> None:
    monkeypatch.setattr(CommitteeMember, "_release", _gives_everything)
    sees("both secrets")


def test_both_secrets_do_open_a_vector(monkeypatch: Patch) -> None:
    """What the adversary counts as open is open: with these shares and nothing else it reads a single update."""
    monkeypatch.setattr(CommitteeMember, "_release", _gives_everything)
    heard: list[str] = []
    monkeypatch.setattr(Adversary, "complain", lambda self, text: heard.append(text))
    story = Fleet(seed=3)
    story.start()
    story.run(120.0)
    adversary = story.observer.adversary
    (transcript, group), *_ = adversary.groups.items()
    assert set(adversary.open_parts(group)) == {frozenset({d}) for d in group.members}
    for device in group.members:
        found = adversary.open_vector(transcript, device)
        assert np.array_equal(found, story.observer.plain(device, (1, 1)))
    assert any("lies open, which is no survivor set" in text for text in heard)


def test_honest_members_open_the_sum_and_no_vector() -> None:
    story = Fleet(seed=3, devices=7)
    story.gateways["gw-02"].training_s = 1e6
    story.start()
    story.run(500.0)
    adversary = story.observer.adversary
    (transcript, group), *_ = adversary.groups.items()
    alive = frozenset(group.members) - {"gw-02"}
    assert adversary.open_parts(group) == [alive]
    assert all(adversary.knows(group, device) for device in alive)
    assert all(adversary.knows(group, device, "gw-02") for device in alive)
    assert not any(adversary.knows(group, a, b) for a in alive for b in others(group.roster, a) if b != "gw-02")
    for device in alive:
        with pytest.raises(KeyError):
            adversary.open_vector(transcript, device)


def test_shares_of_who_dropped_out_for_those_of_who_did_not(monkeypatch: Patch) -> None:
    """As many shares as asked for, of the wrong pairs: their number alone would not tell."""
    honest = CommitteeMember._release

    def turned(self: CommitteeMember, seat: Any) -> tuple[DeviceShares, ...]:
        rows = []
        for row, (device, box) in zip(honest(self, seat), seat.boxes, strict=True):
            shares = self._shares_in(seat, device, box, transcript_hash(seat.roster)) or []
            rows.append(row.model_copy(update={"pairs": tuple(shares[1 : 1 + len(row.pairs)])}))
        return tuple(rows)

    monkeypatch.setattr(CommitteeMember, "_release", turned)
    story = Fleet(seed=3, devices=7)
    story.gateways["gw-06"].training_s = 1e6
    sees("both secrets", story)


def test_shares_for_too_few_votes(monkeypatch: Patch) -> None:
    monkeypatch.setattr(CommitteeMember, "_check_votes", lambda self, body, seat, now: None)
    sees("shares on [0-9]+ honest votes", two_faced())


def test_a_vote_for_too_few_survivors(monkeypatch: Patch) -> None:
    honest = CommitteeMember._find

    def lenient(self: CommitteeMember, body: Any) -> Any:
        seat = honest(self, body)
        if seat is None:
            return None
        groups = seat.plan.groups.model_copy(update={"survivors_min": 1})
        return replace(seat, plan=seat.plan.model_copy(update={"groups": groups}))

    monkeypatch.setattr(CommitteeMember, "_find", lenient)
    sees("expected 5 survivors", two_faced())


def test_two_certificates(monkeypatch: Patch) -> None:
    """A quorum of less than half of the committee: two parts of it can each have their own set."""
    for module in (parameters, committee, secrecy):
        monkeypatch.setattr(module, "votes_needed", lambda groups, listed: 3)
    sees("two survivor sets can be certified", two_faced())


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_a_release_that_is_not_in_the_ledger(monkeypatch: Patch) -> None:
    honest = round_memory.RoundMemory.keep

    def forgets(self: Any, *rest: Any) -> list[Effect]:
        return [e for e in honest(self, *rest) if not (isinstance(e, Persist) and "/event/" in e.key)]

    monkeypatch.setattr(round_memory.RoundMemory, "keep", forgets)
    sees("not in the ledger")


def test_a_history_that_forgets(monkeypatch: Patch) -> None:
    honest = FoldedHistory.with_events
    monkeypatch.setattr(
        FoldedHistory, "with_events", lambda self, events, through: replace(honest(self, events, through), devices={})
    )
    monkeypatch.setattr(ParticipantRecord, "is_exhausted", lambda self, plan, number: False)
    sees("in the ledger", private_fleet(period_rounds=1))


def test_a_device_that_miscounts(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ParticipantRecord, "spent_after", lambda self, plan, number: ((number, number, 1),))
    sees("gave 2 updates in period 0, and counts 1", private_fleet())


def test_a_device_that_gives_too_often(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ParticipantRecord, "is_exhausted", lambda self, plan, number: False)
    monkeypatch.setattr(Ledger, "eligible", lambda self, devices, number, z: tuple(devices))
    monkeypatch.setattr(Ledger, "check", lambda self, event: None)
    sees("gave 3 updates in period 0, expected 2 at most", private_fleet())


def test_releases_that_are_too_many_for_a_device(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ParticipantRecord, "is_exhausted", lambda self, plan, number: False)
    monkeypatch.setattr(Ledger, "eligible", lambda self, devices, number, z: tuple(devices))
    monkeypatch.setattr(Ledger, "check", lambda self, event: None)
    monkeypatch.setattr(Accounts, "upload", lambda *_: None)
    sees("released of one period", private_fleet())


def test_a_lying_aggregator_lies() -> None:
    story = two_faced()
    story.start()
    story.run(2_000.0)
    assert isinstance(story.aggregator, LyingAggregator)
    assert {"another set", "mixed votes", "replay"} <= story.told.keys()
    assert all(transcript_hash(g.roster) == t for t, g in story.observer.adversary.groups.items())
    assert committee.SEVERITY < 50, "what committees say gives way to alerts"
