"""Streams from settings: each kind of source, and going on after a kill without losing or halving a window."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import capture_writing as w
import numpy as np
import pytest

from vedette_device.features.windows import Window
from vedette_device.flow_stream import QUIET_S, FlowLogStream
from vedette_device.resume_points import POINTS_MAX, STEP_BACK_S, ResumePoints
from vedette_device.settings import NetworkSection, SensorSection
from vedette_device.streams import open_stream
from vedette_device.window_stream import WindowStream
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS

NS = 1_000_000_000
T0 = 1_700_000_040
HEADER = "ts,td,sa,da,sp,dp,pr,ipkt,ibyt,opkt,obyt\n"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a poll waits for is of no interest here."""
    for module in ("followed_log", "streams"):
        monkeypatch.setattr(f"vedette_device.{module}.POLL_S", 0.0)


def network(path: Path, source: str, **changes: Any) -> NetworkSection:
    plain = {"source": source, "path": str(path), "local_networks": ["192.168.1.0/24"], **changes}
    return NetworkSection.model_validate(plain)


def sensor(path: Path, source: str, **changes: Any) -> SensorSection:
    plain = {"source": source, "path": str(path), "channels": ["a"], "period_s": 10.0, **changes}
    return SensorSection.model_validate(plain)


def append(path: Path, data: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def flow_line(at_s: float, device: int = 5) -> str:
    return f"{T0 + at_s},0,192.168.1.{device},203.0.113.7,40000,443,6,2,100,1,50\n"


def drain(stream: WindowStream, reads: int = 12) -> list[Window]:
    """All windows of a recording; of a growing file those of some reads."""

    async def run() -> list[Window]:
        windows: list[Window] = []
        for _ in range(10_000 if stream.recorded else reads):
            batch = await stream.read()
            if batch is None:
                break
            windows += batch
        return windows

    return asyncio.run(run())


def once(stream: WindowStream) -> list[Window]:
    async def run() -> list[Window]:
        return await stream.read() or []

    return asyncio.run(run())


def told(windows: list[Window]) -> dict[tuple[str, float], list[float]]:
    return {(window.entity, window.start_s): window.values.tolist() for window in windows}


LOGS: dict[str, str] = {
    "netflow": HEADER + flow_line(1) + flow_line(130),
    "zeek": "".join(
        json.dumps({"ts": T0 + t, "id.orig_h": "192.168.1.5", "id.resp_h": "203.0.113.7", "proto": "tcp"}) + "\n"
        for t in (1, 130)
    ),
    "eve": "".join(
        json.dumps(
            {
                "event_type": "flow",
                "src_ip": "192.168.1.5",
                "dest_ip": "203.0.113.7",
                "proto": "TCP",
                "flow": {"start": f"2023-11-14T22:{14 + m}:01+0000", "age": 0},
            }
        )
        + "\n"
        for m in (0, 2)
    ),
}


@pytest.mark.parametrize("source", list(LOGS))
def test_a_finished_log_is_a_recording(tmp_path: Path, source: str) -> None:
    path = tmp_path / "log"
    path.write_text(LOGS[source])
    stream = open_stream(network(path, source, follow=False))
    assert stream.recorded
    assert stream.schema is FLOW_LOGS
    windows = drain(stream)
    assert [(win.entity, win.start_s - T0) for win in windows] == [("192.168.1.5", t) for t in (0, 60, 120)]
    assert stream.counters()["flows"] == 2
    assert stream.counters()["window_zero_windows"] == 1
    assert stream.position() is None
    asyncio.run(stream.close())


def test_a_log_of_lines_that_are_no_flows_is_read_on_at_once(tmp_path: Path) -> None:
    path = tmp_path / "eve.json"
    path.write_text('{"event_type": "dns"}\n' * 5_000 + LOGS["eve"])
    stream = open_stream(network(path, "eve"))
    for _ in range(6):
        once(stream)
    assert stream.counters()["flows"] == 2


def test_our_clock_closes_windows_of_a_log_that_is_written_now(tmp_path: Path) -> None:
    path = tmp_path / "flows.csv"
    path.write_text(HEADER + flow_line(1))
    now = [T0 + 100.0]
    stream = FlowLogStream(network(path, "netflow"), clock=lambda: now[0])
    assert drain(stream, 3) == []
    now[0] = T0 + 60 + 75 + QUIET_S
    assert [win.start_s - T0 for win in drain(stream, 2)] == [0]
    now[0] = T0 + 90_000.0  # a clock that jumped, or a log of another time: not ours to close
    assert drain(stream, 2) == []


@pytest.mark.parametrize("kill_after", range(1, 9))
@pytest.mark.parametrize("rotated", [False, True])
def test_a_killed_node_goes_on_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int, rotated: bool
) -> None:
    monkeypatch.setattr("vedette_device.followed_log.LINES_A_READ", 3)
    lines = [flow_line(9.0 * k, 5 + k % 2) for k in range(40)]
    whole = tmp_path / "whole.csv"
    whole.write_text(HEADER + "".join(lines))
    expected = told(drain(open_stream(network(whole, "netflow", follow=False))))
    path = tmp_path / "flows.csv"
    path.write_text(HEADER + "".join(lines[:30]))
    stream = open_stream(network(path, "netflow"))
    before: list[Window] = []
    for _ in range(kill_after):
        taken = before
        before = [*before, *once(stream)]
    stored = stream.position()  # nothing else is left; the last read's windows were never taken over
    asyncio.run(stream.close())
    if rotated:
        path.rename(tmp_path / "flows.csv.1")
        path.write_text(HEADER + "".join(lines[30:]))
    else:
        append(path, "".join(lines[30:]))
    after = drain(open_stream(network(path, "netflow"), stored), 30)
    seen = {win.end_s for win in taken}
    fresh = [win for win in after if win.end_s not in seen]  # the detector leaves out what it saw
    # A growing log keeps its last windows open.
    closed = {key: row for key, row in expected.items() if key[1] < T0 + 240}
    found = {key: row for key, row in told(taken + fresh).items() if key[1] < T0 + 240}
    assert found == closed


def packets(first: int, last: int) -> list[w.Record]:
    frame = w.ethernet(w.ipv4("192.168.1.5", "203.0.113.7", 17, w.udp(40_000, 9_999, b"x" * 20)))
    return [w.Record((T0 + k) * NS, frame) for k in range(first, last)]


@pytest.mark.parametrize("kill_after", [1, 2, 5, 9])
def test_a_killed_node_goes_on_in_its_growing_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    monkeypatch.setattr("vedette_device.streams.PACKETS_A_READ", 4)
    header = len(w.pcap([]))
    whole, path = tmp_path / "whole.pcap", tmp_path / "a.pcap"
    whole.write_bytes(w.pcap(packets(0, 60)))
    expected = told(drain(open_stream(network(whole, "file"))))
    path.write_bytes(w.pcap(packets(0, 45)))
    stream = open_stream(network(path, "follow"))
    assert stream.schema is NETWORK_FLOWS
    windows: list[Window] = []
    for _ in range(kill_after):
        taken = windows
        windows = [*windows, *once(stream)]
    stored = stream.position()
    asyncio.run(stream.close())
    append(path, w.pcap(packets(45, 60))[header:])
    again = open_stream(network(path, "follow"), stored)
    after = drain(again, 20)
    seen = {win.end_s for win in taken}
    found = told(taken + [win for win in after if win.end_s not in seen])
    columns = [i for i, name in enumerate(NETWORK_FLOWS.columns) if name != "flows_new"]
    closed = {key: row for key, row in expected.items() if key[1] < T0 + 55}
    # Which flows were seen lately is not kept: after a restart they are new once more.
    assert {k: [r[i] for i in columns] for k, r in found.items()} == {
        k: [r[i] for i in columns] for k, r in closed.items()
    }
    if kill_after == 9:
        assert again.counters()["packets"] < 45


def test_a_position_of_another_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(w.pcap(packets(0, 30)))
    first = open_stream(network(path, "follow"))
    drain(first, 5)
    stored = first.position()
    path.write_bytes(w.pcap(packets(1_000, 1_030)))
    stream = open_stream(network(path, "follow"), stored)
    assert drain(stream, 5)[0].start_s == T0 + 1_000
    for damaged in (b"", b"\xff", b"{}", b"[1]"):
        assert drain(open_stream(network(path, "follow"), damaged), 5)[0].start_s == T0 + 1_000
        log = tmp_path / "flows.csv"
        log.write_text(HEADER + flow_line(1) + flow_line(200))
        assert drain(open_stream(network(log, "netflow"), damaged), 3)[0].start_s == T0
        rows = tmp_path / "rows.csv"
        rows.write_text("time_s,a\n10,1\n20,2\n")
        assert len(drain(open_stream(sensor(rows, "file", follow=True), damaged), 3)) == 1


@pytest.mark.parametrize("source", ["file", "jsonl"])
@pytest.mark.parametrize("kill_after", [1, 2, 3, 6])
def test_a_killed_node_goes_on_in_its_growing_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kill_after: int
) -> None:
    monkeypatch.setattr("vedette_device.streams.ROWS_A_READ", 3)
    rows = [f"{10 * k},{k * k}\n" if source == "file" else f'{{"time_s": {10 * k}, "a": {k * k}}}\n' for k in range(20)]
    head = "time_s,a\n" if source == "file" else ""
    path = tmp_path / "rows"
    path.write_text(head + "".join(rows[:15]))
    stream = open_stream(sensor(path, source, follow=True))
    assert not stream.recorded
    windows: list[Window] = []
    for _ in range(kill_after):
        taken = windows
        windows = [*windows, *once(stream)]
    stored = stream.position()
    asyncio.run(stream.close())
    append(path, "".join(rows[15:]))
    after = drain(open_stream(sensor(path, source, follow=True), stored), 12)
    seen = {win.end_s for win in taken}
    found = taken + [win for win in after if win.end_s not in seen]
    assert [(win.start_s, win.end_s, win.values.tolist()) for win in found] == [
        (10.0 * (k - 1), 10.0 * k, [float(k * k), float(2 * k - 1)]) for k in range(1, 20)
    ]


@pytest.mark.parametrize("source", ["zeek", "eve", "netflow", "follow", "file"])
def test_a_source_without_its_path_is_the_operators(source: str) -> None:
    section = NetworkSection.model_validate({"source": source, "local_networks": ["192.168.1.0/24"]})
    with pytest.raises(ConfigError, match=r"set \[network\] path"):
        open_stream(section)


def window(end_s: float) -> Window:
    return Window("e", end_s - 60, end_s, np.zeros(24, np.float32))


def test_resume_points_are_bounded_and_follow_a_clock_that_was_set_back() -> None:
    points = ResumePoints()
    for k in range(3 * POINTS_MAX):
        points.before_read(lambda k=k: str(k).encode())  # type: ignore[misc]
        points.after_read(float(k), [])
    assert points.best() is None
    assert len(points._points) == POINTS_MAX
    points.after_read(1_000.0, [window(100.0)])
    points.before_read(lambda: b"x")
    best = points.best()
    assert best is not None
    assert int(best) == 100  # what was read before it ended at 99, in a window that was taken over
    points.after_read(1_000.0 - STEP_BACK_S - 1, [])
    points.before_read(lambda: b"behind the step")
    points.after_read(1_000.0 - STEP_BACK_S + 500, [window(1_000.0 - STEP_BACK_S + 60)])
    points.before_read(lambda: b"later")
    assert points.best() == b"behind the step"
