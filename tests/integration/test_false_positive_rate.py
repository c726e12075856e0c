"""Realised against promised false-positive rate on the shipped recordings, in the order of time.

Every threshold is fixed before the first window of the test stretch is read; what is compared with it are windows
outside of every episode and of what lies behind it. A gateway's model is what its site learnt together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
import pytest

from vedette.demo import plan
from vedette.demo.recordings import SHIPPED, Episode, Gateway, Recordings, load
from vedette_aggregator.fleet_sketch import merge_sketches
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.spec import dense_spec, flow_spec
from vedette_core.machine import Publish
from vedette_device.cold_start import first_calibration
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, WindowScored
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features import Window
from vedette_device.inference import NumpyBackend
from vedette_device.settings import NetworkSection, SensorSection
from vedette_device.streams import open_stream
from vedette_schemas.alert import Alert, AlertModel, AlertState, decode

pytestmark = pytest.mark.skipif(
    not (SHIPPED / "labels.csv").is_file(), reason="the recordings are not in this checkout"
)

ALPHAS = (0.05, 0.01)
GRACE_S = {"network": 90.0, "sensor": 1800.0}
SENSOR_GATEWAYS = 3


@dataclass
class Watched:
    """One gateway: its detector, what comes in its test stretch, and its episodes."""

    gateway: Gateway
    detector: Detector
    test: list[Window]
    episodes: list[Episode]

    def is_benign(self, start_s: float, end_s: float, grace_s: float) -> bool:
        return not any(e.start_s - 1.0 < end_s and start_s < e.end_s + grace_s for e in self.episodes)


@dataclass
class Outcome:
    """What was found in the benign part of the test stretches of a task's gateways.

    Attributes:
        windows: benign ones.
        rate: share of them above the threshold of each α, fixed when the detector was armed.
        rate_by_rank: the same by ranks alone, as it was before the tail had a say.
        rate_first: the same above the first threshold that the other gateways' sketches give.
        rate_rolling: share of them with p ≤ α by the calibration that rolls on.
        false_alerts: alerts that opened outside of every episode and its grace.
        found: episodes with an alert.
        episodes: all of them.
    """

    windows: int
    rate: dict[float, float]
    rate_by_rank: dict[float, float]
    rate_first: dict[float, float]
    rate_rolling: dict[float, float]
    false_alerts: int
    found: int
    episodes: int


async def read_all(section: NetworkSection | SensorSection) -> list[Window]:
    stream = open_stream(section)
    await stream.start()
    windows: list[Window] = []
    while (more := await stream.read()) is not None:
        windows += more
    await stream.close()
    return windows


def ticks(windows: Sequence[Window]) -> Iterator[list[Window]]:
    for _, tick in groupby(windows, key=lambda w: w.end_s):
        yield list(tick)


def collected(recordings: Recordings, gateway: Gateway, task: str) -> Watched:
    """A gateway at the end of its calibration stretch."""
    table = plan.device_tables(gateway, plan.Pace(0.0))[task]
    section = NetworkSection(**table) if task == "network" else SensorSection(**table)
    windows = asyncio.run(read_all(section))
    schema = open_stream(section).schema
    detector = Detector(
        schema,
        DetectorSettings(
            section.training_windows,
            section.calibration_windows,
            half_life_windows=section.alerts.half_life_windows,
        ),
    )
    seen = 0
    for tick in ticks(windows):
        detector.feed(tick)
        seen += len(tick)
        if detector.is_calibratable:
            break
    episodes = [e for e in recordings.episodes if e.gateway == gateway.id and e.source == task]
    assert windows[seen - 1].end_s < min(e.start_s for e in episodes), "thresholds come before the first attack"
    return Watched(gateway, detector, windows[seen:], episodes)


def learnt(watched: list[Watched], network: Network, training: dict[str, float]) -> np.ndarray:
    """Weights after the demo's rounds, with plain means."""
    rng = np.random.default_rng(0)
    weights = network.initial_weights(np.random.default_rng(1))
    for _ in range(plan.ROUNDS):
        deltas = [
            train(
                network,
                weights,
                each.detector.training_matrix(network),
                epochs=int(training["local_epochs"]),
                batch_size=int(training["batch_size"]),
                learning_rate=training["learning_rate"],
                prox_mu=0.0,
                rng=rng,
            ).delta
            for each in watched
        ]
        weights = (weights + np.mean(deltas, axis=0)).astype(np.float32)
    return weights


def outcome(task: str, gateways: int) -> Outcome:
    recordings = load(SHIPPED)
    watched = [collected(recordings, g, task) for g in recordings.gateways[:gateways]]
    schema = watched[0].detector.schema
    network = build_network((flow_spec if task == "network" else dense_spec)(*schema.input_shape))
    training = plan.tasks(("any",), gateways)[0 if task == "network" else 1]["training"]
    backend = NumpyBackend(network, learnt(watched, network, training))
    for each in watched:
        each.detector.install(backend, AlertModel(task=task, version=plan.ROUNDS, digest="0" * 16))
    sketches = {each.gateway.id: sketch for each in watched if (sketch := each.detector.score_sketch()) is not None}

    total, false_alerts, found = 0, 0, 0
    counts = {name: dict.fromkeys(ALPHAS, 0) for name in ("fixed", "by_rank", "first", "rolling")}
    for each in watched:
        assert each.detector._active is not None
        calibration = each.detector._active.rolling.current
        others = merge_sketches({k: s for k, s in sketches.items() if k != each.gateway.id}) if gateways > 3 else None
        limits = {
            "fixed": {a: calibration.threshold(a) for a in ALPHAS},
            "by_rank": {a: float(calibration.ordered[-int(a * (calibration.size + 1))]) for a in ALPHAS},
            "first": {a: first_calibration(others).threshold(a) if others else np.inf for a in ALPHAS},
        }
        alerts: list[Alert] = []
        machine = DetectionMachine("s", each.gateway.id, task, task, DetectionSettings())  # type: ignore[arg-type]
        grace_s = max(GRACE_S[task], schema.window_s * schema.history)
        for tick in ticks(each.test):
            for window in each.detector.feed(tick, frozen=bool(machine.open_entities)):
                effects = machine.handle(WindowScored(window), 0.0)
                alerts += [decode(e.payload) for e in effects if isinstance(e, Publish)]
                if each.is_benign(window.start_s, window.end_s, grace_s):
                    total += 1
                    for a in ALPHAS:
                        for name, limit in limits.items():
                            counts[name][a] += window.score > limit[a]
                        counts["rolling"][a] += window.p_value <= a
        ends = [(seconds(a), a.state) for a in alerts]
        grace_s = GRACE_S[task]
        for e in each.episodes:
            hits = [at for at, state in ends if state is not AlertState.CLOSED and e.start_s <= at <= e.end_s + grace_s]
            found += bool(hits)
        false_alerts += sum(
            state is AlertState.OPEN and not any(e.start_s <= at <= e.end_s + grace_s for e in each.episodes)
            for at, state in ends
        )
    rates = {name: {a: n / total for a, n in by.items()} for name, by in counts.items()}
    return Outcome(
        total,
        rates["fixed"],
        rates["by_rank"],
        rates["first"],
        rates["rolling"],
        false_alerts,
        found,
        sum(len(each.episodes) for each in watched),
    )


def seconds(alert: Alert) -> float:
    return datetime.fromisoformat(alert.window_end).timestamp()


def test_network_windows_keep_the_promise_of_a_hundred_scores() -> None:
    """All eight gateways. A hundred calibration scores: one alone is beyond α = 1 %, and the tail has its say."""
    result = outcome("network", 8)

    assert result.windows > 2000
    assert result.rate[0.01] <= result.rate_by_rank[0.01]
    assert result.rate[0.01] < 0.02, "1 % was promised"
    assert result.rate_rolling[0.01] < 0.02
    assert result.rate_rolling[0.05] < 0.1
    assert result.rate_first[0.01] < 0.03, "from other gateways' scores alone"
    assert result.false_alerts <= 1
    assert result.found >= 0.9 * result.episodes


def test_tank_readings_keep_the_promise_of_four_thousand_scores() -> None:
    """Three gateways, ten days of tanks. Enough scores: what the tail says changes nothing down to 1 / (n + 1)."""
    result = outcome("sensor", SENSOR_GATEWAYS)

    assert result.windows > 20_000
    assert result.rate == result.rate_by_rank
    assert 0.003 < result.rate[0.01] < 0.02
    assert 0.025 < result.rate[0.05] < 0.1
    assert 0.003 < result.rate_rolling[0.01] < 0.02
    assert result.false_alerts <= 1
    assert result.found >= 0.8 * result.episodes
