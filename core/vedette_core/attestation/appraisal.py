"""Appraises a device's evidence under a policy: who it is, whether it is fresh, and what runs there.

Source: RFC 9334 §3 (evidence, appraisal policy, reference values), §10 (freshness).
"""

from __future__ import annotations

from dataclasses import dataclass

from vedette_core.attestation import policy as policies
from vedette_core.attestation.boot_chain import check_chain, check_signed
from vedette_core.attestation.rules import refusal
from vedette_core.attestation.tpm_public import read_attestation_key
from vedette_core.attestation.tpm_quote import Quote, check_quote_signature, check_registers, read_quote
from vedette_schemas import codec
from vedette_schemas.attestation import AttestationPolicy, Claims, Enrolment, Evidence, binding
from vedette_schemas.errors import PeerError


@dataclass(frozen=True, slots=True)
class Counters:
    """What of a device only goes up.

    Attributes:
        bootcount: highest `Claims.bootcount` so far.
        reset_count: highest count of its TPM's starts so far; 0 without one.
    """

    bootcount: int = 0
    reset_count: int = 0


@dataclass(frozen=True, slots=True)
class Appraised:
    """Evidence that held.

    Attributes:
        tier: what it was.
        claims: what it said.
        counters: for the next time.
    """

    tier: int
    claims: Claims
    counters: Counters


def read_claims(data: bytes, whose: str) -> Claims:
    """The claims of evidence.

    Raises:
        RefusedError: they cannot be read (``malformed``).
    """
    try:
        return codec.unpack(Claims, data)
    except PeerError as fault:
        raise refusal("malformed", whose, f"claims that cannot be read ({fault})", "the profile's") from fault


def appraise(
    evidence: Evidence,
    *,
    device: str,
    key: bytes,
    nonce: bytes,
    policy: AttestationPolicy,
    enrolment: Enrolment | None,
    counters: Counters,
) -> Appraised:
    """Appraise evidence whose envelope the device's identity key sealed.

    Whether the nonce is one that was given out, and in time, is told before (`vedette_core.attestation.nonces`).

    Args:
        evidence: what came.
        device: who sealed it.
        key: the raw identity key that it was sealed with.
        nonce: of the challenge.
        policy: the one in force.
        enrolment: what is known of the device's attesting keys.
        counters: the highest that it had.

    Raises:
        RefusedError: one of `vedette_core.attestation.rules.EVIDENCE_RULES`.
    """
    claims = read_claims(evidence.claims, device)
    if claims.ueid != device:
        raise refusal("device", device, f"claims of {claims.ueid}", "its own")
    if claims.cnf != key:
        raise refusal("identity", device, "claims about another identity key", "the one that sealed them")
    if claims.eat_nonce != nonce:
        raise refusal("nonce-unknown", device, "claims with another nonce", "that of the challenge")
    _check_shape(evidence, device)
    reset_count = _check_proof(evidence, device, policy, enrolment)
    if claims.dbgstat < policy.dbgstat_min:
        raise refusal("debug", device, f"debug state {claims.dbgstat}", f"{policy.dbgstat_min} or higher")
    if claims.bootcount < counters.bootcount:
        raise refusal("boot-count", device, f"boot {claims.bootcount}", f"{counters.bootcount} or higher")
    if reset_count < counters.reset_count and evidence.tier == 2:
        raise refusal("boot-count", device, f"TPM start {reset_count}", f"{counters.reset_count} or higher")
    policies.check_software(policy, claims.measurements, device)
    return Appraised(evidence.tier, claims, Counters(claims.bootcount, max(reset_count, counters.reset_count)))


def _check_shape(evidence: Evidence, device: str) -> None:
    found = (
        bool(evidence.chain),
        bool(evidence.boot_signature),
        bool(evidence.quote),
        bool(evidence.quote_signature),
        bool(evidence.pcrs),
    )
    boot, tpm = evidence.tier == 1, evidence.tier == 2
    if found != (boot, boot, tpm, tpm, tpm):
        raise refusal("proof", device, f"parts that are not those of tier {evidence.tier}", "them and no others")


def _check_proof(evidence: Evidence, device: str, policy: AttestationPolicy, enrolment: Enrolment | None) -> int:
    """Check what stands behind the claims; returns the TPM's count of starts, 0 without one."""
    if evidence.tier == 0:
        return 0
    if enrolment is None or enrolment.tier != evidence.tier:
        known = "none" if enrolment is None else f"keys of tier {enrolment.tier}"
        raise refusal("not-enrolled", device, known, f"keys of tier {evidence.tier}; `vedette attest enrol`")
    if not enrolment.activated:
        raise refusal("not-activated", device, "an attestation key that no TPM has shown to be its own", "one that has")
    bound = binding(device, evidence.claims)
    if evidence.tier == 1:
        last = check_chain(enrolment.boot_root, evidence.chain, device)
        check_signed(last, evidence.boot_signature, bound, "binding", device)
        policies.check_layers(policy, evidence.chain, device)
        return 0
    return _check_quote(evidence, device, policy, enrolment, bound).reset_count


def _check_quote(
    evidence: Evidence, device: str, policy: AttestationPolicy, enrolment: Enrolment, bound: bytes
) -> Quote:
    quote = read_quote(evidence.quote, device)
    key = read_attestation_key(enrolment.ak_public, device)
    check_quote_signature(key.key, evidence.quote_signature, evidence.quote, device)
    if quote.extra != bound:
        raise refusal("binding", device, "a quote about other claims", "these")
    if policy.clock_safe and not quote.clock_safe:
        raise refusal("clock", device, "a TPM whose clock may have gone back", "a safe one")
    check_registers(quote, evidence.pcrs, device)
    policies.check_registers(policy, evidence.pcrs, device)
    return quote
