"""How far a new release may go: the retained state of a task's rollout, signed by the aggregator.

It only chooses among releases that signed release metadata list: whoever forges, withholds or replays it can at most
decide who runs which of them, and a replay is refused by its sequence number.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from vedette_schemas.codec import Message
from vedette_schemas.telemetry import Id, Task

ROLLOUT_TYPE: Final = "rollout.state"
"""Type of the envelope that a `RolloutState` travels in."""
PPM: Final = 1_000_000
"""A whole fleet, in the unit of shares."""
PINS_MAX: Final = 256
"""Pinned devices a task: each is a person's decision, and all of them travel in every state."""
MEMBERS_MAX: Final = 256
"""Exposed devices that a state names one by one; larger cohorts are a share of the fleet."""
SALT_BYTES: Final = 16

Version = Annotated[int, Field(ge=0, le=2**53)]
Ppm = Annotated[int, Field(ge=0, le=PPM)]
Sequence = Annotated[int, Field(ge=1, le=2**53)]
EpochSeconds = Annotated[float, Field(ge=0, le=1e12)]


class RolloutPhase(StrEnum):
    """Where a rollout is, as devices need to know it.

    ``running``: whoever is below the share runs the candidate. ``paused``: whoever runs it keeps it, and nobody else
    begins. ``promoted``: everybody runs it. ``aborted`` and ``rolled-back``: nobody does, whatever ran before.
    """

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled-back"


class RolloutPin(Message):
    """A device that runs one release whatever its cohort, because a person said so."""

    device: Id
    version: Version


class RolloutState(Message):
    """The newest state of a task's rollout.

    Attributes:
        task: the task.
        rollout: counts up with every rollout of the task.
        seq: counts up with everything that is said about the task's rollouts, for ever.
        candidate: release that is being tried.
        baseline: release that everybody else runs.
        share_ppm: part of the fleet that runs the candidate: those whose bucket is below it, see
            `vedette_core.crypto.cohorts`.
        control_ppm: part at the other end that is compared with it, and keeps the baseline.
        salt: what buckets are drawn with; another one for each rollout.
        state: see `RolloutPhase`.
        issued_s: when it was signed, epoch seconds.
        expires_s: from when on it decides nothing any more; signed metadata do.
        pins: sorted by device, each once.
        members: those below the share that run the candidate, sorted, each once; empty: all that are below it. A device
            that the aggregator did not count then is in no small cohort, wherever its bucket is.
    """

    task: Task
    rollout: Sequence
    seq: Sequence
    candidate: Version
    baseline: Version
    share_ppm: Ppm
    control_ppm: Ppm
    salt: Annotated[bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    state: Annotated[RolloutPhase, Field(strict=False)]
    issued_s: EpochSeconds
    expires_s: EpochSeconds
    pins: Annotated[tuple[RolloutPin, ...], Field(max_length=PINS_MAX)] = ()
    members: Annotated[tuple[Id, ...], Field(max_length=MEMBERS_MAX)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> RolloutState:
        if self.candidate <= self.baseline:
            raise ValueError(f"candidate {self.candidate} is not newer than baseline {self.baseline}")
        if self.share_ppm + self.control_ppm > PPM:
            raise ValueError(f"share {self.share_ppm} and control {self.control_ppm} overlap")
        if self.expires_s < self.issued_s:
            raise ValueError("expires before it was issued")
        names = [pin.device for pin in self.pins]
        if names != sorted(set(names)):
            raise ValueError("pins are not sorted by device, each once")
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("members are not sorted, each once")
        return self
