"""What needs the offline keys: making a release repository, and replacing keys or expiry dates once a year.

Root and top-level targets are signed by keys in ``root-keys/``, which the operator moves to a place without a network
right after `create_repository`. Whoever takes the aggregator then gets the online keys and the seed of the beacon only;
`renew` replaces those, and every device follows without being touched.

The anchor of the beacon stands in the root: of all signed files only a root can never be shown again to a device that
has followed a newer one, even by somebody who has every online key.

Source: The Update Framework specification 1.0.34, §6.1 (key management and migration).
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner, Key, SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]  # its public names, imported there without __all__
    DelegatedRole,
    Delegations,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from vedette_aggregator.registry_files import (
    OFFLINE_LIFETIME,
    RELEASE_LIFETIME,
    SNAPSHOT_LIFETIME,
    TIMESTAMP_LIFETIME,
    RepositoryFiles,
    expiry,
    meta_file,
)
from vedette_core.crypto.beacon import BEACON_EPOCHS, SEED_BYTES, BeaconChain
from vedette_core.runtime.durable import (
    file_error,
    make_directory,
    remove_durable,
    synchronise_directory,
    write_durable,
)
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import TASK_PATTERN, check_id
from vedette_schemas.trust import (
    BEACON_EPOCHS_MAX,
    BEACON_FIELD,
    ROLE_NAMES,
    TASKS_MAX,
    TIMESTAMP_FILE,
    BeaconAnchor,
    parse_anchor,
)

ROOT_KEYS_MAX: Final = 16
"""Most root keys: more people than that do not meet for a ceremony, and the root file has to stay small."""
ONLINE_ROLES: Final = ("timestamp", "snapshot", "release")
"""Whose keys are in ``keys/``, beside the beacon's seed: ``release`` signs the delegated role of every task."""
BEACON: Final = "beacon"
"""What `renew` rotates to give the site another beacon chain."""
ONLINE_SECRETS: Final = (*ONLINE_ROLES, BEACON)
OFFLINE_DIRECTORY: Final = "root-keys"
_SITE_FIELD: Final = "x-vedette-site"


def create_repository(
    directory: Path,
    site: str,
    tasks: Sequence[str],
    now: float,
    *,
    root_keys: int = 1,
    root_threshold: int = 1,
) -> None:
    """Make a release repository with fresh keys and no release; it is there whole, or not at all.

    Args:
        directory: where; must not exist or be empty.
        site: the site's id.
        tasks: names of the federated tasks; one delegated role each.
        now: epoch seconds.
        root_keys: keys that may sign the root.
        root_threshold: how many of them must.

    Raises:
        ConfigError: the directory is taken, or a name or number is not usable.
    """
    check_id(site, "site")
    _check_tasks(tasks)
    if not 1 <= root_threshold <= root_keys <= ROOT_KEYS_MAX:
        raise ConfigError(
            f"root keys: found a threshold of {root_threshold} of {root_keys}, expected 1 to {ROOT_KEYS_MAX} keys and "
            "a threshold of 1 to that number"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: found something there, expected a new directory; choose another, or remove it")
    unfinished = directory.with_name(f".{directory.name}.new")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)  # of an earlier attempt: nothing in it was ever published
        make_directory(unfinished)
        _fill(RepositoryFiles(unfinished), site, tasks, now, root_keys, root_threshold)
        unfinished.replace(directory)
        synchronise_directory(directory.parent)
    except OSError as fault:
        raise file_error(fault, f"create the release repository {directory}") from fault


def renew(
    directory: Path,
    offline_keys: Path,
    now: float,
    rotate: Collection[str] = (),
    *,
    beacon_epochs: int = BEACON_EPOCHS,
) -> None:
    """Sign a new root and new top-level targets with the offline keys, and replace online secrets if asked.

    After online keys were stolen, rotate all four: devices then forget what the thief signed, even version numbers
    that he ran up (fast-forward), and believe no value of the beacon whose seed he has. May be repeated if it was cut
    short.

    Args:
        directory: the repository.
        offline_keys: directory with at least the threshold of root keys, and the targets key.
        now: epoch seconds.
        rotate: which of `ONLINE_SECRETS` are replaced.
        beacon_epochs: length of a new beacon chain. Epochs count on, so that a chain that was used up needs a longer
            one.

    Raises:
        ConfigError: too few offline keys, an unknown role, a number that is not usable, or the repository is damaged.
        TransientError: the disk is full.
    """
    unknown = set(rotate) - set(ONLINE_SECRETS)
    if unknown:
        raise ConfigError(f"keys to rotate: found {', '.join(sorted(unknown))}, expected some of {ONLINE_SECRETS}")
    if not 1 <= beacon_epochs <= BEACON_EPOCHS_MAX:
        raise ConfigError(f"epochs of the beacon: found {beacon_epochs}, expected 1 to {BEACON_EPOCHS_MAX}")
    files = RepositoryFiles(directory)
    with files.locked():
        before = files.load(verify=False)
        root, targets = copy.deepcopy(before.root), copy.deepcopy(before.targets)
        replaced = {role: _new_key(files.keys, role) for role in ONLINE_ROLES if role in rotate}
        for role in ("timestamp", "snapshot"):
            if role in replaced:
                for keyid in list(root.roles[role].keyids):
                    root.revoke_key(keyid, role)
                root.add_key(replaced[role], role)
        if "release" in replaced:
            for task in before.roles:
                for keyid in list(targets.get_delegated_role(task).keyids):
                    targets.revoke_key(keyid, task)
                targets.add_key(replaced["release"], task)
        if BEACON in rotate:
            root.unrecognized_fields[BEACON_FIELD] = _new_beacon(files, beacon_epochs)
        root.version, root.expires = before.root.version + 1, expiry(now, OFFLINE_LIFETIME)
        targets.version, targets.expires = before.targets.version + 1, expiry(now, OFFLINE_LIFETIME)
        root_bytes = files.sign(root, "root", root, offline_keys)
        written = {f"{targets.version}.targets.json": files.sign(targets, "targets", root, offline_keys)}
        snapshot, timestamp = copy.deepcopy(before.snapshot), copy.deepcopy(before.timestamp)
        snapshot.version, timestamp.version = snapshot.version + 1, timestamp.version + 1
        snapshot.meta["targets.json"] = meta_file(targets.version, written[f"{targets.version}.targets.json"])
        if "release" in replaced:
            for task, contents in before.roles.items():
                role_targets = copy.deepcopy(contents)
                role_targets.version += 1
                role_targets.expires = expiry(now, RELEASE_LIFETIME)
                data = files.sign(role_targets, task, targets)
                written[f"{role_targets.version}.{task}.json"] = data
                snapshot.meta[f"{task}.json"] = meta_file(role_targets.version, data)
        _sign_top(files, root, snapshot, timestamp, now, written)
        timestamp_bytes = written.pop(TIMESTAMP_FILE)
        # The root goes last but for the timestamp: until then the old state is whole.
        files.write({**written, f"{root.version}.root.json": root_bytes, TIMESTAMP_FILE: timestamp_bytes})
        for role, key in replaced.items():
            _remove_all(files.keys.glob(f"{role}.*.pem"), but=_key_name(role, key))
        if BEACON in rotate:
            _remove_all(files.keys.glob(f"{BEACON}.*.seed"), but=files.seed_path(beacon_of(root)).name)


def site_of(root: Root) -> str:
    """The site that a repository was made for.

    Raises:
        ConfigError: the root does not say.
    """
    site = root.unrecognized_fields.get(_SITE_FIELD)
    if not isinstance(site, str):
        raise ConfigError(f"root metadata: found no field {_SITE_FIELD}, expected the site's id; it is not one of ours")
    return site


def beacon_of(root: Root) -> BeaconAnchor:
    """The anchor of the site's beacon chain.

    Raises:
        ConfigError: the root has none, or none that can be read.
    """
    todo = f"renew it with the offline keys and rotate {BEACON!r}"
    try:
        anchor = parse_anchor(root.unrecognized_fields)
    except PeerError as fault:
        raise ConfigError(f"root metadata: {fault}; {todo}") from fault
    if anchor is None:
        raise ConfigError(
            f"root metadata {root.version}: found no field {BEACON_FIELD}, expected the anchor of the site's beacon; "
            f"the repository was made before there was one: {todo}"
        )
    return anchor


def _check_tasks(tasks: Sequence[str]) -> None:
    bad = [t for t in tasks if not re.fullmatch(TASK_PATTERN, t) or t in ROLE_NAMES]
    if bad or not 1 <= len(tasks) <= TASKS_MAX or len(set(tasks)) != len(tasks):
        raise ConfigError(
            f"tasks: found {', '.join(map(repr, tasks)) or 'none'}, expected 1 to {TASKS_MAX} different names of "
            f"{TASK_PATTERN}, none of them {', '.join(sorted(ROLE_NAMES))}"
        )


def _fill(
    files: RepositoryFiles, site: str, tasks: Sequence[str], now: float, root_keys: int, root_threshold: int
) -> None:
    offline = files.directory / OFFLINE_DIRECTORY
    for folder in (files.metadata, files.artifacts):
        make_directory(folder, 0o755)
    for folder in (files.keys, offline):
        make_directory(folder)
    signers = [_new_key(offline, f"root-{n}") for n in range(1, root_keys + 1)]
    targets_key = _new_key(offline, "targets")
    online = {role: _new_key(files.keys, role) for role in ONLINE_ROLES}
    roles = {
        "root": Role([k.keyid for k in signers], root_threshold),
        "targets": Role([targets_key.keyid], 1),
        "snapshot": Role([online["snapshot"].keyid], 1),
        "timestamp": Role([online["timestamp"].keyid], 1),
    }
    keys: dict[str, Key] = {k.keyid: k for k in (*signers, targets_key, online["snapshot"], online["timestamp"])}
    root = Root(
        expires=expiry(now, OFFLINE_LIFETIME),
        keys=keys,
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={_SITE_FIELD: site, BEACON_FIELD: _new_beacon(files, BEACON_EPOCHS)},
    )
    release = online["release"]
    # Two levels below the task, as `target_path` builds them; a pattern does not match across a slash.
    delegated = {t: DelegatedRole(t, [release.keyid], 1, terminating=True, paths=[f"{t}/*/*"]) for t in tasks}
    targets = Targets(
        expires=expiry(now, OFFLINE_LIFETIME), delegations=Delegations({release.keyid: release}, roles=delegated)
    )
    written = {
        "1.root.json": files.sign(root, "root", root, offline),
        "1.targets.json": files.sign(targets, "targets", root, offline),
    }
    for task in tasks:
        written[f"1.{task}.json"] = files.sign(Targets(expires=expiry(now, RELEASE_LIFETIME)), task, targets)
    meta = {f"{role}.json": meta_file(1, written[f"1.{role}.json"]) for role in ("targets", *tasks)}
    _sign_top(files, root, Snapshot(meta=meta), Timestamp(), now, written)
    files.write(written)


def _sign_top(
    files: RepositoryFiles,
    root: Root,
    snapshot: Snapshot,
    timestamp: Timestamp,
    now: float,
    written: dict[str, bytes],
) -> None:
    """Sign snapshot and timestamp into `written`, the timestamp last."""
    snapshot.expires = expiry(now, SNAPSHOT_LIFETIME)
    data = files.sign(snapshot, "snapshot", root)
    written[f"{snapshot.version}.snapshot.json"] = data
    timestamp.snapshot_meta = meta_file(snapshot.version, data)
    timestamp.expires = expiry(now, TIMESTAMP_LIFETIME)
    written[TIMESTAMP_FILE] = files.sign(timestamp, "timestamp", root)


def _new_key(directory: Path, name: str) -> SSlibKey:
    """Make an Ed25519 key pair and store its private half, readable by its owner only."""
    signer = CryptoSigner.generate_ed25519()
    write_durable(directory / _key_name(name, signer.public_key), signer.private_bytes)
    return signer.public_key


def _key_name(name: str, key: SSlibKey) -> str:
    return f"{name}.{key.keyid[:16]}.pem"


def _new_beacon(files: RepositoryFiles, epochs: int) -> dict[str, Any]:
    """Draw a beacon chain and store its seed; returns the anchor as it stands in the root."""
    seed = os.urandom(SEED_BYTES)
    anchor = BeaconChain(seed, epochs).anchor
    files.add_seed(seed, anchor)
    return anchor.model_dump(mode="json")


def _remove_all(paths: Iterable[Path], but: str) -> None:
    for path in paths:
        if path.name != but:
            remove_durable(path)
