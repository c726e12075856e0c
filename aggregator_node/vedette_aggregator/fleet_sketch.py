"""One sketch of what benign windows score in a fleet, of the sketches of its devices, some of which may lie.

At α = 1 % one device of a hundred could move the threshold of a plain merge as far as it likes. Devices therefore
weigh alike, and one whose own threshold is far from the median's is left out: what is left in can move the result
within `FACTOR_MAX` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Final

from vedette_core.learning.sketch import ScoreSketch

DEVICES_MIN: Final = 3
"""Fewest devices; of two, nobody can tell which one is odd."""
DEVICE_SCORES_MIN: Final = 100
"""Scores below which a device's own threshold at `ALPHA` is only its largest score."""
DEVICE_WEIGHT: Final = 1024
"""Scores that a device counts for at most."""
ALPHA: Final = 0.01
"""Where thresholds are compared; the default that alerts name."""
FACTOR_MAX: Final = 4.0
"""A device whose threshold is this many times that of the median, or this part of it, is left out. Scores are errors
over their usual size: on the shipped recordings the thresholds of eight gateways lie within a factor of 1.3."""


def merge_sketches(sketches: Mapping[str, ScoreSketch]) -> ScoreSketch | None:
    """The fleet's sketch; the same whatever the devices' order.

    Args:
        sketches: of one task and release, by device.

    Returns:
        The merge; None while there are too few devices that say alike.
    """
    enough = [s for s in sketches.values() if s.total >= DEVICE_SCORES_MIN]
    if len(enough) < DEVICES_MIN:
        return None
    thresholds = [s.threshold(ALPHA) for s in enough]
    middle = median(thresholds)
    believed = [s for s, t in zip(enough, thresholds, strict=True) if middle / FACTOR_MAX <= t <= middle * FACTOR_MAX]
    if len(believed) < DEVICES_MIN:
        return None
    merged: ScoreSketch | None = None
    for sketch in believed:
        weighed = sketch.weighing(min(sketch.total, DEVICE_WEIGHT))
        merged = weighed if merged is None else merged.merged(weighed)
    return merged
