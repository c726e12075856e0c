"""Certificates with which the servers of a NATS cluster know each other.

NATS wants them to be good for both ends of a connection, which none of the site's leaves is, and must not be: so a
cluster gets an authority of its own, whose key signs one leaf a server and is then gone. Nothing else can ever
join; a new server, or the end of the year, means rendering all of them again.

Source: RFC 5280 §4.2.1.12; NATS requires and verifies both ends of a route.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vedette_broker.nats import ClusterNode
from vedette_schemas.errors import ConfigError

DAYS: Final = 398
_BACKDATED_S: Final = 300


@dataclass(frozen=True, slots=True)
class RouteBundle:
    """One server's files for its routes, in PEM.

    Attributes:
        authority: the cluster's authority.
        certificate: the server's leaf.
        key: its key.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def make_route_bundles(site: str, nodes: tuple[ClusterNode, ...], now: float) -> dict[str, RouteBundle]:
    """Make the routes' certificates of a cluster.

    Args:
        site: the site's id.
        nodes: its servers.
        now: epoch seconds.

    Returns:
        Name of each server to its files.

    Raises:
        ConfigError: a host is neither a DNS name nor an address.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{site} NATS routes")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    made = {}
    for node in nodes:
        key = ec.generate_private_key(ec.SECP256R1())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node.name)]), authority_name, key.public_key(), now
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName([_host(node.host)]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        made[node.name] = RouteBundle(
            authority.public_bytes(Encoding.PEM),
            leaf.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
    return made


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float
) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(int(now) - _BACKDATED_S, UTC)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), begin, begin + timedelta(days=DAYS)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if not text or len(text) > 253 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text):
        raise ConfigError(f"host: found {text[:80]!r}, expected a DNS name or an IP address")
    return x509.DNSName(text)
