"""The recordings that Vedette ships, as sets to evaluate: what `vedette demo` replays, with the lab's own labels.

They are ours, small and simulated in part: for them alone it is known which channels were forged, so that reasons can
be checked.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vedette.demo.recordings import SHIPPED, Episode, Gateway, load
from vedette.evaluation.datasets import DataSet, Fleet, Loader, Recording
from vedette.evaluation.labelled_tables import Float64, sensor_recording
from vedette_device.features.network import NetworkWindower
from vedette_device.features.windows import Window
from vedette_device.sources.capture_file import CaptureFile
from vedette_schemas.features import DIFFERENCE_SUFFIX, NETWORK_FLOWS, FeatureSchema

PERIOD_S: Final = 30.0
FORGED: Final = "simulated: "
"""What the labels begin with where channels were forged; their names follow, joined by ``+``."""


def tanks(_: Path) -> DataSet:
    """Eight simulated water tanks, a reading every 30 s, 32 tampering cases whose channels are known."""
    recordings: list[Recording] = []
    schema: FeatureSchema | None = None
    shipped = load(SHIPPED)
    for gateway in shipped.gateways:
        episodes = [e for e in shipped.episodes if (e.gateway, e.source) == (gateway.id, "sensor")]
        schema, recording = _tank(gateway, episodes)
        recordings.append(recording)
    assert schema is not None
    notes = ("simulated by the lab; shipped; what is forged is known",)
    return DataSet("tanks", "sensor", (Fleet("tanks", schema, tuple(recordings)),), notes=notes)


def lab(_: Path) -> DataSet:
    """Captures of eight lab gateways: real programs as devices, real tools as attackers, 32 episodes."""
    shipped = load(SHIPPED)
    recordings = [
        _captured(gateway, [e for e in shipped.episodes if (e.gateway, e.source) == (gateway.id, "network")])
        for gateway in shipped.gateways
    ]
    notes = (
        "the lab's own; shipped; regular traffic and plain attacks",
        "a window of the victim or of the compromised device is anomalous; others of that time count as neither",
    )
    return DataSet("lab", "network", (Fleet("lab", NETWORK_FLOWS, tuple(recordings)),), notes=notes)


def _tank(gateway: Gateway, episodes: Sequence[Episode]) -> tuple[FeatureSchema, Recording]:
    channels = gateway.sensor.columns
    with lzma.open(gateway.sensor.path, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times: Float64 = np.array([float(row["time_s"]) for row in rows])
    values: Float64 = np.array([[float(row[name]) for name in channels] for row in rows])
    labels = np.zeros(len(rows), np.int8)
    for episode in episodes:
        labels[(times >= episode.start_s) & (times < episode.end_s)] = 1
    schema, recording = sensor_recording(gateway.id, channels, values, labels, time_s=times, period_s=PERIOD_S)
    forged = [(e.start_s, e.end_s, forged_columns(e.tool)) for e in episodes]
    truth = tuple(
        next((columns for start_s, end_s, columns in forged if start_s <= w.end_s < end_s), frozenset())
        for w in recording.windows
    )
    return schema, Recording(recording.device, recording.windows, recording.labels, truth)


def forged_columns(tool: str) -> frozenset[str]:
    """Columns that a tampering case touches: the forged channels and their differences."""
    names = tool.removeprefix(FORGED).split(" ", 1)[0].split("+") if tool.startswith(FORGED) else []
    return frozenset(name + suffix for name in names for suffix in ("", DIFFERENCE_SUFFIX))


def _captured(gateway: Gateway, episodes: Sequence[Episode]) -> Recording:
    source, windower = CaptureFile(gateway.network.path), NetworkWindower(gateway.local_networks)
    windows: list[Window] = []
    while (batch := source.read()) is not None:
        windows += windower.push(batch)
    windows = sorted([*windows, *windower.flush()], key=lambda w: w.end_s)
    return Recording(gateway.id, tuple(windows), np.array([_label(w, episodes) for w in windows], np.int8))


def _label(window: Window, episodes: Sequence[Episode]) -> int:
    during = [e for e in episodes if e.start_s < window.end_s and window.start_s < e.end_s]
    return 0 if not during else 1 if any(e.entity == window.entity for e in during) else -1


SENSOR: Final[Mapping[str, Loader]] = {"tanks": tanks}
NETWORK: Final[Mapping[str, Loader]] = {"lab": lab}
