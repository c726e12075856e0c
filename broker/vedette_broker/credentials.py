"""The broker's TLS context, made anew when its certificate or the site's revocation list changes on disk.

A list comes as the bundle's ``crl.pem``, or retained on ``public/revoked``. It is believed if an authority of
``ca.crt`` signed it and its number is not below the last one's. A file that is neither readable nor that, or that has
gone, changes nothing: what was revoked stays revoked. TLS then checks every client's leaf against it, which also
refuses everybody once the list is past its next update: a list that nobody renews is no list.

Source: RFC 5280 §5; OpenSSL X509_V_FLAG_CRL_CHECK.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vedette_core.crypto.revocation import LIST_FILE_BYTES_MAX, RevocationList, read_list
from vedette_core.runtime.identity import Bundle, load_authorities, read_file, server_context
from vedette_schemas.errors import ConfigError, PeerError

log = logging.getLogger("vedette.broker")


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
        self._stamps = self._look()
        self.revoked: RevocationList | None = None
        if bundle.crl.exists():
            self.revoked = read_revocations(bundle)
        self.context = self._context()

    def is_revoked(self, serial: int) -> bool:
        """Tell whether a leaf's serial number is in the newest list."""
        return self.revoked is not None and serial in self.revoked.entries

    def refresh(self) -> bool:
        """Look at the files again; tells whether anything was taken up. What cannot be used is logged and left out."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        before, self._stamps = self._stamps, stamps
        # One by one: a list that cannot be used shall not keep a renewed certificate out.
        newer = stamps[0] != before[0] and self._try(self._take_list)
        return self._try(self._take_context) and (newer or stamps[1:] != before[1:])

    def take(self, published: bytes) -> bool:
        """Believe a list that was published, if it is newer: so it gets to a broker that is far from the authority.

        Returns:
            Whether what was published is the list in force now: only that may be passed on and kept.
        """

        def newer() -> None:
            try:
                found = read_list(published, *load_authorities(self._bundle))
            except PeerError as fault:
                raise ConfigError(f"published {fault}") from fault
            if self._is_news(found, "published revocation list"):
                self._believe(found)
                self._take_context()

        return self._try(newer)

    def _is_news(self, found: RevocationList, where: str) -> bool:
        """Tell whether a list is newer than the one in force, or the same; an older or a second one raises."""
        known = self.revoked
        if known is None or found.number > known.number:
            return True
        if found.number < known.number:
            raise ConfigError(f"{where}: found revocation list {found.number}, expected {known.number} or newer")
        if found.der != known.der:
            raise ConfigError(f"{where}: found a second revocation list {found.number}, expected one list a number")
        return False

    def _take_list(self) -> None:
        found = read_revocations(self._bundle)
        if self._is_news(found, str(self._bundle.crl)):
            self._believe(found)

    def _believe(self, found: RevocationList) -> None:
        self.revoked = found
        self._counts["revocations_loaded"] += 1
        log.info("revocation list %d with %d certificates is in force", found.number, len(found.entries))

    def _take_context(self) -> None:
        self.context = self._context()

    def _try(self, take: Callable[[], None]) -> bool:
        try:
            take()
        except ConfigError as fault:
            self._counts["revocations_refused"] += 1
            log.error("%s; what was in force stays in force", fault)
            return False
        return True

    def _look(self) -> tuple[Stamp, Stamp, Stamp]:
        return _stamp(self._bundle.crl), _stamp(self._bundle.tls_certificate), _stamp(self._bundle.tls_key)

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
                raise ConfigError(
                    f"{self._bundle.crl}: TLS refuses the revocation list ({fault}); write it anew"
                ) from fault
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context


def read_revocations(bundle: Bundle) -> RevocationList:
    """Read a bundle's revocation list.

    Raises:
        ConfigError: it is missing, none, or not signed by an authority of the bundle's ``ca.crt``.
    """
    root, intermediates = load_authorities(bundle)
    try:
        return read_list(read_file(bundle.crl, LIST_FILE_BYTES_MAX), root, intermediates)
    except PeerError as fault:
        raise ConfigError(f"{bundle.crl}: {fault}; write it anew with `vedette ca crl`") from fault


def _stamp(path: Path) -> Stamp:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
