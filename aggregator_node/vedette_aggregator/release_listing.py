"""What a task's signed role lists: its releases as targets by variant, which of them is active, and what is shown.

Source: The Update Framework specification 1.0.34, §4.5 (targets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tuf.api.metadata import TargetFile, Targets

from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.model import MODEL_BYTES_MAX, ReleaseDiff, ReleaseTarget, Variant, parse_custom, target_path
from vedette_schemas.trust import REVOKED_FIELD, REVOKED_MAX, RevokedRelease, parse_revoked

_FORMATS: Final[Mapping[Variant, str]] = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}

Releases = dict[int, dict[Variant, TargetFile]]


def release_targets(
    task: str,
    version: int,
    files: Mapping[Variant, bytes],
    custom: Mapping[Variant, ReleaseTarget],
    diffs: Mapping[Variant, ReleaseDiff],
) -> dict[Variant, TargetFile]:
    """A new release's targets, as its role will list them.

    Raises:
        RefusedError: files and their descriptions do not fit each other.
    """
    what = f"release {task} {version}"
    if set(files) != set(custom) or not {Variant.WEIGHTS, Variant.PLAN} <= set(files):
        raise RefusedError(
            f"{what}: found files {_names(files)} and descriptions {_names(custom)}, expected the same variants, "
            "weights and plan among them",
            rule="variants",
        )
    plan = hashlib.sha256(files[Variant.PLAN]).hexdigest()
    targets = {}
    for variant, data in files.items():
        said = custom[variant]
        form = _FORMATS.get(variant, "tflite")
        if not 1 <= len(data) <= MODEL_BYTES_MAX:
            raise RefusedError(
                f"{what} {variant.value}: found {len(data)} bytes, expected 1 to {MODEL_BYTES_MAX}", rule="limit"
            )
        if (said.task, said.version, said.variant, said.format, said.plan) != (task, version, variant, form, plan):
            raise RefusedError(
                f"{what} {variant.value}: found a description of {said.task} {said.version} {said.variant.value} "
                f"({said.format}, plan {said.plan[:12]}…), expected {form} and plan {plan[:12]}…",
                rule="description",
            )
        targets[variant] = TargetFile(
            len(data),
            {"sha256": hashlib.sha256(data).hexdigest()},
            target_path(task, version, variant),
            {"custom": plain_custom(said.model_copy(update={"diff": diffs.get(variant)}))},
        )
    return targets


def plain_custom(said: ReleaseTarget) -> dict[str, Any]:
    """The custom field of a target; what is not there is left out, so that devices from before can read the rest."""
    return said.model_dump(mode="json", exclude_none=True)


def listed_targets(releases: Releases, active: int) -> dict[str, TargetFile]:
    """Targets by path, with exactly one release marked active."""
    listed = {}
    for version, release in releases.items():
        for target in release.values():
            said = {"custom": target.custom | {"active": version == active}}
            listed[target.path] = TargetFile(target.length, dict(target.hashes), target.path, said)
    return listed


def releases_of(role: Targets) -> Releases:
    """The releases that a role lists, by version.

    Raises:
        ConfigError: a target that does not say what it is.
    """
    releases: Releases = {}
    for path, target in role.targets.items():
        try:
            said = parse_custom(target.custom)
        except PeerError as fault:
            raise ConfigError(f"release metadata of {path}: {fault}; restore a backup of the repository") from fault
        releases.setdefault(said.version, {})[said.variant] = target
    return releases


def revoked_of(role: Targets) -> tuple[RevokedRelease, ...]:
    """The releases that a role revokes, oldest first.

    Raises:
        ConfigError: a list that cannot be read.
    """
    try:
        return parse_revoked(role.unrecognized_fields)
    except PeerError as fault:
        raise ConfigError(f"release metadata: {fault}; restore a backup of the repository") from fault


def revoking_fields(revoked: Iterable[RevokedRelease]) -> dict[str, Any]:
    """The additional fields of a role that revokes releases."""
    plain = [each.model_dump(mode="json") for each in revoked]
    return {REVOKED_FIELD: plain[-REVOKED_MAX:]} if plain else {}


def active_version(releases: Releases) -> int | None:
    """Which of them is active; None for none."""
    return next((v for v, r in releases.items() if any(t.custom["active"] for t in r.values())), None)


def newest_version(releases: Iterable[int], revoked: Iterable[RevokedRelease]) -> int:
    """The highest number that was ever given, a revoked one counted; −1 for none."""
    return max([*releases, *(each.version for each in revoked)], default=-1)


def shown_releases(releases: Releases) -> list[dict[Variant, TargetFile]]:
    """The active release, the one that it was made from (else the one below it), and those that are newer."""
    active = active_version(releases)
    if active is None:
        return []
    parent = parse_custom(releases[active][Variant.WEIGHTS].custom).parent
    before = [v for v, r in releases.items() if v != active and r[Variant.WEIGHTS].hashes["sha256"] == parent]
    before = before or [v for v in releases if v < active]
    newer = [v for v in sorted(releases) if v > active]
    return [releases[v] for v in (active, *(v for v in sorted(before)[-1:] if v < active), *newer)]


def lengths_of(release: Mapping[Variant, TargetFile]) -> dict[str, int]:
    """Length by digest of everything that belongs to a release, diffs among it."""
    found = {t.hashes["sha256"]: t.length for t in release.values()}
    diffs = (parse_custom(t.custom).diff for t in release.values())
    return found | {diff.sha256: diff.length for diff in diffs if diff is not None}


def is_same(found: Mapping[Variant, TargetFile], wanted: Mapping[Variant, TargetFile]) -> bool:
    """Whether a listed release is this one; which is active, and diffs, were decided when it was published."""

    def plain(release: Mapping[Variant, TargetFile]) -> dict[Variant, tuple[str, bytes]]:
        said = {v: {k: x for k, x in t.custom.items() if k not in ("active", "diff")} for v, t in release.items()}
        return {v: (t.hashes["sha256"], codec.canonical_json(said[v])) for v, t in release.items()}

    return plain(found) == plain(wanted)


def _names(variants: Iterable[Variant]) -> str:
    return ", ".join(sorted(v.value for v in variants)) or "none"
