"""A feature window: what every windower gives and every detector takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENTITIES_MAX_DEFAULT = 1_024
"""Most entities whose past is kept: a gateway with more local devices than this needs more than one process."""


@dataclass(frozen=True, slots=True)
class Window:
    """The features of one entity over one stretch of time.

    Attributes:
        entity: IP address of a local device, or the name of a sensor group.
        start_s: first instant, seconds since the epoch.
        end_s: instant behind the last; equals ``start_s`` of the entity's next window when nothing lies between.
        values: ``(columns,) float32`` in the order of the schema, always finite, not scaled.
    """

    entity: str
    start_s: float
    end_s: float
    values: NDArray[np.float32]
