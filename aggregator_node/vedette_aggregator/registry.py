"""The release registry: signs models and plans as TUF targets, and keeps what devices may still ask for.

Paths are ``{task}/{version}/{variant}`` (`target_path`). A task's role lists its last `RELEASES_KEPT` releases; the
`ReleaseTarget` of exactly one of them says ``active``. Going back is publishing: new, higher metadata whose active
release is an older one.

Source: The Update Framework specification 1.0.34; python-tuf 7 (metadata API).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]  # public names, imported there

from vedette_aggregator import registry_ceremony
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry_files import (
    RELEASE_LIFETIME,
    SNAPSHOT_LIFETIME,
    TIMESTAMP_LIFETIME,
    RepositoryFiles,
    RepositoryState,
)
from vedette_core.crypto.beacon import BEACON_EPOCHS
from vedette_core.runtime.durable import write_durable
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.model import MODEL_BYTES_MAX, ReleaseTarget, Variant, parse_custom, target_path
from vedette_schemas.trust import TIMESTAMP_FILE, BeaconAnchor

RELEASES_KEPT: Final = 3
"""Releases a task that stay on disk: the active one, the one before, and one more to go back to."""
WITHDRAWN_MAX: Final = 256
"""Names that are remembered as withdrawn, so that a broker that was away is cleaned up; oldest are forgotten first."""
_FORMATS: Final[Mapping[Variant, str]] = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}

Releases = dict[int, dict[Variant, TargetFile]]


@dataclass(frozen=True, slots=True)
class ListedTarget:
    """One file of a kept release, as signed metadata describe it: bytes, hex digest, and what it says of itself."""

    length: int
    sha256: str
    custom: ReleaseTarget


class Registry:
    """A site's release repository.

    Every method reads the current state from disk and holds the repository's lock while it changes something, so that
    the service and an operator's command can both use it.

    Args:
        directory: made by `Registry.create`.

    Raises:
        ConfigError: it is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files = RepositoryFiles(directory)
        state = self._files.load()
        self.site: Final = registry_ceremony.site_of(state.root)
        self.tasks: Final = tuple(state.roles)

    @classmethod
    def create(
        cls,
        directory: Path,
        site: str,
        tasks: Sequence[str],
        now: float,
        *,
        root_keys: int = 1,
        root_threshold: int = 1,
    ) -> Registry:
        """Make a repository with fresh keys and no release; see `registry_ceremony.create_repository`."""
        registry_ceremony.create_repository(
            directory, site, tasks, now, root_keys=root_keys, root_threshold=root_threshold
        )
        return cls(directory)

    @property
    def root(self) -> bytes:
        """The first root file: what a device is given at enrolment; later ones it follows by itself."""
        return self._files.read("1.root.json")

    def publish(
        self,
        task: str,
        version: int,
        files: Mapping[Variant, bytes],
        custom: Mapping[Variant, ReleaseTarget],
        now: float,
        *,
        is_active: bool = True,
        keep: Collection[int] = (),
    ) -> Publication:
        """Sign a release, and make it the active one or list it as a candidate; durable before this returns.

        A crash at any step leaves the old state or the new one. The same release again changes nothing and returns
        what belongs on the retained topics, so that a caller who crashed in between just repeats the call.

        Args:
            task: the task.
            version: one more than the newest; 0 for the first.
            files: bytes by variant; weights and plan among them.
            custom: what the release says of itself, by variant; ``active`` is set here.
            now: epoch seconds.
            is_active: without it the release is only listed, and the active one stays; the first is always active.
            keep: older releases that must stay listed, whatever else goes.

        Raises:
            RefusedError: another version was expected, or files and their descriptions do not fit each other.
            TransientError: the disk is full; the old state stays.
            ConfigError: unknown task, missing key, damaged repository.
        """
        targets = _targets(task, version, files, custom)
        with self._files.locked():
            state = self._files.load()
            role = self._role(state, task)
            releases = _releases(role)
            newest = max(releases, default=-1)
            if version in releases and _same(releases[version], targets):
                return self._current(state, task, {t.hashes["sha256"] for t in targets.values()})
            if version != newest + 1:
                raise RefusedError(
                    f"release {task} {version}: found the newest release to be {newest}, expected version {newest + 1}",
                    rule="version",
                )
            active = _active(releases)
            order = sorted(releases, key=lambda v: (v in keep or v == active, v))
            count = max(RELEASES_KEPT - 1, sum(v in keep or v == active for v in releases))
            kept = {v: releases[v] for v in sorted(order[-count:])}
            chosen = version if is_active or active is None else active
            contents = Targets(targets=_listed({**kept, version: targets}, chosen))
            artifacts = {targets[v].hashes["sha256"]: data for v, data in files.items()}
            for sha256, data in artifacts.items():
                self._files.add_artifact(sha256, data)
            return self._commit(state, now, {task: contents}, artifacts)

    def rollback(self, task: str, to_version: int, now: float) -> Publication:
        """Make an older release the active one again; see `activate`."""
        return self.activate(task, to_version, now)

    def activate(self, task: str, to_version: int, now: float) -> Publication:
        """Make a kept release the active one, in new metadata; durable before this returns.

        Raises:
            RefusedError: it is not one of the releases that are kept.
            TransientError, ConfigError: as `publish`.
        """
        with self._files.locked():
            state = self._files.load()
            releases = _releases(self._role(state, task))
            if to_version not in releases:
                raise RefusedError(
                    f"activation for {task}: found no release {to_version}, expected one of "
                    f"{', '.join(map(str, sorted(releases))) or 'none'}",
                    rule="version",
                )
            contents = Targets(targets=_listed(releases, to_version))
            digests = {d for shown in _shown(_releases(contents)) for d in _digests(shown)}
            if _active(releases) == to_version:
                return self._current(state, task, digests)
            artifacts = {d: self._files.artifact(d) for d in sorted(digests)}
            return self._commit(state, now, {task: contents}, artifacts)

    def refresh_timestamp(self, now: float) -> Publication:
        """Sign again what has used up half of its life: timestamp, snapshot, the tasks' roles.

        Call it every few hours. An empty publication (falsy) means that nothing was due.

        Raises:
            TransientError, ConfigError: as `publish`.
        """
        with self._files.locked():
            state = self._files.load()
            roles = {
                task: targets
                for task, targets in state.roles.items()
                if targets.expires.timestamp() - now < RELEASE_LIFETIME.total_seconds() / 2
            }
            snapshot = state.snapshot.expires.timestamp() - now < SNAPSHOT_LIFETIME.total_seconds() / 2
            timestamp = state.timestamp.expires.timestamp() - now < TIMESTAMP_LIFETIME.total_seconds() / 2
            if not (roles or snapshot or timestamp):
                return Publication({}, {}, self._retained_files(state))
            return self._commit(state, now, roles, {}, renew_snapshot=snapshot)

    def retained(self) -> Publication:
        """Everything that must be on retained topics now: publish it whenever the aggregator reconnects.

        Every root, the current metadata with the files before it (for devices in the middle of a refresh), and each
        task's active release, the one before it, and the candidates.

        Raises:
            ConfigError: the repository is damaged.
        """
        with self._files.locked():
            state = self._files.load()
            names = self._retained_files(state)
            metadata = {name: self._files.read(name) for name in names}
            artifacts = {d: self._files.artifact(d) for d in self._retained_artifacts(state)}
            return self._publication(state, metadata, artifacts)

    def versions(self, task: str) -> tuple[int, ...]:
        """Releases of a task that are kept, ascending."""
        return tuple(sorted(_releases(self._role(self._files.load(), task))))

    def active(self, task: str) -> int | None:
        """Version of the task's active release; None before the first."""
        return _active(_releases(self._role(self._files.load(), task)))

    def target(self, task: str, version: int, variant: Variant) -> tuple[ReleaseTarget, bytes]:
        """One target of a kept release: what it says of itself, and its bytes (digest checked).

        Raises:
            RefusedError: there is none.
            ConfigError: its file is missing or damaged.
        """
        found = _releases(self._role(self._files.load(), task)).get(version, {}).get(variant)
        if found is None:
            raise RefusedError(f"release {task} {version}: found no {variant.value} target", rule="version")
        return parse_custom(found.custom), self._files.artifact(found.hashes["sha256"])

    def listed(self, task: str, version: int) -> dict[Variant, ListedTarget]:
        """Every file of a kept release, by variant; none of them is read.

        Raises:
            RefusedError: there is no such release.
        """
        release = _releases(self._role(self._files.load(), task)).get(version)
        if release is None:
            kept = ", ".join(map(str, self.versions(task))) or "none"
            raise RefusedError(
                f"release {task} {version}: not found, expected one of those kept: {kept}", rule="version"
            )
        return {v: ListedTarget(t.length, t.hashes["sha256"], parse_custom(t.custom)) for v, t in release.items()}

    def expires(self) -> dict[str, float]:
        """When each signed file ends, epoch seconds by role; root and targets need the offline keys before that."""
        state = self._files.load()
        top = {"root": state.root, "targets": state.targets, "snapshot": state.snapshot, "timestamp": state.timestamp}
        return {role: signed.expires.timestamp() for role, signed in (top | dict(state.roles)).items()}

    @property
    def beacon_anchor(self) -> BeaconAnchor:
        """The public end of the site's beacon chain; see `registry_ceremony.beacon_of`."""
        return registry_ceremony.beacon_of(self._files.load().root)

    def beacon(self, epoch: int) -> bytes:
        """The 32 bytes that assign devices to groups in an epoch (1 and up); nobody else may see them before it begins.

        Raises:
            ConfigError: there is no anchor, the chain is used up, or its seed is missing or another one.
        """
        with self._files.locked():
            return self._files.beacon_chain(self.beacon_anchor).value(epoch)

    def renew(
        self, offline_keys: Path, now: float, rotate: Iterable[str] = (), *, beacon_epochs: int = BEACON_EPOCHS
    ) -> Publication:
        """Renew root and targets with the offline keys; see `registry_ceremony.renew`. Returns what to retain."""
        with self._files.locked():
            self._remember_withdrawn(self._files.load(verify=False))
        registry_ceremony.renew(self._files.directory, offline_keys, now, set(rotate), beacon_epochs=beacon_epochs)
        return self.retained()

    def _commit(
        self,
        state: RepositoryState,
        now: float,
        roles: Mapping[str, Targets],
        artifacts: Mapping[str, bytes],
        *,
        renew_snapshot: bool = False,
    ) -> Publication:
        self._remember_withdrawn(state)
        written = self._files.commit(state, now, roles, renew_snapshot=renew_snapshot)
        state = self._files.load()
        kept = {d for targets in state.roles.values() for r in _releases(targets).values() for d in _digests(r)}
        self._files.prune(set(self._retained_files(state)), kept)
        return self._publication(state, written, artifacts)

    def _current(self, state: RepositoryState, task: str, digests: Iterable[str]) -> Publication:
        names = (f"{state.roles[task].version}.{task}.json", f"{state.snapshot.version}.snapshot.json", TIMESTAMP_FILE)
        metadata = {name: self._files.read(name) for name in names}
        return self._publication(state, metadata, {d: self._files.artifact(d) for d in sorted(digests)})

    def _publication(
        self, state: RepositoryState, metadata: Mapping[str, bytes], artifacts: Mapping[str, bytes]
    ) -> Publication:
        names = self._retained_files(state)
        files, digests = self._withdrawn()
        kept = self._retained_artifacts(state)
        return Publication(
            dict(metadata),
            dict(artifacts),
            names,
            tuple(name for name in files if name not in names),
            {d: length for d, length in digests.items() if d not in kept},
        )

    def _role(self, state: RepositoryState, task: str) -> Targets:
        if task not in state.roles:
            raise ConfigError(
                f"release repository {self._files.directory}: found no task {task!r}, expected one of "
                f"{', '.join(state.roles)}"
            )
        return state.roles[task]

    def _retained_files(self, state: RepositoryState) -> tuple[str, ...]:
        """Current metadata and, for devices that read the timestamp a moment ago, the files before it."""
        signed = {"targets": state.targets, "snapshot": state.snapshot, **state.roles}
        before = (f"{s.version - 1}.{role}.json" for role, s in signed.items() if s.version > 1)
        there = set(self._files.names())
        return (*(name for name in before if name in there), *state.files())

    def _retained_artifacts(self, state: RepositoryState) -> dict[str, int]:
        """Length by digest of the active release, the one before it and those that are newer, of every task."""
        return {
            t.hashes["sha256"]: t.length
            for targets in state.roles.values()
            for release in _shown(_releases(targets))
            for t in release.values()
        }

    def _withdrawn(self) -> tuple[tuple[str, ...], dict[str, int]]:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(self._files.withdrawn.read_bytes())
            return tuple(map(str, found["files"])), {str(d): int(n) for d, n in found["artifacts"].items()}
        return (), {}  # only a broker's memory hangs on it

    def _remember_withdrawn(self, state: RepositoryState) -> None:
        """Note, before a commit, everything that is retained now; what still is afterwards is left out when read.

        So a crash right after the commit cannot make us forget what has to be cleared from the broker.
        """
        files, artifacts = self._withdrawn()
        files = tuple(dict.fromkeys((*files, *self._retained_files(state))))
        artifacts |= self._retained_artifacts(state)
        text = {"files": files[-WITHDRAWN_MAX:], "artifacts": dict(list(artifacts.items())[-WITHDRAWN_MAX:])}
        write_durable(self._files.withdrawn, json.dumps(text).encode())


def _targets(
    task: str, version: int, files: Mapping[Variant, bytes], custom: Mapping[Variant, ReleaseTarget]
) -> dict[Variant, TargetFile]:
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
            {"custom": said.model_dump(mode="json")},
        )
    return targets


def _listed(releases: Releases, active: int) -> dict[str, TargetFile]:
    """Targets by path, with exactly one release marked active."""
    listed = {}
    for version, release in releases.items():
        for target in release.values():
            said = {"custom": target.custom | {"active": version == active}}
            listed[target.path] = TargetFile(target.length, dict(target.hashes), target.path, said)
    return listed


def _releases(role: Targets) -> Releases:
    releases: Releases = {}
    for path, target in role.targets.items():
        try:
            said = parse_custom(target.custom)
        except PeerError as fault:
            raise ConfigError(f"release metadata of {path}: {fault}; restore a backup of the repository") from fault
        releases.setdefault(said.version, {})[said.variant] = target
    return releases


def _active(releases: Releases) -> int | None:
    return next((v for v, r in releases.items() if any(t.custom["active"] for t in r.values())), None)


def _shown(releases: Releases) -> list[dict[Variant, TargetFile]]:
    """The active release, the one that it was made from (else the one below it), and those that are newer."""
    active = _active(releases)
    if active is None:
        return []
    parent = parse_custom(releases[active][Variant.WEIGHTS].custom).parent
    before = [v for v, r in releases.items() if v != active and r[Variant.WEIGHTS].hashes["sha256"] == parent]
    before = before or [v for v in releases if v < active]
    newer = [v for v in sorted(releases) if v > active]
    return [releases[v] for v in (active, *(v for v in sorted(before)[-1:] if v < active), *newer)]


def _digests(release: Mapping[Variant, TargetFile]) -> set[str]:
    return {t.hashes["sha256"] for t in release.values()}


def _same(found: Mapping[Variant, TargetFile], wanted: Mapping[Variant, TargetFile]) -> bool:
    def plain(release: Mapping[Variant, TargetFile]) -> dict[Variant, tuple[str, bytes]]:
        return {v: (t.hashes["sha256"], codec.canonical_json({**t.custom, "active": True})) for v, t in release.items()}

    return plain(found) == plain(wanted)


def _names(variants: Iterable[Variant]) -> str:
    return ", ".join(sorted(v.value for v in variants)) or "none"
