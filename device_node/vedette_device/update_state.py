"""What an update machine remembers: its phases, its limits, and what survives a restart."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from vedette_device.verified_release import MetadataVersion
from vedette_schemas.codec import Message
from vedette_schemas.model import Digest
from vedette_schemas.trust import REVOKED_FILES_MAX, REVOKED_MAX

ATTEMPTS_MAX: Final = 3
"""Times a release is tried. One crash may be a power cut; three in its hands are its fault."""
RETRY_S: Final = 30.0
RETRY_S_MAX: Final = 3600.0
"""Waits between tries, seconds: doubled each time, and spread, so that no fleet storms a broker that comes back."""
ANSWER_S_MAX: Final = 900.0
"""Longest wait for the shell's answer to an effect; a 4 MiB model over a slow link takes a few minutes."""
TRIAL_S_MAX: Final = 6 * 3600.0
"""Longest trial. A model that has not scored enough windows by then has shown nothing; the last good one returns."""
FAILED_MAX: Final = 8
"""Failed releases that are remembered; the registry offers no more than its last three."""


REVOKED_DIGESTS_MAX: Final = REVOKED_MAX * REVOKED_FILES_MAX
"""Revoked files that are remembered: as many as a signed list can have, so that none is left out."""


class Phase(StrEnum):
    """Where an update is."""

    BOOTING = "booting"
    IDLE = "idle"
    WAITING = "waiting"
    STAGING = "staging"
    TESTING = "testing"
    ACTIVATING = "activating"
    TRIAL = "trial"


class FailedRelease(Message):
    """A release that is not tried again: its version and the digest of the variant that failed here."""

    version: Annotated[int, Field(ge=0)]
    sha256: Digest


class UpdateState(Message):
    """What survives a restart.

    Attributes:
        seen: newest metadata version that announced a release; see `MetadataVersion`.
        tried: digest of the release that is being tried; empty for none.
        attempts: how often it was.
        failed: releases that are not tried again.
        revoked: digests of files that are not run, as the newest metadata name them.
        revoked_at: version of the metadata that changed the list last.
    """

    seen: MetadataVersion = (0, 0)
    tried: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    attempts: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[tuple[FailedRelease, ...], Field(max_length=FAILED_MAX)] = ()
    revoked: Annotated[tuple[Digest, ...], Field(max_length=REVOKED_DIGESTS_MAX)] = ()
    revoked_at: tuple[int, int] = (0, 0)
