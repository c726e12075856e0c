"""python-tuf's client as a device runs it: where its files come from, when it is, and what it has verified.

Source: The Update Framework specification 1.0.34, §5 (client workflow), through python-tuf's ``ngclient``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Protocol

from tuf.api import exceptions
from tuf.api.metadata import Signed, Targets
from tuf.ngclient import FetcherInterface, Updater

from vedette_schemas import codec
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.model import Variant, target_path
from vedette_schemas.topics import Topics
from vedette_schemas.trust import INDEX_FILE, BeaconAnchor, TrustIndex, parse_anchor

METADATA_BASE: Final = "trust/"
"""What python-tuf takes for the address of the metadata."""


class Fetch(Protocol):
    """Reads the retained message of a topic; the shell subscribes, takes the first message, and leaves again."""

    def __call__(self, topic: str, timeout_s: float) -> bytes:
        """Return the payload.

        Raises:
            TransientError: nothing came within `timeout_s` seconds, or there is no connection.
        """


class RetainedFetcher(FetcherInterface):
    """python-tuf's transport: metadata files from retained topics.

    A retained topic that is empty does not answer; `TrustIndex` tells that there is no newer root without a wait. It
    is an untrusted hint: a lie there delays, as withholding the file could.
    """

    def __init__(self, topics: Topics, fetch: Fetch, timeout_s: float) -> None:
        self._topics, self._read, self._timeout_s = topics, fetch, timeout_s
        self._index: frozenset[str] | None = None
        self._index_read = False

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(METADATA_BASE)
        newer_root = name.endswith(".root.json")
        if newer_root and self._listed(name) is False:
            raise exceptions.DownloadHTTPError(f"{name} is not in the index", 404)
        try:
            yield self._read(self._topics.trust(name), self._timeout_s)
        except TransientError as fault:
            if newer_root and self._listed(name) is None:
                raise exceptions.DownloadHTTPError(f"{name} did not come", 404) from fault
            raise

    def _listed(self, name: str) -> bool | None:
        """Whether the index lists a file; None without a readable index."""
        if not self._index_read:
            self._index_read = True
            with suppress(TransientError, PeerError):
                data = self._read(self._topics.trust(INDEX_FILE), self._timeout_s)
                self._index = frozenset(codec.unpack_json(TrustIndex, data).files)
        return None if self._index is None else name in self._index


class StoredOnly(FetcherInterface):
    """python-tuf's transport without a network: a refresh through it finds what is stored and nothing else."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise exceptions.DownloadHTTPError(f"{url} is not fetched", 404)


class ReleaseUpdater(Updater):
    """One refresh of python-tuf's client, at a time that we say, with a look at what it has verified."""

    def set_time(self, now_s: float) -> None:
        """Judge expiry at `now_s` (epoch seconds) instead of the system's clock."""
        self._trusted_set.reference_time = datetime.fromtimestamp(now_s, UTC)

    def delegated(self, task: str) -> Targets | None:
        """The verified role of a task; None if the top-level targets delegate nothing to it."""
        self.get_targetinfo(target_path(task, 0, Variant.PLAN))  # walks to the role that answers for the task
        found = self._trusted_set.get(task)
        return found if isinstance(found, Targets) else None

    def root_version(self) -> int:
        """Version of the verified root."""
        return self._trusted_set.root.version

    def timestamp_version(self) -> int:
        """Version of the verified timestamp file."""
        return self._trusted_set.timestamp.version

    def beacon_anchor(self) -> BeaconAnchor:
        """The anchor in the verified root.

        Raises:
            RefusedError: the root has none.
            PeerError: it has one that cannot be read.
        """
        root = self._trusted_set.root
        anchor = parse_anchor(root.unrecognized_fields)
        if anchor is None:
            raise RefusedError(
                f"root metadata {root.version}: found no anchor of a beacon, expected one; the site has to renew its "
                "release metadata with the offline keys before this device takes part in rounds",
                rule="no-beacon",
            )
        return anchor

    def fresh_until_s(self) -> float:
        """When the first of the verified files expires, epoch seconds."""
        verified: Iterator[Signed] = iter(self._trusted_set)  # yields the objects, not their names
        return min(signed.expires.timestamp() for signed in verified)
