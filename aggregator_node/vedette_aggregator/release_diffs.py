"""Diffs from the release that devices run to the one that is about to be published, a file at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vedette_core.learning.artifact_diff import make_diff
from vedette_schemas.model import ReleaseDiff, Variant

DIFF_SHARE_MAX: Final = 0.9
"""Largest part of the file that a diff may have: below that it saves too little for another file on the broker."""


@dataclass(frozen=True, slots=True)
class MadeDiff:
    """A diff, and how signed metadata speak of it."""

    said: ReleaseDiff
    data: bytes = field(repr=False)


def release_diffs(before: Mapping[Variant, bytes], after: Mapping[Variant, bytes]) -> dict[Variant, MadeDiff]:
    """A diff of each file that changed and has one that is worth it.

    Args:
        before: files of the active release, by variant.
        after: of the new one.
    """
    found = {}
    for variant, data in after.items():
        parent = before.get(variant)
        if parent is None or parent == data:
            continue
        diff = make_diff(parent, data)
        if len(diff) <= DIFF_SHARE_MAX * len(data):
            sha256 = hashlib.sha256(diff).hexdigest()
            said = ReleaseDiff(parent=hashlib.sha256(parent).hexdigest(), sha256=sha256, length=len(diff))
            found[variant] = MadeDiff(said, diff)
    return found
