"""A host's behaviour as a stream: what is opened, what a minute holds, what a restart and a late look cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import behaviour_parts as b
import numpy as np
import pytest

from vedette_core.learning.hashing import FeatureHasher
from vedette_core.learning.network import build_network
from vedette_core.learning.presets import task_spec
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.behaviour_stream import LATE_S, QUIET_S, CountFileStream, LiveBehaviourStream, read_key
from vedette_device.features.windows import Window
from vedette_device.inference import LoadedModel, NumpyBackend
from vedette_device.pipeline import Pipeline
from vedette_device.settings import BehaviourSection, DeviceSettings
from vedette_device.sources.counts import NamedCounts
from vedette_device.sources.errors import SourceError
from vedette_device.sources.host import HostBehaviour
from vedette_device.streams import open_stream
from vedette_device.window_stream import WindowStream
from vedette_schemas.errors import ConfigError, PeerError

MINUTE_S = 60.0
T0 = float(b.START_S)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a poll waits for is of no interest here."""
    for module in ("behaviour_stream", "followed_log"):
        monkeypatch.setattr(f"vedette_device.{module}.POLL_S", 0.0)


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = T0 + 12.0

    def __call__(self) -> float:
        return self.now_s


class Host(HostBehaviour):
    """A host on which nothing but ten processes is known; its first look has nothing to compare with."""

    def __init__(self) -> None:
        self.looks: list[float] = []

    def look(self, now_s: float) -> NamedCounts | None:
        self.looks.append(now_s)
        return NamedCounts(self.looks[-2], now_s, {"processes": 10.0, "shared": 1.0}) if len(self.looks) > 1 else None


def read(stream: WindowStream, times: int = 4) -> list[Window]:
    async def run() -> list[Window]:
        found: list[Window] = []
        for _ in range(times):
            found += await stream.read() or []
        return found

    return asyncio.run(run())


def drain(stream: WindowStream) -> list[Window]:
    async def run() -> list[Window]:
        found: list[Window] = []
        while (windows := await stream.read()) is not None:
            found += windows
        return found

    return asyncio.run(run())


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def row(counts: dict[str, int]) -> list[float]:
    values: list[float] = b.hasher().row(counts).astype(np.float32).tolist()
    return values


# --- a file of counts ---


def test_a_finished_file_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text(b.lines(0, {"a": 2, "b": 1}) + b.lines(0, {"a": 1}) + "no\n" + b.lines(3, {"a": 5}))
    stream = open_stream(b.section(tmp_path, counts=str(path), follow=False, entity="gate"))
    assert isinstance(stream, CountFileStream)
    assert stream.recorded
    assert stream.schema == b.hasher().schema
    windows = drain(stream)
    assert [(w.entity, w.start_s - T0, w.values.tolist()) for w in windows] == [
        ("gate", 0.0, row({"a": 3, "b": 1})),
        ("gate", 180.0, row({"a": 5})),
    ]
    assert stream.position() is None
    found = stream.counters()
    assert (found["counts"], found["not_json"], found["window_windows"]) == (4, 1, 2)


def test_a_growing_file_loses_no_minute_and_halves_none_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text("")
    section = b.section(tmp_path, counts=str(path))
    rng = np.random.default_rng(1)
    minutes = [b.minute(rng) for _ in range(30)]
    stream, position, seen = open_stream(section), None, dict[float, list[float]]()
    for i, counts in enumerate(minutes):
        text = b.lines(i, counts)
        half = text.index("\n") + 1
        append(path, text[:half])
        seen = {w.end_s: w.values.tolist() for w in read(stream, 2)} | seen
        if i % 4 == 3:  # a power cut in the middle of a minute, at the position that was saved then
            position = stream.position()
            stream = open_stream(section, position)
        append(path, text[half:])
        # What comes a second time is left out by the detector: it may be half of a minute.
        seen = {w.end_s: w.values.tolist() for w in read(stream, 2)} | seen
    assert seen == {T0 + 60 * (i + 1): row(counts) for i, counts in enumerate(minutes[:-1])}


def test_a_file_that_falls_silent_is_closed_by_our_clock(tmp_path: Path) -> None:
    path, clock = tmp_path / "counts.jsonl", Clock()
    path.write_text(b.lines(0, {"a": 1}))
    stream = CountFileStream(b.section(tmp_path, counts=str(path)), clock=clock)
    assert read(stream) == []
    clock.now_s = T0 + MINUTE_S + QUIET_S - 0.1
    assert read(stream) == []
    clock.now_s = T0 + MINUTE_S + QUIET_S
    assert [w.end_s for w in read(stream)] == [T0 + MINUTE_S]


def test_a_position_that_is_no_longer_there_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    path.write_text(b.lines(0, {"a": 1}) + b.lines(1, {"a": 1}))
    stream = open_stream(b.section(tmp_path, counts=str(path)), b"not a position")
    assert [w.end_s for w in read(stream)] == [T0 + MINUTE_S]


# --- live ---


def live(folder: Path, clock: Clock, **changes: Any) -> tuple[LiveBehaviourStream, Host]:
    host = Host()
    return LiveBehaviourStream(b.section(folder, source="live", **changes), host=host, clock=clock), host


def at(stream: WindowStream, clock: Clock, now_s: float) -> list[Window]:
    clock.now_s = T0 + now_s
    return read(stream)


def test_a_minute_holds_host_lines_and_counts(tmp_path: Path) -> None:
    logs, counts, clock = tmp_path / "syslog", tmp_path / "counts.jsonl", Clock()
    logs.write_text("old: line\n" * 3_000)
    counts.write_text(b.lines(-99, {"old": 5}))
    stream, host = live(tmp_path, clock, logs=[str(logs)], counts=str(counts))
    assert not stream.recorded
    assert read(stream) == []
    assert at(stream, clock, 60.2) == []  # the first look
    append(logs, "cron: job 17 done\n" * 4)
    append(counts, '{"name": "shared", "count": 2}\n{"name": "topic.tank", "count": 7}\n' + b.lines(-50, {"x": 1}))
    assert at(stream, clock, 90.0) == []
    (window,) = at(stream, clock, 120.1)
    assert (window.entity, window.start_s, window.end_s) == ("host", T0 + 60, T0 + 120)
    kind = next(name for name in held(stream, window) if name.startswith("log_kind"))
    expected = {"processes": 10, "shared": 3, "topic.tank": 7, "x": 1, "log_lines": 4, "log_errors": 0, kind: 4}
    assert held(stream, window) == expected
    assert window.values.tolist() == row(expected)
    (after,) = at(stream, clock, 180.0)
    assert held(stream, after) == {"processes": 10, "shared": 1, "log_lines": 0, "log_errors": 0}
    assert host.looks == [T0 + 60.2, T0 + 120.1, T0 + 180.0]
    asyncio.run(stream.close())


def held(stream: LiveBehaviourStream, window: Window) -> dict[str, int]:
    return dict(stream.names._waiting[window.end_s])


def test_a_minute_that_was_not_watched_whole_gives_no_window(tmp_path: Path) -> None:
    clock = Clock()
    stream, _ = live(tmp_path, clock)
    assert read(stream) == []
    assert at(stream, clock, 60.0) == []
    assert len(at(stream, clock, 120.0)) == 1
    assert at(stream, clock, 180.0 + LATE_S + 0.1) == []  # held up
    assert at(stream, clock, 240.0) == []  # begun too late
    assert len(at(stream, clock, 300.0)) == 1
    assert at(stream, clock, 3_000.0) == []  # suspended
    assert len(at(stream, clock, 3_060.0)) == 1
    assert at(stream, clock, 600.0) == []  # the clock was set back
    assert at(stream, clock, 660.0) == []
    assert len(at(stream, clock, 720.0)) == 1
    assert stream.counters()["minutes_unwatched"] == 5


def test_this_host_itself_can_be_looked_at(tmp_path: Path) -> None:
    clock = Clock()
    stream = LiveBehaviourStream(b.section(tmp_path, source="live"), clock=clock)
    assert read(stream) == []
    assert at(stream, clock, 60.0) == []
    (window,) = at(stream, clock, 120.0)
    assert held(stream, window)["processes"] >= 1
    assert np.isfinite(window.values).all()
    assert np.count_nonzero(window.values) > 5


# --- what cannot be ---


def test_settings_that_give_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="counts, expected one"):
        open_stream(b.section(tmp_path))
    with pytest.raises(ConfigError, match="host = false"):
        open_stream(b.section(tmp_path, source="live", host=False))
    with pytest.raises(SourceError):
        open_stream(b.section(tmp_path, source="live", logs=[str(tmp_path / "absent")]))
    with pytest.raises(SourceError):
        open_stream(b.section(tmp_path, counts=str(tmp_path / "absent")))


@pytest.mark.parametrize("text", ["", "00" * 15, "00" * 65, "xy" * 16, "0" * 33, "é" * 32])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hash.key"
    path.write_text(text)
    with pytest.raises(ConfigError, match="hexadecimal digits") as refused:
        read_key(path)
    assert not text or text not in str(refused.value)
    with pytest.raises(ConfigError, match="key_file"):
        read_key(tmp_path / "absent")


# --- a pipeline ---


def made(folder: Path, section: BehaviourSection) -> Pipeline:
    settings = DeviceSettings.model_validate(
        {
            "site": "site",
            "device": "gw-1",
            "state_dir": str(folder),
            "identity": {"bundle": str(folder), "trust_root": str(folder / "root.json")},
            "behaviour": section.model_dump(mode="json"),
        }
    )
    assert [type(s) for s in settings.detectors()] == [BehaviourSection]
    return Pipeline(settings, section, StateStore(Database(folder / "s.db")), Metrics(DEVICE_METRICS))


async def nothing(effects: object) -> None:
    """Carries nothing out."""


def test_a_pipeline_learns_refuses_another_keys_model_and_keeps_the_names_over_a_restart(tmp_path: Path) -> None:
    path, rng = tmp_path / "counts.jsonl", np.random.default_rng(3)
    path.write_text("".join(b.lines(i, b.minute(rng)) for i in range(80)))
    section = b.section(
        tmp_path,
        counts=str(path),
        follow=False,
        training_windows=50,
        calibration_windows=20,
        replay={"speed": 0},
    )
    pipeline = made(tmp_path, section)
    assert pipeline.use_case == "behaviour"
    asyncio.run(pipeline.run(nothing))
    assert pipeline.detector.is_calibratable
    assert pipeline.report().task == "behaviour"
    network = build_network(task_spec(pipeline.schema))
    backend = NumpyBackend(network, network.initial_weights(rng))
    other = FeatureHasher(64, bytes(32))
    with pytest.raises(PeerError, match=f"lacks columns h00.{b.hasher().mark}.* has unknown columns h00.{other.mark}"):
        pipeline.install(LoadedModel(backend, other.schema, "behaviour", "weights", "0" * 64), 1)
    assert pipeline.detector.model is None
    pipeline.install(LoadedModel(backend, pipeline.schema, "behaviour", "weights", "0" * 64), 1)
    assert pipeline.detector.phase == "armed"
    again = made(tmp_path, section)
    assert again._names is not None
    assert pipeline._names is not None
    assert again._names.to_state() == pipeline._names.to_state()
    assert len(again._names) == len(b.RATES) + 1
