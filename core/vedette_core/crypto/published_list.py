"""A revocation list as it travels: the list, and behind it the certificates of the authorities in force.

With them, whoever knows the root can believe the first list of an authority that has just taken another's place. In a
message they follow each other as DER, in a file as PEM; there, a list of each other authority may follow, for programs
that want one of each leaf's own issuer.

Source: X.690 §8.1.3 (lengths), RFC 7468 (PEM).
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vedette_core.crypto.certificate_chain import (
    CERTIFICATE_BYTES_MAX,
    CHAIN_LENGTH_MAX,
    damaged_is_refused,
    der,
    load_certificates,
)
from vedette_schemas.errors import PeerError

LIST_BYTES_MAX: Final = 192 * 1024
"""With the certificates it travels whole in one MQTT message of at most 256 KiB."""
LIST_FILE_BYTES_MAX: Final = LIST_BYTES_MAX * 3
"""As PEM, which is a third longer than what is signed; while an authority is being replaced, two lists."""

_PEM_LIST_MAX: Final = LIST_BYTES_MAX * 4 // 3 + 200
_PEM_LIST: Final = re.compile(rb"-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----\n?")
_SEQUENCE: Final = 0x30


def split_published(data: bytes) -> tuple[x509.CertificateRevocationList, tuple[x509.Certificate, ...]]:
    """The list, and the certificates that came with it; nothing of them is checked.

    Args:
        data: DER one after the other, or PEM, of which the first list counts.

    Raises:
        PeerError: too large (``limit``), or damaged (``list``).
    """
    try:
        with damaged_is_refused("revocation list"):
            return _split_pem(data) if data.startswith(b"-----") else _split_der(data)
    except PeerError as fault:
        raise PeerError(str(fault), reason="limit" if fault.reason == "limit" else "list") from fault


def join_der(signed: bytes, authorities: tuple[x509.Certificate, ...]) -> bytes:
    """A list in DER and certificates, as one message."""
    return b"".join((signed, *map(der, authorities)))


def join_pem(first: bytes, authorities: tuple[x509.Certificate, ...], others: tuple[bytes, ...] = ()) -> bytes:
    """A list in DER, certificates, and lists of other authorities, as one file."""
    lists = [x509.load_der_x509_crl(each).public_bytes(Encoding.PEM) for each in (first, *others)]
    return b"".join((lists[0], *(c.public_bytes(Encoding.PEM) for c in authorities), *lists[1:]))


def _split_der(data: bytes) -> tuple[x509.CertificateRevocationList, tuple[x509.Certificate, ...]]:
    if len(data) > LIST_BYTES_MAX:
        raise _too_large(len(data), LIST_BYTES_MAX)
    end = _end(data, 0)
    found, start = x509.load_der_x509_crl(data[:end]), end
    certificates: list[x509.Certificate] = []
    while start < len(data):
        if len(certificates) >= CHAIN_LENGTH_MAX:
            raise _too_many()
        end = _end(data, start)
        if end - start > CERTIFICATE_BYTES_MAX:
            raise _too_large(end - start, CERTIFICATE_BYTES_MAX)
        certificates.append(x509.load_der_x509_certificate(data[start:end]))
        start = end
    return found, tuple(certificates)


def _split_pem(data: bytes) -> tuple[x509.CertificateRevocationList, tuple[x509.Certificate, ...]]:
    found = _PEM_LIST.search(data)
    first = data if found is None else found.group()
    if len(first) > _PEM_LIST_MAX or len(data) > LIST_FILE_BYTES_MAX:
        raise _too_large(len(data), LIST_FILE_BYTES_MAX)
    rest = _PEM_LIST.sub(b"", data) if found is not None else b""
    certificates = load_certificates(rest, "revocation list") if rest.strip() else ()
    if len(certificates) > CHAIN_LENGTH_MAX:  # what is believed is kept as DER, and has to be read again
        raise _too_many()
    return x509.load_pem_x509_crl(first), certificates


def _end(data: bytes, start: int) -> int:
    """Where the DER sequence that begins at `start` ends."""
    if len(data) < start + 2 or data[start] != _SEQUENCE:
        raise _damaged()
    length, begin = data[start + 1], start + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(data) < begin + count:
            raise _damaged()
        length, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if begin + length > len(data):
        raise _damaged()
    return begin + length


def _damaged() -> PeerError:
    return PeerError("revocation list: found bytes that cannot be read, expected a list in DER", reason="list")


def _too_many() -> PeerError:
    return PeerError(
        f"revocation list: found more than {CHAIN_LENGTH_MAX} certificates with it, expected fewer", reason="limit"
    )


def _too_large(found: int, allowed: int) -> PeerError:
    return PeerError(f"revocation list: found {found} bytes, expected at most {allowed}", reason="limit")
