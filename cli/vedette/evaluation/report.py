"""Results as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vedette.evaluation import plots
from vedette.evaluation.runner import SetResult
from vedette_core.runtime.durable import file_error

FIGURES: Final = (
    "auc",
    "auc_pr5",
    "tpr_at_1",
    "tpr_at_01",
    "vus_pr",
    "fpr_promised",
    "fpr_realised",
    "fpr_rolling",
    "devices",
    "devices_backed",
    "far",
    "mar",
    "events",
    "event_recall",
    "false_alerts",
    "benign_device_days",
    "benign_share_in_alert",
    "false_alerts_per_device_day",
    "delay_s_p50",
    "delay_s_p95",
    "auc_int8_delta",
)
SHOWN: Final = {
    "auc": "AUC",
    "auc_pr5": "PR-AUC at 5 %",
    "tpr_at_1": "TPR at 1 %",
    "fpr_realised": "realised FPR (1 % promised)",
    "event_recall": "event recall",
    "false_alerts_per_device_day": "false alerts a device-day",
    "benign_share_in_alert": "benign time in alert",
    "delay_s_p50": "delay, s",
    "auc_int8_delta": "INT8 − float",
}


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One table, a row a set and detector."""
    lines = ["| set | detector | " + " | ".join(SHOWN.values()) + " |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, result in results.items():
        marks = [mark for mark in ("trivial", "confounded", "constructed") if result.get(mark)]
        title = f"{name} ({', '.join(marks)})" if marks else name
        if "failed" in result:
            lines.append(f"| {title} | failed: {result['failed']} |" + " |" * len(SHOWN))
            continue
        for detector, row in result["models"].items():
            cells = " | ".join(cell(row.get(figure)) for figure in SHOWN)
            lines.append(f"| {title} | {detector.replace('_', ' ')} | {cells} |")
    return "\n".join(lines) + "\n"


def cell(value: float | int | None) -> str:
    """A figure in a table."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Comma-separated values, a line a set and detector."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["set", "trivial", "detector", *FIGURES])
    for name, result in results.items():
        for detector, row in result.get("models", {}).items():
            writer.writerow([name, int(bool(result.get("trivial"))), detector, *(row.get(f) for f in FIGURES)])
    return out.getvalue()


def write(folder: Path, document: Mapping[str, Any], results: Mapping[str, SetResult]) -> list[Path]:
    """Write everything to a folder, which is made if it is not there; returns what was written.

    Raises:
        VedetteError: it cannot be written to.
    """
    files = {
        "results.json": json.dumps(document, indent=2) + "\n",
        "results.csv": table(document["sets"]),
        "results.markdown": markdown(document["sets"]),
    }
    for name, result in results.items():
        if result.outcomes:
            if result.figures.get("windows_test_anomalous"):
                files[f"{name}-roc.svg"] = plots.roc(name, result.outcomes)
            files[f"{name}-promised.svg"] = plots.reliability(name, result.outcomes)
            if "federated" in result.outcomes:
                files[f"{name}-timeline.svg"] = plots.timeline(name, result.outcomes["federated"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as fault:
        raise file_error(fault, f"write to {folder}") from fault
    return [folder / name for name in files]
