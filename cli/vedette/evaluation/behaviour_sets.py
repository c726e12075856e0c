"""Behaviour sets: what a device's own counters say. A row is a window, and its columns are those that were given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from vedette.evaluation.datasets import DataSet, Fleet, Loader, Recording, find
from vedette.evaluation.labelled_tables import LABEL, nab_recording, numbers, plain_recording, read_table
from vedette_schemas.features import FeatureSchema

FOLDER: Final = "device_behaviour"
HISTORY: Final = 4
"""Rows of one input: a process that starts is in one row, and what it does in a few."""
NO_FEATURES: Final = frozenset(
    {"Attack", "Host", "Run", "Mode", "Attack Type", "Measurement", "Timestamp", "Relative Time (s)", LABEL}
)


def rpi_metrics(data: Path) -> DataSet:
    """Raspberry Pis under denial of service: one fleet of full metrics, one of six system figures."""
    fleets = []
    for name, pattern in (("nmon", "*_nmon.csv.gz"), ("system", "*_system_0*.csv.gz")):
        tables = {p.name.removesuffix(".csv.gz"): read_table(p) for p in find(data / FOLDER / "rpi_metrics", pattern)}
        first = next(iter(tables.values()))
        shared = [c for c in first if c not in NO_FEATURES and all(c in table for table in tables.values())]
        schema = behaviour_schema(tuple(shared), 1.0)
        recordings = tuple(
            plain_recording(
                device,
                schema,
                np.column_stack([numbers(table[c]) for c in shared]),
                numbers(table[LABEL]).astype(np.int8),
            )
            for device, table in tables.items()
        )
        fleets.append(Fleet(f"rpi_metrics/{name}", schema, recordings))
    notes = (
        "one run of minutes a phase; idle is all the normal there is, and the recovery behind an attack is benign",
    )
    return DataSet("rpi_metrics", "behaviour", tuple(fleets), notes=notes)


def smd(data: Path) -> DataSet:
    """Server machines, 38 metrics a minute."""
    note = "servers, not devices; scaled by their publishers with all rows (a slight look ahead)"
    return _arrays(data, "smd", 60.0, (note,))


def asd(data: Path) -> DataSet:
    """Application servers, 19 metrics every five minutes."""
    return _arrays(data, "asd", 300.0, ("servers, not devices",))


def behaviour_schema(columns: tuple[str, ...], window_s: float) -> FeatureSchema:
    """Columns as they are, without differences."""
    return FeatureSchema(use_case="sensor", version=1, columns=columns, window_s=window_s, history=HISTORY)


def _arrays(data: Path, name: str, period_s: float, notes: tuple[str, ...]) -> DataSet:
    schema: FeatureSchema | None = None
    recordings: list[Recording] = []
    for path in find(data / FOLDER / name, "*.npz"):
        with np.load(path, allow_pickle=False) as file:
            values = np.concatenate([file["train"], file["test"]]).astype(np.float64)
            labels = np.concatenate([np.zeros(len(file["train"])), file["test_label"]]).astype(np.int8)
        schema = schema or behaviour_schema(tuple(f"metric_{i}" for i in range(values.shape[1])), period_s)
        recordings.append(plain_recording(path.stem, schema, values, labels))
    assert schema is not None
    return DataSet(name, "behaviour", (Fleet(name, schema, tuple(recordings)),), notes=notes)


def nab(data: Path) -> DataSet:
    """Processor load of a server, every five minutes, before and after somebody misconfigured its scaling."""
    schema, recording = nab_recording(data / FOLDER / "nab" / "cpu_utilization_asg_misconfiguration.csv.gz", 300.0)
    notes = ("a server; one figure; one labelled stretch",)
    return DataSet("nab_cpu", "behaviour", (Fleet("nab_cpu", schema, (recording,)),), notes=notes)


LOADERS: Final[Mapping[str, Loader]] = {"rpi_metrics": rpi_metrics, "smd": smd, "asd": asd, "nab_cpu": nab}
