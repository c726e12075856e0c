"""Fixtures of the broker contracts: every contract runs on the embedded broker, Mosquitto and NATS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_parties import ENGINES, Authority, BrokerUnderTest, Embedded, make_authority, make_broker


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("site") / "ca", ["dev-a", "dev-b", "dev-c"], helpers=["helper"])


@pytest.fixture(scope="session", params=ENGINES)
def broker(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerUnderTest]:
    """A running broker, shared: tests use topics of their own and leave it running."""
    running = make_broker(request.param, authority, tmp_path_factory.mktemp(request.param))
    running.start()
    yield running
    running.stop()


@pytest.fixture(params=ENGINES)
def own_broker(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Iterator[BrokerUnderTest]:
    """A running broker of this test alone, which it may stop and start."""
    running = make_broker(request.param, authority, tmp_path / "broker")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def attacked_site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("attacked") / "ca", ["dev-a", "dev-b"])


@pytest.fixture
def attacked(attacked_site: Authority, tmp_path: Path) -> Iterator[Embedded]:
    """An embedded broker of this test alone, with a store."""
    running = Embedded(attacked_site, tmp_path / "state")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def shared_attacked(attacked_site: Authority) -> Iterator[Embedded]:
    """An embedded broker for packets that end connections and change nothing else."""
    running = Embedded(attacked_site)
    running.start()
    yield running
    running.stop()
