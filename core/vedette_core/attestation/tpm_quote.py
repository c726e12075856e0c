"""A TPM's quote: parsed, its signature checked, and what it says.

Source: TCG TPM 2.0 Library, Part 2: §10.12 (``TPMS_ATTEST``), §11.3 (``TPMT_SIGNATURE``), §10.6
(``TPML_PCR_SELECTION``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from vedette_core.attestation.rules import refusal
from vedette_core.attestation.tpm_reader import TpmReader
from vedette_schemas.attestation import Pcr

MAGIC: Final = b"\xffTCG"
"""``TPM_GENERATED``: a restricted key signs nothing that begins with it unless the TPM made it itself."""
ATTEST_QUOTE: Final = 0x8018
ALG_SHA256: Final = 0x000B
ALG_ECDSA: Final = 0x0018
SELECT_BYTES_MAX: Final = 4
"""Of a bitmap of registers: a PC client has 24."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What a quote says.

    Attributes:
        extra: what the caller had it sign along.
        clock_safe: whether the TPM's clock did not go back since the last orderly shutdown.
        reset_count: starts of the TPM; only goes up.
        selection: indexes of the registers, ascending.
        pcr_digest: SHA-256 over their values, in order.
    """

    extra: bytes
    clock_safe: bool
    reset_count: int
    selection: tuple[int, ...]
    pcr_digest: bytes


def read_quote(data: bytes, whose: str) -> Quote:
    """Parse a ``TPMS_ATTEST``.

    Args:
        data: the structure.
        whose: the device, for messages.

    Raises:
        RefusedError: ``truncated trailing magic type malformed pcr-selection``.
    """
    reader = TpmReader(data, f"quote of {whose}")
    magic = reader.take(4)
    if magic != MAGIC:
        raise refusal("magic", f"quote of {whose}", magic.hex(), MAGIC.hex())
    kind = reader.number(2)
    if kind != ATTEST_QUOTE:
        raise refusal("type", f"quote of {whose}", f"{kind:#06x}", f"{ATTEST_QUOTE:#06x} (a quote)")
    reader.sized(68)  # the signer's qualified name: what the key is, the signature says
    extra = reader.sized(64)
    reader.number(8)  # milliseconds
    reset_count = reader.number(4)
    reader.number(4)  # resumes since then
    safe = reader.number(1)
    reader.number(8)  # version of the TPM's own firmware
    selection = _selection(reader, whose)
    digest = reader.sized(64)
    reader.end()
    if len(digest) != 32 or safe not in (0, 1):
        raise refusal("malformed", f"quote of {whose}", f"a digest of {len(digest)} bytes, safe {safe}", "32, 0 or 1")
    return Quote(extra, bool(safe), reset_count, selection, digest)


def _selection(reader: TpmReader, whose: str) -> tuple[int, ...]:
    banks = reader.number(4)
    if banks != 1:
        raise refusal("pcr-selection", f"quote of {whose}", f"{banks} banks", "one, SHA-256")
    algorithm, size = reader.number(2), reader.number(1)
    if algorithm != ALG_SHA256 or size > SELECT_BYTES_MAX:
        raise refusal("pcr-selection", f"quote of {whose}", f"bank {algorithm:#06x}", f"{ALG_SHA256:#06x} (SHA-256)")
    bits = reader.take(size)
    return tuple(i for i in range(8 * size) if bits[i // 8] >> (i % 8) & 1)


def check_quote_signature(key: EllipticCurvePublicKey, signature: bytes, quote: bytes, whose: str) -> None:
    """Check the attestation key's ``TPMT_SIGNATURE`` over a quote.

    Raises:
        RefusedError: it does not hold (``signature``), is none of ECDSA with SHA-256, or is malformed.
    """
    what = f"quote signature of {whose}"
    reader = TpmReader(signature, what)
    algorithm, digest = reader.number(2), reader.number(2)
    if (algorithm, digest) != (ALG_ECDSA, ALG_SHA256):
        raise refusal("signature", what, f"{algorithm:#06x} with {digest:#06x}", "ECDSA with SHA-256")
    r, s = reader.sized(32), reader.sized(32)
    reader.end()
    try:
        key.verify(encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")), quote, ECDSA(SHA256()))
    except InvalidSignature:
        raise refusal("signature", what, "one that the attestation key did not make", "its own") from None


def check_registers(quote: Quote, registers: Sequence[Pcr], whose: str) -> None:
    """Check that register values are the ones that a quote is about.

    Raises:
        RefusedError: other registers (``pcr-selection``) or other values (``wrong-pcr``).
    """
    indexes = tuple(pcr.index for pcr in registers)
    if indexes != quote.selection:
        raise refusal("pcr-selection", f"quote of {whose}", f"registers {quote.selection}", f"{indexes} as listed")
    if hashlib.sha256(b"".join(pcr.value for pcr in registers)).digest() != quote.pcr_digest:
        raise refusal("wrong-pcr", f"quote of {whose}", "another digest of the registers", "that of the values listed")
