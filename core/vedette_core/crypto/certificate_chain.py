"""Certificate chains: who a certificate's holder is, or why it is refused.

A chain must be exactly of the shape that `certificates` makes: we issue every certificate ourselves, so that nothing
else has to be understood.

Source: RFC 5280 §6 (path validation).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from vedette_core.crypto.certificates import (
    KEY_USES,
    CertificateRole,
    Identity,
    Purpose,
    check_holder,
    key_usage,
)
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import ID_PATTERN, check_id

CHAIN_LENGTH_MAX: Final = 4
"""Intermediates that are looked at; ours is one, two while it is being replaced."""
CERTIFICATE_BYTES_MAX: Final = 2048
"""DER of one certificate, as in the check-in message; ours are about 700 bytes."""

_SPIFFE: Final = re.compile(rf"spiffe://({ID_PATTERN})/([a-z]{{1,20}})/({ID_PATTERN})")
_CA_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)
_LEAF_EXTENSIONS: Final = _CA_EXTENSIONS | {
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


_LIBRARY_ERRORS: Final = (
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.ExtensionNotFound,
)


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Iterable[x509.Certificate],
    root: x509.Certificate,
    now: float,
    *,
    purpose: Purpose,
    site: str | None = None,
) -> Identity:
    """Verify a leaf up to the root and tell who it is.

    Args:
        leaf: the certificate in question.
        intermediates: candidates for its issuer, at most `CHAIN_LENGTH_MAX`.
        root: the one trust anchor.
        now: epoch seconds.
        purpose: what the key is about to be used for.
        site: the only site that is accepted, where one is known.

    Raises:
        PeerError: anything that is not exactly of the shape that `make_leaf` makes, with what was found.
    """
    with damaged_is_refused("certificate"):
        return _verify(leaf, intermediates, root, datetime.fromtimestamp(now, UTC), purpose, site)


@contextmanager
def damaged_is_refused(what: str) -> Iterator[None]:
    """Turn everything that a damaged certificate makes the library raise, also late, when a field is first read."""
    try:
        yield
    except (ValueError, TypeError, UnsupportedAlgorithm, *_LIBRARY_ERRORS) as fault:
        raise PeerError(
            f"{what}: found one that cannot be read ({fault}), expected the shape that our authority makes",
            reason="certificate",
        ) from fault


def _verify(
    leaf: x509.Certificate,
    intermediates: Iterable[x509.Certificate],
    root: x509.Certificate,
    moment: datetime,
    purpose: Purpose,
    site: str | None,
) -> Identity:
    who = _who(leaf)
    candidates = list(intermediates)
    if len(candidates) > CHAIN_LENGTH_MAX:
        raise _odd(who, f"{len(candidates)} intermediates", f"at most {CHAIN_LENGTH_MAX}", "limit")
    issuer = _issuer_of(leaf, candidates)
    if root.issuer != root.subject or not _issued(root, root):
        raise _odd("root", "a certificate that is not self-signed", "a root certificate", "chain")
    if issuer.issuer != root.subject or not _issued(issuer, root):
        raise _odd(who, "an intermediate that the root did not issue", "a chain to the site's root", "chain")
    for what, certificate in ((who, leaf), ("intermediate", issuer), ("root", root)):
        _check_time(what, certificate, moment)
    _check_authority("root", root, path_length=1)
    _check_authority("intermediate", issuer, path_length=0)
    begins = issuer.not_valid_before_utc.timestamp()
    return replace(_check_leaf(leaf, purpose, site), issuer=issuer.serial_number, issuer_begins=begins)


def check_intermediate(certificate: x509.Certificate, root: x509.Certificate) -> None:
    """Check that a certificate is an issuing authority's of this root; whether it has ended is another question.

    Raises:
        PeerError: the root did not issue it (``chain``), or it is not exactly of the shape of an authority.
    """
    with damaged_is_refused("intermediate"):
        if certificate.issuer != root.subject or not _issued(certificate, root):
            raise _odd("intermediate", "one that the root did not issue", "a chain to the site's root", "chain")
        _check_authority("intermediate", certificate, path_length=0)


def _issuer_of(leaf: x509.Certificate, candidates: Iterable[x509.Certificate]) -> x509.Certificate:
    """The authority that signed a leaf; nothing else of either is checked.

    Raises:
        PeerError: it is none of the candidates.
    """
    for candidate in candidates:
        if candidate.subject == leaf.issuer and _issued(leaf, candidate):
            return candidate
    found = f"issuer {leaf.issuer.rfc4514_string()!r}"
    raise _odd(_who(leaf), found, "the site's certificate authority", "chain")


def load_certificates(data: bytes, what: str = "certificate") -> tuple[x509.Certificate, ...]:
    """Read certificates: one in DER, or any number in PEM.

    Raises:
        PeerError: not a certificate, too large, or too many.
    """
    if len(data) > CERTIFICATE_BYTES_MAX * 2 * (CHAIN_LENGTH_MAX + 1):
        raise PeerError(f"{what}: found {len(data)} bytes, expected a short chain", reason="limit")
    with damaged_is_refused(what):
        if data.lstrip().startswith(b"-----"):
            found = tuple(x509.load_pem_x509_certificates(data))
        else:
            found = (x509.load_der_x509_certificate(data),)
    if len(found) > CHAIN_LENGTH_MAX + 1:
        raise PeerError(f"{what}: found {len(found)} certificates, expected a short chain", reason="limit")
    return found


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER bytes, as it travels in messages."""
    return certificate.public_bytes(Encoding.DER)


def signed_as_ours(signed: x509.Certificate | x509.CertificateRevocationList, encoded: bytes) -> bool:
    """Tell whether the parts that no signature covers are as our authority writes them.

    They are the outer name of the algorithm and the count of unused bits of the signature. The library does not mind
    either, and TLS does: somebody on the way could make a certificate that holds here and nowhere else.

    Args:
        signed: certificate or revocation list.
        encoded: its DER.
    """
    named = signed.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    return named and encoded[-len(signed.signature) - 1] == 0


def _odd(who: str, found: str, expected: str, reason: str) -> PeerError:
    return PeerError(f"certificate of {who}: found {found}, expected {expected}", reason=reason)


def _who(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string()[:100])


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if not signed_as_ours(certificate, der(certificate)):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_time(what: str, certificate: x509.Certificate, moment: datetime) -> None:
    if moment < certificate.not_valid_before_utc:
        found = f"one that begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise _odd(what, found, f"one valid at {moment:%Y-%m-%d %H:%M} UTC; check the clock", "not-yet-valid")
    if moment > certificate.not_valid_after_utc:
        found = f"one that ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise _odd(what, found, f"one valid at {moment:%Y-%m-%d %H:%M} UTC; issue it again", "expired")


def _extensions(who: str, certificate: x509.Certificate, expected: frozenset[x509.ObjectIdentifier]) -> x509.Extensions:
    try:
        extensions = certificate.extensions
        found = frozenset(e.oid for e in extensions)
    except (ValueError, x509.DuplicateExtension) as fault:
        raise _odd(who, f"extensions that cannot be read ({fault})", "ours", "certificate") from fault
    if found != expected:
        odd = ", ".join(sorted(o.dotted_string for o in found ^ expected))
        raise _odd(who, f"extensions too many or missing ({odd})", "exactly ours", "certificate")
    return extensions


def _check_authority(who: str, certificate: x509.Certificate, path_length: int) -> None:
    extensions = _extensions(who, certificate, _CA_EXTENSIONS)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca or constraints.path_length != path_length:
        raise _odd(who, f"{constraints!r}", f"an authority with path length {path_length}", "chain")
    if extensions.get_extension_for_class(x509.KeyUsage).value != key_usage(signs_certificates=True):
        raise _odd(who, "another key usage", "one that signs certificates only", "chain")
    check_tls_key(who, certificate.public_key())


_FIELD: Final = 2**255 - 19
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        _FIELD - 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)
"""y of the eight points whose order divides eight. Under such a key, one signature holds for many messages or all."""


def check_signing_key(who: str, key: object) -> Ed25519PublicKey:
    """Return the key if it is one that an Ed25519 signer made.

    Raises:
        PeerError: another kind of key, or one of small order.
    """
    if not isinstance(key, Ed25519PublicKey):
        raise _odd(who, f"a {type(key).__name__}", "an Ed25519 key", "certificate")
    _check_order(who, key)
    return key


def _check_order(who: str, key: Ed25519PublicKey) -> None:
    y = int.from_bytes(key.public_bytes_raw(), "little") % 2**255
    if y >= _FIELD or y in _SMALL_ORDER_Y:
        raise _odd(who, "an Ed25519 key of small order or not canonical", "one that a signer made", "certificate")


def check_tls_key(who: str, key: object) -> EllipticCurvePublicKey:
    """Return the key if it is one of P-256.

    Raises:
        PeerError: another kind of key, or another curve.
    """
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _odd(who, f"a {type(key).__name__}", "a P-256 key", "certificate")
    return key


def _check_leaf(leaf: x509.Certificate, purpose: Purpose, site: str | None) -> Identity:
    who = _who(leaf)
    extensions = _extensions(who, leaf, _LEAF_EXTENSIONS)
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise _odd(who, "a certificate authority", "a node's certificate", "certificate")
    if extensions.get_extension_for_class(x509.KeyUsage).value != key_usage(signs_certificates=False):
        raise _odd(who, "another key usage", "digital signature only", "certificate")
    uses = [u.dotted_string for u in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]
    if uses != [KEY_USES[purpose].dotted_string]:
        raise _odd(who, f"extended key usage {uses}", f"that of {purpose}", "purpose")
    key = leaf.public_key()
    if purpose is Purpose.SIGNING:
        check_signing_key(who, key)
    else:
        check_tls_key(who, key)
    holder, role, found_site = _check_names(who, leaf, extensions, purpose)
    if site is not None and found_site != site:
        raise _odd(who, f"site {found_site!r}", f"site {site!r}", "site")
    assert isinstance(key, (Ed25519PublicKey, EllipticCurvePublicKey))
    return Identity(
        holder, role, found_site, purpose, key, leaf.not_valid_after_utc.timestamp(), serial=leaf.serial_number
    )


def _check_names(
    who: str, leaf: x509.Certificate, extensions: x509.Extensions, purpose: Purpose
) -> tuple[str, CertificateRole, str]:
    names = list(leaf.subject)
    if len(names) != 1 or names[0].oid != NameOID.COMMON_NAME:
        raise _odd(who, f"{len(names)} name attributes", "one common name", "identity")
    holder = check_id(str(names[0].value), "common name")
    alternatives = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    uris = [a.value for a in alternatives if isinstance(a, x509.UniformResourceIdentifier)]
    if len(uris) != 1 or (len(alternatives) != 1 and purpose is not Purpose.TLS_SERVER):
        raise _odd(who, f"{len(alternatives)} alternative names, {len(uris)} URIs", "one URI", "identity")
    parts = _SPIFFE.fullmatch(uris[0])
    if parts is None:
        raise _odd(who, f"URI {uris[0][:120]!r}", "spiffe://{site}/{role}/{id}", "identity")
    site, role_name, uri_holder = parts.groups()
    if uri_holder != holder:
        raise _odd(who, f"URI of {uri_holder!r}", f"the common name {holder!r}", "identity")
    roles = {r.value: r for r in CertificateRole}
    if role_name not in roles:
        raise _odd(who, f"role {role_name!r}", f"one of {list(roles)}", "role")
    role = roles[role_name]
    check_holder(holder, role)
    if (role is CertificateRole.BROKER) != (purpose is Purpose.TLS_SERVER):
        raise _odd(who, f"role {role} for {purpose}", "the broker as server and nobody else", "role")
    return holder, role, site
