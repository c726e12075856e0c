"""A broker's log in, an alert out that says what its clients do: refused ones, and ones that come again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import behaviour_parts as b
import numpy as np
import pytest

from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.presets import task_spec
from vedette_core.machine import Effect, Publish
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.behaviour_stream import LiveBehaviourStream
from vedette_device.inference import LoadedModel, NumpyBackend
from vedette_device.pipeline import Pipeline
from vedette_device.settings import DeviceSettings

TRAINING, CALIBRATION = 200, 120
STORM = range(360, 366)
MINUTES = 370
CLIENTS = 12
T0 = float(b.START_S)


def usual(rng: np.random.Generator) -> list[str]:
    """A minute of a site whose devices come and go a little."""
    lines = ["New connection from 192.0.2.7:40000 on port 8883."] * int(rng.poisson(6))
    for event, rate in (
        ("disconnected.", 3.0),
        ("closed its connection.", 1.5),
        ("has exceeded timeout, disconnecting.", 0.3),
    ):
        for _ in range(int(rng.poisson(rate))):
            client = f"dev-{rng.integers(CLIENTS)}"
            lines.append(f"New client connected from 192.0.2.7:40000 as {client} (p2, c1, k60, u'{client}').")
            lines.append(f"Client {client} {event}")
    lines += ["Client <unknown> closed its connection."] * int(rng.poisson(0.5))
    return lines + ["Saving in-memory database to /var/lib/mosquitto/mosquitto.db."] * 2


STORMS = {
    "broker_sessions_refused": ["Client <unknown> disconnected, not authorised."],
    "broker_sessions_taken_over": [
        "Client dev-3 already connected, closing old connection.",
        "New client connected from 192.0.2.7:4 as dev-3 (p2, c1, k60, u'dev-3').",
    ],
    "broker_sessions_opened": [
        "New client connected from 192.0.2.7:4 as dev-3 (p2, c1, k60, u'dev-3').",
        "Client dev-3 disconnected: Protocol error.",
    ],
}
"""What comes over and over in a storm, by the count that it raises."""
TIMES = 150


class OverError(Exception):
    """The last minute is over."""


class Minutes:
    """A clock on which a minute passes, and its lines come, with every look."""

    def __init__(self, path: Path, storm: Sequence[str]) -> None:
        self._storm = ["New connection from 192.0.2.9:4 on port 8883.", *storm] * TIMES
        self._path, self._rng, self.minute = path, np.random.default_rng(11), -1

    def __call__(self) -> float:
        if self.minute == MINUTES:
            raise OverError
        self.minute += 1
        lines = usual(self._rng) + (self._storm if self.minute in STORM else [])
        at = round(T0 + 60 * self.minute)
        with self._path.open("a") as file:
            file.writelines(f"{at + i % 60}: {line}\n" for i, line in enumerate(lines))
        return at + 0.5


@pytest.mark.parametrize("count", STORMS)
def test_a_storm_of_refused_or_returning_clients_is_an_alert_that_says_so(
    count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mosquitto.log"
    path.touch()
    clock = Minutes(path, STORMS[count])
    monkeypatch.setattr("vedette_device.behaviour_stream.POLL_S", 0.0)
    monkeypatch.setattr(
        "vedette_device.pipeline.open_stream", lambda section, _: LiveBehaviourStream(section, clock=clock)
    )
    section = b.section(
        tmp_path,
        source="live",
        host=False,
        logs=[str(path)],
        training_windows=TRAINING,
        calibration_windows=CALIBRATION,
    )
    settings = DeviceSettings.model_validate(
        {
            "site": "site",
            "device": "gw-1",
            "state_dir": str(tmp_path),
            "identity": {"bundle": str(tmp_path), "trust_root": str(tmp_path / "root.json")},
            "behaviour": section.model_dump(mode="json"),
        }
    )
    pipeline = Pipeline(settings, section, StateStore(Database(tmp_path / "s.db")), Metrics(DEVICE_METRICS))

    def learn() -> None:
        if not pipeline.detector.is_calibratable or pipeline.detector.model is not None:
            return
        network, rng = build_network(task_spec(pipeline.schema)), np.random.default_rng(5)
        weights = network.initial_weights(rng)
        x = pipeline.detector.training_matrix(network)
        learnt = train(network, weights, x, epochs=10, batch_size=32, learning_rate=0.005, prox_mu=0.0, rng=rng)
        backend = NumpyBackend(network, weights + learnt.delta)
        pipeline.install(LoadedModel(backend, pipeline.schema, "behaviour", "weights", "0" * 64), 1)

    alerts: list[tuple[int, dict[str, object]]] = []

    async def carry_out(effects: Sequence[Effect]) -> None:
        alerts.extend((clock.minute, json.loads(e.payload)) for e in effects if isinstance(e, Publish))

    pipeline.on_collected = learn
    with pytest.raises(OverError):
        asyncio.run(pipeline.run(carry_out))

    assert pipeline.report().windows >= MINUTES - TRAINING - CALIBRATION - 5
    opened = [(minute, alert) for minute, alert in alerts if alert["state"] == "open"]
    # The lines of a minute are in the window that ends behind it.
    assert opened
    assert opened[0][0] - 1 in STORM
    (reason,) = (each for each in opened[0][1]["features"] if each["name"] == count)  # type: ignore[attr-defined]
    assert reason["value"] >= TIMES
    assert reason["usual"][1] < 20
    assert count.replace("_", " ") in str(opened[0][1]["summary"])
