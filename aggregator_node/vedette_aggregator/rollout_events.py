"""What can happen to a task's rollouts, and what the machine then asks of its shell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from vedette_core.machine import Effect, Event

Outcome = Literal["none", "pending", "trial", "confirmed", "failed"]


class Verb(StrEnum):
    """What a person can ask for."""

    CREATE = "create"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    APPROVE = "approve"
    ABORT = "abort"
    ROLLBACK = "rollback"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True)
class CandidateListed(Event):
    """Signed metadata list a release that is not active. Told again after every start.

    Attributes:
        version: of the release.
        sha256: hex digest of its weights.
        parent: hex digest of the weights that its round started from.
    """

    version: int
    sha256: str
    parent: str


@dataclass(frozen=True, slots=True)
class ActiveSeen(Event):
    """Signed metadata call this release active: told after every start, and the answer to `ActivateRelease`."""

    version: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseUnlisted(Event):
    """Signed metadata do not list a release any more: it was revoked, or is gone."""

    version: int


@dataclass(frozen=True, slots=True)
class ActivationRefused(Event):
    """A release will not become the active one: the validator refuses it, for a reason."""

    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceReported(Event):
    """A device's retained state.

    Attributes:
        device: its id.
        is_online: whether it is there now.
        version: release of the task that it runs; None if it runs none.
        candidate: release that its newest rollout state was about; 0 if it knows none.
        outcome: how far it is with that.
    """

    device: str
    is_online: bool
    version: int | None
    candidate: int = 0
    outcome: Outcome = "none"


@dataclass(frozen=True, slots=True)
class Measured(Event):
    """What a device did between two of its reports, with one release all the time.

    Attributes:
        device: its id.
        version: the release.
        alerts_per_hundred: alerts opened a hundred windows.
        surprise: mean −log10(p) of its windows; 0.43 where nothing is unusual.
        latency_us: median time to score a window, microseconds.
        memory_bytes: resident memory.
    """

    device: str
    version: int
    alerts_per_hundred: float
    surprise: float
    latency_us: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class DeviceAlerted(Event):
    """A device opened an alert with a release."""

    device: str
    version: int


@dataclass(frozen=True, slots=True)
class Requested(Event):
    """A person asks for something.

    Attributes:
        id: of the request; the same one is answered once.
        verb: what.
        by: who.
        at_s: when, epoch seconds.
        device: for pins.
        version: for pins and `Verb.CREATE`.
    """

    id: str
    verb: Verb
    by: str
    at_s: float
    device: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class ActivateRelease(Effect):
    """Make a release the one that signed metadata call active; answer with `ActiveSeen`.

    Doing it twice is harmless. A later one takes the place of an earlier one that is not done yet.
    """

    task: str
    version: int


@dataclass(frozen=True, slots=True)
class FollowRounds(Effect):
    """Rounds start from another release than before: see `RolloutRecord.rounds_from`."""

    task: str
