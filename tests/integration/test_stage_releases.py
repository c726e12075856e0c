"""A scenario's stage knows every release, though the repository keeps the newest ones only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from release_site import Site, describe, release_files

from vedette.demo import stage as stage_of_demo
from vedette.demo.stage import TASK, ReleaseFacts, Stage

ROUNDS = 6


def publish(site: Site, number: int) -> None:
    files = release_files(TASK, number)
    said = {
        variant: target.model_copy(update={"metrics": {"participants": "8", "groups": "2", "groups_dropped": "0"}})
        for variant, target in describe(TASK, number, files).items()
    }
    site.registry.publish(TASK, number, files, said, site.now)


def test_rounds_that_end_while_a_scenario_waits_for_something_else_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read_plan", "read_weights"):
        monkeypatch.setattr(stage_of_demo, name, lambda data: data)
    site = Site(tmp_path, (TASK,))
    site.repository.rename(tmp_path / "trust")
    site.registry = type(site.registry)(tmp_path / "trust")
    observer: Any = SimpleNamespace(completed=set(), failed=set())
    fleet: Any = SimpleNamespace(check=lambda: None)
    place: Any = SimpleNamespace(directory=tmp_path)
    diary: Any = SimpleNamespace()

    async def scenario() -> None:
        stage = Stage(place, fleet, observer, diary, 60.0, 0)
        told: list[int] = []
        stage.on_released = told.append
        watching = asyncio.create_task(stage.watch_releases())
        publish(site, 0)
        for number in range(1, ROUNDS + 1):
            publish(site, number)
            observer.completed.add((TASK, number))
            async with asyncio.timeout(60):
                while number not in stage.releases:
                    await asyncio.sleep(0.01)
        watching.cancel()
        await stage.until("rounds", lambda: stage.ended >= ROUNDS)
        assert len(site.registry.versions(TASK)) < ROUNDS
        assert stage.releases == {n: ReleaseFacts(n, 8, 2, 0) for n in range(1, ROUNDS + 1)}
        assert set(stage.models) >= set(range(1, ROUNDS + 1))
        assert told == list(range(1, ROUNDS + 1))

    asyncio.run(scenario())
