"""What `fuzz.py` is aimed at in attestation: structures of a TPM, evidence as it comes, passports and policies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette_core.attestation.appraisal import Counters, appraise
from vedette_core.attestation.passport import PassportCheck, issue_passport
from vedette_core.attestation.policy import read_policy
from vedette_core.attestation.tpm_public import read_attestation_key, read_public
from vedette_core.attestation.tpm_quote import check_quote_signature, check_registers, read_quote
from vedette_core.crypto.signing import Ed25519Signer
from vedette_schemas import codec
from vedette_schemas.attestation import (
    POLICY_ID,
    POLICY_TYPE,
    AttestationPolicy,
    Claims,
    Enrolment,
    Evidence,
    Measurement,
    Reference,
    binding,
)
from vedette_schemas.envelope import seal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

if TYPE_CHECKING or __package__:
    from bench.fuzz_wire import Target
    from bench.soft_tpm import KEY, REGISTERS, attestation_key, quote, signature
else:
    from fuzz_wire import Target
    from soft_tpm import KEY, REGISTERS, attestation_key, quote, signature

DEVICE: Final = "gw-01"
NOW_S: Final = 1_770_000_000.0
NONCE: Final = bytes(range(32))


def signer(name: str) -> Ed25519Signer:
    """A test key, from its name."""
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def raw(name: str) -> bytes:
    """Its public part."""
    return signer(name).public_key.public_bytes_raw()


MEASURED: Final = tuple(
    Measurement(component=f"dependency/d{i:02}", version=f"1.{i}", digest=hashlib.sha256(b"%d" % i).digest())
    for i in range(32)
)
"""As many as a gateway has."""


def policy() -> AttestationPolicy:
    """Wants exactly what `evidence` has."""
    software = (Reference(component=m.component, digests=(m.digest,)) for m in MEASURED)
    registers = (Reference(component=f"pcr/{p.index}", digests=(p.value,)) for p in REGISTERS)
    return AttestationPolicy(
        site="plant-1", version=1, verifiers=(raw("verifier"),), references=(*software, *registers)
    )


def evidence(device: str = DEVICE, nonce: bytes = NONCE, certificate: bytes = b"c") -> Evidence:
    """Sound evidence of tier 2."""
    claims = codec.pack(
        Claims(
            eat_nonce=nonce,
            ueid=device,
            cnf=raw(device),
            swname="vedette",
            swversion="0.1.0",
            dbgstat=1,
            bootcount=1,
            measurements=MEASURED,
        )
    )
    attested = quote(binding(device, claims))
    return Evidence(
        tier=2,
        claims=claims,
        certificate=certificate,
        intermediate=b"i",
        quote=attested,
        quote_signature=signature(attested),
        pcrs=REGISTERS,
    )


def enrolment() -> Enrolment:
    """Of the test key."""
    return Enrolment(device=DEVICE, tier=2, ak_public=attestation_key(), activated=True, since_s=NOW_S)


def _quote_target(_: Path) -> Target:
    def run(data: bytes) -> bool:
        found = read_quote(data, DEVICE)
        if len(found.pcr_digest) != 32 or list(found.selection) != sorted(set(found.selection)):
            raise AssertionError("a quote that cannot be")
        check_registers(found, REGISTERS, DEVICE)
        return True

    return Target((quote(bytes(32)), quote(b"")), run, (RefusedError,))


def _signature_target(_: Path) -> Target:
    attested = quote(bytes(32))

    def run(data: bytes) -> bool:
        check_quote_signature(KEY.public_key(), data, attested, DEVICE)
        return True

    return Target((signature(attested),), run, (RefusedError,))


def _public_target(_: Path) -> Target:
    def run(data: bytes) -> bool:
        read_public(data, "key")
        return read_attestation_key(data, DEVICE).key.curve.name == "secp256r1"

    return Target((attestation_key(),), run, (RefusedError,))


def _evidence_target(_: Path) -> Target:
    wanted, known = policy(), enrolment()

    def run(data: bytes) -> bool:
        found = appraise(
            codec.unpack(Evidence, data),
            device=DEVICE,
            key=raw(DEVICE),
            nonce=NONCE,
            policy=wanted,
            enrolment=known,
            counters=Counters(),
        )
        return found.tier == 2

    return Target((codec.pack(evidence()),), run, (PeerError, RefusedError))


def _passport_target(_: Path) -> Target:
    wanted = policy()
    check = PassportCheck(wanted)

    def run(data: bytes) -> bool:
        return check.check(data, DEVICE, raw(DEVICE), "contribute", NOW_S).tier == 2

    return Target((issue_passport(wanted, DEVICE, raw(DEVICE), 2, 1, signer("verifier"), NOW_S),), run, (RefusedError,))


def _policy_target(_: Path) -> Target:
    def run(data: bytes) -> bool:
        return read_policy(data, raw("policy"), "plant-1").version == 1

    return Target((seal(policy(), POLICY_TYPE, POLICY_ID, signer("policy")),), run, (ConfigError,))


ATTESTATION: Final[dict[str, Callable[[Path], Target]]] = {
    "tpm_quote": _quote_target,
    "tpm_signature": _signature_target,
    "tpm_public": _public_target,
    "evidence": _evidence_target,
    "passport": _passport_target,
    "attestation_policy": _policy_target,
}
