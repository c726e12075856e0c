"""The evidence of one alert: what its strongest window was scored on, by which model, and a little of the time before.

It never leaves the device. A record is msgpack behind a digest of it: what a disk did to a number is found before
anybody believes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_device.alert_record import ScoredWindow
from vedette_device.scored_input import ENSEMBLE, NETWORK, ScoredInput
from vedette_schemas.alert import AlertModel, FeatureReason
from vedette_schemas.errors import PeerError
from vedette_schemas.features import FeatureSchema

FORMAT: Final = 1
DIGEST_BYTES: Final = 8
"""Of SHA-256 before the record: against accidents, not against whoever can write the device's state."""
RECORD_BYTES_MAX: Final = 2 << 20
"""An input of the largest schema, 256 windows of 256 columns, in both forms, with its errors and its past: 1.1 MB."""
PAST_MAX: Final = 24
"""Windows of the entity that are kept beside the input: two minutes of traffic, 24 of a host, 12 of a tank at 30 s."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The newest windows of an entity, oldest first.

    Attributes:
        end_s: ``(n,)`` float64 event times at which they end.
        scores: ``(n,)`` float64, as they were scored.
        p_values: ``(n,)`` float64.
        rows: ``(n, columns)`` float32 in the columns' own units.
    """

    end_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    rows: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is kept for one alert.

    Attributes:
        alert: the alert's id.
        schema: what the columns are.
        entity: what the alert is about.
        start_s: event time at which the scored window starts, seconds since 1970 UTC.
        end_s: event time at which it ends.
        score: its anomaly score, ≥ 0.
        p_value: of the score.
        threshold: score that the calibration asks for.
        calibration_size: benign scores behind the p-value.
        model: task, release and digest of the artifact that scored.
        reasons: as the alert has them: of hashed columns with the names behind them.
        input: what was scored.
        past: the entity's newest windows at the time of writing, the scored one usually the last.
    """

    alert: str
    schema: FeatureSchema
    entity: str
    start_s: float
    end_s: float
    score: float
    p_value: float
    threshold: float
    calibration_size: int
    model: AlertModel
    reasons: tuple[FeatureReason, ...]
    input: ScoredInput
    past: Past

    @classmethod
    def of(cls, alert: str, window: ScoredWindow, schema: FeatureSchema, past: Past) -> Evidence:
        """Evidence of a window that carries its input."""
        if window.input is None:
            raise ValueError(f"alert {alert}: found a window without its input")
        return cls(
            alert=alert,
            schema=schema,
            entity=window.entity,
            start_s=window.start_s,
            end_s=window.end_s,
            score=window.score,
            p_value=window.p_value,
            threshold=window.threshold,
            calibration_size=window.calibration_size,
            model=window.model,
            reasons=window.features,
            input=window.input,
            past=past,
        )

    def to_bytes(self) -> bytes:
        """The record: a digest, and msgpack behind it."""
        given = self.input
        plain = {
            "format": FORMAT,
            "alert": self.alert,
            "schema": self.schema.model_dump(mode="json"),
            "entity": self.entity,
            "numbers": [self.start_s, self.end_s, self.score, self.p_value, self.threshold],
            "calibration_size": self.calibration_size,
            "model": self.model.model_dump(mode="python"),
            "reasons": [each.model_dump(mode="python") for each in self.reasons],
            "head": given.head,
            "values": _bytes(given.values),
            "scaled": _bytes(given.scaled),
            "squared_ratio": _bytes(given.squared_ratio),
            "scale": _bytes(given.scale),
            "usual": _bytes(given.usual),
            "past": [
                self.past.end_s.astype("<f8").tobytes(),
                self.past.scores.astype("<f8").tobytes(),
                self.past.p_values.astype("<f8").tobytes(),
                _bytes(self.past.rows),
            ],
        }
        packed = bytes(msgpack.packb(plain))
        return _digest(packed) + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: too large, damaged, another format, or parts that do not fit each other.
        """
        try:
            if len(data) > RECORD_BYTES_MAX:
                raise ValueError("too large")
            packed = data[DIGEST_BYTES:]
            if data[:DIGEST_BYTES] != _digest(packed):
                raise ValueError("a digest that is not theirs")
            plain = msgpack.unpackb(packed)
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']!r}")
            return _read(plain)
        except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as fault:
            raise PeerError(
                f"evidence: found {len(data)} damaged bytes ({fault}), expected a record of format {FORMAT}",
                reason="damaged",
            ) from fault


def _read(plain: dict[str, Any]) -> Evidence:
    schema = FeatureSchema.model_validate(plain["schema"])
    columns, shape = len(schema.columns), schema.input_shape
    start_s, end_s, score, p_value, threshold = _finite(plain["numbers"])
    squared, scale = _array(plain["squared_ratio"]).reshape(-1, columns), _array(plain["scale"])
    if not (1 <= len(squared) <= schema.history and (squared >= 0).all() and len(scale) and (scale > 0).all()):
        raise ValueError(f"errors of {len(squared)} windows, usual ones of {len(scale)} features")
    times, scores, p_values = (np.frombuffer(each, "<f8") for each in plain["past"][:3])
    rows = _array(plain["past"][3]).reshape(-1, columns)
    if not (len(times) == len(scores) == len(p_values) == len(rows) <= PAST_MAX):
        raise ValueError(f"a past of {len(times)}, {len(scores)}, {len(p_values)} and {len(rows)} windows")
    return Evidence(
        alert=str(plain["alert"]),
        schema=schema,
        entity=str(plain["entity"]),
        start_s=start_s,
        end_s=end_s,
        score=score,
        p_value=p_value,
        threshold=threshold,
        calibration_size=int(plain["calibration_size"]),
        model=AlertModel.model_validate(plain["model"]),
        reasons=tuple(FeatureReason.model_validate({**r, "usual": tuple(r["usual"])}) for r in plain["reasons"]),
        input=ScoredInput(
            values=_array(plain["values"]).reshape(shape),
            scaled=_array(plain["scaled"]).reshape(shape),
            squared_ratio=squared,
            scale=scale,
            usual=_array(plain["usual"]).reshape(2, columns),
            head=ENSEMBLE if plain["head"] == ENSEMBLE else NETWORK,
        ),
        past=Past(times, scores, p_values, rows),
    )


def _finite(numbers: Sequence[Any]) -> tuple[float, ...]:
    found = tuple(float(each) for each in numbers)
    if not all(math.isfinite(each) for each in found):
        raise ValueError("numbers that are not finite")
    return found


def _array(data: bytes) -> Float32:
    found = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("values that are not finite")
    return found


def _bytes(array: npt.NDArray[np.float32]) -> bytes:
    return array.astype("<f4").tobytes()


def _digest(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:DIGEST_BYTES]
