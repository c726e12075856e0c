"""What happens beside the aggregator: commands change its repository; devices run what it never signed."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from release_site import START, Site

from vedette_aggregator import registry_watch
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_watch import ForeignReleases, RegistryFollower
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_schemas.errors import ConfigError
from vedette_schemas.model import Variant
from vedette_schemas.telemetry import ActiveModel, DeviceState


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(registry_watch, "LOOK_S", 0.0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, ["network"])
    for version in range(5):
        site.publish("network", version)
    return site


def state(device: str, version: int, digest: str) -> DeviceState:
    model = ActiveModel(task="network", version=version, variant="int8", digest=digest, backend="litert")
    return DeviceState(
        device=device,
        status="online",
        session="00" * 8,
        seq=1,
        time="2026-03-01T12:00:00Z",
        software="0",
        models=(model,),
    )


class Watched:
    """The watch, with what it counts."""

    def __init__(self, site: Site) -> None:
        self.site, self.metrics = site, Metrics(AGGREGATOR_METRICS)
        self.watch = ForeignReleases(Registry(site.repository), self.metrics)

    @property
    def devices(self) -> float | None:
        return self.metrics.registry.get_sample_value("vedette_foreign_release_devices", {"task": "network"})

    def digest(self, version: int) -> str:
        return self.site.registry.listed("network", version)[Variant.INT8].sha256


def test_devices_that_run_what_was_signed_are_no_finding(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(site)
    assert watched.devices == 0
    for version in (2, 3, 4):
        watched.watch.take(state("gw-01", version, watched.digest(version)))
    watched.watch.take(state("gw-02", 1, "ab" * 32))  # from before those that are kept: nobody can tell any more
    site.publish("network", 5)
    watched.watch.take(state("gw-01", 5, watched.digest(5)))  # published since it was looked at last
    revoked = watched.digest(5)
    site.registry.revoke("network", 5, "floods alerts", START)
    watched.watch.take(state("gw-01", 5, revoked))  # ours, and about to be dropped
    assert watched.devices == 0
    assert not caplog.records


def test_a_release_of_a_thief_is_counted_and_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(site)
    for device in ("gw-01", "gw-02", "gw-01"):
        watched.watch.take(state(device, 5, "ab" * 32))  # the next number
    watched.watch.take(state("gw-03", 4, "cd" * 32))  # the number of a sound one
    assert watched.devices == 3
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(said) == 3
    assert "gw-01 runs release 5 of network" in said[0]
    assert f"--sha256 {'ab' * 32}" in said[0]
    watched.watch.take(state("gw-01", 4, watched.digest(4)))
    assert watched.devices == 2


def test_a_device_that_lies_does_not_fill_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_watch, "REPORTED_MAX", 5)
    watched = Watched(site)
    for n in range(40):
        watched.watch.take(state("gw-01", 9, f"{n:064x}"))
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 5
    assert watched.devices == 1


def test_a_damaged_repository_stops_no_message(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(site)
    (site.repository / "metadata" / "timestamp.json").write_bytes(b"rotten")
    watched.watch.take(state("gw-01", 5, "ab" * 32))
    assert "release repository:" in caplog.text


def test_what_a_command_changes_is_published_and_followed(site: Site) -> None:
    put_out: list[Publication] = []
    followed: list[str] = []

    async def follow(task: str) -> None:
        followed.append(task)

    def publish(publication: Publication) -> None:
        put_out.append(publication)
        follower.note(publication)

    follower = RegistryFollower(site.registry, publish, follow)

    async def look() -> None:
        await follower.look()

    asyncio.run(look())
    assert put_out == []
    Registry(site.repository).revoke("network", 4, "floods alerts", START)
    asyncio.run(look())
    assert followed == ["network"]
    site.deliver(put_out[0])
    assert site.device().refresh()[0].version == 3
    asyncio.run(look())
    assert len(put_out) == 1, "once"
    follower.note(site.publish("network", 5))  # what this process publishes itself is no news
    asyncio.run(look())
    assert len(put_out) == 1


class Followed:
    """A follower, with what it publishes and follows; following may be made to fail."""

    def __init__(self, site: Site) -> None:
        self.put_out: list[Publication] = []
        self.followed: list[str] = []
        self.broken: set[str] = set()
        self.follower = RegistryFollower(site.registry, self.publish, self.follow)

    def publish(self, publication: Publication) -> None:
        self.put_out.append(publication)
        self.follower.note(publication)

    async def follow(self, task: str) -> None:
        if task in self.broken:
            raise ConfigError(f"{task}: its record cannot be written")
        self.followed.append(task)

    def look(self) -> list[str]:
        """Look once; returns which tasks were followed."""
        self.followed = []
        asyncio.run(self.follower.look())
        return self.followed


@pytest.fixture
def two(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    for version in range(3):
        for task in site.tasks:
            site.publish(task, version)
    return site


def test_a_task_that_could_not_be_followed_is_followed_later_and_keeps_no_other_from_it(two: Site) -> None:
    watch = Followed(two)
    Registry(two.repository).revoke("network", 2, "floods alerts", START)
    watch.broken = {"sensor"}
    assert watch.look() == ["network"]
    assert watch.look() == []
    watch.broken = set()
    assert watch.look() == ["sensor"]
    assert watch.look() == []
    assert len(watch.put_out) == 1, "published once"


def test_a_change_that_this_process_publishes_over_before_it_looked_is_not_lost(two: Site) -> None:
    watch = Followed(two)
    Registry(two.repository).revoke("network", 2, "floods alerts", START)
    watch.publish(two.publish("sensor", 3))
    assert watch.look() == ["network", "sensor"]
    two.deliver(watch.put_out[-1])
    assert {m.task: m.version for m in two.device().refresh()} == {"network": 1, "sensor": 3}
    assert watch.look() == []


def test_what_changed_nothing_hides_no_change(two: Site) -> None:
    """A call that is repeated publishes what is there: somebody else's change, too, but of one task only."""
    watch = Followed(two)
    Registry(two.repository).revoke("network", 2, "floods alerts", START)
    watch.publish(two.registry.activate("sensor", 2, START))
    assert watch.look() == ["network", "sensor"]


def test_a_repository_that_cannot_be_read_is_read_again(two: Site) -> None:
    watch = Followed(two)
    Registry(two.repository).revoke("network", 2, "floods alerts", START)
    newest = two.repository / "metadata" / "timestamp.json"
    whole = newest.read_bytes()
    newest.write_bytes(b"rotten")
    assert watch.look() == []
    newest.write_bytes(whole)
    assert watch.look() == ["network", "sensor"]
