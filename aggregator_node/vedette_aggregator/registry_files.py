"""A TUF repository on disk: which files make its state, how they are signed, and the order that survives a crash.

The timestamp file is the commit point. Everything that it speaks of, directly or not, is on disk before it is replaced,
under a name that the previous timestamp does not speak of; so that after a crash at any step the directory holds
either the old state or the new one, and what a failed attempt left over is overwritten or pruned by the next.

Source: The Update Framework specification 1.0.34, §4 (formats), §6.2 (consistent snapshots).
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

from vedette_core.crypto.beacon import SEED_BYTES, BeaconChain
from vedette_core.runtime.durable import PRIVATE_FILE, file_error, remove_durable, write_durable
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.model import MODEL_BYTES_MAX
from vedette_schemas.trust import (
    ROOT_BYTES_MAX,
    SNAPSHOT_BYTES_MAX,
    TARGETS_BYTES_MAX,
    TIMESTAMP_BYTES_MAX,
    TIMESTAMP_FILE,
    BeaconAnchor,
)

TIMESTAMP_LIFETIME: Final = timedelta(hours=24)
"""How long a device may hear nothing new before it must treat what it knows as stale (freeze)."""
SNAPSHOT_LIFETIME: Final = timedelta(days=7)
RELEASE_LIFETIME: Final = timedelta(days=90)
OFFLINE_LIFETIME: Final = timedelta(days=365)
"""Root and top-level targets: signed by hand, so that once a year has to do."""

PUBLIC_FILE: Final = 0o644
KEY_MODE_MASK: Final = 0o077
_BYTES_MAX: Final[Mapping[type[Signed], int]] = {
    Root: ROOT_BYTES_MAX,
    Targets: TARGETS_BYTES_MAX,
    Snapshot: SNAPSHOT_BYTES_MAX,
    Timestamp: TIMESTAMP_BYTES_MAX,
}
S = TypeVar("S", Snapshot, Targets)
_ROOT_FILE: Final = re.compile(r"([1-9][0-9]{0,9})\.root\.json")


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """The signed metadata that is current.

    Attributes:
        root: newest root.
        timestamp: the commit point.
        snapshot: what the timestamp names.
        targets: top-level targets: the delegations, one role a task.
        roles: delegated targets by task.
        mark: see `RepositoryFiles.mark`.
    """

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    roles: Mapping[str, Targets]
    mark: str

    @property
    def delegations(self) -> Delegations:
        """Which key signs for which task."""
        assert self.targets.delegations is not None
        return self.targets.delegations

    def files(self) -> tuple[str, ...]:
        """Names of the current metadata files, roots first and the timestamp last."""
        roots = [f"{n}.root.json" for n in range(1, self.root.version + 1)]
        roles = [f"{signed.version}.{role}.json" for role, signed in self.roles.items()]
        top = [f"{self.targets.version}.targets.json", f"{self.snapshot.version}.snapshot.json"]
        return (*roots, *roles, *top, TIMESTAMP_FILE)


class RepositoryFiles:
    """The directory of a TUF repository.

    Args:
        directory: holds ``metadata/``, ``artifacts/`` and ``keys/`` (online keys and the beacon's seed only).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata = directory / "metadata"
        self.artifacts = directory / "artifacts"
        self.keys = directory / "keys"
        self.withdrawn = directory / "withdrawn.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository for one change: an operator's command and the service never write at once.

        Raises:
            ConfigError: the directory is missing or not writable.
        """
        try:
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as fault:
            raise file_error(fault, f"lock the release repository {self.directory}") from fault
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def load(self, *, verify: bool = True) -> RepositoryState:
        """Read the current state.

        Args:
            verify: check every signature, length and digest; only a ceremony that replaces keys goes without.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        versions = [int(m[1]) for m in map(_ROOT_FILE.fullmatch, self.names()) if m]
        if not versions:
            raise ConfigError(
                f"{self.metadata}: found no root file, expected a release repository; create one, or restore a backup"
            )
        try:
            root_file = Metadata[Root].from_bytes(self.read(f"{max(versions)}.root.json"))
            timestamp_bytes = self.read(TIMESTAMP_FILE)
            timestamp_file = Metadata[Timestamp].from_bytes(timestamp_bytes)
            root, timestamp = root_file.signed, timestamp_file.signed
            if verify:
                root.verify_delegate("root", root_file.signed_bytes, root_file.signatures)
                root.verify_delegate("timestamp", timestamp_file.signed_bytes, timestamp_file.signatures)
            snapshot = self._named(Snapshot, "snapshot", timestamp.snapshot_meta, root if verify else None)
            targets = self._named(Targets, "targets", snapshot.meta["targets.json"], root if verify else None)
            assert targets.delegations is not None
            assert targets.delegations.roles is not None
            roles = {
                task: self._named(Targets, task, snapshot.meta[f"{task}.json"], targets if verify else None)
                for task in targets.delegations.roles
            }
        except (RepositoryError, KeyError, ValueError, AssertionError) as fault:
            raise ConfigError(
                f"{self.directory}: found a damaged release repository ({type(fault).__name__}: {fault}), expected "
                "metadata that verifies; restore a backup, or renew it with the offline keys if a renewal was cut short"
            ) from fault
        return RepositoryState(root, timestamp, snapshot, targets, roles, _mark(timestamp_bytes))

    def _named(self, kind: type[S], role: str, meta: MetaFile, delegator: Root | Targets | None) -> S:
        data = self.read(f"{meta.version}.{role}.json")
        found = Metadata[S].from_bytes(data)
        if not isinstance(found.signed, kind):
            raise ValueError(f"{meta.version}.{role}.json is of type {found.signed.type}")
        if delegator is not None:
            meta.verify_length_and_hashes(data)
            delegator.verify_delegate(role, found.signed_bytes, found.signatures)
        return found.signed

    def names(self) -> list[str]:
        """Names in the metadata directory; empty if it is missing."""
        return sorted(p.name for p in self.metadata.iterdir()) if self.metadata.is_dir() else []

    def read(self, name: str) -> bytes:
        """A metadata file's bytes.

        Raises:
            ConfigError: it is missing.
        """
        try:
            return _read(self.metadata / name, TARGETS_BYTES_MAX)
        except OSError as fault:
            raise file_error(fault, f"read release metadata {self.metadata / name}") from fault

    def mark(self) -> str:
        """Another one whenever anything that is signed here changes: the hex digest of the timestamp file.

        Raises:
            ConfigError: it is missing.
        """
        return _mark(self.read(TIMESTAMP_FILE))

    def artifact(self, sha256: str) -> bytes:
        """A release file's bytes, checked.

        Raises:
            ConfigError: it is missing, or its bytes are not those of its digest.
        """
        path = self.artifacts / sha256
        try:
            data = _read(path, MODEL_BYTES_MAX)
        except OSError as fault:
            raise file_error(fault, f"read release file {path}") from fault
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ConfigError(f"{path}: found bytes with digest {found}, expected {sha256}; restore a backup")
        return data

    def add_artifact(self, sha256: str, data: bytes) -> None:
        """Store a release file durably under its digest.

        Raises:
            TransientError: the disk is full.
        """
        write_durable(self.artifacts / sha256, data, PUBLIC_FILE)

    def commit(
        self,
        state: RepositoryState,
        now: float,
        roles: Mapping[str, Targets] | None = None,
        settled: Mapping[str, bytes] | None = None,
        *,
        renew_snapshot: bool = False,
    ) -> dict[str, bytes]:
        """Sign and write new delegated targets, a snapshot if anything in it changes, and a new timestamp last.

        Args:
            state: what is current.
            now: epoch seconds, for the expiry dates.
            roles: new contents by task; version and expiry are set here.
            settled: of them, the files that are signed already, because others sign them, too.
            renew_snapshot: sign a new snapshot even if no role changed.

        Returns:
            The new files, by name, in the order in which they were written.

        Raises:
            TransientError: the disk is full; the old state stays current.
            ConfigError: a key is missing.
            RefusedError: a file would be larger than devices accept.
        """
        files: dict[str, bytes] = {}
        snapshot, timestamp = copy.deepcopy(state.snapshot), copy.deepcopy(state.timestamp)
        for task, contents in (roles or {}).items():
            targets = copy.deepcopy(contents)
            targets.version = state.roles[task].version + 1
            targets.expires = expiry(now, RELEASE_LIFETIME)
            data = (settled or {}).get(task) or self.sign(targets, task, state.targets)
            files[f"{targets.version}.{task}.json"] = data
            snapshot.meta[f"{task}.json"] = meta_file(targets.version, data)
        changed = bool(roles) or renew_snapshot
        snapshot.version, timestamp.version = snapshot.version + changed, timestamp.version + 1
        files |= self.sign_top(state.root, snapshot if changed else None, timestamp, now)
        self.write(files)
        return files

    def sign_top(self, root: Root, snapshot: Snapshot | None, timestamp: Timestamp, now: float) -> dict[str, bytes]:
        """Sign a new snapshot, if there is one, and the timestamp that names it; their dates are set here.

        Returns:
            The files by name, the timestamp last.

        Raises:
            ConfigError, RefusedError: as `sign`.
        """
        files: dict[str, bytes] = {}
        if snapshot is not None:
            snapshot.expires = expiry(now, SNAPSHOT_LIFETIME)
            data = files[f"{snapshot.version}.snapshot.json"] = self.sign(snapshot, "snapshot", root)
            timestamp.snapshot_meta = meta_file(snapshot.version, data)
        timestamp.expires = expiry(now, TIMESTAMP_LIFETIME)
        files[TIMESTAMP_FILE] = self.sign(timestamp, "timestamp", root)
        return files

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write metadata files durably, in the given order.

        Raises:
            TransientError: the disk is full.
        """
        for name, data in files.items():
            write_durable(self.metadata / name, data, PUBLIC_FILE)

    def sign(
        self,
        signed: Root | Targets | Snapshot | Timestamp,
        role: str,
        delegator: Root | Targets,
        keys: Path | None = None,
    ) -> bytes:
        """Sign metadata with every key of its role that is here, and check the result as a device would.

        Args:
            signed: the metadata.
            role: its role.
            delegator: whose keys and threshold count.
            keys: where the keys are; the online keys by default.

        Raises:
            ConfigError: fewer keys than the threshold.
            RefusedError: the file would be larger than devices accept.
        """
        return self.sign_with(signed, role, delegator, (keys or self.keys,))

    def sign_with(
        self,
        signed: Root | Targets | Snapshot | Timestamp,
        role: str,
        delegator: Root | Targets,
        keys: Sequence[Path],
    ) -> bytes:
        """As `sign`, with keys from several directories."""
        wanted: Role = delegator.get_delegated_role(role)
        document: Metadata[Any] = Metadata(signed)
        for directory in keys:
            self.add_signatures(document, wanted, directory)
        if len(document.signatures) < wanted.threshold:
            raise ConfigError(
                f"{keys[-1]}: found {len(document.signatures)} keys of role {role!r}, expected {wanted.threshold} of "
                f"{', '.join(k[:12] for k in wanted.keyids)}…; restore them, or replace them with the offline keys"
            )
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
        return checked_size(document, role)

    def add_signatures(self, document: Metadata[Any], role: Role, keys: Path | None = None) -> None:
        """Sign with every key of a role that is here.

        Raises:
            ConfigError: a key file that others may read, or that holds no key.
        """
        for signer in load_keys(keys or self.keys, role.keyids):
            document.sign(signer, append=True)

    def add_seed(self, seed: bytes, anchor: BeaconAnchor) -> None:
        """Store the seed of a beacon chain durably beside the online keys, readable by its owner only.

        Raises:
            TransientError: the disk is full.
        """
        write_durable(self.seed_path(anchor), seed)

    def beacon_chain(self, anchor: BeaconAnchor) -> BeaconChain:
        """The chain that ends in an anchor, from its seed.

        Raises:
            ConfigError: the seed is missing, others may read it, or it is another one.
        """
        path = self.seed_path(anchor)
        try:
            mode, seed = path.stat().st_mode, path.read_bytes()
        except OSError as fault:
            raise ConfigError(
                f"{path}: found {fault.strerror}, expected the seed of the beacon; restore a backup, or replace the "
                "beacon with the offline keys"
            ) from fault
        if mode & KEY_MODE_MASK:
            raise ConfigError(
                f"{path}: found mode {mode & 0o777:o}, expected 600: others can read the beacon's seed; chmod 600 it, "
                "and replace the beacon with the offline keys if it may have been read"
            )
        chain = BeaconChain(seed, anchor.length) if len(seed) == SEED_BYTES else None
        if chain is None or chain.anchor != anchor:
            raise ConfigError(
                f"{path}: found {len(seed)} bytes that do not lead to the anchor, expected the {SEED_BYTES} bytes of "
                "its seed; restore a backup, or replace the beacon with the offline keys"
            )
        return chain

    def seed_path(self, anchor: BeaconAnchor) -> Path:
        """Where the seed of a chain is: named after its anchor, so that the next one does not overwrite it."""
        return self.keys / f"beacon.{anchor.anchor[:16]}.seed"

    def prune(self, metadata: set[str], artifacts: set[str]) -> None:
        """Remove every metadata file and artifact that is not named; disk stays bounded.

        Raises:
            TransientError: the disk does not answer.
        """
        for path in (*self.metadata.iterdir(), *self.artifacts.iterdir()):
            if path.name not in (metadata if path.parent == self.metadata else artifacts):
                remove_durable(path)


def _read(path: Path, most: int) -> bytes:
    """A file's bytes, one more than may be at most: a validator reads what a hostile aggregator may have put there."""
    with path.open("rb") as file:
        return file.read(most + 1)


def _mark(timestamp: bytes) -> str:
    return hashlib.sha256(timestamp).hexdigest()


def checked_size(document: Metadata[Any], role: str) -> bytes:
    """A signed file's bytes.

    Raises:
        RefusedError: they are more than devices accept.
    """
    data: bytes = document.to_bytes()
    limit = _BYTES_MAX[type(document.signed)]
    if len(data) > limit:
        raise RefusedError(f"{role} metadata: found {len(data)} bytes, expected at most {limit}", rule="limit")
    return data


def load_keys(directory: Path, keyids: list[str]) -> list[CryptoSigner]:
    """The signers of a directory whose public keys are among `keyids`, in that order.

    Raises:
        ConfigError: a key file that others may read, or that holds no key.
    """
    found: dict[str, CryptoSigner] = {}
    for path in sorted(directory.glob("*.pem")) if directory.is_dir() else []:
        if path.stat().st_mode & KEY_MODE_MASK:
            raise ConfigError(
                f"{path}: found mode {path.stat().st_mode & 0o777:o}, expected 600: others can read this key; "
                "chmod 600 it, and replace it if it may have been read"
            )
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
            signer = CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
        except (ValueError, TypeError, OSError) as fault:
            raise ConfigError(f"{path}: found no usable private key ({fault}), expected PEM (PKCS #8)") from fault
        found[signer.public_key.keyid] = signer
    return [found[k] for k in keyids if k in found]


def meta_file(version: int, data: bytes) -> MetaFile:
    """How one metadata file is named in another: with length and digest, so that nothing can be mixed and matched."""
    return MetaFile.from_data(version, data, ["sha256"])


def expiry(now: float, lifetime: timedelta) -> datetime:
    """Expiry date of something signed at `now` (epoch seconds)."""
    return datetime.fromtimestamp(now, UTC) + lifetime
