"""A node's bundle on disk: its certificates and keys, as the certificate authority hands them out.

::

    ca.crt        root and intermediate                 0644
    tls.crt/.key  leaf and intermediate, P-256          0644 / 0600
    signing.crt/.key  leaf and intermediate, Ed25519    0644 / 0600   (not the broker's)
    aggregator.crt    the aggregator's signing chain    0644          (devices and analytics)
    crl.pem       newest revocation list when it was made  0644
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from vedette_core.crypto.certificate_chain import der, load_certificates, verify_chain
from vedette_core.crypto.certificates import CertificateRole, Identity, Purpose
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_core.runtime.bundle_swap import finish_swap
from vedette_schemas.errors import ConfigError, PeerError

FILE_BYTES_MAX: Final = 64 * 1024
"""No file of a bundle is larger; a wrong path does not fill the memory."""
AGGREGATOR_ID: Final = CertificateRole.AGGREGATOR.value


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where a node's certificates and keys are.

    Args:
        directory: the bundle's directory.
    """

    directory: Path

    @property
    def ca(self) -> Path:
        """Root and intermediate certificate."""
        return self.directory / "ca.crt"

    @property
    def tls_certificate(self) -> Path:
        """TLS leaf and intermediate."""
        return self.directory / "tls.crt"

    @property
    def tls_key(self) -> Path:
        """Key of the TLS leaf."""
        return self.directory / "tls.key"

    @property
    def signing_certificate(self) -> Path:
        """Signing leaf and intermediate."""
        return self.directory / "signing.crt"

    @property
    def signing_key(self) -> Path:
        """Key of the signing leaf."""
        return self.directory / "signing.key"

    @property
    def aggregator_certificate(self) -> Path:
        """The site's aggregator's signing leaf and intermediate."""
        return self.directory / "aggregator.crt"

    @property
    def crl(self) -> Path:
        """The site's revocation list: brokers refuse whoever is on it."""
        return self.directory / "crl.pem"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this node is, verified, with what it needs to prove it.

    Attributes:
        id: own id, also the MQTT client id.
        role: own role.
        site: the site's id.
        bundle: where the files are.
        signer: signs envelopes.
        certificate: DER of the signing leaf, as a check-in carries it.
        intermediate: DER of its issuer.
        tls_not_before: epoch seconds at which the TLS leaf begins.
        tls_not_after: epoch seconds at which the TLS leaf ends.
        serials: serial numbers of both leaves.
    """

    id: str
    role: CertificateRole
    site: str
    bundle: Bundle
    signer: Ed25519Signer
    certificate: bytes = field(repr=False)
    intermediate: bytes = field(repr=False)
    tls_not_after: float
    tls_not_before: float = 0.0
    serials: frozenset[int] = frozenset()


def load_node(directory: Path, now: float) -> NodeIdentity:
    """Read and verify a node's bundle.

    Args:
        directory: the bundle's directory.
        now: epoch seconds.

    Raises:
        ConfigError: a file is missing, unreadable, readable by others, not what it should be, or expired.
    """
    finish_swap(directory)
    bundle = Bundle(directory)
    tls = load_tls_identity(bundle, now, Purpose.TLS_CLIENT)
    signing = _verified(bundle.signing_certificate, bundle, now, Purpose.SIGNING)
    if (tls.id, tls.role, tls.site) != (signing.id, signing.role, signing.site):
        raise ConfigError(
            f"{directory}: found a TLS certificate of {tls.id!r} and a signing certificate of {signing.id!r}, "
            "expected both of one node; issue the bundle again"
        )
    key = read_private_key(bundle.signing_key, "issue the bundle again")
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != signing.public_key:
        raise ConfigError(
            f"{bundle.signing_key}: found a key that is not that of {bundle.signing_certificate.name}; "
            "issue the bundle again"
        )
    leaf, intermediate, *_ = _certificates(bundle.signing_certificate)
    return NodeIdentity(
        id=tls.id,
        role=tls.role,
        site=tls.site,
        bundle=bundle,
        signer=Ed25519Signer(key),
        certificate=der(leaf),
        intermediate=der(intermediate),
        tls_not_after=tls.not_after,
        tls_not_before=_certificates(bundle.tls_certificate)[0].not_valid_before_utc.timestamp(),
        serials=frozenset({tls.serial, signing.serial}),
    )


def load_tls_identity(bundle: Bundle, now: float, purpose: Purpose) -> Identity:
    """Read and verify a bundle's TLS leaf, and check its key file's permissions.

    Raises:
        ConfigError: as for `load_node`.
    """
    identity = _verified(bundle.tls_certificate, bundle, now, purpose)
    read_secret(bundle.tls_key)
    return identity


def key_ring(bundle: Bundle, site: str) -> KeyRing:
    """A key ring that trusts the bundle's root and knows nobody yet.

    Raises:
        ConfigError: ``ca.crt`` is missing or not a root and its intermediates.
    """
    root, intermediates = load_authorities(bundle)
    return KeyRing(root, site, intermediates)


def learn_aggregator(ring: KeyRing, bundle: Bundle, now: float) -> Identity:
    """Teach a ring the signing key of the site's aggregator from the bundle's ``aggregator.crt``.

    Raises:
        ConfigError: missing, expired, or not the aggregator's.
    """
    path = bundle.aggregator_certificate
    if not path.exists():
        raise ConfigError(
            f"{path}: not found; issue the aggregator's bundle first and then this node's again, "
            "so that it knows whose releases to trust"
        )
    try:
        return ring.learn(read_file(path), now, sender=AGGREGATOR_ID, role=CertificateRole.AGGREGATOR)
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}") from fault


def load_authorities(bundle: Bundle) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    """The root and the intermediates of ``ca.crt``.

    Raises:
        ConfigError: missing, or not exactly one self-signed certificate among them.
    """
    found = _certificates(bundle.ca)
    roots = [c for c in found if c.issuer == c.subject]
    if len(roots) != 1:
        raise ConfigError(f"{bundle.ca}: found {len(roots)} root certificates, expected one; issue the bundle again")
    return roots[0], tuple(c for c in found if c is not roots[0])


def client_context(bundle: Bundle) -> ssl.SSLContext:
    """TLS for a client: the site's root only, own certificate, the server's name checked, TLS 1.2 or newer.

    Raises:
        ConfigError: the files do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _fill(context, bundle)


def reload_context(context: ssl.SSLContext, bundle: Bundle) -> None:
    """Load a renewed bundle into a context that is in use, between two connections.

    Raises:
        ConfigError: the files do not fit together; the context may go on with what it had.
    """
    _load(context, bundle)


def server_context(bundle: Bundle, authorities: Sequence[x509.Certificate] = ()) -> ssl.SSLContext:
    """TLS for a server: client certificates of the site's root are *required*, TLS 1.2 or newer.

    Args:
        bundle: the server's bundle.
        authorities: the root and the intermediates, if not what ``ca.crt`` holds at this moment.

    Raises:
        ConfigError: the files do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _fill(context, bundle, authorities)


def read_file(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """Read a small file.

    Raises:
        ConfigError: missing, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found, expected a file of a node's bundle; issue one with `vedette ca issue`"
        ) from None
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}); check its owner and mode") from fault
    if len(data) > bytes_max:
        raise ConfigError(f"{path}: found more than {bytes_max} bytes, expected a certificate or key")
    return data


def read_secret(path: Path) -> bytes:
    """Read a private key's file.

    Raises:
        ConfigError: as for `read_file`, or others may read it.
    """
    data = read_file(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as fault:  # a bundle is swapped by two renames
        raise ConfigError(f"{path}: gone while it was read ({fault.strerror}); try again") from fault
    if mode & 0o077:
        raise ConfigError(f"{path}: found mode {mode:04o}, expected 0600: others may read the key; chmod 600 it")
    return data


def read_private_key(path: Path, todo: str = "") -> PrivateKeyTypes:
    """A private key from its file.

    Args:
        path: PEM (PKCS #8), without a passphrase.
        todo: what a person should do about a file that holds something else.

    Raises:
        ConfigError: as for `read_secret`, or it is no such key.
    """
    data = read_secret(path)
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"{path}: found something that is no unencrypted PEM key{todo and f'; {todo}'}") from fault


def read_signing_key(path: Path, todo: str = "") -> Ed25519PrivateKey:
    """An Ed25519 private key from its file.

    Raises:
        ConfigError: as for `read_private_key`, or it is of another kind.
    """
    key = read_private_key(path, todo)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: found a {type(key).__name__}, expected an Ed25519 key{todo and f'; {todo}'}")
    return key


def _fill(context: ssl.SSLContext, bundle: Bundle, authorities: Sequence[x509.Certificate] = ()) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return _load(context, bundle, authorities)


def _load(context: ssl.SSLContext, bundle: Bundle, authorities: Sequence[x509.Certificate] = ()) -> ssl.SSLContext:
    for path in (bundle.tls_certificate,) if authorities else (bundle.ca, bundle.tls_certificate):
        read_file(path)
    read_secret(bundle.tls_key)
    try:
        if authorities:
            context.load_verify_locations(cadata=b"".join(map(der, authorities)))
        else:
            context.load_verify_locations(bundle.ca)
        context.load_cert_chain(bundle.tls_certificate, bundle.tls_key)
    except (ssl.SSLError, OSError) as fault:
        raise ConfigError(
            f"{bundle.directory}: found certificate and key that TLS refuses ({fault}); issue the bundle again"
        ) from fault
    return context


def _verified(path: Path, bundle: Bundle, now: float, purpose: Purpose) -> Identity:
    leaf, *rest = _certificates(path)
    root, intermediates = load_authorities(bundle)
    try:
        return verify_chain(leaf, [*rest, *intermediates][:4], root, now, purpose=purpose)
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}") from fault


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    data = read_file(path)
    try:
        found = load_certificates(data, path.name)
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}; issue the bundle again") from fault
    if len(found) < 2:
        raise ConfigError(f"{path}: found {len(found)} certificate, expected two or more; issue the bundle again")
    return found
