"""Public areas of TPM keys: endorsement and attestation keys on P-256, and what must be true of them.

Source: TCG TPM 2.0 Library, Part 1 §16 (names), Part 2 §12.2 (``TPMT_PUBLIC``), §8.3 (``TPMA_OBJECT``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)

from vedette_core.attestation.rules import refusal
from vedette_core.attestation.tpm_reader import TpmReader

ALG_ECC: Final = 0x0023
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
CURVE_P256: Final = 0x0003
FIXED: Final = 1 << 1 | 1 << 4 | 1 << 5
"""``fixedTPM``, ``fixedParent``, ``sensitiveDataOrigin``: made in this TPM, and never leaves it."""
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18


@dataclass(frozen=True, slots=True)
class TpmKey:
    """A public area.

    Attributes:
        name: how the TPM calls the key: algorithm of the name and digest of the public area.
        attributes: ``TPMA_OBJECT``.
        x: coordinate of the point, 32 bytes.
        key: the point.
    """

    name: bytes
    attributes: int
    x: bytes
    key: EllipticCurvePublicKey


def read_public(data: bytes, what: str) -> TpmKey:
    """Parse a ``TPM2B_PUBLIC``.

    Args:
        data: the structure, with its length in front.
        what: which key, for messages.

    Raises:
        RefusedError: malformed, or not a key on P-256 named with SHA-256 (``key-kind``).
    """
    outer = TpmReader(data, what)
    area = outer.sized(1024)
    outer.end()
    reader = TpmReader(area, what)
    kind, name_algorithm, attributes = reader.number(2), reader.number(2), reader.number(4)
    if (kind, name_algorithm) != (ALG_ECC, ALG_SHA256):
        raise refusal("key-kind", what, f"key {kind:#06x} named {name_algorithm:#06x}", "ECC named with SHA-256")
    reader.sized(64)  # policy of its use
    if reader.number(2) != ALG_NULL:  # symmetric: bits and mode follow
        reader.take(4)
    if reader.number(2) != ALG_NULL:  # scheme: its digest follows
        reader.take(2)
    curve = reader.number(2)
    if reader.number(2) != ALG_NULL:  # key derivation: its digest follows
        reader.take(2)
    x, y = reader.sized(32), reader.sized(32)
    reader.end()
    if curve != CURVE_P256:
        raise refusal("key-kind", what, f"curve {curve:#06x}", f"{CURVE_P256:#06x} (P-256)")
    try:
        numbers = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), SECP256R1())
        key = numbers.public_key()
    except ValueError as fault:
        raise refusal("key-kind", what, f"no point of the curve ({fault})", "one") from fault
    name = ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(area).digest()
    return TpmKey(name, attributes, x.rjust(32, b"\0"), key)


def read_attestation_key(data: bytes, whose: str) -> TpmKey:
    """An attestation key: restricted, so that it signs only what its TPM made, and for signing only.

    Raises:
        RefusedError: as `read_public`; ``key-kind`` if it is another kind.
    """
    found = read_public(data, f"attestation key of {whose}")
    wanted = FIXED | RESTRICTED | SIGN
    if found.attributes & (wanted | DECRYPT) != wanted:
        raise refusal(
            "key-kind",
            f"attestation key of {whose}",
            f"attributes {found.attributes:#010x}",
            "a restricted signing key",
        )
    return found


def read_endorsement_key(data: bytes, whose: str) -> TpmKey:
    """An endorsement key: a restricted decryption key of this TPM.

    Raises:
        RefusedError: as `read_public`; ``key-kind`` if it is another kind.
    """
    found = read_public(data, f"endorsement key of {whose}")
    wanted = FIXED | RESTRICTED | DECRYPT
    if found.attributes & (wanted | SIGN) != wanted:
        raise refusal(
            "key-kind",
            f"endorsement key of {whose}",
            f"attributes {found.attributes:#010x}",
            "a restricted decryption key",
        )
    return found
