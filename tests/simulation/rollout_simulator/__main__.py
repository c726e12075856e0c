"""``python -m tests.simulation.rollout_simulator --seeds N`` from the project's root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rollout_simulator.campaign import main

sys.exit(main())
