"""How releases reach the fleet of a new site: stages that suit its size."""

from __future__ import annotations

from typing import Any, Final

COMPARED_MIN: Final = 4
"""Below it there are no two devices that run a candidate beside two that do not, and one alone is no evidence: every
release would wait for a person."""
TINY, SMALL, LARGE = 8, 20, 100
"""From here on a quarter is less than a half, a tenth less than a quarter, and a hundredth may come first."""


def rollout_table(devices: int) -> dict[str, Any]:
    """``[tasks.rollout]`` for a site of so many devices.

    Args:
        devices: of the site as it begins.
    """
    if devices < COMPARED_MIN:
        return {"enabled": False}
    if devices < TINY:
        return {"enabled": True, "stages": [50.0, 100.0], "devices_min": 2}
    if devices < SMALL:
        return {"enabled": True, "stages": [25.0, 50.0, 100.0], "devices_min": 2}
    if devices < LARGE:
        return {"enabled": True, "stages": [10.0, 50.0, 100.0], "devices_min": 5}
    return {"enabled": True, "stages": [1.0, 10.0, 50.0, 100.0], "devices_min": 5}


def rollout_lines(devices: int) -> str:
    """What a person is told about it."""
    table = rollout_table(devices)
    if not table["enabled"]:
        return (
            f"releases reach every device at once: {devices} are too few to compare a new one with the old; from "
            f"{COMPARED_MIN} on set enabled = true in [tasks.rollout]"
        )
    stages = ", ".join(f"{percent:g} %" for percent in table["stages"])
    return f"new releases go to the fleet in stages ({stages}): see `vedette rollout list`"
