"""What the tests that break a rule on purpose have in common."""

from __future__ import annotations

from typing import Any

import pytest
from fleet_simulator.problem import settings
from fleet_simulator.simulation import Fleet
from fleet_simulator.violation import ViolationError

Patch = pytest.MonkeyPatch
LONG_S = 1_500.0


def sees(what: str, story: Fleet | None = None, until_s: float = LONG_S) -> None:
    """The observer raises this in the end."""
    story = story or Fleet(seed=3)
    story.start()
    with pytest.raises(ViolationError, match=what):
        story.run(until_s)


def private_fleet(**changes: Any) -> Fleet:
    """A fleet with noise, each of whose devices gives twice in three rounds."""
    values = {"noise_multiplier": 1.0, "epsilon_max": 100.0, "participations_max": 2, "period_rounds": 3}
    return Fleet(seed=3, rounds=settings(6, **(values | changes)))


def two_faced(seed: int = 4, **changes: Any) -> Fleet:
    """A fleet whose aggregator lies."""
    return Fleet(seed=seed, devices=7, rounds=settings(7, **changes), lying_aggregator=True)
