"""Sets whose packets are rows of Parquet files: what becomes of a row, whose it is, and what is anomalous."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette.evaluation import parquet
from vedette.evaluation.datasets import DataSet, Recording
from vedette.evaluation.packet_sets import (
    MINING,
    MINING_KNOWN,
    MQTT_ATTACKS,
    cryptojacking,
    iot_sentinel,
    iot_sentinel_swapped,
    mqttset,
    nku_lifecycle,
)
from vedette.evaluation.packet_tables import BETWEEN_CAPTURES_S, typed_peers, windows_of
from vedette.evaluation.parquet import read_parquet
from vedette.evaluation.stretches import prepare
from vedette_device.sources.packets import ARP, NO_QUERY
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import NETWORK_FLOWS

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `evaluate`")

SYN, SYN_ACK, DATA = 0x02, 0x12, 0x18
LOCAL, INTERNET, MULTICAST = 0, 1, 2
HOST = "192.168.0.2"


def save(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    import pyarrow.parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(pyarrow.table(dict(columns)), path)


def frame(t: float, **other: Any) -> dict[str, Any]:
    """A TCP segment with data from the device to a peer in the Internet, or what is said otherwise."""
    return {
        "t": t,
        "len": 114,
        "dir": 1,
        "ethertype": 0x0800,
        "ip_proto": 6,
        "sport": 40000,
        "dport": 443,
        "tcp_flags": DATA,
        "ttl": 64,
        "peer_type": INTERNET,
        "peer_id": 7,
        **other,
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in columns(rows).items()}


def value(recording_or_window: Any, name: str) -> float:
    return float(recording_or_window.values[NETWORK_FLOWS.index(name)])


def only(data: DataSet) -> dict[str, Recording]:
    (fleet,) = data.fleets
    return {recording.device: recording for recording in fleet.recordings}


# --- files ---


def test_columns_come_in_the_order_that_was_asked_for_and_others_are_not_read(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", {"x": [1, 2], "name": ["a", "b"], "y": [0.5, 1.5]})
    found = read_parquet(tmp_path / "a.parquet", ("y", "name"))
    assert list(found) == ["y", "name"]
    assert found["y"].tolist() == [0.5, 1.5]
    assert found["name"].tolist() == ["a", "b"]


def test_a_file_of_another_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.parquet", {"x": [1, 2, None], "y": [1, 2, 3]})
    with pytest.raises(PeerError, match=r"a\.parquet: found columns x, y, expected t among them"):
        read_parquet(tmp_path / "a.parquet", ("x", "t"))
    with pytest.raises(PeerError, match=r"a\.parquet: found 1 empty cells in x, expected none"):
        read_parquet(tmp_path / "a.parquet", ("x",))
    with pytest.raises(PeerError, match=r"a\.parquet: found 3 rows, expected at most 2"):
        read_parquet(tmp_path / "a.parquet", ("y",), rows_max=2)
    with pytest.raises(ConfigError, match=r"no\.parquet: found no file"):
        read_parquet(tmp_path / "no.parquet", ("y",))
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, content in (("empty", b""), ("text", b"t,len\n1,2\n"), ("cut", whole[:-9]), ("headless", whole[20:])):
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(PeerError, match=rf"{name}\.parquet: found .*, expected a Parquet file"):
            read_parquet(tmp_path / f"{name}.parquet", ("y",))
    monkeypatch.setattr(parquet, "BYTES_MAX", 10)
    with pytest.raises(PeerError, match="bytes of columns, expected at most 10"):
        read_parquet(tmp_path / "a.parquet", ("y",))


def test_without_the_reader_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.parquet", {"x": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"found no reader of Parquet files, expected pyarrow: .*vedette\[evaluate\]"):
        read_parquet(tmp_path / "a.parquet", ("x",))


# --- rows ---


def test_a_row_becomes_the_packet_that_a_capture_would_have_given() -> None:
    rows = [
        frame(3.0, dir=-1, sport=443, dport=40000, len=1514),
        frame(1.0, ethertype=0x0806, ip_proto=0, sport=0, dport=0, tcp_flags=0, peer_type=MULTICAST, len=60),
        frame(2.0, ip_proto=17, sport=5000, dport=53, tcp_flags=0, peer_type=LOCAL),
        frame(0.0, ethertype=0x888E, peer_type=LOCAL),
        frame(0.5, dir=0),
    ]
    batch = typed_peers("a", arrays(rows)).batch(10.0)
    assert (batch.time_ns / 1e9).tolist() == [11.0, 12.0, 13.0], "in order; neither EAPOL nor others' packets"
    assert batch.protocol.tolist() == [ARP, 17, 6]
    assert batch.size.tolist() == [28, 100, 1500]
    assert batch.has_ports.tolist() == [False, True, True]
    assert batch.dns_name_length.tolist() == [NO_QUERY, 0, NO_QUERY]
    assert batch.tcp_flags.tolist() == [0, 0, DATA]
    ends = [
        (hex(int(source) & 0xFFFF_FFFF), hex(int(target) & 0xFFFF_FFFF))
        for source, target in zip(batch.source_lo, batch.target_lo, strict=True)
    ]
    assert ends == [("0xc0a80002", "0xef000007"), ("0xc0a80002", "0xac100007"), ("0xc6120007", "0xc0a80002")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"t": -0.1}, "found time_s from -0.1"),
        ({"t": float("nan")}, "found time_s from nan"),
        ({"dport": 70000}, "found target_port from 70000"),
        ({"tcp_flags": 256}, "found tcp_flags"),
        ({"ip_proto": 300}, "found protocol"),
        ({"len": 1 << 20}, "found size"),
        ({"peer_type": 3}, "found 1 peers of another form"),
        ({"peer_id": 1 << 16}, "found 1 peers of another form"),
    ],
)
def test_numbers_that_no_packet_has_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(PeerError, match=f"x.parquet: {message}"):
        typed_peers("x.parquet", arrays([{**frame(1.0), **wrong}]))


def test_windows_count_what_the_table_tells_and_repeat_nothing_that_it_does_not() -> None:
    rows = [
        *(frame(0.1 * i) for i in range(4)),  # data segments of one size
        *(frame(1.0 + i, sport=41000, tcp_flags=SYN) for i in range(2)),  # sent twice, and never answered
        frame(3.0, sport=42000, tcp_flags=SYN),
        frame(3.1, sport=443, dport=42000, dir=-1, tcp_flags=SYN_ACK),
        frame(3.5, ip_proto=17, dport=53, tcp_flags=0, peer_type=LOCAL),
    ]
    (window,) = windows_of(typed_peers("a", arrays(rows)))
    assert window.entity == HOST
    names = ("packets_out", "packets_in", "syn_count", "connects_failed", "retransmissions", "dns_queries")
    assert [value(window, name) for name in names] == [8.0, 1.0, 3.0, 1.0, 1.0, 1.0]
    assert value(window, "flows_new") == 4.0
    assert value(window, "peers_distinct") == 2.0
    assert value(window, "internal_share") == pytest.approx(1 / 9)


def test_peers_that_answer_are_no_devices_of_their_own() -> None:
    rows = [frame(0.0, peer_type=LOCAL), frame(0.1, peer_type=LOCAL, dir=-1, sport=443, dport=40000)]
    assert {window.entity for window in windows_of(typed_peers("a", arrays(rows)))} == {HOST}


def test_captures_fall_differently_into_windows() -> None:
    table = typed_peers("a", arrays([frame(float(t)) for t in range(5)]))
    first = [[value(w, "packets_out") for w in windows_of(table, number)] for number in range(3)]
    assert first == [[5.0], [2.0, 3.0], [4.0, 1.0]]


# --- sets ---


def set_ups(folder: Path, sizes: Mapping[str, int], sessions: int = 3) -> None:
    """Devices whose packets have a size of their own; set-up number k takes 10·(k + 1) seconds."""
    for device, size in sizes.items():
        rows = [
            {"session": f"Setup-{k}", **frame(float(t), len=size)} for k in range(sessions) for t in range(10 * (k + 1))
        ]
        save(folder / "device_behaviour" / "iot_sentinel" / f"{device}.parquet", columns(rows))


def test_set_ups_are_benign_one_after_another_and_an_hour_apart(tmp_path: Path) -> None:
    set_ups(tmp_path, {"plug": 114, "camera": 514})
    data = iot_sentinel(tmp_path)
    assert not data.constructed
    assert data.fleets[0].schema is NETWORK_FLOWS
    recordings = only(data)
    assert list(recordings) == ["camera", "plug"]
    plug = recordings["plug"]
    assert set(plug.labels.tolist()) == {0}
    pauses = [b.start_s - a.end_s for a, b in pairwise(plug.windows)]
    assert sorted(p for p in pauses if p) == [BETWEEN_CAPTURES_S] * 2
    assert list(plug.breaks) == [b.start_s for a, b in pairwise(plug.windows) if b.start_s > a.end_s]
    assert {w.entity for w in plug.windows} == {HOST}
    assert sum(value(w, "packets_out") for w in plug.windows) == 60.0


def test_swapped_devices_are_the_last_set_ups_of_the_others_under_the_own_address(tmp_path: Path) -> None:
    set_ups(tmp_path, {"plug": 114, "camera": 514, "bulb": 214})
    data = iot_sentinel_swapped(tmp_path)
    assert data.constructed
    assert any(note.startswith("constructed: ") for note in data.notes)
    plug = only(data)["plug"]
    assert {w.entity for w in plug.windows} == {HOST}
    sizes = {
        mark: [
            value(w, "size_mean_bytes")
            for w, label in zip(plug.windows, plug.labels.tolist(), strict=True)
            if label == mark
        ]
        for mark in (0, 1)
    }
    assert set(sizes[0]) == {100.0}
    assert set(sizes[1]) == {500.0, 200.0}
    packets = sum(
        value(w, "packets_out") for w, label in zip(plug.windows, plug.labels.tolist(), strict=True) if label == 1
    )
    assert packets == 2 * 30.0, "of each other device the last set-up, and no other"
    assert plug.labels.tolist() == sorted(plug.labels.tolist()), "behind all of its own"


def test_no_model_has_learnt_from_a_set_up_that_is_swapped(tmp_path: Path) -> None:
    for device, size in {"plug": 114, "camera": 514}.items():
        rows = [
            {"session": f"Setup-{k}", **frame(float(t), len=size + k, dport=443 + t)}
            for k in range(8)
            for t in range(100)
        ]
        save(tmp_path / "device_behaviour" / "iot_sentinel" / f"{device}.parquet", columns(rows))
    learnt, swapped = set(), set()
    for recording in only(iot_sentinel_swapped(tmp_path)).values():
        device_ready = prepare(recording, NETWORK_FLOWS)
        learnt |= {value(w, "size_mean_bytes") for w in device_ready.train.windows}
        test = device_ready.test
        swapped |= {value(w, "size_mean_bytes") for w, mark in zip(test.windows, test.labels, strict=True) if mark == 1}
    assert swapped == {107.0, 507.0}
    assert len(learnt) >= 8
    assert not learnt & swapped


def test_silence_of_a_swapped_device_is_neither(tmp_path: Path) -> None:
    rows = [{"session": "a", **frame(t)} for t in (0.0, 1.0, 11.0)]
    for device in ("one", "two"):
        save(tmp_path / "device_behaviour" / "iot_sentinel" / f"{device}.parquet", columns(rows))
    assert only(iot_sentinel_swapped(tmp_path))["one"].labels.tolist() == [0, 0, 0, 1, -1, 1]
    assert only(iot_sentinel(tmp_path))["one"].labels.tolist() == [0, 0, 0], "its own silence is what it does"


def test_a_plugs_states_are_captures_of_one_device(tmp_path: Path) -> None:
    rows = [{"state": state, **frame(float(t))} for state in ("idle", "setup") for t in range(8)]
    save(tmp_path / "device_behaviour" / "nku_lifecycle" / "xiaodu_plug.parquet", columns(rows))
    plug = only(nku_lifecycle(tmp_path))["xiaodu_plug"]
    assert set(plug.labels.tolist()) == {0}
    assert sum(value(w, "packets_out") for w in plug.windows) == 16.0
    assert max(w.end_s for w in plug.windows) > BETWEEN_CAPTURES_S


def mqtt(t: float, *, out: bool, source: str, kinds: str) -> dict[str, Any]:
    ends = (50000, 1883) if out else (1883, 50000)
    return {
        "t": t,
        "src": source,
        "sport": ends[0],
        "dport": ends[1],
        "to_broker": int(out),
        "ip_len": 80,
        "tcp_payload": 28,
        "tcp_flags": DATA,
        "mqtt_types": kinds,
    }


def test_attacks_on_a_broker_are_put_under_each_clients_address(tmp_path: Path) -> None:
    folder = tmp_path / "network_flows" / "mqttset"
    for client in ("lock", "smoke"):
        rows = [
            mqtt(float(t), out=t % 2 == 0, source="192.168.0.180", kinds="3,12" if t % 2 else "") for t in range(10)
        ]
        save(folder / f"benign_{client}.parquet", columns(rows))
    for name in MQTT_ATTACKS:
        save(folder / f"attack_{name}.parquet", columns([mqtt(0.0, out=True, source="10.0.0.9", kinds="8")]))
    data = mqttset(tmp_path)
    assert data.constructed
    recordings = only(data)
    assert list(recordings) == ["lock", "smoke"]
    lock = recordings["lock"]
    assert lock.labels.tolist() == [0, 0, 1, 1, 1]
    assert {w.entity for w in lock.windows} == {HOST}, "neither the broker nor the host that attacked"
    assert sum(value(w, "mqtt_publishes") for w in lock.windows[:2]) == 5.0
    assert [value(w, "mqtt_subscribes") for w in lock.windows] == [0.0, 0.0, 1.0, 1.0, 1.0]
    rows[0]["mqtt_types"] = "16"
    save(folder / "benign_lock.parquet", columns(rows))
    with pytest.raises(PeerError, match=r"benign_lock\.parquet: found MQTT packet type '16', expected 0 to 15"):
        mqttset(tmp_path)


def mined(t: float, protocol: str, mac: str, out: bool = True) -> dict[str, Any]:
    return {"activity": "x", "t": t, "len": 114, "dir": 1 if out else -1, "protocol": protocol, "device_mac": mac}


def test_mining_is_of_other_machines_and_has_no_column_that_the_set_does_not_tell(tmp_path: Path) -> None:
    folder = tmp_path / "device_behaviour" / "cryptojacking"
    for name, label in MINING:
        rows = [
            mined(0.0, "DNS", f"m{label}"),
            mined(0.5, "TLSv1.3", f"m{label}"),
            mined(9.0, "QUIC", f"m{label}", False),
        ]
        save(folder / f"{name}.parquet", columns(rows))
    data = cryptojacking(tmp_path)
    (fleet,) = data.fleets
    assert fleet.schema.columns == MINING_KNOWN
    assert set(MINING_KNOWN) < set(NETWORK_FLOWS.columns)
    assert (fleet.schema.window_s, fleet.schema.history) == (NETWORK_FLOWS.window_s, NETWORK_FLOWS.history)
    (recording,) = fleet.recordings
    hosts = {
        label: {w.entity for w, mark in zip(recording.windows, recording.labels.tolist(), strict=True) if mark == label}
        for label in (0, 1)
    }
    assert hosts == {0: {"192.168.0.2"}, 1: {"192.168.0.3"}}
    queries = [float(w.values[MINING_KNOWN.index("dns_queries")]) for w in recording.windows]
    assert sum(queries) == len(MINING)
    first = recording.windows[0]
    assert float(first.values[MINING_KNOWN.index("tcp_share")]) == 0.5
    assert float(first.values[MINING_KNOWN.index("size_max_bytes")]) == 100.0
    save(folder / "interactive.parquet", columns([mined(0.0, "CDP", "m0")]))
    with pytest.raises(PeerError, match=r"interactive\.parquet: found protocols CDP"):
        cryptojacking(tmp_path)
