"""What one verified state of a release repository lists: many questions, one read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tuf.api.metadata import Targets

from vedette_aggregator.registry_files import RepositoryFiles
from vedette_aggregator.release_listing import Releases, active_version, newest_version, releases_of, revoked_of
from vedette_aggregator.release_source import ListedTarget
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.model import ReleaseTarget, Variant, parse_custom
from vedette_schemas.trust import RevokedRelease


class ListedReleases:
    """The releases that the tasks' roles list, in a state whose signatures were checked when it was read.

    A `ReleaseSource`. It never changes: what is published later stands in the next one. Of the files only the digests
    are in it, and one may be tidied away while it is held.

    Every method raises `ConfigError` for an unknown task, and for a role that does not say what it lists.

    Args:
        files: holds the releases' files.
        roles: the signed roles, by task.

    Attributes:
        tasks: their names.
    """

    def __init__(self, files: RepositoryFiles, roles: Mapping[str, Targets]) -> None:
        self._files, self._roles = files, roles
        self._releases: dict[str, Releases] = {}
        self.tasks: Final = tuple(roles)

    def versions(self, task: str) -> tuple[int, ...]:
        """Releases of a task that are kept, ascending."""
        return tuple(sorted(self._of(task)))

    def active(self, task: str) -> int | None:
        """Version of the task's active release; None before the first."""
        return active_version(self._of(task))

    def revoked(self, task: str) -> tuple[RevokedRelease, ...]:
        """Releases of a task that are revoked, oldest first."""
        return revoked_of(self.role(task))

    def next_version(self, task: str) -> int:
        """What the next release has to be: one more than the newest, a revoked one counted."""
        return newest_version(self._of(task), self.revoked(task)) + 1

    def listed(self, task: str, version: int) -> dict[Variant, ListedTarget]:
        """Every file of a kept release, by variant; none of them is read.

        Raises:
            RefusedError: there is no such release.
        """
        release = self._of(task).get(version)
        if release is None:
            kept = ", ".join(map(str, self.versions(task))) or "none"
            raise RefusedError(
                f"release {task} {version}: not found, expected one of those kept: {kept}", rule="version"
            )
        return {v: ListedTarget(t.length, t.hashes["sha256"], parse_custom(t.custom)) for v, t in release.items()}

    def target(self, task: str, version: int, variant: Variant) -> tuple[ReleaseTarget, bytes]:
        """One file of a kept release: what it says of itself, and its bytes (length and digest checked).

        Raises:
            RefusedError: there is none.
            ConfigError: it is missing or damaged.
        """
        found = self._of(task).get(version, {}).get(variant)
        if found is None:
            raise RefusedError(f"release {task} {version}: found no {variant.value} target", rule="version")
        data = self._files.artifact(found.hashes["sha256"])
        if len(data) != found.length:
            raise ConfigError(f"{found.path}: found {len(data)} bytes, expected {found.length}")
        return parse_custom(found.custom), data

    def role(self, task: str) -> Targets:
        """A task's signed role."""
        if task not in self._roles:
            raise ConfigError(
                f"release repository {self._files.directory}: found no task {task!r}, expected one of "
                f"{', '.join(self._roles)}"
            )
        return self._roles[task]

    def _of(self, task: str) -> Releases:
        """Every description in a role is parsed for this, so once a task."""
        if task not in self._releases:
            self._releases[task] = releases_of(self.role(task))
        return self._releases[task]
