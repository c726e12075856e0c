"""Robust scaling of feature rows: medians and median deviations, which attacks in the training stretch hardly move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vedette_core.learning.hashing import signed_log1p
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema

Transform = Literal["log1p", "signed_log1p", "linear"]

CLIP = 8.0
"""Scaled values end at ±8: far beyond anything benign, and near enough that one wild column cannot drown the others or
stretch the range of an INT8 input."""

COUNT_FLOOR = 0.25
"""Smallest scale of a count or size, in log1p. A column that was constant in training has no deviation; with this floor
a count that goes from 0 to 1 is 2.8 units off (seen, not shouting), from 0 to 7 it reaches the clip, and one that
hovers within a quarter (100 to 128) stays within one unit. Also that of an entropy, in bits."""

FINE_FLOOR = 0.05
"""Smallest scale of a share (five percentage points are one unit), and of seconds in log1p (about 50 ms)."""

LINEAR_FLOOR_RELATIVE = 1e-3
"""Smallest scale of any other column, relative to its typical magnitude in training: the resolution of a usual sensor.
A constant channel then shows a change of 1 % as more than the clip, while rounding stays below one unit."""

LINEAR_FLOOR = 1e-6
"""Smallest scale where the typical magnitude is 0 as well."""

MAD_TO_STD = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations. Source: Rousseeuw and Croux (1993)."""

MEAN_DEVIATION_TO_STD = math.sqrt(math.pi / 2)
"""The same in mean absolute deviations."""

ROWS_MIN = 8
"""Fewest rows to fit: below that a median says nothing."""

ROWS_OWN_MIN = 64
"""Fewest rows for which an entity gets a scaler of its own: about five minutes of traffic windows."""

SCALERS_MAX = 4_096
"""Most entities with a scaler of their own."""


def transforms_for(schema: FeatureSchema) -> tuple[Transform, ...]:
    """Transform of each column: logarithms for what is counted or measured from 0 on in traffic, logarithms that keep
    the sign for hashed counts, none for shares, entropies and sensor readings.
    """
    if schema.use_case == "behaviour":
        return tuple("signed_log1p" for _ in schema.columns)
    if schema.use_case == "sensor":
        return tuple("linear" for _ in schema.columns)
    return tuple("linear" if name.endswith(("_share", "_bits")) else "log1p" for name in schema.columns)


def _floors(
    schema: FeatureSchema, transforms: Sequence[Transform], typical: NDArray[np.float64]
) -> NDArray[np.float64]:
    relative = np.maximum(LINEAR_FLOOR_RELATIVE * typical, LINEAR_FLOOR)
    floors = []
    for name, transform, own in zip(schema.columns, transforms, relative.tolist(), strict=True):
        if schema.use_case == "network":
            floors.append(FINE_FLOOR if name.endswith(("_share", "_s")) else COUNT_FLOOR)
        else:
            floors.append(COUNT_FLOOR if transform != "linear" else own)
    return np.array(floors)


class RobustScaler:
    """Subtracts each column's median and divides by its robust deviation, with a floor, clipped to ±``CLIP``.

    Where more than half of the training rows are equal (many counts are mostly 0), the median deviation is 0 although
    the column does move; the mean absolute deviation then takes its place, so that rare but ordinary bursts are not
    ten units off.

    Args:
        schema: names the columns.
        transforms: one for each column.
        centre: ``(d,)``, medians of the transformed columns.
        scale: ``(d,)``, all positive.
    """

    def __init__(
        self, schema: FeatureSchema, transforms: Sequence[Transform], centre: ArrayLike, scale: ArrayLike
    ) -> None:
        self.schema = schema
        self.transforms = tuple(transforms)
        self.centre = np.array(centre, dtype=np.float64)
        self.scale = np.array(scale, dtype=np.float64)
        width = (len(schema.columns),)
        if len(self.transforms) != width[0] or self.centre.shape != width or self.scale.shape != width:
            raise ConfigError(
                f"scaler has {len(self.transforms)} transforms, {self.centre.shape} centres and {self.scale.shape} "
                f"scales, expected {width[0]} of each"
            )
        if not (np.isfinite(self.centre).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ConfigError("scaler has a centre or scale that is not finite, or a scale that is not positive")
        if not set(self.transforms) <= set(get_args(Transform)):
            raise ConfigError(
                f"scaler has transforms {sorted(set(self.transforms))}, "
                f"expected some of {', '.join(get_args(Transform))}"
            )

    @classmethod
    def fit(cls, schema: FeatureSchema, rows: ArrayLike, transforms: Sequence[Transform] | None = None) -> RobustScaler:
        """Fit to benign rows.

        Args:
            schema: names the columns.
            rows: ``(n, d)``, not scaled, finite.
            transforms: one for each column; by default ``transforms_for(schema)``.

        Raises:
            ConfigError: fewer than ``ROWS_MIN`` rows, another width, or a value that is not finite.
        """
        chosen = tuple(transforms) if transforms is not None else transforms_for(schema)
        matrix = _checked(schema, rows)
        if len(matrix) < ROWS_MIN:
            raise ConfigError(f"{len(matrix)} rows to fit the scaling to, expected at least {ROWS_MIN}")
        matrix = _transformed(matrix, chosen)
        centre = np.median(matrix, axis=0)
        deviation = np.abs(matrix - centre)
        spread = MAD_TO_STD * np.median(deviation, axis=0)
        spread = np.where(spread > 0, spread, MEAN_DEVIATION_TO_STD * deviation.mean(axis=0))
        floors = _floors(schema, chosen, np.median(np.abs(matrix), axis=0))
        return cls(schema, chosen, centre, np.maximum(spread, floors))

    def scale_rows(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Scale rows, or whole model inputs.

        Args:
            rows: ``(…, d)``, not scaled, finite.

        Returns:
            The same shape in float32, within ±``CLIP``.

        Raises:
            ConfigError: another width, or a value that is not finite.
        """
        return np.clip((self.transform(rows) - self.centre) / self.scale, -CLIP, CLIP).astype(np.float32)

    def transform(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Rows ``(…, d)`` after each column's transform, before they are centred, scaled and clipped.

        Raises:
            ConfigError: another width, or a value that is not finite.
        """
        return _transformed(_checked(self.schema, rows), self.transforms)

    def transformed_of(self, scaled: ArrayLike) -> NDArray[np.float64]:
        """What `transform` gave for scaled values ``(…, d)``; those that were clipped come back as the clip."""
        return np.asarray(scaled, dtype=np.float64) * self.scale + self.centre

    def unscale(self, scaled: ArrayLike) -> NDArray[np.float64]:
        """Original units of scaled values (those that were clipped come back as the clip), for explanations."""
        matrix = self.transformed_of(scaled)
        is_linear = _columns(self.transforms, "linear")
        powers = np.where(is_linear, 0.0, matrix)
        counts = np.where(_columns(self.transforms, "signed_log1p"), np.sign(powers), 1.0) * np.expm1(
            np.where(_columns(self.transforms, "signed_log1p"), np.abs(powers), powers)
        )
        return np.where(is_linear, matrix, counts)

    def to_dict(self) -> dict[str, Any]:
        """Encode as plain numbers and words."""
        return {
            "schema_digest": self.schema.digest,
            "transforms": list(self.transforms),
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, schema: FeatureSchema, fields: Mapping[str, Any]) -> RobustScaler:
        """Decode what ``to_dict`` wrote.

        Raises:
            ConfigError: it is of another schema, or damaged.
        """
        try:
            digest, parts = fields["schema_digest"], (fields["transforms"], fields["centre"], fields["scale"])
            if digest != schema.digest:
                raise ConfigError(f"scaler is of schema {digest!s:.12}, expected {schema.digest:.12}; fit it anew")
            return cls(schema, *parts)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"stored scaler is damaged ({error!r}); fit it anew") from error


class EntityScalers:
    """One scaler for each entity with enough rows of its own, and a pooled one for all others.

    Args:
        pooled: fitted to the rows of all entities.
        own: by entity.
    """

    def __init__(self, pooled: RobustScaler, own: Mapping[str, RobustScaler] | None = None) -> None:
        self.pooled = pooled
        self.own = dict(own or {})

    @classmethod
    def fit(
        cls,
        schema: FeatureSchema,
        rows_by_entity: Mapping[str, ArrayLike],
        *,
        rows_own_min: int = ROWS_OWN_MIN,
    ) -> EntityScalers:
        """Fit to benign rows of each entity.

        Args:
            schema: names the columns.
            rows_by_entity: ``(n, d)`` rows by entity.
            rows_own_min: fewest rows for a scaler of its own.

        Raises:
            ConfigError: too few rows in all, too many entities, or rows that cannot be.
        """
        if len(rows_by_entity) > SCALERS_MAX:
            raise ConfigError(f"{len(rows_by_entity)} entities to scale, expected at most {SCALERS_MAX}")
        matrices = {entity: _checked(schema, rows) for entity, rows in rows_by_entity.items() if len(np.asarray(rows))}
        if not matrices:
            raise ConfigError(f"no rows to fit the scaling to, expected at least {ROWS_MIN}")
        pooled = RobustScaler.fit(schema, np.concatenate(list(matrices.values())))
        enough = max(rows_own_min, ROWS_MIN)
        own = {entity: RobustScaler.fit(schema, matrix) for entity, matrix in matrices.items() if len(matrix) >= enough}
        return cls(pooled, own)

    def for_entity(self, entity: str) -> RobustScaler:
        """The entity's own scaler, else the pooled one."""
        return self.own.get(entity, self.pooled)

    def to_dict(self) -> dict[str, Any]:
        """Encode as plain numbers and words."""
        return {"pooled": self.pooled.to_dict(), "own": {entity: s.to_dict() for entity, s in self.own.items()}}

    @classmethod
    def from_dict(cls, schema: FeatureSchema, fields: Mapping[str, Any]) -> EntityScalers:
        """Decode what ``to_dict`` wrote.

        Raises:
            ConfigError: it is of another schema, or damaged.
        """
        pooled, own = fields.get("pooled"), fields.get("own")
        if not isinstance(pooled, Mapping) or not isinstance(own, Mapping) or len(own) > SCALERS_MAX:
            raise ConfigError("stored scalers are damaged (no pooled one, or too many); fit them anew")
        return cls(
            RobustScaler.from_dict(schema, pooled),
            {str(entity): RobustScaler.from_dict(schema, each) for entity, each in own.items()},
        )


def _checked(schema: FeatureSchema, rows: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(rows, dtype=np.float64)
    width = len(schema.columns)
    if matrix.ndim < 1 or matrix.shape[-1] != width:
        raise ConfigError(f"rows have shape {matrix.shape}, expected {width} columns ({schema.use_case} schema)")
    if not np.isfinite(matrix).all():
        column = int(np.argwhere(~np.isfinite(matrix))[0][-1])
        raise ConfigError(f"column {schema.columns[column]!r} has a value that is not finite")
    return matrix


def _columns(transforms: Sequence[Transform], wanted: Transform) -> NDArray[np.bool_]:
    return np.array([transform == wanted for transform in transforms])


def _transformed(matrix: NDArray[np.float64], transforms: Sequence[Transform]) -> NDArray[np.float64]:
    signed = _columns(transforms, "signed_log1p")
    if signed.any():
        matrix = np.where(signed, signed_log1p(matrix), matrix)
    log = _columns(transforms, "log1p")
    if not log.any():
        return matrix
    # A count is never negative; the guard keeps a damaged row from becoming NaN.
    return np.where(log, np.log1p(np.maximum(matrix, 0.0)), matrix)
