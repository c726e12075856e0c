"""An alert's life, event by event."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vedette_core.learning.calibration import z_score
from vedette_core.learning.cusum import REFERENCE, limit_for
from vedette_core.machine import Count, Effect, Note, Persist, Publish, Tick
from vedette_device.alert_record import ScoredWindow, alert_id, confidence, rfc3339, severity_of
from vedette_device.detection_machine import (
    CLOCK_STEP_S,
    DetectionMachine,
    DetectionSettings,
    WindowScored,
)
from vedette_schemas.alert import ALERT_BYTES_MAX, Alert, AlertModel, AlertState, FeatureReason, Severity, decode
from vedette_schemas.topics import ID_PATTERN

MODEL = AlertModel(task="network", version=3, digest="0123456789abcdef")
T0 = 1_772_755_200.0
STEP_S = 5.0
CALM, HIGH, EXTREME = 0.5, 1e-4, 1e-6
ENTITY = "10.0.0.4"


def window(
    step: int,
    p_value: float = CALM,
    *,
    entity: str = ENTITY,
    score: float | None = None,
    features: tuple[str, ...] = ("syn_count",),
) -> ScoredWindow:
    return ScoredWindow(
        entity=entity,
        start_s=T0 + step * STEP_S,
        end_s=T0 + (step + 1) * STEP_S,
        score=score if score is not None else (0.4 if p_value > 0.01 else 1.2),
        p_value=p_value,
        threshold=1.0,
        benign_max=1.1,
        benign_average=1.5,
        calibration_size=900,
        features=tuple(FeatureReason(name=n, value=9.0, usual=(0.0, 1.0), share=0.5) for n in features),
        model=MODEL,
    )


def machine(**settings: object) -> DetectionMachine:
    return DetectionMachine("site", "gw-1", "network", "network", DetectionSettings(**settings))  # type: ignore[arg-type]


def feed(subject: DetectionMachine, *windows: ScoredWindow) -> list[Effect]:
    return [effect for w in windows for effect in subject.handle(WindowScored(w), 0.0)]


def run(subject: DetectionMachine, first: int, count: int, p_value: float, **fields: object) -> list[Effect]:
    return feed(subject, *(window(first + i, p_value, **fields) for i in range(count)))  # type: ignore[arg-type]


def alerts(effects: list[Effect]) -> list[Alert]:
    return [decode(e.payload) for e in effects if isinstance(e, Publish)]


def states(effects: list[Effect]) -> list[str]:
    return [a.state.value for a in alerts(effects)]


def test_calm_windows_say_nothing() -> None:
    assert run(machine(), 0, 200, CALM) == []


def test_one_extreme_window_opens_an_alert_at_once() -> None:
    effects = run(machine(), 0, 1, EXTREME)

    persist, publish = effects
    assert isinstance(persist, Persist)
    assert isinstance(publish, Publish)
    alert = decode(publish.payload)
    assert persist.key == f"alert/network/{alert.id}"
    assert publish.topic == "vedette/1/site/device/gw-1/up/alert"
    assert publish.receipt_id == f"{alert.id}.0"
    assert (alert.kind, alert.seq, alert.count, alert.state) == ("magnitude", 0, 1, AlertState.OPEN)
    assert alert.window_start == "2026-03-06T00:00:00.000Z"
    assert alert.time == alert.window_end == "2026-03-06T00:00:05.000Z"
    assert alert.summary == f"{ENTITY}: connection attempts (SYN) 9 (usual 0–1)"


def test_a_score_far_beyond_the_largest_benign_one_is_extreme_whatever_its_p_value() -> None:
    assert states(feed(machine(), window(0, 0.005, score=2.3))) == ["open"]
    assert states(feed(machine(), window(0, 0.005, score=2.1))) == []


def test_high_windows_open_an_alert_only_when_they_are_sustained() -> None:
    subject = machine()
    effects = run(subject, 0, 12, HIGH)

    opened = alerts(effects)[0]
    assert opened.kind == "sustained"
    # z = 3.7; the average passes 2.33 with the 3rd window at a half-life of 2, and 3 of 5 must be above.
    assert opened.time == rfc3339(T0 + 5 * STEP_S)


def test_what_benign_windows_reached_raises_the_limit() -> None:
    """A device that does something every hour has high averages every hour, and that is no news."""
    hourly = [replace(window(i, HIGH), benign_average=2.9) for i in range(7)]
    assert feed(machine(), *hourly) == []  # 3.7 (1 − 2⁻³·⁵) = 3.37 is below 2.9 + 0.5
    assert states(feed(machine(sustained_margin=0.0), *hourly))[0] == "open"


def test_a_lone_high_window_opens_nothing() -> None:
    subject = machine()
    for start in range(0, 400, 20):
        assert run(subject, start, 1, HIGH) == []
        assert run(subject, start + 1, 19, CALM) == []


def test_one_incident_is_one_alert_reported_on_a_log_scale_and_closed() -> None:
    subject = machine()
    effects = run(subject, 0, 100, HIGH) + run(subject, 100, 60, CALM)

    reports = alerts(effects)
    assert len({a.id for a in reports}) == 1
    assert [a.seq for a in reports] == list(range(len(reports)))
    assert states(effects) == ["open", *["updated"] * (len(reports) - 2), "closed"]
    assert [a.count for a in reports[:-1]] == [1, 2, 4, 8, 16, 32, 64]
    assert isinstance(effects[-2], Publish)
    assert effects[-1] == Persist(f"alert/network/{reports[0].id}", None)
    assert subject.open_entities == frozenset()


def test_hysteresis_keeps_an_alert_open_through_a_short_lull() -> None:
    subject = machine()
    run(subject, 0, 30, HIGH)
    effects = run(subject, 30, 4, CALM) + run(subject, 34, 10, HIGH)

    assert "closed" not in states(effects)
    assert subject.open_entities == frozenset({ENTITY})


def test_an_alert_that_fires_again_soon_after_its_close_goes_on() -> None:
    subject = machine(cooldown_windows=12)
    first = alerts(run(subject, 0, 1, EXTREME) + run(subject, 1, 8, CALM))
    again = alerts(run(subject, 9, 1, EXTREME))

    assert [a.state.value for a in first] == ["open", "closed"]
    assert [(a.id, a.seq, a.state.value, a.count) for a in again] == [(first[0].id, 2, "updated", 2)]


def test_after_the_cool_down_a_new_alert_is_opened() -> None:
    subject = machine(cooldown_windows=12)
    first = alerts(run(subject, 0, 1, EXTREME) + run(subject, 1, 40, CALM))
    again = alerts(run(subject, 41, 1, EXTREME))

    assert again[0].id != first[0].id
    assert again[0].state is AlertState.OPEN


def test_another_reason_is_reported_once() -> None:
    subject = machine()
    run(subject, 0, 28, HIGH)
    effects = run(subject, 28, 3, HIGH, features=("dns_queries",)) + run(subject, 31, 2, HIGH)

    (report,) = alerts(effects)
    assert report.features[0].name == "dns_queries"


def test_more_severe_is_reported_at_once_and_severity_never_falls() -> None:
    subject = machine()
    run(subject, 0, 20, HIGH)
    worse = alerts(run(subject, 20, 1, HIGH, score=20.0))
    later = alerts(run(subject, 21, 200, HIGH))

    assert worse[0].severity is Severity.CRITICAL
    assert {a.severity for a in later} == {Severity.CRITICAL}


def test_outbox_severity_follows_the_alert() -> None:
    low = [e for e in run(machine(), 0, 1, EXTREME) if isinstance(e, Publish)]
    critical = [e for e in run(machine(), 0, 1, EXTREME, score=9.0) if isinstance(e, Publish)]

    assert low[0].severity < critical[0].severity == 100


def test_entities_have_alerts_of_their_own() -> None:
    subject = machine()
    effects = feed(subject, *(window(0, EXTREME, entity=f"10.0.0.{i}") for i in range(2)))

    assert len({a.id for a in alerts(effects)}) == 2
    assert subject.open_entities == frozenset({"10.0.0.0", "10.0.0.1"})


def test_several_entities_at_once_are_more_severe() -> None:
    effects = feed(machine(), *(window(0, EXTREME, entity=f"10.0.0.{i}") for i in range(3)))

    assert [a.severity for a in alerts(effects)] == [Severity.LOW, Severity.LOW, Severity.MEDIUM]


def test_rate_limit_counts_what_it_holds_back_and_lets_it_through_later() -> None:
    subject = machine(per_hour_max=2)
    effects = feed(subject, *(window(0, EXTREME, entity=f"10.0.0.{i}") for i in range(4)))
    held = feed(subject, window(1, EXTREME, entity="10.0.0.3"))
    later = feed(subject, window(400, EXTREME, entity="10.0.0.3"))  # 33 minutes on: one more is allowed

    assert states(effects) == ["open", "open"]
    assert [e for e in effects if isinstance(e, Count) and e.metric == "alerts_suppressed"] == [
        Count("alerts_suppressed", "rate_limit", "network")
    ] * 2
    assert held == []  # counted once an incident
    assert "open" in states(later)


def test_windows_from_before_are_discarded_and_counted() -> None:
    subject = machine()
    run(subject, 10, 1, CALM)

    assert run(subject, 10, 1, EXTREME) == [Count("machine_events", "discarded", "network")]
    assert run(subject, 3, 1, EXTREME) == [Count("machine_events", "discarded", "network")]


def test_a_clock_that_was_set_right_does_not_end_detection() -> None:
    subject = machine()
    far = int(10 * CLOCK_STEP_S / STEP_S)
    run(subject, far, 1, CALM)

    assert states(run(subject, 0, 1, EXTREME)) == ["open"]
    assert states(run(subject, 1, 20, CALM)) == ["closed"]


def test_an_alert_on_an_entity_that_fell_silent_is_closed_by_the_others_windows() -> None:
    subject = machine(clear_windows=6)
    run(subject, 0, 1, EXTREME)
    effects = run(subject, 1, 10, CALM, entity="10.0.0.9")

    assert states(effects) == ["closed"]
    assert alerts(effects)[0].entity == ENTITY
    assert subject.open_entities == frozenset()


def test_a_pause_lets_the_average_decay() -> None:
    subject = machine()
    run(subject, 0, 4, HIGH)  # one short of the rule
    assert states(run(subject, 200, 2, HIGH)) == []


def test_a_tick_changes_nothing_and_no_deadline_is_asked_for() -> None:
    subject = machine()
    run(subject, 0, 1, EXTREME)

    assert subject.handle(Tick(), 1e9) == []
    assert subject.next_deadline() is None


def test_replay_at_another_speed_gives_the_same_alerts() -> None:
    first, second = machine(), machine()
    script = [window(i, HIGH if 20 <= i < 60 else CALM) for i in range(120)]

    slow = [e for i, w in enumerate(script) for e in first.handle(WindowScored(w), i * 5.0)]
    fast = [e for w in script for e in second.handle(WindowScored(w), 0.0)]

    assert slow == fast


def test_an_open_alert_goes_on_after_a_restart() -> None:
    before = machine()
    effects = run(before, 0, 20, HIGH)
    stored = {e.key: e.value for e in effects if isinstance(e, Persist) and e.value is not None}
    last = alerts(effects)[-1]

    after = machine()
    again = after.restore(stored)
    later = run(after, 20, 30, HIGH)

    assert [e.receipt_id for e in again if isinstance(e, Publish)] == [f"{last.id}.{last.seq}"]
    assert alerts(again) == [last]
    assert {a.id for a in alerts(later)} == {last.id}
    assert [a.seq for a in alerts(later)] == list(range(last.seq + 1, last.seq + 1 + len(alerts(later))))
    assert after.open_entities == frozenset({ENTITY})


def test_a_close_that_was_cut_short_is_published_again_and_then_forgotten() -> None:
    before = machine()
    effects = run(before, 0, 1, EXTREME) + run(before, 1, 10, CALM)
    closing = next(e for e in effects if isinstance(e, Persist) and e.value is not None and b"closed" in e.value)

    after = machine()
    assert closing.value is not None
    again = after.restore({closing.key: closing.value})

    assert states(again) == ["closed"]
    assert again[-1] == Persist(closing.key, None)
    assert after.open_entities == frozenset()


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x80", b"\x81\xa6format\x02", b"\x93\x01\x02\x03"])
def test_a_damaged_record_is_named_and_dropped(value: bytes) -> None:
    note, persist = machine().restore({"alert/network/x": value})

    assert isinstance(note, Note)
    assert note.level == "error"
    assert "alert/network/x" in note.text
    assert persist == Persist("alert/network/x", None)


def test_ids_are_valid_deterministic_and_different() -> None:
    import re

    ids = {
        alert_id(device, detector, entity, start)
        for device in ("gw-1", "a" * 60)
        for detector in ("network", "sensor")
        for entity in ("10.0.0.4", "fe80::1%eth0", "Füllstand")
        for start in (T0, T0 + 5.0, -1.0, 1e18)
    }

    assert len(ids) == 48
    assert all(re.fullmatch(ID_PATTERN, i) for i in ids)
    assert alert_id("gw-1", "network", "10.0.0.4", T0).startswith("gw-1-network-20260306-000000-")


def test_the_largest_alert_fits_one_kilobyte() -> None:
    long = "x" * 60
    subject = DetectionMachine("s" * 60, "d" * 60, "network", "t" * 40, DetectionSettings())
    effects = feed(subject, window(0, EXTREME, entity=long, features=(long, long[:-1] + "y", long[:-1] + "z")))

    (payload,) = [e.payload for e in effects if isinstance(e, Publish)]
    assert len(payload) <= ALERT_BYTES_MAX
    assert decode(payload).features


@pytest.mark.parametrize(
    ("strength", "entities", "expected"),
    [
        (1.0, 1, Severity.LOW),
        (1.5, 1, Severity.MEDIUM),
        (3.0, 1, Severity.HIGH),
        (8.0, 1, Severity.CRITICAL),
        (1.0, 3, Severity.MEDIUM),
        (8.0, 3, Severity.CRITICAL),
    ],
)
def test_severity_table(strength: float, entities: int, expected: Severity) -> None:
    assert severity_of(window(0, HIGH, score=strength), entities) is expected


def test_confidence_grows_with_the_calibration_and_with_the_evidence() -> None:
    assert confidence(100, 1e-5) == 0.5
    assert confidence(900, 1e-5) == 0.9
    assert confidence(900, 1.0) == 0.45
    assert confidence(10**6, 1e-300) <= 1.0


def test_event_time_beyond_the_calendar_is_held_at_its_ends() -> None:
    assert rfc3339(-5.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1e18) == "9999-12-31T23:59:59.000Z"


# -- the sum of z ------------------------------------------------------------------------------------------------------

SHIFTED = 0.1
"""A window whose z is 1.28: too little for every other rule, however long it lasts."""


def test_a_small_lasting_shift_is_news_only_with_a_budget() -> None:
    assert run(machine(), 0, 500, SHIFTED) == []

    effects = run(machine(cusum_budget_days=30.0), 0, 500, SHIFTED)
    first = alerts(effects)[0]
    assert (first.state, first.kind) == (AlertState.OPEN, "sustained")
    limit = limit_for(30 * 86_400 / STEP_S)
    windows = math.floor(limit / (z_score(SHIFTED) - REFERENCE)) + 1
    assert first.time == rfc3339(T0 + windows * STEP_S)


def test_a_smaller_budget_waits_longer() -> None:
    def opened_at(**settings: float) -> str:
        return alerts(run(machine(**settings), 0, 500, SHIFTED))[0].time

    assert opened_at(cusum_budget_days=1.0) < opened_at(cusum_budget_days=30.0) < opened_at(cusum_budget_days=3650.0)


def test_windows_that_share_their_data_need_a_larger_sum() -> None:
    def windows(spread: float) -> list[ScoredWindow]:
        return [replace(window(i, SHIFTED), spread=spread) for i in range(800)]

    alone = feed(machine(cusum_budget_days=30.0), *windows(1.0))
    together = feed(machine(cusum_budget_days=30.0), *windows(3.0))
    assert alerts(alone)[0].time < alerts(together)[0].time


def test_an_alert_of_the_sum_is_one_alert_and_ends_with_the_shift() -> None:
    subject = machine(cusum_budget_days=30.0)
    during = run(subject, 0, 600, SHIFTED)
    assert states(during)[0] == "open"
    assert "closed" not in states(during)

    after = run(subject, 600, 60, CALM)
    assert states(after) == ["closed"]
    assert len({a.id for a in alerts(during + after)}) == 1
    assert run(subject, 660, 300, CALM) == []


def test_what_was_not_seen_takes_from_the_sum() -> None:
    subject = machine(cusum_budget_days=30.0)
    windows_needed = math.floor(limit_for(30 * 86_400 / STEP_S) / (z_score(SHIFTED) - REFERENCE)) + 1

    for turn in range(5):
        assert run(subject, turn * 1000, windows_needed - 1, SHIFTED) == []


def test_ordinary_windows_keep_within_the_budget() -> None:
    """A hundred entities over a tenth of the budget each: ten false alerts are promised, and about so many come."""
    days, entities = 0.25, 100

    def opened(budget: float) -> int:
        rng = np.random.default_rng(7)
        subject = machine(cusum_budget_days=budget, per_hour_max=10_000)
        stream = [
            window(step, max(float(p), 1e-4), entity=f"e{i}")
            for step in range(int(0.1 * days * 86_400 / STEP_S))
            for i, p in enumerate(rng.random(entities))
        ]
        return sum(a.state is AlertState.OPEN and a.kind == "sustained" for a in alerts(feed(subject, *stream)))

    assert opened(0.0) == 0
    assert 1 <= opened(days) <= 20
