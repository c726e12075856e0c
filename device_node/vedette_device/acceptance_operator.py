"""What a person accepts on a gateway, from outside of its node; whether it runs or not."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import msgpack

from vedette_core.runtime.storage import StateStore
from vedette_device.acceptance import (
    LEVEL_MAX,
    REASON_CHARACTERS_MAX,
    RECORDS,
    Acceptance,
    progress_from_bytes,
    progress_key,
)
from vedette_device.acceptances import level_of
from vedette_device.accepted_entities import ENTITIES_MAX, LEARNING_MAX
from vedette_device.alert_record import EVIDENCE_SCHEME, AlertRecord, rfc3339
from vedette_device.audit_log import AuditLog, FolderLock
from vedette_device.evidence_store import open_kept
from vedette_device.policy_operator import open_store
from vedette_device.settings import DeviceSettings, NetworkSection
from vedette_schemas.alert import AlertState
from vedette_schemas.errors import ConfigError, PeerError, TransientError, VedetteError

LOCK_S: Final = 5.0
"""Another command needs milliseconds."""
WAITING: Final = "waiting"
"""Stage of what the node has not seen yet."""


def accept(
    settings: DeviceSettings, *, alert: str = "", task: str = "", entity: str = "", reason: str = ""
) -> Acceptance:
    """Accept what an entity does; the node follows within seconds, or at its next start.

    Args:
        settings: the device's.
        alert: id of the alert that is answered, or its `evidence`; or else:
        task: the detector's, and …
        entity: … the entity's name.
        reason: the person's words.

    Raises:
        ConfigError: no such alert or entity, a detector that cannot learn it, or too many already.
        TransientError: the disk is full, or another command does not end.
    """
    if len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        raise ConfigError(
            f"reason: found {len(reason)} characters, expected at most {REASON_CHARACTERS_MAX} printable ones"
        )
    with _locked(settings) as audit, open_store(settings) as store:
        name, level = alert.removeprefix(EVIDENCE_SCHEME), 1.0
        if name:
            task, entity, level = _of_alert(settings, store, name)
        section = _section(settings, task)
        known = _entities(store, section)
        opened = _open_alert(store, task, entity := _plain(entity))
        if opened is None and not name and entity not in known:
            raise ConfigError(
                f"{entity}: found neither an open alert nor windows of it in {task}, expected one of the "
                f"{len(known)} entities of the last saved state, which is up to five minutes old"
            )
        kept = _records(store)
        _check_room(store, kept, task, entity, has_alert=opened is not None)
        record = Acceptance(
            id=str(uuid.uuid4()),
            task=task,
            entity=entity,
            alert=name or (opened.id if opened is not None else ""),
            level=min(max(level, level_of(opened)), LEVEL_MAX),
            reason=reason,
            uid=os.getuid(),
            at=time.time(),
        )
        _audited(audit, store, record, "accepted")
    return record


def undo(settings: DeviceSettings, *, alert: str = "", task: str = "", entity: str = "") -> Acceptance:
    """Take an acceptance back: the entity is a newcomer again.

    Args:
        settings: the device's.
        alert: id of the alert that was answered; or else:
        task: the detector's, and …
        entity: … the entity's name.

    Returns:
        What was taken back.

    Raises:
        ConfigError: there is none.
        TransientError: the disk is full, or another command does not end.
    """
    name, entity = alert.removeprefix(EVIDENCE_SCHEME), _plain(entity)
    with _locked(settings) as audit, open_store(settings) as store:
        kept = _records(store)
        found = [r for r in kept if (r.alert == name if name else (r.task, r.entity) == (task, entity))]
        if not found:
            raise ConfigError(
                f"{name or f'{task} {entity}'}: found no acceptance of it among {len(kept)}, expected one of --list"
            )
        _audited(audit, store, found[0], "undone")
    return found[0]


def accepted(settings: DeviceSettings) -> list[dict[str, Any]]:
    """What was accepted, oldest first, and how far learning is.

    Raises:
        ConfigError: the device has no state.
    """
    with open_store(settings) as store:
        return [_row(store, record) for record in _records(store)]


def audit_folder(settings: DeviceSettings) -> Path:
    """Where acceptances are audited: in a chain of their own, which the command writes and the node does not."""
    return settings.state_dir / "accept"


def _row(store: StateStore, record: Acceptance) -> dict[str, Any]:
    progress = progress_from_bytes(store.get(progress_key(record.task, record.entity)))
    seen = progress if progress is not None and progress.id == record.id else None
    return {
        "task": record.task,
        "entity": record.entity,
        "alert": record.alert or None,
        "stage": WAITING if seen is None else seen.stage,
        "windows": 0 if seen is None else seen.windows,
        "of": None if seen is None else seen.of,
        "at": rfc3339(record.at),
        "uid": record.uid,
        "reason": record.reason,
    }


def _check_room(store: StateStore, kept: list[Acceptance], task: str, entity: str, *, has_alert: bool) -> None:
    """One acceptance of an entity at a time, and few at a time."""
    rows = {(record.task, record.entity): _row(store, record)["stage"] for record in kept}
    stage = rows.pop((task, entity), None)
    if stage in (WAITING, "learning") and not has_alert:
        raise ConfigError(f"{entity}: found it being learnt already, expected an entity that is not, or an open alert")
    stages = [stage for (of, _), stage in rows.items() if of == task]
    learning = sum(stage in (WAITING, "learning") for stage in stages)
    if len(stages) >= ENTITIES_MAX or learning >= LEARNING_MAX:
        raise ConfigError(
            f"{task}: found {len(stages)} entities accepted and {learning} of them being learnt, expected fewer than "
            f"{ENTITIES_MAX} and {LEARNING_MAX}; wait, take some back (--undo), or let the whole network be learnt anew"
        )


def _section(settings: DeviceSettings, task: str) -> NetworkSection:
    tasks = {section.task: section for section in settings.detectors()}
    section = tasks.get(task)
    if section is None:
        raise ConfigError(f"task {task!r}: found no detector of it here, expected one of {', '.join(tasks) or 'none'}")
    if not isinstance(section, NetworkSection):
        raise ConfigError(
            f"task {task}: found a detector of the single entity {section.entity}, expected one of many: a new "
            "baseline for a process or a host that has changed cannot be learnt beside the old one yet "
            "(docs/operations.md, A false alarm)"
        )
    return section


def _entities(store: StateStore, section: NetworkSection) -> set[str]:
    """Entities of the detector's last saved state."""
    saved = store.get(f"detector/{section.task}")
    try:
        state: dict[str, Any] = {"baseline": None}
        if saved is not None:
            state = msgpack.unpackb(saved, strict_map_key=False)
        if state["baseline"] is None:
            raise ConfigError(
                f"task {section.task}: found its detector in its learning phase, expected one that is through: what it "
                "sees now is being learnt anyway"
            )
        return {str(name) for name in (*state["history"]["entities"], *state["baseline"]["usual"]) if name}
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as fault:
        raise PeerError(f"detector state of {section.task}: found {fault!r}, expected a saved state") from fault


def _of_alert(settings: DeviceSettings, store: StateStore, name: str) -> tuple[str, str, float]:
    """Task, entity and level of an alert that is open, or that evidence is kept for."""
    for section in settings.detectors():
        value = store.get(f"alert/{section.task}/{name}")
        if value is not None:
            record = AlertRecord.from_bytes(value)[0]
            return section.task, record.entity, level_of(record)
    try:
        with open_kept(settings.state_dir) as kept:
            evidence = kept.evidence(name)
    except ConfigError as fault:
        raise ConfigError(
            f"alert {name}: found it neither open nor among those that evidence is kept for, expected the id of an "
            "alert of this device; --task and --entity name an entity"
        ) from fault
    # Evidence has no largest benign score; the threshold, which is below it, is what is known.
    level = evidence.score / evidence.threshold if evidence.threshold > 0.0 else 1.0
    return evidence.model.task, evidence.entity, max(level, 1.0)


def _open_alert(store: StateStore, task: str, entity: str) -> AlertRecord | None:
    for value in store.all(f"alert/{task}/").values():
        try:
            record, _ = AlertRecord.from_bytes(value)
        except PeerError:
            continue
        if record.entity == entity and record.state is not AlertState.CLOSED:
            return record
    return None


def _records(store: StateStore) -> list[Acceptance]:
    """Every acceptance that can be read, oldest first; the node says which cannot."""
    found = []
    for value in store.all(RECORDS).values():
        try:
            found.append(Acceptance.from_bytes(value))
        except PeerError:
            continue
    return sorted(found, key=lambda record: record.at)


def _audited(audit: AuditLog, store: StateStore, record: Acceptance, outcome: str) -> None:
    """Write a change into the audit, then do it."""
    sudo = os.environ.get("SUDO_UID", "")
    entry = {
        "event": "accept",
        "outcome": outcome,
        "task": record.task,
        "entity": record.entity,
        "alert": record.alert,
        "reason": record.reason,
        "uid": os.getuid(),
        **({"sudo_uid": int(sudo)} if sudo.isdecimal() else {}),
        "acceptance": record.id,
    }
    audit.append(entry)
    try:
        store.put(record.key, record.to_bytes() if outcome == "accepted" else None)
    except VedetteError as fault:
        audit.append({**entry, "outcome": "failed", "detail": str(fault)})
        raise


@contextmanager
def _locked(settings: DeviceSettings) -> Iterator[AuditLog]:
    """The audit, for one command at a time."""
    if not (settings.state_dir / "device.db").exists():
        raise ConfigError(f"{settings.state_dir}: found no state there, expected that of a device node that has run")
    folder, limit = audit_folder(settings), time.monotonic() + LOCK_S
    while True:
        try:
            lock = FolderLock(folder)
            break
        except ConfigError as fault:
            if time.monotonic() > limit:
                raise TransientError(f"{folder}: found another `vedette device accept` at work; try again") from fault
            time.sleep(0.05)
    try:
        yield AuditLog(folder, settings.policy.audit_bytes_max, settings.policy.audit_files_max)
    finally:
        lock.close()


def _plain(entity: str) -> str:
    """An address as alerts write it; any other name as it is."""
    try:
        return str(ip_address(entity))
    except ValueError:
        return entity
