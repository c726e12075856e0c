"""Every verb of `vedette rollout` against a running aggregator and its devices: state, audit, retained word, choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vedette.demo.bad_release import TASK, Scene
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.plant import CHANNELS, PERIOD_S, PlantFeed, sensor_table
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_core.crypto.cohorts import cohort
from vedette_schemas.rollout import RolloutPhase, RolloutState

pytest.importorskip("ai_edge_quantizer", reason="builds the variants of a release")

DEVICES = [f"gw-{number}" for number in range(1, 6)]
LIMIT_S = 240.0
ROLLOUT = {
    "enabled": True,
    "stages": [40.0, 100.0],
    "devices_min": 2,
    "approve": [0.0],
    "settle_s": 0.5,
    "check_s": 0.2,
    "soak_s": 3600.0,
}
"""Nothing happens by itself once a stage has begun: what happens is what was asked for."""


def make_site(directory: Path, feed: PlantFeed, port: int) -> Site:
    task = {
        "task": TASK,
        "use_case": "sensor",
        "channels": list(CHANNELS),
        "period_s": PERIOD_S,
        "training": {"local_epochs": 5, "batch_size": 32, "learning_rate": 0.003, "examples_min": 64},
        "round": {
            "checkin_s": 2.0,
            "collect_s": 30.0,
            "interval_s": 0.2,
            "rounds_max": 2,
            "quorum": 5,
            "group_size": 5,
            "clip_norm": 20.0,
        },
        "rollout": ROLLOUT,
    }
    tables = {
        device: {"telemetry_s": 1.0, "spool": {"resend_s": 5.0}, "sensor": sensor_table(path)}
        for device, path in feed.paths.items()
    }
    return create(directory, "verbs", DEVICES, port=port, tasks=[task], device_tables=tables)


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[tuple[Scene, int]]:
    feed, port = PlantFeed(folder / "readings", DEVICES), free_port()
    site = make_site(folder / "site", feed, port)
    with Fleet(folder / "logs") as fleet:
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
            scene = Scene(site, fleet, observer, feed, time.monotonic() + LIMIT_S, plain=False)
            scene.start_aggregator()
            for device, config in site.device_configs.items():
                fleet.start(device, "device", "run", "-c", str(config))
            streaming = asyncio.create_task(scene.stream(), name="readings")
            try:
                yield scene, port
            finally:
                streaming.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await streaming


class Person:
    """Who decides, at a terminal.

    Args:
        scene: what runs.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.asked = scene, list[tuple[str, str]]()
        self._config = str(scene.site.aggregator_config)

    async def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vedette.main", "rollout", *arguments, "-c", self._config]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

    async def ask(self, verb: str, *arguments: str, about: str = "") -> None:
        """Ask for something that is done."""
        done = await self._run(verb, *arguments, "--by", "first-shift", "--wait", "60")
        assert done.returncode == 0, done.stderr
        assert f"{verb} done" in done.stdout
        self.asked.append((verb, about))

    async def refused(self, verb: str, says: str) -> None:
        """Ask for something that means nothing now."""
        done = await self._run(verb, "--by", "first-shift")
        assert done.returncode == 3, done.stderr
        assert says in done.stderr

    async def shown(self) -> dict[str, Any]:
        """What `vedette rollout show` says."""
        done = await self._run("show", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    async def shown_as(self, phase: str) -> dict[str, Any]:
        """What it says once a rollout is in a phase: a release is listed before its rollout knows of it."""
        while (found := await self.shown())["phase"] != phase:
            assert time.monotonic() < self.scene.limit, f"found the rollout {found['phase']}, expected {phase}"
        return found

    async def told(self, phase: RolloutPhase, after: int) -> RolloutState:
        """The state that devices are told then; its number is above what was told before."""
        scene = self.scene

        def is_said() -> bool:
            return scene.rollout is not None and scene.rollout.seq > after and scene.rollout.state is phase

        await scene.until(f"{phase.value} is said", is_said)
        assert scene.rollout is not None
        return scene.rollout

    async def all_on(self, what: str, expected: dict[str, int]) -> None:
        """Wait until every device runs what it should."""

        def there() -> bool:
            return all(device in self.scene.running(version) for device, version in expected.items())

        await self.scene.until(what, there)


@pytest.mark.timeout(300)
def test_every_verb(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with playing(tmp_path) as (scene, port):
            await every_verb(scene)
            last = scene.rollout
            await scene.observer.close()
            async with Observer(scene.site.analytics_bundle, "127.0.0.1", port) as late:
                await scene.until("what is retained comes", lambda: TASK in late.rollouts)
            assert late.rollouts[TASK] == [last], "whoever comes late is told the last word, and no other"

    asyncio.run(scenario())


async def every_verb(scene: Scene) -> None:
    person, everybody = Person(scene), set(DEVICES)
    registry = Registry(scene.site.directory / "trust")
    await scene.until("a candidate is listed", lambda: registry.versions(TASK)[-1:] == (2,))
    await person.all_on("release 1", dict.fromkeys(DEVICES, 1))
    shown = await person.shown_as("waiting")
    assert (shown["awaits_approval"], shown["active"]) == (0.0, 1)
    assert scene.rollout is None, "nobody is told of a rollout whose start waits for approval"
    await person.refused("pause", "found the rollout waiting, expected it running")

    await person.ask("start")
    said = await person.told(RolloutPhase.RUNNING, 0)
    canary = {device for device in DEVICES if cohort(said, device) == "candidate"}
    control = {device for device in DEVICES if cohort(said, device) == "control"}
    assert (len(canary), said.members, len(control)) == (2, tuple(sorted(canary)), 2)
    stage_1 = {device: 2 if device in canary else 1 for device in DEVICES}
    await person.all_on("the canary stage", stage_1)

    await person.ask("pause")
    said = await person.told(RolloutPhase.PAUSED, said.seq)
    assert (await person.shown())["reason"] == "pause by first-shift"
    await person.all_on("who runs it keeps it", stage_1)
    await person.refused("approve", "found nothing that waits for approval")

    await person.ask("resume")
    said = await person.told(RolloutPhase.RUNNING, said.seq)

    pinned = min(control)
    await person.ask("pin", pinned, "--version", "2", about=f"{pinned} 2")
    said = await person.told(RolloutPhase.RUNNING, said.seq)
    assert [(pin.device, pin.version) for pin in said.pins] == [(pinned, 2)]
    await person.all_on("the pinned device", {**stage_1, pinned: 2})
    await person.ask("unpin", pinned, about=pinned)
    said = await person.told(RolloutPhase.RUNNING, said.seq)
    assert said.pins == ()
    await person.all_on("the pinned device is back", stage_1)

    await person.ask("abort")
    said = await person.told(RolloutPhase.ABORTED, said.seq)
    await person.all_on("everybody back after abort", dict.fromkeys(DEVICES, 1))
    assert (await person.shown())["withdrawn"] == []

    await person.ask("create", "--version", "2", about="2")
    assert (await person.shown())["phase"] == "waiting"
    await person.ask("approve")
    said = await person.told(RolloutPhase.RUNNING, said.seq)
    assert said.rollout == 2

    await person.ask("promote")
    said = await person.told(RolloutPhase.PROMOTED, said.seq)
    assert registry.active(TASK) == 2
    await person.all_on("everybody on the promoted release", dict.fromkeys(DEVICES, 2))

    await person.ask("rollback")
    said = await person.told(RolloutPhase.ROLLED_BACK, said.seq)
    assert registry.active(TASK) == 1
    await person.all_on("everybody back after rollback", dict.fromkeys(DEVICES, 1))

    shown = await person.shown()
    assert (shown["phase"], shown["active"], shown["withdrawn"]) == ("rolled-back", 1, [2])
    done = [(e["verb"], e["about"]) for e in shown["audit"] if e["outcome"] == "done"]
    assert done == person.asked
    assert {e["by"] for e in shown["audit"]} == {"first-shift"}
    assert [(p["rollout"], p["phase"]) for p in shown["history"]] == [(1, "aborted"), (2, "rolled-back")]
    exposed = {device for device, task, version in scene.observer.activated if (task, version) == (TASK, 2)}
    assert exposed == everybody
