"""What can happen while a device applies releases of one task, and what it then has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from vedette_core.machine import Effect, Event
from vedette_device.verified_release import MetadataVersion, Revocation, VerifiedRelease, VerifiedTarget
from vedette_schemas.codec import Message
from vedette_schemas.model import Digest, Task, Variant
from vedette_schemas.telemetry import ActiveModel


class InstalledModel(Message):
    """A model in a slot, or on its way there.

    Attributes:
        task: the task.
        version: release version.
        variant: which form its bytes are.
        backend: back end that runs it.
        sha256: hex digest of its bytes.
        length: of its bytes.
        metadata_version: of the signed metadata that announced it; see `MetadataVersion`.
    """

    task: Task
    version: Annotated[int, Field(ge=0)]
    variant: Annotated[Variant, Field(strict=False)]
    backend: Literal["litert", "tflite", "numpy"]
    sha256: Digest
    length: Annotated[int, Field(ge=1)]
    metadata_version: MetadataVersion

    def active_model(self) -> ActiveModel:
        """The form in which a device reports it."""
        return ActiveModel.model_validate(
            {
                "task": self.task,
                "version": self.version,
                "variant": self.variant.value,
                "digest": self.sha256,
                "backend": self.backend,
            }
        )


@dataclass(frozen=True, slots=True)
class SlotsView:
    """What the A/B slots hold; a slot whose bytes do not have their digest counts as empty.

    Attributes:
        active: the model to run.
        spare: the model in the other slot.
        trial: whether the active model is on trial.
        spare_good: whether the spare one was confirmed once, so that falling back to it is safe.
    """

    active: InstalledModel | None = None
    spare: InstalledModel | None = None
    trial: bool = False
    spare_good: bool = False


@dataclass(frozen=True, slots=True)
class BootedWith(Event):
    """The process started and looked at the slots; no model is loaded yet."""

    slots: SlotsView


@dataclass(frozen=True, slots=True)
class ReleaseAnnounced(Event):
    """Signed metadata name this as the task's active release, or list it and a signed rollout chose it."""

    release: VerifiedRelease


@dataclass(frozen=True, slots=True)
class ReleasesRevoked(Event):
    """What the newest signed metadata revoke of this task; replaces what earlier ones did."""

    revocation: Revocation


@dataclass(frozen=True, slots=True)
class ArtifactStaged(Event):
    """The bytes are in the spare slot, and their length and digest are those of the signed metadata."""

    sha256: str


@dataclass(frozen=True, slots=True)
class FetchFailed(Event):
    """The bytes did not come, were others, or could not be stored.

    Attributes:
        sha256: whose.
        reason: for people.
        transient: nobody's fault (broker away, disk full): tried again without counting against the release.
    """

    sha256: str
    reason: str
    transient: bool


@dataclass(frozen=True, slots=True)
class SelfTestPassed(Event):
    """The staged model scored the recorded windows as expected."""

    sha256: str


@dataclass(frozen=True, slots=True)
class SelfTestFailed(Event):
    """The staged model did not load, or its scores of the recorded windows are not acceptable."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class Activated(Event):
    """The slots were switched; the model scores live windows, on trial."""

    sha256: str


@dataclass(frozen=True, slots=True)
class ActivationFailed(Event):
    """The slots could not be switched, or the model did not run after it; answered with `FallBack`."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrialConfirmed(Event):
    """The model on trial scored enough live windows without a fault."""

    sha256: str


@dataclass(frozen=True, slots=True)
class TrialFailed(Event):
    """The model on trial failed on live windows."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stage(Effect):
    """Download a target, check it, and write it to the spare slot; answer `ArtifactStaged` or `FetchFailed`.

    The shell carries out one such effect at a time, in order: a slot has one writer.
    """

    model: InstalledModel
    target: VerifiedTarget


@dataclass(frozen=True, slots=True)
class SelfTest(Effect):
    """Load the spare slot's model and score recorded windows; answer `SelfTestPassed` or `SelfTestFailed`."""

    model: InstalledModel


@dataclass(frozen=True, slots=True)
class Activate(Effect):
    """Switch the slots and run the model on trial; answer `Activated` or `ActivationFailed`."""

    model: InstalledModel


@dataclass(frozen=True, slots=True)
class Confirm(Effect):
    """The active model is good: its trial is over."""

    model: InstalledModel


@dataclass(frozen=True, slots=True)
class FallBack(Effect):
    """Run the last good model again (or none, where there is none); needs no network.

    If the active model is confirmed and sound, there is nothing to leave, and nothing changes.
    """

    task: str


@dataclass(frozen=True, slots=True)
class DropRevoked(Effect):
    """Empty every slot that holds a revoked model; if it ran, run its successor, or nothing.

    Attributes:
        task: the task.
        sha256: hex digests of the models.
        successor: hex digest of the model that runs afterwards; empty for none.
    """

    task: str
    sha256: frozenset[str]
    successor: str


@dataclass(frozen=True, slots=True)
class ReportState(Effect):
    """Report which model is active.

    Attributes:
        task: the task.
        active: the model, or None.
        trial: whether it is on trial.
    """

    task: str
    active: InstalledModel | None
    trial: bool
