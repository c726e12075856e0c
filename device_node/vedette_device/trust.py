"""The device's view of signed releases: TUF over retained topics, and bytes that nobody sees before they are checked.

The root that everything hangs on comes from a file given at enrolment, never from the network. Whoever carries the
messages (broker, network) can only withhold; what it alters, mixes, or shows again is refused here. When metadata are
stale the device goes on detecting and stops contributing.

Everything here blocks: the shell runs it in a worker thread.

Source: The Update Framework specification 1.0.34, §5 (client workflow), through python-tuf's ``ngclient``.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import Field
from tuf.api import exceptions
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient import FetcherInterface, UpdaterConfig

from vedette_core.runtime.durable import file_error, make_directory, synchronise_tree, write_durable
from vedette_device.artifact_download import ArtifactDownload, Held, nothing_held
from vedette_device.trust_updater import METADATA_BASE, Fetch, ReleaseUpdater, RetainedFetcher, StoredOnly
from vedette_device.update_state import REVOKED_DIGESTS_MAX
from vedette_device.verified_release import Revocation, VerifiedRelease, VerifiedTarget
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import (
    MODEL_BYTES_MAX,
    Digest,
    ReleaseTarget,
    Task,
    Variant,
    parse_custom,
    target_path,
)
from vedette_schemas.topics import Topics
from vedette_schemas.trust import (
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    SNAPSHOT_BYTES_MAX,
    TARGETS_BYTES_MAX,
    TASKS_MAX,
    TIMESTAMP_BYTES_MAX,
    BeaconAnchor,
    parse_revoked,
)

log = logging.getLogger("vedette.trust")

FETCH_TIMEOUT_S: Final = 10.0
"""How long a retained message is waited for: it comes in one round trip, or there is none."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FORMATS: Final[Mapping[Variant, str]] = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}


class RetainedMemory(dict[str, bytes]):
    """Retained messages in memory, to fetch from: for tests, the simulator, and a first start without a broker."""

    def __call__(self, topic: str, timeout_s: float) -> bytes:
        """Return the payload of a topic; see `Fetch`."""
        if topic not in self:
            raise TransientError(f"{topic}: found nothing retained within {timeout_s:g} s")
        return self[topic]


class _Revoked(Message):
    """What a task's newest verified role revokes."""

    metadata_version: tuple[int, int]
    sha256: Annotated[tuple[Digest, ...], Field(max_length=REVOKED_DIGESTS_MAX)]


class _Freshness(Message):
    """What survives a restart beside the metadata: until when they are fresh, how late it is, and what is revoked."""

    fresh_until_s: Annotated[float, Field(ge=0)] = 0.0
    clock_floor_s: Annotated[float, Field(ge=0)] = 0.0
    revoked: Annotated[dict[Task, _Revoked], Field(max_length=TASKS_MAX)] = Field(default_factory=dict)


class TrustClient:
    """Finds and downloads a device's releases.

    Args:
        directory: the client's own; keeps the newest metadata, so that nobody can show older ones.
        bootstrap_root: file with the site's root metadata, given at enrolment.
        topics: the site's topics.
        tasks: tasks whose releases this device runs.
        fetch: reads retained messages.
        clock: epoch seconds.
        fetch_timeout_s: how long a retained message is waited for.

    Raises:
        ConfigError: the bootstrap root is missing or no root of TUF, or the directory is not writable.
    """

    def __init__(
        self,
        directory: Path,
        bootstrap_root: Path,
        topics: Topics,
        tasks: Sequence[str],
        fetch: Fetch,
        clock: Callable[[], float],
        *,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._metadata = directory / "metadata"
        self._freshness_file = directory / "freshness.json"
        self._topics, self._tasks, self._fetch, self._clock = topics, tuple(tasks), fetch, clock
        self._timeout_s = fetch_timeout_s
        self.downloads: Final = ArtifactDownload(topics, fetch, fetch_timeout_s)
        self._lock = threading.Lock()
        self._revoked: dict[str, Revocation] = {}
        self._releases: dict[str, VerifiedRelease] = {}
        self._listed: dict[str, Mapping[int, VerifiedRelease]] = {}
        self._faults: dict[str, VedetteError] = {}
        self._beacon_anchor: BeaconAnchor | None = None
        self._beacon_fault: VedetteError | None = None
        self._beacon_root = 0
        self._timestamp_version = 0
        make_directory(self._metadata)
        try:
            self._bootstrap = bootstrap_root.read_bytes()
        except OSError as fault:
            raise ConfigError(
                f"trust root {bootstrap_root}: found {fault.strerror}, expected the site's root.json; copy it from "
                "the aggregator by a way that you trust"
            ) from fault
        self._freshness = self._load_freshness()
        for task, known in self._freshness.revoked.items():
            self._revoked[task] = Revocation(task, known.metadata_version, frozenset(known.sha256))
        try:
            for path in self._metadata.iterdir():
                if path.is_file() and path.suffix != ".json":
                    path.unlink()  # a temporary file of python-tuf, left by a crash
            self._recall(self._updater(StoredOnly()))
        except (exceptions.RepositoryError, ValueError, KeyError, TypeError) as fault:
            raise ConfigError(
                f"trust root {bootstrap_root}: found no valid root metadata ({fault}), expected the site's root.json"
            ) from fault
        except OSError as fault:
            raise file_error(fault, f"keep release metadata in {self._metadata}") from fault

    @property
    def contributing_allowed(self) -> bool:
        """Whether metadata are fresh enough to take part in rounds; detection does not ask."""
        return self._now() < self._freshness.fresh_until_s

    @property
    def fresh_until_s(self) -> float:
        """When the verified metadata expire, epoch seconds; 0 before the first refresh."""
        return self._freshness.fresh_until_s

    @property
    def timestamp_version(self) -> int:
        """Version of the timestamp file that the last refresh verified; 0 before the first."""
        return self._timestamp_version

    @property
    def faults(self) -> Mapping[str, VedetteError]:
        """By task, why the last refresh has no release of it; one task's fault does not stop the others."""
        return MappingProxyType(self._faults)

    @property
    def beacon_anchor(self) -> BeaconAnchor | None:
        """The anchor of the site's beacon chain, from the newest verified root; also after a restart without a broker.

        None before the first refresh, and where `beacon_fault` says why.
        """
        return self._beacon_anchor

    @property
    def beacon_fault(self) -> VedetteError | None:
        """Why a refresh left no anchor behind: such a device detects and updates, but joins no round."""
        return self._beacon_fault

    def refresh(self) -> list[VerifiedRelease]:
        """Bring the metadata up to date and return the active release of every task that has one.

        Raises:
            RefusedError: a rollback, freeze or mix-and-match; rule says which.
            PeerError: metadata that do not verify, or are larger than the contract.
            TransientError: a file did not come, or the disk is full.
        """
        with self._lock:
            try:
                with _attacks(f"release metadata of site {self._topics.site}"):
                    return self._refresh()
            finally:
                self._keep_time()

    def release(self, task: str) -> VerifiedRelease:
        """The active release of a task, as of the last refresh.

        Raises:
            RefusedError, PeerError: its metadata were refused, or it has no release.
        """
        if task in self._faults:
            raise self._faults[task]
        if task not in self._releases:
            raise RefusedError(f"task {task}: found no active release, expected one after a refresh", rule="no-release")
        return self._releases[task]

    def listed(self, task: str) -> Mapping[int, VerifiedRelease]:
        """Every release of a task that the metadata of the last refresh list and do not revoke, by version: what may
        run at all.
        """
        return self._listed.get(task, MappingProxyType({}))

    def download(self, target: VerifiedTarget, held: Held = nothing_held) -> bytes:
        """Fetch a target's bytes and check length and digest before anybody sees them; see `ArtifactDownload`.

        Raises:
            PeerError: more or other bytes than the signed metadata say.
            TransientError: a part did not come.
        """
        return self.downloads(target, held)

    def revoked(self, task: str) -> Revocation:
        """What the newest verified metadata of a task revoke, also after a restart without a broker.

        Nothing before the first refresh.
        """
        return self._revoked.get(task, Revocation(task, (0, 0), frozenset()))

    def _refresh(self) -> list[VerifiedRelease]:
        updater = self._updater(RetainedFetcher(self._topics, self._fetch, self._timeout_s))
        try:
            updater.refresh()
        finally:  # a new root counts at once: it may replace a beacon whose seed leaked, and its siblings be withheld
            self._take_anchor(updater)
        releases: dict[str, VerifiedRelease] = {}
        listed: dict[str, Mapping[int, VerifiedRelease]] = {}
        faults: dict[str, VedetteError] = {}
        for task in self._tasks:
            try:
                with _attacks(f"release metadata of task {task}"):
                    role = _task_role(updater, task)
                    self._revoked[task] = _revocation(updater, task, role)
                    found, listed[task] = _releases_of(updater, task, role, self._revoked[task].sha256)
            except VedetteError as fault:
                faults[task] = fault
            else:
                if found is not None:
                    releases[task] = found
        # python-tuf renames without synchronising: after a power failure we would have forgotten what we had seen,
        # and older metadata would pass. So it is made durable before anybody acts on it.
        synchronise_tree(self._metadata)
        self._freshness = self._freshness.model_copy(update={"fresh_until_s": updater.fresh_until_s()})
        self._releases, self._listed, self._faults = releases, listed, faults
        self._timestamp_version = updater.timestamp_version()
        self._take_anchor(updater)
        return list(releases.values())

    def _recall(self, updater: ReleaseUpdater) -> None:
        """Take the anchor from the newest root that is stored here, verified again from the bootstrap root on."""
        with suppress(exceptions.DownloadError):  # what is not stored is not needed for this
            updater.refresh()
        self._take_anchor(updater)

    def _take_anchor(self, updater: ReleaseUpdater) -> None:
        version = updater.root_version()
        if self._freshness.fresh_until_s == 0 or version < self._beacon_root:
            return  # nothing was fresh yet; or the newer root was lost from the disk, and nobody sends it again
        anchor: BeaconAnchor | None = None
        fault: VedetteError | None = None
        try:
            anchor = updater.beacon_anchor()
        except VedetteError as found:
            fault = found
        if fault is not None and str(fault) != str(self._beacon_fault):
            log.warning("%s", fault)  # once: every look at the metadata finds it again
        self._beacon_anchor, self._beacon_fault, self._beacon_root = anchor, fault, version

    def _updater(self, fetcher: FetcherInterface) -> ReleaseUpdater:
        updater = ReleaseUpdater(
            str(self._metadata),
            METADATA_BASE,
            fetcher=fetcher,
            config=UpdaterConfig(
                max_root_rotations=ROOT_ROTATIONS_MAX,
                max_delegations=TASKS_MAX + 1,
                root_max_length=ROOT_BYTES_MAX,
                timestamp_max_length=TIMESTAMP_BYTES_MAX,
                snapshot_max_length=SNAPSHOT_BYTES_MAX,
                targets_max_length=TARGETS_BYTES_MAX,
            ),
            bootstrap=self._bootstrap,
        )
        updater.set_time(self._now())
        return updater

    def _now(self) -> float:
        return max(self._clock(), self._freshness.clock_floor_s)

    def _keep_time(self) -> None:
        """Remember how late it is, so that a clock set back does not make old metadata fresh again.

        Never later than the metadata's own expiry: a clock that ran wild once must not lock out what is signed after.
        """
        floor = max(self._freshness.clock_floor_s, min(self._clock(), self._freshness.fresh_until_s))
        revoked = {
            task: _Revoked(metadata_version=each.metadata_version, sha256=tuple(sorted(each.sha256)))
            for task, each in self._revoked.items()
            if task in self._tasks
        }
        self._freshness = self._freshness.model_copy(update={"clock_floor_s": floor, "revoked": revoked})
        with suppress(TransientError):  # a full disk must not hide what the refresh itself found
            write_durable(self._freshness_file, codec.pack_json(self._freshness))

    def _load_freshness(self) -> _Freshness:
        with suppress(OSError, PeerError):
            return codec.unpack_json(_Freshness, self._freshness_file.read_bytes())
        return _Freshness()  # stale until the first refresh


def _task_role(updater: ReleaseUpdater, task: str) -> Targets:
    role = updater.delegated(task)
    if role is None:
        raise RefusedError(
            f"task {task}: found no role that the site's targets delegate to it, expected one", rule="unknown-role"
        )
    return role


def _revocation(updater: ReleaseUpdater, task: str, role: Targets) -> Revocation:
    digests = frozenset(digest for each in parse_revoked(role.unrecognized_fields) for digest in each.sha256)
    return Revocation(task, (updater.root_version(), role.version), digests)


def _releases_of(
    updater: ReleaseUpdater, task: str, role: Targets, revoked: frozenset[str]
) -> tuple[VerifiedRelease | None, Mapping[int, VerifiedRelease]]:
    """A task's active release, and every one that its role lists and does not revoke, by version."""
    listed: dict[int, dict[Variant, VerifiedTarget]] = {}
    for path, info in role.targets.items():
        if updater.get_targetinfo(path) is not info:
            raise RefusedError(
                f"task {task}: found target {path[:120]!r} signed by its role, expected only paths below {task}/",
                rule="arbitrary-installation",
            )
        target = _verified_target(task, path, info)
        listed.setdefault(target.custom.version, {})[target.custom.variant] = target
    active = [version for version, targets in listed.items() if any(t.custom.active for t in targets.values())]
    if len(active) > 1:
        raise PeerError(f"task {task}: found active releases {sorted(active)}, expected one", reason="active")
    version = active[0] if active else None
    if version is not None and (
        not _is_whole(listed[version]) or not all(t.custom.active for t in listed[version].values())
    ):
        raise PeerError(f"release {task} {version}: found no plan target that all of it names", reason="plan")
    if version is not None and any(t.sha256 in revoked for t in listed[version].values()):
        raise RefusedError(f"release {task} {version}: found it active and revoked, expected one of it", rule="revoked")
    metadata = (updater.root_version(), role.version)
    # A release that is not active and not whole, or revoked, cannot be chosen; it is nobody's loss.
    releases = {
        v: VerifiedRelease(task, v, metadata, MappingProxyType(t))
        for v, t in listed.items()
        if _is_whole(t) and not any(each.sha256 in revoked for each in t.values())
    }
    return (None if version is None else releases[version]), MappingProxyType(releases)


def _is_whole(targets: Mapping[Variant, VerifiedTarget]) -> bool:
    """Whether a release has a plan, and all of it names that one."""
    plan = targets.get(Variant.PLAN)
    return plan is not None and all(t.custom.plan == plan.sha256 for t in targets.values())


def _verified_target(task: str, path: str, info: TargetFile) -> VerifiedTarget:
    custom: ReleaseTarget = parse_custom(info.custom)
    form = _FORMATS.get(custom.variant, "tflite")
    if custom.task != task or path != target_path(task, custom.version, custom.variant) or custom.format != form:
        raise PeerError(
            f"target {path[:120]!r}: found a description of {custom.task} {custom.version} {custom.variant.value} "
            f"({custom.format}), expected one of its own path",
            reason="description",
        )
    sha256 = info.hashes.get("sha256", "")
    if not _SHA256.fullmatch(sha256):
        raise PeerError(f"target {path}: found digests {sorted(info.hashes)}, expected sha256", reason="digest")
    if not 1 <= info.length <= MODEL_BYTES_MAX:
        raise PeerError(f"target {path}: found {info.length} bytes, expected 1 to {MODEL_BYTES_MAX}", reason="limit")
    return VerifiedTarget(path, info.length, sha256, custom)


@contextmanager
def _attacks(what: str) -> Iterator[None]:
    """Turn what python-tuf raises into our errors: what was found, what was expected, who must act."""
    try:
        yield
    except exceptions.ExpiredMetadataError as fault:
        raise RefusedError(
            f"{what}: found expired metadata ({fault}), expected fresh ones; check that the aggregator runs, and this "
            "device's clock; until then it detects and does not contribute",
            rule="freeze",
        ) from fault
    except exceptions.BadVersionNumberError as fault:
        raise RefusedError(f"{what}: found an older version than before ({fault})", rule="rollback") from fault
    except exceptions.LengthOrHashMismatchError as fault:
        raise RefusedError(
            f"{what}: found a file that is not the one its siblings name ({fault})", rule="mix-and-match"
        ) from fault
    except exceptions.UnsignedMetadataError as fault:
        raise PeerError(
            f"{what}: found too few valid signatures ({fault}), expected the role's keys", reason="signature"
        ) from fault
    except exceptions.DownloadLengthMismatchError as fault:
        raise PeerError(f"{what}: found more bytes than the contract allows ({fault})", reason="limit") from fault
    except exceptions.DownloadError as fault:
        raise TransientError(f"{what}: a file did not come ({fault}); it is tried again") from fault
    except exceptions.RepositoryError as fault:
        cause = fault.__cause__ or fault
        raise PeerError(f"{what}: found metadata that do not hold ({fault}: {cause})", reason="metadata") from fault
    except OSError as fault:
        raise file_error(fault, f"keep {what}") from fault
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as fault:
        raise PeerError(
            f"{what}: found malformed metadata ({type(fault).__name__}: {fault})", reason="malformed"
        ) from fault
