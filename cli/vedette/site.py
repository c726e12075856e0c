"""A site from nothing: certificate authority, bundles, release repository, a settings file a component."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vedette import toml_writer
from vedette.attestation_policy import site_policy
from vedette_aggregator.registry import Registry
from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import check_id

DEVICES_MAX: Final = 10_000
DEFAULT_TASKS: Final[Sequence[Mapping[str, Any]]] = ({"task": "network", "use_case": "network"},)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a new site's files are."""

    directory: Path
    broker_config: Path
    aggregator_config: Path
    device_configs: Mapping[str, Path]
    analytics_bundle: Path
    authority_config: Path
    helper_configs: Mapping[str, Path] = field(default_factory=dict)


def create(
    directory: Path,
    site: str,
    devices: Sequence[str],
    *,
    port: int,
    tasks: Sequence[Mapping[str, Any]] = DEFAULT_TASKS,
    aggregator: Mapping[str, Any] | None = None,
    device_tables: Mapping[str, Mapping[str, Any]] | None = None,
    helpers: Sequence[str] = (),
    attested: bool = False,
) -> Site:
    """Make everything that a site needs to start.

    Args:
        directory: new or empty folder.
        site: the site's id.
        devices: ids of the device nodes.
        port: TCP port of the broker, on loopback.
        tasks: the aggregator's ``[[tasks]]`` tables.
        aggregator: further tables of the aggregator's settings.
        device_tables: further tables of each device's settings, by id.
        helpers: ids of committee helpers.
        attested: whether devices and helpers must show the software that is installed here.

    Raises:
        ConfigError: the folder is in use, an id is not valid or given twice.
    """
    _check(directory, site, [*devices, *helpers])
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    directory, now = directory.absolute(), time.time()
    authority = directory / "ca"
    ca.init(authority, site, now=now)
    bundles = {
        role: ca.issue(authority, role.value, role, now=now)
        for role in (CertificateRole.BROKER, CertificateRole.AGGREGATOR, CertificateRole.ANALYTICS)
    }
    trust = Registry.create(directory / "trust", site, [str(t["task"]) for t in tasks], now)
    (directory / "root.json").write_bytes(trust.root)
    broker = {"host": "127.0.0.1", "port": port}
    configs = directory / "config"
    configs.mkdir(mode=0o700)
    made = {
        "broker": {
            "site": site,
            "bundle": bundles[CertificateRole.BROKER],
            "state_dir": directory / "state" / "broker",
            "listen": broker,
        },
        "ca": {"authority": authority, "broker": broker},
        "aggregator": {
            "site": site,
            "state_dir": directory / "state" / "aggregator",
            "trust_dir": directory / "trust",
            "identity": {"bundle": bundles[CertificateRole.AGGREGATOR]},
            "broker": broker,
            "tasks": list(tasks),
            **(aggregator or {}),
        },
    }
    if attested:
        tables = site_policy(directory / "attestation", site)
        made["aggregator"]["attestation"], node_table = tables["aggregator"], {"attestation": tables["node"]}
    else:
        node_table = {}
    for device in devices:
        made[device] = {
            "site": site,
            "device": device,
            "state_dir": directory / "state" / device,
            "identity": {
                "bundle": ca.issue(authority, device, CertificateRole.DEVICE, now=now),
                "trust_root": directory / "root.json",
            },
            "broker": broker,
            **node_table,
            **(device_tables or {}).get(device, {}),
        }
    for helper in helpers:
        made[helper] = {
            "site": site,
            "member": helper,
            "state_dir": directory / "state" / helper,
            "tasks": [str(t["task"]) for t in tasks],
            "identity": {
                "bundle": ca.issue(authority, helper, CertificateRole.COMMITTEE, now=now),
                "trust_root": directory / "root.json",
            },
            "broker": broker,
            **node_table,
        }
    for name, tables in made.items():
        _write(configs / f"{name}.toml", toml_writer.dumps(tables))
    return Site(
        directory,
        configs / "broker.toml",
        configs / "aggregator.toml",
        {device: configs / f"{device}.toml" for device in devices},
        bundles[CertificateRole.ANALYTICS],
        configs / "ca.toml",
        {helper: configs / f"{helper}.toml" for helper in helpers},
    )


def _check(directory: Path, site: str, devices: Sequence[str]) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: found something there, expected a new or empty folder for the site")
    try:
        check_id(site, "site")
        for device in devices:
            check_id(device, "device")
    except PeerError as fault:
        raise ConfigError(str(fault)) from fault
    if len(set(devices)) != len(devices) or not 1 <= len(devices) <= DEVICES_MAX:
        raise ConfigError(
            f"devices: found {len(devices)}, {len(set(devices))} of them distinct, expected 1 or more ids"
        )


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
