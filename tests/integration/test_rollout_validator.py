"""Rollouts where a validator signs, too: what waits for it, what does not, and what comes of a refusal."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from rollout_field import TASK, Field

from vedette_aggregator import rollouts as shell_of_rollouts
from vedette_aggregator.countersigning import Countersigning, Verdict
from vedette_aggregator.registry_files import RepositoryFiles
from vedette_aggregator.rollout_events import DeviceAlerted, Verb
from vedette_aggregator.rollout_state import Phase


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    return Field(tmp_path, monkeypatch, validated=True)


def test_a_promotion_waits_for_the_validator_and_is_never_half_done(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        exposed = field.runs()
        assert sorted(exposed, key=str).count(2) == 2, "a stage of 20 % of six devices"
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        await asyncio.sleep(0.1)  # it is tried again a few times
        field.deliver()
        assert (field.record.phase, field.registry.active(TASK)) == (Phase.PROMOTING, 1)
        assert field.runs() == exposed
        await field.stop()
        await field.start()  # a restart in the middle
        field.look()
        await field.until(Phase.PROMOTED)
        field.deliver()
        assert field.registry.active(TASK) == 2
        assert set(field.runs()) == {2}
        assert field.promoted == [2]
        await field.stop()

    asyncio.run(story())


@pytest.mark.parametrize("signed", [False, True])
def test_a_promotion_that_waits_is_taken_back_at_once(
    field: Field, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    """Also in the moment between the validator's signature and the next try."""
    monkeypatch.setattr(shell_of_rollouts, "RETRY_S", 3600.0)

    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        if signed:
            field.look()
        await field.ask(Verb.ROLLBACK)
        assert set(field.runs()) == {1}, "before anything else happens"
        await field.until(Phase.ROLLED_BACK)
        assert field.waiting == 0
        assert not field.registry.complete(field.now)
        field.look()
        assert not field.registry.complete(field.now), "the signature under it counts no more"
        field.deliver()
        assert (field.registry.active(TASK), set(field.runs())) == (1, {1})
        assert field.promoted == []
        await field.stop()

    asyncio.run(story())


def test_devices_go_back_from_a_promoted_release_while_the_validator_is_away(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        field.look()
        await field.until(Phase.PROMOTED)
        field.deliver()
        assert set(field.runs()) == {2}
        await field.ask(Verb.ROLLBACK)
        assert set(field.runs()) == {1}
        await field.until_proposed()
        field.deliver()
        assert (field.record.phase, field.registry.active(TASK)) == (Phase.REVERTING, 2)
        assert set(field.runs()) == {1}, "although signed metadata call release 2 active"
        await field.stop()
        await field.start()
        field.deliver()
        assert (field.record.phase, set(field.runs())) == (Phase.REVERTING, {1})
        assert (field.record.active, field.record.rounds_from({0, 1, 2})) == (2, 1)
        field.look()
        await field.until(Phase.ROLLED_BACK)
        field.deliver()
        assert (field.registry.active(TASK), set(field.runs())) == (1, {1})
        assert field.record.rounds_from({0, 1, 2}) == 1
        await field.stop()

    asyncio.run(story())


def test_a_promotion_that_the_validator_refuses_ends_the_rollout(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        folder = Countersigning(RepositoryFiles(field.registry._files.directory))
        ((path, _, _),) = folder.waiting()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        folder.answer(path, Verdict(sha256=digest, reason="it has gone blind"))
        await field.until(Phase.ROLLED_BACK)
        assert "the validator refuses it: it has gone blind" in field.record.reason
        field.deliver()
        assert (field.registry.active(TASK), set(field.runs()), field.waiting) == (1, {1}, 0)
        await field.stop()

    asyncio.run(story())


def test_mass_alerts_are_heard_while_a_promotion_waits(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        exposed = [g for g in field.gateways if g.runs == 2]
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        for gateway in exposed:
            for _ in range(field.settings.mass_alerts):
                await field.rollouts._handle(TASK, DeviceAlerted(gateway.name, 2))
        assert set(field.runs()) == {1}
        await field.until(Phase.ROLLED_BACK)
        assert field.waiting == 0
        await field.stop()

    asyncio.run(story())


def test_what_happened_is_on_record(field: Field) -> None:
    async def story() -> None:
        await field.start()
        await field.begin()
        await field.ask(Verb.PAUSE)
        await field.ask(Verb.RESUME)
        await field.ask(Verb.PIN, device="gw-03", version=2)
        await field.ask(Verb.PROMOTE)
        await field.until_proposed()
        await field.ask(Verb.ROLLBACK)
        await field.until(Phase.ROLLED_BACK)
        await field.stop()

    asyncio.run(story())
    assert [(e.what, e.details) for e in field.lineage.events(TASK, 2)] == [
        ("rollout started", "rollout 1, over release 1"),
        ("rollout stage", "20 %: 2 of 6 devices"),
        ("rollout paused", "pause by somebody"),
        ("rollout resumed", ""),
        ("pinned", "gw-03"),
        ("promotion begun", "promote by somebody"),
        ("rollback begun", "rollback by somebody"),
        ("withdrawn", ""),
        ("rolled back", "rollout 1, 2 devices exposed: rollback by somebody"),
    ]
