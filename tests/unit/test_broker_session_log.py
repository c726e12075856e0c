"""Lines about sessions: one form, and an end to them."""

from __future__ import annotations

import logging

import pytest

from vedette_broker.session_log import LINES_MAX, PERIOD_S, SessionEvent, SessionLog


class Clock:
    now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_an_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    said = SessionLog()
    said.say(SessionEvent.OPENED, "dev-a")
    said.say(SessionEvent.REFUSED, "192.0.2.7", "too many connections", level=logging.WARNING)
    said.say(SessionEvent.TAKEN_OVER, "dev-a", "by a newer connection")
    assert caplog.record_tuples == [
        ("vedette.broker", logging.INFO, "session opened: dev-a"),
        ("vedette.broker", logging.WARNING, "session refused: 192.0.2.7: too many connections"),
        ("vedette.broker", logging.INFO, "session taken over: dev-a: by a newer connection"),
    ]


def test_who_reaches_the_port_does_not_fill_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    said = SessionLog(clock)
    for _ in range(3 * LINES_MAX):
        said.say(SessionEvent.REFUSED, "192.0.2.7")
    assert len(caplog.messages) == LINES_MAX
    assert "not logged for up to a minute" in caplog.messages[-1]
    assert "not logged" not in caplog.messages[-2]
    said.say(SessionEvent.OPENED, "dev-a")  # what others do is still seen
    assert caplog.messages[LINES_MAX:] == ["session opened: dev-a"]
    clock.now_s += PERIOD_S - 0.1
    said.say(SessionEvent.REFUSED, "192.0.2.7")
    assert len(caplog.messages) == LINES_MAX + 1
    clock.now_s += 0.1
    said.say(SessionEvent.REFUSED, "192.0.2.7")
    assert caplog.messages[LINES_MAX + 1 :] == ["session refused: 192.0.2.7"]


def test_the_broker_s_own_end_is_no_event_of_its_clients(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    said = SessionLog()
    said.close()
    said.say(SessionEvent.LOST, "dev-a", "broker stops")
    assert caplog.messages == []
