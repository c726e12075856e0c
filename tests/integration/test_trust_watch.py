"""The end of the beacon's chain: seen in time, said, and put off by people with offline keys."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from beacon_roots import anchor_of, renew
from release_site import Site

from vedette_aggregator.registry import Registry
from vedette_aggregator.round_secrets import RoundSecrets
from vedette_aggregator.settings import TaskSection
from vedette_aggregator.trust_watch import TrustWatch, beacon_uses
from vedette_core.crypto.beacon import BEACON_EPOCHS, verify_beacon
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import epoch_of
from vedette_schemas.trust import BEACON_EPOCHS_MAX

EPOCH_ROUNDS = 10
LAST_ROUND = BEACON_EPOCHS * EPOCH_ROUNDS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def tasks(*names: str) -> list[TaskSection]:
    plain = {"use_case": "network", "round": {"epoch_rounds": EPOCH_ROUNDS}}
    return [TaskSection.model_validate({"task": name, **plain}) for name in names]


class Watched:
    """A watch over a site, and what it shows."""

    def __init__(self, folder: Path) -> None:
        self.site, self.metrics = Site(folder), Metrics(AGGREGATOR_METRICS)
        self.watch = TrustWatch(Registry(self.site.repository), tasks(*self.site.tasks), self.metrics)

    def left(self, task: str) -> float | None:
        return self.metrics.registry.get_sample_value("vedette_beacon_epochs_left", {"task": task})


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_what_is_left_is_shown_by_task(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.watch.look({"network": 0, "sensor": 1})
    assert (watched.left("network"), watched.left("sensor")) == (BEACON_EPOCHS, BEACON_EPOCHS - 1)
    watched.watch.look({"network": 10, "sensor": 11})
    assert (watched.left("network"), watched.left("sensor")) == (BEACON_EPOCHS - 1, BEACON_EPOCHS - 2)
    expiry = watched.metrics.registry.get_sample_value("vedette_trust_expiry_timestamp_seconds")
    assert expiry == watched.site.registry.expires()["timestamp"]
    assert not caplog.records


def test_the_end_is_said_in_time_and_not_every_minute(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(LAST_ROUND * 3 // 4, LAST_ROUND + 200, 5):
        watched.watch.look({"network": number, "sensor": 1})
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"network: {BEACON_EPOCHS // 8} of the beacon's {BEACON_EPOCHS} epochs are left" in said[0]
    assert f"--rotate beacon --beacon-epochs {2 * BEACON_EPOCHS}" in said[0]
    assert "network: 0 of the beacon's" in said[-1]
    assert 5 < len(said) < 15
    assert not any("sensor" in line for line in said)
    assert watched.left("network") == 0


def test_a_longer_chain_ends_the_warning_and_brings_rounds_back(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, last = watched.site, epoch_of(LAST_ROUND + 1, EPOCH_ROUNDS)
    secrets = RoundSecrets(StateStore(Database(tmp_path / "a.db")), Registry(site.repository))
    with pytest.raises(ConfigError, match="used up"):
        secrets.beacon(last)
    watched.watch.look({"network": LAST_ROUND + 1, "sensor": 1})
    assert len(caplog.records) == 1
    renew(site, "beacon", beacon_epochs=2 * BEACON_EPOCHS)
    watched.watch.look({"network": LAST_ROUND + 1, "sensor": 1})
    assert (watched.left("network"), len(caplog.records)) == (BEACON_EPOCHS - 1, 1)
    device = site.device()
    device.refresh()
    verify_beacon(secrets.beacon(last), last, anchor_of(device))
    watched.watch.look({"network": 2 * LAST_ROUND, "sensor": 1})
    assert len(caplog.records) == 2, "the next end is said as well"


def test_the_longest_chain_is_followed_by_longer_epochs(watched: Watched) -> None:
    (use,) = beacon_uses(BEACON_EPOCHS_MAX, tasks("network"), {"network": 10 * BEACON_EPOCHS_MAX})
    assert use.left == 0
    assert "raise epoch_rounds of network" in use.advice
    assert "--beacon-epochs" not in use.advice
