"""Whatever comes in whatever order: the machines of a round do not break, and neither does their intake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import event as hypothesis_event
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from participant_parts import Gateway, checkins, contribution, upload_body, uploads
from round_parts import AGGREGATOR, NOW, SITE, TASK, TOPICS, Stage, checkin, outcome, receipts, rosters, sealed, upload

from vedette_aggregator import intake as aggregator_side
from vedette_aggregator.round_events import CheckInReceived, Released, ReleaseFailed, UploadReceived
from vedette_core.machine import Connected, Effect, Event, Persist, Publish, Tick
from vedette_device import intake as device_side
from vedette_device.participant_events import (
    ExamplesAvailable,
    RosterReceived,
    TrainingFailed,
    TrainingFinished,
)
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Phase, plan_bytes
from vedette_schemas.topics import FlStep

DEVICES = ("gw-00", "gw-01", "gw-02", "gw-03")

aggregator_steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 1e5, -1e5])),
        st.tuples(st.just("deadline")),
        st.tuples(st.just("checkin"), st.sampled_from(DEVICES), st.integers(1, 6)),
        st.tuples(st.just("upload"), st.sampled_from(DEVICES), st.booleans()),
        st.tuples(st.just("connected")),
        st.tuples(st.just("released"), st.integers(0, 4)),
        st.tuples(st.just("answered")),
        st.tuples(st.just("refused")),
        st.tuples(st.just("restart")),
    ),
    min_size=5,
    max_size=40,
)


def _aggregator_event(stage: Stage, step: tuple) -> Event:
    kind, *details = step
    if kind == "wait":
        stage.now += details[0]
        return Tick()
    if kind == "deadline":
        stage.now = max(stage.now, stage.machine.next_deadline() or 0.0)
        return Tick()
    if kind == "checkin":
        return CheckInReceived(checkin(details[0], details[1]))
    if kind == "upload":
        device, known = details
        found = rosters(stage.effects)
        if not found:
            return Tick()
        body = upload(found[0], device, loss_after=1.0 if known else 2.0)
        return UploadReceived(body, sealed(body))
    if kind == "answered":
        return Released(stage.machine.model.version + 1, "b" * 64, plan_bytes(stage.plan)[1])
    if kind == "released":
        return Released(details[0], "b" * 64, plan_bytes(stage.plan)[1])
    return {"connected": Connected(), "refused": ReleaseFailed("no")}[kind]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["fresh", "collect", "releasing"]), aggregator_steps)
def test_the_aggregator_answers_any_sequence(start: str, steps: list[tuple]) -> None:
    stage = Stage()
    if start == "collect":
        stage.to_collect()
    elif start == "releasing":
        stage.to_releasing()
    positions: list[tuple[int, int]] = []
    for step in steps:
        hypothesis_event(f"in {stage.machine.state}")
        if step == ("restart",):
            before = (stage.machine.state, stage.machine.round, stage.machine.attempt, stage.machine.uploads)
            stage.restart()
            assert (stage.machine.state, stage.machine.round, stage.machine.attempt, stage.machine.uploads) == before
            continue
        event = _aggregator_event(stage, step)
        disk = dict(stage.disk)
        effects = stage.machine.handle(event, stage.now)
        assert outcome(effects) in ("accepted", "rejected", "discarded")
        _written_before_it_is_said(disk, effects)
        stage._carry_out(effects)
        positions.append((stage.machine.round, stage.machine.attempt))
    assert positions == sorted(positions), "rounds and attempts only go up"


def _written_before_it_is_said(disk: dict[str, bytes], effects: list[Effect]) -> None:
    disk = dict(disk)
    for effect in effects:
        if isinstance(effect, Persist):
            disk[effect.key] = effect.value or b""
        for item in receipts([effect]):
            if item.outcome == "accepted" and item.id.startswith("ci-"):
                assert any(item.id.encode() in value for value in disk.values())
            elif item.outcome == "accepted":
                device = item.id.removeprefix(f"up-{TASK}-").split("-", 2)[2]
                known = disk.get(f"round/{TASK}/upload/{device}") or disk.get(f"round/{TASK}/device/{device}")
                assert known


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


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["ready", "collecting", "training", "uploaded"]), participant_steps)
def test_a_participant_uploads_once_an_attempt_whatever_comes(start: str, steps: list[tuple]) -> None:
    gateway = Gateway()
    gateway.ready()
    if start != "ready":
        getattr(gateway, f"to_{start}")()
    for step in steps:
        hypothesis_event(f"in {gateway.machine.state}")
        _participant_step(gateway, step)
        assert gateway.private_keys_on_disk <= 1
    sent: dict[tuple[int, int], set[bytes]] = {}
    for publish in uploads(gateway.effects):
        body = upload_body(publish)
        sent.setdefault((body.round, body.attempt), set()).add(publish.payload)
    assert all(len(payloads) == 1 for payloads in sent.values())
    keys = [body.epk for body in checkins(gateway.effects)]
    assert len(set(keys)) == len(gateway.keys)
    _uploads_are_persisted_first(gateway.effects)


def _participant_step(gateway: Gateway, step: tuple) -> None:
    kind, *details = step
    match kind:
        case "open":
            gateway.open(*details)
        case "roster" if gateway.keys:
            gateway.handle(RosterReceived(gateway.roster(*details)))
        case "trained":
            number, attempt, value = details
            levels = bytes([value]) * 1024
            gateway.handle(TrainingFinished(number, attempt, contribution(levels=levels)))
        case "failed":
            gateway.handle(TrainingFailed(*details, "diverged"))
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
    return aggregator_side.Intake(TOPICS, SITE.ring(), [TASK])


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
    stage = Stage()
    stage.to_releasing()
    gateway = Gateway()
    gateway.to_uploaded()
    sent = [e for e in (*stage.effects, *gateway.effects) if isinstance(e, Publish)]
    return [(e.topic, e.payload) for e in sent]


MESSAGES = _messages()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_a_changed_byte_is_refused(message: tuple[str, bytes], data: st.DataObject) -> None:
    topic, payload = message
    place = data.draw(st.integers(0, len(payload) - 1))
    flip = data.draw(st.integers(1, 255))
    broken = payload[:place] + bytes([payload[place] ^ flip]) + payload[place + 1 :]
    with pytest.raises(PeerError):
        _take(topic, broken)


@settings(max_examples=300, deadline=None)
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
