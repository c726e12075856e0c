"""Network sets: Zeek's flow logs, packet captures, and NetFlow rows that know no time."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vedette.evaluation.datasets import PERIOD_ROWS, DataSet, Fleet, Loader, Recording, find
from vedette.evaluation.labelled_tables import LABEL, numbers, plain_recording, read_table
from vedette.evaluation.packet_tables import one_after_another
from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.features.network import NetworkWindower
from vedette_device.features.windows import Window
from vedette_device.sources.capture_file import CaptureFile
from vedette_device.sources.flow_record import FlowRecord, address_number
from vedette_device.sources.zeek import ZeekParser
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS, FeatureSchema

FOLDER: Final = "network_flows"
NOT_ZEEK: Final = frozenset({"device", LABEL, "label", "detailed-label"})
NETFLOW_ATTACKS_MAX: Final = 5_000
"""Attack rows of a device that are read, the first ones: they repeat themselves 80,000 times."""
NETFLOW_LEFT_OUT: Final = frozenset(
    {
        "device",
        "class",
        LABEL,
        "IPV4_SRC_ADDR",
        "IPV4_DST_ADDR",
        "L4_SRC_PORT",
        "L4_DST_PORT",
        "MIN_TTL",
        "MAX_TTL",
        "DNS_QUERY_ID",
        "PROTOCOL",
        "L7_PROTO",
    }
)
"""Addresses, ports, TTLs, a random number, and two codes whose size means nothing."""
CAPTURES: Final[Mapping[str, tuple[tuple[str, int], ...]]] = {
    "philips_hue": (("iot23_philips_hue_4-1", 0),),
    "xiaodu_plug": (
        ("nku_xiaodu_plug_setup", 0),
        ("nku_xiaodu_plug_idle_on_remote", 0),
        ("nku_xiaodu_plug_on_remote", 0),
        ("nku_xiaodu_plug_update", 0),
    ),
    "mqttset": (
        ("mqttset_benign-5mb-train", 0),
        ("mqttset_bruteforce-train", 1),
        ("mqttset_flood", 1),
        ("mqttset_slowite-train", 1),
    ),
}
"""Captures of a device, each benign (0) or an attack (1) as a whole; Mirai's has no benign part to learn from."""


NBAIOT_LEFT_OUT: Final = frozenset({"device", "class", LABEL})
NBAIOT_DATED: Final = "HH_jit"
NBAIOT_COLUMNS_MIN: Final = 50
NEMEA_COLUMNS: Final = (
    "bytes_out",
    "bytes_in",
    "num_pkts_out",
    "num_pkts_in",
    "entropy",
    "total_entropy",
    "byte_dist_mean",
    "byte_dist_std",
    "duration",
)
"""All but addresses, ports, times, the protocol's number, and what annotators wrote."""


def iot23(data: Path) -> DataSet:
    """Five captures, each of one device, as the windows that a followed Zeek log gives."""
    recordings = tuple(_zeek(path) for path in find(data / FOLDER / "iot23", "*.csv.gz"))
    notes = ("a window is anomalous if a malicious flow ends in it; the honeypots have no attack",)
    return DataSet("iot23", "network", (Fleet("iot23", FLOW_LOGS, recordings),), notes=notes)


def pcaps(data: Path) -> DataSet:
    """Packet captures through the device's own reader."""
    recordings = tuple(_captures(data / "pcaps", device, files) for device, files in CAPTURES.items())
    notes = (
        "a capture is benign or an attack as a whole; windows without a packet in an attack capture count as neither",
        "the captures of a device are put one behind the other, an hour apart",
        "attacks were captured among other hosts than the benign traffic: what is found may be that they are new",
    )
    return DataSet("pcaps", "network", (Fleet("pcaps", NETWORK_FLOWS, recordings),), notes=notes)


def nf_bot_iot_v2(data: Path) -> DataSet:
    """NetFlow rows, one by one: they tell no time, so that there are no windows to make of them."""
    tables = {
        path.name.removesuffix(".csv.gz"): read_table(path)
        for path in find(data / FOLDER / "nf_bot_iot_v2", "*.csv.gz")
    }
    columns = tuple(name for name in next(iter(tables.values())) if name not in NETFLOW_LEFT_OUT)
    schema = FeatureSchema(use_case="network", version=1, columns=columns, window_s=PERIOD_ROWS, history=1)
    recordings = []
    for device, table in tables.items():
        labels = numbers(table[LABEL]).astype(np.int8)
        kept = np.sort(np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:NETFLOW_ATTACKS_MAX]]))
        values = np.column_stack([numbers(table[name]) for name in columns])[kept]
        recordings.append(plain_recording(device, schema, np.maximum(values, 0.0), labels[kept]))
    notes = (
        "no time: rows in the order of the file, no windows, events or days",
        f"361 benign rows in all; the first {NETFLOW_ATTACKS_MAX} attack rows a device",
    )
    return DataSet(
        "nf_bot_iot_v2", "network", (Fleet("nf_bot_iot_v2", schema, tuple(recordings)),), timed=False, notes=notes
    )


def nbaiot(data: Path) -> DataSet:
    """Kitsune's running statistics of one doorbell's packets, a row a packet, without those that tell the date."""
    paths = find(data / FOLDER / "nbaiot", "*.csv.gz")
    tables = {path.name.removesuffix(".csv.gz"): read_table(path) for path in paths}
    schema, recordings = None, []
    for device, table in tables.items():
        names = tuple(n for n in table if n not in NBAIOT_LEFT_OUT and not n.startswith(NBAIOT_DATED))
        if len(names) < NBAIOT_COLUMNS_MIN:  # another mirror kept one of the 115 columns
            continue
        schema = schema or FeatureSchema(use_case="network", version=1, columns=names, window_s=PERIOD_ROWS, history=1)
        values = np.column_stack([numbers(table[n]) for n in schema.columns])
        recordings.append(plain_recording(device, schema, values, numbers(table[LABEL]).astype(np.int8)))
    if schema is None:
        raise ConfigError(f"{data / FOLDER / 'nbaiot'}: found no table of {NBAIOT_COLUMNS_MIN} columns or more")
    notes = (
        "the first seconds of each attack, an own capture each: weight columns alone separate them",
        "columns of jitter are left out: they hold the epoch's seconds",
    )
    return DataSet("nbaiot", "network", (Fleet("nbaiot", schema, tuple(recordings)),), timed=False, notes=notes)


def nemea_siot(data: Path) -> DataSet:
    """Flow records of a camera and a gateway, one by one; the camera's storage is down in one capture."""
    recordings = []
    schema = FeatureSchema(use_case="network", version=1, columns=NEMEA_COLUMNS, window_s=PERIOD_ROWS, history=1)
    for path in find(data / FOLDER / "nemea_siot", "*.csv.gz"):
        table = read_table(path)
        columns = {name: numbers(table[name]) for name in table if name in NEMEA_COLUMNS}
        columns["duration"] = np.maximum(numbers(table["time_end"]) - numbers(table["time_start"]), 0.0)
        order = np.argsort(numbers(table["time_start"]), kind="stable")
        values = np.column_stack([columns[name] for name in NEMEA_COLUMNS])[order]
        labels = numbers(table[LABEL]).astype(np.int8)[order]
        recordings.append(plain_recording(path.name.removesuffix(".csv.gz"), schema, values, labels))
    notes = ("labels are of a capture, not of a flow; hundreds of flows; rows stand for time",)
    return DataSet("nemea_siot", "network", (Fleet("nemea_siot", schema, tuple(recordings)),), timed=False, notes=notes)


def _zeek(path: Path) -> Recording:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Zeek writes a flow when it ends.
    rows.sort(key=lambda row: float(row["ts"]) + float(row["duration"] or 0))
    names = [name for name in rows[0] if name not in NOT_ZEEK]
    parser, windower = ZeekParser(), FlowLogWindower()
    if parser.parse(("#fields\t" + "\t".join(names)).encode()) is not None:
        raise AssertionError("a header is no flow")
    flows: list[FlowRecord] = []
    malicious: list[tuple[str, str, float]] = []
    for row in rows:
        flow = parser.parse("\t".join(row[name] or "-" for name in names).encode())
        if flow is None:
            continue
        flows.append(flow)
        if row[LABEL] == "1":
            malicious.append((row["id.orig_h"], row["id.resp_h"], flow.end_s))
    windows = windower.push(flows) + windower.flush()
    marked = {
        (address_number(address), int(end_s // FLOW_LOGS.window_s))
        for *ends, end_s in malicious
        for address in map(str, ends)
    }
    labels = [int((address_number(w.entity), int(round(w.start_s) // FLOW_LOGS.window_s)) in marked) for w in windows]
    return Recording(path.name.removesuffix(".csv.gz"), *_in_order(windows, labels))


def _captures(folder: Path, device: str, files: Sequence[tuple[str, int]]) -> Recording:
    return one_after_another(device, ((_windows(_capture_path(folder, name)), label) for name, label in files))


def _capture_path(folder: Path, name: str) -> Path:
    paths = sorted(folder.glob(f"{name}.pcap*"))
    if len(paths) != 1:
        raise ConfigError(f"{folder}: found {len(paths)} captures {name}.pcap…, expected one")
    return paths[0]


def _windows(path: Path) -> list[Window]:
    source, windower = CaptureFile(path), NetworkWindower()
    windows: list[Window] = []
    while (batch := source.read()) is not None:
        windows += windower.push(batch)
    return windows + windower.flush()


def _in_order(windows: Sequence[Window], labels: Sequence[int]) -> tuple[tuple[Window, ...], np.ndarray]:
    order = sorted(range(len(windows)), key=lambda i: windows[i].end_s)
    return tuple(windows[i] for i in order), np.array([labels[i] for i in order], np.int8)


LOADERS: Final[Mapping[str, Loader]] = {
    "iot23": iot23,
    "pcaps": pcaps,
    "nf_bot_iot_v2": nf_bot_iot_v2,
    "nbaiot": nbaiot,
    "nemea_siot": nemea_siot,
}
