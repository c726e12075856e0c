"""A node's newest revocation list: believed by its ring, kept on disk, so that no restart brings an older one back."""

from __future__ import annotations

import logging
from typing import Final

from vedette_core.crypto.published_list import LIST_FILE_BYTES_MAX
from vedette_core.crypto.revocation import Revocations
from vedette_core.runtime.identity import Bundle, read_file
from vedette_core.runtime.storage import StateStore
from vedette_schemas.errors import PeerError, TransientError

log = logging.getLogger("vedette.revocation")

KEY: Final = "revocations/list"


class RevocationStore:
    """Keeps the newest list.

    Args:
        revocations: of the node's ring.
        store: where the list is kept.
        bundle: may have brought a newer one.

    Raises:
        ConfigError: the bundle's list cannot be read.
    """

    def __init__(self, revocations: Revocations, store: StateStore, bundle: Bundle) -> None:
        self.revocations, self._store = revocations, store
        self._unsaved = False
        kept = store.get(KEY)
        if kept is not None:
            try:
                revocations.restore(kept)
            except PeerError as fault:
                log.warning("the revocation list that was kept no longer holds: %s", fault)
        if bundle.crl.exists():
            try:
                self.take(read_file(bundle.crl, LIST_FILE_BYTES_MAX))
            except PeerError as fault:
                log.info("%s: %s", bundle.crl, fault)

    def take(self, data: bytes) -> bool:
        """Believe a list if it is the authority's and not older than what is known; tells whether it is news.

        Raises:
            PeerError: see `Revocations.take`.
        """
        news = self.revocations.take(data)
        newest = self.revocations.newest
        assert newest is not None
        if news or self._unsaved:
            try:
                self._store.put(KEY, newest.message)
                self._unsaved = False
            except TransientError as fault:
                # It counts all the same, and is written when it comes again: a restart would bring the older one back.
                self._unsaved = True
                log.warning("revocation list %d is not on disk: %s", newest.number, fault)
        if not news:
            return False
        log.info("revocation list %d: %d certificates", newest.number, len(newest.entries))
        return True
