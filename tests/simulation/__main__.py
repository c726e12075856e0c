"""``python -m tests.simulation --seeds N`` from the project's root."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fleet_simulator.campaign import main

sys.exit(main())
