"""As in `test_what_the_observer_sees`: the invariants of what is written, and before what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from broken_rules import Patch, sees
from fleet_simulator.gateway_process import GatewayProcess
from fleet_simulator.problem import TASK
from fleet_simulator.simulation import Fleet

from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.round_openings import Openings
from vedette_core.machine import Effect, Persist
from vedette_core.secagg.committee import CommitteeMember
from vedette_device.participant_machine import ParticipantMachine
from vedette_device.participant_state import ParticipantRecord


def test_a_receipt_before_its_write(monkeypatch: Patch) -> None:
    honest = RoundMachine.handle

    def writes_last(self: RoundMachine, event: Any, now: float) -> list[Effect]:
        return sorted(honest(self, event, now), key=lambda effect: isinstance(effect, Persist))

    monkeypatch.setattr(RoundMachine, "handle", writes_last)
    sees("ci-.*accepted before it was written down")


def test_a_receipt_for_an_upload_that_is_not_written(monkeypatch: Patch) -> None:
    honest = RoundBook.add_upload
    monkeypatch.setattr(
        RoundBook, "add_upload", lambda self, body, sealed, plan, out: honest(self, body, sealed, plan, [])
    )
    sees("up-.*accepted before it was written down")


def test_a_receipt_for_a_vote_that_is_not_written(monkeypatch: Patch) -> None:
    honest = Openings.take_vote
    monkeypatch.setattr(Openings, "take_vote", lambda self, body, sealed, now, out: honest(self, body, sealed, now, []))
    sees("vo-.*accepted before it was written down")


def test_a_receipt_for_shares_that_are_not_written(monkeypatch: Patch) -> None:
    honest = Openings.take_shares
    monkeypatch.setattr(Openings, "take_shares", lambda self, body, sealed, out: honest(self, body, sealed, []))
    sees("sh-.*accepted before it was written down")


def test_a_message_that_nobody_sends(monkeypatch: Patch) -> None:
    monkeypatch.setattr(GatewayProcess, "send", lambda self, publish: None)
    sees("wait for a receipt, but nobody sends them")


def test_a_key_that_outlives_its_upload(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        ParticipantRecord, "with_used", lambda self, place, spent: replace(self, used=place, spent=spent)
    )
    sees("still has the key of .* after its upload")


def test_a_key_that_outlives_its_shares(monkeypatch: Patch) -> None:
    honest = CommitteeMember._put

    def keeps(self: CommitteeMember, seat: Any, out: list[Effect]) -> None:
        honest(self, replace(seat, key=seat.key or self._seats[seat.roster.gid].key), out)

    monkeypatch.setattr(CommitteeMember, "_put", keeps)
    sees("whose shares it has released")


def test_a_record_whose_key_outlives_the_shares(monkeypatch: Patch) -> None:
    """Its device missed that the collection is over, and is asked to open the sum while it still trains."""
    monkeypatch.setattr(ParticipantMachine, "_give_up_key", lambda self, out: None)
    story = Fleet(seed=3, devices=7)
    slow = story.gateways["gw-00"]  # asked first, so that its vote is one of those that count
    slow.training_s = 1e6
    honest = slow.link.on_message

    def deaf(topic: str, payload: bytes) -> None:
        if topic != story.site.topics.round(TASK) or story.scheduler.now < 100.0:
            honest(topic, payload)

    slow.link.on_message = deaf
    sees("a key in its record whose shares it has released", story)


def test_a_key_of_an_attempt_that_is_over(monkeypatch: Patch) -> None:
    monkeypatch.setattr(CommitteeMember, "_erase", lambda self, place, out: None)
    story = Fleet(seed=3, devices=7)
    for name in ("gw-04", "gw-05", "gw-06"):
        story.gateways[name].training_s = 1e6
    sees("still has the key of .*, which is over", story)


def test_a_key_in_another_place(monkeypatch: Patch) -> None:
    honest = GatewayProcess.new_key

    def backed_up(self: GatewayProcess) -> Any:
        pair = honest(self)
        self.disk.put("backup", b"my key: " + pair.private)
        return pair

    monkeypatch.setattr(GatewayProcess, "new_key", backed_up)
    sees(r"private keys at \['backup'\]")


def test_a_candidate_that_is_another_after_the_crash(monkeypatch: Patch) -> None:
    """Drawn again and handed out again: two releases of one sum, whose mean has less noise."""
    honest = RoundMachine._resume

    def redrawn(self: RoundMachine, *rest: Any) -> list[Effect]:
        effects = honest(self, *rest)
        for at, effect in enumerate(effects):
            if type(effect).__name__ == "PublishCandidate":
                made = effect.candidate  # type: ignore[attr-defined]
                other = replace(made, weights=made.weights + np.float32(0.25))
                effects[at] = replace(effect, candidate=other)  # type: ignore[call-arg]
        return effects

    monkeypatch.setattr(RoundMachine, "_resume", redrawn)
    story = Fleet(seed=3)
    story.aggregator.disk.power_switch = lambda number, key: "before" if key == "registry/1" else None
    sees("another candidate than before the crash", story)
