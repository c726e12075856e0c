"""Whatever comes in whatever order: the machines of a round do not break, and neither does their intake."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event as hypothesis_event
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from participant_parts import Gateway, checkins, contribution, upload_body, uploads
from round_effects import outcome, receipts, rosters
from round_fleet import SIX, Fleet, masked_stage_in, masked_upload, question_of, recording
from round_parts import AGGREGATOR, DIMENSION, NOW, SITE, TASK, TOPICS, Stage, checkin, masked_settings, sealed, upload

from vedette_aggregator import intake as aggregator_side
from vedette_aggregator.round_events import (
    CheckInReceived,
    Quarantined,
    Released,
    ReleaseFailed,
    RootTrained,
    UploadReceived,
)
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Connected, Effect, Event, Persist, Publish, Tick
from vedette_device import intake as device_side
from vedette_device.participant_events import (
    ExamplesAvailable,
    RosterReceived,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Phase, plan_bytes
from vedette_schemas.secagg import Close, survivors_hash
from vedette_schemas.topics import FlStep

aggregator_steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 1e5, -1e5])),
        st.tuples(st.just("deadline")),
        st.tuples(st.just("checkin"), st.sampled_from(SIX), st.integers(1, 6)),
        st.tuples(st.just("checkins")),
        st.tuples(st.just("upload"), st.sampled_from(SIX), st.booleans()),
        st.tuples(st.just("uploads")),
        st.tuples(st.just("vote"), st.sampled_from(SIX)),
        st.tuples(st.just("shares"), st.sampled_from(SIX)),
        st.tuples(st.just("answers")),
        st.tuples(st.just("root"), st.integers(1, 2), st.booleans()),
        st.tuples(st.just("quarantined"), st.sets(st.sampled_from(SIX), max_size=2)),
        st.tuples(st.just("connected")),
        st.tuples(st.just("released"), st.integers(0, 4)),
        st.tuples(st.just("answered")),
        st.tuples(st.just("refused")),
        st.tuples(st.just("restart")),
    ),
    min_size=5,
    max_size=40,
)


def _aggregator_events(stage: Stage, fleet: Fleet, step: tuple[Any, ...]) -> Iterator[Event]:
    """What a step does; what is said in it may depend on what came of the words before."""
    kind, *details = step
    plan = plan_bytes(stage.plan)[1]
    match kind:
        case "wait":
            stage.now += details[0]
            yield Tick()
        case "deadline":
            stage.now = max(stage.now, stage.machine.next_deadline() or 0.0)
            yield Tick()
        case "checkin":
            yield CheckInReceived(checkin(*details))
        case "checkins":
            number = 1 + max((r.checkin.seq for r in stage.machine._book.devices.values()), default=0)
            for device in SIX:
                yield CheckInReceived(checkin(device, number))
        case "upload":
            yield _upload(stage, *details)
        case "uploads":
            for device in SIX:
                yield _upload(stage, device, True)
        case "vote":
            yield recording().votes[details[0]]
        case "shares":
            yield recording().shares[details[0]]
        case "answers":
            fleet.seat()
            yield from fleet.answers(stage.handle(Connected()))
        case "root":
            delta = np.full(DIMENSION, 0.1, np.float32) if details[1] else None
            yield RootTrained(stage.machine.round, details[0], delta)
        case "quarantined":
            yield Quarantined(frozenset(details[0]))
        case "answered":
            offered = hashlib.sha256(stage.machine._book.record.offered_plan).hexdigest()
            yield Released(stage.machine.model.version + 1, "b" * 64, offered)
        case "released":
            yield Released(details[0], "b" * 64, plan)
        case "connected":
            yield Connected()
        case "refused":
            yield ReleaseFailed("no")


def _upload(stage: Stage, device: str, usual: bool) -> Event:
    found = next((r for r in rosters(stage.effects) if r.member(device)), None)
    if found is None:
        return Tick()
    if not stage.plan.masked:
        body = upload(found, device, stage.plan, loss_after=1.0 if usual else 2.0)
    else:
        delta = None if usual else np.zeros(DIMENSION, np.float32)
        body = masked_upload(found, device, stage.plan, delta=delta)
    return UploadReceived(body, sealed(body))


def _stage(start: str) -> Stage:
    if start.startswith("masked "):
        return masked_stage_in(RoundState(start.removeprefix("masked ")))
    stage = Stage(has_root=start == "root")
    if start in ("collect", "root"):
        stage.to_collect()
    elif start == "releasing":
        stage.to_releasing()
    return stage


STARTS = ("fresh", "collect", "releasing", "root", "masked checkin", "masked collect", "masked unmask")


@settings(max_examples=200)
@given(st.sampled_from(STARTS), aggregator_steps)
def test_the_aggregator_answers_any_sequence(start: str, steps: list[tuple[Any, ...]]) -> None:
    stage = _stage(start)
    fleet = Fleet(stage)
    positions: list[tuple[int, int]] = []
    asked: dict[tuple[int, int, int], set[bytes]] = {}
    for step in steps:
        hypothesis_event(f"in {stage.machine.state}")
        if step == ("restart",):
            before = (stage.machine.state, stage.machine.round, stage.machine.attempt, stage.machine.uploads)
            stage.restart()
            assert (stage.machine.state, stage.machine.round, stage.machine.attempt, stage.machine.uploads) == before
            continue
        for event in _aggregator_events(stage, fleet, step):
            if isinstance(event, Released) and step[0] == "released" and stage.machine.state is RoundState.RELEASING:
                continue  # another plan than was handed over is a fault of the caller, see the unit tests
            disk = dict(stage.disk)
            effects = stage.machine.handle(event, stage.now)
            assert outcome(effects) in ("accepted", "rejected", "discarded")
            _written_before_it_is_said(disk, effects)
            _one_survivor_set(effects, asked)
            stage.carry_out(effects)
            positions.append((stage.machine.round, stage.machine.attempt))
    assert positions == sorted(positions), "rounds and attempts only go up"


def _one_survivor_set(effects: list[Effect], asked: dict[tuple[int, int, int], set[bytes]]) -> None:
    for publish in effects:
        if isinstance(publish, Publish) and publish.topic.endswith("/down/committee"):
            question = question_of(publish)
            wanted = (
                survivors_hash(question.transcript, tuple(s.statement(question.transcript) for s in question.survivors))
                if isinstance(question, Close)
                else question.survivors
            )
            asked.setdefault((question.round, question.attempt, question.gid), set()).add(wanted)
    assert all(len(sets) == 1 for sets in asked.values())


def _written_before_it_is_said(disk: dict[str, bytes], effects: list[Effect]) -> None:
    disk = dict(disk)
    taken = outcome(effects) == "accepted"
    for effect in effects:
        if isinstance(effect, Persist):
            disk[effect.key] = effect.value or b""
        for item in receipts([effect]):
            if item.outcome == "rejected" or not taken:
                continue
            kind, device = item.id[:2], item.id[-len(SIX[0]) :]
            if kind == "ci":
                assert any(item.id.encode() in value for value in disk.values())
            elif kind == "up":
                assert disk.get(f"round/{TASK}/upload/{device}") or disk.get(f"round/{TASK}/device/{device}")
            else:
                keys = {"vo": "vote", "sh": "shares"}
                assert disk[f"round/{TASK}/{keys[kind]}/0/{device}"]


participant_steps = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(list(Phase)), st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.just("roster"), st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.just("trained"), st.integers(1, 3), st.integers(1, 2), st.integers(0, 255)),
        st.tuples(st.just("failed"), st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.just("receipt"), st.booleans()),
        st.tuples(st.just("examples"), st.sampled_from([0, 64, 1000])),
        st.tuples(st.just("release")),
        st.tuples(st.just("connected")),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 30.0, -1e5])),
        st.tuples(st.just("restart")),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=150)
@given(st.sampled_from(["ready", "collecting", "training", "uploaded"]), participant_steps)
def test_a_participant_uploads_once_an_attempt_whatever_comes(start: str, steps: list[tuple[Any, ...]]) -> None:
    gateway = Gateway()
    gateway.ready()
    if start != "ready":
        getattr(gateway, f"to_{start}")()
    for step in steps:
        hypothesis_event(f"in {gateway.machine.state}")
        _participant_step(gateway, step)
        seats, rest = _private_keys(gateway)
        assert rest <= 1, "the key of the next attempt"
        assert seats <= 1, "and the key of a seat in the committee that may still be asked for shares"
    sent: dict[tuple[int, int], set[bytes]] = {}
    for publish in uploads(gateway.effects):
        body = upload_body(publish)
        sent.setdefault((body.round, body.attempt), set()).add(publish.payload)
    assert all(len(payloads) == 1 for payloads in sent.values())
    keys = [body.epk for body in checkins(gateway.effects)]
    assert len(set(keys)) == len(gateway.keys)
    _uploads_are_persisted_first(gateway.effects)


def _private_keys(gateway: Gateway) -> tuple[int, int]:
    """How many of the private keys ever made are still in committee's records, and in others."""
    seats = [value for key, value in gateway.disk.items() if key.startswith("committee/")]
    rest = [value for key, value in gateway.disk.items() if not key.startswith("committee/")]
    found = [sum(any(k.private in value for value in values) for k in gateway.keys) for values in (seats, rest)]
    return found[0], found[1]


def _participant_step(gateway: Gateway, step: tuple[Any, ...]) -> None:
    kind, *details = step
    match kind:
        case "open":
            gateway.open(*details)
        case "roster" if gateway.keys:
            gateway.handle(RosterReceived(gateway.roster(*details)))
        case "trained":
            number, attempt, value = details
            train = next((e for e in reversed(gateway.effects) if isinstance(e, Train)), None)
            if train is not None and (train.round, train.attempt) == (number, attempt):
                made = contribution(train, seed=value)
            else:
                made = contribution(vector=bytes([value]) * 64)
            gateway.handle(TrainingFinished(number, attempt, gateway.plan, made))
        case "failed":
            number, attempt = details
            gateway.handle(TrainingFailed(number, attempt, "diverged"))
        case "receipt":
            waiting = [e.receipt_id for e in gateway.effects if isinstance(e, Publish) and e.receipt_id]
            gateway.receipt(waiting[-1] if waiting else "x", "" if details[0] else "late")
        case "examples":
            gateway.handle(ExamplesAvailable(details[0]))
        case "release":
            gateway.ready()
        case "connected":
            gateway.handle(Connected())
        case "wait":
            gateway.handle(Tick(), details[0])
        case "restart":
            gateway.restart()


def _uploads_are_persisted_first(effects: list[Effect]) -> None:
    written: set[bytes] = set()
    for effect in effects:
        if isinstance(effect, Persist) and effect.key.endswith("/upload") and effect.value:
            written.add(effect.value)
        if isinstance(effect, Publish) and effect.topic.endswith("/upload"):
            assert any(effect.payload in value for value in written)


# -- intake -----------------------------------------------------------------------------------------------------------


def _aggregator_intake() -> aggregator_side.Intake:
    """One that gw-00 has checked in with."""
    ring = SITE.ring()
    ring.learn(SITE.node("gw-00").certificate, NOW)
    return aggregator_side.Intake(TOPICS, ring, [TASK])


def _device_intake() -> device_side.Intake:
    ring = SITE.ring()
    ring.learn(SITE.node(AGGREGATOR).certificate, NOW)
    return device_side.Intake(TOPICS, "gw-00", AGGREGATOR, [TASK], ring)


def _take(topic: str, payload: bytes) -> Event:
    """Take a message in on the side that it is for."""
    if "/up/" in topic:
        return _aggregator_intake().take(topic, payload, NOW)
    return _device_intake().take(topic, payload)


def _messages() -> list[tuple[str, bytes]]:
    fleet = Fleet(Stage(masked_settings()))
    fleet.run(SIX)
    gateway = Gateway()
    gateway.to_uploaded()
    sent = [e for e in (*fleet.stage.effects, *gateway.effects) if isinstance(e, Publish)]
    to_me = [(e.topic, e.payload) for e in sent if "/public/" in e.topic or "/gw-00/" in e.topic]
    vote, shares = recording().votes["gw-00"].sealed, recording().shares["gw-00"].sealed
    return [
        *to_me,
        (TOPICS.fl("gw-00", TASK, FlStep.VOTE), vote),
        (TOPICS.fl("gw-00", TASK, FlStep.SHARES), shares),
    ]


MESSAGES = _messages()


def test_the_messages_hold_as_they_are() -> None:
    taken = {type(_take(topic, payload)).__name__ for topic, payload in MESSAGES}
    assert taken == {
        "CheckInReceived",
        "CloseReceived",
        "OpeningReceived",
        "ReceiptReceived",
        "RosterReceived",
        "RoundOpened",
        "SharesReceived",
        "UploadReceived",
        "VoteReceived",
    }


@settings(max_examples=300)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_a_changed_byte_is_refused(message: tuple[str, bytes], data: st.DataObject) -> None:
    topic, payload = message
    place = data.draw(st.integers(0, len(payload) - 1))
    flip = data.draw(st.integers(1, 255))
    broken = payload[:place] + bytes([payload[place] ^ flip]) + payload[place + 1 :]
    with pytest.raises(PeerError):
        _take(topic, broken)


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(max_size=80),
        st.sampled_from([topic for topic, _ in MESSAGES]),
        st.builds(TOPICS.fl, st.just("gw-00"), st.just(TASK), st.sampled_from(list(FlStep))),
        st.sampled_from([TOPICS.alert("gw-00"), TOPICS.state("gw-00"), TOPICS.telemetry("gw-00")]),
    ),
    st.one_of(st.binary(max_size=200), st.sampled_from([payload for _, payload in MESSAGES])),
)
def test_nothing_but_a_peer_error_ever_comes_out(topic: str, payload: bytes) -> None:
    for side in (_aggregator_intake(), _device_intake()):
        try:
            side.take(topic, payload, NOW) if isinstance(side, aggregator_side.Intake) else side.take(topic, payload)
        except PeerError:
            continue
