"""Where checks of releases read them from: a repository, or a proposal that is not signed by all yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vedette_schemas.model import ReleaseTarget, Variant


@dataclass(frozen=True, slots=True)
class ListedTarget:
    """One file of a kept release, as signed metadata describe it: bytes, hex digest, and what it says of itself."""

    length: int
    sha256: str
    custom: ReleaseTarget


class ReleaseSource(Protocol):
    """Releases and their files."""

    def versions(self, task: str) -> tuple[int, ...]:
        """Releases of a task that are listed, ascending."""

    def listed(self, task: str, version: int) -> Mapping[Variant, ListedTarget]:
        """Every file of a release, by variant; none of them is read.

        Raises:
            RefusedError: there is no such release.
        """

    def target(self, task: str, version: int, variant: Variant) -> tuple[ReleaseTarget, bytes]:
        """One file: what it says of itself, and its bytes (digest checked).

        Raises:
            RefusedError: there is none.
            ConfigError: its file is missing or damaged.
        """
