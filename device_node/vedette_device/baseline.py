"""What a detector knows of benign behaviour: how to scale each entity's rows, and where each column usually lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_device.features.scaling import ROWS_OWN_MIN, SCALERS_MAX, EntityScalers, RobustScaler
from vedette_device.features.windows import Window
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import FeatureSchema

USUAL_QUANTILES: Final = (0.05, 0.95)
"""What an alert calls usual: nine of ten benign windows lie in between."""
INPUTS_KEPT_MAX: Final = 4096
"""Most model inputs that are kept for training. Neighbouring inputs share all but one of their windows: thinning a long
stretch out evenly loses little, and 4,096 inputs of the largest schema in use are 3 MB."""
OWN_SCALE_MIN: Final = 0.5
"""Smallest scale of an entity's column, in scales of all entities together: one that hardly moved in a short learning
phase has said little about how it moves, and its next ordinary burst would be tens of its own units off."""
RANGE_MARGIN: Final = 1.0
"""How far a reconstruction may leave the range that was seen in the learning phase, in scaled units (robust standard
deviations): as far as a season carries a reading that was learnt for some days."""


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Fitted once, to the windows of the learning phase; a person may have entities added to it later.

    Attributes:
        scalers: how the rows of each entity are scaled.
        usual: ``(2, columns)`` float32 5th and 95th percentile of each column, by entity, in the column's own unit;
            under the empty name that of all entities together.
        lowest: ``(columns,)`` float32 smallest scaled value that was seen.
        highest: ``(columns,)`` float32 largest one.
    """

    scalers: EntityScalers
    usual: Mapping[str, Float32]
    lowest: Float32
    highest: Float32

    @classmethod
    def fit(cls, schema: FeatureSchema, windows: Sequence[Window]) -> Baseline:
        """Fit to benign windows of every entity.

        Raises:
            ConfigError: too few of them.
        """
        by_entity: dict[str, list[npt.NDArray[np.float32]]] = {}
        for window in windows:
            by_entity.setdefault(window.entity, []).append(window.values)
        rows = {entity: np.stack(values) for entity, values in by_entity.items()}
        scalers = _widened(EntityScalers.fit(schema, rows))
        usual = {e: _usual(r) for e, r in rows.items() if len(r) >= ROWS_OWN_MIN}
        usual[""] = _usual(np.concatenate(list(rows.values())))
        scaled = np.concatenate([scalers.for_entity(e).scale_rows(r) for e, r in rows.items()])
        return cls(scalers, usual, scaled.min(axis=0), scaled.max(axis=0))

    def with_entity(self, entity: str, rows: npt.NDArray[np.float32]) -> Baseline:
        """The same with a scaler and a usual range of an entity's own, as those of the learning phase have them.

        What bounds reconstructions stays: it is common to all entities.

        Args:
            entity: its name.
            rows: ``(n, columns)`` benign, in the columns' own units, at least `ROWS_OWN_MIN`.

        Raises:
            ConfigError: too few rows.
            RefusedError: `SCALERS_MAX` entities have one.
        """
        if len(self.scalers.own) >= SCALERS_MAX and entity not in self.scalers.own:
            raise RefusedError(
                f"{entity}: found {len(self.scalers.own)} entities with a scaler, expected fewer", rule="limit"
            )
        pooled = self.scalers.pooled
        own = {**self.scalers.own, entity: RobustScaler.fit(pooled.schema, rows, pooled.transforms)}
        return replace(self, scalers=_widened(EntityScalers(pooled, own)), usual={**self.usual, entity: _usual(rows)})

    def without(self, entity: str) -> Baseline:
        """The same without what it has of an entity's own: it is a newcomer again."""
        own = {name: scaler for name, scaler in self.scalers.own.items() if name != entity}
        usual = {name: table for name, table in self.usual.items() if name != entity}
        return replace(self, scalers=EntityScalers(self.scalers.pooled, own), usual=usual)

    def scale(self, entity: str, rows: npt.NDArray[np.float32]) -> Float32:
        """Scaled rows ``(…, columns)`` of an entity; a newcomer's are scaled with the pooled scaler."""
        return self.scalers.for_entity(entity).scale_rows(rows)

    def usual_of(self, entity: str) -> Float32:
        """Usual range ``(2, columns)`` of an entity, or of all for one that is new."""
        return self.usual.get(entity, self.usual[""])

    def bound(self, reconstruction: Float32) -> Float32:
        """The reconstruction, kept within what was ever seen of each column.

        A network continues its lines beyond the data that it was trained on: it reconstructs a reading that slowly
        leaves its range almost as well as one within. Bounded, the error is at least as large as what lies beyond
        the range by more than `RANGE_MARGIN`.

        Args:
            reconstruction: ``(n, …)`` float32 with columns as the fastest axis: ``(n, windows, columns)``, or flat.
        """
        columns = len(self.lowest)
        shaped = reconstruction.reshape(len(reconstruction), -1, columns)
        # What `clip` does; for a tick of eight windows these two calls take half of its time.
        bounded: Float32 = np.maximum(shaped, self.lowest - RANGE_MARGIN)
        np.minimum(bounded, self.highest + RANGE_MARGIN, out=bounded)
        return bounded.reshape(reconstruction.shape)

    def to_state(self) -> dict[str, Any]:
        """Plain form for msgpack."""
        return {
            "scalers": self.scalers.to_dict(),
            "usual": {entity: _bytes(table) for entity, table in self.usual.items()},
            "lowest": _bytes(self.lowest),
            "highest": _bytes(self.highest),
        }

    @classmethod
    def from_state(cls, schema: FeatureSchema, state: Mapping[str, Any]) -> Baseline:
        """Read `to_state`'s form back.

        Raises:
            PeerError: another form, or of another schema.
        """
        columns = len(schema.columns)
        try:
            usual = {str(e): np.frombuffer(b, "<f4").reshape(2, columns) for e, b in state["usual"].items()}
            lowest, highest = (np.frombuffer(state[k], "<f4").reshape(columns) for k in ("lowest", "highest"))
            if "" not in usual:
                raise ValueError("no usual ranges of all entities")
            scalers = EntityScalers.from_dict(schema, state["scalers"])
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as fault:
            raise PeerError(f"baseline state: found {fault!r}, expected what `to_state` gives") from fault
        return cls(scalers, usual, lowest, highest)


def _widened(scalers: EntityScalers) -> EntityScalers:
    least = OWN_SCALE_MIN * scalers.pooled.scale
    own = {
        entity: RobustScaler(each.schema, each.transforms, each.centre, np.maximum(each.scale, least))
        for entity, each in scalers.own.items()
    }
    return EntityScalers(scalers.pooled, own)


def _usual(rows: npt.NDArray[np.float32]) -> Float32:
    return np.quantile(rows, USUAL_QUANTILES, axis=0).astype(np.float32)


def _bytes(array: Float32) -> bytes:
    return array.astype("<f4").tobytes()
