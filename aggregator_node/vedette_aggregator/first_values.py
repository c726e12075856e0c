"""Counters and gauges of the aggregator that are there, at zero, before anything happened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from vedette_aggregator.fleet_drift import DRIFT_KINDS
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.alert import AlertState, Severity


def show_zeros(metrics: Metrics, tasks: Sequence[str]) -> None:
    """Show them: the first increase of a counter that was not there before is not seen.

    Args:
        metrics: the aggregator's.
        tasks: its tasks.
    """
    metrics.inc("attestations", "accepted", by=0)
    for task in tasks:
        for severity, kind in product(Severity, ("magnitude", "sustained")):
            metrics.inc("alerts_received", task, severity.value, kind, AlertState.OPEN.value, by=0)
        for outcome in ("released", "failed"):
            metrics.inc("rounds", task, outcome, by=0)
        metrics.inc("releases", task, by=0)
        for outcome in ("opened", "closed"):
            metrics.inc("fleet_events", task, outcome, by=0)
        for kind in DRIFT_KINDS:
            metrics.set("drifting_devices", task, kind, value=0)
        metrics.set("drifting_cohort_share", task, value=0.0)
        metrics.inc("cold_starts_sent", task, by=0)
        for reason in ("limit", "weight", "canary", "statistics"):
            metrics.inc("groups_dropped", task, reason, by=0)
        metrics.set("round_members", task, value=0)
        metrics.inc("update_bytes", task, by=0)
