"""Loaders on made-up files in the layout of the pack: which columns count, in which order, with which labels."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from vedette.evaluation.behaviour_sets import (
    HASH_COLUMNS,
    HASH_KEY,
    NO_FEATURES,
    RES_NO_FEATURES,
    adfa_ld,
    rpi_metrics,
    rpi_res,
    smd,
)
from vedette.evaluation.datasets import Suite, loaders
from vedette.evaluation.lab_sets import forged_columns
from vedette.evaluation.network_sets import NEMEA_COLUMNS, NETFLOW_LEFT_OUT, iot23, nbaiot, nemea_siot, nf_bot_iot_v2
from vedette.evaluation.sensor_sets import SKAB_CHANNELS, TON_CHANNELS, nab, skab, ton_iot, wsn
from vedette_core.learning.hashing import FeatureHasher
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import FLOW_LOGS


def write(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


@pytest.mark.parametrize("suite", ["network", "sensor", "behaviour"])
def test_every_set_says_what_is_missing(suite: Suite, tmp_path: Path) -> None:
    for name, loader in loaders(suite).items():
        if name in ("tanks", "lab"):
            continue  # shipped
        with pytest.raises((ConfigError, OSError)):
            loader(tmp_path)


def test_skab_rows_become_windows_of_values_and_differences_with_the_newer_rows_label(tmp_path: Path) -> None:
    seconds = [0, 1, 2, 2, 3, 60, 61]  # one repeated, one gap
    write(
        tmp_path / "sensor_tampering" / "skab" / "valve1_0.csv.gz",
        {
            "experiment": ["valve1_0"] * 7,
            "datetime": [f"2020-03-09 10:{14 + s // 60}:{s % 60:02}" for s in seconds],
            **{name: [10 * i + j for j in range(7)] for i, name in enumerate(SKAB_CHANNELS)},
            "anomaly": [0.0] * 7,
            "changepoint": [1.0] * 7,
            "label_bin": [0, 0, 1, 0, 1, 0, 0],
        },
    )
    (fleet,) = skab(tmp_path).fleets
    (recording,) = fleet.recordings
    assert fleet.schema.columns == (*SKAB_CHANNELS, *(f"{name}_diff" for name in SKAB_CHANNELS))
    assert recording.labels.tolist() == [0, 1, 1, 0]
    assert [w.values[0] for w in recording.windows] == [1.0, 2.0, 4.0, 6.0]
    assert recording.windows[2].values[8] == 1.0, "from the repeated row, which is the newest before it"


def test_ton_iot_is_one_coding_and_no_time(tmp_path: Path) -> None:
    for device, channels in TON_CHANNELS.items():
        texts = [["false ", "true", "0", "1"], ["closed", "open", "closed", "open"]]
        numbers: list[Sequence[object]] = [[1.5, 2.5, 3.5, 4.5], [0, 1, 0, 1]]
        values = dict(zip(channels, texts[::-1] if device == "garage_door" else numbers, strict=True))
        write(
            tmp_path / "sensor_tampering" / "ton_iot" / f"{device}.csv.gz",
            {"device": [device] * 4, "ts": [9, 9, 9, 99], **values, "label_bin": [0, 0, 1, 1], "class": ["x"] * 4},
        )
    fleets = {fleet.name: fleet for fleet in ton_iot(tmp_path).fleets}
    door = fleets["ton_iot/garage_door"]
    assert door.schema.columns[:2] == ("door_state", "sphone_signal")
    assert [w.values[:2].tolist() for w in door.recordings[0].windows] == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert door.recordings[0].labels.tolist() == [0, 1, 1]
    assert not any("ts" in f.schema.columns for f in fleets.values())


def test_the_reading_number_of_a_mote_is_no_feature(tmp_path: Path) -> None:
    write(
        tmp_path / "sensor_tampering" / "wsn" / "m1.csv.gz",
        {"device": "aaa", "reading": [1, 2, 3], "humidity": [4, 5, "?"], "temperature": [7, 8, 9], "label_bin": "001"},
    )
    (fleet,) = wsn(tmp_path).fleets
    assert fleet.schema.columns == ("humidity", "temperature", "humidity_diff", "temperature_diff")
    assert len(fleet.recordings[0].windows) == 1, "a reading that is no number is refused"


def zeek_rows() -> list[dict[str, object]]:
    base = {
        "uid": "C",
        "id.orig_h": "192.168.1.195",
        "id.orig_p": 40000,
        "id.resp_h": "8.8.8.8",
        "id.resp_p": 53,
        "proto": "udp",
        "conn_state": "SF",
        "orig_pkts": 1,
        "orig_ip_bytes": 60,
        "resp_pkts": 1,
        "resp_ip_bytes": 90,
        "label": "x",
        "detailed-label": "-",
    }
    times = [(600.0, 1.0, 0), (661.0, "", 0), (662.0, 65.0, 1), (800.0, 1.0, 0)]
    return [{"device": "pi", "ts": t, **base, "duration": d, "label_bin": label} for t, d, label in times]


def test_a_window_of_flows_is_anomalous_if_a_malicious_flow_ends_in_it(tmp_path: Path) -> None:
    rows = zeek_rows()
    write(
        tmp_path / "network_flows" / "iot23" / "pi.csv.gz",
        {name: [row[name] for row in rows] for name in rows[0]},
    )
    (fleet,) = iot23(tmp_path).fleets
    assert fleet.schema is FLOW_LOGS
    (recording,) = fleet.recordings
    by_start = {w.start_s: int(label) for w, label in zip(recording.windows, recording.labels, strict=True)}
    assert by_start[600.0] == 0
    assert by_start[660.0] == 0
    assert by_start[720.0] == 1, "it ends at 727 s"
    assert {w.entity for w in recording.windows} == {"192.168.1.195"}
    assert sum(w.values[FLOW_LOGS.index("flows_out")] for w in recording.windows) == 4


def test_netflow_rows_have_neither_time_nor_addresses_nor_ports(tmp_path: Path) -> None:
    left_out = {name: [1, 2, 3] for name in sorted(NETFLOW_LEFT_OUT - {"label_bin"})}
    write(
        tmp_path / "network_flows" / "nf_bot_iot_v2" / "host_1.csv.gz",
        {**left_out, "IN_PKTS": [3, 4, 5], "IN_BYTES": [30, -1, 50], "label_bin": [0, 1, 0]},
    )
    found = nf_bot_iot_v2(tmp_path)
    assert not found.timed
    assert any("no time" in note for note in found.notes)
    (fleet,) = found.fleets
    assert fleet.schema.columns == ("IN_PKTS", "IN_BYTES")
    assert fleet.schema.history == 1
    assert [w.values.tolist() for w in fleet.recordings[0].windows] == [[3.0, 30.0], [4.0, 0.0], [5.0, 50.0]]


def test_behaviour_columns_are_those_that_all_devices_have(tmp_path: Path) -> None:
    folder = tmp_path / "device_behaviour" / "rpi_metrics"
    meta = {name: ["a", "b"] for name in sorted(NO_FEATURES - {"label_bin"})}
    write(folder / "x_nmon.csv.gz", {**meta, "CPU": [1, 2], "Only here": [1, 2], "label_bin": [0, 1]})
    write(folder / "y_nmon.csv.gz", {**meta, "CPU": [1, 2], "label_bin": [0, 1]})
    write(folder / "z_system_01.csv.gz", {**meta, "Memory": [1, 2], "label_bin": [0, 1]})
    full, system = rpi_metrics(tmp_path).fleets
    assert (full.schema.columns, system.schema.columns) == (("CPU",), ("Memory",))
    assert [r.labels.tolist() for r in full.recordings] == [[0, 1], [0, 1]]


def test_rows_under_ransomware_are_in_the_order_of_their_time_which_is_no_feature(tmp_path: Path) -> None:
    folder = tmp_path / "device_behaviour" / "rpi_res"
    meta = {name: ["a", "b", "c"] for name in sorted(RES_NO_FEATURES - {"label_bin", "time"})}
    write(folder / "rpi_run1.csv.gz", {**meta, "time": [30, 10, 20], "faults": [3, 1, 2], "label_bin": [1, 0, 0]})
    write(folder / "rpi_run2.csv.gz", {**meta, "time": [1, 2, 3], "faults": [7, 8, 9], "label_bin": [0, 0, 0]})
    (fleet,) = rpi_res(tmp_path).fleets
    assert fleet.schema.columns == ("faults",)
    first = fleet.recordings[0]
    assert [float(w.values[0]) for w in first.windows] == [1.0, 2.0, 3.0]
    assert first.labels.tolist() == [0, 0, 1]


def save_traces(path: Path, traces: Sequence[Sequence[int]], labels: Sequence[int], *, cut: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([0, *(len(trace) for trace in traces)])
    calls = np.array([number for trace in traces for number in trace], np.uint16)
    np.savez(path, syscalls=calls[: len(calls) - cut], offsets=ends, label=np.array(labels, np.uint8))


def test_a_trace_is_a_window_of_hashed_counts_and_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "device_behaviour" / "adfa_ld" / "traces.npz"
    save_traces(path, [[6, 6, 63], [63, 6, 6], [6, 6, 63], [120, 6]], [0, 0, 0, 1])
    data = adfa_ld(tmp_path)
    assert not data.timed
    (fleet,) = data.fleets
    (recording,) = fleet.recordings
    hasher = FeatureHasher(HASH_COLUMNS, HASH_KEY)
    assert fleet.schema == hasher.schema
    assert fleet.schema.use_case == "behaviour"
    assert recording.labels.tolist() == [0, 0, 1], (
        "the third repeats the first; the second has its calls in another order"
    )
    assert [w.values.tolist() for w in recording.windows] == [
        hasher.row({"syscall 6": 2, "syscall 63": 1}).tolist(),
        hasher.row({"syscall 6": 2, "syscall 63": 1}).tolist(),
        hasher.row({"syscall 6": 1, "syscall 120": 1}).tolist(),
    ]


def test_traces_whose_lengths_are_not_those_of_the_calls_are_refused(tmp_path: Path) -> None:
    save_traces(tmp_path / "device_behaviour" / "adfa_ld" / "traces.npz", [[6, 63], [6]], [0, 1], cut=1)
    with pytest.raises(PeerError, match=r"traces\.npz: found 3 offsets of 2 traces"):
        adfa_ld(tmp_path)


def test_training_part_and_test_part_of_arrays_follow_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "device_behaviour" / "smd"
    folder.mkdir(parents=True)
    label = np.array([0, 1], np.uint8)
    np.savez(folder / "m.npz", train=np.zeros((3, 2), np.float32), test=np.ones((2, 2), np.float32), test_label=label)
    (fleet,) = smd(tmp_path).fleets
    (recording,) = fleet.recordings
    assert recording.labels.tolist() == [0, 0, 0, 0, 1]
    assert [float(w.values[0]) for w in recording.windows] == [0, 0, 0, 1, 1]
    assert [w.start_s for w in recording.windows] == [0.0, 60.0, 120.0, 180.0, 240.0]


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    write(tmp_path / "sensor_tampering" / "wsn" / "m.csv.gz", {"humidity": [1]})
    with pytest.raises(PeerError, match=r"m\.csv\.gz: found columns humidity, expected label_bin"):
        wsn(tmp_path)
    path = tmp_path / "sensor_tampering" / "wsn" / "m.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("humidity,temperature,label_bin\n1,2,0\n1,2\n")
    with pytest.raises(PeerError, match="found 2 cells in line 3, expected 3"):
        wsn(tmp_path)


def test_statistics_that_tell_the_date_are_left_out_and_a_table_without_the_others_too(tmp_path: Path) -> None:
    names = [f"MI_dir_L{i}_weight" for i in range(50)]
    folder = tmp_path / "network_flows" / "nbaiot"
    cells: dict[str, Sequence[object]] = {name: [i, i + 1] for i, name in enumerate(names)}
    write(
        folder / "doorbell.csv.gz",
        {"device": "dd", **cells, "HH_jit_L5_mean": [1.5e9, 1.6e9], "class": "ba", "label_bin": "01"},
    )
    write(folder / "one.csv.gz", {"device": "d", "MI_dir_L0_weight": [1], "class": "a", "label_bin": "1"})
    data = nbaiot(tmp_path)
    ((recording,),) = [fleet.recordings for fleet in data.fleets]
    assert (recording.device, recording.labels.tolist(), data.timed) == ("doorbell", [0, 1], False)
    assert data.fleets[0].schema.columns == tuple(names)


def test_flow_records_are_sorted_and_say_how_long_they_took(tmp_path: Path) -> None:
    columns = {name: [2, 1] for name in NEMEA_COLUMNS if name != "duration"}
    write(
        tmp_path / "network_flows" / "nemea_siot" / "camera.csv.gz",
        {"time_start": [10.0, 5.0], "time_end": [12.5, 4.0], **columns, "sa": "ab", "label_bin": "10"},
    )
    ((recording,),) = [fleet.recordings for fleet in nemea_siot(tmp_path).fleets]
    assert [w.values.tolist() for w in recording.windows] == [[1.0] * 8 + [0.0], [2.0] * 8 + [2.5]]
    assert recording.labels.tolist() == [0, 1]


def test_a_series_of_one_value_has_its_own_times(tmp_path: Path) -> None:
    write(
        tmp_path / "sensor_tampering" / "nab" / "ambient_temperature_system_failure.csv.gz",
        {
            "timestamp": [f"2013-07-04 0{h}:00:00" for h in range(4)],
            "value": [70.0, 71.0, 71.5, 60.0],
            "label_bin": "0001",
        },
    )
    (fleet,) = nab(tmp_path).fleets
    assert fleet.schema.columns == ("value", "value_diff")
    assert fleet.recordings[0].labels.tolist() == [0, 0, 1]
    assert fleet.recordings[0].windows[0].end_s - fleet.recordings[0].windows[0].start_s == 3600.0


def test_the_labs_labels_name_the_forged_columns() -> None:
    forged = forged_columns("simulated: level_m+inflow_lpm replayed from 146520 s before")
    assert forged == {"level_m", "level_m_diff", "inflow_lpm", "inflow_lpm_diff"}
    assert forged_columns("nmap -sS 10.0.0.1") == frozenset()


def test_the_shipped_tanks_say_what_was_forged_in_every_anomalous_window(tmp_path: Path) -> None:
    (fleet,) = loaders("sensor")["tanks"](tmp_path).fleets
    assert len(fleet.recordings) == 8
    for recording in fleet.recordings:
        assert {bool(t) for t, label in zip(recording.truth, recording.labels, strict=True) if label == 1} == {True}
        assert not any(t for t, label in zip(recording.truth, recording.labels, strict=True) if label == 0)
        assert all(t <= set(fleet.schema.columns) for t in recording.truth)
