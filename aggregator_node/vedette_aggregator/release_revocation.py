"""What a task's role lists after a release was revoked.

A revoked release is no target any more, and the role names its digests. Digests are what counts: a release that a
thief signed may have the number of a sound one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from tuf.api.metadata import Targets

from vedette_aggregator.release_listing import (
    active_version,
    listed_targets,
    releases_of,
    revoked_of,
    revoking_fields,
)
from vedette_schemas.errors import RefusedError
from vedette_schemas.model import Variant
from vedette_schemas.trust import REVOKED_FILES_MAX, RevokedRelease

REASON_CHARACTERS_MAX: Final = 200
AHEAD_MAX: Final = 1000
"""How far the number of a release that is not ours may be ahead: it is what a device says, and numbers only go up."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def without_release(task: str, role: Targets, version: int, reason: str, digests: Collection[str]) -> Targets | None:
    """The role's next contents; None if it revokes that release already.

    Args:
        task: the task.
        role: its current contents.
        version: of the release.
        reason: why, 1 to `REASON_CHARACTERS_MAX` characters.
        digests: of its files, for a release that is not listed.

    Raises:
        RefusedError: it is not listed and no digests are given, a digest belongs to a release that stays, or nothing
            would be left to go to.
    """
    if not 1 <= len(reason) <= REASON_CHARACTERS_MAX:
        raise RefusedError(
            f"reason: found {len(reason)} characters, expected 1 to {REASON_CHARACTERS_MAX}", rule="reason"
        )
    bad = sorted(d for d in digests if not _SHA256.fullmatch(d))
    if bad:
        raise RefusedError(f"digests: found {bad[0][:80]!r}, expected 64 hex digits of a sha256", rule="digest")
    releases, revoked = releases_of(role), revoked_of(role)
    found = {t.hashes["sha256"] for v, t in releases.get(version, {}).items() if v is not Variant.PLAN}
    wanted = set(digests) or found
    known = {d for each in revoked for d in each.sha256}
    if (wanted and wanted <= known) or (not wanted and any(each.version == version for each in revoked)):
        return None
    if not wanted:
        kept = ", ".join(map(str, sorted(releases))) or "none"
        raise RefusedError(
            f"release {task} {version}: not found, expected one of those kept ({kept}), or the digests that devices "
            "reported of a release that is not ours",
            rule="version",
        )
    plans = {r[Variant.PLAN].hashes["sha256"] for r in releases.values() if Variant.PLAN in r}
    gone = {v for v, r in releases.items() if wanted & {t.hashes["sha256"] for t in r.values()} - plans}
    if wanted & plans or gone - {version}:
        raise RefusedError(
            f"release {task} {version}: found digests of another release that stays ({sorted(gone - {version})}), or "
            "of a plan, expected only its own files",
            rule="digest",
        )
    left = {v: r for v, r in releases.items() if v not in gone}
    if releases and not left:
        raise RefusedError(
            f"release {task} {version}: found no other release to go to, expected one; publish a sound one first, or "
            "stop the task's devices",
            rule="last-release",
        )
    files = wanted | (found if gone else set())
    if version < 0 or len(files) > REVOKED_FILES_MAX:
        raise RefusedError(
            f"release {task} {version}: found {len(files)} digests, expected a number from 0 on and at most "
            f"{REVOKED_FILES_MAX} files; revoke the others under another number",
            rule="digest",
        )
    newest = max([*releases, *(each.version for each in revoked)], default=0)
    if version > newest + AHEAD_MAX:
        raise RefusedError(
            f"release {task} {version}: found a number far from the newest, {newest}, expected at most "
            f"{newest + AHEAD_MAX}: the next release would have to be above it. Revoke its digests as {newest + 1}",
            rule="version",
        )
    active = active_version(releases)
    entry = RevokedRelease(version=version, sha256=tuple(sorted(files)), reason=reason)
    return Targets(
        targets=listed_targets(left, successor(left, active, version)),
        unrecognized_fields=revoking_fields((*revoked, entry)),
    )


def successor(left: Collection[int], active: int | None, revoked: int) -> int:
    """Which release is active once one is revoked; −1 if none is left.

    Never a newer one than was active, unless there is no other: that is a candidate that its rollout has not shown to
    be good, or a release that somebody went back from.
    """
    if active is not None and active in left:
        return active
    older = [version for version in left if version < (revoked if active is None else active)]
    return max(older) if older else max(left, default=-1)


def refuse_revoked(what: str, files: Mapping[Variant, bytes], revoked: Iterable[RevokedRelease]) -> None:
    """Check that nothing comes back that was revoked.

    Raises:
        RefusedError: a file that is.
    """
    known = {digest: each for each in revoked for digest in each.sha256}
    for variant, data in files.items():
        found = known.get(hashlib.sha256(data).hexdigest())
        if found is not None:
            raise RefusedError(
                f"{what} {variant.value}: found the bytes of release {found.version}, which was revoked "
                f"({found.reason}), expected others",
                rule="revoked",
            )
