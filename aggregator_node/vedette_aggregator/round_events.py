"""What can happen to a round, what it can ask for, and the answer to everything that can happen in every state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from vedette_aggregator.aggregation import Candidate, GlobalModel
from vedette_aggregator.round_state import RoundState
from vedette_core.learning.layout import Float32
from vedette_core.machine import Connected, Effect, Event, Tick
from vedette_schemas.round import CheckIn, Plan, Upload
from vedette_schemas.secagg import Shares, Vote


@dataclass(frozen=True, slots=True)
class CheckInReceived(Event):
    """A check-in whose certificate, signature and offer hold."""

    body: CheckIn


@dataclass(frozen=True, slots=True)
class UploadReceived(Event):
    """An upload whose signatures hold, with the sealed message as it came."""

    body: Upload
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class VoteReceived(Event):
    """A committee member's vote whose signature holds, with the sealed message as it came."""

    body: Vote
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SharesReceived(Event):
    """A committee member's shares whose signature holds, with the sealed message as it came."""

    body: Shares
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RootTrained(Event):
    """The shell's answer to `TrainRoot`.

    Attributes:
        round: the round that it was for.
        attempt: the attempt of it.
        delta: ``(dimension,)`` float32 change of the weights; None if it could not be trained.
    """

    round: int
    attempt: int
    delta: Float32 | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Quarantined(Event):
    """A person decided which devices take no part until further notice.

    Attributes:
        devices: all of them.
    """

    devices: frozenset[str]


@dataclass(frozen=True, slots=True)
class Released(Event):
    """The shell's answer to `PublishCandidate`: it is published, and will still be after a crash.

    Attributes:
        version: its release version, one above the candidate's parent.
        model_sha256: hex digest of the weights file.
        plan_sha256: hex digest of the plan published with it.
    """

    version: int
    model_sha256: str
    plan_sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseFailed(Event):
    """The shell's other answer: the candidate is not released, for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class ModelReplaced(Event):
    """A person made another release the active one (a rollback, a new plan): a round in progress is over.

    Attributes:
        model: what the next round starts from.
    """

    model: GlobalModel


@dataclass(frozen=True, slots=True)
class RoundAsked(Event):
    """Somebody wants the next round before its time; quiet hours and a grid of rounds a day stay what they are."""


@dataclass(frozen=True, slots=True)
class TrainRoot(Effect):
    """Train on the aggregator's own clean root set as a participant would; answer with `RootTrained`.

    Attributes:
        task: the task.
        round: the round.
        attempt: the attempt.
        plan: how to train.
        weights: ``(dimension,)`` float32 that the round starts from.
    """

    task: str
    round: int
    attempt: int
    plan: Plan
    weights: Float32 = field(repr=False)


@dataclass(frozen=True, slots=True)
class Suspect(Effect):
    """The record of a device's groups speaks against it: a person should look, and may quarantine it.

    Attributes:
        task: the task.
        device: whose.
        score: its suspicion.
        observations: rounds behind it.
    """

    task: str
    device: str
    score: float
    observations: int


@dataclass(frozen=True, slots=True)
class PublishCandidate(Effect):
    """Build, validate, sign and publish the candidate; answer with `Released` or `ReleaseFailed`.

    After a restart the same candidate is handed over again, identical to the last bit: a shell that has already
    released a candidate of this (task, round) answers with that release.

    Attributes:
        candidate: what to release.
        plan: the plan to publish with it, as its artifact: the next rounds run under it.
    """

    candidate: Candidate
    plan: bytes = field(repr=False)


class Answer(StrEnum):
    """What the machine does with an event: take it, refuse it with a receipt, or let it fall."""

    ACCEPT = "accepted"
    REJECT = "rejected"
    DISCARD = "discarded"


KINDS: Final[Mapping[type[Event], str]] = {
    Tick: "tick",
    Connected: "connected",
    CheckInReceived: "checkin",
    UploadReceived: "upload",
    VoteReceived: "vote",
    SharesReceived: "shares",
    RootTrained: "root",
    Quarantined: "quarantined",
    Released: "released",
    ReleaseFailed: "release_failed",
    ModelReplaced: "model_replaced",
    RoundAsked: "round_asked",
}
"""Every event of the machine, with its label in the metrics."""

_A, _R, _D = Answer.ACCEPT, Answer.REJECT, Answer.DISCARD
_STATES: Final = (
    RoundState.INTERVAL,
    RoundState.CHECKIN,
    RoundState.COLLECT,
    RoundState.UNMASK,
    RoundState.RELEASING,
    RoundState.FINISHED,
)
_ROWS: Final[Mapping[type[Event], tuple[Answer, ...]]] = {
    #                INTERVAL CHECKIN COLLECT UNMASK RELEASING FINISHED
    Tick:            (_A,     _A,     _A,     _A,    _D,       _D),
    Connected:       (_A,     _A,     _A,     _A,    _A,       _A),
    CheckInReceived: (_A,     _A,     _A,     _A,    _A,       _A),
    UploadReceived:  (_R,     _R,     _A,     _R,    _R,       _R),
    VoteReceived:    (_D,     _D,     _D,     _A,    _D,       _D),
    SharesReceived:  (_D,     _D,     _D,     _A,    _D,       _D),
    RootTrained:     (_D,     _D,     _A,     _A,    _D,       _D),
    Quarantined:     (_A,     _A,     _A,     _A,    _A,       _A),
    Released:        (_D,     _D,     _D,     _D,    _A,       _D),
    ReleaseFailed:   (_D,     _D,     _D,     _D,    _A,       _D),
    ModelReplaced:   (_A,     _A,     _A,     _A,    _A,       _A),
    RoundAsked:      (_A,     _D,     _D,     _D,    _D,       _D),
}  # fmt: skip
TABLE: Final[Mapping[tuple[RoundState, type[Event]], Answer]] = {
    (state, event): answer for event, row in _ROWS.items() for state, answer in zip(_STATES, row, strict=True)
}
"""The answer to every event in every state.

A body that does not hold turns *accept* into *reject*; an upload that was accepted before turns *reject* into *accept*
(its receipt may have been lost, and is sent again). A vote or shares that nobody waits for any more are discarded, with
a receipt all the same, so that their sender forgets them.
"""
