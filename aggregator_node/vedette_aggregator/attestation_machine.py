"""The verifier's conversation with devices: a challenge for who asks, a passport for evidence that holds.

What a device may never go back behind (starts of its node and of its TPM) is on disk before its passport leaves, and so
is the passport: a check-in may be older than its device's newest result. Evidence that is refused withdraws the results
before, on disk, too, unless it is refused for its nonce: anybody can send old evidence again. A new policy asks
everybody anew.
Nonces are in memory: whoever waits when the verifier restarts asks again.

Source: `docs/protocol.md` §4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgpack

from vedette_aggregator.aggregation import Entropy
from vedette_aggregator.enrolments import COUNTERS_PREFIX, PASSPORT_PREFIX, REFUSAL_PREFIX, WITHDRAWN
from vedette_core.attestation.appraisal import Counters, appraise, read_claims
from vedette_core.attestation.nonces import Nonces
from vedette_core.attestation.passport import issue_passport
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish
from vedette_schemas.attestation import (
    ANSWER_TYPE,
    CHALLENGE_TYPE,
    RPC_NAME,
    AttestationAnswer,
    AttestationPolicy,
    Challenge,
    Enrolment,
    Evidence,
)
from vedette_schemas.codec import Message
from vedette_schemas.envelope import Signer, seal
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.topics import Topics

DETAIL_CHARACTERS_MAX: Final = 300
"""As in `AttestationAnswer.detail`."""


@dataclass(frozen=True, slots=True)
class ChallengeAsked(Event):
    """A device asks for a challenge; its certificate and signature hold."""

    device: str


@dataclass(frozen=True, slots=True)
class EvidenceReceived(Event):
    """A device's evidence; its certificate and signature hold.

    Attributes:
        device: whose.
        key: the raw identity key that sealed it.
        body: the evidence.
        enrolment: what is known of the device's attesting keys.
    """

    device: str
    key: bytes = field(repr=False)
    body: Evidence = field(repr=False)
    enrolment: Enrolment | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class PolicyTaken(Event):
    """Another policy is in force."""

    policy: AttestationPolicy


class VerifierMachine:
    """One site's verifier.

    Args:
        topics: the site's topics.
        aggregator: id of the sender of challenges and answers.
        signer: its key.
        verifier: holder of the verifier's own key, which makes passports.
        policy: in force.
        entropy: unpredictable bytes, for nonces.
    """

    def __init__(
        self,
        topics: Topics,
        aggregator: str,
        signer: Signer,
        *,
        verifier: Signer,
        policy: AttestationPolicy,
        entropy: Entropy,
    ) -> None:
        self._topics, self._aggregator, self._signer = topics, aggregator, signer
        self._verifier, self._policy, self._entropy = verifier, policy, entropy
        self._nonces, self._counters, self._withdrawn = Nonces(), dict[str, Counters](), set[str]()

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        topics: Topics,
        aggregator: str,
        signer: Signer,
        *,
        verifier: Signer,
        policy: AttestationPolicy,
        entropy: Entropy,
    ) -> VerifierMachine:
        """Go on from what was persisted: every key below `COUNTERS_PREFIX` and `PASSPORT_PREFIX` with its value.

        Raises:
            ConfigError: the store holds something else.
        """
        machine = cls(topics, aggregator, signer, verifier=verifier, policy=policy, entropy=entropy)
        for key, value in persisted.items():
            if key.startswith(COUNTERS_PREFIX):
                machine._counters[key.removeprefix(COUNTERS_PREFIX)] = read_counters(key, value)
            elif value == WITHDRAWN:
                machine._withdrawn.add(key.removeprefix(PASSPORT_PREFIX))
        return machine

    def next_deadline(self) -> float | None:
        """A verifier waits for messages only."""
        return None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: `ChallengeAsked`, `EvidenceReceived` or `PolicyTaken`.
            now: epoch seconds.
        """
        out: list[Effect] = []
        match event:
            case ChallengeAsked(device):
                self._challenge(device, now, out)
            case EvidenceReceived():
                self._appraise(event, now, out)
            case PolicyTaken(policy):
                self._policy = policy
                for device in sorted(self._counters):
                    self._challenge(device, now, out)
        return out

    def _challenge(self, device: str, now: float, out: list[Effect]) -> None:
        nonce = self._entropy(32)
        self._nonces.give(nonce, device, now)
        body = Challenge(device=device, nonce=nonce, expires_s=now + self._policy.evidence_s)
        out.append(self._say(device, body, CHALLENGE_TYPE))
        out.append(Count("attestations", "challenged"))

    def _appraise(self, event: EvidenceReceived, now: float, out: list[Effect]) -> None:
        device, nonce, fresh = event.device, bytes(32), False
        try:
            nonce = read_claims(event.body.claims, device).eat_nonce
            self._nonces.take(nonce, device, now, self._policy.evidence_s)
            fresh = True
            found = appraise(
                event.body,
                device=device,
                key=event.key,
                nonce=nonce,
                policy=self._policy,
                enrolment=event.enrolment,
                counters=self._counters.get(device, Counters()),
            )
        except RefusedError as fault:
            if fresh and device not in self._withdrawn:
                self._withdrawn.add(device)
                out.append(Persist(PASSPORT_PREFIX + device, WITHDRAWN))
            detail = str(fault)[:DETAIL_CHARACTERS_MAX]
            if fresh:  # what answers no challenge of ours says nothing about the device
                said = {"at_s": now, "rule": fault.rule, "detail": detail}
                out.append(Persist(REFUSAL_PREFIX + device, json.dumps(said).encode()))
            answer = AttestationAnswer(device=device, nonce=nonce, rule=fault.rule, detail=detail)
            out.append(self._say(device, answer, ANSWER_TYPE))
            out.append(Count("attestations", fault.rule))
            out.append(Note("warning", f"attestation of {fault}"))
            return
        if found.counters != self._counters.get(device):
            self._counters[device] = found.counters
            value = msgpack.packb([found.counters.bootcount, found.counters.reset_count])
            out.append(Persist(COUNTERS_PREFIX + device, value))
        passport = issue_passport(
            self._policy, device, event.key, found.tier, found.claims.bootcount, self._verifier, now
        )
        self._withdrawn.discard(device)
        out.append(Persist(PASSPORT_PREFIX + device, passport))
        out.append(self._say(device, AttestationAnswer(device=device, nonce=nonce, passport=passport), ANSWER_TYPE))
        out.append(Count("attestations", "accepted"))
        out.append(Note("info", f"{device}: attested, tier {found.tier}, boot {found.claims.bootcount}"))

    def _say(self, device: str, body: Message, kind: str) -> Publish:
        topic = self._topics.rpc_down(device, RPC_NAME)
        return Publish(topic, seal(body, kind, self._aggregator, self._signer), qos=0)


def read_counters(key: str, value: bytes) -> Counters:
    """Counters as they were persisted.

    Raises:
        ConfigError: something else.
    """
    try:
        bootcount, reset_count = msgpack.unpackb(value)
        return Counters(int(bootcount), int(reset_count))
    except (msgpack.UnpackException, ValueError, TypeError) as fault:
        raise ConfigError(f"{key}: found something else than two counts in the state ({fault}); restore it") from fault
