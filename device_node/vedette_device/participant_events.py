"""What can happen to a participant, what it can ask for, and the answer to every event in every state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vedette_core.crypto.agreement import KeyPair
from vedette_core.machine import Connected, Effect, Event, Tick
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.training import Contribution
from vedette_schemas.round import Plan, Roster, RoundOpen
from vedette_schemas.telemetry import Receipt
from vedette_schemas.trust import BeaconAnchor

KeyFactory = Callable[[], KeyPair]
"""Makes a key pair that was never used before."""


@dataclass(frozen=True, slots=True)
class RoundOpened(Event):
    """The round's state, signed by the aggregator."""

    body: RoundOpen


@dataclass(frozen=True, slots=True)
class RosterReceived(Event):
    """A group's roster, signed by the aggregator."""

    body: Roster


@dataclass(frozen=True, slots=True)
class ReceiptReceived(Event):
    """What the aggregator took from this device, signed by it; the shell's outbox drops these ids."""

    body: Receipt


@dataclass(frozen=True, slots=True)
class ExamplesAvailable(Event):
    """How many local examples there are to train on now."""

    count: int


@dataclass(frozen=True, slots=True)
class ReleaseVerified(Event):
    """The task's active release is verified and its weights file and plan are here.

    Attributes:
        version: release version.
        model_sha256: hex digest of the weights file.
        plan_sha256: hex digest of the plan.
        plan: the plan.
        anchor: of the beacon, from metadata that the site's offline keys signed; None where there is none.
    """

    version: int
    model_sha256: str
    plan_sha256: str
    plan: Plan
    anchor: BeaconAnchor | None = None


@dataclass(frozen=True, slots=True)
class TrainingFinished(Event):
    """The shell's answer to `Train`.

    Attributes:
        round: the round that it was for.
        attempt: the attempt of it.
        plan: the plan that it was trained under.
        contribution: the vector, masked for the group, and what belongs to it.
    """

    round: int
    attempt: int
    plan: Plan
    contribution: Contribution


@dataclass(frozen=True, slots=True)
class TrainingFailed(Event):
    """The shell's other answer: this device sits the attempt out."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Train(Effect):
    """Train on the local examples, encode and mask the change; answer with `TrainingFinished` or `TrainingFailed`.

    A training that is still running for an older attempt is pointless from here on.

    Attributes:
        task: the task.
        round: the round.
        attempt: the attempt.
        model_version: release version to start from.
        model_sha256: hex digest of its weights file.
        plan: how to train and encode.
        roster: the group that it is for.
        key: the pair of the own entry in the roster.
    """

    task: str
    round: int
    attempt: int
    model_version: int
    model_sha256: str
    plan: Plan
    roster: Roster
    key: KeyPair


class Answer(StrEnum):
    """What the machine does with an event: take it, refuse it with a reason, or let it fall."""

    ACCEPT = "accepted"
    REJECT = "rejected"
    DISCARD = "discarded"


class ParticipantState(StrEnum):
    """Where a participant is.

    UNFIT: the released model is for other features than this device's, or its plan is one that it refuses; it never
    trains. IDLE: no key. CHECKED_IN: a
    key was offered, its roster is waited for. TRAINING: its roster holds. UPLOADED: its one upload of the attempt is
    written down (or the attempt is sat out); the key is kept until the attempt is over.
    """

    UNFIT = "unfit"
    IDLE = "idle"
    CHECKED_IN = "checked_in"
    TRAINING = "training"
    UPLOADED = "uploaded"


KINDS: Final[Mapping[type[Event], str]] = {
    Tick: "tick",
    Connected: "connected",
    RoundOpened: "round",
    RosterReceived: "roster",
    ReceiptReceived: "receipt",
    ExamplesAvailable: "examples",
    ReleaseVerified: "release",
    TrainingFinished: "trained",
    TrainingFailed: "training_failed",
    CloseReceived: "close",
    OpeningReceived: "opening",
}
"""Every event of the machine, with its label in the metrics."""

_A, _D = Answer.ACCEPT, Answer.DISCARD
_STATES: Final = (
    ParticipantState.UNFIT,
    ParticipantState.IDLE,
    ParticipantState.CHECKED_IN,
    ParticipantState.TRAINING,
    ParticipantState.UPLOADED,
)
_ROWS: Final[Mapping[type[Event], tuple[Answer, ...]]] = {
    #                  UNFIT IDLE CHECKED_IN TRAINING UPLOADED
    Tick:              (_D,  _D,  _A,        _D,      _D),
    Connected:         (_A,  _A,  _A,        _A,      _A),
    RoundOpened:       (_A,  _A,  _A,        _A,      _A),
    RosterReceived:    (_D,  _D,  _A,        _D,      _D),
    ReceiptReceived:   (_A,  _A,  _A,        _A,      _A),
    ExamplesAvailable: (_A,  _A,  _A,        _A,      _A),
    ReleaseVerified:   (_A,  _A,  _A,        _A,      _A),
    TrainingFinished:  (_D,  _D,  _D,        _A,      _D),
    TrainingFailed:    (_D,  _D,  _D,        _A,      _D),
    CloseReceived:     (_A,  _A,  _A,        _A,      _A),
    OpeningReceived:   (_A,  _A,  _A,        _A,      _A),
}  # fmt: skip
TABLE: Final[Mapping[tuple[ParticipantState, type[Event]], Answer]] = {
    (state, event): answer for event, row in _ROWS.items() for state, answer in zip(_STATES, row, strict=True)
}
"""The answer to every event in every state.

A body that does not hold turns *accept* into *reject* (a forged roster, a release of other features) or *discard* (an
older round, a stale roster, the result of an abandoned training).
"""
