"""How the demo is set: stretches, speeds, rounds. Fixed before the test stretch of any recording is read.

A gateway's recording begins benign. Its first part trains, the next calibrates, and everything after that is replayed
to armed detectors: the attacks, and the benign stretches before, between and behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vedette.demo.recordings import Gateway, Recordings

SITE: Final = "demo-site"
NETWORK_TRAINING_WINDOWS: Final = 280
NETWORK_CALIBRATION_WINDOWS: Final = 100
SENSOR_TRAINING_ROWS: Final = 8_640
SENSOR_CALIBRATION_ROWS: Final = 4_320
SENSOR_PERIOD_S: Final = 30.0
ROUNDS: Final = 3
"""Federated rounds a task; detectors are armed with the last one's release."""
STAGED_TASK: Final = "sensor"
STAGED_REPLAY_S: Final = 20.0
"""Detectors must score for so long: one more round and its rollout fit in. A gateway that is gone confirms nothing."""
CANARY_PERCENT: Final = 25.0
ROLLOUT: Final[dict[str, Any]] = {
    "enabled": True,
    "from_version": ROUNDS + 1,
    "stages": [CANARY_PERCENT, 100.0],
    "devices_min": 2,
    "settle_s": 1.0,
    "check_s": 0.25,
    "soak_s": 3.0,
    "patience_s": 60.0,
    "samples_min": 10,
}
"""Seconds where a site has hours, and all gates at their defaults, but for how many reports they need."""
NETWORK_SPEED: Final = 40.0
SENSOR_SPEED: Final = 12_000.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the recordings are replayed.

    Attributes:
        factor: multiplies both speeds; 0 replays as fast as the machine can.
    """

    factor: float = 1.0


def is_staged(recordings: Recordings, pace: Pace) -> bool:
    """Whether the replay lasts long enough for a rollout beside it."""
    learnt_s = (SENSOR_TRAINING_ROWS + SENSOR_CALIBRATION_ROWS) * SENSOR_PERIOD_S
    scored_s = min(gateway.sensor.end_s - gateway.sensor.start_s - learnt_s for gateway in recordings.gateways)
    return pace.factor > 0 and scored_s / (SENSOR_SPEED * pace.factor) >= STAGED_REPLAY_S


def tasks(channels: tuple[str, ...], devices: int, *, staged: bool = False) -> list[dict[str, Any]]:
    """The aggregator's ``[[tasks]]``: short rounds, every device in every round.

    Args:
        channels: of the sensors.
        devices: how many.
        staged: whether one more round's release goes to the fleet in stages, while detectors score. Only the sensors':
            a change of the model in the middle of a short attack can cost the alert, and network attacks are short.
    """
    quorum = max(1, min(5, devices))
    rounds = {
        "checkin_s": 1.5,
        "collect_s": 20.0,
        "interval_s": 0.2,
        "rounds_max": ROUNDS,
        "quorum": quorum,
        "group_size": max(quorum, min(8, devices)),
        "clip_norm": 20.0,
    }
    rollout = ROLLOUT if staged else {"enabled": False}
    return [
        {
            "task": "network",
            "use_case": "network",
            "training": {"local_epochs": 20, "batch_size": 32, "learning_rate": 0.003, "examples_min": 64},
            "round": rounds,
        },
        {
            "task": STAGED_TASK,
            "use_case": "sensor",
            "channels": list(channels),
            "period_s": SENSOR_PERIOD_S,
            "training": {"local_epochs": 4, "batch_size": 64, "learning_rate": 0.003, "examples_min": 64},
            "round": {**rounds, "rounds_max": ROUNDS + staged},
            "rollout": rollout,
        },
    ]


def device_tables(gateway: Gateway, pace: Pace) -> dict[str, Any]:
    """Further tables of a gateway's settings: both detectors, replaying its recordings."""
    return {
        "telemetry_s": 0.5,
        "spool": {"resend_s": 5.0},
        "network": {
            "source": "file",
            "path": gateway.network.path,
            "local_networks": list(gateway.local_networks),
            "training_windows": NETWORK_TRAINING_WINDOWS,
            "calibration_windows": NETWORK_CALIBRATION_WINDOWS,
            "replay": {"speed": NETWORK_SPEED * pace.factor, "wait_for_release": ROUNDS},
        },
        "sensor": {
            "source": "file",
            "path": gateway.sensor.path,
            "channels": list(gateway.sensor.columns),
            "period_s": SENSOR_PERIOD_S,
            "entity": f"tank-{gateway.id}",
            "training_windows": SENSOR_TRAINING_ROWS,
            "calibration_windows": SENSOR_CALIBRATION_ROWS,
            "replay": {"speed": SENSOR_SPEED * pace.factor, "wait_for_release": ROUNDS},
        },
    }
