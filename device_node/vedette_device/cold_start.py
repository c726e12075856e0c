"""A first threshold for a device that has none: from what its fleet's scores look like, until it has its own.

Scores of different devices are not quite on one scale, which is why thresholds are never averaged. But a score is an
error over its usual size, so that the fleet's tell much more than nothing; and a sketch of them is small.
"""

from __future__ import annotations

from typing import Final

from vedette_core.learning.calibration import SCORES_MIN, Calibration, calibrate
from vedette_core.learning.sketch import ScoreSketch
from vedette_schemas.errors import RefusedError

SCORES_KEPT: Final = 4096
"""Scores that a fleet's calibration is made of: enough for p-values of a thousandth, and as many as a device's own."""


def first_calibration(sketch: ScoreSketch) -> Calibration:
    """The calibration that a new device's scores are ranked in: the fleet's, each a little too high by the sketch.

    Raises:
        RefusedError: the sketch holds too few scores.
    """
    if sketch.total < SCORES_MIN:
        raise RefusedError(
            f"cold start: found a fleet's sketch of {sketch.total} scores, expected at least {SCORES_MIN}; "
            "the device waits for its own calibration",
            rule="examples",
        )
    return calibrate(sketch.representatives(SCORES_KEPT))
