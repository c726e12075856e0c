"""Settings of the aggregator; every key is in ``aggregator_node/aggregator.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vedette_aggregator.action_settings import ActionsSection
from vedette_aggregator.profiles import PROFILES
from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection
from vedette_schemas.features import COLUMNS_MAX, HASH_MARK_PATTERN
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN


class TrainingSection(Section):
    """How participants train; signed into the plan.

    Attributes:
        local_epochs: passes over the local data a round.
        batch_size: examples a step.
        learning_rate: of local Adam.
        prox_mu: FedProx pull towards the model received; 0 is none.
        examples_min: fewest examples with which a device takes part.
        staleness_max: releases that a late update may be behind; 0 takes none.
    """

    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    prox_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    examples_min: Annotated[int, Field(ge=1)] = 64
    staleness_max: Annotated[int, Field(ge=0, le=100)] = 2


class RoundSection(Section):
    """When a round runs, with how many, and who opens its sums; see `RoundSettings`.

    Attributes:
        checkin_s: how long check-ins are collected once there are enough.
        collect_s: how long uploads are waited for, at most.
        deadline_mads: waits only until the median of lately seen times plus so many median deviations; 0 is off.
        unmask_s: how long committees are waited for.
        interval_s: pause between two rounds.
        rounds_per_day: most rounds that open in a day; 0 is no limit.
        quiet_hours: stretches of the day in which no round opens.
        rounds_max: rounds after which the task rests; 0 is without end.
        quorum: fewest uploads that make a round.
        checkins_max: most devices that are selected.
        uploads_wanted: closes when so many are there, and selects as many more as usually do not come; 0 waits for all.
        selection: ``diverse``, ``random`` or ``all``.
        group_size: most members of a group.
        groups: number of groups; 0 follows the number of devices.
        survivors_min: fewest uploads of a group that count; 0 follows from the group's size.
        epoch_rounds: rounds that a device stays in its group.
        committee: who opens a group's sum: its members (``inline``) or ``helpers``.
        committee_size: helpers of a group.
        attempts_max: tries a round before it is given up.
        clip_norm: largest L2 norm of an update.
        adaptive_clip: share of updates that should stay unclipped; 0 keeps `clip_norm`.
        bits: of a level.
        weight_max: largest weight of an update.
        examples_reference: examples that make weight 1.
    """

    checkin_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    collect_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    deadline_mads: Annotated[float, Field(ge=0, le=100)] = 0.0
    unmask_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    interval_s: Annotated[float, Field(ge=0, le=31 * 86_400)] = 21_600.0
    rounds_per_day: Annotated[float, Field(ge=0, le=1440)] = 0.0
    quiet_hours: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    rounds_max: Annotated[int, Field(ge=0)] = 0
    quorum: Annotated[int, Field(ge=1)] = 5
    checkins_max: Annotated[int, Field(ge=1)] = 512
    uploads_wanted: Annotated[int, Field(ge=0)] = 0
    selection: Literal["diverse", "random", "all"] = "diverse"
    group_size: Annotated[int, Field(ge=1, le=64)] = 8
    groups: Annotated[int, Field(ge=0, le=512)] = 0
    survivors_min: Annotated[int, Field(ge=0, le=64)] = 0
    epoch_rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    committee: Literal["inline", "helpers"] = "inline"
    committee_size: Annotated[int, Field(ge=2, le=64)] = 15
    attempts_max: Annotated[int, Field(ge=1, le=16)] = 3
    clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    adaptive_clip: Annotated[float, Field(ge=0, le=1)] = 0.0
    bits: Literal[4, 8, 16] = 8
    weight_max: Annotated[int, Field(ge=1, le=255)] = 8
    examples_reference: Annotated[int, Field(ge=1)] = 64


class PrivacySection(Section):
    """What a device is promised about the content of its updates.

    Attributes:
        noise_multiplier: z, the noise over the largest that one update can do; 0 is no noise and no guarantee.
        delta: δ.
        epsilon_max: ε that a device spends at most in a period.
        participations_max: attempts that a device contributes to in a period.
        period_rounds: rounds of a period.
        device_noise: whether the devices bring the noise, so that it holds against the aggregator, too.
    """

    noise_multiplier: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    epsilon_max: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    participations_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    period_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    device_noise: bool = False


class DefenceSection(Section):
    """What stands between poisoned updates and a release.

    Attributes:
        rule: robust rule over the groups' means; ``auto`` is ``root-trust`` with a root set, else ``trimmed-mean``.
        root_set: file of clean windows that ``vedette device windows`` made; see `vedette_aggregator.root_set`.
        suspicion_min: suspicion of a device from which a person is asked to look at it.
    """

    rule: str = "auto"
    root_set: Path | None = None
    suspicion_min: Annotated[float, Field(gt=0, le=100)] = 3.0


class RolloutSection(Section):
    """How releases reach the fleet; see `vedette_aggregator.rollout_settings`, and the example for each key."""

    enabled: bool = False
    from_version: Annotated[int, Field(ge=2)] = 2
    stages: Annotated[tuple[float, ...], Field(min_length=1, max_length=16)] = (1.0, 10.0, 50.0, 100.0)
    devices_min: Annotated[int, Field(ge=1, le=100_000)] = 5
    soak_s: Annotated[float, Field(ge=0, le=31 * 86_400)] = 21_600.0
    patience_s: Annotated[float, Field(ge=0, le=31 * 86_400)] = 21_600.0
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 120.0
    check_s: Annotated[float, Field(ge=0.1, le=86_400)] = 60.0
    approve: Annotated[tuple[float, ...], Field(max_length=16)] = ()
    exposed_per_hour: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    pause_s_max: Annotated[float, Field(ge=1, le=366 * 86_400)] = 1_209_600.0
    samples_min: Annotated[int, Field(ge=1, le=10_000)] = 50
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    success_min: Annotated[float, Field(gt=0, le=1)] = 0.95
    errors_max: Annotated[float, Field(ge=0, lt=1)] = 0.05
    alerts_relative: Annotated[float, Field(ge=0, le=100)] = 0.5
    alerts_absolute: Annotated[float, Field(ge=0, le=100)] = 0.5
    score_shift: Annotated[float, Field(ge=0, le=5)] = 0.2
    latency_relative: Annotated[float, Field(ge=0, le=100)] = 0.5
    memory_relative: Annotated[float, Field(ge=0, le=100)] = 0.25
    mass_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    mass_alerts: Annotated[int, Field(ge=1, le=10_000)] = 3
    state_life_s: Annotated[float, Field(ge=60, le=31 * 86_400)] = 86_400.0


class ServerOptimiserSection(Section):
    """What is done with the mean update: ``fedavg`` or ``fedadam``, with its learning rate."""

    kind: Literal["fedavg", "fedadam"] = "fedavg"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0


class FleetEventsSection(Section):
    """When devices that fire together are one event; see `vedette_aggregator.fleet_event_machine`.

    Attributes:
        share: part of a cohort's devices that open an alert …
        devices_min: … and fewest devices, however few that is …
        window_s: … within so many seconds.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    devices_min: Annotated[int, Field(ge=2, le=100_000)] = 5
    window_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0


class AttestationSection(Section):
    """What devices must show of their software before they take part; off without a policy.

    Attributes:
        policy: policy that ``vedette attest reference`` made; a newer one put in its place counts within seconds.
        policy_key: public key of whoever signs policies.
        verifier_key: private key that passports are signed with; the policy lists its public key.
        publish_own: whether the aggregator measures itself, and retains what it found for everybody.
    """

    policy: Path | None = None
    policy_key: Path | None = None
    verifier_key: Path | None = None
    publish_own: bool = False


class TaskSection(Section):
    """A federated task.

    Attributes:
        task: its name, as in topics.
        use_case: ``network``, ``sensor`` or ``behaviour``; picks the feature schema and the kind of network.
        source_schema: what the network task's devices read: ``packets`` or ``flow-logs``, which fill other schemas.
        channels: the sensor task's channels, in order.
        period_s: the sensor task's seconds between two rows.
        hash_columns: the behaviour task's columns that names are hashed into.
        hash_mark: mark of the hashing key that the behaviour task's devices share; each of them logs it. The aggregator
            has no need of the key itself.
        preset: budget of the INT8 artifact, see `vedette_core.learning.presets`; without it the use case's own network.
        seed: of the initial weights.
        profile: named defaults for `round` and `training` (`vedette_aggregator.profiles`); what is set here wins.
    """

    task: Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
    use_case: Literal["network", "sensor", "behaviour"]
    source_schema: Literal["packets", "flow-logs"] = "packets"
    channels: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    period_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    hash_columns: Annotated[int, Field(ge=2, le=COLUMNS_MAX)] = 64
    hash_mark: Annotated[str, Field(pattern=HASH_MARK_PATTERN)] | None = None
    preset: Literal["tiny", "small", "standard"] | None = None
    seed: Annotated[int, Field(ge=0)] = 1
    profile: Literal["cross-device", "cross-silo"] | None = None
    training: TrainingSection = TrainingSection()
    round: RoundSection = RoundSection()
    privacy: PrivacySection = PrivacySection()
    defence: DefenceSection = DefenceSection()
    validation: ValidationSection = ValidationSection()
    optimiser: ServerOptimiserSection = ServerOptimiserSection()
    rollout: RolloutSection = RolloutSection()

    @model_validator(mode="before")
    @classmethod
    def _profiled(cls, given: Any) -> Any:
        """The profile's values under those that are given."""
        if not isinstance(given, dict) or given.get("profile") not in PROFILES:
            return given
        sections = {
            section: {**values, **given.get(section, {})}
            for section, values in PROFILES[given["profile"]].items()
            if isinstance(given.get(section, {}), dict)
        }
        return {**given, **sections}

    @model_validator(mode="after")
    def _schema(self) -> TaskSection:
        if self.use_case == "sensor" and not self.channels:
            raise ValueError(f"task {self.task!r} of use case 'sensor' has no channels; expected at least one")
        if self.use_case == "behaviour" and self.hash_mark is None:
            raise ValueError(
                f"task {self.task!r} of use case 'behaviour' has no hash_mark; expected the four digits that its "
                "devices log when they start"
            )
        if self.use_case != "network" and self.source_schema != "packets":
            raise ValueError(
                f"task {self.task!r} of use case {self.use_case!r} has source_schema {self.source_schema!r}; expected "
                "that of network tasks only"
            )
        return self


class AggregatorIdentitySection(Section):
    """Who the aggregator is.

    Attributes:
        bundle: folder that ``vedette ca issue`` made for it.
        revocation_list: file that the authority writes and that is published; without it the bundle's ``crl.pem``.
    """

    bundle: Path
    revocation_list: Path | None = None


class AggregatorSettings(Settings):
    """An aggregator.

    Attributes:
        site: the site's id.
        aggregator: its own id, as in its certificate.
        state_dir: where rounds, releases and received alerts live.
        trust_dir: the release repository: metadata, artifacts and online keys.
        fleet_events: when alerts of many devices are one event.
        attestation: what devices must show before they take part.
        actions: what is done about drift and bad releases without a person.
        validator_patience_s: seconds that a round's candidate waits for an independent validator's signature, where one
            must sign; then the round fails, and the next one begins.
        tasks: the federated tasks.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    aggregator: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] = "aggregator"
    state_dir: Path
    trust_dir: Path
    validator_patience_s: Annotated[float, Field(ge=10, le=31 * 86_400)] = 86_400.0
    identity: AggregatorIdentitySection
    broker: BrokerSection = BrokerSection()
    fleet_events: FleetEventsSection = FleetEventsSection()
    attestation: AttestationSection = AttestationSection()
    actions: ActionsSection = ActionsSection()
    metrics: MetricsSection = MetricsSection(port=9470)
    log: LogSection = LogSection()
    tasks: Annotated[tuple[TaskSection, ...], Field(min_length=1, max_length=8)]
