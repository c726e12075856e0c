"""The shipped tank recordings as model inputs: training, calibration, benign and tampered ones."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path

import numpy as np

from vedette_device.features.scaling import RobustScaler
from vedette_schemas.features import sensor_schema

RECORDINGS = Path(__file__).parents[2] / "cli" / "vedette" / "recordings"
HISTORY = 16


class Tank:
    """One gateway's recording as model inputs: training, calibration, benign and tampered ones."""

    def __init__(self, name: str) -> None:
        with lzma.open(RECORDINGS / "sensor" / f"{name}.csv.xz", "rt") as file:
            header, *lines = list(csv.reader(file))
        table = np.array(lines, dtype=np.float64)
        time_s, values = table[:, 0], table[:, 1:]
        self.schema = sensor_schema(tuple(header[1:]), window_s=30.0, history=HISTORY)
        columns = np.hstack([values, np.diff(values, axis=0, prepend=values[:1])])
        benign = int((time_s < self._benign_until_s(name)).sum())
        scaled = RobustScaler.fit(self.schema, columns[: benign // 2]).scale_rows(columns)
        x = np.lib.stride_tricks.sliding_window_view(scaled, HISTORY, axis=0).transpose(0, 2, 1)
        tampered = np.zeros(len(x), bool)
        after = np.zeros(len(x), bool)
        for start_s, end_s in self._episodes(name):
            tampered |= (time_s[HISTORY - 1 :] >= start_s) & (time_s[HISTORY - 1 :] < end_s)
            after |= (time_s[HISTORY - 1 :] >= end_s) & (time_s[HISTORY - 1 :] < end_s + HISTORY * 30.0)
        place = np.arange(len(x))
        self.training = np.ascontiguousarray(x[: benign // 2 - HISTORY : 2])
        self.held_out = np.ascontiguousarray(x[benign // 2 : benign * 3 // 4 : 2])
        self.usual = np.ascontiguousarray(x[(place >= benign * 3 // 4) & ~tampered & ~after][::2])
        self.tampered = np.ascontiguousarray(x[tampered][::2])

    @staticmethod
    def _benign_until_s(name: str) -> float:
        gateways = json.loads((RECORDINGS / "manifest.json").read_text())["gateways"]
        return float(next(g for g in gateways if g["id"] == name)["sensor"]["benign_until_s"])

    @staticmethod
    def _episodes(name: str) -> list[tuple[float, float]]:
        with (RECORDINGS / "labels.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if r["gateway"] == name and r["source"] == "sensor"]
        return [(float(r["start_s"]), float(r["end_s"])) for r in rows]
