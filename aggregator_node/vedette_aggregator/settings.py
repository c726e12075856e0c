"""Settings of the aggregator; every key is in ``aggregator_node/aggregator.example.toml`` with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vedette_core.runtime.config import Section, Settings
from vedette_core.runtime.sections import BrokerSection, LogSection, MetricsSection
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN


class TrainingSection(Section):
    """How participants train; signed into the plan.

    Attributes:
        local_epochs: passes over the local data a round.
        batch_size: examples a step.
        learning_rate: of local Adam.
        prox_mu: FedProx pull towards the model received; 0 is none.
        examples_min: fewest examples with which a device takes part.
    """

    local_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    prox_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    examples_min: Annotated[int, Field(ge=1)] = 64


class RoundSection(Section):
    """When a round runs, and with how many.

    Attributes:
        checkin_s: how long check-ins are collected once there are enough.
        collect_s: how long uploads are waited for.
        interval_s: pause between two rounds.
        rounds_max: rounds after which the task rests; 0 is without end.
        quorum: fewest uploads that make a round.
        checkins_max: most devices that are selected.
        group_size: members a group.
        survivors_min: fewest uploads of a group that count.
        attempts_max: tries a round before it is given up.
        clip_norm: largest L2 norm of an update.
        weight_max: largest weight of an update.
        examples_reference: examples that make weight 1.
    """

    checkin_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    collect_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    interval_s: Annotated[float, Field(ge=0, le=31 * 86_400)] = 21_600.0
    rounds_max: Annotated[int, Field(ge=0)] = 0
    quorum: Annotated[int, Field(ge=1)] = 5
    checkins_max: Annotated[int, Field(ge=1)] = 512
    group_size: Annotated[int, Field(ge=1, le=64)] = 32
    survivors_min: Annotated[int, Field(ge=1, le=64)] = 5
    attempts_max: Annotated[int, Field(ge=1, le=16)] = 3
    clip_norm: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    weight_max: Annotated[int, Field(ge=1, le=255)] = 8
    examples_reference: Annotated[int, Field(ge=1)] = 64


class ServerOptimiserSection(Section):
    """What is done with the mean update: ``fedavg`` or ``fedadam``, with its learning rate."""

    kind: Literal["fedavg", "fedadam"] = "fedavg"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0


class TaskSection(Section):
    """A federated task.

    Attributes:
        task: its name, as in topics.
        use_case: ``network`` or ``sensor``; picks the feature schema and the kind of network.
        channels: the sensor task's channels, in order.
        period_s: the sensor task's seconds between two rows.
        seed: of the initial weights.
    """

    task: Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
    use_case: Literal["network", "sensor"]
    channels: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    period_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    seed: Annotated[int, Field(ge=0)] = 1
    training: TrainingSection = TrainingSection()
    round: RoundSection = RoundSection()
    optimiser: ServerOptimiserSection = ServerOptimiserSection()

    @model_validator(mode="after")
    def _channels(self) -> TaskSection:
        if self.use_case == "sensor" and not self.channels:
            raise ValueError(f"task {self.task!r} of use case 'sensor' has no channels; expected at least one")
        return self


class AggregatorIdentitySection(Section):
    """Who the aggregator is.

    Attributes:
        bundle: folder that ``vedette ca issue`` made for it.
    """

    bundle: Path


class AggregatorSettings(Settings):
    """An aggregator.

    Attributes:
        site: the site's id.
        aggregator: its own id, as in its certificate.
        state_dir: where rounds, releases and received alerts live.
        trust_dir: the release repository: metadata, artifacts and online keys.
        tasks: the federated tasks.
    """

    site: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    aggregator: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] = "aggregator"
    state_dir: Path
    trust_dir: Path
    identity: AggregatorIdentitySection
    broker: BrokerSection = BrokerSection()
    metrics: MetricsSection = MetricsSection(port=9470)
    log: LogSection = LogSection()
    tasks: Annotated[tuple[TaskSection, ...], Field(min_length=1, max_length=8)]
