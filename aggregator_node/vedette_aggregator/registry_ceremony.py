"""The ceremony with all keys on one machine: making a release repository, and renewing it.

Root and top-level targets are signed by keys in ``root-keys/``, which the operator moves to a place without a network
right after `create_repository`. Whoever takes the aggregator then gets the online keys and the seed of the beacon only;
`renew` replaces those, and every device follows without being touched. Keys that different people make on different
machines sign proposals instead: `registry_proposal`.

Source: The Update Framework specification 1.0.34, §6.1 (key management and migration).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from vedette_aggregator.registry_draft import (
    BEACON,
    ONLINE_ROLES,
    ONLINE_SECRETS,
    ROOT_KEYS_MAX,
    Draft,
    OfflineKeys,
    SignedDraft,
    beacon_of,
    check_names,
    first_draft,
    new_key,
    next_draft,
    offline_keys,
    write_first,
    write_next,
)
from vedette_aggregator.registry_files import RepositoryFiles
from vedette_core.runtime.durable import file_error, make_directory, synchronise_directory
from vedette_schemas.errors import ConfigError

__all__ = ["BEACON", "OFFLINE_DIRECTORY", "ONLINE_ROLES", "ONLINE_SECRETS", "beacon_of", "create_repository", "renew"]

OFFLINE_DIRECTORY: Final = "root-keys"


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
    check_names(site, tasks)
    if not 1 <= root_threshold <= root_keys <= ROOT_KEYS_MAX:
        raise ConfigError(
            f"root keys: found a threshold of {root_threshold} of {root_keys}, expected 1 to {ROOT_KEYS_MAX} keys and "
            "a threshold of 1 to that number"
        )
    check_empty(directory)
    unfinished = directory.with_name(f".{directory.name}.new")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)  # of an earlier attempt: nothing in it was ever published
        files = prepare_directory(unfinished)
        offline = unfinished / OFFLINE_DIRECTORY
        make_directory(offline)
        roots = tuple(new_key(offline, f"root-{n}") for n in range(1, root_keys + 1))
        keys = OfflineKeys(roots, root_threshold, (new_key(offline, "targets"),))
        write_first(files, _signed(files, first_draft(files, site, tasks, keys, now), offline), now)
        unfinished.replace(directory)
        synchronise_directory(directory.parent)
    except OSError as fault:
        raise file_error(fault, f"create the release repository {directory}") from fault


def check_empty(directory: Path) -> None:
    """Whether a repository can be made there.

    Raises:
        ConfigError: something is there.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: found something there, expected a new directory; choose another, or remove it")


def prepare_directory(directory: Path) -> RepositoryFiles:
    """The folders of a repository, the one of the keys readable by its owner only."""
    files = RepositoryFiles(directory)
    make_directory(directory)
    for folder in (files.metadata, files.artifacts):
        make_directory(folder, 0o755)
    make_directory(files.keys)
    return files


def renew(
    directory: Path,
    offline_keys_directory: Path,
    now: float,
    rotate: Collection[str] = (),
    *,
    beacon_epochs: int | None = None,
) -> None:
    """Sign a new root and new top-level targets with the offline keys, and replace online secrets if asked.

    After online keys were stolen, rotate all four: devices then forget what the thief signed, even version numbers
    that he ran up (fast-forward), and believe no value of the beacon whose seed he has. May be repeated if it was cut
    short.

    Args:
        directory: the repository.
        offline_keys_directory: directory with at least the threshold of root keys, and the targets key.
        now: epoch seconds.
        rotate: which of `ONLINE_SECRETS` are replaced.
        beacon_epochs: length of a new beacon chain, as long as the one before without it. Epochs count on, so that a
            chain that was used up needs a longer one.

    Raises:
        ConfigError: too few offline keys, an unknown role, a number that is not usable, or the repository is damaged.
        TransientError: the disk is full.
    """
    files = RepositoryFiles(directory)
    with files.locked():
        before = files.load(verify=False)
        draft = next_draft(files, before, offline_keys(before), now, rotate, beacon_epochs=beacon_epochs)
        write_next(files, before, _signed(files, draft, offline_keys_directory), now)


def _signed(files: RepositoryFiles, draft: Draft, keys: Path) -> SignedDraft:
    return SignedDraft(
        files.sign(draft.root, "root", draft.root, keys),
        files.sign(draft.targets, "targets", draft.root, keys),
        {task: files.sign_with(role, task, draft.targets, (files.keys, keys)) for task, role in draft.roles.items()},
    )
