"""The broker's TLS context, made anew when its certificate or the site's revocation list changes on disk.

A list is believed if an authority of ``ca.crt`` signed it and its number is not below the last one's. A file that
is neither readable nor that, or that has gone, changes nothing: what was revoked stays revoked. TLS then checks
every client's leaf against it, which also refuses everybody once the list is past its next update: a list that
nobody renews is no list.

Source: RFC 5280 §5; OpenSSL X509_V_FLAG_CRL_CHECK.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from vedette_core.runtime.identity import Bundle, load_authorities, server_context
from vedette_schemas.errors import ConfigError

log = logging.getLogger("vedette.broker")

LIST_FILE: Final = "crl.pem"
LIST_BYTES_MAX: Final = 512 * 1024
"""About 7,000 revoked leaves in PEM; a leaf lives a week, so that no list of a site comes near."""


@dataclass(frozen=True, slots=True)
class RevokedSerials:
    """A revocation list that was believed.

    Attributes:
        number: rises with every list.
        next_update: epoch seconds at which the next one is due.
        serials: serial numbers of revoked leaves.
        pem: the file's content.
    """

    number: int
    next_update: float
    serials: frozenset[int] = field(repr=False)
    pem: bytes = field(repr=False)


Stamp = tuple[int, int, int] | None


class Credentials:
    """What the broker shows to clients, and by what it judges them.

    Args:
        bundle: the broker's bundle.
        counts: where `revocations_loaded` and `revocations_refused` are counted.

    Attributes:
        context: for new connections.
        revoked: the newest list, None before the first.

    Raises:
        ConfigError: the bundle's files do not fit together, or there is a list that is not to be believed.
    """

    def __init__(self, bundle: Bundle, counts: Counter[str]) -> None:
        self._bundle, self._counts = bundle, counts
        self._path = bundle.directory / LIST_FILE
        self._stamps = self._look()
        self.revoked = self._read(None) if self._path.exists() else None
        self.context = self._context()

    def is_revoked(self, serial: int) -> bool:
        """Tell whether a leaf's serial number is in the newest list."""
        return self.revoked is not None and serial in self.revoked.serials

    def refresh(self) -> bool:
        """Look at the files again; tells whether anything was taken up. What cannot be used is logged and left out."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        before, self._stamps = self._stamps, stamps
        earlier = self.revoked
        try:
            if stamps[0] != before[0]:
                self.revoked = self._read(earlier)
            self.context = self._context()
        except ConfigError as fault:
            self.revoked = earlier
            self._counts["revocations_refused"] += 1
            log.error("%s; what was in force stays in force", fault)
            return False
        if self.revoked is not earlier:
            assert self.revoked is not None
            self._counts["revocations_loaded"] += 1
            log.info(
                "revocation list %d with %d certificates is in force", self.revoked.number, len(self.revoked.serials)
            )
        return True

    def _look(self) -> tuple[Stamp, Stamp, Stamp]:
        return _stamp(self._path), _stamp(self._bundle.tls_certificate), _stamp(self._bundle.tls_key)

    def _read(self, earlier: RevokedSerials | None) -> RevokedSerials:
        found = read_revocations(self._bundle)
        if earlier is not None and found.number < earlier.number:
            raise ConfigError(f"{self._path}: found revocation list {found.number}, expected {earlier.number} or newer")
        return found

    def _context(self) -> ssl.SSLContext:
        context = server_context(self._bundle)
        if self.revoked is not None:
            try:
                # The bytes that were checked, not the file: it may have changed since.
                with tempfile.NamedTemporaryFile() as checked:
                    checked.write(self.revoked.pem)
                    checked.flush()
                    context.load_verify_locations(cafile=checked.name)
            except (ssl.SSLError, OSError) as fault:
                raise ConfigError(f"{self._path}: TLS refuses the revocation list ({fault}); write it anew") from fault
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


def read_revocations(bundle: Bundle) -> RevokedSerials:
    """Read the revocation list of a bundle, and believe it only if an authority of the bundle's ``ca.crt`` signed it.

    Raises:
        ConfigError: it is missing, none, or not this site's.
    """
    path = bundle.directory / LIST_FILE
    try:
        with path.open("rb") as file:
            data = file.read(LIST_BYTES_MAX + 1)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}), expected the site's revocation list") from fault
    if len(data) > LIST_BYTES_MAX:
        raise ConfigError(f"{path}: found more than {LIST_BYTES_MAX} bytes, expected a revocation list")
    try:
        found = x509.load_pem_x509_crl(data)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(entry.serial_number for entry in found)
        next_update = found.next_update_utc
    except (ValueError, x509.ExtensionNotFound, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"{path}: found no numbered revocation list ({fault}); write it anew") from fault
    if next_update is None:
        raise ConfigError(f"{path}: found a list without a next update, expected the site's revocation list")
    root, intermediates = load_authorities(bundle)
    if not any(_signed(found, authority) for authority in (*intermediates, root)):
        raise ConfigError(f"{path}: found a list that none of {bundle.ca.name} signed, expected this site's")
    return RevokedSerials(number, next_update.timestamp(), serials, data)


def _signed(found: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if found.issuer != authority.subject or not isinstance(key, EllipticCurvePublicKey):
        return False
    try:
        return found.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _stamp(path: Path) -> Stamp:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
