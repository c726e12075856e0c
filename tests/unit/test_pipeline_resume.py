"""A detector on a growing log is killed: with what its store held it goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vedette_core.machine import Effect
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.features import Window
from vedette_device.pipeline import Pipeline
from vedette_device.settings import DeviceSettings, IdentitySection, NetworkSection

T0 = 1_700_000_040
HEADER = "ts,td,sa,da,sp,dp,pr,ipkt,ibyt,opkt,obyt\n"
LINES = [f"{T0 + 11 * k},0,192.168.1.{5 + k % 3},203.0.113.{k % 9},40000,443,6,2,{k},1,50\n" for k in range(300)]


def made(log: Path, state: Path) -> Pipeline:
    network = NetworkSection(source="netflow", path=log, local_networks=("192.168.1.0/24",), training_windows=10_000)
    identity = IdentitySection(bundle=state, trust_root=state / "root.json")
    settings = DeviceSettings(site="site", device="gw-1", state_dir=state, identity=identity, network=network)
    return Pipeline(settings, network, StateStore(Database(state / "s.db")), Metrics(DEVICE_METRICS))


async def nothing(effects: Sequence[Effect]) -> None:
    """Carries nothing out."""


def ends_when_idle(pipeline: Pipeline, at_read: int = 0, then: Callable[[], object] = int) -> None:
    """Let the pipeline end where its log has nothing more, and do something before one of its reads."""
    stream = pipeline._stream
    read, reads, seen = stream.read, [0], [0, 0]

    async def wrapped() -> list[Window] | None:
        reads[0] += 1
        if reads[0] == at_read:
            then()
        windows = await read()
        lines = stream.counters()["lines"]
        seen[:] = [lines, seen[1] + 1 if lines == seen[0] else 0]
        return None if seen[1] >= 3 else windows

    stream.read = wrapped  # type: ignore[method-assign]


def learnt(pipeline: Pipeline) -> list[tuple[str, float, list[float]]]:
    """What the detector was given, window by window; which device comes first in one is not kept over a restart."""
    return sorted((w.entity, w.end_s, w.values.tolist()) for w in pipeline.detector._learning)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("at_read", [1, 2, 5, 13, 25])
def test_a_kill_costs_no_window_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_read: int, rotated: bool
) -> None:
    monkeypatch.setattr("vedette_device.followed_log.LINES_A_READ", 7)
    monkeypatch.setattr("vedette_device.followed_log.POLL_S", 0.0)
    for name in ("whole", "first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole.csv").write_text(HEADER + "".join(LINES))
    log = tmp_path / "flows.csv"
    log.write_text(HEADER + "".join(LINES[:200]))
    whole = made(tmp_path / "whole.csv", tmp_path / "whole")
    ends_when_idle(whole)
    asyncio.run(whole.run(nothing))

    first = made(log, tmp_path / "first")

    def disk_of_this_moment() -> None:
        first.save()
        for part in (tmp_path / "first").iterdir():
            shutil.copy(part, tmp_path / "second")

    ends_when_idle(first, at_read, disk_of_this_moment)
    asyncio.run(first.run(nothing))  # what it does behind that moment is lost with it
    if rotated:
        log.rename(tmp_path / "flows.csv.1")
    with log.open("a") as file:
        file.write((HEADER if rotated else "") + "".join(LINES[200:]))
    second = made(log, tmp_path / "second")
    ends_when_idle(second)
    asyncio.run(second.run(nothing))
    assert learnt(second) == learnt(whole)
    assert len(learnt(whole)) > 100
    if at_read > 10:
        assert second._stream.counters()["flows"] < len(LINES) - 7 * (at_read - 8)


def test_a_state_without_a_log_position_reads_from_the_start_and_learns_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette_device.followed_log.POLL_S", 0.0)
    log = tmp_path / "flows.csv"
    log.write_text(HEADER + "".join(LINES))
    first = made(log, tmp_path)
    ends_when_idle(first)
    asyncio.run(first.run(nothing))
    first._store.put("source/network", None)
    second = made(log, tmp_path)
    ends_when_idle(second)
    asyncio.run(second.run(nothing))
    assert learnt(second) == learnt(first)
    assert second.detector.refused["stale"] == len(learnt(first))
