"""Flow logs of real devices: IoT-23 as Zeek would write it, NF-BoT-IoT-v2 as a NetFlow table.

The recordings are not part of the project; ``VEDETTE_DATA`` says where they are.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.features.windows import Window
from vedette_device.sources.flow_log import FlowLog
from vedette_device.sources.flow_record import FLOW_REASONS, FlowRecord, address_number
from vedette_device.sources.netflow_csv import NetflowCsvParser
from vedette_device.sources.zeek import ZeekParser
from vedette_schemas.features import FLOW_LOGS

DATA = Path(os.environ.get("VEDETTE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "network_flows"
IOT23 = sorted((DATA / "iot23").glob("*.csv.gz"))
NF_BOT = sorted((DATA / "nf_bot_iot_v2").glob("*.csv.gz"))
COUNTS = ("orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes")

pytestmark = pytest.mark.skipif(not IOT23 or not NF_BOT, reason=f"no recordings in {DATA}; set VEDETTE_DATA")


def rows_of(path: Path) -> list[dict[str, str]]:
    """A recording's flows in the order in which Zeek writes them: that of their ends."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(rows, key=lambda row: float(row["ts"]) + float(row["duration"] or 0))


def as_tsv(rows: Sequence[dict[str, str]]) -> str:
    names = [name for name in rows[0] if name not in ("device", "label_bin")]
    head = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    lines = ["\t".join(row[name] or "-" for name in names) for row in rows]
    return head + "#fields\t" + "\t".join(names) + "\n" + "\n".join(lines) + "\n#close\t2018-10-02-17-20-00\n"


def as_json(rows: Sequence[dict[str, str]]) -> str:
    numbers = {"ts": float, "duration": float, "id.orig_p": int, "id.resp_p": int} | dict.fromkeys(COUNTS, int)
    return "".join(
        json.dumps({name: numbers.get(name, str)(text) for name, text in row.items() if text}) + "\n" for row in rows
    )


def read_all(source: FlowLog) -> list[FlowRecord]:
    flows: list[FlowRecord] = []
    while (batch := source.read()) is not None:
        flows += batch
    return flows


def windows_of(flows: Sequence[FlowRecord]) -> tuple[list[Window], FlowLogWindower]:
    windower = FlowLogWindower()
    return windower.push(flows) + windower.flush(), windower


@pytest.mark.parametrize("path", IOT23, ids=lambda path: path.name.partition(".")[0])
def test_every_flow_of_a_zeek_log_is_read_and_counted(path: Path, tmp_path: Path) -> None:
    rows = rows_of(path)
    (tmp_path / "conn.log").write_text(as_tsv(rows))
    (tmp_path / "conn.json").write_text(as_json(rows))
    source = FlowLog(tmp_path / "conn.log", ZeekParser)
    flows = read_all(source)
    assert read_all(FlowLog(tmp_path / "conn.json", ZeekParser)) == flows
    assert len(flows) == len(rows)
    assert not [name for name in FLOW_REASONS if source.counters()[name]]
    told = [sum(int(row[name]) for row in rows) for name in COUNTS]
    assert told == [
        sum(flow.originator_packets for flow in flows),
        sum(flow.originator_bytes for flow in flows),
        sum(flow.responder_packets for flow in flows),
        sum(flow.responder_bytes for flow in flows),
    ]

    windows, windower = windows_of(flows)
    counters = windower.counters()
    assert counters["stale"] == counters["window_full"] == counters["entity_limit"] == counters["late"] == 0
    entities = {window.entity for window in windows}
    table = np.stack([window.values for window in windows]).astype(np.float64)
    assert np.isfinite(table).all()
    ends = Counter(flow.originator for flow in flows)
    began = sum(ends[address_number(entity)] for entity in entities)
    assert table[:, FLOW_LOGS.index("flows_out")].sum() == began
    for name in [column for column in FLOW_LOGS.columns if column.endswith("_share")]:
        assert ((table[:, FLOW_LOGS.index(name)] >= 0) & (table[:, FLOW_LOGS.index(name)] <= 1)).all()
    assert max(Counter((window.entity, window.start_s) for window in windows).values()) == 1


def test_a_log_that_is_rotated_while_it_is_followed_gives_the_same_windows(tmp_path: Path) -> None:
    rows = rows_of(next(path for path in IOT23 if "echo" in path.name))
    (tmp_path / "whole.log").write_text(as_tsv(rows))
    expected, _ = windows_of(read_all(FlowLog(tmp_path / "whole.log", ZeekParser)))
    path, windower, found = tmp_path / "conn.log", FlowLogWindower(), []
    thirds = [rows[at : at + 500] for at in range(0, len(rows), 500)]
    path.write_text(as_tsv(thirds[0]))
    source = FlowLog(path, ZeekParser, follow=True)
    for number, third in enumerate(thirds):
        if number:
            path.rename(tmp_path / f"conn.{number}.log")
            path.write_text(as_tsv(third))
        flows = source.read(100)
        if number == 1:  # a restart in the middle of the second file
            position = source.position()
            source.close()
            source = FlowLog(path, ZeekParser, follow=True, position=position)
        while flows:
            found += windower.push(flows)
            flows = source.read(100)
            if not flows:
                flows = source.read(100)  # behind the last line of a rotated file comes the next one
    found += windower.flush()
    assert source.counters()["rotations"] == len(thirds) - 2  # one more was before the restart
    assert [(w.entity, w.start_s, w.values.tolist()) for w in found] == [
        (w.entity, w.start_s, w.values.tolist()) for w in expected
    ]


@pytest.mark.parametrize("path", NF_BOT, ids=lambda path: path.name.partition(".")[0])
def test_every_flow_of_a_netflow_table_is_read(path: Path) -> None:
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    source = FlowLog(path, lambda: NetflowCsvParser(untimed=True))
    flows = read_all(source)
    refused = {name: n for name in FLOW_REASONS if (n := source.counters()[name])}
    assert len(flows) + sum(refused.values()) == len(rows)
    assert refused == {}
    for names, sums in (
        (("IN_BYTES", "OUT_BYTES"), sum(flow.originator_bytes + flow.responder_bytes for flow in flows)),
        (("IN_PKTS", "OUT_PKTS"), sum(flow.originator_packets + flow.responder_packets for flow in flows)),
    ):
        assert sums == sum(int(float(row[name])) for row in rows for name in names)
