"""kill -9 of the broker in the middle of a round, on each engine: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_whole_loop import DEVICES, MOSQUITTO, make_site, owner, start, stored_alerts, until, waiting

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site
from vedette_aggregator.registry import Registry
from vedette_broker import ca, mosquitto, nats
from vedette_broker.nats_routes import make_route_bundles
from vedette_core.crypto.certificates import CertificateRole
from vedette_schemas.model import Variant
from vedette_schemas.round import Phase

NATS = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin")
START_S = 30.0


def embedded(fleet: Fleet, site: Site, port: int) -> None:
    fleet.start("broker", "broker", "run", "-c", str(site.broker_config))


def with_mosquitto(fleet: Fleet, site: Site, port: int) -> None:
    state, files = site.directory / "state" / "mosquitto", site.directory / "mosquitto"
    state.mkdir(parents=True, exist_ok=True)
    files.mkdir(exist_ok=True)
    bundle = site.directory / "ca" / "bundles" / "broker"
    config = mosquitto.MosquittoConfig("test-site", str(bundle), str(files), str(state), port=port, run_as=owner())
    for name, text in mosquitto.render(config).items():
        (files / name).write_text(text)
    fleet.start_program("broker", str(MOSQUITTO), "-c", str(files / mosquitto.CONF))


def write_nats(site: Site, folder: Path, config: nats.NatsConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    issued = [(i.id, CertificateRole(i.role)) for i in ca.list_issued(site.directory / "ca")]
    (folder / nats.USERS).write_text(nats.render_users("test-site", issued))
    (folder / nats.CONF).write_text(nats.render(config))
    return folder / nats.CONF


def nats_config(site: Site, folder: Path, port: int) -> nats.NatsConfig:
    said = subprocess.run([str(NATS), "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.split(":")[1].strip().removeprefix("v").split(".")[:2]
    return nats.NatsConfig(
        site="test-site",
        bundle=str(site.directory / "ca" / "bundles" / "broker"),
        state_directory=str(folder / "state"),
        port=port,
        client_port=free_port(),
        version=(int(major), int(minor)),
    )


def with_nats(fleet: Fleet, site: Site, port: int) -> None:
    folder = site.directory / "nats"
    conf = write_nats(site, folder, nats_config(site, folder, port))
    fleet.start_program("broker", str(NATS), "-c", str(conf))


ENGINES: dict[str, tuple[Callable[[Fleet, Site, int], None], str | None]] = {
    "embedded": (embedded, None),
    "mosquitto": (with_mosquitto, None if MOSQUITTO else "mosquitto is not installed (Debian package mosquitto)"),
    "nats": (with_nats, None if NATS else "nats-server is not installed (Debian package nats-server)"),
}


async def in_a_round(fleet: Fleet, observer: Observer) -> None:
    """Wait until groups have formed; collecting may be over between two looks, the round must not."""

    def begun() -> bool:
        assert not observer.completed | observer.failed, "the round was over before anything could be killed in it"
        return observer.phase("sensor") in (Phase.COLLECT, Phase.UNMASK)

    await until(fleet, "groups", begun)


async def check_nothing_is_lost(rest: Fleet, site: Site, observer: Observer) -> None:
    """Every device ended, so that every alert and update of its outbox has its receipt."""
    await until(rest, "devices end", rest.finished)
    registry = Registry(site.directory / "trust")
    assert registry.versions("sensor") == (0, 1)
    # All five were needed, and each counted once, whatever was sent again.
    assert registry.target("sensor", 1, Variant.WEIGHTS)[0].contributors == len(DEVICES)
    assert observer.failed == set()
    stored = stored_alerts(site)
    assert {device for device, _, _ in stored} == set(DEVICES)
    assert len(stored) == len(set(stored))
    assert [waiting(site, device) for device in DEVICES] == [0] * len(DEVICES)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_lost_when_the_broker_is_killed_in_a_round(tmp_path: Path, engine: str) -> None:
    run, absent = ENGINES[engine]
    if absent:
        pytest.skip(absent)
    port = free_port()
    site = make_site(tmp_path / "loop", port, speed=0)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as rest, Fleet(tmp_path / "logs") as first, Fleet(tmp_path / "logs") as second:
            run(first, site, port)
            first.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                start(rest, site)
                await in_a_round(rest, observer)
                first.kill()
                run(second, site, port)
                second.wait_for_port(port)
                await check_nothing_is_lost(rest, site, observer)

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_nothing_is_lost_when_a_server_of_a_nats_cluster_is_killed_in_a_round(tmp_path: Path) -> None:
    """Aggregator and observer speak to one server, devices to another; a third one is killed and stays away."""
    if NATS is None:
        pytest.skip("nats-server is not installed (Debian package nats-server)")
    ports, routes = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    site = make_site(tmp_path / "loop", ports[0], speed=0)
    for settings in site.device_configs.values():
        text = settings.read_text()
        assert f"port = {ports[0]}" in text
        settings.write_text(text.replace(f"port = {ports[0]}", f"port = {ports[1]}"))
    nodes = tuple(nats.ClusterNode(f"node-{number}", "127.0.0.1") for number in range(3))
    made = make_route_bundles("test-site", nodes, time.time())
    confs = []
    for number, node in enumerate(nodes):
        folder = site.directory / node.name
        (folder / "routes").mkdir(parents=True)
        for name, content in (("ca.crt", made[node.name].authority), ("tls.crt", made[node.name].certificate)):
            (folder / "routes" / name).write_bytes(content)
        (folder / "routes" / "tls.key").touch(0o600)
        (folder / "routes" / "tls.key").write_bytes(made[node.name].key)
        config = replace(
            nats_config(site, folder, ports[number]),
            node=number,
            cluster=nodes,
            route_host="127.0.0.1",
            route_ports=routes,
            routes_bundle=str(folder / "routes"),
        )
        confs.append(write_nats(site, folder, config))

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as rest, Fleet(tmp_path / "logs") as third:
            for number in range(2):
                rest.start_program(f"nats-{number}", str(NATS), "-c", str(confs[number]))
            third.start_program("nats-2", str(NATS), "-c", str(confs[2]))
            third.wait_for_port(ports[2])
            rest.wait_for_port(ports[1])
            async with Observer(site.analytics_bundle, "127.0.0.1", ports[0]) as observer:
                start(rest, site)
                await in_a_round(rest, observer)
                third.kill()
                await check_nothing_is_lost(rest, site, observer)

    asyncio.run(scenario())
