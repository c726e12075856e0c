"""The recordings that the demo replays: manifest and labels, checked before anything starts."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from vedette_schemas.errors import ConfigError

FORMAT: Final = 1
TIME_COLUMN: Final = "time_s"
SHIPPED: Final = Path(__file__).parent.parent / "recordings"
Source = Literal["network", "sensor"]


@dataclass(frozen=True, slots=True)
class Episode:
    """One labelled attack, as its runner wrote it down; times in epoch seconds of the recording."""

    gateway: str
    source: Source
    kind: str
    start_s: float
    end_s: float
    entity: str
    tool: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of a gateway.

    Attributes:
        path: the file.
        start_s: first record, epoch seconds of the recording.
        end_s: last record.
        benign_until_s: start of its first episode.
        columns: channels of a sensor file, without the time.
    """

    path: Path
    start_s: float
    end_s: float
    benign_until_s: float
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway's recordings."""

    id: str
    local_networks: tuple[str, ...]
    network: Recording
    sensor: Recording


@dataclass(frozen=True, slots=True)
class Recordings:
    """A complete set."""

    gateways: tuple[Gateway, ...]
    episodes: tuple[Episode, ...]


def load(folder: Path) -> Recordings:
    """Read a set of recordings and check every file's digest.

    Raises:
        ConfigError: a file is missing or differs from the manifest, or the manifest cannot be read.
    """
    manifest = _manifest(folder)
    try:
        gateways = tuple(
            Gateway(
                g["id"],
                tuple(g["local_networks"]),
                _recording(folder, g["network"]),
                _recording(folder, g["sensor"]),
            )
            for g in manifest["gateways"]
        )
        with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
            episodes = tuple(
                Episode(
                    r["gateway"],
                    _source(r["source"]),
                    r["kind"],
                    float(r["start_s"]),
                    float(r["end_s"]),
                    r["entity"],
                    r["tool"],
                )
                for r in csv.DictReader(file)
            )
    except (KeyError, ValueError, TypeError, OSError) as fault:
        raise ConfigError(
            f"{folder}: found a manifest or labels that cannot be read ({fault!r}); see its README.md"
        ) from fault
    return Recordings(gateways, episodes)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigError(
            f"{path}: cannot read ({fault.strerror}); expected a folder of recordings, "
            "made by bench/lab or shipped with Vedette: see --data"
        ) from fault
    except ValueError as fault:
        raise ConfigError(f"{path}: found no valid JSON ({fault})") from fault
    if manifest.get("format") != FORMAT:
        raise ConfigError(f"{path}: found format {manifest.get('format')!r}, expected {FORMAT}")
    return manifest


def _recording(folder: Path, entry: dict[str, Any]) -> Recording:
    path = folder / entry["file"]
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as fault:
        raise ConfigError(f"{path}: cannot read ({fault.strerror}); the manifest names it") from fault
    if found != entry["sha256"]:
        raise ConfigError(f"{path}: found sha256 {found[:16]}…, expected {entry['sha256'][:16]}…; restore the file")
    return Recording(
        path,
        float(entry["start_s"]),
        float(entry["end_s"]),
        float(entry["benign_until_s"]),
        tuple(column for column in entry.get("columns", ()) if column != TIME_COLUMN),
    )


def _source(text: str) -> Source:
    if text == "network":
        return "network"
    if text == "sensor":
        return "sensor"
    raise ValueError(f"source {text!r}, expected network or sensor")
