"""Automatic actions and rollouts: one of them makes releases active, and never both."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_field import TASK, Field

from vedette import toml_writer
from vedette_aggregator import alert_store, device_book
from vedette_aggregator.action_machine import Act
from vedette_aggregator.actions import Actions, Hands
from vedette_aggregator.device_book import DeviceBook
from vedette_aggregator.rollout_events import Verb
from vedette_aggregator.rollout_state import Phase
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.runtime.config import load
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database

DEVICES = 12


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Both:
    """A field whose automatic actions and rollouts share a repository; `activations` is what was asked of that."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.field = field = Field(folder, monkeypatch, validated=False, devices=DEVICES, stages=(50.0, 100.0))
        config = folder / "aggregator.toml"
        tables = {
            "site": "plant",
            "state_dir": folder / "state",
            "trust_dir": field.registry._files.directory,
            "identity": {"bundle": folder / "bundle"},
            "actions": {"rollback": "on", "reports_min": 1, "recalibrate": "off", "extra_round": "off"},
            "tasks": [{"task": TASK, "use_case": "network"}],
        }
        config.write_text(toml_writer.dumps(tables))
        database = Database(folder / "state" / "aggregator.db", alert_store.TABLES + device_book.TABLES)
        self.book, self.metrics = DeviceBook(database), Metrics(AGGREGATOR_METRICS)
        hands = Hands(
            field.carry_out, lambda _: None, lambda _: None, self._no_round, lambda task: field.rollouts.look(task)
        )
        post: Any = SimpleNamespace()
        settings = load(AggregatorSettings, config)
        self.actions = Actions(settings, database, self.book, self.metrics, field.registry, post, hands)
        self.activations: list[int] = []
        activate = field.registry.activate

        def counted(task: str, version: int, now: float) -> Any:
            self.activations.append(version)
            return activate(task, version, now)

        monkeypatch.setattr(field.registry, "activate", counted)

    async def _no_round(self, task: str, event: Any) -> None:
        raise AssertionError("no round is asked for")

    async def start(self) -> None:
        await self.field.start()
        self.actions.take_back = self.field.rollouts.roll_back

    async def promoted(self) -> None:
        """As the service tells it."""
        await self.actions.released(TASK, 2, self.field.now, fresh=True, promoted=True)

    async def flood(self, version: int) -> None:
        """Every device reports that it scored with a release, and opens an alert."""
        for gateway in self.field.gateways:
            report: Any = SimpleNamespace(
                task=TASK, phase="armed", windows=9, model_version=version, drift=None
            )  # fmt: skip
            await self.actions.took_report(gateway.name, (report,), self.field.now)
        for gateway in self.field.gateways:
            await self.actions.alert_opened(gateway.name, TASK, version, self.field.now)

    def outcomes(self) -> list[str]:
        return [a.outcome for a in self.book.actions() if a.kind == "rollback"]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(tmp_path, monkeypatch)


async def calm(both: Both, version: int) -> None:
    """Devices score with a release before there is another."""
    for gateway in both.field.gateways:
        report: Any = SimpleNamespace(task=TASK, phase="armed", windows=9, model_version=version, drift=None)
        await both.actions.took_report(gateway.name, (report,), both.field.now)


def test_a_release_that_was_just_promoted_goes_back_through_its_rollout(both: Both) -> None:
    async def story() -> None:
        field = both.field
        await both.start()
        await calm(both, 1)
        await field.begin()
        await both.actions.released(TASK, 2, field.now, fresh=True)
        await field.ask(Verb.PROMOTE)
        await field.until(Phase.PROMOTED)
        field.deliver()
        field.now += 7200.0  # the candidate was new two hours ago; as everybody's release it is
        await both.promoted()
        await both.flood(2)
        await field.until(Phase.ROLLED_BACK)
        field.deliver()
        assert set(field.runs()) == {1}
        assert both.activations == [2, 1], "once there, once back, by one hand"
        assert "an automatic action (6 of 12 devices on release 2 fire" in field.record.reason
        assert both.outcomes() == ["begun", "done"]
        act = Act(TASK, "rollback", "on", "", 2, "again")
        await both.actions._act(act, field.now)
        assert both.outcomes()[-1] == "nothing"
        assert (both.activations, field.registry.active(TASK)) == ([2, 1], 1)
        await field.stop()

    asyncio.run(story())


def test_a_rollout_under_way_is_ended_and_the_repository_left_alone(both: Both) -> None:
    async def story() -> None:
        field = both.field
        await both.start()
        await field.begin()
        await both.actions._act(Act(TASK, "rollback", "on", "", 2, "devices fire"), field.now)
        assert field.record.phase is Phase.ROLLED_BACK
        assert set(field.runs()) == {1}
        assert (both.activations, both.outcomes()) == ([], ["begun", "done"])
        await field.stop()

    asyncio.run(story())


def test_a_release_that_no_rollout_brought_goes_back_through_the_repository(both: Both) -> None:
    async def story() -> None:
        field = both.field
        await both.start()
        field.publish(2)  # active at once: below `from_version`, or rollouts were turned on later
        field.deliver()
        await field.rollouts.look(TASK)
        assert set(field.runs()) == {2}
        await both.actions._act(Act(TASK, "rollback", "on", "", 2, "devices fire"), field.now)
        field.deliver()
        assert (both.activations, set(field.runs())) == ([1], {1})
        for _ in range(2):
            assert (field.record.active, field.record.phase) == (1, Phase.IDLE), "it is not tried again by itself"
            await field.stop()
            await field.start()
        await field.stop()

    asyncio.run(story())
