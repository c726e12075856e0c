"""What a step of a rollout means for the releases that it is about, written into their record for people."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from vedette_aggregator.lineage import Lineage
from vedette_aggregator.rollout_state import Phase, RolloutRecord
from vedette_schemas.errors import VedetteError

log = logging.getLogger("vedette.rollouts")

ENDED: Final = {
    Phase.PROMOTED: "promoted",
    Phase.ABORTED: "rollout aborted",
    Phase.ROLLED_BACK: "rolled back",
}


def happened(before: RolloutRecord, after: RolloutRecord, stages: Sequence[float]) -> list[tuple[int, str, str]]:
    """Release, what happened to it, and details, in order.

    Args:
        before: the record before a step.
        after: the same behind it; the two may be two rollouts apart.
        stages: in percent.
    """
    out: list[tuple[int, str, str]] = []
    if after.number == before.number:
        out += _within(before, after, stages)
    known = {(p.number, p.phase) for p in before.history}
    for past in after.history:
        if (past.number, past.phase) not in known:
            details = f"rollout {past.number}, {past.exposed} devices exposed: {past.reason}"
            out.append((past.candidate, ENDED.get(past.phase, past.phase.value), details))
    gone = set(after.withdrawn) - set(before.withdrawn)
    releases = {r.version: r for r in (*before.known, *after.known)}
    versions = {r.sha256: r.version for r in releases.values()}
    for release in releases.values():
        if release.sha256 in gone:
            parent = versions.get(release.parent)
            why = "" if parent is None or release.version == before.candidate else f"made from release {parent}"
            out.append((release.version, "withdrawn", why))
    if after.number != before.number:
        out.append((after.candidate, "rollout started", f"rollout {after.number}, over release {after.baseline}"))
    old, new = ({pin.device: pin.version for pin in record.pins} for record in (before, after))
    out += [(version, "pinned", device) for device, version in new.items() if old.get(device) != version]
    out += [(version, "unpinned", device) for device, version in old.items() if new.get(device) != version]
    return out


def write_down(
    lineage: Lineage, task: str, before: RolloutRecord, after: RolloutRecord, stages: Sequence[float], now: float
) -> None:
    """Write into the releases' record what a step meant; a rollout goes on where that fails."""
    if before is after:
        return
    try:
        for version, what, details in happened(before, after, stages):
            lineage.record(task, version, what, now, details)
    except VedetteError as fault:
        log.error("record of %s: %s", task, fault)


def _within(before: RolloutRecord, after: RolloutRecord, stages: Sequence[float]) -> list[tuple[int, str, str]]:
    version, out = after.candidate, list[tuple[int, str, str]]()
    if after.stage > before.stage:
        percent = stages[after.stage] if after.stage < len(stages) else 100.0
        out.append((version, "rollout stage", f"{percent:g} %: {after.target} of {after.fleet} devices"))
    elif before.phase is Phase.PAUSED and after.phase in (Phase.RUNNING, Phase.WAITING):
        out.append((version, "rollout resumed", ""))
    if after.phase is not before.phase:
        match after.phase:
            case Phase.PAUSED:
                out.append((version, "rollout paused", after.reason))
            case Phase.PROMOTING:
                out.append((version, "promotion begun", after.reason))
            case Phase.REVERTING:
                out.append((version, "rollback begun", after.reason))
    return out
