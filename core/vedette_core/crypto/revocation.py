"""Revocation lists: X.509 CRLs that the site's online authority signs, made and believed here.

A list is numbered, and numbers only rise: whoever has seen one takes no older one. Only the authority can make one, so
that a hostile broker or aggregator can withhold a list, and can neither shorten nor replace it. Leaves live a week, and
what has ended needs no revoking: lists stay small.

While one authority takes another's place, the newer one makes the lists, and a list carries the certificates of both
(`published_list`): so everybody learns of the newer one, by the root that they know. The older one is out of service
once its own serial number is on a list; and nobody who has believed a list of the newer one believes one of the older.

Everything is pure: the time and the issuer's key come in as arguments.

Source: RFC 5280 §5 (CRL profile), §5.2.3 (CRL number), §5.3.1 (reason codes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from vedette_core.crypto.certificate_chain import (
    CHAIN_LENGTH_MAX,
    check_intermediate,
    damaged_is_refused,
    signed_as_ours,
)
from vedette_core.crypto.certificates import BACKDATED_S, Issuer
from vedette_core.crypto.published_list import join_der, split_published
from vedette_schemas.errors import PeerError, RefusedError

LIST_DAYS: Final = 8
"""A list lasts a little longer than a leaf: when it is stale, everything that was valid beside it has ended as well."""
ENTRIES_MAX: Final = 3000
"""Revoked leaves that have not ended, at about 52 bytes each: 1,500 nodes in one week."""
NUMBER_MAX: Final = 2**63 - 1
SERIAL_BITS_MAX: Final = 159
"""RFC 5280 §4.1.2.2: at most 20 octets, and positive."""

_LIST_EXTENSIONS: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})
_ENTRY_EXTENSIONS: Final = frozenset({CRLEntryExtensionOID.CRL_REASON})


class RevocationReason(StrEnum):
    """Why a certificate is revoked, in the words of RFC 5280 that make sense here."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    SUPERSEDED = "superseded"
    CESSATION = "cessation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


_FLAGS: Final = {
    RevocationReason.UNSPECIFIED: x509.ReasonFlags.unspecified,
    RevocationReason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    RevocationReason.SUPERSEDED: x509.ReasonFlags.superseded,
    RevocationReason.CESSATION: x509.ReasonFlags.cessation_of_operation,
    RevocationReason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}
_REASONS: Final = {flag: reason for reason, flag in _FLAGS.items()}


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revoked certificate.

    Attributes:
        serial: its serial number.
        at: epoch seconds at which it was revoked.
        reason: why.
    """

    serial: int
    at: float
    reason: RevocationReason = RevocationReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list whose signature holds.

    Attributes:
        number: rises with every list.
        issued_at: epoch seconds.
        next_update: epoch seconds at which the next one is due.
        entries: what is revoked, by serial number.
        der: the list as it was signed.
        issuer: the authority that signed it.
        authorities: authorities in force that came with it, each of them the root's.
    """

    number: int
    issued_at: float
    next_update: float
    entries: dict[int, Revocation] = field(repr=False)
    der: bytes = field(repr=False)
    issuer: x509.Certificate = field(repr=False)
    authorities: tuple[x509.Certificate, ...] = field(default=(), repr=False)

    @property
    def message(self) -> bytes:
        """The list and the authorities that came with it, as they are published and kept."""
        return join_der(self.der, self.authorities)

    @property
    def pem(self) -> bytes:
        """The same list as PEM, as brokers load it."""
        return x509.load_der_x509_crl(self.der).public_bytes(Encoding.PEM)


def make_list(
    issuer: Issuer, number: int, revocations: Iterable[Revocation], *, now: float, days: float = LIST_DAYS
) -> bytes:
    """Make a list.

    Args:
        issuer: the online authority.
        number: one above the last list's.
        revocations: everything that is revoked and has not ended.
        now: epoch seconds.
        days: until the next list is due.

    Returns:
        DER.

    Raises:
        RefusedError: more entries than a list may have.
    """
    entries = {r.serial: r for r in revocations}
    if len(entries) > ENTRIES_MAX:
        raise RefusedError(
            f"revocation list: found {len(entries)} certificates to revoke, expected at most {ENTRIES_MAX}; wait until "
            "some have ended, or make a new authority",
            rule="revocations",
        )
    begin = datetime.fromtimestamp(int(now) - BACKDATED_S, UTC)
    key_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(begin)
        .next_update(begin + timedelta(days=days, seconds=BACKDATED_S))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(key_identifier, critical=False)
    )
    for serial in sorted(entries):
        entry = entries[serial]
        revoked = (
            x509.RevokedCertificateBuilder()
            .serial_number(serial)
            .revocation_date(datetime.fromtimestamp(int(entry.at), UTC))
        )
        if entry.reason is not RevocationReason.UNSPECIFIED:  # RFC 5280 §5.3.1: left out rather than said
            revoked = revoked.add_extension(x509.CRLReason(_FLAGS[entry.reason]), critical=False)
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_list(data: bytes, root: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> RevocationList:
    """Read a list and check that the site's authority made it.

    Whether it is stale is another question: see `Revocations.check_fresh`.

    An authority that came with the list may have signed it if it begins later than all that are known: it takes their
    place. One that begins earlier had its time.

    Args:
        data: as `split_published` takes it.
        root: the site's root certificate.
        intermediates: the online authorities that are known.

    Raises:
        PeerError: too large, damaged, or not exactly of the shape that `make_list` makes; the reason is ``limit``,
            ``list``, ``signature``, or ``chain`` (an authority came with it that is not the site's).
    """
    crl, came_along = split_published(data)
    try:
        for each in came_along:
            check_intermediate(each, root)
    except PeerError as fault:
        raise PeerError(f"revocation list: {fault}", reason="chain") from fault
    newer = [c for c in came_along if all(begins(c) > begins(known) for known in intermediates)]
    try:
        with damaged_is_refused("revocation list"):
            return _checked(crl, root, [*intermediates, *newer], came_along)
    except PeerError as fault:
        raise PeerError(str(fault), reason="list" if fault.reason == "certificate" else fault.reason) from fault


def begins(authority: x509.Certificate) -> float:
    """Epoch seconds at which an authority's certificate begins: of two, the one that begins later is the newer."""
    return authority.not_valid_before_utc.timestamp()


def _newest_first(authorities: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    return tuple(sorted(dict.fromkeys(authorities), key=begins, reverse=True))


def _checked(
    crl: x509.CertificateRevocationList,
    root: x509.Certificate,
    signers: Sequence[x509.Certificate],
    came_along: tuple[x509.Certificate, ...],
) -> RevocationList:
    named = [c for c in signers if c.subject == crl.issuer and _issued(c, root)]
    signer = next((c for c in named if _signed(crl, c)), None)
    if signer is None:
        raise PeerError(
            f"revocation list: found one of {crl.issuer.rfc4514_string()[:100]!r} whose signature does not hold, "
            "expected one of the site's online authority",
            reason="signature",
        )
    found = frozenset(e.oid for e in crl.extensions)
    if found != _LIST_EXTENSIONS:
        odd = ", ".join(sorted(o.dotted_string for o in found ^ _LIST_EXTENSIONS))
        raise _odd(f"extensions too many or missing ({odd})", "exactly ours")
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    if not 1 <= number <= NUMBER_MAX:
        raise _odd(f"number {number}", f"1 to {NUMBER_MAX}")
    if crl.next_update_utc is None:
        raise _odd("no time of the next one", "one")
    if len(crl) > ENTRIES_MAX:
        raise PeerError(f"revocation list: found {len(crl)} entries, expected at most {ENTRIES_MAX}", reason="limit")
    entries = {}
    for revoked in crl:
        entry = _entry(revoked)
        entries[entry.serial] = entry
    return RevocationList(
        number,
        crl.last_update_utc.timestamp(),
        crl.next_update_utc.timestamp(),
        entries,
        crl.public_bytes(Encoding.DER),
        signer,
        _newest_first(c for c in came_along if c.serial_number not in entries),
    )


def _entry(revoked: x509.RevokedCertificate) -> Revocation:
    if not {e.oid for e in revoked.extensions} <= _ENTRY_EXTENSIONS:
        raise _odd("an entry with extensions that are not ours", "a reason at most")
    if not 0 < revoked.serial_number < 2**SERIAL_BITS_MAX:
        raise _odd(f"a serial number of {revoked.serial_number.bit_length()} bits", f"at most {SERIAL_BITS_MAX}")
    reason = RevocationReason.UNSPECIFIED
    for extension in revoked.extensions:
        assert isinstance(extension.value, x509.CRLReason)
        if extension.value.reason not in _REASONS:
            raise _odd(f"reason {extension.value.reason}", f"one of {[str(r) for r in RevocationReason]}")
        reason = _REASONS[extension.value.reason]
    return Revocation(revoked.serial_number, revoked.revocation_date_utc.timestamp(), reason)


def _odd(found: str, expected: str) -> PeerError:
    return PeerError(f"revocation list: found {found}, expected {expected}", reason="list")


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except Exception:  # the library names its errors by key type
        return False
    return True


def _signed(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    key = signer.public_key()
    if not signed_as_ours(crl, crl.public_bytes(Encoding.DER)):
        return False  # else there could be a second list of the same number
    return isinstance(key, EllipticCurvePublicKey) and crl.is_signature_valid(key)


class Revocations:
    """The newest list that a node has believed; every ring of the node asks it.

    Args:
        root: the site's root certificate.
        intermediates: the online authorities that are known.
    """

    def __init__(self, root: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> None:
        self._root, self._told = root, tuple(intermediates)
        self.newest: RevocationList | None = None

    @property
    def number(self) -> int:
        """Number of the newest list; 0 before the first."""
        return 0 if self.newest is None else self.newest.number

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """Authorities in force: those of the newest list and those that one was told of, but for those on it.

        The three newest at most: whoever runs for years is told of many, and a leaf's own issuer may come along as the
        fourth. Whoever carries a list could put authorities of long ago before those in force.
        """
        if self.newest is None:
            return _newest_first(self._told)[: CHAIN_LENGTH_MAX - 1]
        found = _newest_first((*self.newest.authorities, *self._told))
        return tuple(c for c in found if c.serial_number not in self.newest.entries)[: CHAIN_LENGTH_MAX - 1]

    def learn_authorities(self, intermediates: Sequence[x509.Certificate]) -> None:
        """From now on these authorities count, and those of the newest list: the online certificate was replaced."""
        self._told = tuple(intermediates)

    def restore(self, data: bytes) -> None:
        """Go on with the list that was believed before a restart, also if its authority is not told of any more.

        Args:
            data: its `message`, from the node's own store.

        Raises:
            PeerError: as for `read_list`.
        """
        self.newest = read_list(data, self._root, [*self._told, *split_published(data)[1]])

    def take(self, data: bytes) -> bool:
        """Believe a list if it is the authority's and not older than what is known.

        Numbers count among the lists of one authority: a thief's highest number must not keep its successor's out.

        Args:
            data: as `split_published` takes it.

        Returns:
            Whether it is news; the same list again is not, unless it comes with an authority that is.

        Raises:
            PeerError: as for `read_list`, or an older one or one of an older authority (``old-list``), or another one
                of the same number (``list``).
        """
        newest = self.newest
        if newest is not None and data == newest.message:
            return False
        found = read_list(data, self._root, self.intermediates)
        if newest is None or begins(found.issuer) > begins(newest.issuer):
            self.newest = found
            return True
        if begins(found.issuer) < begins(newest.issuer):
            raise PeerError(
                f"revocation list: found number {found.number} of an authority that was replaced, expected one of the "
                f"authority that made list {newest.number}",
                reason="old-list",
            )
        if found.number < newest.number:
            raise PeerError(
                f"revocation list: found number {found.number}, expected {newest.number} or above", reason="old-list"
            )
        if found.number > newest.number:
            self.newest = found
            return True
        if found.der != newest.der:
            raise _odd(f"a second list of number {found.number}", "one list a number")
        together = _newest_first((*newest.authorities, *found.authorities))[:CHAIN_LENGTH_MAX]
        if set(together) == set(newest.authorities):
            return False
        self.newest = replace(newest, authorities=together)
        return True

    def check(self, serial: int, who: str, issuer: int = 0) -> None:
        """Check that a certificate is not revoked.

        Args:
            serial: its serial number.
            who: its holder, for the message.
            issuer: serial number of the authority that issued it, where that one must be in service still.

        Raises:
            PeerError: one of them is; the reason is ``revoked``.
        """
        if self.newest is not None and issuer in self.newest.entries:
            raise PeerError(
                f"certificate of {who}: found one of an authority that is out of service (list {self.number}), "
                "expected one of its successor",
                reason="revoked",
            )
        entry = None if self.newest is None else self.newest.entries.get(serial)
        if entry is not None:
            raise PeerError(
                f"certificate of {who}: found it revoked ({entry.reason}, list {self.number}), expected one in force",
                reason="revoked",
            )

    def check_fresh(self, now: float) -> None:
        """Check that the next list is not overdue: somebody may be withholding it.

        A node that has never seen a list is not asked for one: its site may have none.

        Raises:
            RefusedError: it is overdue.
        """
        if self.newest is not None and self.newest.next_update < now:
            days = (now - self.newest.next_update) / 86_400
            raise RefusedError(
                f"revocation list {self.number}: found it {days:.1f} days overdue, expected a newer one: it may be "
                "withheld, or nobody makes it (`vedette ca crl`)",
                rule="stale-revocations",
            )
