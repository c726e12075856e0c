"""The metric tables keep the conventions, and a process cannot be made to grow by label values."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vedette_core.runtime.metrics import (
    AGGREGATOR_METRICS,
    DEVICE_METRICS,
    LABEL_VALUES_MAX,
    Metric,
    Metrics,
    resident_bytes,
    serve,
)
from vedette_schemas.errors import ConfigError

BOUNDED_LABELS = {"task", "outcome", "state", "severity", "kind", "model_version", "stage"}
ALL = [*DEVICE_METRICS.values(), *AGGREGATOR_METRICS.values()]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_names_and_labels_keep_the_conventions(metric: Metric) -> None:
    assert metric.name.replace("_", "").isalnum()
    assert metric.name == metric.name.lower()
    assert not metric.name.endswith(("_total", "_ms", "_us", "_kb", "_mb", "_percent", "_minutes"))
    assert metric.help
    assert metric.help.endswith(".") is False
    assert set(metric.labels) <= BOUNDED_LABELS, "an unbounded label (a device, an address) is not allowed"
    assert metric.exposed.startswith("vedette_")
    assert (metric.kind == "counter") is metric.exposed.endswith("_total")
    assert (metric.kind == "histogram") is bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_a_metric_in_both_tables_is_the_same_metric() -> None:
    for name in DEVICE_METRICS.keys() & AGGREGATOR_METRICS.keys():
        assert DEVICE_METRICS[name].kind == AGGREGATOR_METRICS[name].kind
        assert DEVICE_METRICS[name].labels == AGGREGATOR_METRICS[name].labels


@pytest.mark.parametrize("table", [DEVICE_METRICS, AGGREGATOR_METRICS], ids=["device", "aggregator"])
def test_every_metric_of_a_table_can_be_filled_and_is_exposed_under_its_name(table: dict[str, Metric]) -> None:
    metrics = Metrics(table)
    for metric in table.values():
        labels = tuple(f"v-{label}" for label in metric.labels)
        if metric.kind == "counter":
            metrics.inc(metric.name, *labels, by=2)
        elif metric.kind == "gauge":
            metrics.set(metric.name, *labels, value=3)
        else:
            metrics.observe(metric.name, *labels, value=metric.buckets[0])
    found = samples(metrics)
    for metric in table.values():
        labels = tuple(f"v-{label}" for label in sorted(metric.labels))
        name = metric.exposed if metric.kind != "histogram" else f"{metric.exposed}_count"
        assert found[name, labels] == {"counter": 2, "gauge": 3, "histogram": 1}[metric.kind]


def test_label_sets_are_capped_and_the_rest_is_counted_as_other() -> None:
    metrics = Metrics(AGGREGATOR_METRICS)
    for i in range(LABEL_VALUES_MAX * 3):
        metrics.inc("messages", "alert", f"reason-{i}")
    found = {labels: v for (name, labels), v in samples(metrics).items() if name == "vedette_messages_total"}
    assert len(found) == LABEL_VALUES_MAX + 1
    assert found["other", "other"] == LABEL_VALUES_MAX * 2
    metrics.inc("messages", "alert", "reason-0")
    assert samples(metrics)["vedette_messages_total", ("alert", "reason-0")] == 2


def test_a_gauge_that_is_set_anew_forgets_what_is_no_more() -> None:
    metrics = Metrics(AGGREGATOR_METRICS)
    metrics.set("release_devices", "network", "1", value=5)
    metrics.forget("release_devices")
    metrics.set("release_devices", "network", "2", value=4)
    found = {labels: v for (name, labels), v in samples(metrics).items() if name == "vedette_release_devices"}
    assert list(found.values()) == [4]


def test_a_metric_that_is_in_no_table_is_a_programming_fault() -> None:
    with pytest.raises(KeyError):
        Metrics(DEVICE_METRICS).inc("surprise")


def test_metrics_are_served_on_loopback() -> None:
    metrics = Metrics(DEVICE_METRICS)
    metrics.set("spool_messages", value=7)
    server, port = serve(metrics, 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            assert b"vedette_spool_messages 7.0" in reply.read()
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_is_taken_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port} .*set \[metrics\] port"):
            serve(Metrics(DEVICE_METRICS), port)


def test_resident_memory_is_that_of_this_process() -> None:
    assert 5e6 < resident_bytes() < 5e9
