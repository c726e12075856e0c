"""``python -m tests.simulation.rollouts --seeds N`` from the project's root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from rollout_simulator.rollout_campaign import main

if __name__ == "__main__":
    sys.exit(main())
