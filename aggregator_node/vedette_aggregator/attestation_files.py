"""The verifier's side of attestation by files: a look at evidence, and the enrolment of attesting keys."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from vedette_aggregator.attestation_keys import load_public
from vedette_aggregator.attestation_machine import read_counters
from vedette_aggregator.claimed_identity import unseal_claimed
from vedette_aggregator.enrolments import COUNTERS_PREFIX, Drawn, Enrolments, open_enrolments, read_request
from vedette_aggregator.settings import AggregatorSettings, AttestationSection
from vedette_aggregator.state_file import open_state, state_path
from vedette_core.attestation.appraisal import Counters, appraise, read_claims
from vedette_core.attestation.policy import read_policy
from vedette_core.crypto.signing import KeyRing
from vedette_core.runtime.identity import Bundle, key_ring, read_file
from vedette_core.runtime.storage import StateStore
from vedette_schemas import codec
from vedette_schemas.attestation import EVIDENCE_TYPE, AttestationPolicy, Enrolment, EnrolmentRequest, Evidence
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import ConfigError, PeerError


def appraise_file(settings: AggregatorSettings, file: Path, nonce: bytes | None, now: float) -> dict[str, Any]:
    """Appraise evidence from a file, as the verifier would; it changes nothing.

    Args:
        settings: of the aggregator, whose policy, authorities and enrolments count.
        file: the evidence.
        nonce: of the challenge; None takes the one in the claims, so that freshness is not told.
        now: epoch seconds.

    Raises:
        RefusedError: by a rule.
        PeerError: not evidence, or of nobody of the site.
        ConfigError: no policy, or files that cannot be used.
    """
    data = read_file(file)
    device = codec.unpack(Envelope, data).sender
    body, key = unseal_claimed(Evidence, data, EVIDENCE_TYPE, _ring(settings), now)
    policy = policy_of(settings)
    counters, enrolment = _known(settings, device)
    found = appraise(
        body,
        device=device,
        key=key,
        nonce=read_claims(body.claims, device).eat_nonce if nonce is None else nonce,
        policy=policy,
        enrolment=enrolment,
        counters=counters,
    )
    return {
        "verdict": "affirming",
        "device": device,
        "tier": found.tier,
        "bootcount": found.claims.bootcount,
        "policy": policy.version,
        "freshness_checked": nonce is not None,
        "measurements": {m.component: m.digest.hex() for m in found.claims.measurements},
    }


def _known(settings: AggregatorSettings, device: str) -> tuple[Counters, Enrolment | None]:
    """What an aggregator's state says of a device; one that has not run knows nothing, and none is made here."""
    if not state_path(settings).exists():
        return Counters(), None
    with open_state(settings) as database:
        store = StateStore(database)
        stored = store.get(COUNTERS_PREFIX + device)
        counters = Counters() if stored is None else read_counters(COUNTERS_PREFIX + device, stored)
        return counters, Enrolments(store).get(device)


def policy_of(settings: AggregatorSettings) -> AttestationPolicy:
    """The policy that the settings name.

    Raises:
        ConfigError: none, or one that cannot be used.
    """
    return read_policy_file(settings.attestation, settings.site)[0]


def read_policy_file(section: AttestationSection, site: str, *, version_min: int = 0) -> tuple[AttestationPolicy, str]:
    """The policy that a section names, and the hex SHA-256 of its file.

    Args:
        section: the settings.
        site: the site that it must be for.
        version_min: newest version that was in force here.

    Raises:
        ConfigError: none, or one that cannot be used.
        RefusedError: older than `version_min`.
    """
    if section.policy is None or section.policy_key is None:
        raise ConfigError("attestation: found no policy in the settings, expected [attestation] policy and policy_key")
    try:
        data = section.policy.read_bytes()
    except OSError as fault:
        raise ConfigError(f"{section.policy}: cannot be read ({fault.strerror}), expected a policy") from fault
    policy = read_policy(data, load_public(section.policy_key), site, version_min=version_min)
    return policy, hashlib.sha256(data).hexdigest()


def begin_enrolment(settings: AggregatorSettings, file: Path, ek: str, now: float) -> tuple[str, bytes]:
    """Take a request with a TPM's keys.

    Returns:
        The device, and the credential for it.

    Raises:
        VedetteError: as `Enrolments.begin` and `read_request`.
    """
    request = _request(settings, file, now)
    drawn = Drawn(os.urandom(32), ec.generate_private_key(ec.SECP256R1()))
    with open_enrolments(settings) as known:
        return request.device, known.begin(request, ek, drawn, now)


def finish_enrolment(settings: AggregatorSettings, file: Path, device: str, root: str, now: float) -> str:
    """Take an opened secret of a device, or a request with the root of a boot chain.

    Returns:
        The device.

    Raises:
        VedetteError: as `Enrolments.finish`, `Enrolments.admit_boot` and `read_request`.
    """
    with open_enrolments(settings) as known:
        if device:
            known.finish(device, read_file(file))
            return device
        request = _request(settings, file, now)
        known.admit_boot(request, root, now)
        return request.device


def _request(settings: AggregatorSettings, file: Path, now: float) -> EnrolmentRequest:
    try:
        return read_request(read_file(file), _ring(settings), now)
    except PeerError as fault:
        raise PeerError(f"{file}: {fault}", reason=fault.reason) from fault


def _ring(settings: AggregatorSettings) -> KeyRing:
    return key_ring(Bundle(settings.identity.bundle), settings.site)
