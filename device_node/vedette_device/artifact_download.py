"""A release's bytes from retained topics: by the diff from a file that is held already, or as they are.

Whatever way they came, nobody sees them before length and digest are those of the signed metadata. A diff that is
missing, damaged or a lie costs a message or two: then the whole file is fetched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final, Literal

from tuf.api import exceptions
from tuf.api.metadata import TargetFile

from vedette_core.learning.artifact_diff import apply_diff
from vedette_device.trust_updater import Fetch
from vedette_device.verified_release import VerifiedTarget
from vedette_schemas.errors import PeerError, TransientError
from vedette_schemas.model import CHUNK_BYTES
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.trust")

Held = Callable[[str], bytes | None]
"""The bytes of a file that this device holds, by hex digest, with that digest; None if it does not."""
How = Literal["diff", "full", "diff-refused"]
"""By a diff; as it is; or as it is, after a diff was tried."""
DIFF_TIMEOUT_S: Final = 3.0
"""How long a part of a diff is waited for: the whole file is there without it."""


def nothing_held(sha256: str) -> bytes | None:
    """A device that holds nothing to make a file from."""
    return None


class ArtifactDownload:
    """Fetches targets.

    Args:
        topics: the site's topics.
        fetch: reads retained messages; blocks.
        timeout_s: how long one is waited for.

    Attributes:
        on_download: called with the task, how the bytes came, and how many were fetched for it, diffs included.
    """

    def __init__(self, topics: Topics, fetch: Fetch, timeout_s: float) -> None:
        self._topics, self._fetch, self._timeout_s = topics, fetch, timeout_s
        self.on_download: Callable[[str, How, int], None] = lambda task, how, fetched: None

    def __call__(self, target: VerifiedTarget, held: Held = nothing_held) -> bytes:
        """A target's bytes, checked.

        Raises:
            PeerError: more or other bytes than the signed metadata say.
            TransientError: a part did not come.
        """
        how: How = "full"
        diff, spent = target.custom.diff, 0
        parent = held(diff.parent) if diff is not None and diff.length < target.length else None
        if diff is not None and parent is not None:
            spent = diff.length
            try:
                packed = self._bytes(f"diff of {target.path}", diff.sha256, diff.length, DIFF_TIMEOUT_S)
                found = _checked(target.path, target.sha256, apply_diff(parent, packed, target.length))
            except (PeerError, TransientError) as fault:
                log.info("%s: %s; the whole file is fetched", target.path, fault)
                how = "diff-refused"
            else:
                log.info("%s: fetched as a diff, %d bytes instead of %d", target.path, spent, target.length)
                self.on_download(target.custom.task, "diff", spent)
                return found
        found = self._bytes(target.path, target.sha256, target.length, self._timeout_s)
        self.on_download(target.custom.task, how, spent + target.length)
        return found

    def _bytes(self, what: str, sha256: str, length: int, timeout_s: float) -> bytes:
        count = max(1, math.ceil(length / CHUNK_BYTES))
        data = bytearray()
        for i in range(count):
            topic = self._topics.artifact(sha256, None if count == 1 else i)
            piece, wanted = self._fetch(topic, min(timeout_s, self._timeout_s)), min(CHUNK_BYTES, length - len(data))
            if len(piece) != wanted:
                raise PeerError(
                    f"{what}: found {len(piece)} bytes in part {i + 1} of {count}, expected {wanted}",
                    reason="limit" if len(piece) > wanted else "length",
                )
            data += piece
        return _checked(what, sha256, bytes(data))


def _checked(what: str, sha256: str, data: bytes) -> bytes:
    try:
        TargetFile(len(data), {"sha256": sha256}, what).verify_length_and_hashes(data)
    except exceptions.LengthOrHashMismatchError as fault:
        raise PeerError(f"{what}: found other bytes ({fault}), expected sha256 {sha256}", reason="digest") from fault
    return data
