"""A node's way to an attestation result: ask, measure when challenged, keep the passport, and ask again in time.

Nothing is persisted: a passport is about this start of this software, and the next start asks anew.

Source: `docs/protocol.md` §4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vedette_core.machine import Connected, Count, Effect, Event, Note, Publish, Tick
from vedette_schemas import codec
from vedette_schemas.attestation import (
    REQUEST_TYPE,
    RPC_NAME,
    AttestationAnswer,
    AttestationRequest,
    Challenge,
    Passport,
)
from vedette_schemas.envelope import Envelope, Signer, seal
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Topics

ANSWER_S: Final = 20.0
"""How long a challenge or an answer is waited for: measuring takes a second, a TPM a few."""
MEASURE_PAUSE_S: Final = 10.0
"""A challenge that nobody asked for is answered no sooner than this after the last one: measuring costs a second."""
FRESHNESS: Final = frozenset({"nonce-unknown", "nonce-reused", "nonce-device", "stale"})
"""Rules that say nothing about this node: another challenge came in between, or the network was slow."""
FRESH_S: Final = 3600.0
"""A node that connects with an older result asks again: it may have slept through a new policy."""
REFUSED_FIRST_S: Final = 60.0
REFUSED_MOST_S: Final = 3600.0
"""After a refusal the node asks again, ever more rarely: a policy may learn of its software."""


@dataclass(frozen=True, slots=True)
class Challenged(Event):
    """The verifier asks; its signature held."""

    body: Challenge


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """What became of the evidence; its signature held."""

    body: AttestationAnswer


@dataclass(frozen=True, slots=True)
class EvidenceMade(Event):
    """The shell's answer to `MakeEvidence`.

    Attributes:
        nonce: that it is for.
        sealed: the evidence; empty if it could not be made.
        fault: why not.
    """

    nonce: bytes
    sealed: bytes = field(repr=False)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class ResultRejected(Event):
    """A check-in was rejected for the passport in it."""


@dataclass(frozen=True, slots=True)
class MakeEvidence(Effect):
    """Measure, and answer with `EvidenceMade`."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Attested(Effect):
    """There is a passport now: whoever waited for one may check in."""


KINDS: Final[dict[type[Event], str]] = {
    Connected: "connected",
    Tick: "tick",
    Challenged: "challenged",
    Answered: "answered",
    EvidenceMade: "evidence-made",
    ResultRejected: "result-rejected",
}


class AttestationMachine:
    """One node's attestation.

    Args:
        topics: the site's topics.
        device: own id.
        certificate: DER of the signing certificate.
        intermediate: DER of the certificate that issued it.
        signer: holder of the signing key.
    """

    def __init__(self, topics: Topics, device: str, certificate: bytes, intermediate: bytes, signer: Signer) -> None:
        self._topic, self._device, self._signer = topics.rpc_up(device, RPC_NAME), device, signer
        self._request = AttestationRequest(device=device, certificate=certificate, intermediate=intermediate)
        self._passport, self._until = b"", 0.0
        self._measuring: bytes | None = None
        self._asked = self._again = False
        self._measured_at = self._since = float("-inf")
        self._next_at: float | None = None
        self._refusals = self._unanswered = 0

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, epoch seconds."""
        return self._next_at

    def passport(self, now: float) -> bytes:
        """The result that holds now, sealed by the verifier; empty if there is none."""
        return self._passport if now < self._until else b""

    def take_certificate(self, certificate: bytes, intermediate: bytes) -> None:
        """Show a newer certificate, of the same signing key, from now on."""
        self._request = AttestationRequest(device=self._device, certificate=certificate, intermediate=intermediate)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of `KINDS`.
            now: epoch seconds.
        """
        out: list[Effect] = []
        outcome = "accept"
        match event:
            case Connected():
                if not self._refusals and not (self.passport(now) and 0 <= now - self._since < FRESH_S):
                    self._ask(now, out)
            case Tick():
                self._on_tick(now, out)
            case ResultRejected():
                self._passport, self._until = b"", 0.0
                # After a refusal the node's own pace counts, whatever becomes of its check-ins.
                if not self._asked and not self._refusals:
                    self._ask(now, out)
            case Challenged(body):
                outcome = self._on_challenge(body, now, out)
            case EvidenceMade():
                outcome = self._on_made(event, now, out)
            case Answered(body):
                outcome = self._on_answer(body, now, out)
        out.append(Count("machine_events", outcome, "", KINDS[type(event)]))
        return out

    def _on_tick(self, now: float, out: list[Effect]) -> None:
        if self._next_at is None:
            return
        if now >= self._next_at or self._next_at > now + max(REFUSED_MOST_S, self._until - now):
            self._unanswered += self._asked
            if self._unanswered in (1, 10, 100):
                missing = "nobody answers; expected an aggregator with an attestation policy"
                out.append(
                    Note("warning", f"attestation: {missing}; without a result this node takes part in no round")
                )
            self._ask(now, out)

    def _ask(self, now: float, out: list[Effect]) -> None:
        self._asked, self._again, self._measuring, self._next_at = True, False, None, now + ANSWER_S
        sealed = seal(self._request, REQUEST_TYPE, self._device, self._signer)
        out.append(Publish(self._topic, sealed))

    def _on_challenge(self, body: Challenge, now: float, out: list[Effect]) -> str:
        if self._measuring is not None or (not self._asked and 0 <= now - self._measured_at < MEASURE_PAUSE_S):
            # Whoever asks again has a reason, such as a new policy: this node asks by itself when it may.
            self._again = True
            if not self._asked:
                self._next_at = min(self._next_at or now, self._measured_at + MEASURE_PAUSE_S)
            return "discard"
        self._asked, self._measuring, self._unanswered = True, body.nonce, 0
        self._measured_at, self._next_at = now, now + ANSWER_S
        out.append(MakeEvidence(body.nonce))
        return "accept"

    def _on_made(self, event: EvidenceMade, now: float, out: list[Effect]) -> str:
        if event.nonce != self._measuring:
            return "discard"
        if not event.sealed:
            self._refused(f"no evidence could be made: {event.fault}", now, out)
            return "reject"
        self._next_at = now + ANSWER_S
        out.append(Publish(self._topic, event.sealed))
        return "accept"

    def _on_answer(self, body: AttestationAnswer, now: float, out: list[Effect]) -> str:
        if body.nonce != self._measuring:
            return "discard"
        if body.rule in FRESHNESS:
            self._asked, self._measuring, self._next_at = False, None, now + MEASURE_PAUSE_S
            out.append(Note("info", f"attestation: {body.detail}; trying again"))
            return "reject"
        if not body.passport:
            self._passport, self._until = b"", 0.0  # the verifier withdrew it, too
            self._refused(f"the verifier refused this node: {body.rule}: {body.detail}", now, out)
            return "reject"
        try:
            # The verifier's signature is for those who are shown it; what came with it the aggregator sealed.
            passport = codec.unpack(Passport, codec.unpack(Envelope, body.passport).body)
        except PeerError as fault:
            self._refused(str(fault), now, out)
            return "reject"
        self._passport, self._until, self._since = body.passport, now + (passport.exp - passport.iat), now
        self._asked, self._measuring, self._refusals = False, None, 0
        self._next_at = now + (MEASURE_PAUSE_S if self._again else (passport.exp - passport.iat) / 2)
        out.append(Note("info", f"attested: tier {passport.tier} under policy {passport.policy}"))
        out.append(Attested())
        return "accept"

    def _refused(self, why: str, now: float, out: list[Effect]) -> None:
        self._asked, self._measuring = False, None
        self._next_at = now + min(REFUSED_FIRST_S * 2**self._refusals, REFUSED_MOST_S)
        self._refusals = min(self._refusals + 1, 16)
        out.append(Note("error", f"{why}; this node takes part in no round, and goes on detecting"))
