"""How a task's rounds run: what the operator sets, and the signed plan that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.schedule import Schedule
from vedette_aggregator.selection import SelectionMode
from vedette_core.learning.encoding import Encoding
from vedette_core.learning.round_vector import ring_of
from vedette_core.learning.suspicion import THRESHOLD_DEFAULT
from vedette_core.privacy.noise import device_share_sigma, noise_sigma
from vedette_core.secagg.parameters import (
    HONEST_SURVIVORS_MIN,
    Committee,
    check_plan,
    find_committee,
    find_survivors_min,
)
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.round import (
    GroupPlan,
    Plan,
    PrivacyPlan,
    TrainingPlan,
    UpdatePlan,
    read_plan,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """When a round runs, with how many, how its participants train, and what protects them.

    Attributes:
        checkin_s: seconds that check-ins are collected once there are enough.
        collect_s: seconds that uploads are waited for, at most.
        deadline_mads: waits for uploads only until the median of lately seen times plus so many median deviations; 0
            always waits `collect_s`.
        unmask_s: seconds that the committee's votes and shares are waited for.
        interval_s: seconds between the end of a round and the next.
        rounds_per_day: most rounds that open in a day; 0 is no limit.
        quiet_hours: stretches of the day in which no round opens.
        rounds_max: rounds that are run, failed ones included; 0 is without end.
        attempts_max: tries a round before it is given up, 1–16.
        quorum: fewest uploads that make a round.
        checkins_max: most devices that are selected.
        uploads_wanted: selects so many more that about this many uploads come, and closes when they are there (a
            buffer: whoever is later gives to a later round); 0 selects all and waits for all.
        selection: ``diverse``, ``random`` or ``all``.
        group_size: members a group, at most.
        groups: number of groups; 0 begins with as few as the quorum needs, and then follows the number of devices.
        survivors_min: fewest uploads of a group that count; 0 derives it from the group's size.
        epoch_rounds: rounds that a device stays in its group.
        committee: who opens a group's sum: its members (``inline``) or ``helpers``.
        committee_size: helpers listed a group.
        masked: whether updates are masked; without, the aggregator reads each of them.
        clip_norm: largest L2 norm of an update; where `adaptive_clip` is set, that of the first round.
        adaptive_clip: share of updates that should stay unclipped; 0 keeps `clip_norm`.
        bits: of a level.
        weight_max: largest weight of an update.
        examples_reference: examples that make weight 1.
        local_epochs: passes over the local data.
        batch_size: examples a step.
        learning_rate: of local training.
        prox_mu: FedProx pull; 0 is none.
        examples_min: fewest examples with which a device takes part.
        staleness_max: releases that a late update may be behind; 0 takes none.
        rule: robust rule over the groups' means, see `vedette_core.learning.robust`.
        suspicion_min: suspicion of a device from which a person is asked to look at it.
        noise_multiplier: z; 0 is no noise and no guarantee.
        delta: δ.
        epsilon_max: ε a device and period.
        participations_max: attempts that a device contributes to in a period.
        period_rounds: rounds of a period.
        device_noise: whether the devices bring the noise, so that it holds against the aggregator, too.
    """

    checkin_s: float
    collect_s: float
    deadline_mads: float = 0.0
    unmask_s: float = 120.0
    interval_s: float
    rounds_per_day: float = 0.0
    quiet_hours: tuple[str, ...] = ()
    rounds_max: int = 0
    attempts_max: int = 3
    quorum: int
    checkins_max: int
    uploads_wanted: int = 0
    selection: SelectionMode = "diverse"
    group_size: int
    groups: int = 0
    survivors_min: int = 0
    epoch_rounds: int = 10
    committee: Literal["inline", "helpers"] = "inline"
    committee_size: int = 15
    masked: bool = True
    clip_norm: float
    adaptive_clip: float = 0.0
    bits: Literal[4, 8, 16] = 8
    weight_max: int
    examples_reference: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    prox_mu: float = 0.0
    examples_min: int
    staleness_max: int = 0
    rule: str = "auto"
    suspicion_min: float = THRESHOLD_DEFAULT
    noise_multiplier: float = 0.0
    delta: float = 1e-6
    epsilon_max: float = 0.0
    participations_max: int = 0
    period_rounds: int = 1000
    device_noise: bool = False

    def __post_init__(self) -> None:
        if self.checkin_s < 0 or self.collect_s <= 0 or self.unmask_s <= 0 or self.rounds_max < 0:
            raise ConfigError(
                f"round: found checkin_s={self.checkin_s}, collect_s={self.collect_s}, unmask_s={self.unmask_s}, "
                f"rounds_max={self.rounds_max}; expected collect_s and unmask_s > 0, the others ≥ 0"
            )
        _ = self.schedule
        if not 1 <= self.attempts_max <= 16:
            raise ConfigError(f"round: found attempts_max={self.attempts_max}, expected 1 to 16")
        if self.adaptive_clip and self.device_noise:
            raise ConfigError(
                "round: found adaptive_clip with device_noise; expected one of them: the devices' noise does not pay "
                "for the count of clipped updates"
            )
        if self.enough > self.checkins_max:
            raise ConfigError(
                f"round: found quorum={self.quorum}, survivors_min={self.least_survivors} and "
                f"checkins_max={self.checkins_max}, so that no round can begin; expected checkins_max to be the largest"
            )

    @property
    def schedule(self) -> Schedule:
        """When rounds open.

        Raises:
            ConfigError: it cannot be kept.
        """
        return Schedule(self.rounds_per_day or None, self.interval_s, self.quiet_hours)

    @property
    def least_survivors(self) -> int:
        """Fewest uploads of a group that count."""
        return self.survivors_min or find_survivors_min(self.group_size)

    @property
    def enough(self) -> int:
        """Check-ins without which forming groups is pointless."""
        return max(self.quorum, self.least_survivors)

    @property
    def robust_rule(self) -> str:
        """The rule; with noise and nothing else chosen, the mean: its one noise is the least."""
        return "mean" if self.rule == "auto" and self.noise_multiplier > 0 else self.rule

    def plan(
        self,
        task: str,
        *,
        version: int,
        feature_schema: str,
        network: str,
        dimension: int,
        tensors: tuple[str, ...] = (),
        groups: int | None = None,
        clip_norm: float | None = None,
    ) -> Plan:
        """The plan that participants are held to.

        Args:
            task: the task.
            version: counts up when anything in the plan changes.
            feature_schema: digest of the feature schema.
            network: digest of the network's specification.
            dimension: weights of the model.
            tensors: names whose activation ranges participants report.
            groups: number of groups, where the settings leave it open.
            clip_norm: largest norm of an update, where it adapts.

        Raises:
            ConfigError: a setting is out of the protocol's limits, the numbers keep no promise, or the model is too
                large for an upload.
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
                    staleness_max=self.staleness_max,
                ),
                update=self._update_plan(dimension, tensors, float(clip_norm or self.clip_norm)),
                groups=self._group_plan(self.groups or groups or -(-self.enough // self.group_size)),
                privacy=PrivacyPlan(
                    noise_multiplier=float(self.noise_multiplier),
                    delta=float(self.delta),
                    epsilon_max=float(self.epsilon_max),
                    participations_max=self.participations_max,
                    period_rounds=self.period_rounds,
                    scope="total" if self.robust_rule == "mean" else "group",
                ),
            )
            check_plan(plan)
            ring_of(plan)
        except ValidationError as fault:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors()[:5])
            raise ConfigError(f"plan of task {task}: found {found}; correct the task's settings") from fault
        except RefusedError as fault:
            raise ConfigError(f"{fault} (task {task}); correct the task's settings") from fault
        return plan

    def _update_plan(self, dimension: int, tensors: tuple[str, ...], clip_norm: float) -> UpdatePlan:
        private = self.noise_multiplier > 0
        share = 0.0
        if private and self.device_noise:
            step = Encoding(dimension, clip_norm, b"", self.bits).step
            share = device_share_sigma(
                noise_sigma(self.noise_multiplier, clip_norm, self.weight_max, step), self._honest_survivors()
            )
        return UpdatePlan(
            clip_norm=clip_norm,
            bits=self.bits,
            weight_max=self.weight_max,
            examples_reference=self.examples_reference,
            protection="masked" if self.masked else "none",
            tensors=() if private else tuple(sorted(tensors)),
            statistics=not private,
            noise_sigma=share,
        )

    def _honest_survivors(self) -> int:
        """Fewest survivors of a group that bring their noise: the corrupt ones may bring none.

        Raises:
            RefusedError: there may be none.
        """
        committee = self._committee()
        honest = min(HONEST_SURVIVORS_MIN, self.least_survivors)
        if self.masked and self.committee == "inline":
            honest = self.least_survivors - committee.corrupt_max
        if honest < 1:
            raise RefusedError(
                f"device_noise: found {self.least_survivors} survivors of which {committee.corrupt_max} may be "
                "corrupt, expected at least one that brings its noise",
                rule="noise",
            )
        return honest

    def _committee(self) -> Committee:
        if not self.masked:
            return Committee(0, 0, 0, 0)
        return find_committee(self.group_size if self.committee == "inline" else self.committee_size)

    def _group_plan(self, groups: int) -> GroupPlan:
        committee = self._committee()
        sizes: dict[str, Any] = {
            "committee": self.committee if self.masked else "none",
            "committee_size": committee.size,
            "votes_min": committee.votes_min,
            "threshold": committee.threshold,
            "corrupt_max": committee.corrupt_max,
        }
        return GroupPlan(
            group_size=self.group_size,
            members_max=self.group_size,
            groups=groups,
            survivors_min=self.least_survivors,
            quorum=max(self.quorum, self.least_survivors),
            checkins_max=self.checkins_max,
            epoch_rounds=self.epoch_rounds,
            **sizes,
        )


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
