"""How a task's rounds run: what the operator sets, and the signed plan that comes of it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from vedette_aggregator.aggregation import GlobalModel
from vedette_core.learning.encoding import Encoding
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import DIMENSION_MAX, GroupPlan, Plan, TrainingPlan, UpdatePlan, read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """When a round runs, with how many, and how its participants train.

    Attributes:
        checkin_s: seconds that check-ins are collected once there are enough.
        collect_s: seconds that uploads are waited for.
        interval_s: seconds between the end of a round and the next.
        rounds_max: rounds that are run, failed ones included; 0 is without end.
        attempts_max: tries a round before it is given up, 1–16.
        quorum: fewest uploads that make a round.
        checkins_max: most devices that are selected.
        group_size: members a group.
        survivors_min: fewest uploads of a group that count.
        clip_norm: largest L2 norm of an update.
        weight_max: largest weight of an update.
        examples_reference: examples that make weight 1.
        local_epochs: passes over the local data.
        batch_size: examples a step.
        learning_rate: of local training.
        prox_mu: FedProx pull; 0 is none.
        examples_min: fewest examples with which a device takes part.
    """

    checkin_s: float
    collect_s: float
    interval_s: float
    rounds_max: int = 0
    attempts_max: int = 3
    quorum: int
    checkins_max: int
    group_size: int
    survivors_min: int
    clip_norm: float
    weight_max: int
    examples_reference: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    prox_mu: float = 0.0
    examples_min: int

    def __post_init__(self) -> None:
        if self.checkin_s < 0 or self.collect_s <= 0 or self.interval_s < 0 or self.rounds_max < 0:
            raise ConfigError(
                f"round: found checkin_s={self.checkin_s}, collect_s={self.collect_s}, "
                f"interval_s={self.interval_s}, rounds_max={self.rounds_max}; expected collect_s > 0, the others ≥ 0"
            )
        if not 1 <= self.attempts_max <= 16:
            raise ConfigError(f"round: found attempts_max={self.attempts_max}, expected 1 to 16")
        if self.enough > self.checkins_max:
            raise ConfigError(
                f"round: found quorum={self.quorum}, survivors_min={self.survivors_min} and "
                f"checkins_max={self.checkins_max}, so that no round can begin; expected checkins_max to be the largest"
            )

    @property
    def enough(self) -> int:
        """Check-ins without which forming groups is pointless."""
        return max(self.quorum, self.survivors_min)

    def plan(self, task: str, *, version: int, feature_schema: str, network: str, dimension: int) -> Plan:
        """The plan that participants are held to.

        Args:
            task: the task.
            version: counts up when anything in the plan changes.
            feature_schema: digest of the feature schema.
            network: digest of the network's specification.
            dimension: weights of the model.

        Raises:
            ConfigError: a setting is out of the protocol's limits, or the model is too large for an upload.
        """
        try:
            plan = Plan(
                task=task,
                version=version,
                feature_schema=feature_schema,
                network=network,
                dimension=dimension,
                training=TrainingPlan(
                    local_epochs=self.local_epochs,
                    batch_size=self.batch_size,
                    learning_rate=float(self.learning_rate),
                    prox_mu=float(self.prox_mu),
                    examples_min=self.examples_min,
                ),
                update=UpdatePlan(
                    clip_norm=float(self.clip_norm),
                    weight_max=self.weight_max,
                    examples_reference=self.examples_reference,
                ),
                groups=GroupPlan(
                    group_size=self.group_size,
                    survivors_min=self.survivors_min,
                    quorum=self.quorum,
                    checkins_max=self.checkins_max,
                ),
            )
        except ValidationError as fault:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors()[:5])
            raise ConfigError(f"plan of task {task}: found {found}; correct the task's settings") from fault
        padded = Encoding(dimension, plan.update.clip_norm, b"").padded
        if padded > DIMENSION_MAX:
            raise ConfigError(
                f"plan of task {task}: found {dimension} weights, {padded} with padding, expected at most "
                f"{DIMENSION_MAX}: an upload must fit one message; choose a smaller network"
            )
        return plan


def check_same_model(wanted: Plan, model: GlobalModel) -> Plan:
    """The plan that a model was released with, if the wanted one is for the same model.

    Raises:
        ConfigError: it is for another task, feature schema or network.
    """
    released = read_plan(model.plan)
    for name in ("task", "feature_schema", "network", "dimension"):
        found, expected = getattr(wanted, name), getattr(released, name)
        if found != expected:
            raise ConfigError(
                f"task {released.task}: found {name} {found!r} in the plan, expected {expected!r} as in release "
                f"{model.version}; another model needs a task of its own"
            )
    if model.weights.shape != (released.dimension,):
        raise ConfigError(
            f"task {released.task}: found {model.weights.shape} weights in release {model.version}, "
            f"expected ({released.dimension},)"
        )
    return released
