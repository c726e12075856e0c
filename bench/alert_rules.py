"""What other rules for raising an alert would do, beside the product's, on the same scores in the same run.

    python bench/alert_rules.py --data ../shared/data --set asd --set smd --json

One federated model a set (one seed, its INT8 artifact), scored once; then the device's own alert machine under each set
of rules. `within_reach` is a bound for rules that look at one window at a time, chosen *with the labels*: events with a
window above all but as many benign ones of the test stretch as a false alarm a device-week would allow. Nothing is
chosen a set.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vedette.evaluation import behaviour_sets, lab_sets, metrics, network_sets, sensor_sets
from vedette.evaluation.datasets import DataSet, Fleet, Loader
from vedette.evaluation.detectors import (
    CONFIGURATIONS,
    calibrated,
    int8_backend,
    learn_together,
    network_for,
    scores_of,
)
from vedette.evaluation.judging import DAY_S, Calibrated, figures, judge
from vedette.evaluation.stretches import Prepared, prepare_fleet
from vedette_core.learning.calibration import RollingCalibration
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.detection_machine import DetectionSettings

AS_IT_IS: Final = DetectionSettings()
RULES: Final[Mapping[str, DetectionSettings]] = {
    "as it is": AS_IT_IS,
    "no margin": replace(AS_IT_IS, sustained_margin=0.0),
    "no margin, 2 of 3": replace(AS_IT_IS, sustained_margin=0.0, sustained_windows=2, sustained_span=3),
    "magnitude 1.25": replace(AS_IT_IS, magnitude_factor=1.25),
    "half-life 4": replace(AS_IT_IS, half_life_windows=4.0),
    "sum, 30 days": replace(AS_IT_IS, cusum_budget_days=30.0),
    "sum, 7 days": replace(AS_IT_IS, cusum_budget_days=7.0),
}
FALSE_ALARM_DAYS: Final = 7.0
LOADERS: Final[Mapping[str, Loader]] = {
    **sensor_sets.LOADERS,
    **behaviour_sets.LOADERS,
    **network_sets.LOADERS,
    **lab_sets.SENSOR,
    **lab_sets.NETWORK,
}
SHOWN: Final = ("event_recall", "false_alerts", "benign_share_in_alert", "delay_s_p50")

Scored = tuple[Fleet, Prepared, np.ndarray, CalibratedModel]


def scored(data: DataSet) -> list[Scored]:
    """Learn together, and score every device's test stretch once."""
    found: list[Scored] = []
    for fleet in data.fleets:
        devices, _ = prepare_fleet(fleet)
        if not devices:
            continue
        network = network_for(data.suite, fleet.schema)
        learnt = learn_together(network, devices, CONFIGURATIONS[data.suite], 0)
        backend = int8_backend(network, learnt, fleet.schema)
        models = [calibrated(backend, device) for device in devices]
        found += [(fleet, d, scores_of(m, d), m) for d, m in zip(devices, models, strict=True)]
    return found


def under(rules: DetectionSettings, data: DataSet, devices: Sequence[Scored]) -> dict[str, Any]:
    """Figures of a set under one set of rules; each device's calibration rolls on from where it began."""
    outcomes = []
    for fleet, device, scores, model in devices:
        rolling = RollingCalibration(model.rolling.current.ordered)
        known = Calibrated(rolling, model.benign_average, model.spread)
        outcomes.append(judge(device, scores, known, fleet.schema, data.suite, timed=True, settings=rules))
    found = figures(outcomes)
    return {name: found[name] for name in SHOWN}


def within_reach(devices: Sequence[Scored]) -> tuple[int, int]:
    """Events that a rule of one window could find, and all of them."""
    reached = total = 0
    for fleet, device, scores, _ in devices:
        test, grace_s = device.test, fleet.schema.history * fleet.schema.window_s
        bounds = [(w.start_s, w.end_s) for w in test.windows]
        benign = np.sort(scores[test.labels == 0])[::-1]
        allowed = int(len(benign) * fleet.schema.window_s / DAY_S / FALSE_ALARM_DAYS)
        limit = benign[min(allowed, len(benign) - 1)] if len(benign) else -np.inf
        for event in metrics.events_of(test.labels.tolist(), test.entities, bounds, grace_s):
            total += 1
            reached += any(
                score > limit and label == 1 and w.entity == event.entity
                for w, label, score in zip(test.windows, test.labels.tolist(), scores.tolist(), strict=True)
                if w.end_s > event.start_s and w.start_s < event.end_s
            )
    return reached, total


def measure(data: DataSet) -> dict[str, Any]:
    """All rules on one set."""
    devices = scored(data)
    reached, total = within_reach(devices)
    days = sum(float((d.test.labels == 0).sum()) * f.schema.window_s for f, d, _, _ in devices) / DAY_S
    return {
        "events": total,
        "within_reach": reached,
        "benign_device_days": round(days, 3),
        "rules": {name: under(rules, data, devices) for name, rules in RULES.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--set", action="append", choices=sorted(LOADERS), help="repeat for more")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    sets = {}
    for name in arguments.set or ("asd", "smd", "batadal", "tanks"):
        data = LOADERS[name](arguments.data)
        if not data.timed:
            parser.error(f"--set {name}: its rows have no time, and so no alerts")
        sets[name] = measure(data)
    result = {"python": platform.python_version(), "machine": platform.machine(), "sets": sets}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, each in sets.items():
        print(f"{name}: {each['within_reach']} of {each['events']} within reach, {each['benign_device_days']} days")
        for rule, row in each["rules"].items():
            print(f"  {rule:20} " + "  ".join(f"{key} {row[key]}" for key in SHOWN))


if __name__ == "__main__":
    main()
