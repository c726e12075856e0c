"""A feature window, and the run of windows that one model input covers."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vedette_schemas.features import FeatureSchema

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


class WindowHistory:
    """Keeps the last windows of each entity and hands out model inputs.

    A gap in an entity's windows empties its past: an input is always one uninterrupted stretch of time.

    Args:
        schema: gives the number of windows and of columns.
        entities_max: entities kept; the one that was silent for longest gives way.
    """

    def __init__(self, schema: FeatureSchema, *, entities_max: int = ENTITIES_MAX_DEFAULT) -> None:
        self._schema = schema
        self._entities_max = entities_max
        self._past: OrderedDict[str, deque[Window]] = OrderedDict()

    def push(self, window: Window) -> NDArray[np.float32] | None:
        """Add a window.

        Returns:
            ``(history, columns) float32``, oldest window first, or ``None`` while the entity's past is too short.
        """
        if window.values.shape != (len(self._schema.columns),):
            raise ValueError(f"window has shape {window.values.shape}, expected ({len(self._schema.columns)},)")
        past = self._past.get(window.entity)
        if past is None:
            if len(self._past) >= self._entities_max:
                self._past.popitem(last=False)
            past = self._past[window.entity] = deque(maxlen=self._schema.history)
        else:
            self._past.move_to_end(window.entity)
            if past[-1].end_s != window.start_s:
                past.clear()
        past.append(window)
        if len(past) < self._schema.history:
            return None
        return np.stack([each.values for each in past])

    def __len__(self) -> int:
        return len(self._past)
