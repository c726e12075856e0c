"""The broker's TLS context, made anew when its certificate, ``ca.crt`` or the site's revocation list changes on disk.

A list comes as the bundle's ``crl.pem``, or retained on ``public/revoked``. It is believed if an authority of
``ca.crt`` signed it, or a newer one of the same root that comes with it, and its number is not below the last one's.
From then on leaves of that newer authority count. A file that is neither readable nor that, or that has
gone, changes nothing: what was revoked stays revoked. TLS then checks every client's leaf against it, which also
refuses everybody once the list is past its next update: a list that nobody renews is no list.

While two authorities are in force, because one takes the other's place, there is still one list, and OpenSSL wants one
of each leaf's own issuer. It is not asked then; `Credentials.check` says the same once a client has said its name.

Source: RFC 5280 §5; OpenSSL X509_V_FLAG_CRL_CHECK.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from vedette_core.crypto.published_list import LIST_FILE_BYTES_MAX
from vedette_core.crypto.revocation import RevocationList, Revocations
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
        root: the site's root certificate; another one needs a restart.

    Raises:
        ConfigError: the bundle's files do not fit together, or there is a list that is not to be believed.
    """

    def __init__(self, bundle: Bundle, counts: Counter[str]) -> None:
        self._bundle, self._counts = bundle, counts
        self._stamps = self._look()
        self.root, told = load_authorities(bundle)
        self._revocations = Revocations(self.root, told)
        if bundle.crl.exists():
            self._read_list()
        self.context = self._context()
        self._current = True

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """The authorities whose leaves and lists count: those of ``ca.crt`` and of the newest list."""
        return self._revocations.intermediates

    @property
    def revoked(self) -> RevocationList | None:
        """The newest list, None before the first."""
        return self._revocations.newest

    def knows(self, issuer: int) -> bool:
        """Tell whether the authority with this serial number is one whose leaves count."""
        return any(authority.serial_number == issuer for authority in self.intermediates)

    def is_revoked(self, serial: int, issuer: int = 0) -> bool:
        """Tell whether a leaf's serial number, or that of the authority that issued it, is in the newest list."""
        return self.revoked is not None and not self.revoked.entries.keys().isdisjoint((serial, issuer))

    def check(self, serial: int, who: str, now: float, issuer: int = 0) -> None:
        """Check a client's leaf against the newest list, which may be newer than the client's handshake.

        Args:
            serial: the leaf's serial number.
            who: its holder, for the message.
            now: epoch seconds.
            issuer: serial number of the authority that issued it.

        Raises:
            PeerError: it is revoked, or its authority is out of service.
            RefusedError: the next list is overdue.
        """
        self._revocations.check(serial, who, issuer)
        self._revocations.check_fresh(now)

    def refresh(self) -> bool:
        """Look at the files again; tells whether anything was taken up. What cannot be used is logged and left out."""
        stamps = self._look()
        if stamps == self._stamps:
            return not self._current and self._try_again()
        authorities, revoked, *own = (now != before for now, before in zip(stamps, self._stamps, strict=True))
        self._stamps = stamps
        # One by one: a list that cannot be used shall not keep a renewed certificate out.
        newer = [authorities and self._try(self._take_authorities)]
        # A list of an authority that has just come may have been there before it.
        there = revoked or (authorities and self._bundle.crl.exists())
        newer.append(there and self._try(self._take_list))
        return self._try(self._take_context) and (any(newer) or any(own))

    def take(self, published: bytes) -> bool:
        """Believe a list that was published, if it is newer: so it gets to a broker that is far from the authority.

        Returns:
            Whether what was published is the list in force now: only that may be passed on and kept.
        """

        def in_force() -> bool:
            try:
                news = self._revocations.take(published)
            except PeerError as fault:
                raise ConfigError(f"published {fault}") from fault
            if news:
                self._say_list()
                # In force by `check` even where the bundle cannot be read just now.
                self._try(self._take_context)
            return True

        return self._try(in_force)

    def _take_authorities(self) -> bool:
        root, intermediates = load_authorities(self._bundle)
        if root != self.root:
            raise ConfigError(f"{self._bundle.ca}: found another root, expected the site's; restart the broker for it")
        self._revocations.learn_authorities(intermediates)
        log.info("%s: certificates and lists of %d authorities count", self._bundle.ca, len(intermediates))
        return True

    def _take_list(self) -> bool:
        news = self._read_list()
        if news:
            self._say_list()
        return news

    def _read_list(self) -> bool:
        try:
            return self._revocations.take(read_file(self._bundle.crl, LIST_FILE_BYTES_MAX))
        except PeerError as fault:
            raise ConfigError(f"{self._bundle.crl}: {fault}; write it anew with `vedette ca crl`") from fault

    def _say_list(self) -> None:
        assert self.revoked is not None
        self._counts["revocations_loaded"] += 1
        log.info("revocation list %d with %d certificates is in force", self.revoked.number, len(self.revoked.entries))

    def _take_context(self) -> bool:
        self._current = False
        self.context = self._context()
        self._current = True
        return True

    def _try_again(self) -> bool:
        """TLS still has the list before, for want of room or of a file; that was said when it happened."""
        try:
            return self._take_context()
        except ConfigError:
            return False

    def _try(self, take: Callable[[], bool]) -> bool:
        try:
            return take()
        except ConfigError as fault:
            self._counts["revocations_refused"] += 1
            log.error("%s; what was in force stays in force", fault)
            return False

    def _look(self) -> tuple[Stamp, Stamp, Stamp, Stamp]:
        files = self._bundle
        return _stamp(files.ca), _stamp(files.crl), _stamp(files.tls_certificate), _stamp(files.tls_key)

    def _context(self) -> ssl.SSLContext:
        context = server_context(self._bundle, (self.root, *self.intermediates))
        if self.revoked is None or not self._covers_all(self.revoked):
            return context
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

    def _covers_all(self, found: RevocationList) -> bool:
        return self.intermediates == (found.issuer,)


def _stamp(path: Path) -> Stamp:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
