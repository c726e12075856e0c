"""Signed release metadata on retained topics: the limits both sides hold, and the hint about which files exist.

The files themselves are TUF metadata as they are (``public/trust/{file}``, ``_`` for each dot); only
the hint is a message of ours.

Source: The Update Framework specification 1.0.34, §4 (file formats) and §5 (client workflow).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.model import Digest

ROOT_BYTES_MAX: Final = 64 * 1024
"""Largest root file: room for some forty Ed25519 keys and signatures."""
TIMESTAMP_BYTES_MAX: Final = 16 * 1024
"""Largest timestamp file; it names one snapshot and is about 0.5 KiB."""
SNAPSHOT_BYTES_MAX: Final = 64 * 1024
"""Largest snapshot file; one entry of about 150 bytes a task."""
TARGETS_BYTES_MAX: Final = 192 * 1024
"""Largest targets file; fits one MQTT message, and holds the kept releases of a task many times over."""
ROOT_ROTATIONS_MAX: Final = 64
"""Most root files that are walked in one refresh: some decades of yearly rotations."""
TASKS_MAX: Final = 8
"""Most tasks of a site, and so most delegated roles."""

BEACON_EPOCHS_MAX: Final = 65_536
"""Longest beacon chain: a device hashes once an epoch to check a value, and an epoch is at least minutes."""

BEACON_FIELD: Final = "x-vedette-beacon"
"""Where the root metadata carry the `BeaconAnchor`."""
REVOKED_FIELD: Final = "x-vedette-revoked"
"""Where a task's role carries its list of `RevokedRelease`; devices from before do not look at it."""
REVOKED_MAX: Final = 64
"""Most revoked releases that a task remembers, oldest forgotten first; five digests each are some 25 KiB."""
REVOKED_FILES_MAX: Final = 8
"""Most files of one revoked release: every variant, and some to spare."""
TIMESTAMP_FILE: Final = "timestamp.json"
VERSION_MAX: Final = 2**53
"""Highest version that is believed to be one: what JSON numbers are exact to."""
INDEX_FILE: Final = "index.json"
ROLE_NAMES: Final = frozenset({"root", "targets", "snapshot", "timestamp", "index"})
"""Names that a task cannot have, because its role's files would be taken for these."""


class TrustIndex(Message):
    """Names of the metadata files that are retained now; an **untrusted hint**.

    A retained topic that is empty never answers, so that a device could learn only by waiting that there is no newer
    root. The hint spares it the wait. It is not signed and decides nothing: leaving a file out delays a device exactly
    as withholding the file would, and naming a file that is not there delays it by one wait.

    Attributes:
        files: file names below ``public/trust/``.
    """

    files: Annotated[tuple[Annotated[str, Field(max_length=255)], ...], Field(max_length=512)]


def announced_version(timestamp: bytes) -> int:
    """The version that a timestamp file names, **before anything of it is verified**: a hint of what there is to see.

    Returns:
        0 if it names none: it is too large, no JSON, or has no version that could be one.
    """
    if len(timestamp) > TIMESTAMP_BYTES_MAX:
        return 0
    try:
        version = json.loads(timestamp)["signed"]["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return version if type(version) is int and 0 < version <= VERSION_MAX else 0


class RevokedRelease(Message):
    """A release that no device may run again; in the signed role of its task, until `REVOKED_MAX` others followed.

    Attributes:
        version: its release version.
        sha256: of each of its files but the plan, which other releases share. The digests are what counts: a release
            that a thief signed may have the number of a sound one.
        reason: why, for people.
    """

    version: Annotated[int, Field(ge=0)]
    sha256: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=REVOKED_FILES_MAX)]
    reason: Annotated[str, Field(min_length=1, max_length=200)]


class BeaconAnchor(Message):
    """The public end of a site's beacon chain; in the root metadata, so that only the offline keys can replace it.

    The value of epoch e is the one from which e applications of the scheme's hash lead here.

    Attributes:
        scheme: which hash: SHA-256 over length-prefixed ``vedette-beacon-chain-1`` and value (`hash_parts`).
        anchor: the end, 32 bytes as hex.
        length: how many epochs the chain has; they count from 1.
    """

    scheme: Literal["sha256-chain-1"]
    anchor: Digest
    length: Annotated[int, Field(ge=1, le=BEACON_EPOCHS_MAX)]


def parse_anchor(fields: Mapping[str, Any]) -> BeaconAnchor | None:
    """Read the anchor from the additional fields of verified root metadata; None if they have none.

    Raises:
        PeerError: unknown scheme, unknown or missing field, wrong type or range.
    """
    if BEACON_FIELD not in fields:
        return None
    return codec.unpack_json(BeaconAnchor, codec.canonical_json(fields[BEACON_FIELD]))


def parse_revoked(fields: Mapping[str, Any]) -> tuple[RevokedRelease, ...]:
    """Read the revoked releases from the additional fields of a verified role; none if it has no such field.

    Raises:
        PeerError: unknown or missing field, wrong type or range, too many.
    """
    found = fields.get(REVOKED_FIELD, [])
    if not isinstance(found, list) or len(found) > REVOKED_MAX:
        raise PeerError(f"{REVOKED_FIELD}: found no list, or too long a one; expected at most {REVOKED_MAX} releases")
    return tuple(codec.unpack_json(RevokedRelease, codec.canonical_json(each)) for each in found)
