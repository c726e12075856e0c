"""A secret that only the TPM with this endorsement key opens, and only if that very attestation key is in it.

This is how an attestation key is bound to its TPM: whoever gives the secret back has both.

Source: TCG TPM 2.0 Library, Part 1 §24 (credential protection), §11.4.10 (KDFa, KDFe), annex C.6 (ECC secret sharing).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import ECDH, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from vedette_core.attestation.tpm_public import TpmKey

SECRET_BYTES: Final = 32
TOOLS_HEADER: Final = bytes.fromhex("badcc0de00000001")
"""Magic and version in front of the file that ``tpm2_activatecredential`` reads."""


def make_credential(endorsement: TpmKey, name: bytes, secret: bytes, ephemeral: EllipticCurvePrivateKey) -> bytes:
    """Wrap a secret.

    Args:
        endorsement: key of the TPM that can open it.
        name: of the attestation key that must be in that TPM.
        secret: 32 unpredictable bytes.
        ephemeral: a fresh key on P-256, for this secret alone.

    Returns:
        The file that ``tpm2_activatecredential`` takes.
    """
    shared = ephemeral.exchange(ECDH(), endorsement.key)
    numbers = ephemeral.public_key().public_numbers()
    x, y = (n.to_bytes(32, "big") for n in (numbers.x, numbers.y))
    seed = _kdf_e(shared, b"IDENTITY", x, endorsement.x)
    hidden = _cfb(_kdf_a(seed, b"STORAGE", name, 16), _sized(secret))
    integrity = hmac.digest(_kdf_a(seed, b"INTEGRITY", b"", 32), hidden + name, "sha256")
    blob = _sized(_sized(integrity) + hidden)
    return TOOLS_HEADER + blob + _sized(_sized(x) + _sized(y))


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _kdf_e(shared: bytes, use: bytes, party_u: bytes, party_v: bytes) -> bytes:
    return hashlib.sha256((1).to_bytes(4, "big") + shared + use + b"\0" + party_u + party_v).digest()


def _kdf_a(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    data = (1).to_bytes(4, "big") + label + b"\0" + context + (8 * size).to_bytes(4, "big")
    return hmac.digest(key, data, "sha256")[:size]


def _cfb(key: bytes, data: bytes) -> bytes:
    """AES in cipher feedback mode from a block of zeros; the key is used once, so that this is sound."""
    encryptor = Cipher(AES(key), ECB()).encryptor()  # single blocks: the feedback is made here
    block, out = bytes(16), b""
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        stream = encryptor.update(block)
        sealed = bytes(a ^ b for a, b in zip(part, stream, strict=False))
        out += sealed
        block = sealed.ljust(16, b"\0")
    return out
