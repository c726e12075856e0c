"""Behaviour sets: what a device's own counters say. A row is a window, and its columns are those that were given.

System calls are counted and hashed, as a gateway does with names that nobody listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from vedette.evaluation.datasets import DataSet, Fleet, Loader, Recording, find
from vedette.evaluation.labelled_tables import LABEL, nab_recording, numbers, plain_recording, read_table
from vedette_core.learning.hashing import FeatureHasher
from vedette_device.features.behaviour import BehaviourWindower
from vedette_device.features.windows import Window
from vedette_device.sources.counts import NamedCounts
from vedette_schemas.errors import PeerError
from vedette_schemas.features import FeatureSchema

FOLDER: Final = "device_behaviour"
HISTORY: Final = 4
"""Rows of one input: a process that starts is in one row, and what it does in a few."""
NO_FEATURES: Final = frozenset(
    {"Attack", "Host", "Run", "Mode", "Attack Type", "Measurement", "Timestamp", "Relative Time (s)", LABEL}
)
RES_NO_FEATURES: Final = frozenset({"device", "state", "time", "seconds", LABEL})
RES_PERIOD_S: Final = 5.0
"""What a row of the ransomware set covers."""
HASH_COLUMNS: Final = 64
"""As in ``[behaviour] hash_columns``."""
HASH_KEY: Final = b"vedette evaluate"
"""Any site has its own, and keeps it; figures must come out the same twice."""
CALLS_MAX: Final = 1 << 24
"""Most system calls of a file: ten times as many as the pack's."""


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


def rpi_res(data: Path) -> DataSet:
    """Counters of a small Arm board's processor and kernel: at rest, busy with harmless work, and under ransomware."""
    tables = {p.name.removesuffix(".csv.gz"): read_table(p) for p in find(data / FOLDER / "rpi_res", "*.csv.gz")}
    first = next(iter(tables.values()))
    shared = tuple(c for c in first if c not in RES_NO_FEATURES and all(c in table for table in tables.values()))
    schema = behaviour_schema(shared, RES_PERIOD_S)
    recordings = []
    for device, table in tables.items():
        if "time" not in table:
            raise PeerError(f"{device}: found no column time, expected one to sort by")
        order = np.argsort(numbers(table["time"]), kind="stable")
        values = np.column_stack([numbers(table[c]) for c in shared])[order]
        recordings.append(plain_recording(device, schema, values, numbers(table[LABEL]).astype(np.int8)[order]))
    notes = (
        "some 90 rows a run; whether a run is a board of its own is not said; rows stand for time, pauses left out",
        "the test's benign rows are the harmless look-alikes (zipping, other load), training is nearly all rest",
    )
    return DataSet("rpi_res", "behaviour", (Fleet("rpi_res", schema, tuple(recordings)),), notes=notes)


def adfa_ld(data: Path) -> DataSet:
    """Traces of a server's system calls: a trace is a window, its calls are counted by name and hashed.

    A trace that repeats an earlier one exactly is left out: a third of the benign ones do, across training and test.

    Raises:
        ConfigError: there is no such file.
        PeerError: lengths or offsets that cannot be.
    """
    (path,) = find(data / FOLDER / "adfa_ld", "traces.npz")
    with np.load(path, allow_pickle=False) as file:
        calls, offsets, marks = file["syscalls"], file["offsets"], file["label"]
    if len(offsets) != len(marks) + 1 or offsets[0] != 0 or offsets[-1] != len(calls) or (np.diff(offsets) < 0).any():
        raise PeerError(f"{path.name}: found {len(offsets)} offsets of {len(marks)} traces, expected rising ones")
    if len(calls) > CALLS_MAX:
        raise PeerError(f"{path.name}: found {len(calls)} system calls, expected at most {CALLS_MAX}")
    windower = BehaviourWindower("ubuntu_host", FeatureHasher(HASH_COLUMNS, HASH_KEY), lambda end_s, counts: None)
    period_s = windower.schema.window_s
    windows: list[Window] = []
    labels, known = [], set()
    for first, behind, mark in zip(offsets[:-1].tolist(), offsets[1:].tolist(), marks.tolist(), strict=True):
        trace = calls[first:behind]
        if (content := trace.tobytes()) in known:
            continue
        known.add(content)
        counts = Counter(f"syscall {number}" for number in trace.tolist())
        start_s = len(windows) * period_s
        windows.append(windower.window(NamedCounts(start_s, start_s + period_s, dict(counts))))
        labels.append(mark)
    recording = Recording("ubuntu_host", tuple(windows), np.array(labels, np.int8))
    notes = (
        "a server; a trace (75 to 4,500 calls) is a window of counts: it shows its length, not its order",
        "no time: traces in the order of the file, those that repeat an earlier one left out",
    )
    return DataSet("adfa_ld", "behaviour", (Fleet("adfa_ld", windower.schema, (recording,)),), timed=False, notes=notes)


LOADERS: Final[Mapping[str, Loader]] = {
    "rpi_metrics": rpi_metrics,
    "rpi_res": rpi_res,
    "smd": smd,
    "asd": asd,
    "nab_cpu": nab,
    "adfa_ld": adfa_ld,
}
