"""What the demo ends with, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from vedette.demo.judge import Verdict
from vedette.observer import Observer
from vedette_schemas.rollout import RolloutPhase

PROMISED_DETECTION = 0.9
PROMISED_ROUNDS = 2
"""Rounds that each task must complete."""


def summarise(
    observer: Observer,
    verdict: Verdict,
    *,
    devices: int,
    staged: bool,
    tasks: tuple[str, ...],
    seconds: float,
    verified: bool,
    protection: str,
) -> dict[str, Any]:
    """The figures of one replay, all of them counted or measured in it."""
    reports = list(observer.reports.values())
    detectors = [d for r in reports for d in r.detectors]
    uploads = sum(len(r.detectors) for r in reports) * max(1, len(observer.completed)) / max(1, len(tasks))
    scored = [d.score_us_p50 for d in detectors if d.score_us_p50]
    newest = {task: max((v for _, t, v in observer.activated if t == task), default=0) for task in tasks}
    rss = sorted(r.rss_bytes for r in reports)
    return {
        "devices": devices,
        "windows_scored": sum(d.windows for d in detectors),
        "alerts": sum(s.opened for s in observer.sightings()),
        "attacks_total": verdict.attacks_total,
        "attacks_detected": verdict.attacks_detected,
        "attacks_missed": [f"{e.gateway} {e.source} {e.kind}" for e in verdict.missed],
        "detection_delay_s_p50": round(median(verdict.delay_s), 1) if verdict.delay_s else None,
        "false_alerts": verdict.false_alerts_total,
        "false_alerts_per_device": dict(verdict.false_alerts),
        "false_alerts_per_device_day": round(verdict.false_alerts_per_device_day, 3),
        "benign_device_days": {source: round(days, 3) for source, days in verdict.benign_days.items()},
        "rounds_completed": len(observer.completed),
        "protection": protection,
        "rounds_by_task": {task: sum(t == task for t, _ in observer.completed) for task in tasks},
        "releases_activated": len(observer.activated),
        "releases_verified": verified,
        "rollouts_total": int(staged),
        "rollouts_promoted": sum(promoted(observer, task) for task in tasks),
        "devices_on_newest_release": sum(
            all(newest[task] in versions_of(observer, device, task) for task in tasks) for device in observer.states
        ),
        "bytes_up_per_device_round": round(sum(r.bytes_up for r in reports) / uploads) if uploads else 0,
        "score_us_p50": round(median(scored), 1) if scored else None,
        "rss_mb_device": round(rss[len(rss) // 2] / 1e6, 1) if rss else None,
        "rss_mb_device_max": round(rss[-1] / 1e6, 1) if rss else None,
        "seconds": round(seconds, 1),
    }


def promoted(observer: Observer, task: str) -> bool:
    """Whether a task's newest rollout made its release everybody's."""
    said = observer.rollouts.get(task, [])
    return bool(said) and said[-1].state is RolloutPhase.PROMOTED


def versions_of(observer: Observer, device: str, task: str) -> set[int]:
    """Releases of a task that a device runs, as it said last."""
    return {model.version for model in observer.states[device].models if model.task == task}


def broken_promises(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    detected, total = figures["attacks_detected"], figures["attacks_total"]
    if detected < PROMISED_DETECTION * total:
        broken.append(f"{detected} of {total} attacks alerted, promised {PROMISED_DETECTION:.0%}")
    noisy = {device: n for device, n in figures["false_alerts_per_device"].items() if n > 1}
    if noisy:
        broken.append(f"false alerts above one a device: {noisy}")
    few = {task: n for task, n in figures["rounds_by_task"].items() if n < PROMISED_ROUNDS}
    if few:
        broken.append(f"rounds completed {few}, promised {PROMISED_ROUNDS} a task")
    if figures["releases_activated"] < figures["devices"] * len(figures["rounds_by_task"]):
        broken.append(f"{figures['releases_activated']} releases activated, expected one a device and task at least")
    if figures["rollouts_promoted"] < figures["rollouts_total"]:
        broken.append(f"{figures['rollouts_promoted']} of {figures['rollouts_total']} rollouts came to their end")
    if figures["rollouts_total"] and figures["devices_on_newest_release"] < figures["devices"]:
        broken.append(f"{figures['devices_on_newest_release']} of {figures['devices']} devices run the newest releases")
    if not figures["releases_verified"]:
        broken.append("an activated release is not in the signed metadata")
    return broken
