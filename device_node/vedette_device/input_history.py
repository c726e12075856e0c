"""The newest windows of each entity, as one model input looks at them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_device.features.windows import ENTITIES_MAX_DEFAULT, Window
from vedette_schemas.features import FeatureSchema

CLOCK_STEP_S: Final = 3600.0
"""A window that is this much older than the newest of its entity means that the source's clock was set right: the past
starts anew, or one reading stamped with a far future would make every later one stale."""


class InputHistory:
    """Model inputs of each entity, from its windows in the order of time.

    A pause empties an entity's past. What a *network* entity did before it was first seen (or was forgotten after a
    long silence) is known: nothing; its past is filled with rows of zeros, and a newcomer is scored from its first
    window on. A sensor's readings in a pause are unknown, so that the past must be whole again.

    Args:
        schema: how many windows and columns an input has.
        entities_max: entities kept; the one that was silent for longest gives way.
    """

    def __init__(self, schema: FeatureSchema, *, entities_max: int = ENTITIES_MAX_DEFAULT) -> None:
        self._history = schema.history
        self._silence = np.zeros(len(schema.columns), np.float32) if schema.use_case == "network" else None
        self._entities_max = entities_max
        self._past: OrderedDict[str, deque[Window]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._past)

    def is_stale(self, window: Window) -> bool:
        """Whether the entity has been seen at this time already: a repetition after a restart."""
        past = self._past.get(window.entity)
        return bool(past) and 0.0 <= past[-1].end_s - window.end_s < CLOCK_STEP_S if past else False

    def push(self, window: Window) -> npt.NDArray[np.float32] | None:
        """Add a window that is not stale.

        Returns:
            ``(history, columns)`` float32 in the columns' own units, oldest first; None while the past is too short.
        """
        past = self._past.get(window.entity)
        if past is None:
            if len(self._past) >= self._entities_max:
                self._past.popitem(last=False)
            past = self._past[window.entity] = deque(maxlen=self._history)
        self._past.move_to_end(window.entity)
        if past and past[-1].end_s != window.start_s:
            past.clear()
        past.append(window)
        missing = self._history - len(past)
        if missing and self._silence is None:
            return None
        rows = [each.values for each in past]
        return np.stack([self._silence] * missing + rows if self._silence is not None else rows)

    def windows(self) -> Iterator[Window]:
        """Every window that is kept, entity by entity, oldest first."""
        for past in self._past.values():
            yield from past


def pack_windows(windows: list[Window]) -> dict[str, Any]:
    """Windows as plain data for msgpack."""
    names = list(dict.fromkeys(w.entity for w in windows))
    place = {name: i for i, name in enumerate(names)}
    return {
        "entities": names,
        "entity": np.array([place[w.entity] for w in windows], "<u4").tobytes(),
        "bounds": np.array([(w.start_s, w.end_s) for w in windows], "<f8").tobytes(),
        "values": b"".join(w.values.astype("<f4").tobytes() for w in windows),
    }


def unpack_windows(plain: Any, columns: int) -> list[Window]:
    """Read `pack_windows`'s form back.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is another form.
    """
    entity, bounds = np.frombuffer(plain["entity"], "<u4"), np.frombuffer(plain["bounds"], "<f8").reshape(-1, 2)
    values = np.frombuffer(plain["values"], "<f4").reshape(len(entity), columns)
    names = [str(name) for name in plain["entities"]]
    if len(bounds) != len(entity) or not np.isfinite(values).all():
        raise ValueError(f"{len(bounds)} windows of {len(entity)} entities, or values that are not finite")
    return [
        Window(names[e], float(start_s), float(end_s), row)
        for e, (start_s, end_s), row in zip(entity.tolist(), bounds.tolist(), values, strict=True)
    ]
