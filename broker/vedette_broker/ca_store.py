"""The certificate authority's files: one index of everything that was issued, invited and revoked; keys; one writer.

The index is one JSON file, replaced by rename, so that a crash leaves the old state or the new one::

    root/root.crt root.key      needed for `init` only: move the directory to a medium that stays offline
    online/ca.crt               the root and the online authorities in force, the newest first
    online/ca.key               issues leaves; the authority of `ca.crt` whose key it is
    online/next.key             of an authority that is asked for, or known and does not issue yet (see `ca_authority`)
    online/earlier.key          of the one before, until the last of its leaves has ended
    index.json                  what was issued, tokens, revocations, and the number of the newest list
    crl.pem                     the newest revocation list
    aggregator.crt              the aggregator's signing chain, for the bundles of nodes
    bundles/{id}/               what a node gets whose keys were made here (see `vedette_core.runtime.identity`)
    tickets/{token}.pem         bootstrap certificate and chain of a token: nothing secret
    answers/{request}.pem       certificates that answered the newest request of an id, to be given again
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import CertificateRole, Issuer
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime.durable import replace_file, synchronise_directory
from vedette_core.runtime.identity import read_file, read_private_key
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import check_id

INDEX_VERSION: Final = 4
INDEX_VERSIONS_READ: Final = frozenset({1, 2, 3, 4})
"""Version 1 knew no tokens and no revocations, version 2 not who replaced a certificate, version 3 no
second authority."""

ISSUING_KEY: Final = "ca.key"
NEXT_KEY: Final = "next.key"
EARLIER_KEY: Final = "earlier.key"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf that was issued.

    Attributes:
        serial: its serial number, in hexadecimal.
        not_after: epoch seconds at which it ends.
        replaced_here: whether `vedette ca renew` replaced it, and not its holder.
    """

    serial: str
    not_after: float
    replaced_here: bool = False


@dataclass(frozen=True, slots=True)
class Issued:
    """A line of the index: the newest certificates of one id.

    Attributes:
        id: the node's id.
        role: its role.
        serials: serial numbers of its newest leaves, in hexadecimal.
        not_before: epoch seconds at which they were issued.
        not_after: epoch seconds at which the first of them ends.
        hosts: what the broker's certificate answers to; empty for everybody else.
        earlier: leaves that these replaced and that have not ended, in the order in which they were issued.
        request: digest of the keys that they were issued for, so that the same request gets the same answer; empty for
            a bundle whose keys were made here.
        serial: hardware serial number that the node claimed when it enrolled.
    """

    id: str
    role: str
    serials: tuple[str, ...]
    not_before: float
    not_after: float
    hosts: tuple[str, ...] = ()
    earlier: tuple[Leaf, ...] = ()
    request: str = ""
    serial: str = ""

    @property
    def renewable(self) -> frozenset[str]:
        """Serial numbers of the leaves for which newer ones may be asked.

        The newest, and those before them that were replaced here since their holder asked last: whoever runs from a
        copy of them has had no answer yet.
        """
        copied = takewhile(lambda leaf: leaf.replaced_here, reversed(self.earlier))
        return frozenset((*self.serials, *(leaf.serial for leaf in copied)))


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation.

    Attributes:
        id: public name of the token.
        digest: SHA-256 of its secret, in hexadecimal.
        key: public Ed25519 key that signs its request, in hexadecimal.
        not_after: epoch seconds at which it ends.
        role: what the node will be.
        holder: the id that the node will get; empty: the authority makes one.
        serial: the only hardware that may use it; empty: any.
        bootstrap: serial number of its bootstrap certificate, in hexadecimal.
        used_for: digest of the keys that it was used for; empty: not used.
        used_by: id of the node that used it.
    """

    id: str
    digest: str
    key: str
    not_after: float
    role: str
    holder: str = ""
    serial: str = ""
    bootstrap: str = ""
    used_for: str = ""
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Revoked:
    """A leaf that is revoked, and has not ended or is the newest of its holder.

    Attributes:
        serial: its serial number, in hexadecimal.
        id: its holder's.
        at: epoch seconds at which it was revoked.
        reason: why.
        not_after: epoch seconds at which it ends.
    """

    serial: str
    id: str
    at: float
    reason: RevocationReason
    not_after: float


@dataclass(slots=True)
class Index:
    """Everything that the authority remembers.

    Attributes:
        site: the site's id.
        issued: newest certificates, by id.
        tokens: invitations that have not ended, by their id.
        revoked: revoked leaves that have not ended, or that are the newest of their holder, by serial number.
        list_number: number of the newest revocation list; 0 before the first.
        retiring: epoch seconds at which the last leaf of an authority ends that issues no more, by the authority's
            serial number in hexadecimal.
    """

    site: str
    issued: dict[str, Issued] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    revoked: dict[str, Revoked] = field(default_factory=dict)
    list_number: int = 0
    retiring: dict[str, float] = field(default_factory=dict)

    def forget_ended(self, now: float) -> None:
        """Drop tokens and revocations that have ended; nothing believes their certificates any more.

        A revocation of an id's newest certificates stays: else the bundle with the revoked keys could be renewed.
        """
        newest = {serial for line in self.issued.values() for serial in line.serials}
        self.tokens = {k: t for k, t in self.tokens.items() if t.not_after > now}
        self.revoked = {k: r for k, r in self.revoked.items() if r.not_after > now or k in newest}


def read_index(directory: Path) -> Index:
    """What the authority remembers.

    Raises:
        ConfigError: no certificate authority there, unreadable, or others may read it.
    """
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
        if plain["version"] not in INDEX_VERSIONS_READ:
            raise ConfigError(f"{path}: found version {plain['version']!r}, expected {INDEX_VERSION}; update vedette")
        lines = [_issued(line) for line in plain["issued"]]
        tokens = [Token(**line) for line in plain.get("tokens", ())]
        revoked = [_revoked(line) for line in plain.get("revoked", ())]
        retiring = plain.get("retiring", {})
        for serial, at in retiring.items():
            _check(serial, at)
        return Index(
            check_id(plain["site"], "site"),
            {line.id: line for line in lines},
            {token.id: token for token in tokens},
            {entry.serial: entry for entry in revoked},
            int(plain.get("list_number", 0)),
            {serial: float(at) for serial, at in retiring.items()},
        )
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}); check its owner and mode") from fault
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, PeerError) as fault:
        raise ConfigError(
            f"{path}: found something that is not the index ({fault}); restore it from a backup"
        ) from fault


def write_index(directory: Path, index: Index) -> None:
    """Replace the index, atomically."""
    plain = {
        "version": INDEX_VERSION,
        "site": index.site,
        "list_number": index.list_number,
        "retiring": index.retiring,
        "issued": [asdict(index.issued[key]) for key in sorted(index.issued)],
        "tokens": [asdict(index.tokens[key]) for key in sorted(index.tokens)],
        "revoked": [asdict(index.revoked[key]) for key in sorted(index.revoked)],
    }
    replace_file(directory / "index.json", json.dumps(plain, indent=1).encode() + b"\n", 0o600)


def load_issuer(directory: Path, now: float) -> tuple[Issuer, x509.Certificate]:
    """The authority that issues, with its key, and the root's certificate.

    Args:
        directory: the authority's.
        now: epoch seconds.

    Raises:
        ConfigError: missing, damaged, not belonging together, or ended.
    """
    root, authorities = load_chain(directory)
    issuer = issuing(directory, authorities)
    if now >= issuer.certificate.not_valid_after_utc.timestamp():
        raise over(directory, issuer.certificate)
    return issuer, root


def over(directory: Path, authority: x509.Certificate) -> ConfigError:
    """What to say of an authority whose certificate has ended."""
    return ConfigError(
        f"{directory}: found an online certificate that ended on {authority.not_valid_after_utc:%Y-%m-%d}, expected "
        "one in force; replace it with `vedette ca intermediate renew`"
    )


def issuing(directory: Path, authorities: Sequence[x509.Certificate]) -> Issuer:
    """The authority that issues, also if its certificate has ended.

    Raises:
        ConfigError: its key is missing or damaged, or is none of the authorities'.
    """
    found = with_key(directory, ISSUING_KEY, authorities)
    if found is None:
        path = directory / "online" / ISSUING_KEY
        raise ConfigError(f"{path}: found a key that is not that of ca.crt beside it; restore it")
    return found


def with_key(directory: Path, name: str, authorities: Sequence[x509.Certificate]) -> Issuer | None:
    """The authority whose private key a file of `online` is; None if it is that of none of them.

    Raises:
        ConfigError: the file is missing or damaged, or others may read it.
    """
    key = read_authority_key(directory / "online" / name)
    return next((Issuer(c, key) for c in authorities if c.public_key() == key.public_key()), None)


def read_authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An authority's private key from its file.

    Raises:
        ConfigError: missing, damaged, of another kind, or others may read it.
    """
    key = read_private_key(path, "it is not the authority's: restore it")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: found a {type(key).__name__}, expected the authority's P-256 key; restore it")
    return key


def load_chain(directory: Path) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    """Certificates of the root, and of the online authorities in force, the newest first.

    Raises:
        ConfigError: missing or damaged.
    """
    path = directory / "online" / "ca.crt"
    data = read_file(path)
    try:
        root, *authorities = load_certificates(data, "online certificate")
        if not authorities:
            raise ValueError("found no online certificate")
    except (ValueError, PeerError) as fault:
        raise ConfigError(f"{path.parent}: found files that are not the authority's ({fault}); restore them") from fault
    return root, tuple(authorities)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns what the file system refuses into something an operator can act on."""
    try:
        yield
    except OSError as fault:
        where = fault.filename or directory
        raise ConfigError(
            f"{where}: cannot be written ({fault.strerror}); check its owner, mode and free space"
        ) from fault


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer at a time; a second one waits."""
    if not (directory / "index.json").exists():
        read_index(directory)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, on disk when this returns; its mode never passes through anything wider."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def swap(fresh: Path, bundle: Path) -> None:
    """Put a new bundle in an old one's place."""
    old = bundle.with_name(f".{bundle.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if bundle.exists():
        bundle.rename(old)
    fresh.rename(bundle)
    synchronise_directory(bundle.parent)
    shutil.rmtree(old, ignore_errors=True)


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def private_pem(key: PrivateKey) -> bytes:
    """A private key as PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _issued(line: dict[str, Any]) -> Issued:
    earlier = [Leaf(**leaf) for leaf in line.get("earlier", ())]
    for leaf in earlier:
        _check(leaf.serial, leaf.not_after)
        if type(leaf.replaced_here) is not bool:
            raise ValueError(f"replaced_here {leaf.replaced_here!r}")
    found = Issued(
        **{
            **line,
            "serials": tuple(line["serials"]),
            "hosts": tuple(line.get("hosts", ())),
            "earlier": tuple(earlier),
        }
    )
    check_id(found.id)
    CertificateRole(found.role)
    if not isinstance(line["serials"], list) or not found.serials:
        raise ValueError(f"serials {line['serials']!r}")
    for serial in found.serials:
        _check(serial, found.not_before, found.not_after)
    return found


def _revoked(line: dict[str, Any]) -> Revoked:
    found = Revoked(**{**line, "reason": RevocationReason(line["reason"])})
    _check(found.serial, found.at, found.not_after)
    return found


def _check(serial: object, *times: object) -> None:
    """A damaged line is told when it is read: later it would revoke nothing, or end a command half way."""
    if not isinstance(serial, str) or f"{int(serial, 16):x}" != serial:
        raise ValueError(f"serial number {serial!r}")
    for time in times:
        if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
            raise ValueError(f"time {time!r}")
