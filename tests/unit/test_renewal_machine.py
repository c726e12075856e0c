"""A node's way to newer certificates, without a clock, a disk or a broker."""

from __future__ import annotations

from typing import Any

import pytest

from vedette_core.machine import Count, Effect, Event, Note, Publish, Tick
from vedette_device.renewal_machine import (
    RETRY_MAX_S,
    RETRY_MIN_S,
    SPREAD,
    Answered,
    Install,
    MakeRequest,
    RenewalFailed,
    RenewalMachine,
    Renewed,
    RequestMade,
)
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.topics import Topics

TOPICS = Topics("lab")
BEGIN, END = 1_000_000.0, 1_604_800.0
LIFE = END - BEGIN
REQUEST = "0" * 32


def machine(node: str = "gw-01") -> RenewalMachine:
    return RenewalMachine(TOPICS, node, BEGIN, END)


def due(found: RenewalMachine) -> float:
    deadline = found.next_deadline()
    assert deadline is not None
    return deadline


def answer(outcome: Any, request: str = REQUEST) -> Answered:
    return Answered(CertificateReply(request=request, outcome=outcome, reason="because"))


def counted(effects: list[Effect]) -> list[str]:
    return [e.outcome for e in effects if isinstance(e, Count)]


def asked() -> RenewalMachine:
    found = machine()
    assert found.handle(Tick(), due(found)) == [MakeRequest()]
    effects = found.handle(RequestMade(REQUEST, b"sealed"), due(found))
    assert effects[0] == Publish(TOPICS.renewal_request("gw-01"), b"sealed")
    return found


def test_it_asks_at_half_of_the_life_spread_over_the_fleet() -> None:
    shares = [(due(machine(f"gw-{i}")) - BEGIN) / LIFE for i in range(300)]
    assert all(0.5 - SPREAD / 2 <= share <= 0.5 + SPREAD / 2 for share in shares)
    assert max(shares) - min(shares) > 0.8 * SPREAD, "they do not come all at once"
    assert due(machine()) == due(machine()), "and it is the same after a restart"
    assert machine().handle(Tick(), due(machine()) - 1) == []


def test_without_an_answer_it_asks_again_ever_more_rarely() -> None:
    found = asked()
    waits, now = [], due(found)
    for _ in range(12):
        assert found.handle(Tick(), now) == [MakeRequest()]
        waits.append(due(found) - now)
        now = due(found)
    assert waits[0] == 2 * RETRY_MIN_S
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MAX_S


def test_an_answer_is_installed_once_and_the_next_half_begins() -> None:
    found = asked()
    reply = answer("issued")
    assert found.handle(reply, BEGIN) == [Install(reply.body)]
    assert counted(found.handle(reply, BEGIN)) == ["discarded"], "the same answer again"
    assert counted(found.handle(Renewed(END, END + LIFE), BEGIN)) == ["renewed"]
    assert END < due(found) < END + LIFE


def test_a_false_answer_does_not_take_the_place_of_the_true_one() -> None:
    found, reply = asked(), answer("issued")
    for _ in range(2):
        assert found.handle(reply, BEGIN) == [Install(reply.body)]
        assert counted(found.handle(RenewalFailed("a certificate of another key"), BEGIN)) == ["failed"]
    assert found.handle(reply, BEGIN) == [Install(reply.body)]
    assert counted(found.handle(Renewed(END, END + LIFE), BEGIN)) == ["renewed"]
    assert counted(found.handle(reply, BEGIN)) == ["discarded"]


@pytest.mark.parametrize("reply", [answer("issued", "1" * 32), answer("refused", "1" * 32)])
def test_an_answer_to_another_request_is_nothing(reply: Answered) -> None:
    found = asked()
    before = due(found)
    assert counted(found.handle(reply, BEGIN)) == ["discarded"]
    assert due(found) == before
    assert counted(machine().handle(reply, BEGIN)) == ["discarded"], "nor one to no request at all"


def test_a_refusal_is_told_and_not_final() -> None:
    found, now = asked(), BEGIN + LIFE / 2
    effects = found.handle(answer("refused"), now)
    assert [e.level for e in effects if isinstance(e, Note)] == ["error"]
    assert due(found) == now + RETRY_MAX_S
    assert found.handle(Tick(), due(found)) == [MakeRequest()]


@pytest.mark.parametrize(
    ("event", "outcome"), [(answer("later"), "deferred"), (RenewalFailed("a full disk"), "failed")]
)
def test_what_went_wrong_is_tried_again_in_its_time(event: Event, outcome: str) -> None:
    found = asked()
    before = due(found)
    assert counted(found.handle(event, BEGIN)) == [outcome]
    assert due(found) == before
    assert found.handle(Tick(), before) == [MakeRequest()]


def test_past_its_end_there_is_nothing_to_ask_with() -> None:
    found = machine()
    effects = found.handle(Tick(), END + 1)
    assert counted(effects) == ["expired"]
    assert "new token" in "".join(e.text for e in effects if isinstance(e, Note))
    assert due(found) == END + 1 + RETRY_MAX_S
    assert counted(found.handle(Renewed(END, END + LIFE), END + 2)) == ["renewed"], "somebody brought a bundle"


def test_what_it_does_not_know_is_a_fault_of_the_programmer() -> None:
    with pytest.raises(AssertionError):
        machine().handle(Event(), BEGIN)
