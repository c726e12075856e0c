"""What a task's rollouts remember: written before anything is said or done that depends on it."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.rollout import MEMBERS_MAX, PINS_MAX, PPM, RolloutPin, RolloutState

KNOWN_MAX: Final = 16
WITHDRAWN_MAX: Final = 64
"""Releases that are remembered; the registry keeps fewer."""
AUDIT_MAX: Final = 64
"""Newest decisions that are kept beside the record; the log has all of them."""
HISTORY_MAX: Final = 16
DONE_MAX: Final = 64
TALLIES_MAX: Final = 4096
"""Devices whose alerts survive a restart; the others are counted anew."""
TEXT_MAX: Final = 200


class Phase(StrEnum):
    """Where a task's rollout is; the first is before there was one, the last three are ends."""

    IDLE = "idle"
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTING = "promoting"
    REVERTING = "reverting"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled-back"


WATCHED: Final = (Phase.RUNNING, Phase.PAUSED)
"""Devices run the candidate beside the baseline: what they report counts."""
LIVE: Final = frozenset({Phase.WAITING, Phase.RUNNING, Phase.PAUSED, Phase.PROMOTING, Phase.REVERTING})

Text = Annotated[str, Field(max_length=TEXT_MAX)]
Count = Annotated[int, Field(ge=0)]
Epoch = Annotated[float, Field(ge=0)]
Ppm = Annotated[int, Field(ge=0, le=PPM)]


class KnownRelease(Message):
    """A listed release: its version, the digest of its weights, and that of the weights that its round started from."""

    version: Count
    sha256: str
    parent: str


class AuditEntry(Message):
    """A decision: when, whose (``aggregator`` for its own), which, about what, and what came of it."""

    at_s: Epoch
    by: Text
    verb: Text
    argument: Text = ""
    outcome: Text = ""
    rollout: Count = 0


class PastRollout(Message):
    """A rollout that has ended."""

    number: Count
    candidate: Count
    baseline: Count
    phase: Annotated[Phase, Field(strict=False)]
    reason: Text
    began_s: Epoch
    ended_s: Epoch
    exposed: Count


class RolloutRecord(Message):
    """Everything about a task's rollouts that must survive a crash.

    Attributes:
        seq: of the last state that was said.
        number: of the newest rollout.
        phase: where it is.
        candidate: its release.
        baseline: the release that it is compared with.
        began_s: when it was created.
        stage: index of its stage; −1 before the first.
        salt: what its cohorts are drawn with.
        share_ppm: part of the fleet that runs the candidate now.
        control_ppm: part that is compared with it.
        members: who is exposed, as long as there are few enough to be named.
        target: devices that the stage wants.
        exposed: devices that are to run the candidate, of those known when the share was set.
        raised: when how many devices were exposed, within the last hour.
        since_s: when the phase, or the stage, began.
        full_s: when the stage reached its full size; 0 before.
        reason: why it is in this phase.
        awaits: the stage, in percent, that a person must approve now; −1 is none, 0 the start.
        approved: stages, in percent, that a person approved.
        queued: the candidate that comes next; 0 is none.
        known: listed releases that are newer than the active one, and that one.
        withdrawn: digests of releases that no round and no device goes on from.
        active: the release that signed metadata call active.
        fleet: devices known when a stage began last, or more that became known since.
        pins: devices that a person tied to a release.
        said: the newest state that devices were told.
        audit: newest decisions.
        done: ids of requests that were answered, so that a crash does not answer them twice.
        history: rollouts that have ended, the newest last.
    """

    seq: Count = 0
    number: Count = 0
    phase: Annotated[Phase, Field(strict=False)] = Phase.IDLE
    candidate: Count = 0
    baseline: Count = 0
    began_s: Epoch = 0.0
    stage: Annotated[int, Field(ge=-1)] = -1
    salt: Annotated[bytes, Field(max_length=16)] = b""
    share_ppm: Ppm = 0
    control_ppm: Ppm = 0
    members: Annotated[tuple[str, ...], Field(max_length=MEMBERS_MAX)] = ()
    target: Count = 0
    exposed: Count = 0
    raised: tuple[tuple[float, int], ...] = ()
    since_s: Epoch = 0.0
    full_s: Epoch = 0.0
    reason: Text = ""
    awaits: float = -1.0
    approved: tuple[float, ...] = ()
    queued: Count = 0
    known: Annotated[tuple[KnownRelease, ...], Field(max_length=KNOWN_MAX)] = ()
    withdrawn: Annotated[tuple[str, ...], Field(max_length=WITHDRAWN_MAX)] = ()
    active: Count = 0
    fleet: Count = 0
    pins: Annotated[tuple[RolloutPin, ...], Field(max_length=PINS_MAX)] = ()
    said: RolloutState | None = None
    audit: Annotated[tuple[AuditEntry, ...], Field(max_length=AUDIT_MAX)] = ()
    done: Annotated[tuple[str, ...], Field(max_length=DONE_MAX)] = ()
    history: Annotated[tuple[PastRollout, ...], Field(max_length=HISTORY_MAX)] = ()

    @property
    def is_live(self) -> bool:
        """Whether a rollout is under way."""
        return self.phase in LIVE

    def kept(self) -> frozenset[int]:
        """Releases that must stay listed: those that devices are told of, or soon will be."""
        told = (self.said.candidate, self.said.baseline) if self.said else ()
        under_way = (self.candidate, self.baseline) if self.is_live else ()
        return frozenset((*told, *under_way, *(pin.version for pin in self.pins)))

    def rounds_from(self, listed: Collection[int]) -> int:
        """Version that the next round starts from: the newest candidate that is not withdrawn, else the active one.

        Args:
            listed: releases that the repository still has.
        """
        usable = [
            r.version
            for r in self.known
            if r.version > self.active and r.version in listed and r.sha256 not in self.withdrawn
        ]
        return max(usable, default=self.active)


class Tallies(Message):
    """Alerts that devices opened since they are watched: with the candidate, and in the control cohort."""

    rollout: Count = 0
    candidate: Annotated[dict[str, int], Field(max_length=TALLIES_MAX)] = Field(default_factory=dict)
    control: Annotated[dict[str, int], Field(max_length=TALLIES_MAX)] = Field(default_factory=dict)


def record_key(task: str) -> str:
    """Where a task's record is persisted."""
    return f"rollout/{task}/record"


def tallies_key(task: str) -> str:
    """Where the alerts are counted."""
    return f"rollout/{task}/tallies"


def read_record(stored: bytes | None, task: str) -> RolloutRecord:
    """The record as stored; a new one if there is none.

    Raises:
        ConfigError: it is damaged.
    """
    if stored is None:
        return RolloutRecord()
    try:
        return codec.unpack(RolloutRecord, stored)
    except PeerError as fault:
        raise ConfigError(
            f"rollouts of {task}: found a damaged record ({fault}), expected one of this version; restore the "
            "aggregator's state from its backup"
        ) from fault
