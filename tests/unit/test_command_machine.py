"""Commands of the aggregator on a device: each once, none that is stale, none too often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.machine import Count, Effect, Persist, Tick
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_device.command_machine import (
    COLD_START_S_MIN,
    KEY,
    RECALIBRATE_S_MIN,
    ColdStart,
    CommandMachine,
    CommandReceived,
    Recalibrate,
)
from vedette_device.commands import Commands
from vedette_schemas.command import LIFETIME_S_MAX, Command
from vedette_schemas.errors import PeerError, RefusedError

NOW = 1_800_000_000.0


def command(seq: int = 1, **changes: Any) -> CommandReceived:
    fields: dict[str, Any] = {
        "device": "gw-01",
        "seq": seq,
        "issued_s": NOW,
        "expires_s": NOW + 600.0,
        "action": "recalibrate",
        "task": "network",
    }
    return CommandReceived(Command(**(fields | changes)))


def outcome(effects: Sequence[Effect]) -> str:
    (count,) = (e for e in effects if isinstance(e, Count))
    assert count.metric == "commands"
    return count.outcome


def saved(effects: Sequence[Effect]) -> bytes | None:
    return next((e.value for e in effects if isinstance(e, Persist) and e.key == KEY), None)


def machine(state: bytes | None = None) -> CommandMachine:
    return CommandMachine("gw-01", ("network", "sensor"), state)


def test_a_command_is_persisted_before_it_is_done() -> None:
    effects = machine().handle(command(), NOW)
    kinds = [type(e) for e in effects]
    assert outcome(effects) == "accepted"
    assert kinds.index(Persist) < kinds.index(Recalibrate)


def test_the_same_command_again_does_nothing_not_even_after_a_restart() -> None:
    one = machine()
    state = saved(one.handle(command(5), NOW))
    for again in (one, machine(state)):
        for seq in (5, 4, 1):
            effects = again.handle(command(seq), NOW + RECALIBRATE_S_MIN + 1)
            assert outcome(effects) == "repeated"
            assert not any(isinstance(e, (Recalibrate, Persist)) for e in effects)


@pytest.mark.parametrize(
    ("changes", "now", "expected"),
    [
        ({}, NOW + 600.0, "expired"),
        ({"expires_s": NOW + LIFETIME_S_MAX + 1}, NOW, "expired"),
        ({"expires_s": NOW}, NOW - 10, "expired"),
        ({"issued_s": NOW + 9000, "expires_s": NOW + 9600}, NOW, "early"),
        ({"task": "behaviour"}, NOW, "unknown_task"),
    ],
)
def test_what_is_not_done(changes: dict[str, Any], now: float, expected: str) -> None:
    effects = machine().handle(command(**changes), now)
    assert outcome(effects) == expected
    assert not any(isinstance(e, Recalibrate) for e in effects)


def test_a_number_from_far_ahead_does_not_shut_later_ones_out() -> None:
    one = machine()
    assert outcome(one.handle(command(2**53, issued_s=NOW + 9000, expires_s=NOW + 9600), NOW)) == "early"
    assert outcome(one.handle(command(1), NOW)) == "accepted"


def test_recalibrations_of_a_task_are_an_hour_apart() -> None:
    one = machine()
    assert outcome(one.handle(command(1), NOW)) == "accepted"
    assert outcome(one.handle(command(2, task="sensor"), NOW)) == "accepted", "each task for itself"
    soon = NOW + RECALIBRATE_S_MIN - 1
    state = saved(one.handle(command(3, issued_s=soon, expires_s=soon + 60), soon))
    later = NOW + RECALIBRATE_S_MIN
    assert outcome(machine(state).handle(command(4, issued_s=later, expires_s=later + 60), later)) == "accepted"
    assert outcome(machine(state).handle(command(4, issued_s=soon, expires_s=soon + 60), soon)) == "too_soon"


@given(st.binary(max_size=80))
def test_a_damaged_record_is_none(state: bytes) -> None:
    assert outcome(machine(state).handle(command(2**53), NOW)) == "accepted"


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 8000)), max_size=30))
def test_numbers_only_go_up_and_recalibrations_keep_their_distance(asked: list[tuple[int, float]]) -> None:
    one, done, seqs = machine(), [], []
    for seq, after in asked:
        now = NOW + after
        for effect in one.handle(command(seq, issued_s=now, expires_s=now + 60), now):
            if isinstance(effect, Recalibrate):
                done.append(now)
                seqs.append(seq)
    assert seqs == sorted(set(seqs))
    assert all(b < a or b - a >= RECALIBRATE_S_MIN for a, b in pairwise(done))
    assert one.handle(Tick(), NOW) == []
    assert one.next_deadline() is None


@pytest.mark.parametrize("refuses", [False, True])
def test_what_became_of_it_is_counted(refuses: bool) -> None:
    metrics, log = Metrics(DEVICE_METRICS), []

    def recalibrate() -> int:
        log.append("recalibrated")
        if refuses:
            raise RefusedError("an alert is open", rule="alert")
        return 200

    async def carry_out(effects: Sequence[Effect]) -> None:
        log.extend("persisted" for e in effects if isinstance(e, Persist))

    pipelines: Any = {"network": SimpleNamespace(recalibrate=recalibrate)}
    commands = Commands("gw-01", pipelines, None, metrics)
    now = time.time()
    asyncio.run(commands.take(command(1, issued_s=now, expires_s=now + 600), carry_out))
    assert log == ["persisted", "recalibrated"]
    labels = {"task": "network", "outcome": "refused" if refuses else "done"}
    assert metrics.registry.get_sample_value("vedette_recalibrations_total", labels) == 1.0


def test_a_cold_start_is_handed_on_and_no_recalibration_stands_in_its_way() -> None:
    one = machine()
    assert outcome(one.handle(command(1), NOW)) == "accepted"
    effects = one.handle(command(2, action="cold-start", version=4, sketch=b"s"), NOW)
    assert [e for e in effects if isinstance(e, ColdStart)] == [ColdStart("network", 4, b"s")]
    assert not any(isinstance(e, Recalibrate) for e in effects)
    for seq, after_s, expected in ((3, COLD_START_S_MIN - 1, "too_soon"), (4, COLD_START_S_MIN, "accepted")):
        again = command(seq, action="cold-start", version=4, sketch=b"s")
        assert outcome(one.handle(again, NOW + after_s)) == expected


@pytest.mark.parametrize("fault", [None, PeerError("no sketch"), RefusedError("not needed", rule="phase")])
def test_what_became_of_a_cold_start_is_counted(fault: Exception | None) -> None:
    metrics, asked = Metrics(DEVICE_METRICS), []

    def cold_start(version: int, sketch: bytes) -> None:
        asked.append((version, sketch))
        if fault is not None:
            raise fault

    async def carry_out(effects: Sequence[Effect]) -> None:
        pass

    pipelines: Any = {"network": SimpleNamespace(cold_start=cold_start)}
    commands = Commands("gw-01", pipelines, None, metrics)
    now = time.time()
    event = command(1, issued_s=now, expires_s=now + 60, action="cold-start", version=4, sketch=b"s")
    asyncio.run(commands.take(event, carry_out))
    assert asked == [(4, b"s")]
    labels = {"task": "network", "outcome": "done" if fault is None else "refused"}
    assert metrics.registry.get_sample_value("vedette_cold_starts_total", labels) == 1.0
