"""The stages of a new site: two devices at least beside two, and one stage is no repetition of another."""

from __future__ import annotations

import math

import pytest

from vedette.site_rollout import COMPARED_MIN, rollout_table
from vedette_aggregator.rollout_settings import RolloutSettings


@pytest.mark.parametrize("devices", [COMPARED_MIN, 5, 7, 8, 19, 20, 50, 99, 100, 101, 5_000])
def test_stages_suit_the_size(devices: int) -> None:
    settings = RolloutSettings(**rollout_table(devices))
    assert settings.enabled
    least = settings.devices_min
    sizes = [min(max(math.ceil(devices * p / 100), least), devices // 2) for p in settings.stages[:-1]]
    assert sizes[0] >= 2
    assert sizes[0] <= max(5, devices / 4)
    assert sizes == sorted(set(sizes)), "each stage is larger than the one before"


def test_too_few_to_compare() -> None:
    assert rollout_table(COMPARED_MIN - 1) == {"enabled": False}
