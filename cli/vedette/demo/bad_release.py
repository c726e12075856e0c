"""The scenario ``bad-release``: a signed release floods alerts, is caught in its canary stage, and undoes itself.

Every gateway is a real node. The aggregator is restarted twice: politely, when the release is signed, and by a power
cut in the middle of the canary stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vedette.demo import plan
from vedette.demo.bad_candidate import publish_bad_candidate
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.plant import CHANNELS, PERIOD_S, PlantFeed, sensor_table
from vedette.demo.stage import FLAG, ScenarioOptions
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_aggregator.rollout_desk import open_desk
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.crypto.cohorts import cohort
from vedette_core.runtime.config import load
from vedette_schemas.alert import AlertState
from vedette_schemas.errors import TransientError
from vedette_schemas.rollout import RolloutPhase, RolloutState

NAME: Final = "bad-release"
TASK: Final = "sensor"
DEVICES: Final = 8
CANARY: Final = 2
"""Devices of the first stage, and of its control cohort: a quarter each."""
ROWS_A_TICK: Final = 4
TICK_S: Final = 0.1
AFTER_S: Final = 3.0
"""How long the fleet is watched after everybody is back: nobody may try the release again."""
ROLLOUT: Final = {
    "enabled": True,
    "stages": [25.0, 50.0, 100.0],
    "devices_min": CANARY,
    "settle_s": 2.0,
    "check_s": 0.5,
    "soak_s": 60.0,
    "patience_s": 60.0,
    "mass_alerts": 2,
}
"""Short waits, and the gates of a fleet: the release is caught by its alerts, long before the soak is over."""


@dataclass
class Scene:
    """What runs, and what was seen.

    Attributes:
        site: the site.
        fleet: its processes.
        observer: watches over MQTT.
        feed: the gateways' readings.
        limit: monotonic second at which the scenario gives up.
    """

    site: Site
    fleet: Fleet
    observer: Observer
    feed: PlantFeed
    limit: float
    plain: bool
    restarts: int = 0
    _fault: list[BaseException] = field(default_factory=list)

    @property
    def rollout(self) -> RolloutState | None:
        """What devices were told last."""
        told = self.observer.rollouts.get(TASK)
        return told[-1] if told else None

    def running(self, version: int) -> set[str]:
        """Devices that report a release as active and confirmed."""
        return {
            device
            for device, state in self.observer.states.items()
            for model in state.models
            if model.version == version
        }

    def confirmed(self, candidate: int) -> set[str]:
        """Devices that confirmed a candidate."""
        return {
            device
            for device, state in self.observer.states.items()
            for progress in state.rollouts
            if (progress.candidate, progress.outcome) == (candidate, "confirmed")
        }

    def armed(self) -> set[str]:
        """Devices whose detector scores."""
        return {d for d, r in self.observer.reports.items() if any(x.model_version for x in r.detectors)}

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            TransientError: a process ended, or it took too long.
        """
        while not condition():
            self.fleet.check()
            if self._fault:
                raise self._fault[0]
            if time.monotonic() > self.limit:
                raise TransientError(f"{what}: not in time; see the logs in {self.fleet.logs}")
            await asyncio.sleep(TICK_S)

    async def stream(self) -> None:
        """Write readings until cancelled."""
        try:
            while True:
                await asyncio.to_thread(self.feed.next, ROWS_A_TICK)
                await asyncio.sleep(TICK_S)
        except OSError as fault:
            self._fault.append(fault)

    def start_aggregator(self) -> None:
        """Start the aggregator."""
        flags = (FLAG,) if self.plain else ()
        self.fleet.start("aggregator", "aggregator", "run", "-c", str(self.site.aggregator_config), *flags)

    def end_aggregator(self, how: signal.Signals) -> None:
        """End the aggregator; it is started again later."""
        self.fleet.end("aggregator", how)
        self.restarts += 1


async def run_bad_release(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    async with _staged(options) as scene:
        devices = sorted(scene.site.device_configs)
        await scene.until("first release", lambda: len(scene.running(1)) == DEVICES and len(scene.armed()) == DEVICES)
        options.on_line(f"release 1 runs on {DEVICES} gateways; a bad release is signed while the aggregator is down")
        scene.end_aggregator(signal.SIGTERM)
        settings = load(AggregatorSettings, scene.site.aggregator_config)
        registry = Registry(scene.site.directory / "trust")
        bad = await asyncio.to_thread(publish_bad_candidate, registry, settings.tasks[0])
        scene.start_aggregator()
        await scene.until("canary stage", lambda: len(scene.confirmed(bad)) >= CANARY)
        before = scene.rollout
        assert before is not None, "somebody was told to run it"
        canary = {d for d in devices if cohort(before, d) == "candidate"}
        control = {d for d in devices if cohort(before, d) == "control"}
        options.on_line(f"release {bad} is confirmed on {', '.join(sorted(canary))}; the power of the aggregator goes")
        scene.end_aggregator(signal.SIGKILL)
        scene.start_aggregator()
        scene.observer.rollouts[TASK].clear()
        await scene.until("the same rollout after the power cut", lambda: scene.rollout is not None)
        same = scene.rollout == before
        options.on_line("the pump runs")
        scene.feed.runs = True
        await scene.until("roll-back", lambda: _ended(scene))
        ended, ended_s = scene.rollout, time.time()
        await scene.until("everybody back", lambda: scene.running(1) >= set(devices))
        back_s = time.time()
        options.on_line(f"rolled back after {ended_s - _first_alert_s(scene, bad):.1f} s of alerts")
        await asyncio.sleep(AFTER_S)
        exposed = {device for device, task, version in scene.observer.activated if (task, version) == (TASK, bad)}
        flooded = [a for a in scene.observer.alerts if a.state is AlertState.OPEN and a.model.version == bad]
        others = [a for a in scene.observer.alerts if a.state is AlertState.OPEN and a.model.version != bad]
        with open_desk(settings) as desk:
            shown = desk.details(TASK)
        first_s = _first_alert_s(scene, bad)
        return {
            "scenario": NAME,
            "protection": "none" if options.plain else "masked",
            "rolled_back": ended is not None and ended.state is RolloutPhase.ROLLED_BACK,
            "devices_exposed": len(exposed),
            "devices_total": DEVICES,
            "canary_stage_devices": CANARY,
            "seconds_to_rollback": round(ended_s - first_s, 1),
            "seconds_until_all_back": round(back_s - first_s, 1),
            "alerts_flooded": len(flooded),
            "alerts_elsewhere": len(others),
            "control_devices": sorted(control),
            "control_changed": bool(exposed & control),
            "aggregator_restarts": scene.restarts,
            "restart_changed_nothing": same,
            "active_release": registry.active(TASK),
            "withdrawn": shown["withdrawn"],
            "on_bad_release_at_the_end": sorted(scene.running(bad)),
            "reason": shown["reason"],
            "seconds": round(time.monotonic() - started, 1),
        }


def broken_bad_release(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    if not figures["rolled_back"]:
        broken.append("the release was not rolled back")
    if figures["devices_exposed"] > figures["canary_stage_devices"]:
        broken.append(f"{figures['devices_exposed']} devices ran it, expected {figures['canary_stage_devices']}")
    if not figures["alerts_flooded"]:
        broken.append("it raised no alert: nothing was shown")
    if figures["control_changed"]:
        broken.append("a device of the control cohort ran it")
    if not figures["restart_changed_nothing"]:
        broken.append("the restart changed the rollout")
    if figures["on_bad_release_at_the_end"]:
        broken.append(f"still on it: {', '.join(figures['on_bad_release_at_the_end'])}")
    if figures["active_release"] != 1:
        broken.append(f"release {figures['active_release']} is active, expected release 1")
    return broken


def _ended(scene: Scene) -> bool:
    return scene.rollout is not None and scene.rollout.state not in (RolloutPhase.RUNNING, RolloutPhase.PAUSED)


def _first_alert_s(scene: Scene, version: int) -> float:
    """When the first alert of a release was seen here, epoch seconds."""
    return min((at for at, alert in scene.observer.seen_at if alert.model.version == version), default=time.time())


@asynccontextmanager
async def _staged(options: ScenarioOptions) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        base = options.keep
        if base is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vedette-demo-")))
        base.mkdir(parents=True, exist_ok=True)
        devices = [f"gw-{number}" for number in range(1, DEVICES + 1)]
        feed = PlantFeed(base / "readings", devices)
        port = free_port()
        site = _make_site(base / "site", feed, port)
        flags = (FLAG,) if options.plain else ()
        fleet = stack.enter_context(Fleet(base / "logs"))
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        observer = await stack.enter_async_context(Observer(site.analytics_bundle, "127.0.0.1", port))
        scene = Scene(site, fleet, observer, feed, time.monotonic() + options.timeout_s, options.plain)
        scene.start_aggregator()
        for device, config in site.device_configs.items():
            fleet.start(device, "device", "run", "-c", str(config), *flags)
        streaming = asyncio.create_task(scene.stream(), name="readings")
        try:
            yield scene
        finally:
            streaming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await streaming


def _make_site(directory: Path, feed: PlantFeed, port: int) -> Site:
    task = {
        "task": TASK,
        "use_case": "sensor",
        "channels": list(CHANNELS),
        "period_s": PERIOD_S,
        "training": {"local_epochs": 20, "batch_size": 32, "learning_rate": 0.003, "examples_min": 64},
        "round": {
            "checkin_s": 2.0,
            "collect_s": 30.0,
            "interval_s": 0.2,
            "rounds_max": 1,
            "quorum": 5,
            "group_size": DEVICES,
            "clip_norm": 20.0,
        },
        "rollout": ROLLOUT,
    }
    tables = {
        device: {"telemetry_s": 1.0, "spool": {"resend_s": 5.0}, "sensor": sensor_table(path)}
        for device, path in feed.paths.items()
    }
    return create(directory, plan.SITE, list(feed.paths), port=port, tasks=[task], device_tables=tables)
