"""Rules for alerts are compared on the same scores, and the bound is what one window can say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import alert_rules  # noqa: E402

from vedette.evaluation import detectors  # noqa: E402
from vedette.evaluation.datasets import DataSet, Fleet  # noqa: E402
from vedette.evaluation.labelled_tables import sensor_recording  # noqa: E402


def tanks(jumps: float) -> DataSet:
    """Two tanks whose level is forged for some rows near the end."""
    recordings = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        n = np.arange(900)
        values = np.column_stack([np.sin(n / 20), np.cos(n / 20)]) + 0.1 * rng.normal(size=(900, 2))
        values[860:880] += jumps
        labels = ((n >= 860) & (n < 880)).astype(np.int8)
        schema, recording = sensor_recording(f"tank{seed}", ("level", "flow"), values, labels, period_s=60.0)
        recordings.append(recording)
    return DataSet("tanks", "sensor", (Fleet("tanks", schema, tuple(recordings)),))


def test_a_plain_attack_is_within_reach_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(detectors.CONFIGURATIONS["sensor"], rounds=4, epochs=1)
    monkeypatch.setitem(alert_rules.CONFIGURATIONS, "sensor", short)  # type: ignore[attr-defined]  # the same mapping
    plain = alert_rules.measure(tanks(8.0))
    assert (plain["events"], plain["within_reach"]) == (2, 2)
    assert plain["rules"]["as it is"]["event_recall"] == 1.0
    assert set(plain["rules"]) == set(alert_rules.RULES)
    assert json.loads(json.dumps(plain)) == plain
    nothing = alert_rules.measure(tanks(0.0))
    assert nothing["events"] == 2
    assert nothing["within_reach"] < 2
