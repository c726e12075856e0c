"""What a person does about a device's policy from outside of its node: look, and release; whether it runs or not."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vedette_core.runtime.storage import Database, StateStore
from vedette_device.alert_record import rfc3339
from vedette_device.audit_log import CURRENT as AUDIT_FILE
from vedette_device.audit_log import AuditLog, FolderLock, closed_files, verify_audit
from vedette_device.enforcement import DRY, LIVE, REQUESTS, policy_folder, readable
from vedette_device.firewall import Firewall
from vedette_device.firewall_script import FirewallScript
from vedette_device.policy_effects import Measure
from vedette_device.policy_protection import plain_address
from vedette_device.settings import DeviceSettings
from vedette_schemas.errors import ConfigError, PeerError, TransientError

ANSWER_S: Final = 15.0
"""A node looks for requests once a second; a firewall under load may take longer."""
LOOK_S: Final = 0.1


@contextmanager
def open_store(settings: DeviceSettings) -> Iterator[StateStore]:
    """The state of a device, which may be running.

    Raises:
        ConfigError: there is none.
    """
    path = settings.state_dir / "device.db"
    if not path.exists():
        raise ConfigError(f"{path}: found no state there, expected that of a device node that has run")
    database = Database(path)
    try:
        yield StateStore(database)
    finally:
        database.close()


def status(settings: DeviceSettings) -> dict[str, Any]:
    """What is in force, and where the audit stands.

    Raises:
        ConfigError: the device has no state.
    """
    with open_store(settings) as store:
        measures = {mode: readable(store.all(f"{prefix}measure/")) for mode, prefix in (("live", LIVE), ("dry", DRY))}
    now = time.time()
    try:
        chain = verify_audit(audit_files(policy_folder(settings)))
        audit: dict[str, Any] = {"lines": chain.lines, "last": chain.last, "head": chain.head}
    except PeerError as fault:
        audit = {"fault": str(fault)}
    return {
        "enabled": settings.policy.enabled,
        "dry_run": settings.policy.dry_run,
        "measures": [_plain(m, mode) for mode, kept in measures.items() for m in kept if m.until > now],
        "audit": audit,
    }


async def release(settings: DeviceSettings, entity: str) -> list[str]:
    """End the measures on an address, or all of them.

    Args:
        settings: the device's.
        entity: the address; empty for all.

    Returns:
        What was ended, in words; empty where the running node was asked to, and has done it.

    Raises:
        ConfigError: it is no address, nothing is in force on it, or nft refuses.
        TransientError: the running node does not answer.
    """
    try:
        address = plain_address(entity) if entity else None
    except ValueError as fault:
        raise ConfigError(f"{entity!r}: found no address, expected one, as in `vedette policy status`") from fault
    with open_store(settings) as store:
        kept = [m for p in (LIVE, DRY) for m in readable(store.all(f"{p}measure/")) if address in (None, m.address)]
        if not kept:
            raise ConfigError(f"{entity or 'release'}: found nothing in force, expected an address of `policy status`")
        folder = policy_folder(settings)
        try:
            lock = FolderLock(folder)
        except ConfigError:
            _ask(store, "" if address is None else str(address))
            return []
        try:
            return await _release_here(settings, store, kept)
        finally:
            lock.close()


def audit_files(folder: Path) -> list[Path]:
    """Every file of an audit, oldest first."""
    return [path for path in (*closed_files(folder), folder / AUDIT_FILE) if path.exists()]


async def _release_here(settings: DeviceSettings, store: StateStore, measures: list[Measure]) -> list[str]:
    """Nobody else enforces: do it."""
    section = settings.policy
    audit = AuditLog(policy_folder(settings), section.audit_bytes_max, section.audit_files_max)
    said = []
    for measure in measures:
        is_live = store.get(_key(LIVE, measure)) == measure.to_bytes()
        if is_live and measure.until > time.time():
            rates = [measure.kbytes_per_s] if measure.kbytes_per_s else []
            firewall = Firewall(FirewallScript(settings.site, settings.device, rates))
            if await firewall.find():
                await firewall.end(measure.kind, measure.address)
        audit.append(
            {
                "event": measure.kind,
                "outcome": "released",
                "rule": measure.rule,
                "alert": measure.alert,
                "entity": str(measure.address),
                "detail": "asked by an operator's command while the node was not running",
                "dry_run": not is_live,
            }
        )
        store.put(_key(LIVE if is_live else DRY, measure), None)
        said.append(f"{measure.kind} of {measure.address}" + ("" if is_live else " (dry run)"))
    return said


def _ask(store: StateStore, entity: str) -> None:
    """Ask the running node, and wait until it has done it."""
    key = f"{REQUESTS}{uuid.uuid4()}"
    store.put(key, entity.encode())
    limit = time.monotonic() + ANSWER_S
    while store.get(key) is not None:
        if time.monotonic() > limit:
            store.put(key, None)
            raise TransientError(
                f"the node holds the policy's lock and did not answer within {ANSWER_S:g} s; look at its log, or stop "
                "it and ask again"
            )
        time.sleep(LOOK_S)


def _key(prefix: str, measure: Measure) -> str:
    return f"{prefix}measure/{measure.kind}/{measure.address}"


def _plain(measure: Measure, mode: str) -> dict[str, Any]:
    return {
        "entity": str(measure.address),
        "measure": measure.kind,
        "mode": mode,
        "since": rfc3339(measure.since),
        "until": rfc3339(measure.until),
        "rule": measure.rule,
        "alert": measure.alert,
        **({"kbytes_per_s": measure.kbytes_per_s} if measure.kbytes_per_s else {}),
    }
