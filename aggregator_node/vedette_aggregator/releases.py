"""A task's model on its way out: the initial one, and every round's candidate, built, described and signed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from vedette_aggregator.aggregation import Candidate, GlobalModel
from vedette_aggregator.artifacts import Artifact, assumed_ranges, build_artifacts
from vedette_aggregator.candidate_gate import CandidateGate
from vedette_aggregator.holdouts import Holdouts
from vedette_aggregator.listed_releases import ListedReleases
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry import Registry
from vedette_aggregator.round_events import Released
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.optimiser import FedAdam, FedAvg, Moments, ServerOptimiser
from vedette_core.learning.presets import Preset, task_spec
from vedette_core.learning.weights_file import WeightsFile, read_weights, write_weights
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS, FeatureSchema, behaviour_schema, sensor_schema
from vedette_schemas.model import ReleaseTarget, Variant, decimal
from vedette_schemas.round import Plan, plan_bytes, read_plan

RUNTIME_MIN: Final = "2.14.0"
"""Oldest runtime that computed these graphs correctly when they were tried."""
SENSOR_HISTORY: Final = 16
_NEW_NAME: Final = "expected the settings' one: a changed feature schema or network needs a new task name"


@dataclass(frozen=True, slots=True)
class TaskModel:
    """What a task learns: its feature schema and its network."""

    schema: FeatureSchema
    network: Network

    @classmethod
    def of(cls, task: TaskSection) -> TaskModel:
        """The model of a configured task.

        Raises:
            ConfigError: channels or a mark that make no schema, or a preset too small for them.
        """
        schema = _schema_of(task)
        return cls(schema, build_network(task_spec(schema, Preset(task.preset) if task.preset else None)))

    def plan(self, settings: RoundSettings, task: str) -> Plan:
        """The plan of rounds that train it."""
        return settings.plan(
            task,
            version=1,
            feature_schema=self.schema.digest,
            network=self.network.spec.digest,
            dimension=self.network.layout.size,
            tensors=self.network.tensor_names,
        )


def _schema_of(task: TaskSection) -> FeatureSchema:
    if task.use_case == "network":
        return FLOW_LOGS if task.source_schema == "flow-logs" else NETWORK_FLOWS
    if task.use_case == "behaviour":
        return behaviour_schema(task.hash_columns, task.hash_mark or "")
    return sensor_schema(task.channels, window_s=task.period_s, history=SENSOR_HISTORY)


def server_optimiser(task: TaskSection) -> ServerOptimiser:
    """The task's server optimiser."""
    if task.optimiser.kind == "fedadam":
        return FedAdam(learning_rate=task.optimiser.learning_rate)
    return FedAvg(learning_rate=task.optimiser.learning_rate)


class Staging(Protocol):
    """Who decides which releases go to the fleet in stages: the rollouts."""

    def is_staged(self, task: str, version: int) -> bool:
        """Whether a new release is a candidate first."""

    def kept(self, task: str) -> frozenset[int]:
        """Releases that must stay listed."""


class Releases:
    """Makes and publishes the releases of one task.

    Args:
        registry: the site's release repository.
        task: its settings.
        model: its feature schema and network.

    Attributes:
        gate: what a candidate must pass, and where it is written down.
        staging: which releases are candidates first; without it each is active at once.

    Raises:
        ConfigError: holdout sets that cannot be used.
    """

    def __init__(self, registry: Registry, task: TaskSection, model: TaskModel) -> None:
        self._registry, self._task, self._model = registry, task, model
        holdouts = Holdouts.load(task.validation, model.network, model.schema)
        self.gate = CandidateGate(task.task, model.network, task.validation, holdouts)
        self.staging: Staging | None = None
        self._built: tuple[bytes, dict[Variant, Artifact]] | None = None

    def initial(self, plan: Plan, now: float) -> GlobalModel:
        """The model that the first round starts from: release 0, published if there is none yet.

        Raises:
            ConfigError: what is published is for another network or feature schema than the settings ask for.
            TransientError: the disk is full.
        """
        if not self._registry.versions(self._task.task):
            weights = self._model.network.initial_weights(np.random.default_rng(self._task.seed))
            data = write_weights(WeightsFile(self._model.network, weights, self._model.schema))
            packed, digest = plan_bytes(plan)
            files = {Variant.WEIGHTS: data, Variant.PLAN: packed}
            custom = {v: self._describe(v, 0, None, digest) for v in files}
            self._registry.publish(self._task.task, 0, files, custom, now)
        state = self._registry.state()
        model = self._active_model(state)
        self._check(model.plan, plan)
        self._write_down(state, now)
        return model

    def _active_model(self, state: ListedReleases) -> GlobalModel:
        """The active release as what a round starts from; see `model_of`."""
        task = self._task.task
        version = state.active(task)
        if version is None:
            raise ConfigError(f"task {task}: found no active release in the repository; restore it from its backup")
        return self._model_of(state, version)

    def model_of(self, version: int) -> GlobalModel:
        """A kept release as what a round starts from; the optimiser begins anew.

        Raises:
            ConfigError: its files are missing or damaged, or of another feature schema.
            RefusedError: there is no such release.
        """
        return self._model_of(self._registry.state(), version)

    def _model_of(self, state: ListedReleases, version: int) -> GlobalModel:
        task = self._task.task
        target, data = state.target(task, version, Variant.WEIGHTS)
        _, packed = state.target(task, version, Variant.PLAN)
        found = read_weights(data)
        difference = self._model.schema.difference(found.schema)
        if difference:
            raise ConfigError(f"task {task}: found releases of another model ({difference}); {_NEW_NAME}")
        optimiser: Moments = server_optimiser(self._task).initial_state(len(found.weights))
        return GlobalModel(version, _digest(data), packed, target.round, found.weights, optimiser)

    def release(self, candidate: Candidate, plan: bytes, now: float) -> tuple[Released, Publication]:
        """Build every variant of a candidate, sign it, and make it the task's active release, or list it for a rollout.

        A candidate that was released before a crash is answered with that release.

        Raises:
            RefusedError, PeerError: its parent is not active any more, the gate rejects it, or a variant does not hold:
                it is not released, for good.
            TransientError: the disk is full: try again.
            ConfigError: the repository is damaged, or the quantiser is not installed.
        """
        state = self._registry.state()
        done = self._released(state, candidate)
        if done is not None:
            self._record(candidate, done.version)
            return done, self._registry.retained()
        version = state.next_version(self._task.task)
        self._check_parent(state, candidate, now)
        artifacts = self._build(candidate, now)
        self.gate.check(candidate, self._parent(candidate), {v: a.data for v, a in artifacts.items()}, now)
        plan_digest = _digest(plan)
        files = {variant: artifact.data for variant, artifact in artifacts.items()} | {Variant.PLAN: plan}
        custom = {v: self._describe(v, version, candidate, plan_digest) for v in files}
        staging, name = self.staging, self._task.task
        is_active = staging is None or not staging.is_staged(name, version)
        try:
            publication = self._registry.publish(
                name,
                version,
                files,
                custom,
                now,
                is_active=is_active,
                keep=staging.kept(name) if staging else (),
                # A candidate's parent may be one itself; the rollout machine withdraws what was made from one it left.
                after=candidate.parent_version if is_active else None,
            )
        except RefusedError as fault:
            if fault.rule == "validator":
                self.gate.refused(candidate, str(fault))
            raise
        self._record(candidate, version)
        return Released(version, artifacts[Variant.WEIGHTS].sha256, plan_digest), publication

    def _check_parent(self, state: ListedReleases, candidate: Candidate, now: float) -> None:
        """The gate holds a candidate against its parent: one of a release that was left would be as bad, and pass."""
        active, name = state.active(self._task.task), self._task.task
        if self.staging is not None and self.staging.is_staged(name, candidate.parent_version):
            return  # a rollout's candidate has children before it is active; the rollout machine withdraws them with it
        if active != candidate.parent_version:
            fault = RefusedError(
                f"candidate of round {candidate.round}: found release {active} active, expected its parent "
                f"{candidate.parent_version}, which was gone back from or revoked meanwhile",
                rule="parent",
            )
            self.gate.failed(candidate, fault, now)
            raise fault

    def give_up(self, candidate: Candidate, reason: str) -> tuple[Released, Publication] | None:
        """Take the proposal of a candidate back that a validator says nothing of; its release if it was just signed.

        Raises:
            TransientError, ConfigError: as `release`.
        """
        self._registry.take_back(self._task.task)
        done = self._released(self._registry.state(), candidate)
        if done is None:
            self.gate.refused(candidate, reason)
            return None
        self._record(candidate, done.version)
        return done, self._registry.retained()

    def _build(self, candidate: Candidate, now: float) -> dict[Variant, Artifact]:
        """The files of a candidate; kept, for one that waits for its second signature comes back every few seconds."""
        digest = candidate.digest()
        if self._built is not None and self._built[0] == digest:
            return self._built[1]
        try:
            artifacts = build_artifacts(
                self._model.network,
                candidate.weights,
                task=self._task.task,
                schema=self._model.schema,
                ranges=candidate.ranges or assumed_ranges(self._model.network, candidate.weights),
            )
        except (PeerError, RefusedError) as fault:
            self.gate.failed(candidate, fault, now)
            raise
        self._built = digest, artifacts
        return artifacts

    def _parent(self, candidate: Candidate) -> Float32:
        _, data = self._registry.target(self._task.task, candidate.parent_version, Variant.WEIGHTS)
        return read_weights(data).weights

    def _record(self, candidate: Candidate, version: int) -> None:
        listed = self._registry.listed(self._task.task, version)
        self.gate.released(candidate, version, {variant: target.sha256 for variant, target in listed.items()})

    def _write_down(self, state: ListedReleases, now: float) -> None:
        """Releases that the record does not know: the initial one, and those from before there was a record."""
        task = self._task.task
        for version in self.gate.unknown(state.versions(task)):
            said, data = state.target(task, version, Variant.WEIGHTS)
            files = {variant: target.sha256 for variant, target in state.listed(task, version).items()}
            self.gate.initial(data, version, said.round, files, said.parent, now)

    def _describe(self, variant: Variant, version: int, candidate: Candidate | None, plan: str) -> ReleaseTarget:
        form = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}.get(variant, "tflite")
        return ReleaseTarget.model_validate(
            {
                "task": self._task.task,
                "version": version,
                "parent": candidate.parent_sha256 if candidate else "",
                "round": candidate.round if candidate else 0,
                "variant": variant,
                "format": form,
                "feature_schema": self._model.schema.digest,
                "runtime_min": RUNTIME_MIN,
                "contributors": len(candidate.contributors) if candidate else 0,
                "transcript": candidate.transcript.hex() if candidate else "",
                "plan": plan,
                "metrics": {k: decimal(v) for k, v in candidate.metrics.items()} if candidate else {},
                "active": True,
            }
        )

    def _released(self, state: ListedReleases, candidate: Candidate) -> Released | None:
        """The newest release, if it is this candidate's: published before a crash, and not answered."""
        task, version = self._task.task, state.versions(self._task.task)[-1]
        target = state.listed(task, version)[Variant.WEIGHTS]
        if (target.custom.round, target.custom.transcript) != (candidate.round, candidate.transcript.hex()):
            return None
        return Released(version, target.sha256, target.custom.plan)

    def _check(self, published: bytes, wanted: Plan) -> None:
        found = read_plan(published)
        if (found.network, found.dimension) != (wanted.network, wanted.dimension):
            raise ConfigError(f"task {self._task.task}: found releases of another network; {_NEW_NAME}")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
