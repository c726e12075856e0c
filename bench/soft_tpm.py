"""A TPM's structures without a TPM, for measuring and fuzzing the verifier: its key protects nothing."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vedette_schemas.attestation import Pcr

KEY: Final = ec.derive_private_key(0x5EED, ec.SECP256R1())
AK_ATTRIBUTES: Final = 0x0005_0072
"""Fixed to its TPM and parent, made there, restricted, signs: as ``tpm2_createak`` makes it."""
REGISTERS: Final = tuple(Pcr(index=i, value=hashlib.sha256(b"register %d" % i).digest()) for i in range(8))


def sized(data: bytes) -> bytes:
    """``TPM2B``: two bytes of length in front."""
    return len(data).to_bytes(2, "big") + data


def attestation_key() -> bytes:
    """``TPM2B_PUBLIC`` of the key."""
    numbers = KEY.public_key().public_numbers()
    area = struct.pack(">HHI", 0x23, 0x0B, AK_ATTRIBUTES) + sized(b"")
    area += struct.pack(">HHHHH", 0x10, 0x18, 0x0B, 0x03, 0x10)
    return sized(area + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big")))


def quote(extra: bytes) -> bytes:
    """``TPMS_ATTEST`` about `REGISTERS`."""
    digest = hashlib.sha256(b"".join(pcr.value for pcr in REGISTERS)).digest()
    head = b"\xffTCG" + struct.pack(">H", 0x8018) + sized(b"\0\x0b" + bytes(32)) + sized(extra)
    clock = struct.pack(">QIIBQ", 1, 2, 0, 1, 3)
    return head + clock + struct.pack(">IHB", 1, 0x0B, 3) + b"\xff\0\0" + sized(digest)


def signature(attested: bytes) -> bytes:
    """``TPMT_SIGNATURE`` of the key."""
    r, s = decode_dss_signature(KEY.sign(attested, ec.ECDSA(SHA256())))
    return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
