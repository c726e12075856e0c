"""Another online authority takes the place of the one before, while the site goes on.

The root signs a certificate for a fresh key, here or on a machine without a network. From then on both are in force,
and the newer one makes the revocation lists, which bring its certificate to everybody (`ca_revocation`). Then its key
takes the place of the one that issues: one rename, before which nothing was issued, and behind which everything is.

::

    online/next.key                      asked for: the key is on disk before a request leaves
    + its certificate in ca.crt          known: it signs lists, and does not issue
    next.key is ca.key                   issues; the one before is earlier.key until its last leaf has ended

What a step needs is seen from these files, so that the same call goes on after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID

from vedette_broker.ca_revocation import LEAF_S, earlier_ones, publish_list, refresh_due
from vedette_broker.ca_store import (
    EARLIER_KEY,
    ISSUING_KEY,
    NEXT_KEY,
    issuing,
    load_chain,
    locked,
    pem,
    private_pem,
    read_authority_key,
    read_index,
    with_key,
    write_index,
    writing,
)
from vedette_core.crypto.certificate_chain import check_intermediate, damaged_is_refused, load_certificates
from vedette_core.crypto.certificates import BACKDATED_S, Issuer, Purpose, make_intermediate
from vedette_core.crypto.requests import make_request, read_request
from vedette_core.crypto.revocation import begins
from vedette_core.runtime.durable import replace_file, synchronise_directory
from vedette_core.runtime.identity import read_file, read_secret
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import check_id

WARN_S: Final = 30 * 86_400.0
"""How long before an authority's end people are told: time to fetch the root's key from where it is kept."""


class State(StrEnum):
    """What an authority does."""

    KNOWN = "known"
    ISSUES = "issues"
    EARLIER = "earlier"


@dataclass(frozen=True, slots=True)
class Standing:
    """An online authority of a site.

    Attributes:
        serial: its serial number, in hexadecimal.
        fingerprint: of its public key; see `fingerprint`.
        state: whether it issues.
        not_before: epoch seconds.
        not_after: epoch seconds.
        retires: epoch seconds at which the last leaf of an earlier one ends; None for the others.
    """

    serial: str
    fingerprint: str
    state: State
    not_before: float
    not_after: float
    retires: float | None = None


def request(directory: Path) -> bytes:
    """Make a key for another online authority and ask for its certificate; or ask again for the one that is there.

    Args:
        directory: the certificate authority's.

    Returns:
        PKCS #10, PEM; nothing in it is secret. The site's id is its challenge.

    Raises:
        ConfigError: no certificate authority there, or it cannot be written.
        RefusedError: the last replacement is not over (``in-progress``), or this one is signed already (``known``).
    """
    with writing(directory), locked(directory):
        site = read_index(directory).site
        _, authorities = load_chain(directory)
        _check_alone(directory, authorities)
        if _announced(directory, authorities) is not None:
            raise _known(directory)
        key = _next_key(directory)
    return x509.load_der_x509_csr(make_request(key, site)).public_bytes(Encoding.PEM)


def sign(root: Path, asked: bytes, *, now: float, fingerprint: str = "") -> x509.Certificate:
    """Sign a request with the root's key: on the machine where that is, which needs nothing else.

    Args:
        root: folder with ``root.crt`` and ``root.key``.
        asked: what `request` returned.
        now: epoch seconds.
        fingerprint: of the key that is expected; empty: any.

    Raises:
        ConfigError: the root is not there, damaged or over; or the request is damaged or of another site.
        RefusedError: it is for another key (``fingerprint``).
    """
    try:
        site, public = _read(asked)
    except PeerError as fault:
        raise ConfigError(f"{fault}; ask again with `vedette ca intermediate request`") from fault
    found = fingerprint_of(public)
    if fingerprint and found != fingerprint.strip().lower():
        raise RefusedError(f"request: found the key {found}, expected {fingerprint}", rule="fingerprint")
    issuer = _root(root, now)
    name = f"CN=vedette root of {site}"[: 3 + 64]
    if issuer.certificate.subject.rfc4514_string() != name:
        raise ConfigError(
            f"request: found one of site {site!r}, expected one of {issuer.certificate.subject.rfc4514_string()!r}"
        )
    return make_intermediate(issuer, public, site, now=now, serial=x509.random_serial_number())


def fingerprint_in(asked: bytes) -> str:
    """Fingerprint of the key that a request is for, to be compared over another way.

    Raises:
        ConfigError: it is no request.
    """
    try:
        return fingerprint_of(_read(asked)[1])
    except PeerError as fault:
        raise ConfigError(str(fault)) from fault


def install(directory: Path, signed: bytes, *, now: float, announce: bool = False) -> Standing:
    """Take a certificate that the root signed, make it known, and issue from it; or go on where a crash came between.

    Args:
        directory: the certificate authority's.
        signed: the certificate, PEM or DER.
        now: epoch seconds.
        announce: only make it known: for brokers to which files have to be carried first.

    Raises:
        ConfigError: no certificate authority there, it cannot be written, or the certificate is not for the key that
            is here, not the root's, or not newer than the one in force.
        RefusedError: the last replacement is not over (``in-progress``), or another certificate for the key is known
            (``known``).
    """
    try:
        found = load_certificates(signed, "certificate")
        if len(found) != 1:
            raise PeerError(f"certificate: found {len(found)}, expected one", reason="certificate")
    except PeerError as fault:
        raise ConfigError(f"{fault}; expected what `vedette ca intermediate sign` wrote") from fault
    with writing(directory), locked(directory):
        return _install(directory, found[0], now, announce)


def renew(directory: Path, *, now: float, announce: bool = False, root: Path | None = None) -> Standing:
    """Replace the online authority in one go, where the root's key is at hand; or go on where a crash came between.

    Args:
        directory: the certificate authority's.
        now: epoch seconds.
        announce: see `install`.
        root: folder with the root's key; None: ``root`` in `directory`.

    Raises:
        ConfigError: see `sign` and `install`.
        RefusedError: the last replacement is not over (``in-progress``).
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        _, authorities = load_chain(directory)
        _check_alone(directory, authorities)
        announced = _announced(directory, authorities)
        if announced is None:
            issuer = _root(root if root is not None else directory / "root", now)
            public = _next_key(directory).public_key()
            # Of two, the newer one begins later: that is how everybody tells which of them makes lists.
            begin = max(now, begins(authorities[0]) + BACKDATED_S + 1)
            announced = make_intermediate(issuer, public, index.site, now=begin, serial=x509.random_serial_number())
        return _install(directory, announced, now, announce)


def retire(directory: Path, *, now: float) -> Standing:
    """Take the earlier authority out of service before its last leaf has ended: its key may be in wrong hands.

    Whoever has nothing but a leaf of it is kept out from now on.

    Raises:
        ConfigError: no certificate authority there, there is no earlier one, or it cannot be written.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        _, authorities = load_chain(directory)
        earlier = earlier_ones(directory, authorities)
        if not earlier:
            raise ConfigError(
                f"{directory}: found no earlier authority in force, expected one; replace the one that issues with "
                "`vedette ca intermediate renew` first"
            )
        for each in earlier:
            index.retiring[f"{each.serial_number:x}"] = now
        publish_list(directory, index, now)
        return _standing(earlier[0], State.EARLIER, now)


def standings(directory: Path) -> tuple[Standing, ...]:
    """Every online authority in force, the newest first.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    index = read_index(directory)
    _, authorities = load_chain(directory)
    place = authorities.index(issuing(directory, authorities).certificate)
    states = (State.KNOWN,) * place + (State.ISSUES,) + (State.EARLIER,) * len(authorities)
    return tuple(
        _standing(c, state, index.retiring.get(f"{c.serial_number:x}"))
        for c, state in zip(authorities, states, strict=False)
    )


def issues(directory: Path) -> x509.Certificate:
    """The authority that issues.

    Raises:
        ConfigError: its certificate or key is missing or damaged.
    """
    return issuing(directory, load_chain(directory)[1]).certificate


def ends_at(directory: Path) -> float:
    """When the newest online authority ends; epoch seconds.

    Raises:
        ConfigError: damaged.
    """
    return load_chain(directory)[1][0].not_valid_after_utc.timestamp()


def warning(ends: float, now: float) -> str:
    """What people are told about the end of the newest online authority; empty while it is far away."""
    if now < ends - WARN_S:
        return ""
    days = max(0.0, ends - now) / 86_400
    return (
        f"the online authority ends in {days:.0f} days, and no certificate counts beyond that: replace it with "
        "`vedette ca intermediate renew`"
    )


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (DER, SubjectPublicKeyInfo), in hexadecimal."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _install(directory: Path, certificate: x509.Certificate, now: float, announce: bool) -> Standing:
    index = read_index(directory)
    root, authorities = load_chain(directory)
    if certificate not in authorities:
        _check_alone(directory, authorities)
        if _announced(directory, authorities) is not None:
            raise _known(directory)
        _check(directory, certificate, root, authorities, now)
        authorities = (certificate, *authorities)
        replace_file(directory / "online" / "ca.crt", pem(root, *authorities), 0o644)
    if refresh_due(index, directory, now):
        publish_list(directory, index, now)
    if not announce and _announced(directory, authorities) is not None:
        online = directory / "online"
        replace_file(online / EARLIER_KEY, read_secret(online / ISSUING_KEY), 0o600)
        (online / NEXT_KEY).rename(online / ISSUING_KEY)
        synchronise_directory(online)
        index.retiring = {f"{c.serial_number:x}": now + LEAF_S for c in earlier_ones(directory, authorities)}
        write_index(directory, index)
    return next(s for s in standings(directory) if s.serial == f"{certificate.serial_number:x}")


def _check(
    directory: Path,
    certificate: x509.Certificate,
    root: x509.Certificate,
    authorities: tuple[x509.Certificate, ...],
    now: float,
) -> None:
    path = directory / "online" / NEXT_KEY
    if not path.exists() or read_authority_key(path).public_key() != certificate.public_key():
        raise ConfigError(
            f"certificate: found one for a key that is not in {path}, expected that of the request: "
            "`vedette ca intermediate request`"
        )
    try:
        check_intermediate(certificate, root)
    except PeerError as fault:
        raise ConfigError(f"{fault}; sign the request with this site's root") from fault
    if certificate.subject != authorities[0].subject:
        raise ConfigError(
            f"certificate: found that of {certificate.subject.rfc4514_string()!r}, expected "
            f"{authorities[0].subject.rfc4514_string()!r}"
        )
    begin, end = begins(certificate), certificate.not_valid_after_utc.timestamp()
    if not begins(authorities[0]) < begin <= now < end:
        raise ConfigError(
            f"certificate: found one from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, expected one that has begun, not ended, and begins "
            f"after the one before ({authorities[0].not_valid_before_utc:%Y-%m-%d %H:%M} UTC); look at the clock of "
            "the machine that signs, and sign again"
        )


def _check_alone(directory: Path, authorities: tuple[x509.Certificate, ...]) -> None:
    """Nobody is asked to know more than two."""
    earlier = earlier_ones(directory, authorities)
    if earlier:
        serial = earlier[0].serial_number
        raise RefusedError(
            f"{directory}: found an earlier authority ({serial:x}) whose leaves are in force still, expected one "
            "authority; wait until `vedette ca intermediate show` names one, or end it with `vedette ca intermediate "
            "retire`",
            rule="in-progress",
        )


def _known(directory: Path) -> RefusedError:
    return RefusedError(
        f"{directory}: found an authority that is known and does not issue yet, expected it to issue before there is "
        "another one: `vedette ca intermediate renew` or `install` again, without --announce",
        rule="known",
    )


def _announced(directory: Path, authorities: tuple[x509.Certificate, ...]) -> x509.Certificate | None:
    """The authority that is known and does not issue yet."""
    if not (directory / "online" / NEXT_KEY).exists():
        return None
    found = with_key(directory, NEXT_KEY, authorities)
    return None if found is None else found.certificate


def _next_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    path = directory / "online" / NEXT_KEY
    if not path.exists():
        replace_file(path, private_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
    return read_authority_key(path)


def _root(folder: Path, now: float) -> Issuer:
    path = folder / "root.crt"
    try:
        (certificate,) = load_certificates(read_file(path), path.name)
    except (PeerError, ValueError) as fault:
        raise ConfigError(
            f"{path}: found something that is not the root's certificate ({fault}); restore it"
        ) from fault
    key = read_authority_key(folder / "root.key")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder / 'root.key'}: found a key that is not that of root.crt beside it; restore it")
    if now >= certificate.not_valid_after_utc.timestamp():
        raise ConfigError(f"{path}: found a root that has ended; a site with another root is another site")
    return Issuer(certificate, key)


def _read(asked: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    with damaged_is_refused("request"):
        found = x509.load_pem_x509_csr(asked)
        shown = [a.value for a in found.attributes if a.oid == AttributeOID.CHALLENGE_PASSWORD]
        site = check_id(b"".join(shown).decode("ascii"), "site")
    key = read_request(found.public_bytes(Encoding.DER), Purpose.TLS_CLIENT, site)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return site, key


def _standing(certificate: x509.Certificate, state: State, retires: float | None) -> Standing:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return Standing(
        f"{certificate.serial_number:x}",
        fingerprint_of(key),
        state,
        begins(certificate),
        certificate.not_valid_after_utc.timestamp(),
        retires,
    )
