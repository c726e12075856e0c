"""A node from nothing: its bundle, the root of the releases, and a settings file."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from vedette import toml_writer
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_core.runtime.sections import BrokerSection
from vedette_schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """Where a new node's files are.

    Attributes:
        node: who it is.
        config: its settings file.
    """

    node: NodeIdentity
    config: Path


def prepare(directory: Path, trust_root: Path) -> Path:
    """Check that a folder can become a node's, and make it.

    Args:
        directory: new or empty, or one whose enrolment did not come to its end.
        trust_root: the releases' ``root.json``, as it came from the site.

    Returns:
        Folder for the bundle.

    Raises:
        ConfigError: the folder is in use, or there is no root.
    """
    if directory.exists() and (not directory.is_dir() or {p.name for p in directory.iterdir()} - {"bundle"}):
        raise ConfigError(f"{directory}: found something there, expected a new or empty folder for the node")
    if not trust_root.is_file():
        raise ConfigError(f"{trust_root}: not found, expected the root.json of the site's releases")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return directory.absolute() / "bundle"


def take_bundle(source: Path, bundle: Path) -> None:
    """Copy a bundle that the authority made; the keys keep their mode.

    Raises:
        ConfigError: there is none, or it is no node's.
    """
    load_node(source, time.time())
    bundle.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            mode = 0o600 if path.suffix == ".key" else 0o644
            with os.fdopen(os.open(bundle / path.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(path.read_bytes())


def finish(bundle: Path, trust_root: Path, broker: BrokerSection) -> NodeFolder:
    """Write what a node beside its bundle needs.

    Args:
        bundle: the node's, within its folder.
        trust_root: the releases' ``root.json``.
        broker: the site's.

    Raises:
        ConfigError: the bundle is not a device's or a committee helper's.
    """
    node = load_node(bundle, time.time())
    if node.role not in (CertificateRole.DEVICE, CertificateRole.COMMITTEE):
        raise ConfigError(f"{bundle}: found a bundle of role {node.role}, expected a device's or a committee helper's")
    directory = bundle.parent
    shutil.copyfile(trust_root, directory / "root.json")
    own = {"device": node.id} if node.role is CertificateRole.DEVICE else {"member": node.id, "tasks": ["network"]}
    tables = {
        "site": node.site,
        **own,
        "state_dir": directory / "state",
        "identity": {"bundle": bundle, "trust_root": directory / "root.json"},
        "broker": {"host": broker.host, "port": broker.port},
    }
    config = directory / ("device.toml" if node.role is CertificateRole.DEVICE else "committee.toml")
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(toml_writer.dumps(tables))
    return NodeFolder(node, config)
