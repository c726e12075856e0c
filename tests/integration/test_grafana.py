"""Every panel's query returns series on a real Prometheus, and the rules pass promtool."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_server import PrometheusServer, missing, panel_queries

from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics, serve

GRAFANA = Path(__file__).parents[2] / "grafana"
VALUES = {
    "task": ("network", "sensor"),
    "severity": ("low", "critical"),
    "kind": ("alert", "magnitude", "vote", "shares"),
    "outcome": ("accepted", "signature", "released", "failed", "opened"),
    "state": ("online", "lost", "open", "collect"),
    "model_version": ("3", "4"),
    "stage": ("before", "after"),
}


def fill(metrics: Metrics) -> None:
    """One more of everything, for every set of label values."""
    for metric in AGGREGATOR_METRICS.values():
        for labels in itertools.product(*(VALUES[label] for label in metric.labels)):
            if metric.kind == "counter":
                metrics.inc(metric.name, *labels)
            elif metric.kind == "gauge":
                metrics.set(metric.name, *labels, value=time.time() + 3600 if "timestamp" in metric.name else 5)
            else:
                metrics.observe(metric.name, *labels, value=metric.buckets[2])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes an aggregator's metrics, while they grow."""
    if reason := missing("prometheus"):
        pytest.skip(reason)
    metrics, stopping = Metrics(AGGREGATOR_METRICS), threading.Event()
    server, port = serve(metrics, 0)

    def grow() -> None:
        while not stopping.wait(0.3):
            fill(metrics)

    fill(metrics)
    growing = threading.Thread(target=grow)
    growing.start()
    try:
        with PrometheusServer(tmp_path_factory.mktemp("prometheus"), port) as running:
            yield running
    finally:
        stopping.set()
        growing.join()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("dashboard", sorted((GRAFANA / "dashboards").glob("*.json")), ids=lambda p: p.stem)
def test_every_panel_returns_series(prometheus: PrometheusServer, dashboard: Path) -> None:
    waiting = panel_queries(dashboard)
    assert len(waiting) > 10

    def all_answered() -> bool:
        for title in list(waiting):
            waiting[title] = [promql for promql in waiting[title] if not prometheus.series(promql)]
            if not waiting[title]:
                del waiting[title]
        return not waiting

    prometheus.wait_for(all_answered, lambda: f"series of {dashboard.name}; still without: {waiting}")


def test_a_metric_that_nobody_serves_would_be_noticed(prometheus: PrometheusServer) -> None:
    assert prometheus.series("sum(vedette_no_such_metric_total)") == []
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.series("sum(")


def test_every_rule_is_evaluated_without_an_error(prometheus: PrometheusServer) -> None:
    def rules() -> list[dict[str, str]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    prometheus.wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()), lambda: "the rules")
    assert len(rules()) >= 10
    assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}
    # Lost devices are as many as all others together: a rule that looks at them has something to say.
    prometheus.wait_for(
        lambda: any(s["value"][1] != "0" for s in prometheus.series("vedette:devices_lost:ratio")),
        lambda: "a ratio of lost devices above 0",
    )


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "rules/alerts.test.yml")],
    ids=["config", "rules"],
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    if reason := missing("promtool"):
        pytest.skip(reason)
    ran = subprocess.run(["promtool", *arguments], cwd=GRAFANA, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
