"""The site's certificate authority: an offline root, an online intermediate, and bundles for the nodes.

Here are its beginning and the bundles whose keys it makes itself. Nodes that keep their keys to themselves are in
`ca_enrolment`, what is taken back in `ca_revocation`, how another intermediate takes over in `ca_authority`, the
files in `ca_store`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from vedette_broker.ca_revocation import LIST_FILE, publish_list, refresh_due, status_of
from vedette_broker.ca_store import (
    Index,
    Issued,
    Leaf,
    PrivateKey,
    load_chain,
    load_issuer,
    locked,
    pem,
    private_pem,
    read_index,
    swap,
    write_index,
    write_new,
    writing,
)
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import (
    MANY,
    CertificateRole,
    Issuer,
    Purpose,
    check_holder,
    make_intermediate,
    make_leaf,
    make_root,
)
from vedette_core.crypto.published_list import LIST_FILE_BYTES_MAX
from vedette_core.runtime.durable import replace_file, synchronise_directory
from vedette_core.runtime.identity import Bundle, read_file, read_secret
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import check_id

__all__ = ["BROKER_HOSTS", "Issued", "due", "init", "issue", "list_issued", "record", "renew", "site_of"]

BROKER_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
"""What the broker's certificate answers to unless told otherwise: loopback, where the embedded broker is."""


def init(directory: Path, site: str, *, now: float) -> Path:
    """Make a certificate authority.

    Args:
        directory: where; must not exist, or be empty.
        site: the site's id.
        now: epoch seconds.

    Returns:
        The root's certificate.

    Raises:
        ConfigError: the directory is in use or cannot be written, or the site's id is invalid.
    """
    try:
        check_id(site, "site")
    except PeerError as fault:
        raise ConfigError(str(fault)) from fault
    with writing(directory):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(
                f"{directory}: found something there, expected a new or empty directory for the certificate authority"
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        root_key, online_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = make_root(root_key, site, now=now, serial=x509.random_serial_number())
        online = make_intermediate(
            Issuer(root, root_key), online_key.public_key(), site, now=now, serial=x509.random_serial_number()
        )
        for name in ("root", "online", "bundles", "tickets"):
            (directory / name).mkdir(mode=0o700)
        write_new(directory / "root" / "root.key", private_pem(root_key), 0o600)
        write_new(directory / "root" / "root.crt", pem(root), 0o644)
        write_new(directory / "online" / "ca.key", private_pem(online_key), 0o600)
        write_new(directory / "online" / "ca.crt", pem(root, online), 0o644)
        # The index comes last: without it the directory is not yet a certificate authority.
        write_index(directory, Index(site))
    return directory / "root" / "root.crt"


def issue(
    directory: Path,
    holder: str,
    role: CertificateRole,
    *,
    now: float,
    hosts: Sequence[str] = (),
    replace: bool = False,
) -> Path:
    """Make a node's bundle: fresh keys and certificates.

    Args:
        directory: the certificate authority's.
        holder: the node's id; roles of which there is one have their own name as their only id.
        role: the node's role.
        now: epoch seconds.
        hosts: for the broker, the names and addresses that clients call it by; `BROKER_HOSTS` if none are given.
        replace: whether a bundle that was issued before is replaced.

    Returns:
        The bundle's directory.

    Raises:
        ConfigError: no certificate authority there, unreadable, wrong permissions, or an invalid id or host.
        RefusedError: the id is reserved, or was issued before.
    """
    _check(holder, role, hosts)
    with writing(directory), locked(directory):
        index = read_index(directory)
        bundle = directory / "bundles" / holder
        if not replace and (holder in index.issued or bundle.exists()):
            raise RefusedError(
                f"{holder}: found an earlier bundle in {directory}, expected a new id; ask for its replacement if the "
                "node lost its keys or the certificates ran out",
                rule="already-issued",
            )
        _make_bundle(directory, index, holder, role, now, hosts)
    return bundle


def renew(directory: Path, holder: str, *, now: float) -> Path:
    """Replace the certificates of a bundle that lies here: a fresh TLS key, and the signing key that it has.

    Whoever runs from the bundle goes on signing with the key that others know, and takes the new TLS key when it sees
    the new files. A node that runs from a copy elsewhere may still renew itself from what it has.

    Args:
        directory: the certificate authority's.
        holder: the node's id.
        now: epoch seconds.

    Returns:
        The bundle's directory.

    Raises:
        ConfigError: no certificate authority there, unreadable, wrong permissions, or no such bundle.
        RefusedError: its certificates are revoked: `issue` a replacement, with fresh keys; or the bundle is an old
            copy (``old-copy``): the node has newer certificates, and maybe other keys.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        bundle, line = Bundle(directory / "bundles" / holder), index.issued.get(holder)
        if line is None or not bundle.directory.is_dir():
            raise ConfigError(
                f"{holder}: found no bundle of it in {directory}, expected one that was issued here; a node that keeps "
                "its keys to itself renews itself"
            )
        if any(serial in index.revoked for serial in line.serials):
            raise RefusedError(
                f"{holder}: found its certificates revoked, expected them in force; issue a replacement with fresh "
                f"keys if it is to come back: `vedette ca issue {holder} --replace`",
                rule="revoked",
            )
        _check_newest(bundle, line)
        signing = None
        if bundle.signing_key.exists():
            try:
                key = load_pem_private_key(read_secret(bundle.signing_key), password=None)
            except (ValueError, TypeError) as fault:
                raise ConfigError(
                    f"{bundle.signing_key}: found something that is no key ({fault}); restore it, or issue a "
                    f"replacement: `vedette ca issue {holder} --replace`"
                ) from fault
            if not isinstance(key, ed25519.Ed25519PrivateKey):
                raise ConfigError(f"{bundle.signing_key}: found a {type(key).__name__}, expected an Ed25519 key")
            signing = key
        _make_bundle(directory, index, holder, CertificateRole(line.role), now, line.hosts, signing, line)
    return bundle.directory


def due(directory: Path, *, now: float) -> tuple[Issued, ...]:
    """Every id whose bundle lies here, is not revoked, and is past half of its life; sorted.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    index = read_index(directory)
    return tuple(
        line
        for _, line in sorted(index.issued.items())
        if now >= (line.not_before + line.not_after) / 2
        and (directory / "bundles" / line.id).is_dir()
        and status_of(line, index, now) != "revoked"
    )


def list_issued(directory: Path) -> tuple[Issued, ...]:
    """Every id that has certificates, sorted.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    issued = read_index(directory).issued
    return tuple(issued[key] for key in sorted(issued))


def site_of(directory: Path) -> str:
    """The site that a certificate authority serves.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    return read_index(directory).site


def record(index: Index, line: Issued, now: float, *, here: bool = False) -> None:
    """Put a line into the index; what it replaces and has not ended is remembered, so that it can be revoked.

    Args:
        index: the index.
        line: what was issued.
        now: epoch seconds.
        here: whether a bundle was renewed that lies here, which its holder may not know of.
    """
    old = index.issued.get(line.id)
    if old is not None:
        earlier = [*old.earlier, *(Leaf(serial, old.not_after, here) for serial in old.serials)]
        line = dataclasses.replace(line, earlier=tuple(leaf for leaf in earlier if leaf.not_after > now))
    index.issued[line.id] = line
    index.forget_ended(now)


def _make_bundle(
    directory: Path,
    index: Index,
    holder: str,
    role: CertificateRole,
    now: float,
    hosts: Sequence[str],
    signing: ed25519.Ed25519PrivateKey | None = None,
    before: Issued | None = None,
) -> None:
    issuer, _ = load_issuer(directory, now)
    if refresh_due(index, directory, now):
        # Before the bundle: it gets a copy of the newest list.
        publish_list(directory, index, now)
    server = role is CertificateRole.BROKER
    hosts = tuple(hosts or BROKER_HOSTS) if server else ()
    root, authorities = load_chain(directory)
    anchors = (root, *authorities)
    fresh = directory / "bundles" / f".{holder}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    leaves = _write_bundle(Bundle(fresh), issuer, anchors, holder, role, index.site, now, hosts, signing)
    write_new(Bundle(fresh).crl, read_file(directory / LIST_FILE, LIST_FILE_BYTES_MAX), 0o644)
    if role in MANY or role is CertificateRole.ANALYTICS:
        _copy_aggregator(directory, fresh)
    synchronise_directory(fresh)
    line = Issued(
        id=holder,
        role=role.value,
        serials=tuple(f"{leaf.serial_number:x}" for leaf in leaves),
        not_before=now,
        not_after=min(leaf.not_valid_after_utc.timestamp() for leaf in leaves),
        hosts=hosts,
        serial=before.serial if before is not None else "",
    )
    record(index, line, now, here=before is not None)
    # Recorded before it exists: a certificate that nobody knows of would be worse than a line without a bundle.
    write_index(directory, index)
    if role is CertificateRole.AGGREGATOR:
        replace_file(directory / "aggregator.crt", read_file(Bundle(fresh).signing_certificate), 0o644)
    swap(fresh, directory / "bundles" / holder)


def _check_newest(bundle: Bundle, line: Issued) -> None:
    """Else keys that a node does not have any more, and lost for a reason, would count again."""
    try:
        leaf = load_certificates(read_file(bundle.tls_certificate), bundle.tls_certificate.name)[0]
    except PeerError as fault:
        raise ConfigError(
            f"{bundle.tls_certificate}: {fault}; restore it, or issue a replacement: `vedette ca issue {line.id} "
            "--replace`"
        ) from fault
    # What is newer than the index, and not in it, is the newest all the same: the index came from a backup.
    if f"{leaf.serial_number:x}" not in line.renewable and leaf.not_valid_after_utc.timestamp() < line.not_after:
        raise RefusedError(
            f"{line.id}: found an old copy of its bundle in {bundle.directory}, expected its newest certificates: the "
            "node renewed itself or joined again since; remove the copy",
            rule="old-copy",
        )


def _check(holder: str, role: CertificateRole, hosts: Sequence[str]) -> None:
    if role is CertificateRole.BOOTSTRAP:
        raise RefusedError(
            f"{holder}: found role {role}, expected tokens to be made by `vedette ca token`", rule="role"
        )
    try:
        check_holder(holder, role)
    except PeerError as fault:
        if fault.reason == "role":
            raise RefusedError(str(fault), rule="reserved-id") from fault
        raise ConfigError(str(fault)) from fault
    if hosts and role is not CertificateRole.BROKER:
        raise ConfigError(f"{holder}: found host names for a {role}, expected them for the broker only")


def _write_bundle(
    bundle: Bundle,
    issuer: Issuer,
    anchors: Sequence[x509.Certificate],
    holder: str,
    role: CertificateRole,
    site: str,
    now: float,
    hosts: Sequence[str],
    signing: ed25519.Ed25519PrivateKey | None,
) -> list[x509.Certificate]:
    server = role is CertificateRole.BROKER
    write_new(bundle.ca, pem(*anchors), 0o644)
    wanted: list[tuple[Purpose, PrivateKey, Path, Path]] = [
        (
            Purpose.TLS_SERVER if server else Purpose.TLS_CLIENT,
            ec.generate_private_key(ec.SECP256R1()),
            bundle.tls_certificate,
            bundle.tls_key,
        )
    ]
    if not server:
        key = signing if signing is not None else ed25519.Ed25519PrivateKey.generate()
        wanted.append((Purpose.SIGNING, key, bundle.signing_certificate, bundle.signing_key))
    leaves = []
    for purpose, private, certificate_path, key_path in wanted:
        leaf = make_leaf(
            issuer,
            private.public_key(),
            holder=holder,
            role=role,
            site=site,
            purpose=purpose,
            now=now,
            serial=x509.random_serial_number(),
            hosts=[_host(h) for h in hosts],
        )
        write_new(key_path, private_pem(private), 0o600)
        write_new(certificate_path, pem(leaf, issuer.certificate), 0o644)
        leaves.append(leaf)
    return leaves


def _copy_aggregator(directory: Path, fresh: Path) -> None:
    source = directory / "aggregator.crt"
    if source.exists():
        write_new(Bundle(fresh).aggregator_certificate, read_file(source), 0o644)


def _host(text: str) -> str | IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        pass
    if not text or len(text) > 253 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text):
        raise ConfigError(f"host: found {text[:80]!r}, expected a DNS name or an IP address")
    return text
