"""The golden messages of attestation: every message once, with keys from names and measurements made up."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from golden_round import checkin
from golden_site import DEVICE, SITE, private_key

from vedette_core.attestation.boot_chain import boot
from vedette_core.crypto.signing import Ed25519Signer
from vedette_schemas import attestation, codec
from vedette_schemas.envelope import seal

NONCE: Final = hashlib.sha256(b"golden nonce").digest()
NOW: Final = 1_800_000_000.0
BOOT: Final = boot(
    hashlib.sha256(b"golden boot secret").digest(),
    [(name, hashlib.sha256(name.encode()).digest()) for name in ("loader", "kernel")],
)


def raw(identity: str) -> bytes:
    return private_key(identity).public_key().public_bytes_raw()


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def measurements() -> tuple[attestation.Measurement, ...]:
    return (
        attestation.Measurement(component="configuration", digest=digest("golden configuration")),
        attestation.Measurement(component="dependency/numpy", version="2.4.6", digest=digest("golden numpy")),
        attestation.Measurement(component="model/network", version="6", digest=digest("golden model")),
        attestation.Measurement(component="vedette", version="0.1.0", digest=digest("golden vedette")),
    )


def claims(**changes: Any) -> attestation.Claims:
    fields: dict[str, Any] = {
        "eat_nonce": NONCE,
        "ueid": DEVICE,
        "cnf": raw(DEVICE),
        "hwmodel": "aarch64",
        "swname": "vedette",
        "swversion": "0.1.0",
        "dbgstat": 1,
        "bootcount": 17,
        "measurements": measurements(),
    }
    return attestation.Claims(**{**fields, **changes})


def evidence(**changes: Any) -> attestation.Evidence:
    body = checkin()
    fields: dict[str, Any] = {
        "tier": 0,
        "claims": codec.pack(claims()),
        "certificate": body.certificate,
        "intermediate": body.intermediate,
    }
    return attestation.Evidence(**{**fields, **changes})


def boot_evidence() -> attestation.Evidence:
    bound = attestation.binding(DEVICE, codec.pack(claims()))
    return evidence(tier=1, chain=BOOT.layers, boot_signature=BOOT.key.sign(bound))


def tpm_evidence() -> attestation.Evidence:
    """The shape of a quote; its bytes mean nothing here."""
    return evidence(
        tier=2,
        quote=b"\xffTCG" + bytes(125),
        quote_signature=bytes(72),
        pcrs=tuple(attestation.Pcr(index=i, value=digest(f"register {i}")) for i in (0, 7)),
    )


def request() -> attestation.AttestationRequest:
    body = checkin()
    return attestation.AttestationRequest(device=DEVICE, certificate=body.certificate, intermediate=body.intermediate)


def challenge() -> attestation.Challenge:
    return attestation.Challenge(device=DEVICE, nonce=NONCE, expires_s=NOW + 120.0)


def passport() -> attestation.Passport:
    return attestation.Passport(
        device=DEVICE,
        key=hashlib.sha256(raw(DEVICE)).digest(),
        tier=0,
        policy=3,
        bootcount=17,
        iat=NOW,
        exp=NOW + 86_400.0,
    )


def answer() -> attestation.AttestationAnswer:
    signer = Ed25519Signer(private_key(attestation.VERIFIER_ID))
    sealed = seal(passport(), attestation.PASSPORT_TYPE, attestation.VERIFIER_ID, signer)
    return attestation.AttestationAnswer(device=DEVICE, nonce=NONCE, passport=sealed)


def refusal() -> attestation.AttestationAnswer:
    return attestation.AttestationAnswer(
        device=DEVICE, nonce=NONCE, rule="unknown-software", detail="gw-01: unknown-software: found another vedette"
    )


def policy() -> attestation.AttestationPolicy:
    return attestation.AttestationPolicy(
        site=SITE.site,
        version=3,
        verifiers=(raw(attestation.VERIFIER_ID),),
        tier_unmask=1,
        denied=(digest("golden bad kernel"),),
        references=(
            attestation.Reference(component="boot/kernel", digests=(digest("kernel"),)),
            attestation.Reference(component="boot/loader", digests=(digest("loader"),)),
            attestation.Reference(component="dependency/numpy", digests=(digest("golden numpy"),)),
            attestation.Reference(component="pcr/7", digests=(digest("register 7"),)),
            attestation.Reference(
                component="vedette",
                digests=(digest("golden vedette"), digest("golden vedette before")),
                version_min="0.1",
                versions_denied=("0.1.1",),
            ),
        ),
    )


def enrolment_request() -> attestation.EnrolmentRequest:
    body = checkin()
    return attestation.EnrolmentRequest(
        device=DEVICE, tier=1, certificate=body.certificate, intermediate=body.intermediate, boot_root=BOOT.root
    )


def enrolment() -> attestation.Enrolment:
    return attestation.Enrolment(device=DEVICE, tier=1, boot_root=BOOT.root, activated=True, since_s=NOW)


def statement() -> attestation.AggregatorStatement:
    return attestation.AggregatorStatement(
        aggregator="aggregator",
        swname="vedette",
        swversion="0.1.0",
        measurements=measurements()[-1:],
        policy=3,
        time_s=NOW,
    )


def digests() -> dict[str, Any]:
    return {
        "attestation_binding": attestation.binding(DEVICE, codec.pack(claims())).hex(),
        "boot_layer_statement": attestation.layer_statement("kernel", digest("kernel"), BOOT.layers[1].key).hex(),
    }
