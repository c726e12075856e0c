"""Scenarios are told with the simulator's fleet, on a network where nothing goes wrong but what they make go wrong."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))
