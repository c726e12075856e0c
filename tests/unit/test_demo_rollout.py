"""What the demo says about its rollout, and when it has one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vedette.demo import plan
from vedette.demo.recordings import SHIPPED, load
from vedette.demo.summary import broken_promises
from vedette.demo.table import rollout_line
from vedette_core.crypto.cohorts import bucket
from vedette_schemas.rollout import PPM, RolloutPhase, RolloutState

DEVICES = [f"gw-{i:02}" for i in range(1, 9)]
SALT = bytes(16)
CANARY = sorted(sorted(DEVICES, key=lambda d: bucket(SALT, d))[:2])


def state(**changes: Any) -> RolloutState:
    fields: dict[str, Any] = {
        "task": "sensor",
        "rollout": 1,
        "seq": 1,
        "candidate": 4,
        "baseline": 3,
        "share_ppm": max(bucket(SALT, d) for d in CANARY) + 1,
        "control_ppm": PPM - sorted(bucket(SALT, d) for d in DEVICES)[-2],
        "salt": SALT,
        "state": RolloutPhase.RUNNING,
        "issued_s": 0.0,
        "expires_s": 1.0,
        "members": tuple(CANARY),
    }
    return RolloutState(**{**fields, **changes})


def test_the_live_table_says_how_far_a_rollout_is() -> None:
    canary = "release 4 over release 3: running, canary stage, 2 of 8 devices, 2 compared with"
    assert rollout_line(state(), DEVICES) == canary
    last = state(share_ppm=PPM, control_ppm=0, members=())
    assert rollout_line(last, DEVICES) == "release 4 over release 3: running, last stage, 8 of 8 devices"
    ended = last.model_copy(update={"state": RolloutPhase.PROMOTED})
    assert rollout_line(ended, DEVICES) == "release 4 over release 3: promoted"


def test_the_shipped_recordings_last_for_a_rollout_and_fast_replays_do_not() -> None:
    recordings = load(SHIPPED)
    assert plan.is_staged(recordings, plan.Pace(1.0))
    assert not plan.is_staged(recordings, plan.Pace(2.0))
    assert not plan.is_staged(recordings, plan.Pace(0.0))
    first = recordings.gateways[0]
    short = replace(first, sensor=replace(first.sensor, end_s=first.sensor.start_s))
    assert not plan.is_staged(replace(recordings, gateways=(short, *recordings.gateways[1:])), plan.Pace(1.0))


def test_one_more_round_of_one_task_is_staged() -> None:
    network, sensor = plan.tasks(("level_m",), 8, staged=True)
    assert (network["round"]["rounds_max"], sensor["round"]["rounds_max"]) == (plan.ROUNDS, plan.ROUNDS + 1)
    assert sensor["rollout"]["from_version"] == plan.ROUNDS + 1
    assert all(not task.get("rollout", {}).get("enabled") for task in plan.tasks(("level_m",), 8))


KEPT: dict[str, Any] = {
    "attacks_detected": 60,
    "attacks_total": 64,
    "false_alerts_per_device": {},
    "rounds_by_task": {"network": 3, "sensor": 4},
    "releases_activated": 56,
    "devices": 8,
    "releases_verified": True,
    "rollouts_total": 1,
    "rollouts_promoted": 1,
    "devices_on_newest_release": 8,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"rollouts_promoted": 0}, "0 of 1 rollouts"),
        ({"devices_on_newest_release": 7}, "7 of 8 devices run the newest"),
        ({"rollouts_total": 0, "rollouts_promoted": 0, "devices_on_newest_release": 0}, ""),
    ],
)
def test_a_rollout_that_does_not_come_to_its_end_breaks_a_promise(changes: dict[str, Any], says: str) -> None:
    broken = broken_promises({**KEPT, **changes})
    assert len(broken) == bool(says)
    assert says in "".join(broken)
