"""The two machines of attestation: with each other, and with what they must not believe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from attestation_parts import DEVICE, MEASURED, NOW, OTHER, SITE, a_claims, a_policy, an_evidence, digest, raw, signer

from vedette_aggregator.attestation_machine import (
    ChallengeAsked,
    EvidenceReceived,
    PolicyTaken,
    VerifierMachine,
)
from vedette_aggregator.enrolments import COUNTERS_PREFIX, PASSPORT_PREFIX, REFUSAL_PREFIX, WITHDRAWN
from vedette_core.attestation.keys import RawKeys
from vedette_core.attestation.passport import PassportCheck
from vedette_core.machine import Connected, Count, Effect, Event, Note, Persist, Publish, Tick
from vedette_device.attestation_machine import (
    ANSWER_S,
    FRESH_S,
    MEASURE_PAUSE_S,
    REFUSED_FIRST_S,
    REFUSED_MOST_S,
    Answered,
    AttestationMachine,
    Attested,
    Challenged,
    EvidenceMade,
    MakeEvidence,
    ResultRejected,
)
from vedette_schemas.attestation import (
    ANSWER_TYPE,
    CHALLENGE_TYPE,
    EVIDENCE_TYPE,
    REQUEST_TYPE,
    AttestationAnswer,
    AttestationRequest,
    Challenge,
    Evidence,
    Measurement,
)
from vedette_schemas.envelope import kind_of, seal, unseal
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import Topics

TOPICS = Topics(SITE)
DAY_S = 86_400.0


def a_verifier(persisted: dict[str, bytes] | None = None, **changes: Any) -> VerifierMachine:
    counter = iter(range(10_000))
    return VerifierMachine.restore(
        persisted or {},
        TOPICS,
        "aggregator",
        signer("aggregator"),
        verifier=signer("verifier"),
        policy=a_policy(**changes),
        entropy=lambda size: next(counter).to_bytes(size, "big"),
    )


def a_device() -> AttestationMachine:
    return AttestationMachine(TOPICS, DEVICE, b"certificate", b"issuer", signer(DEVICE))


def published(effects: list[Effect]) -> list[Publish]:
    return [e for e in effects if isinstance(e, Publish)]


def outcomes(effects: list[Effect], metric: str = "attestations") -> list[str]:
    return [e.outcome for e in effects if isinstance(e, Count) and e.metric == metric]


def from_aggregator(publication: Publish) -> Event:
    keys = RawKeys({"aggregator": (raw("aggregator"),)})
    assert publication.topic == TOPICS.rpc_down(DEVICE, "attest")
    assert (publication.qos, publication.retain) == (0, False)
    if kind_of(publication.payload) == CHALLENGE_TYPE:
        return Challenged(unseal(Challenge, publication.payload, CHALLENGE_TYPE, keys)[0])
    return Answered(unseal(AttestationAnswer, publication.payload, ANSWER_TYPE, keys)[0])


@dataclass
class Together:
    """A device and a verifier with nothing but their messages between them."""

    device: AttestationMachine = field(default_factory=a_device)
    verifier: VerifierMachine = field(default_factory=a_verifier)
    measured: tuple[Measurement, ...] = MEASURED
    bootcount: int = 9
    told: int = 0
    store: dict[str, bytes | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def push(self, event: Event, now: float = NOW) -> None:
        """Give the device an event, and carry everything that follows."""
        for effect in self.device.handle(event, now):
            match effect:
                case Publish(payload=payload):
                    for publication in published(self.up(payload, now)):
                        self.push(from_aggregator(publication), now)
                case MakeEvidence(nonce):
                    claims = a_claims(eat_nonce=nonce, measurements=self.measured, bootcount=self.bootcount)
                    body = an_evidence(claims=claims)
                    self.push(EvidenceMade(nonce, seal(body, EVIDENCE_TYPE, DEVICE, signer(DEVICE))), now)
                case Attested():
                    self.told += 1
                case Note(text=text):
                    self.notes.append(text)

    def up(self, payload: bytes, now: float) -> list[Effect]:
        keys = RawKeys({DEVICE: (raw(DEVICE),)})
        if kind_of(payload) == REQUEST_TYPE:
            assert unseal(AttestationRequest, payload, REQUEST_TYPE, keys)[0].device == DEVICE
            return self.verifier.handle(ChallengeAsked(DEVICE), now)
        body, _ = unseal(Evidence, payload, EVIDENCE_TYPE, keys)
        effects = self.verifier.handle(EvidenceReceived(DEVICE, raw(DEVICE), body, None), now)
        persisted = [i for i, e in enumerate(effects) if isinstance(e, Persist)]
        sent = [i for i, e in enumerate(effects) if isinstance(e, Publish)]
        assert all(i < sent[0] for i in persisted), "on disk before the passport leaves"
        self.store |= {e.key: e.value for e in effects if isinstance(e, Persist)}
        return effects


def test_a_device_that_connects_is_attested() -> None:
    both = Together()
    both.push(Connected())
    sealed = both.device.passport(NOW)
    assert PassportCheck(a_policy()).check(sealed, DEVICE, raw(DEVICE), "contribute", NOW).bootcount == 9
    assert both.told == 1
    assert both.store == {COUNTERS_PREFIX + DEVICE: b"\x92\x09\x00", PASSPORT_PREFIX + DEVICE: sealed}
    assert both.device.passport(NOW + DAY_S) == b"", "a day later it has none"


def test_it_asks_again_at_half_life_and_not_before() -> None:
    both = Together()
    both.push(Connected())
    first = both.device.passport(NOW)
    deadline = both.device.next_deadline()
    assert deadline == NOW + DAY_S / 2
    both.push(Tick(), deadline - 1)
    assert both.device.passport(NOW) == first
    assert both.told == 1
    both.push(Tick(), deadline)
    assert both.told == 2
    assert both.device.passport(deadline) != first


def test_a_reconnect_asks_only_for_what_has_grown_old() -> None:
    both = Together()
    both.push(Connected())
    both.push(Connected(), NOW + FRESH_S - 1)
    assert both.told == 1
    both.push(Connected(), NOW + FRESH_S)
    assert both.told == 2, "it may have slept through a new policy"


def test_a_new_policy_asks_everybody_whom_the_verifier_knows() -> None:
    both = Together()
    both.push(Connected())
    (publication,) = published(both.verifier.handle(PolicyTaken(a_policy(version=4)), NOW + 60))
    both.push(from_aggregator(publication), NOW + 60)
    assert both.told == 2
    PassportCheck(a_policy(version=4)).check(
        both.device.passport(NOW + 61), DEVICE, raw(DEVICE), "contribute", NOW + 61
    )


def test_nobody_makes_a_device_measure_all_the_time() -> None:
    both = Together()
    both.push(Connected())
    again = Challenged(Challenge(device=DEVICE, nonce=digest("again"), expires_s=NOW))
    assert outcomes(both.device.handle(again, NOW + MEASURE_PAUSE_S - 1), "machine_events") == ["discard"]
    assert both.device.next_deadline() == NOW + MEASURE_PAUSE_S, "it asks by itself when it may"
    assert any(isinstance(e, MakeEvidence) for e in both.device.handle(again, NOW + MEASURE_PAUSE_S))


def test_a_challenge_while_it_measures_is_made_up_for() -> None:
    """The answer on its way may be under the policy before."""
    both = Together()
    both.device.handle(Connected(), NOW)
    (asked,) = published(both.verifier.handle(ChallengeAsked(DEVICE), NOW))
    first = from_aggregator(asked)
    assert isinstance(first, Challenged)
    both.device.handle(first, NOW)
    assert published(both.verifier.handle(PolicyTaken(a_policy(version=4)), NOW)) == [], "it is not known yet"
    later = Challenged(Challenge(device=DEVICE, nonce=digest("later"), expires_s=NOW))
    assert outcomes(both.device.handle(later, NOW), "machine_events") == ["discard"]
    claims = a_claims(eat_nonce=first.body.nonce)
    event = EvidenceReceived(DEVICE, raw(DEVICE), an_evidence(claims=claims), None)
    (answer,) = published(both.verifier.handle(event, NOW))
    both.device.handle(EvidenceMade(first.body.nonce, b"evidence"), NOW)
    both.device.handle(from_aggregator(answer), NOW)
    assert both.device.passport(NOW)
    assert both.device.next_deadline() == NOW + MEASURE_PAUSE_S
    both.push(Tick(), NOW + MEASURE_PAUSE_S)
    assert both.told == 1
    assert both.device.next_deadline() == NOW + MEASURE_PAUSE_S + DAY_S / 2, "and then it is quiet"


def test_a_newer_certificate_of_the_same_key_changes_nothing_but_what_is_shown() -> None:
    both = Together()
    both.push(Connected())
    first = both.device.passport(NOW)
    both.device.take_certificate(b"newer", b"issuer")
    assert both.device.passport(NOW) == first
    (asked,) = published(both.device.handle(Tick(), NOW + DAY_S / 2))
    assert (
        unseal(AttestationRequest, asked.payload, REQUEST_TYPE, RawKeys({DEVICE: (raw(DEVICE),)}))[0].certificate
        == b"newer"
    )


def test_a_device_that_nobody_answers_says_so_now_and_then() -> None:
    device, said = a_device(), []
    device.handle(Connected(), NOW)
    for i in range(1, 15):
        effects = device.handle(Tick(), NOW + i * ANSWER_S)
        said += [e.text for e in effects if isinstance(e, Note)]
    assert len(said) == 2
    assert "nobody answers" in said[0]


def test_altered_software_is_refused_and_asks_ever_more_rarely() -> None:
    altered = (*MEASURED[:-1], MEASURED[-1].model_copy(update={"digest": digest("altered")}))
    both = Together(measured=altered)
    both.push(Connected())
    assert both.device.passport(NOW) == b""
    assert "unknown-software" in both.notes[0]
    waits, now = [], NOW
    for _ in range(9):
        deadline = both.device.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        both.push(Tick(), now)
    assert waits[:3] == [REFUSED_FIRST_S, 2 * REFUSED_FIRST_S, 4 * REFUSED_FIRST_S]
    assert waits[-1] == REFUSED_MOST_S
    both.push(ResultRejected(), now + 1)
    assert len(both.notes) == 10, "rejected check-ins do not make it ask sooner"
    both.measured = MEASURED
    both.push(Tick(), both.device.next_deadline() or 0.0)
    assert both.told == 1, "the good software is back"


def test_a_passport_that_was_rejected_is_dropped_and_asked_for_again() -> None:
    both = Together()
    both.push(Connected())
    both.verifier.handle(PolicyTaken(a_policy(version=4)), NOW)
    both.push(ResultRejected(), NOW + 1)
    assert both.told == 2
    PassportCheck(a_policy(version=4)).check(both.device.passport(NOW + 1), DEVICE, raw(DEVICE), "contribute", NOW + 1)


def test_a_lost_message_is_asked_for_again() -> None:
    device = a_device()
    assert len(published(device.handle(Connected(), NOW))) == 1
    assert published(device.handle(Tick(), NOW + ANSWER_S - 1)) == []
    assert len(published(device.handle(Tick(), NOW + ANSWER_S))) == 1


def test_a_clock_that_is_set_back_does_not_silence_a_device() -> None:
    both = Together()
    both.push(Connected())
    both.push(Tick(), NOW - 10 * DAY_S)
    assert both.told == 1, "the passport still holds by this clock"
    device = a_device()
    device.handle(Connected(), NOW)
    assert len(published(device.handle(Tick(), NOW - 10 * DAY_S))) == 1


def test_what_nobody_asked_for_is_let_fall() -> None:
    device, nonce = a_device(), digest("n")
    challenge = Challenged(Challenge(device=DEVICE, nonce=nonce, expires_s=NOW))
    device.handle(Connected(), NOW)
    assert any(isinstance(e, MakeEvidence) for e in device.handle(challenge, NOW))
    assert outcomes(device.handle(challenge, NOW), "machine_events") == ["discard"], "one at a time"
    assert outcomes(device.handle(EvidenceMade(digest("other"), b"x"), NOW), "machine_events") == ["discard"]
    other = Answered(AttestationAnswer(device=DEVICE, nonce=digest("other"), rule="stale"))
    assert outcomes(device.handle(other, NOW), "machine_events") == ["discard"]


def test_evidence_that_cannot_be_made_is_said_and_tried_again() -> None:
    device, nonce = a_device(), digest("n")
    device.handle(Connected(), NOW)
    device.handle(Challenged(Challenge(device=DEVICE, nonce=nonce, expires_s=NOW)), NOW)
    effects = device.handle(EvidenceMade(nonce, b"", "no TPM"), NOW)
    assert published(effects) == []
    assert any(isinstance(e, Note) and "no TPM" in e.text for e in effects)
    assert device.next_deadline() == NOW + REFUSED_FIRST_S


def test_evidence_that_was_only_late_is_made_anew_soon_and_the_passport_stays() -> None:
    both = Together()
    both.push(Connected())
    first = both.device.passport(NOW)
    at = NOW + DAY_S / 2
    for rule in ("stale", "nonce-unknown", "nonce-reused", "nonce-device"):
        both.device.handle(Tick(), at)
        challenge = Challenged(Challenge(device=DEVICE, nonce=digest(rule), expires_s=at))
        both.device.handle(challenge, at)
        both.device.handle(EvidenceMade(digest(rule), b"evidence"), at)
        answer = Answered(AttestationAnswer(device=DEVICE, nonce=digest(rule), rule=rule, detail="too late"))
        assert outcomes(both.device.handle(answer, at), "machine_events") == ["reject"]
        assert both.device.passport(at) == first
        at = both.device.next_deadline() or 0.0
    assert at == NOW + DAY_S / 2 + 4 * MEASURE_PAUSE_S, "no back-off"


def test_a_node_that_is_refused_gives_its_passport_up() -> None:
    both = Together()
    both.push(Connected())
    both.measured = (*MEASURED[:-1], MEASURED[-1].model_copy(update={"digest": digest("altered")}))
    both.push(Tick(), NOW + DAY_S / 2)
    assert both.device.passport(NOW + DAY_S / 2) == b""


def test_an_answer_whose_passport_cannot_be_read_is_a_refusal() -> None:
    device, nonce = a_device(), digest("n")
    device.handle(Connected(), NOW)
    device.handle(Challenged(Challenge(device=DEVICE, nonce=nonce, expires_s=NOW)), NOW)
    device.handle(EvidenceMade(nonce, b"evidence"), NOW)
    answer = AttestationAnswer(device=DEVICE, nonce=nonce, passport=b"\xc1")
    assert outcomes(device.handle(Answered(answer), NOW), "machine_events") == ["reject"]
    assert device.passport(NOW) == b""


# --- the verifier ---


def evidence_for(machine: VerifierMachine, device: str = DEVICE, **claims: Any) -> EvidenceReceived:
    (publication,) = published(machine.handle(ChallengeAsked(device), NOW))
    event = unseal(Challenge, publication.payload, CHALLENGE_TYPE, RawKeys({"aggregator": (raw("aggregator"),)}))[0]
    body = an_evidence(claims=a_claims(eat_nonce=event.nonce, ueid=device, cnf=raw(device), **claims))
    return EvidenceReceived(device, raw(device), body, None)


def test_counts_survive_a_restart() -> None:
    machine = a_verifier()
    effects = machine.handle(evidence_for(machine), NOW)
    persisted = {key: value for key, value in written(effects) if value is not None}
    again = a_verifier(persisted)
    assert outcomes(again.handle(evidence_for(again, bootcount=8), NOW)) == ["boot-count"]
    assert outcomes(again.handle(evidence_for(again, bootcount=9), NOW)) == ["accepted"]
    assert outcomes(again.handle(evidence_for(again, OTHER, bootcount=1), NOW)) == ["accepted"]


def written(effects: list[Effect]) -> list[tuple[str, bytes | None]]:
    return [(e.key, e.value) for e in effects if isinstance(e, Persist)]


def test_refused_evidence_withdraws_the_result_before_once() -> None:
    machine, altered = a_verifier(), (*MEASURED[:-1], MEASURED[-1].model_copy(update={"digest": digest("altered")}))
    machine.handle(evidence_for(machine), NOW)
    effects = machine.handle(evidence_for(machine, measurements=altered), NOW)
    assert dict(written(effects))[PASSPORT_PREFIX + DEVICE] == WITHDRAWN
    said = json.loads(dict(written(effects))[REFUSAL_PREFIX + DEVICE] or b"")
    assert (said["at_s"], said["rule"]) == (NOW, "unknown-software"), "for people, with the newest one's words"
    only = [REFUSAL_PREFIX + DEVICE]
    keys = [key for key, _ in written(machine.handle(evidence_for(machine, measurements=altered), NOW))]
    assert keys == only, "the withdrawal is written already"
    restarted = a_verifier({PASSPORT_PREFIX + DEVICE: WITHDRAWN})
    effects = restarted.handle(evidence_for(restarted, measurements=altered), NOW)
    assert [key for key, _ in written(effects)] == only
    again = a_verifier({PASSPORT_PREFIX + DEVICE: WITHDRAWN})
    assert [key for key, _ in written(again.handle(evidence_for(again), NOW))] == [
        COUNTERS_PREFIX + DEVICE,
        PASSPORT_PREFIX + DEVICE,
    ]
    effects = again.handle(evidence_for(again, measurements=altered), NOW)
    assert written(effects)[0] == (PASSPORT_PREFIX + DEVICE, WITHDRAWN)


def test_old_evidence_that_somebody_sends_again_withdraws_nothing() -> None:
    machine = a_verifier()
    event = evidence_for(machine)
    machine.handle(event, NOW)
    effects = machine.handle(event, NOW)
    assert (outcomes(effects), written(effects)) == (["nonce-reused"], [])


def test_a_restarted_verifier_takes_no_older_challenge() -> None:
    event = evidence_for(a_verifier())
    assert outcomes(a_verifier().handle(event, NOW)) == ["nonce-unknown"]


def test_evidence_that_cannot_be_read_is_answered_with_its_rule() -> None:
    broken = an_evidence().model_copy(update={"claims": b"\xc1"})
    effects = a_verifier().handle(EvidenceReceived(DEVICE, raw(DEVICE), broken, None), NOW)
    assert outcomes(effects) == ["malformed"]
    (publication,) = published(effects)
    answered = from_aggregator(publication)
    assert isinstance(answered, Answered)
    assert (answered.body.rule, answered.body.passport) == ("malformed", b"")
    assert not [e for e in effects if isinstance(e, Persist)]


def test_a_long_refusal_fits_its_answer() -> None:
    machine = a_verifier()
    long = tuple(Measurement(component=f"dependency/{'x' * 60}{i:03}", digest=digest(str(i))) for i in range(200))
    event = evidence_for(machine, measurements=tuple(sorted((*MEASURED, *long), key=lambda m: m.component)))
    assert outcomes(machine.handle(event, NOW)) == ["unknown-software"]


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x91\x01", b"\x92\xa1x\x01", b"\x93\x01\x02\x03", b"\x92\x01"])
def test_a_store_that_holds_something_else_is_the_operators_to_mend(value: bytes) -> None:
    with pytest.raises(ConfigError, match="restore"):
        a_verifier({COUNTERS_PREFIX + DEVICE: value})


def test_a_passport_lives_as_long_as_the_policy_says() -> None:
    both = Together(verifier=a_verifier(result_s=60.0))
    both.push(Connected())
    assert both.device.passport(NOW + 59.0)
    assert not both.device.passport(NOW + 60.0)
