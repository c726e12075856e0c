"""What the simulated fleet learns: every device pulls the weights towards a point of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_aggregator.round_settings import RoundSettings
from vedette_core.learning.encoding import Encoding, encode, update_weight
from vedette_core.learning.layout import Float32
from vedette_core.learning.optimiser import FedAvg
from vedette_device.training import Contribution
from vedette_schemas.round import ActivationRange, Plan

TASK: Final = "network"
DIMENSION: Final = 12
FEATURE_SCHEMA: Final = "f" * 64
NETWORK: Final = "e" * 64
OPTIMISER: Final = FedAvg()


def settings(devices: int, **changes: float) -> RoundSettings:
    """Settings for a fleet of that size: half of it makes a quorum, in groups of about four."""
    values: dict[str, float] = {
        "checkin_s": 60.0,
        "collect_s": 300.0,
        "interval_s": 120.0,
        "rounds_max": 0,
        "attempts_max": 3,
        "quorum": max(2, devices // 2),
        "checkins_max": devices,
        "group_size": 4,
        "survivors_min": 2,
        "clip_norm": 2.0,
        "weight_max": 8,
        "examples_reference": 64,
        "local_epochs": 1,
        "batch_size": 32,
        "learning_rate": 0.2,
        "examples_min": 64,
    }
    return RoundSettings(**(values | changes))  # type: ignore[arg-type]


def plan_of(rounds: RoundSettings, version: int = 1) -> Plan:
    """The plan that comes of them."""
    return rounds.plan(TASK, version=version, feature_schema=FEATURE_SCHEMA, network=NETWORK, dimension=DIMENSION)


@dataclass(frozen=True)
class Local:
    """A device's data: a point, and how many examples are said to be behind it."""

    centre: np.ndarray
    examples: int

    def delta(self, weights: Float32, plan: Plan) -> Float32:
        """One gradient step of ½‖w − centre‖²."""
        gradient = weights - self.centre
        return (-np.float32(plan.training.learning_rate) * gradient).astype(np.float32)

    def loss(self, weights: Float32) -> float:
        """½‖w − centre‖²."""
        return float(0.5 * np.sum(np.square(weights - self.centre, dtype=np.float64)))

    def contribute(self, weights: Float32, plan: Plan, seed: bytes, rng: np.random.Generator) -> Contribution:
        """The step, encoded as the product encodes it."""
        delta = self.delta(weights, plan)
        update = encode(delta, Encoding(plan.dimension, plan.update.clip_norm, seed), rng)
        after = weights + delta
        return Contribution(
            levels=update.levels.tobytes(),
            weight=update_weight(self.examples, plan.update.examples_reference, plan.update.weight_max),
            num_examples=self.examples,
            clipped=update.clipped,
            loss_before=self.loss(weights),
            loss_after=self.loss(after),
            ranges=(ActivationRange(tensor="output", low=float(after.min()), high=float(after.max())),),
        )
