"""Node reports become fleet metrics: sums that never go back, and no series a device."""

from __future__ import annotations

from typing import Any

from vedette_aggregator.fleet import Fleet
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_schemas.telemetry import ActiveModel, DetectorReport, DeviceState, Telemetry

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
