"""What the simulated fleet learns: every device pulls the weights towards a point of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vedette_aggregator.round_settings import RoundSettings
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.optimiser import FedAvg
from vedette_schemas.round import Plan

TASK: Final = "network"
DIMENSION: Final = 12
FEATURE_SCHEMA: Final = "f" * 64
NETWORK: Final = "e" * 64
OPTIMISER: Final = FedAvg()
GROUP_SIZE_MAX: Final = 8
"""Members of a group here, at most: what a run costs grows with the square of it."""


def settings(devices: int, **changes: Any) -> RoundSettings:
    """Settings for a fleet of that size: masked, in groups of up to eight whose members open their sum."""
    values: dict[str, Any] = {
        "checkin_s": 60.0,
        "collect_s": 300.0,
        "unmask_s": 120.0,
        "interval_s": 120.0,
        "rounds_max": 0,
        "attempts_max": 3,
        "quorum": 5,
        "checkins_max": devices,
        "group_size": min(devices, GROUP_SIZE_MAX),
        "epoch_rounds": 4,
        "clip_norm": 2.0,
        "weight_max": 8,
        "examples_reference": 64,
        "local_epochs": 1,
        "batch_size": 32,
        "learning_rate": 0.2,
        "examples_min": 64,
    }
    return RoundSettings(**(values | changes))


def plan_of(rounds: RoundSettings, version: int = 1) -> Plan:
    """The plan that comes of them."""
    return rounds.plan(
        TASK,
        version=version,
        feature_schema=FEATURE_SCHEMA,
        network=NETWORK,
        dimension=DIMENSION,
        tensors=("output",),
    )


@dataclass(frozen=True)
class Local:
    """A device's data: a point, and how many examples are said to be behind it."""

    centre: np.ndarray
    examples: int

    def train(self, weights: Float32, plan: Plan) -> TrainingResult:
        """One gradient step of ½‖w − centre‖²."""
        delta = (-np.float32(plan.training.learning_rate) * (weights - self.centre)).astype(np.float32)
        after = weights + delta
        return TrainingResult(
            delta=delta,
            loss_before=self.loss(weights),
            loss_after=self.loss(after),
            num_examples=self.examples,
            activation_ranges={"output": (float(after.min()), float(after.max()))} if plan.update.tensors else {},
        )

    def loss(self, weights: Float32) -> float:
        """½‖w − centre‖²."""
        return float(0.5 * np.sum(np.square(weights - self.centre, dtype=np.float64)))
