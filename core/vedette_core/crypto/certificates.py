"""Certificates of a site: made and verified here, and nowhere else.

One shape for everything: an offline root, an online intermediate, and leaves that live a week. A node holds two leaves
under the same id: one speaks TLS (P-256), the other signs envelopes (Ed25519), so that neither key can be used for the
other's work. Who a leaf is stands in it twice and must agree: the common name and the URI
``spiffe://{site}/{role}/{id}``.

Everything is pure: keys, serial numbers and the time come in as arguments. `certificate_chain` refuses what is not
exactly of this shape.

Source: RFC 5280 (X.509), SPIFFE-ID §2, RFC 8410 (Ed25519 in X.509).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vedette_schemas.errors import PeerError
from vedette_schemas.topics import TOKEN_ID_PREFIX, Role, check_id

ROOT_DAYS: Final = 3650
"""The root is offline; it changes with the site's hardware generation."""
INTERMEDIATE_DAYS: Final = 365
"""The intermediate is on a connected machine: a year bounds what its theft is worth."""
LEAF_DAYS: Final = 7
"""A leaf's short life is the first line of revocation."""
BOOTSTRAP_S: Final = 86_400.0
"""A bootstrap leaf ends with its token."""
BACKDATED_S: Final = 300
"""Certificates begin five minutes ago, so that a gateway whose clock is a little slow accepts them."""
SIGNING_USE: Final = x509.ObjectIdentifier("2.25.329943803631097690401850347648472469950")
"""Extended key usage of a signing certificate (an OID from a UUID, X.667): with none at all, TLS would take it."""


class CertificateRole(StrEnum):
    """Who a certificate's holder is: the roles of the access table, and the broker itself."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    ANALYTICS = "analytics"
    BROKER = "broker"
    COMMITTEE = "committee"
    AUTHORITY = "authority"
    BOOTSTRAP = "bootstrap"


MANY: Final = frozenset({CertificateRole.DEVICE, CertificateRole.COMMITTEE, CertificateRole.BOOTSTRAP})
"""Roles that many nodes have, each under an id of its own; of the others there is one, and its id is the role."""
RESERVED_IDS: Final = frozenset(role.value for role in CertificateRole if role not in MANY)
"""Ids that mean a role: no other node can have one, and the role has no other id."""


class Purpose(StrEnum):
    """What a leaf's key may do."""

    TLS_CLIENT = "tls-client"
    TLS_SERVER = "tls-server"
    SIGNING = "signing"


KEY_USES: Final = {
    Purpose.TLS_CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Purpose.TLS_SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Purpose.SIGNING: SIGNING_USE,
}


def access_role(role: CertificateRole) -> Role | None:
    """A certificate's role in the access table; None for those that are nobody's client.

    A committee helper speaks on a branch of its own, as a device does.
    """
    if role is CertificateRole.COMMITTEE:
        return Role.DEVICE
    return next((each for each in Role if each.value == role.value), None)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a verified leaf says that its holder is.

    Attributes:
        id: the holder's id, which is also its MQTT client id.
        role: one of `CertificateRole`.
        site: the site's id.
        purpose: what the key may do.
        public_key: the leaf's key.
        not_after: epoch seconds at which the leaf ends.
        serial: the leaf's serial number, by which it may be revoked.
        issuer: serial number of the authority that issued it, by which that one may be taken out of service.
        issuer_begins: epoch seconds at which that authority's certificate begins.
    """

    id: str
    role: CertificateRole
    site: str
    purpose: Purpose
    public_key: EllipticCurvePublicKey | Ed25519PublicKey
    not_after: float
    serial: int = 0
    issuer: int = 0
    issuer_begins: float = 0.0

    @property
    def access_role(self) -> Role:
        """The role in the access table; see the function of this name.

        Raises:
            PeerError: it is nobody's client.
        """
        found = access_role(self.role)
        if found is None:
            raise PeerError(f"{self.id}: found the {self.role}'s own certificate, expected a client's", reason="role")
        return found


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate authority's certificate with its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Issuer({self.certificate.subject.rfc4514_string()}, key=<redacted>)"


def make_root(key: EllipticCurvePrivateKey, site: str, *, now: float, serial: int) -> x509.Certificate:
    """A site's self-signed root certificate.

    Args:
        key: P-256 key, kept offline.
        site: the site's id.
        now: epoch seconds.
        serial: random, 64 to 159 bits.
    """
    check_id(site, "site")
    name = _name(f"vedette root of {site}"[:64])
    builder = _builder(name, name, key.public_key(), now, ROOT_DAYS * 86_400.0, serial)
    return _authority(builder, key.public_key(), key.public_key(), path_length=1).sign(key, hashes.SHA256())


def make_intermediate(
    root: Issuer, public_key: EllipticCurvePublicKey, site: str, *, now: float, serial: int
) -> x509.Certificate:
    """The online certificate authority, issued by the root."""
    check_id(site, "site")
    name = _name(f"vedette online ca of {site}"[:64])
    builder = _builder(name, root.certificate.subject, public_key, now, INTERMEDIATE_DAYS * 86_400.0, serial)
    builder = _authority(builder, public_key, root.key.public_key(), path_length=0)
    return builder.sign(root.key, hashes.SHA256())


def make_leaf(
    issuer: Issuer,
    public_key: EllipticCurvePublicKey | Ed25519PublicKey,
    *,
    holder: str,
    role: CertificateRole,
    site: str,
    purpose: Purpose,
    now: float,
    serial: int,
    hosts: Sequence[str | IPv4Address | IPv6Address] = (),
    seconds: float = LEAF_DAYS * 86_400.0,
) -> x509.Certificate:
    """A node's certificate for one purpose.

    Args:
        issuer: the online certificate authority.
        public_key: P-256 for TLS, Ed25519 for signing.
        holder: the node's id.
        role: its role; one that is no role of many nodes has its own name as its only id.
        site: the site's id.
        purpose: what the key may do.
        now: epoch seconds.
        serial: random, 64 to 159 bits.
        hosts: names and addresses that a TLS server answers to.
        seconds: how long it lives from now.

    Raises:
        PeerError: invalid or reserved id, or a key or hosts that do not fit the purpose.
    """
    check_holder(holder, role)
    check_id(site, "site")
    wanted = Ed25519PublicKey if purpose is Purpose.SIGNING else EllipticCurvePublicKey
    if not isinstance(public_key, wanted):
        found = type(public_key).__name__
        raise PeerError(f"{holder}: found a {found} for {purpose}, expected {wanted.__name__}", reason="certificate")
    if bool(hosts) != (purpose is Purpose.TLS_SERVER):
        raise PeerError(
            f"{holder}: found {len(hosts)} host names for {purpose}, expected them for {Purpose.TLS_SERVER} only",
            reason="certificate",
        )
    names: list[x509.GeneralName] = [x509.DNSName(h) if isinstance(h, str) else x509.IPAddress(h) for h in hosts]
    names.append(x509.UniformResourceIdentifier(f"spiffe://{site}/{role}/{holder}"))
    builder = _builder(_name(holder), issuer.certificate.subject, public_key, now, seconds, serial)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([KEY_USES[purpose]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256())


def check_holder(holder: str, role: CertificateRole) -> None:
    """Check that an id fits a role.

    Raises:
        PeerError: invalid id, a device with a reserved id, or another role without its own.
    """
    check_id(holder)
    if role in MANY and holder in RESERVED_IDS:
        raise PeerError(f"id of a {role}: found {holder!r}, which is reserved for that role", reason="role")
    if holder.startswith(TOKEN_ID_PREFIX) != (role is CertificateRole.BOOTSTRAP):
        raise PeerError(
            f"id of a {role}: found {holder!r}, expected ids that begin with {TOKEN_ID_PREFIX!r} for tokens only",
            reason="role",
        )
    if role not in MANY and holder != role.value:
        raise PeerError(f"id of the {role}: found {holder!r}, expected {role.value!r}", reason="role")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: EllipticCurvePublicKey | Ed25519PublicKey,
    now: float,
    seconds: float,
    serial: int,
) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(int(now) - BACKDATED_S, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(seconds=int(seconds) + BACKDATED_S))
    )


def _authority(
    builder: x509.CertificateBuilder,
    own: EllipticCurvePublicKey,
    issuer: EllipticCurvePublicKey,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """The only key usage that authorities, or else leaves, have."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
