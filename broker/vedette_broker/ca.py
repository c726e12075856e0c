"""The site's certificate authority: an offline root, an online intermediate, and bundles for the nodes.

State is files and one JSON index, each replaced by rename, so that a crash leaves the old state or the new one::

    root/root.crt root.key      needed for `init` only: move the directory to a medium that stays offline
    online/ca.crt ca.key        issues leaves
    index.json                  what was issued
    bundles/{id}/               what the node gets (see `vedette_core.runtime.identity`)
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
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
from vedette_core.runtime.identity import Bundle, read_file, read_secret
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import check_id

INDEX_VERSION: Final = 1
BROKER_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
"""What the broker's certificate answers to unless told otherwise: loopback, where the embedded broker is."""

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A line of the index: the newest bundle of one id.

    Attributes:
        id: the node's id.
        role: its role.
        serials: serial numbers of its leaves, in hexadecimal.
        not_before: epoch seconds at which they were issued.
        not_after: epoch seconds at which the first of them ends.
    """

    id: str
    role: str
    serials: tuple[str, ...]
    not_before: float
    not_after: float


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
    with _writing(directory):
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
        for name in ("root", "online", "bundles"):
            (directory / name).mkdir(mode=0o700)
        _write(directory / "root" / "root.key", _private_pem(root_key), 0o600)
        _write(directory / "root" / "root.crt", _pem(root), 0o644)
        _write(directory / "online" / "ca.key", _private_pem(online_key), 0o600)
        _write(directory / "online" / "ca.crt", _pem(root, online), 0o644)
        # The index comes last: without it the directory is not yet a certificate authority.
        _write_index(directory, site, {})
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
    with _writing(directory), _locked(directory):
        site, issued = _read_index(directory)
        bundle = directory / "bundles" / holder
        if not replace and (holder in issued or bundle.exists()):
            raise RefusedError(
                f"{holder}: found an earlier bundle in {directory}, expected a new id; ask for its replacement if the "
                "node lost its keys or the certificates ran out",
                rule="already-issued",
            )
        issuer, root = _load_issuer(directory)
        if now >= issuer.certificate.not_valid_after_utc.timestamp():
            ended = f"{issuer.certificate.not_valid_after_utc:%Y-%m-%d}"
            raise ConfigError(f"{directory}: found an online certificate that ended on {ended}; make a new authority")
        fresh = directory / "bundles" / f".{holder}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        leaves = _write_bundle(Bundle(fresh), issuer, root, holder, role, site, now, hosts)
        if role in (*MANY, CertificateRole.ANALYTICS):
            _copy_aggregator(directory, fresh)
        _sync(fresh)
        issued[holder] = Issued(
            id=holder,
            role=role.value,
            serials=tuple(f"{leaf.serial_number:x}" for leaf in leaves),
            not_before=now,
            not_after=min(leaf.not_valid_after_utc.timestamp() for leaf in leaves),
        )
        # Recorded before it exists: a certificate that nobody knows of would be worse than a line without a bundle.
        _write_index(directory, site, issued)
        _swap(fresh, bundle)
    return bundle


def list_issued(directory: Path) -> tuple[Issued, ...]:
    """Every id that has a bundle, sorted.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    _, issued = _read_index(directory)
    return tuple(issued[key] for key in sorted(issued))


def site_of(directory: Path) -> str:
    """The site that a certificate authority serves.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    return _read_index(directory)[0]


def _check(holder: str, role: CertificateRole, hosts: Sequence[str]) -> None:
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
    root: x509.Certificate,
    holder: str,
    role: CertificateRole,
    site: str,
    now: float,
    hosts: Sequence[str],
) -> list[x509.Certificate]:
    server = role is CertificateRole.BROKER
    _write(bundle.ca, _pem(root, issuer.certificate), 0o644)
    wanted: list[tuple[Purpose, _PrivateKey, Path, Path]] = [
        (
            Purpose.TLS_SERVER if server else Purpose.TLS_CLIENT,
            ec.generate_private_key(ec.SECP256R1()),
            bundle.tls_certificate,
            bundle.tls_key,
        )
    ]
    if not server:
        key = ed25519.Ed25519PrivateKey.generate()
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
            hosts=[_host(h) for h in (hosts or BROKER_HOSTS)] if server else (),
        )
        _write(key_path, _private_pem(private), 0o600)
        _write(certificate_path, _pem(leaf, issuer.certificate), 0o644)
        leaves.append(leaf)
    return leaves


def _copy_aggregator(directory: Path, fresh: Path) -> None:
    source = Bundle(directory / "bundles" / CertificateRole.AGGREGATOR.value).signing_certificate
    if source.exists():
        _write(Bundle(fresh).aggregator_certificate, read_file(source), 0o644)


def _host(text: str) -> str | IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        pass
    if not text or len(text) > 253 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text):
        raise ConfigError(f"host: found {text[:80]!r}, expected a DNS name or an IP address")
    return text


def _load_issuer(directory: Path) -> tuple[Issuer, x509.Certificate]:
    path = directory / "online" / "ca.key"
    data = read_secret(path)
    try:
        root, online = load_certificates(read_file(directory / "online" / "ca.crt"), "online certificate")
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, PeerError) as fault:
        raise ConfigError(f"{path.parent}: found files that are not the authority's ({fault}); restore them") from fault
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != online.public_key():
        raise ConfigError(f"{path}: found a key that is not that of ca.crt beside it; restore it")
    return Issuer(online, key), root


def _read_index(directory: Path) -> tuple[str, dict[str, Issued]]:
    path = directory / "index.json"
    if not path.exists():
        what = "a directory without index.json" if directory.is_dir() else "no directory"
        raise ConfigError(
            f"{directory}: found {what}, expected a certificate authority; make one with `vedette ca init`"
        )
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{directory}: found mode {mode:04o}, expected 0700: others may read the keys; chmod 700 it")
    try:
        plain: dict[str, Any] = json.loads(path.read_bytes())
        if plain["version"] != INDEX_VERSION:
            raise ConfigError(f"{path}: found version {plain['version']!r}, expected {INDEX_VERSION}; update vedette")
        lines = [Issued(**{**line, "serials": tuple(line["serials"])}) for line in plain["issued"]]
        return check_id(plain["site"], "site"), {line.id: line for line in lines}
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}); check its owner and mode") from fault
    except (ValueError, KeyError, TypeError, PeerError) as fault:
        raise ConfigError(
            f"{path}: found something that is not the index ({fault}); restore it from a backup"
        ) from fault


def _write_index(directory: Path, site: str, issued: dict[str, Issued]) -> None:
    lines = [asdict(issued[key]) for key in sorted(issued)]
    text = json.dumps({"version": INDEX_VERSION, "site": site, "issued": lines}, indent=1)
    fresh = directory / ".index.json.new"
    fresh.unlink(missing_ok=True)
    _write(fresh, text.encode() + b"\n", 0o600)
    fresh.replace(directory / "index.json")
    _sync(directory)


def _swap(fresh: Path, bundle: Path) -> None:
    old = bundle.with_name(f".{bundle.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if bundle.exists():
        bundle.rename(old)
    fresh.rename(bundle)
    _sync(bundle.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turns what the file system refuses into something an operator can act on."""
    try:
        yield
    except OSError as fault:
        where = fault.filename or directory
        raise ConfigError(
            f"{where}: cannot be written ({fault.strerror}); check its owner, mode and free space"
        ) from fault


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time; a second one waits."""
    if not (directory / "index.json").exists():
        _read_index(directory)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, on disk when this returns; its mode never passes through anything wider."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def _private_pem(key: _PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
