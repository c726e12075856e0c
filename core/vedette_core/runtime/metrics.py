"""Every metric of Vedette, in one table; served on loopback by prometheus-client.

Labels are bounded; there is no device label: per-device values go into histograms over the fleet.

Source: prometheus.io/docs/practices/naming (base units, ``_total``, ``_info``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from vedette_core.runtime.sections import MetricsSection
from vedette_schemas.errors import ConfigError

log = logging.getLogger("vedette.metrics")

Kind = Literal["counter", "gauge", "histogram"]
LABEL_VALUES_MAX: Final = 64
"""Distinct label sets a metric; further ones are counted under ``other``, so that no peer can grow our memory."""

SECONDS_BUCKETS: Final = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 1.0)
PSI_BUCKETS: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
ERROR_BUCKETS: Final = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5)
DELAY_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
BYTES_BUCKETS: Final = (20e6, 40e6, 60e6, 80e6, 100e6, 120e6, 150e6, 200e6, 400e6)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name without the ``vedette_`` prefix and type suffix, what it means, labels, buckets."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        """Name as Prometheus sees it (histograms without ``_bucket``)."""
        return f"vedette_{self.name}{'_total' if self.kind == 'counter' else ''}"


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


DEVICE_METRICS: Final = _table(
    Metric("counter", "source_records", "Records read from sources, by what became of them", ("task", "outcome")),
    Metric("counter", "windows_scored", "Windows scored", ("task",)),
    Metric("histogram", "score_seconds", "Time to score one window", ("task",), SECONDS_BUCKETS),
    Metric("counter", "alerts", "Alerts by state and severity", ("task", "state", "severity")),
    Metric("counter", "alerts_suppressed", "Alerts that the rate limit held back", ("task",)),
    Metric("counter", "evidence", "Evidence of alerts: kept, and why some is not there any more", ("task", "outcome")),
    Metric("gauge", "entities_learning", "Accepted entities in their stretch: only loud windows alarm", ("task",)),
    Metric("counter", "acceptances", "Accepted entities by what became of them", ("task", "outcome")),
    Metric("counter", "messages", "Messages taken in, by what became of them", ("kind", "outcome")),
    Metric("counter", "machine_events", "Events by the answer of the machine's table", ("task", "kind", "outcome")),
    Metric("counter", "committee_events", "Committee work by its answer", ("task", "kind", "outcome")),
    Metric("counter", "commands", "Commands of the aggregator, by what became of them", ("task", "kind", "outcome")),
    Metric("counter", "recalibrations", "Recalibrations that were asked for", ("task", "outcome")),
    Metric("counter", "cold_starts", "Fleets' scores that were sent to begin with", ("task", "outcome")),
    Metric("counter", "rounds_joined", "Rounds in which this device's update was sent", ("task",)),
    Metric("counter", "updates", "Steps of applying releases", ("task", "outcome")),
    Metric("counter", "artifacts", "Release files fetched, by a diff or whole", ("task", "outcome")),
    Metric("counter", "artifact_bytes", "Bytes fetched for release files", ("task", "outcome")),
    Metric("gauge", "release_version", "Release that is active", ("task",)),
    Metric("counter", "rollout_states", "Rollout states by what became of them", ("task", "outcome")),
    Metric("gauge", "spool_messages", "Messages that wait for their receipt"),
    Metric("gauge", "spool_bytes", "Bytes that wait for their receipt"),
    Metric("counter", "spool_dropped", "Messages that the full spool gave up", ("kind",)),
    Metric("gauge", "revocation_list_number", "Number of the newest revocation list"),
    Metric("counter", "renewals", "Steps of renewing the own certificates", ("outcome",)),
    Metric("gauge", "certificate_expiry_timestamp_seconds", "When the own certificate ends"),
    Metric("counter", "broker_connects", "Connections made to the broker"),
    Metric("gauge", "resident_memory_bytes", "Resident memory of the process"),
)
"""What a device node serves when `[metrics]` gives it a port."""

AGGREGATOR_METRICS: Final = _table(
    Metric("gauge", "devices", "Devices by their last state", ("state",)),
    Metric("counter", "alerts_received", "Alerts taken from devices", ("task", "severity", "kind", "state")),
    Metric(
        "histogram",
        "alert_delay_seconds",
        "From a window's end to its alert here; a replayed recording counts as late",
        (),
        DELAY_BUCKETS,
    ),
    Metric("counter", "messages", "Messages taken in, by what became of them", ("kind", "outcome")),
    Metric("counter", "machine_events", "Events by the answer of the machine's table", ("task", "kind", "outcome")),
    Metric("counter", "attestations", "Evidence and check-ins by the verifier's answer: a rule's name", ("outcome",)),
    Metric("gauge", "round_number", "Round that is under way", ("task",)),
    Metric("gauge", "round_phase", "1 for the phase that the round is in", ("task", "state")),
    Metric("counter", "rounds", "Rounds by how they ended", ("task", "outcome")),
    Metric("gauge", "round_members", "Devices in the rosters of the last round", ("task",)),
    Metric("gauge", "round_participants", "Updates in the last aggregate", ("task",)),
    Metric("counter", "groups_dropped", "Groups that did not count, by the reason", ("task", "outcome")),
    Metric("gauge", "privacy_epsilon", "Epsilon of the most exposed device in the budget period", ("task",)),
    Metric("gauge", "privacy_epsilon_max", "Epsilon that a device may spend in a budget period", ("task",)),
    Metric("gauge", "suspicion_max", "Suspicion of the most suspicious device", ("task",)),
    Metric("gauge", "suspects", "Devices that a person should look at", ("task",)),
    Metric("gauge", "quarantined_devices", "Devices that a person keeps out of rounds"),
    Metric("gauge", "round_loss", "Weighted mean loss on participants' data, last round", ("task", "stage")),
    Metric("counter", "update_bytes", "Bytes of uploads taken in", ("task",)),
    Metric("gauge", "release_version", "Newest release", ("task",)),
    Metric("counter", "releases", "Releases published", ("task",)),
    Metric("counter", "candidates", "Candidates that were validated, by the verdict", ("task", "outcome")),
    Metric("counter", "candidate_rejections", "Validators that rejected a candidate", ("task", "kind")),
    Metric("counter", "rollouts", "Rollouts by what became of them", ("task", "outcome")),
    Metric("gauge", "rollout_phase", "1 for the phase that the rollout is in", ("task", "state")),
    Metric("gauge", "rollout_stage_ratio", "Part of the fleet that the rollout's stage is about", ("task",)),
    Metric("gauge", "rollout_exposed_devices", "Devices that run a candidate on trial", ("task",)),
    Metric("gauge", "release_devices", "Devices that run a release version", ("task", "model_version")),
    Metric("gauge", "foreign_release_devices", "Devices that run what this site never signed", ("task",)),
    Metric("counter", "fleet_windows_scored", "Windows scored by the fleet", ("task",)),
    Metric("histogram", "fleet_score_seconds", "Devices' median time to score a window", ("task",), SECONDS_BUCKETS),
    Metric("histogram", "fleet_resident_memory_bytes", "Devices' resident memory", (), BYTES_BUCKETS),
    Metric("histogram", "fleet_drift_psi", "Devices' stability index of p-values", ("task",), PSI_BUCKETS),
    Metric("counter", "fleet_drift_changes", "Changes of the mean p-value that devices found", ("task",)),
    Metric("histogram", "fleet_feature_psi", "Devices' most drifted column", ("task",), PSI_BUCKETS),
    Metric("histogram", "fleet_calibration_error", "Devices' p-values from even ones", ("task",), ERROR_BUCKETS),
    Metric("gauge", "drifting_cohort_share", "Largest share of drifting devices in a cohort", ("task",)),
    Metric("counter", "cold_starts_sent", "Devices that were told the fleet's scores", ("task",)),
    Metric("counter", "actions", "What the aggregator did by itself", ("kind", "outcome")),
    Metric("gauge", "drifting_devices", "Devices whose scores or schema have drifted", ("task", "kind")),
    Metric("counter", "fleet_events", "Many devices of a kind fired together, and the end of it", ("task", "outcome")),
    Metric("counter", "fleet_event_alerts", "Alerts opened while a fleet event of their kind was open", ("task",)),
    Metric("gauge", "fleet_spool_messages", "Messages that wait in the devices' spools"),
    Metric("counter", "fleet_cpu_seconds", "Processor time of the fleet's device nodes"),
    Metric("gauge", "revocation_list_number", "Number of the newest revocation list"),
    Metric("gauge", "revoked_devices", "Devices that checked in once and are revoked now"),
    Metric("gauge", "certificate_expiry_timestamp_seconds", "When the own certificate ends"),
    Metric("gauge", "trust_expiry_timestamp_seconds", "When the timestamp metadata expires"),
    Metric("gauge", "beacon_epochs_left", "Epochs of the beacon's chain that are left; none, no round", ("task",)),
    Metric("counter", "broker_connects", "Connections made to the broker"),
    Metric("gauge", "resident_memory_bytes", "Resident memory of the process"),
)
"""What the aggregator serves: fleet metrics made of node reports, and its own."""

AUTHORITY_METRICS: Final = _table(
    Metric("counter", "messages", "Messages taken in, by what became of them", ("kind", "outcome")),
    Metric("gauge", "revocation_list_number", "Number of the newest revocation list"),
    Metric("gauge", "authority_expiry_timestamp_seconds", "When the newest online authority ends"),
)
"""What the certificate authority's process serves."""

BROKER_METRICS: Final = _table(
    Metric("counter", "broker_events", "What happened at the embedded broker, by kind", ("kind",)),
    Metric("gauge", "broker_connections", "Connections of clients"),
    Metric("gauge", "broker_waiting_messages", "Messages that wait for a client or for its acknowledgement"),
    Metric("gauge", "broker_retained_messages", "Retained messages"),
    Metric("gauge", "broker_retained_bytes", "Bytes of retained messages"),
    Metric("gauge", "revocation_list_number", "Number of the revocation list in force, 0 for none"),
    Metric("gauge", "resident_memory_bytes", "Resident memory of the process"),
)
"""What the embedded broker serves."""


class Metrics:
    """The metrics of one process.

    Args:
        table: one of the tables above.
    """

    def __init__(self, table: dict[str, Metric]) -> None:
        self.registry = CollectorRegistry()
        self._table = table
        self._seen: dict[str, set[tuple[str, ...]]] = {}
        self._collectors: dict[str, Counter | Gauge | Histogram] = {}
        for metric in table.values():
            name, args = f"vedette_{metric.name}", (metric.help, metric.labels)
            if metric.kind == "counter":
                self._collectors[metric.name] = Counter(name, *args, registry=self.registry)
            elif metric.kind == "gauge":
                self._collectors[metric.name] = Gauge(name, *args, registry=self.registry)
            else:
                self._collectors[metric.name] = Histogram(name, *args, buckets=metric.buckets, registry=self.registry)

    def inc(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        collector = self._labelled(name, labels)
        assert isinstance(collector, Counter)
        collector.inc(by)

    def count(self, name: str, *, task: str = "", kind: str = "", outcome: str = "") -> None:
        """Add one to a counter by the names of its labels; what has no metric of its own is a machine event."""
        if name not in self._table:
            name, kind = "machine_events", kind or name
        values = {"task": task, "kind": kind, "outcome": outcome, "state": outcome}
        self.inc(name, *(values.get(label, "other") for label in self._table[name].labels))

    def set(self, name: str, *labels: str, value: float) -> None:
        """Set a gauge."""
        collector = self._labelled(name, labels)
        assert isinstance(collector, Gauge)
        collector.set(value)

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Add an observation to a histogram."""
        collector = self._labelled(name, labels)
        assert isinstance(collector, Histogram)
        collector.observe(value)

    def forget(self, name: str) -> None:
        """Drop every label set of a gauge that is about to be set anew."""
        self._collectors[name].clear()
        self._seen.pop(name, None)

    def _labelled(self, name: str, labels: Sequence[str]) -> Counter | Gauge | Histogram:
        collector = self._collectors[name]
        if not labels:
            return collector
        seen, key = self._seen.setdefault(name, set()), tuple(labels)
        if key not in seen:
            if len(seen) >= LABEL_VALUES_MAX:
                key = tuple("other" for _ in key)
            seen.add(key)
        labelled: Counter | Gauge | Histogram = collector.labels(*key)
        return labelled


def serve(metrics: Metrics, port: int, host: str = "127.0.0.1") -> tuple[WSGIServer, int]:
    """Serve ``/metrics`` in a thread.

    Args:
        metrics: what to serve.
        port: TCP port; 0 takes a free one.
        host: address to bind.

    Returns:
        The server (call ``shutdown()``) and its port.

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    try:
        server, _thread = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as fault:
        raise ConfigError(
            f"metrics: cannot listen on {host}:{port} ({fault.strerror}); expected a free port: "
            "set [metrics] port to another one, or to 0 for any"
        ) from fault
    return server, int(server.server_address[1])


def serve_configured(metrics: Metrics, section: MetricsSection) -> Callable[[], None]:
    """Serve ``/metrics`` where the settings ask for it; returns what ends that.

    Raises:
        ConfigError: as `serve`.
    """
    if not section.enabled:
        return lambda: None
    server, port = serve(metrics, section.port, section.host)
    log.info("metrics on http://%s:%d/metrics", section.host, port)
    return server.shutdown


def resident_bytes() -> int:
    """Resident memory of this process, bytes (Linux ``/proc/self/statm``)."""
    import resource
    from pathlib import Path

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
