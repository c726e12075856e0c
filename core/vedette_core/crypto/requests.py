"""Certificate signing requests: what a node shows of its keys, and proof that it holds them.

The authority takes one thing from a request: the public key. Subject and extensions are ignored: ids, roles and uses
are the authority's to give. The challenge attribute holds the id of the message that the request travels in: nobody can
take a request out of another node's message and show it as a proof of its own.

Source: RFC 2986 (PKCS #10), RFC 2985 §5.4.1 (challengePassword), RFC 8410 (Ed25519).
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from vedette_core.crypto.certificate_chain import check_signing_key, check_tls_key, damaged_is_refused
from vedette_core.crypto.certificates import Purpose
from vedette_schemas.errors import PeerError

REQUEST_BYTES_MAX: Final = 1024
"""DER of one request; ours have about 200 bytes."""


def make_request(key: EllipticCurvePrivateKey | Ed25519PrivateKey, challenge: str) -> bytes:
    """A request for a key, with an empty subject: DER.

    Args:
        key: the private key.
        challenge: id of the message that it will travel in.
    """
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge.encode())
    )
    if isinstance(key, Ed25519PrivateKey):
        return builder.sign(key, None).public_bytes(Encoding.DER)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_request(data: bytes, purpose: Purpose, challenge: str) -> EllipticCurvePublicKey | Ed25519PublicKey:
    """The public key of a request whose sender has proved that it holds the private one.

    Args:
        data: DER.
        purpose: what the key is wanted for: P-256 for TLS, Ed25519 for signing.
        challenge: id of the message that it came in.

    Raises:
        PeerError: too large, damaged, of another kind of key, made for another message, or signed by another key; the
            reason is ``limit``, ``request`` or ``signature``.
    """
    what = f"request for {purpose}"
    if len(data) > REQUEST_BYTES_MAX:
        raise PeerError(f"{what}: found {len(data)} bytes, expected at most {REQUEST_BYTES_MAX}", reason="limit")
    try:
        with damaged_is_refused(what):
            request = x509.load_der_x509_csr(data)
            key = request.public_key()
            signed = request.is_signature_valid
            shown = [a.value for a in request.attributes if a.oid == AttributeOID.CHALLENGE_PASSWORD]
        if purpose is Purpose.SIGNING:
            found: EllipticCurvePublicKey | Ed25519PublicKey = check_signing_key(what, key)
        else:
            found = check_tls_key(what, key)
    except PeerError as fault:
        raise PeerError(str(fault), reason="request") from fault
    if shown != [challenge.encode()]:
        raise PeerError(f"{what}: found one that was not made for message {challenge}", reason="request")
    if not signed:
        raise PeerError(f"{what}: found a signature that its own key did not make", reason="signature")
    return found
