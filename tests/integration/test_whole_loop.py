"""The whole loop with real processes: readings in, alerts out, a signed model back; also when the broker dies."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_server import PrometheusServer, missing, panel_queries

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_broker.mosquitto import MosquittoConfig, render
from vedette_core.runtime.identity import client_context, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas import alert as alerts
from vedette_schemas.alert import AlertState
from vedette_schemas.model import Variant
from vedette_schemas.round import Phase
from vedette_schemas.topics import Topics

DASHBOARD = Path(__file__).parents[2] / "grafana" / "dashboards" / "fleet.json"
DEVICES = ("gw-1", "gw-2", "gw-3", "gw-4", "gw-5")
"""As many as the smallest group that may ever be opened."""
CHANNELS = ("flow_l_s", "level_m", "pressure_kpa")
ROWS, ATTACK_FROM, ATTACK_TO = 1_600, 1_200, 1_260
LIMIT_S = 120.0


MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def owner() -> str:
    """The user whose files these are: a Mosquitto that root starts drops to it, and must be able to read the keys."""
    return pwd.getpwuid(os.getuid()).pw_name


def write_recording(path: Path, seed: int) -> None:
    """A tank that fills and empties, and an attacker who adds to its level for sixty rows."""
    rng = np.random.default_rng(seed)
    t = np.arange(ROWS)
    flow = 5 + 2 * np.sin(t / 25 + seed) + rng.normal(0, 0.1, ROWS)
    level = 1.5 + 0.4 * np.sin(t / 25 + seed - 1.2) + rng.normal(0, 0.01, ROWS)
    pressure = 9.81 * level + rng.normal(0, 0.1, ROWS)
    level[ATTACK_FROM:ATTACK_TO] += 1.0
    rows = [
        f"{1_700_000_000 + 30 * i},{a:.4f},{b:.4f},{c:.4f}" for i, a, b, c in zip(t, flow, level, pressure, strict=True)
    ]
    path.write_text("\n".join([f"time_s,{','.join(CHANNELS)}", *rows]) + "\n")


def make_site(directory: Path, port: int, *, speed: float, checkin_s: float = 0.5, everything: bool = False) -> Site:
    """A site whose nodes replay recordings; with everything, attested nodes and releases in stages, too."""
    tables: dict[str, dict[str, Any]] = {}
    directory.mkdir()
    for i, device in enumerate(DEVICES):
        recording = directory / f"{device}.csv"
        write_recording(recording, i)
        tables[device] = {
            "telemetry_s": 0.5,
            "spool": {"resend_s": 1.0},
            "sensor": {
                "source": "file",
                "path": recording,
                "channels": list(CHANNELS),
                "period_s": 30.0,
                "training_windows": 500,
                "calibration_windows": 300,
                "replay": {"speed": speed, "wait_for_release": 1},
            },
        }
    task = {
        "task": "sensor",
        "use_case": "sensor",
        "channels": list(CHANNELS),
        "period_s": 30.0,
        "training": {"local_epochs": 5, "batch_size": 32, "learning_rate": 0.005, "examples_min": 64},
        "round": {
            "checkin_s": checkin_s,
            "collect_s": 20.0,
            "interval_s": 0.2,
            "rounds_max": 1,
            "quorum": 5,
            "group_size": 5,
        },
        "rollout": {"enabled": everything},
    }
    return create(
        directory / "site",
        "test-site",
        DEVICES,
        port=port,
        tasks=[task],
        device_tables=tables,
        attested=everything,
    )


def checkin_ends(observer: Observer) -> float:
    """When the check-in closes, as announced once enough devices are there; 0 before."""
    return observer.rounds["sensor"].checkin_until_s if "sensor" in observer.rounds else 0.0


def activated(observer: Observer, version: int) -> set[str]:
    return {device for device, _, of in observer.activated if of == version}


async def until(fleet: Fleet, what: str, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        fleet.check()
        assert time.monotonic() < limit, f"{what}: not within {LIMIT_S:.0f} s"
        await asyncio.sleep(0.1)


def start(fleet: Fleet, site: Site) -> None:
    fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
    for device, config in site.device_configs.items():
        fleet.start(device, "device", "run", "-c", str(config), ends=True)


def stored_alerts(site: Site) -> list[tuple[str, str, int]]:
    database = sqlite3.connect(site.directory / "state" / "aggregator" / "aggregator.db")
    return [(str(d), str(i), int(s)) for d, i, s in database.execute("SELECT device, id, seq FROM alerts")]


def waiting(site: Site, device: str) -> int:
    database = sqlite3.connect(site.directory / "state" / device / "device.db")
    return int(database.execute("SELECT COUNT(*) FROM outbox").fetchone()[0])


def kept_alerts(site: Site, device: str) -> set[tuple[str, str, int]]:
    """Alerts that wait in a device's outbox and are not at the aggregator."""
    database = sqlite3.connect(site.directory / "state" / device / "device.db")
    topic = Topics("test-site").alert(device)
    rows = database.execute("SELECT payload FROM outbox WHERE topic = ?", (topic,)).fetchall()
    found = [alerts.decode(bytes(payload)) for (payload,) in rows]
    return {(a.device, a.id, a.seq) for a in found} - set(stored_alerts(site))


def start_broker(engine: str, fleet: Fleet, site: Site, port: int) -> None:
    if engine == "mosquitto":
        state, files = site.directory / "state" / "mosquitto", site.directory / "mosquitto"
        state.mkdir(parents=True)
        bundle = site.directory / "ca" / "bundles" / "broker"
        config = MosquittoConfig("test-site", str(bundle), str(files), str(state), port=port, run_as=owner())
        files.mkdir()
        for name, text in render(config).items():
            (files / name).write_text(text)
        fleet.start_program("broker", str(MOSQUITTO), "-c", str(files / "mosquitto.conf"))
    else:
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
    fleet.wait_for_port(port)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("engine", ["embedded", "mosquitto"])
def test_readings_in_alerts_out_a_signed_model_back(tmp_path: Path, engine: str) -> None:
    if engine == "mosquitto" and MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (Debian package mosquitto)")
    port = free_port()
    site = make_site(tmp_path / "loop", port, speed=0)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as fleet:
            start_broker(engine, fleet, site, port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                start(fleet, site)
                await until(fleet, "devices end", fleet.finished)
                await until(fleet, "farewells", lambda: {s.status for s in observer.states.values()} == {"stopped"})
                # The devices' words and the aggregator's come on different connections.
                await until(fleet, "the end of the round", lambda: bool(observer.completed | observer.failed))

                assert observer.completed == {("sensor", 1)}
                registry = Registry(site.directory / "trust")
                assert registry.active("sensor") == 1
                signed = {registry.target("sensor", 1, v)[0].variant for v in (Variant.INT8, Variant.WEIGHTS)}
                assert signed == {Variant.INT8, Variant.WEIGHTS}
                assert activated(observer, 1) == set(DEVICES)
                assert {m.variant for s in observer.states.values() for m in s.models} == {"int8"}

                opened = {a.device for a in observer.alerts if a.state is AlertState.OPEN}
                assert opened == set(DEVICES)
                attacked = range(1_700_000_000 + 30 * ATTACK_FROM, 1_700_000_000 + 30 * (ATTACK_TO + 20))
                hits = {s.gateway for s in observer.sightings() if int(s.end_s) in attacked}
                assert hits == set(DEVICES)
                assert all("level" in a.summary for a in observer.alerts if a.state is AlertState.OPEN and a.count == 1)

                seen = {(a.device, a.id, a.seq) for a in observer.alerts}
                assert seen <= set(stored_alerts(site))
                assert [waiting(site, device) for device in DEVICES] == [0] * len(DEVICES)
                assert observer.rejected == 0

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_no_alert_is_lost_when_the_broker_dies(tmp_path: Path) -> None:
    port = free_port()
    # Each device waits for the release, and its attack comes 6 s later: without the broker.
    site = make_site(tmp_path / "loop", port, speed=2_000.0)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as rest, Fleet(tmp_path / "logs") as first:
            first.start("broker", "broker", "run", "-c", str(site.broker_config))
            first.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                start(rest, site)
                await until(rest, "release", lambda: activated(observer, 1) == set(DEVICES))
            first.kill()
            await until(rest, "alerts wait", lambda: all(kept_alerts(site, device) for device in DEVICES))
            kept = set[tuple[str, str, int]]().union(*(kept_alerts(site, device) for device in DEVICES))
            assert {device for device, _, _ in kept} == set(DEVICES), "what nobody received stays where it is"
            rest.start("broker-again", "broker", "run", "-c", str(site.broker_config))
            rest.wait_for_port(port)
            await until(rest, "devices end", rest.finished)
            stored = stored_alerts(site)
            assert kept <= set(stored)
            assert len(stored) == len(set(stored))
            assert [waiting(site, device) for device in DEVICES] == [0] * len(DEVICES)

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_a_killed_aggregator_goes_on_with_its_round(tmp_path: Path) -> None:
    port = free_port()
    site = make_site(tmp_path / "loop", port, speed=0, checkin_s=3.0)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as rest, Fleet(tmp_path / "logs") as first:
            rest.start("broker", "broker", "run", "-c", str(site.broker_config))
            rest.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                first.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                for device, config in site.device_configs.items():
                    rest.start(device, "device", "run", "-c", str(config), ends=True)
                # Everybody has checked in. One is held up: the round cannot go on before the aggregator is gone.
                await until(rest, "check-ins", lambda: checkin_ends(observer) > 0)
                rest.signal(DEVICES[0], signal.SIGSTOP)
                await until(rest, "groups", lambda: observer.phase("sensor") is Phase.COLLECT)
                first.kill()
                rest.signal(DEVICES[0], signal.SIGCONT)
                rest.start("aggregator-again", "aggregator", "run", "-c", str(site.aggregator_config))
                await until(rest, "devices end", rest.finished)
                # What they and the aggregator said last may still be on its way to the observer.
                await until(rest, "the end of the round", lambda: bool(observer.completed | observer.failed))
                await until(rest, "activations", lambda: activated(observer, 1) == set(DEVICES))
                assert observer.completed == {("sensor", 1)}
                assert Registry(site.directory / "trust").versions("sensor") == (0, 1)
                assert [waiting(site, device) for device in DEVICES] == [0] * len(DEVICES)

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_every_panel_shows_the_running_fleet(tmp_path: Path) -> None:
    absent = missing("prometheus")
    if absent:
        pytest.skip(absent)
    port, metrics_port = free_port(), free_port()
    site = make_site(tmp_path / "loop", port, speed=2_000.0, everything=True)
    config = site.aggregator_config.read_text()
    site.aggregator_config.write_text(f"{config}\n[metrics]\nenabled = true\nport = {metrics_port}\n")

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as fleet:
            fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
            fleet.wait_for_port(port)
            fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
            fleet.wait_for_port(metrics_port)
            (tmp_path / "prometheus").mkdir()
            with PrometheusServer(tmp_path / "prometheus", metrics_port) as prometheus:
                for device, device_config in site.device_configs.items():
                    fleet.start(device, "device", "run", "-c", str(device_config), ends=True)
                unseen = panel_queries(DASHBOARD)

                def all_seen() -> bool:
                    for title in [t for t, queries in unseen.items() if any(prometheus.series(q) for q in queries)]:
                        del unseen[title]
                    return not unseen

                await until(fleet, "devices end", lambda: all_seen() or fleet.finished())
                node = load_node(site.directory / "ca" / "bundles" / DEVICES[0], time.time())
                link = LinkConfig("127.0.0.1", port, node.id, client_context(node.bundle))
                async with MqttLink(link, nothing) as liar:
                    await liar.wait_connected(LIMIT_S)
                    limit = time.monotonic() + LIMIT_S
                    while not all_seen():
                        assert time.monotonic() < limit, f"not within {LIMIT_S:.0f} s, panels without series: {unseen}"
                        # What is no alert is counted by its reason, and harms nobody.
                        await liar.publish(Topics("test-site").alert(node.id), b"no alert")
                        await asyncio.sleep(0.5)
                        fleet.check()

    asyncio.run(scenario())


async def nothing(message: MqttMessage) -> None:
    """Takes what nobody asked for."""
