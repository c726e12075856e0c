"""A device, a verifier and a policy to push against each other, and a TPM that signs whatever it is told."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vedette_core.attestation.appraisal import Appraised, Counters, appraise
from vedette_core.attestation.boot_chain import Boot, boot
from vedette_core.crypto.signing import Ed25519Signer
from vedette_schemas import codec
from vedette_schemas.attestation import (
    AttestationPolicy,
    Claims,
    Enrolment,
    Evidence,
    Measurement,
    Pcr,
    Reference,
    binding,
)

SITE = "plant-1"
DEVICE = "gw-01"
OTHER = "gw-02"
NOW = 1_800_000_000.0
NONCE = hashlib.sha256(b"a nonce").digest()


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def signer(name: str) -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(digest(f"key of {name}")))


def raw(name: str) -> bytes:
    return signer(name).public_key.public_bytes_raw()


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


AK_ATTRIBUTES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 18
EK_ATTRIBUTES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 17


def p256(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(digest(name), "big") >> 1, ec.SECP256R1())


def public_area(key: ec.EllipticCurvePrivateKey, attributes: int, *, curve: int = 3, kind: int = 0x23) -> bytes:
    """``TPM2B_PUBLIC`` of a key: as an endorsement key it has a symmetric part, as an attestation key a scheme."""
    numbers = key.public_key().public_numbers()
    decrypts = attributes & 1 << 17
    symmetric = struct.pack(">HHH", 0x0006, 128, 0x0043) if decrypts else struct.pack(">H", 0x0010)
    scheme = struct.pack(">H", 0x0010) if decrypts else struct.pack(">HH", 0x0018, 0x000B)
    area = (
        struct.pack(">HHI", kind, 0x000B, attributes)
        + sized(digest("policy") if decrypts else b"")
        + symmetric
        + scheme
        + struct.pack(">HH", curve, 0x0010)
        + sized(numbers.x.to_bytes(32, "big"))
        + sized(numbers.y.to_bytes(32, "big"))
    )
    return sized(area)


@dataclass
class SoftTpm:
    """Signs quotes with a key that is nowhere protected: good for tests of the verifier, and for nothing else."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: p256("attestation key"))
    registers: dict[int, bytes] = field(default_factory=lambda: {0: digest("firmware"), 7: digest("secure boot")})
    reset_count: int = 4
    safe: int = 1

    @property
    def ak_public(self) -> bytes:
        return public_area(self.key, AK_ATTRIBUTES)

    def attest(self, extra: bytes, *, magic: bytes = b"\xffTCG", kind: int = 0x8018) -> bytes:
        bits = sum(1 << index for index in self.registers)
        values = b"".join(value for _, value in sorted(self.registers.items()))
        return (
            magic
            + struct.pack(">H", kind)
            + sized(b"\0\x0b" + digest("qualified name"))
            + sized(extra)
            + struct.pack(">QIIBQ", 123_456, self.reset_count, 0, self.safe, 0x2019_1023)
            + struct.pack(">IHB", 1, 0x000B, 3)
            + bits.to_bytes(3, "little")
            + sized(hashlib.sha256(values).digest())
        )

    def sign(self, attested: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(attested, ec.ECDSA(SHA256())))
        return struct.pack(">HH", 0x0018, 0x000B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def pcrs(self) -> tuple[Pcr, ...]:
        return tuple(Pcr(index=index, value=value) for index, value in sorted(self.registers.items()))


LAYERS = (("loader", digest("loader 1")), ("kernel", digest("kernel 1")))


def a_boot(layers: Sequence[tuple[str, bytes]] = LAYERS, secret: str = "boot secret") -> Boot:
    return boot(digest(secret), layers)


MEASURED = (
    Measurement(component="configuration", digest=digest("whatever")),
    Measurement(component="dependency/numpy", version="2.4.6", digest=digest("numpy 2.4.6")),
    Measurement(component="model/network", version="6", digest=digest("some model")),
    Measurement(component="vedette", version="0.10.1", digest=digest("vedette 0.10.1")),
)


def software(**versions: Measurement | None) -> tuple[Measurement, ...]:
    """The measurements with some exchanged, taken away or added, by component (``_`` for ``/``)."""
    found = {m.component: m for m in MEASURED}
    for name, change in versions.items():
        component = name.replace("_", "/")
        if change is None:
            del found[component]
        else:
            found[component] = change
    return tuple(found[component] for component in sorted(found))


def a_policy(**changes: Any) -> AttestationPolicy:
    fields: dict[str, Any] = {
        "site": SITE,
        "version": 3,
        "verifiers": (raw("verifier"),),
        "references": (
            Reference(component="boot/kernel", digests=(digest("kernel 1"),)),
            Reference(component="boot/loader", digests=(digest("loader 1"),)),
            Reference(component="dependency/numpy", digests=(digest("numpy 2.4.6"),)),
            Reference(component="pcr/0", digests=(digest("firmware"),)),
            Reference(component="pcr/7", digests=(digest("secure boot"),)),
            Reference(
                component="vedette",
                digests=(digest("vedette 0.10.1"), digest("vedette 0.9"), digest("vedette 0.10.0")),
                version_min="0.10",
                versions_denied=("0.10.0",),
            ),
        ),
    }
    return AttestationPolicy(**{**fields, **changes})


def a_claims(**changes: Any) -> Claims:
    fields: dict[str, Any] = {
        "eat_nonce": NONCE,
        "ueid": DEVICE,
        "cnf": raw(DEVICE),
        "swname": "vedette",
        "swversion": "0.10.1",
        "dbgstat": 1,
        "bootcount": 9,
        "measurements": MEASURED,
    }
    return Claims(**{**fields, **changes})


def an_evidence(tier: int = 0, claims: Claims | None = None, **changes: Any) -> Evidence:
    packed = codec.pack(a_claims() if claims is None else claims)
    bound = binding(DEVICE, packed)
    proof: dict[str, Any] = {}
    if tier == 1:
        made = a_boot()
        proof = {"chain": made.layers, "boot_signature": made.key.sign(bound)}
    elif tier == 2:
        proof = quoted(SoftTpm(), bound)
    fields: dict[str, Any] = {"tier": tier, "claims": packed, "certificate": b"c", "intermediate": b"i", **proof}
    return Evidence(**{**fields, **changes})


def quoted(tpm: SoftTpm, bound: bytes, attested: bytes | None = None) -> dict[str, Any]:
    quote = tpm.attest(bound) if attested is None else attested
    return {"quote": quote, "quote_signature": tpm.sign(quote), "pcrs": tpm.pcrs()}


def bound_claims(claims: Claims | None = None) -> bytes:
    return binding(DEVICE, codec.pack(a_claims() if claims is None else claims))


def enrolled(tier: int, **changes: Any) -> Enrolment:
    fields: dict[str, Any] = {"device": DEVICE, "tier": tier, "activated": True, "since_s": NOW}
    fields |= {"boot_root": a_boot().root} if tier == 1 else {"ak_public": SoftTpm().ak_public, "ek": digest("ek")}
    return Enrolment(**{**fields, **changes})


def appraised(evidence: Evidence, **changes: Any) -> Appraised:
    fields: dict[str, Any] = {
        "device": DEVICE,
        "key": raw(DEVICE),
        "nonce": NONCE,
        "policy": a_policy(),
        "enrolment": enrolled(evidence.tier) if evidence.tier else None,
        "counters": Counters(),
    }
    return appraise(evidence, **{**fields, **changes})
