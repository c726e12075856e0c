"""The dashboards are what the code generates, keep the linter's rules, and use only metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from vedette_core.runtime.metrics import AGGREGATOR_METRICS, AUTHORITY_METRICS, DEVICE_METRICS

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = [GRAFANA / "rules" / name for name in ("recording.yml", "alerts.yml")]


def generator() -> ModuleType:
    """``grafana/dashboards.py``, which is a script and in no package."""
    pytest.importorskip("grafana_foundation_sdk", reason="needs the extra `dashboards`")
    spec = importlib.util.spec_from_file_location("vedette_dashboards", GRAFANA / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load(path: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(path.read_text())
    return plain


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [p for p in dashboard["panels"] if p["type"] != "row"]


def used_metrics(promql: str) -> set[str]:
    return set(re.findall(r"\bvedette_[a-z0-9_]+", promql))


def exposed(*tables: dict[str, Any]) -> dict[str, Any]:
    """Every series name that the code serves → its metric."""
    names = {}
    for table in tables:
        for metric in table.values():
            suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
            names.update({metric.exposed + suffix: metric for suffix in suffixes})
    return names


ALL_PANELS = [(path.stem, panel) for path in DASHBOARDS for panel in panels(load(path))]
EACH_PANEL = pytest.mark.parametrize(
    ("dashboard", "panel"), ALL_PANELS, ids=[f"{d}:{p['title']}" for d, p in ALL_PANELS]
)


def test_the_committed_dashboards_are_what_the_code_generates() -> None:
    generated = generator().files()
    assert {p.name for p in DASHBOARDS} == set(generated)
    for name, content in generated.items():
        assert (GRAFANA / "dashboards" / name).read_text() == content, f"{name}: run python grafana/dashboards.py"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_survives_the_round_through_the_sdk(path: Path) -> None:
    generator()
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    plain = load(path)
    assert json.loads(json.dumps(Dashboard.from_json(plain), cls=JSONEncoder)) == plain


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_can_be_imported_anywhere(path: Path) -> None:
    plain = load(path)
    assert "id" not in plain, "an id belongs to one Grafana only"
    assert plain["uid"] == f"vedette-{path.stem}"
    assert plain["schemaVersion"] == 42
    assert plain["editable"] is False
    variables = {v["name"]: v for v in plain["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert {"job", "instance"} <= variables.keys()
    for name in ("job", "instance"):
        assert variables[name]["datasource"]["uid"] == "${datasource}"
        assert variables[name]["refresh"] == 2, "follows the shown time"
    ids = [p["id"] for p in plain["panels"]]
    assert len(ids) == len(set(ids))
    titles = [p["title"] for p in plain["panels"]]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_panels_do_not_overlap_and_fit_the_grid(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load(path)["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@EACH_PANEL
def test_a_panel_says_what_it_shows(dashboard: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 30
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True


@EACH_PANEL
def test_a_query_keeps_the_rules(dashboard: str, panel: dict[str, Any]) -> None:
    known = exposed(AGGREGATOR_METRICS, DEVICE_METRICS)
    for target in panel["targets"]:
        promql = target["expr"]
        assert target["datasource"]["uid"] == "${datasource}"
        used = used_metrics(promql)
        assert used, promql
        assert used <= known.keys(), f"{used - known.keys()} is in no table of metrics"
        for name in used:
            assert all(
                'job=~"$job", instance=~"$instance"' in selector
                for selector in re.findall(rf"\b{name}\b(\{{[^}}]*\}}|)", promql)
            )
            metric = known[name]
            if metric.kind != "gauge":
                assert re.search(rf"(rate|increase)\({name}\{{[^}}]*\}}\[\$__(rate_interval|range)\]\)", promql), promql
            labels = set(re.findall(r'[{,] *([a-z_]+)(?:=~|!~|!=|=)"', promql)) - {"job", "instance"}
            assert labels <= set(metric.labels), f"{name} has no label {labels - set(metric.labels)}"
            for grouping in re.findall(r"by \(([^)]*)\)", promql):
                by = {label.strip() for label in grouping.split(",")} - {"le", "instance"}
                assert by <= set(metric.labels), f"{name} has no label {by - set(metric.labels)}"
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", promql), f"legend names {label}, which the query sums away"


def test_everything_that_the_aggregator_serves_is_shown() -> None:
    shown = {name for _, panel in ALL_PANELS for t in panel["targets"] for name in used_metrics(t["expr"])}
    for metric in AGGREGATOR_METRICS.values():
        assert any(name == metric.exposed or name.startswith(f"{metric.exposed}_") for name in shown), metric.exposed


@pytest.mark.parametrize("path", RULES, ids=lambda p: p.stem)
def test_rules_use_metrics_and_labels_that_exist(path: Path) -> None:
    known = exposed(AGGREGATOR_METRICS, DEVICE_METRICS, AUTHORITY_METRICS)
    recorded = {
        r["record"] for p in RULES for g in yaml.safe_load(p.read_text())["groups"] for r in g["rules"] if "record" in r
    }
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            assert used_metrics(rule["expr"]) <= known.keys()
            assert set(re.findall(r"\bvedette:[a-z0-9_:]+", rule["expr"])) <= recorded


def test_every_alert_rule_has_what_people_need_and_is_tested() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", operations, re.M)}
    tests = yaml.safe_load((GRAFANA / "rules" / "alerts.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for group in yaml.safe_load(RULES[1].read_text())["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            assert re.fullmatch(r"Vedette[A-Z][A-Za-z]+", name)
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert "{{" not in rule["annotations"]["summary"]
            assert "{{" in rule["annotations"]["description"]
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert page == "docs/operations.md"
            assert anchor in anchors, f"{name}: docs/operations.md has no heading for {anchor}"
            fired = [bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name]
            assert set(fired) == {True, False}, f"{name} needs a case in which it fires, and one in which it does not"


def test_provisioning_names_what_is_there() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "vedette.yaml").read_text())
    scrape = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    assert source["apiVersion"] == provider["apiVersion"] == 1
    assert source["datasources"][0]["type"] == "prometheus"
    assert source["datasources"][0]["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    assert provider["providers"][0]["type"] == "file"
    assert provider["providers"][0]["allowUiUpdates"] is False
    jobs = {job["job_name"] for job in scrape["scrape_configs"]}
    for path in RULES:
        assert set(re.findall(r'job="([^"]+)"', path.read_text())) <= jobs
