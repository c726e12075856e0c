"""An alert's end by a person's word, and what alarms of an entity that is learnt."""

from __future__ import annotations

from dataclasses import replace

from test_detection_machine import CALM, ENTITY, EXTREME, alerts, feed, machine, run, states, window

from vedette_core.machine import Persist, Publish
from vedette_device.alert_record import ScoredWindow
from vedette_device.detection_machine import EntityAccepted
from vedette_schemas.alert import AlertState


def learnt_window(step: int, score: float, limit: float) -> ScoredWindow:
    return replace(window(step, EXTREME, score=score), learning_limit=limit)


def test_an_accepted_entity_closes_its_alert_with_a_persons_words() -> None:
    subject = machine()
    run(subject, 0, 8, EXTREME)
    (opened,) = subject.open_entities
    effects = subject.handle(EntityAccepted(opened, "the new printer"), 0.0)

    assert [type(e) for e in effects] == [Persist, Publish, Persist]
    (alert,) = alerts(effects)
    assert alert.state is AlertState.CLOSED
    assert alert.summary == f"{ENTITY}: accepted by a person: the new printer"
    assert effects[-1].value is None  # type: ignore[attr-defined]
    assert subject.open_entities == frozenset()
    assert subject.open_alert(ENTITY) is None


def test_what_an_accepted_entity_does_next_is_another_alert() -> None:
    subject = machine()
    first = alerts(run(subject, 0, 1, EXTREME))[0]
    subject.handle(EntityAccepted(ENTITY), 0.0)
    second = alerts(run(subject, 1, 1, EXTREME))[0]
    assert (second.state, second.seq) == (AlertState.OPEN, 0)
    assert second.id != first.id


def test_an_entity_without_an_alert_is_accepted_without_a_word() -> None:
    subject = machine()
    assert subject.handle(EntityAccepted(ENTITY, "why not"), 0.0) == []
    run(subject, 0, 1, EXTREME)
    run(subject, 1, 6, CALM)
    assert subject.open_entities == frozenset()
    assert subject.handle(EntityAccepted(ENTITY), 0.0) == [], "an alert that has closed already is not closed again"


def test_other_alerts_stay_open_when_one_entity_is_accepted() -> None:
    subject = machine()
    run(subject, 0, 1, EXTREME)
    run(subject, 0, 1, EXTREME, entity="10.0.0.5")
    subject.handle(EntityAccepted(ENTITY), 0.0)
    assert subject.open_entities == {"10.0.0.5"}


def test_a_crash_before_the_accepted_alert_is_forgotten_says_the_same_again() -> None:
    subject = machine()
    run(subject, 0, 4, EXTREME)
    persisted, said, _ = subject.handle(EntityAccepted(ENTITY, "fine"), 0.0)
    assert isinstance(persisted, Persist)
    assert persisted.value is not None
    again = machine().restore({persisted.key: persisted.value})
    assert again == [said, Persist(persisted.key, None)]


def test_only_loud_windows_of_an_entity_that_is_learnt_alarm() -> None:
    subject = machine()
    quiet = feed(subject, *(learnt_window(i, 5.0, 6.0) for i in range(40)))
    assert quiet == []
    (opened,) = alerts(feed(subject, learnt_window(40, 7.0, 6.0)))
    assert (opened.state, opened.kind) == (AlertState.OPEN, "magnitude")
    closing = feed(subject, *(learnt_window(41 + i, 5.0, 6.0) for i in range(6)))
    assert states(closing)[-1] == "closed", "windows that are merely new do not keep it open"


def test_long_words_of_a_person_are_cut_to_what_an_alert_holds() -> None:
    subject = machine()
    run(subject, 0, 1, EXTREME)
    (alert,) = alerts(subject.handle(EntityAccepted(ENTITY, "x" * 500), 0.0))
    assert len(alert.summary) == 200
