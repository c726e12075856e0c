"""Releases that are revoked while a rollout is about them: no device runs them again, or more than its stage allows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from rollout_field import TASK, Field

from vedette_aggregator.registry_watch import note_revocations
from vedette_aggregator.rollout_events import Verb
from vedette_aggregator.rollout_state import Phase


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    return Field(tmp_path, monkeypatch, validated=False)


async def revoke(field: Field, version: int) -> None:
    """A person revokes it beside the aggregator, which sees it and publishes."""
    for gateway in field.gateways:
        gateway.ran.clear()
    field.registry.revoke(TASK, version, "floods alerts", field.now)
    field.deliver()
    await field.rollouts.look(TASK)
    field.deliver()


def test_a_candidate_that_is_revoked_in_the_middle(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        assert field.runs().count(2) == 2
        await revoke(field, 2)
        assert field.record.phase is Phase.ROLLED_BACK
        assert set(field.runs()) == {1}
        await field.stop()
        await field.start()
        field.deliver()
        assert all(2 not in g.ran for g in field.gateways)
        field.publish(3, is_active=False, parent=1)
        field.deliver()
        await field.rollouts.look(TASK)
        field.now += 2.0
        await field.report()
        await field.rollouts.tick()
        assert field.record.candidate == 3, "the next candidate has its turn"
        assert sorted(field.runs(), key=str).count(3) == 2
        await field.stop()

    asyncio.run(story())


def test_a_baseline_that_is_revoked_in_the_middle_is_not_followed_by_the_candidate(field: Field) -> None:
    async def story() -> None:
        field.publish(2)
        field.deliver()
        assert set(field.runs()) == {2}
        await field.start()
        await field.begin(3)
        assert field.runs().count(3) == 2
        await revoke(field, 2)
        assert field.registry.active(TASK) == 1, "an older one, not the candidate that nothing is known of"
        assert field.record.phase is Phase.ABORTED
        assert set(field.runs()) == {1}
        assert all(2 not in g.ran for g in field.gateways)
        assert all(3 not in g.ran for g in field.gateways), "nobody began with it"
        await field.stop()

    asyncio.run(story())


def test_a_baseline_that_is_revoked_while_it_is_gone_back_to(field: Field) -> None:
    """Nothing is left to go back to: the metadata decide, and nobody runs what they revoke."""

    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PROMOTE)
        await field.until(Phase.PROMOTED)
        field.deliver()
        await revoke(field, 1)
        await field.ask(Verb.ROLLBACK)
        await field.until(Phase.ABORTED)
        field.deliver()
        assert set(field.runs()) == {2}
        assert all(1 not in g.ran for g in field.gateways)
        await field.stop()

    asyncio.run(story())


def test_a_pinned_release_that_is_revoked(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PIN, device="gw-05", version=1)
        await field.ask(Verb.PROMOTE)
        await field.until(Phase.PROMOTED)
        field.deliver()
        assert field.runs() == [2, 2, 2, 2, 2, 1]
        await revoke(field, 1)
        assert set(field.runs()) == {2}
        await field.stop()
        await field.start()
        field.deliver()
        assert all(1 not in g.ran for g in field.gateways), "the pin is still there, and decides nothing"
        await field.stop()

    asyncio.run(story())


def test_a_pin_to_a_revoked_candidate(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        outside = next(g.name for g in field.gateways if g.runs == 1)
        await field.ask(Verb.PIN, device=outside, version=2)
        assert field.runs().count(2) == 3
        await revoke(field, 2)
        assert set(field.runs()) == {1}
        await field.rollouts.connected()  # the broker forgot everything, and is told again
        field.deliver()
        assert all(2 not in g.ran for g in field.gateways)
        await field.stop()

    asyncio.run(story())


def test_a_revocation_is_on_record_once(field: Field) -> None:
    field.publish(2)
    field.registry.revoke(TASK, 2, "floods alerts", field.now)
    for _ in range(2):
        note_revocations(field.registry, field.lineage, TASK, field.now)
    assert [(e.what, e.details) for e in field.lineage.events(TASK, 2)] == [("revoked", "floods alerts")]
