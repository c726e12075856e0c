"""The release registry: signs models and plans as TUF targets, and keeps what devices may still ask for.

Paths are ``{task}/{version}/{variant}`` (`target_path`). A task's role lists its last `RELEASES_KEPT` releases; the
`ReleaseTarget` of exactly one of them says ``active``. Going back is publishing: new, higher metadata whose active
release is an older one.

Source: The Update Framework specification 1.0.34; python-tuf 7 (metadata API).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from tuf.api.metadata import Metadata, TargetFile, Targets

from vedette_aggregator import registry_ceremony, registry_draft, registry_proposal
from vedette_aggregator.countersigning import AwaitsValidatorError, Countersigning
from vedette_aggregator.listed_releases import ListedReleases
from vedette_aggregator.publication import Publication
from vedette_aggregator.registry_draft import OfflineKeys
from vedette_aggregator.registry_files import (
    RELEASE_LIFETIME,
    SNAPSHOT_LIFETIME,
    TIMESTAMP_LIFETIME,
    RepositoryFiles,
    RepositoryState,
)
from vedette_aggregator.registry_proposal import Proposal
from vedette_aggregator.registry_roles import RoleFacts, role_facts
from vedette_aggregator.release_diffs import release_diffs
from vedette_aggregator.release_listing import (
    Releases,
    active_version,
    is_same,
    lengths_of,
    listed_targets,
    newest_version,
    release_targets,
    releases_of,
    revoked_of,
    revoking_fields,
    shown_releases,
)
from vedette_aggregator.release_revocation import refuse_revoked, without_release
from vedette_aggregator.release_source import ListedTarget
from vedette_aggregator.withdrawn_names import WithdrawnNames
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.model import ReleaseTarget, Variant
from vedette_schemas.trust import TIMESTAMP_FILE, BeaconAnchor, RevokedRelease

log = logging.getLogger("vedette.registry")

RELEASES_KEPT: Final = 3
"""Releases a task that stay on disk: the active one, the one before, and one more to go back to."""


class _Read(NamedTuple):
    """A state whose signatures hold, and what it lists."""

    state: RepositoryState
    releases: ListedReleases


class Registry:
    """A site's release repository.

    The service and an operator's command can both use it: whatever changes something holds the repository's lock, and
    reads and verifies the state on disk for it. Questions are answered from the state that was verified last, as long
    as the timestamp file is the same: it is the commit point. Who has several of them asks one `state`.

    Args:
        directory: made by `Registry.create`.

    Raises:
        ConfigError: it is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files = RepositoryFiles(directory)
        self._withdrawn = WithdrawnNames(self._files.withdrawn)
        self._countersigning = Countersigning(self._files)
        self._read = self._load()
        self.site: Final = registry_draft.site_of(self._read.state.root)
        self.tasks: Final = self._read.releases.tasks

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
        after: int | None = None,
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
            after: the release that must be the active one until then; None for any.

        Raises:
            RefusedError: another version was expected, a file is revoked, another release than `after` is active, or
                files and their descriptions do not fit.
            TransientError: the disk is full; the old state stays.
            ConfigError: unknown task, missing key, damaged repository.
        """
        with self._files.locked():
            state = self._files.load()
            role = self._role(state, task)
            releases = releases_of(role)
            active, expected = active_version(releases), newest_version(releases, revoked_of(role)) + 1
            if version in releases and is_same(releases[version], release_targets(task, version, files, custom, {})):
                return self._current(state, task, lengths_of(releases[version]))
            if version != expected:
                raise RefusedError(
                    f"release {task} {version}: found the newest release to be {expected - 1}, expected version "
                    f"{expected}",
                    rule="version",
                )
            refuse_revoked(f"release {task} {version}", files, revoked_of(role))
            if after not in (None, active):
                raise RefusedError(
                    f"release {task} {version}: found release {active} active, expected its parent {after}: what was "
                    "gone back from does not come back by its child",
                    rule="parent",
                )
            diffs = release_diffs({} if active is None else self._bytes(releases[active], files), files)
            targets = release_targets(task, version, files, custom, {v: each.said for v, each in diffs.items()})
            order = sorted(releases, key=lambda v: (v in keep or v == active, v))
            count = max(RELEASES_KEPT - 1, sum(v in keep or v == active for v in releases))
            kept = {v: releases[v] for v in sorted(order[-count:])}
            chosen = version if is_active or active is None else active
            contents = _contents({**kept, version: targets}, chosen, revoked_of(role))
            artifacts = {targets[v].hashes["sha256"]: data for v, data in files.items()}
            artifacts |= {each.said.sha256: each.data for each in diffs.values()}
            for sha256, data in artifacts.items():
                self._files.add_artifact(sha256, data)
            return self._commit(state, now, {task: contents}, artifacts)

    def rollback(self, task: str, to_version: int, now: float) -> Publication:
        """Make an older release the active one again; see `activate`."""
        return self.activate(task, to_version, now)

    def activate(self, task: str, to_version: int, now: float) -> Publication:
        """Make a kept release the active one, in new metadata; durable before this returns.

        Where it is active already, a proposal of another that still waits for a validator is taken back.

        Raises:
            RefusedError: it is not one of the releases that are kept.
            TransientError, ConfigError: as `publish`.
        """
        with self._files.locked():
            state = self._files.load()
            role = self._role(state, task)
            releases = releases_of(role)
            if to_version not in releases:
                raise RefusedError(
                    f"activation for {task}: found no release {to_version}, expected one of "
                    f"{', '.join(map(str, sorted(releases))) or 'none'}",
                    rule="version",
                )
            contents = _contents(releases, to_version, revoked_of(role))
            digests = {d for shown in shown_releases(releases_of(contents)) for d in lengths_of(shown)}
            if active_version(releases) == to_version:
                self._countersigning.take_back(state, task, to_version)
                return self._current(state, task, digests)
            artifacts = {d: self._files.artifact(d) for d in sorted(digests)}
            return self._commit(state, now, {task: contents}, artifacts)

    def revoke(self, task: str, version: int, reason: str, now: float, digests: Collection[str] = ()) -> Publication:
        """Revoke a release for good: it is no longer listed, its digests are, and no device runs them again.

        If it was the active one, the newest older one becomes active.

        Args:
            task: the task.
            version: of the release.
            reason: why; goes to every device.
            now: epoch seconds.
            digests: of files, hex, for a release that is not one of ours: a thief signed it, devices reported it.

        Raises:
            RefusedError: it is not kept here and no digests are given, a digest belongs to a release that stays, or
                nothing would be left to go to.
            TransientError, ConfigError: as `publish`.
        """
        with self._files.locked():
            state = self._files.load()
            role = self._role(state, task)
            contents = without_release(task, role, version, reason, digests)
            if contents is None:
                return self._current(state, task, ())
            artifacts = {
                d: self._files.artifact(d)
                for shown in shown_releases(releases_of(contents))
                for d in sorted(lengths_of(shown))
            }
            return self._commit(state, now, {task: contents}, artifacts)

    def after_revocation(
        self, task: str, version: int, reason: str, digests: Collection[str] = ()
    ) -> tuple[bool, int | None]:
        """Whether `revoke` would change anything, and which release would be active then; it raises what that would."""
        role = self._role(self._files.load(), task)
        contents = without_release(task, role, version, reason, digests)
        return contents is not None, active_version(releases_of(role if contents is None else contents))

    def mark(self) -> str:
        """See `RepositoryFiles.mark`: another one whenever anything that is signed here changes."""
        return self._files.mark()

    def state(self) -> ListedReleases:
        """What the repository lists now, for any number of questions: one file is read where nothing was changed.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        return self._verified().releases

    def revoked(self, task: str) -> tuple[RevokedRelease, ...]:
        """See `ListedReleases.revoked`."""
        return self.state().revoked(task)

    def next_version(self, task: str) -> int:
        """See `ListedReleases.next_version`."""
        return self.state().next_version(task)

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
            for task in [t for t in roles if self._countersigning.needed(state, t)]:
                # The timestamp does not wait for the validator, and a refusal, which anybody may put there, must not
                # stop it; `complete` sees to the rest.
                try:
                    with suppress(AwaitsValidatorError):
                        self._countersigning.settle(state, task, roles[task], now)
                except RefusedError as fault:
                    log.error("renewal of the role of %s, until %s: %s", task, f"{roles[task].expires:%F}", fault)
                del roles[task]
            if not (roles or snapshot or timestamp):
                return Publication({}, {}, self._retained_files(state))
            return self._commit(state, now, roles, {}, renew_snapshot=snapshot)

    def complete(self, now: float) -> Publication:
        """Make what a validator has signed meanwhile the state; empty (falsy) if there is nothing of that kind.

        Raises:
            TransientError, ConfigError: as `publish`.
        """
        if not self._countersigning.waiting():
            return Publication({}, {})
        with self._files.locked():
            state = self._files.load()
            settled = dict(self._countersigning.ready(state))
            if not settled:
                return Publication({}, {})
            roles = {task: Metadata[Targets].from_bytes(data).signed for task, data in settled.items()}
            self._commit_signed(state, now, roles, {}, settled)
        return self.retained()

    def take_back(self, task: str) -> None:
        """Take a new release back that is proposed, and that no validator has signed yet; nothing if there is none.

        Raises:
            TransientError, ConfigError: as `publish`.
        """
        with self._files.locked():
            self._countersigning.take_back_release(self._files.load(), task)

    def retained(self) -> Publication:
        """Everything that must be on retained topics now: publish it whenever the aggregator reconnects.

        Every root, the current metadata with the files before it (for devices in the middle of a refresh), and each
        task's active release, the one before it, and the candidates.

        Raises:
            ConfigError: the repository is damaged.
        """
        with self._files.locked():
            self._read = self._load()
            state = self._read.state
            names = self._retained_files(state)
            metadata = {name: self._files.read(name) for name in names}
            artifacts = {d: self._files.artifact(d) for d in self._retained_artifacts(state)}
            return self._publication(state, metadata, artifacts)

    def versions(self, task: str) -> tuple[int, ...]:
        """See `ListedReleases.versions`."""
        return self.state().versions(task)

    def active(self, task: str) -> int | None:
        """See `ListedReleases.active`."""
        return self.state().active(task)

    def target(self, task: str, version: int, variant: Variant) -> tuple[ReleaseTarget, bytes]:
        """See `ListedReleases.target`."""
        return self.state().target(task, version, variant)

    def listed(self, task: str, version: int) -> dict[Variant, ListedTarget]:
        """See `ListedReleases.listed`."""
        return self.state().listed(task, version)

    def expires(self) -> dict[str, float]:
        """When each signed file ends, epoch seconds by role; root and targets need the offline keys before that."""
        state = self._verified().state
        top = {"root": state.root, "targets": state.targets, "snapshot": state.snapshot, "timestamp": state.timestamp}
        return {role: signed.expires.timestamp() for role, signed in (top | dict(state.roles)).items()}

    @property
    def beacon_anchor(self) -> BeaconAnchor:
        """The public end of the site's beacon chain; see `registry_draft.beacon_of`."""
        return registry_draft.beacon_of(self._verified().state.root)

    def beacon(self, epoch: int) -> bytes:
        """The 32 bytes that assign devices to groups in an epoch (1 and up); nobody else may see them before it begins.

        Raises:
            ConfigError: there is no anchor, the chain is used up, or its seed is missing or another one.
        """
        with self._files.locked():
            return self._files.beacon_chain(self.beacon_anchor).value(epoch)

    def renew(
        self, offline_keys: Path, now: float, rotate: Iterable[str] = (), *, beacon_epochs: int | None = None
    ) -> Publication:
        """Renew root and targets with the offline keys; see `registry_ceremony.renew`. Returns what to retain."""
        with self._files.locked():
            self._remember_withdrawn(self._files.load(verify=False))
        registry_ceremony.renew(self._files.directory, offline_keys, now, set(rotate), beacon_epochs=beacon_epochs)
        return self.retained()

    def adopt(self, proposal: Proposal, now: float) -> Publication:
        """Make a signed root proposal the state; see `registry_proposal.publish`. Returns what to retain."""
        with self._files.locked():
            self._remember_withdrawn(self._files.load(verify=False))
        registry_proposal.publish(self._files.directory, proposal, now)
        return self.retained()

    def offline_keys(self) -> OfflineKeys:
        """Whose signatures count beside the online keys', and how many."""
        return registry_draft.offline_keys(self._verified().state)

    def roles(self) -> tuple[RoleFacts, ...]:
        """Every role with its keys, threshold, version and expiry, root first."""
        return role_facts(self._verified().state)

    def _verified(self) -> _Read:
        """The current state, read again if it is another one; nobody changes it: writers load what they start from."""
        read = self._read
        while read.state.mark != (mark := self.mark()):
            try:
                read = self._read = self._load()
            except ConfigError:
                if self.mark() == mark:  # else somebody signed meanwhile, and files went that were still to be read
                    raise
        return read

    def _load(self) -> _Read:
        state = self._files.load()
        return _Read(state, ListedReleases(self._files, state.roles))

    def _commit(
        self,
        state: RepositoryState,
        now: float,
        roles: Mapping[str, Targets],
        artifacts: Mapping[str, bytes],
        *,
        renew_snapshot: bool = False,
    ) -> Publication:
        settled = {
            task: self._countersigning.settle(state, task, contents, now)
            for task, contents in roles.items()
            if self._countersigning.needed(state, task)
        }
        return self._commit_signed(state, now, roles, artifacts, settled, renew_snapshot=renew_snapshot)

    def _commit_signed(
        self,
        state: RepositoryState,
        now: float,
        roles: Mapping[str, Targets],
        artifacts: Mapping[str, bytes],
        settled: Mapping[str, bytes],
        *,
        renew_snapshot: bool = False,
    ) -> Publication:
        self._remember_withdrawn(state)
        follows = self.mark()
        written = self._files.commit(state, now, roles, settled, renew_snapshot=renew_snapshot)
        state = self._verified().state
        self._countersigning.tidy(state)
        kept = self._countersigning.artifacts()
        kept |= {d for targets in state.roles.values() for r in releases_of(targets).values() for d in lengths_of(r)}
        self._files.prune(set(self._retained_files(state)), kept)
        return replace(self._publication(state, written, artifacts), follows=follows)

    def _current(self, state: RepositoryState, task: str, digests: Iterable[str]) -> Publication:
        names = (f"{state.roles[task].version}.{task}.json", f"{state.snapshot.version}.snapshot.json", TIMESTAMP_FILE)
        metadata = {name: self._files.read(name) for name in names}
        return self._publication(state, metadata, {d: self._files.artifact(d) for d in sorted(digests)})

    def _publication(
        self, state: RepositoryState, metadata: Mapping[str, bytes], artifacts: Mapping[str, bytes]
    ) -> Publication:
        names = self._retained_files(state)
        files, digests = self._withdrawn.read()
        kept = self._retained_artifacts(state)
        return Publication(
            dict(metadata),
            dict(artifacts),
            names,
            tuple(name for name in files if name not in names),
            {d: length for d, length in digests.items() if d not in kept},
        )

    def _role(self, state: RepositoryState, task: str) -> Targets:
        return ListedReleases(self._files, state.roles).role(task)

    def _retained_files(self, state: RepositoryState) -> tuple[str, ...]:
        """Current metadata and, for devices that read the timestamp a moment ago, the files before it."""
        signed = {"targets": state.targets, "snapshot": state.snapshot, **state.roles}
        before = (f"{s.version - 1}.{role}.json" for role, s in signed.items() if s.version > 1)
        there = set(self._files.names())
        return (*(name for name in before if name in there), *state.files())

    def _retained_artifacts(self, state: RepositoryState) -> dict[str, int]:
        """Length by digest of the active release, the one before it and those that are newer, with their diffs."""
        return {
            digest: length
            for targets in state.roles.values()
            for release in shown_releases(releases_of(targets))
            for digest, length in lengths_of(release).items()
        }

    def _bytes(self, release: Mapping[Variant, TargetFile], variants: Iterable[Variant]) -> dict[Variant, bytes]:
        return {v: self._files.artifact(release[v].hashes["sha256"]) for v in variants if v in release}

    def _remember_withdrawn(self, state: RepositoryState) -> None:
        self._withdrawn.remember(self._retained_files(state), self._retained_artifacts(state))


def _contents(releases: Releases, active: int, revoked: Iterable[RevokedRelease]) -> Targets:
    return Targets(targets=listed_targets(releases, active), unrecognized_fields=revoking_fields(revoked))
