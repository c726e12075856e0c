"""What a person may ask of a rollout, and when; requests are written into the store beside the running aggregator."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from vedette_aggregator.rollout_events import Requested, Verb
from vedette_aggregator.rollout_state import Phase, RolloutRecord
from vedette_schemas.codec import Message
from vedette_schemas.errors import RefusedError
from vedette_schemas.rollout import PINS_MAX

_ANY_LIVE: Final = frozenset({Phase.WAITING, Phase.RUNNING, Phase.PAUSED})
ALLOWED: Final = {
    Verb.START: frozenset({Phase.WAITING}),
    Verb.PAUSE: frozenset({Phase.RUNNING}),
    Verb.RESUME: frozenset({Phase.PAUSED}),
    Verb.PROMOTE: _ANY_LIVE,
    Verb.APPROVE: frozenset({Phase.WAITING, Phase.PAUSED}),
    Verb.ABORT: _ANY_LIVE,
    Verb.ROLLBACK: _ANY_LIVE | {Phase.PROMOTING, Phase.PROMOTED},
    Verb.CREATE: frozenset({Phase.IDLE, Phase.PROMOTED, Phase.ABORTED, Phase.ROLLED_BACK}),
}
"""Phases in which a verb means something; pins do in all of them."""


class RequestBody(Message):
    """A request as it is stored; see `Requested`."""

    verb: Annotated[Verb, Field(strict=False)]
    by: Annotated[str, Field(min_length=1, max_length=200)]
    at_s: Annotated[float, Field(ge=0)]
    device: Annotated[str, Field(max_length=60)] = ""
    version: Annotated[int, Field(ge=0)] = 0


def request_prefix(task: str) -> str:
    """Below which a task's requests are stored."""
    return f"rollout-request/{task}/"


def request_key(task: str, request: str) -> str:
    """Where a request is stored."""
    return request_prefix(task) + request


def check(record: RolloutRecord, event: Requested) -> None:
    """Whether a request can be carried out now.

    Raises:
        RefusedError: it cannot; says why.
    """
    allowed = ALLOWED.get(event.verb)
    if allowed is not None and record.phase not in allowed:
        raise RefusedError(
            f"{event.verb.value}: found the rollout {record.phase.value}, expected it "
            f"{' or '.join(sorted(phase.value for phase in allowed))}",
            rule="phase",
        )
    match event.verb:
        case Verb.APPROVE if record.awaits < 0:
            raise RefusedError("approve: found nothing that waits for approval; resume, promote or abort", rule="phase")
        case Verb.ROLLBACK if record.phase is Phase.PROMOTED and record.active != record.candidate:
            raise RefusedError(
                f"rollback: found release {record.active} active, expected release {record.candidate} of the last "
                "rollout",
                rule="version",
            )
        case Verb.CREATE:
            _check_version(record, event, above=record.active)
        case Verb.PIN:
            if record.said is None:
                raise RefusedError(
                    "pin: found no rollout of this task so far; pins travel with its state", rule="phase"
                )
            _check_version(record, event)
            if len(record.pins) >= PINS_MAX and all(pin.device != event.device for pin in record.pins):
                raise RefusedError(f"pin: found {PINS_MAX} pins already, expected fewer", rule="limit")
        case Verb.UNPIN if all(pin.device != event.device for pin in record.pins):
            pinned = ", ".join(pin.device for pin in record.pins) or "nobody is pinned"
            raise RefusedError(f"unpin: found no pin of {event.device}, expected one of: {pinned}", rule="pin")


def _check_version(record: RolloutRecord, event: Requested, *, above: int = -1) -> None:
    known = {release.version for release in record.known} | {record.active, record.baseline}
    usable = sorted(v for v in known if v > max(0, above))
    if event.version not in usable:
        raise RefusedError(
            f"{event.verb.value}: found release {event.version}, expected one of those listed: "
            f"{', '.join(map(str, usable)) or 'none'}",
            rule="version",
        )
