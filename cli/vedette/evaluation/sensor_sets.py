"""Sensor sets: process benches, motes, water networks, spacecraft channels."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from vedette.evaluation.datasets import DataSet, Fleet, Loader, find
from vedette.evaluation.labelled_tables import LABEL, Float64, nab_recording, numbers, read_table, sensor_recording

FOLDER: Final = "sensor_tampering"
SKAB_CHANNELS: Final = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
TON_CHANNELS: Final[Mapping[str, tuple[str, ...]]] = {
    "fridge": ("fridge_temperature", "temp_condition"),
    "garage_door": ("door_state", "sphone_signal"),
    "gps_tracker": ("latitude", "longitude"),
    "thermostat": ("current_temperature", "thermostat_status"),
}
TON_CODES: Final = {"false": 0.0, "true": 1.0, "closed": 0.0, "open": 1.0, "low": 0.0, "high": 1.0}
"""One coding for benign and attack rows, which the files write differently: that would give the labels away."""
TON_ROWS: Final = (12_000, 4_000)
"""Benign rows and attack rows of a TON_IoT device that are read, the first of each: all benign ones come first."""
SMAP_STEP: Final = 9
"""Every ninth channel of SMAP, in the order of their names."""
WIDE_HISTORY: Final = 16


def skab(data: Path) -> DataSet:
    """One test bench; a file is an experiment and stands for a device."""
    schema, recordings = None, []
    for path in find(data / FOLDER / "skab", "*.csv.gz"):
        table = read_table(path)
        values = np.column_stack([numbers(table[name]) for name in SKAB_CHANNELS])
        time_s = np.array([_seconds(text) for text in table["datetime"]])
        labels = numbers(table[LABEL]).astype(np.int8)
        name = path.name.removesuffix(".csv.gz")
        schema, recording = sensor_recording(name, SKAB_CHANNELS, values, labels, time_s=time_s)
        recordings.append(recording)
    assert schema is not None
    notes = ("one bench, a file an experiment: each learns from its own first rows",)
    return DataSet("skab", "sensor", (Fleet("skab", schema, tuple(recordings)),), notes=notes)


def batadal(data: Path) -> DataSet:
    """A simulated water network: a normal year, then the file with seven attacks."""
    folder = data / FOLDER / "batadal"
    tables = [read_table(folder / f"{name}.csv.gz") for name in ("train_normal", "train_attacks")]
    channels = tuple(name for name in tables[0] if name not in ("DATETIME", LABEL))
    values = np.concatenate([np.column_stack([numbers(t[name]) for name in channels]) for t in tables])
    labels = np.concatenate([numbers(t[LABEL]) for t in tables]).astype(np.int8)
    schema, recording = sensor_recording("c_town", channels, values, labels, period_s=3600.0, history=WIDE_HISTORY)
    notes = ("simulated (EPANET)", "one device: nothing to learn together")
    return DataSet("batadal", "sensor", (Fleet("batadal", schema, (recording,)),), notes=notes)


def wsn(data: Path) -> DataSet:
    """Four motes, a reading every 5 s, events made on purpose at two of them."""
    recordings, schema = [], None
    for path in find(data / FOLDER / "wsn", "*.csv.gz"):
        table = read_table(path)
        values = np.column_stack([numbers(table[name]) for name in ("humidity", "temperature")])
        labels = numbers(table[LABEL]).astype(np.int8)
        name = path.name.removesuffix(".csv.gz")
        schema, recording = sensor_recording(name, ("humidity", "temperature"), values, labels, period_s=5.0)
        recordings.append(recording)
    assert schema is not None
    return DataSet("wsn", "sensor", (Fleet("wsn", schema, tuple(recordings)),), notes=("very easy",))


def ton_iot(data: Path) -> DataSet:
    """Four devices that measure different things, so that each is alone; labels say when the *network* was attacked."""
    fleets = []
    for device, channels in TON_CHANNELS.items():
        table = read_table(data / FOLDER / "ton_iot" / f"{device}.csv.gz")
        labels = numbers(table[LABEL]).astype(np.int8)
        values = np.column_stack([numbers(table[name], TON_CODES) for name in channels])
        kept = np.sort(np.concatenate([np.flatnonzero(labels == k)[:most] for k, most in enumerate(TON_ROWS)]))
        schema, recording = sensor_recording(device, channels, values[kept], labels[kept], period_s=5.0)
        fleets.append(Fleet(f"ton_iot/{device}", schema, (recording,)))
    notes = (
        "labels are times of network attacks; most values are not tampered with, and chance is the honest result",
        f"the first {TON_ROWS[0]} benign and {TON_ROWS[1]} attack rows a device; rows stand for time",
    )
    return DataSet("ton_iot", "sensor", tuple(fleets), notes=notes)


def smap_msl(data: Path) -> DataSet:
    """Spacecraft channels: column 0 is telemetry, the others are commands. Known to be a poor benchmark."""
    paths = find(data / FOLDER / "smap_msl", "*.npz")[::SMAP_STEP]
    schema, recordings = None, []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            values = np.concatenate([file["train"], file["test"]]).astype(np.float64)
            labels = np.concatenate([np.zeros(len(file["train"])), file["test_label"]]).astype(np.int8)
        channels = ("telemetry", *(f"command_{i}" for i in range(1, values.shape[1])))
        schema, recording = sensor_recording(path.stem, channels, values, labels, period_s=60.0, history=WIDE_HISTORY)
        recordings.append(recording)
    assert schema is not None
    notes = (
        f"every {SMAP_STEP}th channel by name ({', '.join(p.stem for p in paths)})",
        "known to be mislabelled and partly trivial (Wu and Keogh 2021); a row stands for a minute",
    )
    return DataSet("smap_msl", "sensor", (Fleet("smap_msl", schema, tuple(recordings)),), notes=notes)


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()


def wustl_ehms(data: Path) -> DataSet:
    """Readings of a patient monitor while somebody spoofs them; the flow columns of the set are left out."""
    channels = ("Temp", "SpO2", "Pulse_Rate", "SYS", "DIA", "Heart_rate", "Resp_Rate", "ST")
    table = read_table(data / FOLDER / "wustl_ehms" / "ehms_gateway.csv.gz")
    values: Float64 = np.column_stack([numbers(table[name]) for name in channels])
    labels = numbers(table[LABEL]).astype(np.int8)
    schema, recording = sensor_recording("ehms_gateway", channels, values, labels)
    notes = ("biometrics only; one gateway; rows stand for time",)
    return DataSet("wustl_ehms", "sensor", (Fleet("wustl_ehms", schema, (recording,)),), notes=notes)


def nab(data: Path) -> DataSet:
    """Room temperature of an office, hourly, with a system failure."""
    schema, recording = nab_recording(data / FOLDER / "nab" / "ambient_temperature_system_failure.csv.gz", 3600.0)
    notes = ("one sensor; labels are wide stretches around two events",)
    return DataSet("nab_temperature", "sensor", (Fleet("nab_temperature", schema, (recording,)),), notes=notes)


LOADERS: Final[Mapping[str, Loader]] = {
    "skab": skab,
    "batadal": batadal,
    "wsn": wsn,
    "ton_iot": ton_iot,
    "wustl_ehms": wustl_ehms,
    "smap_msl": smap_msl,
    "nab_temperature": nab,
}
