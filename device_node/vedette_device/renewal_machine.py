"""A node's way to newer certificates: ask at half of their life, believe what holds, ask again until it is there.

Pure. Keys and requests are made by the shell, which has them on disk before `RequestMade`: what is published was
persisted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from vedette_core.machine import Count, Effect, Event, Note, Publish, Tick
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.topics import Topics

RENEW_AT: Final = 0.5
"""Part of a certificate's life after which the next one is asked for: half a week is left for what is in the way."""
SPREAD: Final = 0.1
"""Part of the life over which a fleet spreads its requests: certificates that were issued together end together."""
RETRY_MIN_S: Final = 30.0
RETRY_MAX_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RequestMade(Event):
    """The shell has keys and a request on disk.

    Attributes:
        id: of the request.
        sealed: as it is published.
    """

    id: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The authority answered; nothing of it is believed yet."""

    body: CertificateReply


@dataclass(frozen=True, slots=True)
class Renewed(Event):
    """Other certificates are in force: those that were asked for, or a bundle that somebody replaced.

    Attributes:
        not_before: epoch seconds.
        not_after: epoch seconds.
    """

    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class RenewalFailed(Event):
    """The request could not be made, or the answer did not hold.

    Attributes:
        reason: what was found.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class MakeRequest(Effect):
    """Make keys and a request, or find those of an earlier attempt; answered with `RequestMade` or `RenewalFailed`."""


@dataclass(frozen=True, slots=True)
class Install(Effect):
    """Check an answer and put it into the bundle's place; answered with `Renewed` or `RenewalFailed`."""

    body: CertificateReply


class RenewalMachine:
    """One node's certificates.

    Args:
        topics: the site's topics.
        node: own id.
        not_before: epoch seconds at which the certificate in force begins.
        not_after: epoch seconds at which it ends.
    """

    def __init__(self, topics: Topics, node: str, not_before: float, not_after: float) -> None:
        self._topics, self._node = topics, node
        self._asked: str | None = None
        self._installing: str | None = None
        self._share = RENEW_AT + SPREAD * (hashlib.sha256(node.encode()).digest()[0] / 255 - 0.5)
        self._begin(not_before, not_after)

    def next_deadline(self) -> float | None:
        """When to ask, or to ask again; epoch seconds."""
        return self._next

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: `Tick` or one of this module's.
            now: epoch seconds.
        """
        match event:
            case Tick():
                return self._on_tick(now)
            case RequestMade(request, sealed):
                self._asked = request
                return [Publish(self._topics.renewal_request(self._node), sealed), Count("renewals", "asked")]
            case Answered(body):
                return self._on_answer(body, now)
            case Renewed(not_before, not_after):
                self._begin(not_before, not_after)
                return [Count("renewals", "renewed")]
            case RenewalFailed(reason):
                # Answers are not signed: after a false one, the authority's own must still be taken.
                self._asked, self._installing = self._asked or self._installing, None
                return [Count("renewals", "failed"), Note("warning", f"{self._node}: renewal: {reason}")]
        raise AssertionError(f"nobody handles {event!r}")

    def _begin(self, not_before: float, not_after: float) -> None:
        self._not_after = not_after
        self._next = not_before + self._share * (not_after - not_before)
        self._delay = RETRY_MIN_S
        self._asked = self._installing = None

    def _on_tick(self, now: float) -> list[Effect]:
        if now < self._next:
            return []
        if now > self._not_after:
            self._next = now + RETRY_MAX_S
            text = (
                f"{self._node}: found its certificate ended; it must enrol again, with a new token (`vedette ca token`)"
            )
            return [Count("renewals", "expired"), Note("error", text)]
        self._next = now + self._delay
        self._delay = min(2 * self._delay, RETRY_MAX_S)
        return [MakeRequest()]

    def _on_answer(self, body: CertificateReply, now: float) -> list[Effect]:
        if body.request != self._asked:
            return [Count("renewals", "discarded")]
        if body.outcome == "issued":
            self._asked, self._installing = None, self._asked
            return [Install(body)]
        if body.outcome == "refused":
            # Not signed: whoever holds the broker can say so. The next attempt comes all the same.
            self._next = now + RETRY_MAX_S
            return [Count("renewals", "refused"), Note("error", f"{self._node}: renewal refused: {body.reason}")]
        return [Count("renewals", "deferred")]
