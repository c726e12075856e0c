"""The shipped set: manifest, labels and compressed files, as both halves of the lab write them."""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of the manifest's layout."""
LABEL_COLUMNS = ("gateway", "source", "kind", "start_s", "end_s", "entity", "attacker", "tool")
RECORDINGS = Path(__file__).resolve().parents[2] / "cli" / "vedette" / "recordings"
"""Where the set that goes into the wheel lies."""


@dataclass(frozen=True, slots=True)
class Label:
    """One attack episode, as known by whoever carried it out.

    Attributes:
        gateway: Identity of the gateway whose recording holds it.
        source: ``network`` or ``sensor``.
        kind: Kind of the attack.
        start_s: Start, epoch seconds.
        end_s: End, epoch seconds.
        entity: Address of the victim or of the compromised device; the channel's name for sensors.
        attacker: Who acted: an address, a device's name, or ``simulated``.
        tool: Program and arguments, or what was simulated.
    """

    gateway: str
    source: str
    kind: str
    start_s: float
    end_s: float
    entity: str
    attacker: str
    tool: str


def gateway_id(number: int) -> str:
    """Identity of a gateway: ``gw-01`` for 1."""
    return f"gw-{number:02d}"


def write_compressed(path: Path, content: bytes) -> str:
    """Writes ``content`` as an xz file.

    Args:
        path: File to write; folders are made.
        content: Bytes before compression.

    Returns:
        SHA-256 of the compressed file, hexadecimal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def update_manifest(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Merges one half's entries into the manifest, so that each half can be made without the other.

    Args:
        folder: The recordings' folder.
        entries: For each gateway the keys to set.
    """
    path = folder / "manifest.json"
    manifest: dict[str, Any] = {"format": FORMAT, "gateways": []}
    if path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
    known = {gateway["id"]: gateway for gateway in manifest["gateways"]}
    for gateway, keys in entries.items():
        known.setdefault(gateway, {"id": gateway}).update(keys)
    manifest["gateways"] = [known[gateway] for gateway in sorted(known)]
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def update_labels(folder: Path, source: str, labels: list[Label]) -> None:
    """Replaces all labels of one source.

    Args:
        folder: The recordings' folder.
        source: ``network`` or ``sensor``.
        labels: That source's labels.
    """
    path = folder / "labels.csv"
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] != source]
    for label in labels:
        times = {"start_s": f"{label.start_s:.3f}", "end_s": f"{label.end_s:.3f}"}
        rows.append({name: times.get(name) or str(getattr(label, name)) for name in LABEL_COLUMNS})
    rows.sort(key=lambda row: (row["source"], row["gateway"], float(row["start_s"])))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LABEL_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
