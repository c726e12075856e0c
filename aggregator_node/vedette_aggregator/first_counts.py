"""Counters that start at zero: the first increase of one that was not there before is not seen."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from vedette_core.runtime.metrics import Metrics
from vedette_schemas.alert import AlertState, Severity


def show_zeros(metrics: Metrics, tasks: Iterable[str]) -> None:
    """Set what is counted of each task, and of the fleet, to zero."""
    for task in tasks:
        for severity, kind in product(Severity, ("magnitude", "sustained")):
            metrics.inc("alerts_received", task, severity.value, kind, AlertState.OPEN.value, by=0)
        for outcome in ("released", "failed"):
            metrics.inc("rounds", task, outcome, by=0)
        metrics.inc("releases", task, by=0)
        for outcome in ("opened", "closed"):
            metrics.inc("fleet_events", task, outcome, by=0)
        for kind in ("score", "schema"):
            metrics.set("drifting_devices", task, kind, value=0)
        for reason in ("limit", "weight", "canary", "statistics"):
            metrics.inc("groups_dropped", task, reason, by=0)
        metrics.set("round_members", task, value=0)
        metrics.inc("update_bytes", task, by=0)
