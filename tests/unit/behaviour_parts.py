"""A behaviour detector's settings and a host's made-up minutes, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vedette_core.learning.hashing import FeatureHasher
from vedette_device.settings import BehaviourSection

KEY = bytes(range(1, 33))
START_S = 1_700_000_040
"""A full minute."""
RATES = {"processes_new": 30.0, "packets_in": 900.0, "log_lines": 14.0, "topic.tank": 120.0}


def hasher(width: int = 64) -> FeatureHasher:
    return FeatureHasher(width, KEY)


def section(folder: Path, **changes: Any) -> BehaviourSection:
    key_file = folder / "hash.key"
    key_file.write_text(KEY.hex() + "\n")
    return BehaviourSection.model_validate({"source": "counts", "key_file": str(key_file), **changes})


def minute(rng: np.random.Generator) -> dict[str, int]:
    return {name: int(rng.poisson(rate)) for name, rate in RATES.items()} | {"process.mosquitto": 1}


def lines(index: int, counts: Mapping[str, float], offset_s: float = 30.0) -> str:
    """A minute's counts as JSON lines."""
    time_s = START_S + 60 * index + offset_s
    return "".join(json.dumps({"time_s": time_s, "name": n, "count": c}) + "\n" for n, c in counts.items())
