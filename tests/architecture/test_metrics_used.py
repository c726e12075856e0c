"""Every metric of the tables is moved somewhere in the component that serves it, with as many labels as it has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vedette_core.runtime.metrics import AGGREGATOR_METRICS, AUTHORITY_METRICS, BROKER_METRICS, DEVICE_METRICS, Metric

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "core" / "vedette_core" / "runtime"
COMMITTEE = ROOT / "core" / "vedette_core" / "secagg"
COMPONENTS = {
    "device": (DEVICE_METRICS, (ROOT / "device_node" / "vedette_device", SHARED, COMMITTEE)),
    "aggregator": (AGGREGATOR_METRICS, (ROOT / "aggregator_node" / "vedette_aggregator", SHARED)),
    "broker": (BROKER_METRICS, (ROOT / "broker" / "vedette_broker",)),
    "authority": (AUTHORITY_METRICS, (ROOT / "broker" / "vedette_broker",)),
}
VERBS = {"inc": "counter", "count": "counter", "set": "gauge", "observe": "histogram", "Count": "counter"}


def moved(folders: tuple[Path, ...]) -> dict[str, set[str]]:
    """Name of a metric that a call names → the kinds of metric that those calls are for."""
    found: dict[str, set[str]] = {}
    for path in (p for folder in folders for p in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in VERBS and isinstance(node.args[0].value, str):
                found.setdefault(node.args[0].value, set()).add(VERBS[called])
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_metric_is_moved_somewhere(component: str) -> None:
    table, folders = COMPONENTS[component]
    calls = moved(folders)
    assert {name for name in table if name not in calls} == set(), "in the table, and never set"


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_metric_is_moved_as_what_it_is(component: str) -> None:
    table, folders = COMPONENTS[component]
    calls = moved(folders)
    for name, metric in table.items():
        assert calls.get(name, {metric.kind}) == {metric.kind}, f"{name} is a {metric.kind}"


def test_what_a_machine_counts_has_only_labels_that_a_count_carries() -> None:
    """`Count` knows task, kind and outcome (or state); any other label would always say ``other``."""
    wrong = []
    for table, folders in COMPONENTS.values():
        for path in (p for folder in folders for p in folder.rglob("*_machine.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Count":
                    name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                    metric = table.get(str(name))
                    if metric is not None and not set(metric.labels) <= {"task", "kind", "outcome", "state"}:
                        wrong.append(f"{path.name}:{node.lineno}: {name} has the labels {metric.labels}")
    assert wrong == []


def label_counts(folders: tuple[Path, ...]) -> list[tuple[str, str, int]]:
    """(place, metric, labels given) of every inc, set and observe whose labels are written out."""
    found = []
    for path in (p for folder in folders for p in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("inc", "set", "observe")
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and not any(isinstance(arg, ast.Starred) for arg in node.args)
            ):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append((place, str(node.args[0].value), len(node.args) - 1))
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_labels_are_as_many_as_the_metric_has(component: str) -> None:
    table, folders = COMPONENTS[component]
    wrong: list[tuple[str, str, int]] = []
    for place, name, given in label_counts(folders):
        metric: Metric | None = table.get(name)
        if metric is not None and given != len(metric.labels):
            wrong.append((place, name, given))
    assert wrong == []
