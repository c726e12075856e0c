"""Revocations on the aggregator: taken from a file or from the broker, published again, and who they keep out."""

from __future__ import annotations

import logging
from pathlib import Path

from vedette_core.crypto.published_list import LIST_FILE_BYTES_MAX
from vedette_core.crypto.signing import KeyRing
from vedette_core.machine import Publish
from vedette_core.runtime.identity import Bundle, load_authorities, read_file
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.revocation_store import RevocationStore
from vedette_core.runtime.storage import StateStore
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.aggregator")


class RevocationWatch:
    """The newest list, and who is on it.

    Args:
        ring: knows the devices' certificates.
        store: where the newest list is kept.
        bundle: the aggregator's own.
        file: list that the authority writes; None: the bundle's ``crl.pem``.
        topics: the site's topics.
        metrics: the aggregator's.

    Raises:
        ConfigError: a list cannot be read.
    """

    def __init__(
        self, ring: KeyRing, store: StateStore, bundle: Bundle, file: Path | None, topics: Topics, metrics: Metrics
    ) -> None:
        self._ring, self._topics, self._metrics = ring, topics, metrics
        self._kept = RevocationStore(ring.revocations, store, bundle)
        self._file = file if file is not None else bundle.crl
        self._read: bytes | None = None
        self._stale = False
        self.poll(0.0)

    def take(self, data: bytes) -> bool:
        """Take a list that came over the broker; tells whether it is news.

        Raises:
            PeerError: it is older, or not the authority's.
        """
        return self._kept.take(data)

    def poll(self, now: float) -> bool:
        """Look at the file; tells whether there is news.

        Args:
            now: epoch seconds; whether the list is overdue is said once.
        """
        try:
            self._ring.revocations.check_fresh(now)
            self._stale = False
        except RefusedError as fault:
            if not self._stale:
                log.error("%s; it goes on counting", fault)
            self._stale = True
        try:
            data = read_file(self._file, LIST_FILE_BYTES_MAX) if self._file.exists() else None
            if data is None or data == self._read:
                return False
            self._read = data
            return self._kept.take(data)
        except (PeerError, ConfigError) as fault:
            self._metrics.inc("messages", "revoked", fault.reason if isinstance(fault, PeerError) else "unreadable")
            log.warning("%s: %s", self._file, fault)
            return False

    def follow(self, bundle: Bundle) -> None:
        """The own bundle is a newer one: lists of the authorities that it names count, also one that was refused."""
        try:
            self._ring.learn_authorities(load_authorities(bundle)[1])
        except ConfigError as fault:
            log.warning("%s; going on with the authorities that are known", fault)
            return
        self._read = None

    def publication(self) -> Publish | None:
        """The newest list as it is retained; None before the first."""
        newest = self._ring.revocations.newest
        return None if newest is None else Publish(self._topics.revoked, newest.message, retain=True)

    def devices(self) -> frozenset[str]:
        """Devices that checked in with a certificate that is revoked by now."""
        self._metrics.set("revocation_list_number", value=self._ring.revocations.number)
        return self._ring.revoked()
