"""What a new root and new top-level targets say, before anybody signs them; and how signed ones become the state.

Whoever signs (keys beside the repository, or people on other machines: `registry_proposal`), what is signed is made
here, and what comes back is checked here, by the old keys and by the new.

The anchor of the beacon stands in the root: of all signed files only a root can never be shown again to a device that
has followed a newer one, even by somebody who has every online key.

Source: The Update Framework specification 1.0.34, §6.1 (key management and migration).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from vedette_aggregator.registry_files import (
    OFFLINE_LIFETIME,
    RELEASE_LIFETIME,
    RepositoryFiles,
    RepositoryState,
    expiry,
    meta_file,
)
from vedette_core.crypto.beacon import BEACON_EPOCHS, SEED_BYTES, BeaconChain
from vedette_core.runtime.durable import remove_durable, write_durable
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
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
"""What `rotate` names to give the site another beacon chain."""
ONLINE_SECRETS: Final = (*ONLINE_ROLES, BEACON)
_SITE_FIELD: Final = "x-vedette-site"


@dataclass(frozen=True, slots=True)
class OfflineKeys:
    """The public keys of those who sign by hand, and how many of each must.

    Attributes:
        root: may sign the root.
        root_threshold: how many of them must.
        targets: may sign the top-level targets, which say whose releases count.
        targets_threshold: how many of them must.
        validator: signs every release beside the release key; None for none.
    """

    root: tuple[SSlibKey, ...]
    root_threshold: int
    targets: tuple[SSlibKey, ...]
    targets_threshold: int = 1
    validator: SSlibKey | None = None

    def check(self) -> None:
        """Whether the numbers can be met.

        Raises:
            ConfigError: they cannot.
        """
        for name, keys, threshold in (
            ("root", self.root, self.root_threshold),
            ("targets", self.targets, self.targets_threshold),
        ):
            if not 1 <= threshold <= len({k.keyid for k in keys}) <= ROOT_KEYS_MAX:
                raise ConfigError(
                    f"{name} keys: found a threshold of {threshold} of {len({k.keyid for k in keys})}, expected 1 to "
                    f"{ROOT_KEYS_MAX} keys and a threshold of 1 to that number"
                )


@dataclass(frozen=True, slots=True)
class Draft:
    """What there is to sign.

    Attributes:
        root: the next root.
        targets: the next top-level targets.
        roles: the tasks' roles that need a signature from outside, by task.
    """

    root: Root
    targets: Targets
    roles: Mapping[str, Targets]


@dataclass(frozen=True, slots=True)
class SignedDraft:
    """A draft's files, signed; as bytes, for what was signed is what is written."""

    root: bytes
    targets: bytes
    roles: Mapping[str, bytes]


def first_draft(files: RepositoryFiles, site: str, tasks: Sequence[str], offline: OfflineKeys, now: float) -> Draft:
    """The first root and targets of a site; makes the online keys and the beacon's seed.

    Raises:
        ConfigError: a name or number is not usable.
        TransientError: the disk is full.
    """
    check_names(site, tasks)
    offline.check()
    online = {role: new_key(files.keys, role) for role in ONLINE_ROLES}
    root = Root(
        expires=expiry(now, OFFLINE_LIFETIME),
        keys={},
        roles={name: Role([], 1) for name in ("root", "targets", "snapshot", "timestamp")},
        consistent_snapshot=True,
        unrecognized_fields={_SITE_FIELD: site, BEACON_FIELD: _new_beacon(files, BEACON_EPOCHS)},
    )
    delegated = {t: DelegatedRole(t, [], 1, terminating=True, paths=_paths(t)) for t in tasks}
    targets = Targets(expires=expiry(now, OFFLINE_LIFETIME), delegations=Delegations({}, roles=delegated))
    _set_keys(root, targets, offline, online)
    empty = {task: Targets(expires=expiry(now, RELEASE_LIFETIME)) for task in tasks}
    return Draft(root, targets, empty if offline.validator is not None else {})


def next_draft(
    files: RepositoryFiles,
    before: RepositoryState,
    offline: OfflineKeys,
    now: float,
    rotate: Iterable[str] = (),
    *,
    beacon_epochs: int | None = None,
) -> Draft:
    """The root and targets that follow: with these offline keys, fresh dates, and other online secrets if asked.

    New online keys are stored at once, and count once the root that names them is there. Another beacon chain is as
    long as `beacon_epochs` says, else as the one before: epochs count on, so that a shorter one would end at once.

    Raises:
        ConfigError: an unknown role, or numbers that are not usable.
        TransientError: the disk is full.
    """
    rotated = set(rotate)
    unknown = rotated - set(ONLINE_SECRETS)
    if unknown:
        raise ConfigError(f"keys to rotate: found {', '.join(sorted(unknown))}, expected some of {ONLINE_SECRETS}")
    if beacon_epochs is not None and BEACON not in rotated:
        raise ConfigError(f"epochs of the beacon: found {beacon_epochs} without rotating {BEACON!r}, expected both")
    least = _beacon_length(before.root)
    wanted = least if beacon_epochs is None else beacon_epochs
    if not least <= wanted <= BEACON_EPOCHS_MAX:
        raise ConfigError(
            f"epochs of the beacon: found {wanted}, expected {least} to {BEACON_EPOCHS_MAX}: epochs count on, and the "
            "chain before has that many"
        )
    offline.check()
    root, targets = copy.deepcopy(before.root), copy.deepcopy(before.targets)
    online = online_keys(before)
    online |= {role: new_key(files.keys, role) for role in ONLINE_ROLES if role in rotated}
    _set_keys(root, targets, offline, online)
    if BEACON in rotated:
        root.unrecognized_fields[BEACON_FIELD] = _new_beacon(files, wanted)
    root.version, root.expires = before.root.version + 1, expiry(now, OFFLINE_LIFETIME)
    targets.version, targets.expires = before.targets.version + 1, expiry(now, OFFLINE_LIFETIME)
    changed = _changed_roles(before, targets)
    roles = {task: _next_role(before.roles[task], now) for task in changed if offline.validator is not None}
    return Draft(root, targets, roles)


def offline_keys(state: RepositoryState) -> OfflineKeys:
    """The offline keys that count today."""
    root, delegations = state.root, state.delegations
    validators = {
        keyid: delegations.keys[keyid]
        for task in state.roles
        for keyid in state.targets.get_delegated_role(task).keyids[1:]
    }
    return OfflineKeys(
        tuple(_plain(root.keys[k]) for k in root.roles["root"].keyids),
        root.roles["root"].threshold,
        tuple(_plain(root.keys[k]) for k in root.roles["targets"].keyids),
        root.roles["targets"].threshold,
        next((_plain(key) for key in validators.values()), None),
    )


def online_keys(state: RepositoryState) -> dict[str, SSlibKey]:
    """Public online keys by role; every task's role lists the release key first."""
    found = {role: _plain(state.root.keys[state.root.roles[role].keyids[0]]) for role in ("timestamp", "snapshot")}
    task = next(iter(state.roles))
    return found | {"release": _plain(state.delegations.keys[state.targets.get_delegated_role(task).keyids[0]])}


def write_first(files: RepositoryFiles, signed: SignedDraft, now: float) -> None:
    """Make the state of a repository from the first signed draft; the timestamp is written last.

    Raises:
        ConfigError, RefusedError: too few signatures, or an online key is missing.
        TransientError: the disk is full; may be repeated.
    """
    root, targets = verified_pair(signed, None)
    written = {"1.root.json": signed.root, "1.targets.json": signed.targets}
    assert targets.delegations is not None
    tasks = list(targets.delegations.roles or {})
    for task in tasks:
        if task in signed.roles:
            written[f"1.{task}.json"] = _verified_role(files, signed.roles[task], task, targets, 1)
        else:
            written[f"1.{task}.json"] = files.sign(Targets(expires=expiry(now, RELEASE_LIFETIME)), task, targets)
    meta = {f"{role}.json": meta_file(1, written[f"1.{role}.json"]) for role in ("targets", *tasks)}
    files.write({**written, **files.sign_top(root, Snapshot(meta=meta), Timestamp(), now)})


def write_next(files: RepositoryFiles, before: RepositoryState, signed: SignedDraft, now: float) -> None:
    """Make the next state from a signed draft; may be repeated if it was cut short.

    Raises:
        ConfigError, RefusedError: too few signatures by the old keys or the new, a draft of another state, or an
            online key is missing.
        TransientError: the disk is full.
    """
    root, targets = verified_pair(signed, before)
    written = {f"{targets.version}.targets.json": signed.targets}
    snapshot, timestamp = copy.deepcopy(before.snapshot), copy.deepcopy(before.timestamp)
    snapshot.version, timestamp.version = snapshot.version + 1, timestamp.version + 1
    snapshot.meta["targets.json"] = meta_file(targets.version, signed.targets)
    for task in _changed_roles(before, targets):
        version = before.roles[task].version + 1
        if task in signed.roles:
            data = _verified_role(files, signed.roles[task], task, targets, version)
        else:
            data = files.sign(_next_role(before.roles[task], now), task, targets)
        written[f"{version}.{task}.json"] = data
        snapshot.meta[f"{task}.json"] = meta_file(version, data)
    written |= files.sign_top(root, snapshot, timestamp, now)
    timestamp_bytes = written.pop(TIMESTAMP_FILE)
    # The root goes last but for the timestamp: until then the old state is whole.
    files.write({**written, f"{root.version}.root.json": signed.root, TIMESTAMP_FILE: timestamp_bytes})
    assert targets.delegations is not None
    _forget_secrets(files, root, {*root.keys, *targets.delegations.keys})


def verified_pair(signed: SignedDraft, before: RepositoryState | None) -> tuple[Root, Targets]:
    """Root and targets of a signed draft, checked as a device would, and against the state that they follow.

    Raises:
        RefusedError: too few signatures, another site or task, or versions that do not follow.
    """
    try:
        root_file = Metadata[Root].from_bytes(signed.root)
        targets_file = Metadata[Targets].from_bytes(signed.targets)
        root, targets = root_file.signed, targets_file.signed
        if before is not None:
            before.root.verify_delegate("root", root_file.signed_bytes, root_file.signatures)
        root.verify_delegate("root", root_file.signed_bytes, root_file.signatures)
        root.verify_delegate("targets", targets_file.signed_bytes, targets_file.signatures)
    except (RepositoryError, ValueError, KeyError) as fault:
        raise RefusedError(f"root ceremony: found too few signatures ({fault})", rule="signature") from fault
    check_shape(root, targets)
    expected = (1, 1) if before is None else (before.root.version + 1, before.targets.version + 1)
    if (root.version, targets.version) != expected:
        raise RefusedError(
            f"root ceremony: found root {root.version} and targets {targets.version}, expected {expected[0]} and "
            f"{expected[1]}; the repository has moved on: make the proposal anew",
            rule="version",
        )
    tasks = set((targets.delegations and targets.delegations.roles) or {})
    if before is not None and (site_of(root) != site_of(before.root) or tasks != set(before.roles)):
        raise RefusedError(
            f"root ceremony: found site {site_of(root)} and tasks {sorted(tasks)}, expected {site_of(before.root)} "
            f"and {sorted(before.roles)}",
            rule="site",
        )
    return root, targets


def check_shape(root: Root, targets: Targets) -> None:
    """Whether root and targets delegate as ours do, and no more: what a person looks at must be all there is.

    Raises:
        RefusedError: targets of their own, other roles, or paths beyond a task's own.
    """
    delegations = targets.delegations
    if targets.targets or delegations is None or delegations.roles is None or delegations.succinct_roles is not None:
        raise RefusedError(
            "targets: found files of their own, or hash bins, expected roles of tasks only", rule="shape"
        )
    for task, role in delegations.roles.items():
        if role.paths != _paths(task) or role.path_hash_prefixes or not role.terminating or not role.keyids:
            raise RefusedError(f"role of {task}: found paths {role.paths}, expected {_paths(task)} only", rule="shape")
    if not root.consistent_snapshot:
        raise RefusedError("root: found no consistent snapshots, expected them", rule="shape")


def check_names(site: str, tasks: Sequence[str]) -> None:
    """Whether a site and its tasks can be called so.

    Raises:
        ConfigError, PeerError: they cannot.
    """
    check_id(site, "site")
    bad = [t for t in tasks if not re.fullmatch(TASK_PATTERN, t) or t in ROLE_NAMES]
    if bad or not 1 <= len(tasks) <= TASKS_MAX or len(set(tasks)) != len(tasks):
        raise ConfigError(
            f"tasks: found {', '.join(map(repr, tasks)) or 'none'}, expected 1 to {TASKS_MAX} different names of "
            f"{TASK_PATTERN}, none of them {', '.join(sorted(ROLE_NAMES))}"
        )


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


def _beacon_length(root: Root) -> int:
    """Epochs of the chain that a new one follows."""
    try:
        return max(BEACON_EPOCHS, beacon_of(root).length)
    except ConfigError:
        return BEACON_EPOCHS  # none, or none that can be read


def _set_keys(root: Root, targets: Targets, offline: OfflineKeys, online: Mapping[str, SSlibKey]) -> None:
    """Name exactly these keys in root and targets, the release key first in each task's role."""
    assert targets.delegations is not None
    named = {
        "root": (offline.root, offline.root_threshold),
        "targets": (offline.targets, offline.targets_threshold),
        "snapshot": ((online["snapshot"],), 1),
        "timestamp": ((online["timestamp"],), 1),
    }
    root.keys = {key.keyid: key for keys, _ in named.values() for key in keys}
    for role, (keys, threshold) in named.items():
        root.roles[role].keyids, root.roles[role].threshold = [k.keyid for k in keys], threshold
    signers = [online["release"], *([] if offline.validator is None else [offline.validator])]
    if len({k.keyid for k in signers}) != len(signers):
        raise ConfigError("validator key: found the release key, expected one of its own")
    targets.delegations.keys = {key.keyid: key for key in signers}
    for delegated in (targets.delegations.roles or {}).values():
        delegated.keyids, delegated.threshold = [k.keyid for k in signers], len(signers)


def _paths(task: str) -> list[str]:
    """Two levels below the task, as `target_path` builds them; a pattern does not match across a slash."""
    return [f"{task}/*/*"]


def _changed_roles(before: RepositoryState, targets: Targets) -> list[str]:
    """Tasks whose roles are signed by other keys than before."""

    def signers(of: Targets, task: str) -> tuple[list[str], int]:
        role = of.get_delegated_role(task)
        return role.keyids, role.threshold

    return [task for task in before.roles if signers(before.targets, task) != signers(targets, task)]


def _next_role(contents: Targets, now: float) -> Targets:
    role = copy.deepcopy(contents)
    role.version += 1
    role.expires = expiry(now, RELEASE_LIFETIME)
    return role


def _verified_role(files: RepositoryFiles, data: bytes, task: str, targets: Targets, version: int) -> bytes:
    """A role that was signed elsewhere, with the online signature added.

    Raises:
        RefusedError: too few signatures, or of another state.
    """
    try:
        document = Metadata[Targets].from_bytes(data)
        files.add_signatures(document, targets.get_delegated_role(task))
        targets.verify_delegate(task, document.signed_bytes, document.signatures)
    except (RepositoryError, ValueError, KeyError) as fault:
        raise RefusedError(f"role of {task}: found too few signatures ({fault})", rule="signature") from fault
    if document.signed.version != version:
        raise RefusedError(
            f"role of {task}: found version {document.signed.version}, expected {version}; something was published "
            "meanwhile: make the proposal anew",
            rule="version",
        )
    return bytes(document.to_bytes())


def new_key(directory: Path, name: str) -> SSlibKey:
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


def _forget_secrets(files: RepositoryFiles, root: Root, keyids: set[str]) -> None:
    """Remove online keys that sign nothing any more, and seeds of beacons that were replaced."""
    prefixes = {keyid[:16] for keyid in keyids}
    for path in files.keys.glob("*.pem"):
        if path.name.split(".")[-2] not in prefixes:
            remove_durable(path)
    seed = files.seed_path(beacon_of(root)).name
    for path in files.keys.glob(f"{BEACON}.*.seed"):
        if path.name != seed:
            remove_durable(path)


def _plain(key: Key) -> SSlibKey:
    assert isinstance(key, SSlibKey), "ours are; a repository with others was never made here"
    return key
