"""Node reports become fleet metrics: sums that never go back, and no series a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vedette_aggregator.fleet import Fleet
from vedette_core.learning.sketch import ScoreSketch
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_schemas.alert import Alert, AlertModel, AlertState, Severity
from vedette_schemas.errors import PeerError
from vedette_schemas.telemetry import ActiveModel, DetectorReport, DeviceState, DriftReport, Telemetry

SESSION, OTHER = "0" * 16, "1" * 16


def state(device: str = "gw-1", **changes: Any) -> DeviceState:
    fields: dict[str, Any] = {
        "device": device,
        "status": "online",
        "session": SESSION,
        "seq": 5,
        "time": "2026-01-01T00:00:00Z",
        "software": "0",
    }
    return DeviceState(**(fields | changes))


def report(seq: int, windows: int, session: str = SESSION, cpu_s: float = 1.0) -> Telemetry:
    return Telemetry(
        device="gw-1",
        session=session,
        seq=seq,
        time_s=0.0,
        uptime_s=1.0,
        rss_bytes=90_000_000,
        cpu_s=cpu_s,
        spool_messages=seq,
        spool_bytes=0,
        spool_dropped=0,
        bytes_up=0,
        detectors=(DetectorReport(task="network", phase="armed", windows=windows, refused={}, score_us_p50=50.0),),
    )


def made() -> tuple[Fleet, Metrics]:
    metrics = Metrics(AGGREGATOR_METRICS)
    return Fleet(metrics), metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"vedette_{name}", labels)


def test_devices_by_state() -> None:
    fleet, metrics = made()
    fleet.take_state(state("gw-1"))
    fleet.take_state(state("gw-2"))
    fleet.take_state(state("gw-2", status="stopped", seq=6))
    assert value(metrics, "devices", state="online") == 1
    assert value(metrics, "devices", state="stopped") == 1


def test_a_will_counts_although_it_was_written_first() -> None:
    fleet, metrics = made()
    fleet.take_state(state())
    fleet.take_state(state(status="lost", seq=1))
    assert value(metrics, "devices", state="lost") == 1
    assert value(metrics, "devices", state="online") is None


def test_an_older_state_of_the_session_does_not() -> None:
    fleet, metrics = made()
    fleet.take_state(state(status="stopped"))
    fleet.take_state(state(seq=4))
    assert value(metrics, "devices", state="stopped") == 1


def test_devices_by_release() -> None:
    fleet, metrics = made()
    model = ActiveModel(task="network", version=3, variant="int8", digest="a" * 64, backend="litert")
    fleet.take_state(state(models=(model,)))
    assert value(metrics, "release_devices", task="network", model_version="3") == 1
    fleet.take_state(state(seq=6, models=(model.model_copy(update={"version": 4}),)))
    assert value(metrics, "release_devices", task="network", model_version="3") is None
    assert value(metrics, "release_devices", task="network", model_version="4") == 1


def test_windows_grow_by_what_is_new_also_over_a_restart() -> None:
    fleet, metrics = made()
    for telemetry in (report(1, 100), report(2, 150), report(2, 150), report(1, 100), report(1, 30, session=OTHER)):
        fleet.take_report(telemetry)
    assert value(metrics, "fleet_windows_scored_total", task="network") == 180
    assert value(metrics, "fleet_spool_messages") == 1


def test_no_label_names_a_device() -> None:
    fleet, metrics = made()
    fleet.take_state(state("gw-7"))
    fleet.take_report(report(1, 1))
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    assert not [s for s in samples if "gw-7" in s.labels.values() or "gw-1" in s.labels.values()]


def drifting(seq: int, device: str = "gw-1", *, session: str = SESSION, **fields: Any) -> Telemetry:
    drift = DriftReport(**({"windows": 2048, "psi": 0.02, "ks": 0.05, "ks_p": 0.4} | fields))
    detector = DetectorReport(task="network", phase="armed", windows=10 * seq, refused={}, drift=drift)
    return report(seq, 0, session).model_copy(update={"device": device, "detectors": (detector,)})


def test_drift_is_a_histogram_a_count_of_changes_and_how_many_drift() -> None:
    fleet, metrics = made()
    fleet.take_report(drifting(1, psi=0.5, ks_p=1e-4, changes=1))
    fleet.take_report(drifting(1, "gw-2", constant=("dns_count",)))
    fleet.take_report(drifting(2, psi=0.5, ks_p=1e-4, changes=3))
    fleet.take_report(drifting(1, "gw-3"))
    fleet.take_report(drifting(1, "gw-4", psi=0.5))  # a short stretch: chance explains it

    assert value(metrics, "fleet_drift_psi_count", task="network") == 5
    assert value(metrics, "fleet_drift_psi_bucket", task="network", le="0.25") == 2
    assert value(metrics, "fleet_drift_changes_total", task="network") == 3
    assert value(metrics, "drifting_devices", task="network", kind="score") == 1
    assert value(metrics, "drifting_devices", task="network", kind="schema") == 1


def test_a_device_drifts_until_it_does_not_or_is_gone() -> None:
    fleet, metrics = made()
    fleet.take_report(drifting(1, psi=0.5, ks_p=1e-4, missing_share=0.2))
    fleet.take_report(drifting(1, "gw-2", psi=0.5, ks_p=1e-4))
    fleet.take_report(drifting(2))
    assert value(metrics, "drifting_devices", task="network", kind="score") == 1
    assert value(metrics, "drifting_devices", task="network", kind="schema") == 0

    fleet.take_state(state("gw-2", status="lost"))
    assert value(metrics, "drifting_devices", task="network", kind="score") == 0


def test_changes_that_begin_anew_with_a_model_are_counted() -> None:
    fleet, metrics = made()
    for seq, changes in enumerate((2, 5, 1, 1), start=1):
        fleet.take_report(drifting(seq, changes=changes))
    assert value(metrics, "fleet_drift_changes_total", task="network") == 6


def sketched(device: str, seed: int, version: int = 3) -> Telemetry:
    sketch = ScoreSketch.of(np.random.default_rng(seed).gamma(8.0, 0.06, 500)).to_bytes()
    detector = DetectorReport(
        task="network", phase="armed", windows=1, refused={}, model_version=version, sketch=sketch
    )
    return report(1, 0).model_copy(update={"device": device, "detectors": (detector,)})


def test_sketches_are_merged_by_task_and_release() -> None:
    fleet, _ = made()
    for i in range(4):
        fleet.take_report(sketched(f"gw-{i}", i))
    fleet.take_report(sketched("gw-old", 9, version=2))

    merged = fleet.merged_sketch("network", 3)
    assert merged is not None
    assert merged.total == 2000
    assert fleet.merged_sketch("network", 2) is None
    assert fleet.merged_sketch("sensor", 3) is None


def test_a_report_with_a_sketch_that_is_none_changes_nothing() -> None:
    fleet, metrics = made()
    (detector,) = sketched("gw-1", 1).detectors
    bad = sketched("gw-1", 1).model_copy(update={"detectors": (detector.model_copy(update={"sketch": b"\x07"}),)})

    with pytest.raises(PeerError):
        fleet.take_report(bad)
    assert value(metrics, "fleet_resident_memory_bytes_count") == 0


def opened(device: str, **changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": f"al-{device}",
        "seq": 0,
        "time": "2026-01-01T00:00:05Z",
        "site": "s",
        "device": device,
        "entity": "10.0.0.4",
        "detector": "network",
        "kind": "sustained",
        "severity": Severity.LOW,
        "confidence": 0.5,
        "score": 2.0,
        "p_value": 0.001,
        "threshold": 1.0,
        "window_start": "2026-01-01T00:00:00Z",
        "window_end": "2026-01-01T00:00:05Z",
        "features": (),
        "model": AlertModel(task="network", version=3, digest="0" * 16),
        "state": AlertState.OPEN,
        "count": 1,
        "summary": "s",
    }
    return Alert(**(fields | changes))


def test_alerts_of_many_devices_of_a_cohort_are_one_fleet_event() -> None:
    fleet, metrics = made()
    for i in range(12):
        fleet.take_cohort(f"pump-{i}", "pump")
        fleet.take_cohort(f"camera-{i}", "camera")
        for kind in ("pump", "camera"):
            fleet.take_report(report(1, 1).model_copy(update={"device": f"{kind}-{i}"}))
    now = 1_767_225_610.0
    for i in range(8):
        fleet.take_alert(opened(f"pump-{i}"), now)
        fleet.take_alert(opened(f"camera-{i}", state=AlertState.UPDATED), now)

    assert value(metrics, "fleet_events_total", task="network", outcome="opened") == 1
    assert value(metrics, "fleet_event_alerts_total", task="network") == 3
    fleet.tick(now + 3600.0)
    assert value(metrics, "fleet_events_total", task="network", outcome="closed") == 1
