"""Attacks on a site's releases: somebody who has its online keys, and a site worth attacking."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

from release_site import Site
from tuf.api.metadata import TargetFile, Targets

from vedette_aggregator.registry_files import RepositoryFiles, RepositoryState, meta_file


def with_releases(folder: Path) -> Site:
    """A site with release 0 of each task."""
    site = Site(folder)
    site.publish("network", 0)
    site.publish("sensor", 0)
    return site


class Thief:
    """Has the online keys of a site, and signs what he likes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.files = RepositoryFiles(site.folder / "stolen")
        shutil.copytree(site.repository, self.files.directory)

    def show(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.site.retained[self.site.file(name)] = data

    def sign_top(self, change: Callable[[RepositoryState], None]) -> None:
        """Change snapshot and timestamp, raise their versions, sign both."""
        state = copy.deepcopy(self.files.load())
        change(state)
        state.snapshot.version += 1
        snapshot = self.files.sign(state.snapshot, "snapshot", state.root)
        state.timestamp.version += 1
        state.timestamp.snapshot_meta = meta_file(state.snapshot.version, snapshot)
        timestamp = self.files.sign(state.timestamp, "timestamp", state.root)
        self.show({f"{state.snapshot.version}.snapshot.json": snapshot, "timestamp.json": timestamp})

    def sign_role(self, task: str, change: Callable[[dict[str, TargetFile]], None]) -> None:
        """Change a task's targets and sign everything that hangs on them."""
        state = self.files.load()
        targets = dict(state.roles[task].targets)
        change(targets)
        self.show(self.files.commit(state, self.site.now, {task: Targets(targets=targets)}))
