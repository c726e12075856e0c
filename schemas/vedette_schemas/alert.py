"""The alert: one JSON document, at most 1 kB, read by people and their tools.

Source: `docs/detection.md` §3; verdict vocabulary follows OCSF 1.8 ``verdict_id``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.features import COLUMN_NAME_CHARACTERS_MAX
from vedette_schemas.topics import ID_PATTERN

ALERT_BYTES_MAX: Final = 1024
ALERT_VERSION: Final = 1

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Name = Annotated[str, Field(min_length=1, max_length=60)]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$")]


class AlertState(StrEnum):
    """Where an alert is in its life."""

    OPEN = "open"
    UPDATED = "updated"
    CLOSED = "closed"


class Severity(StrEnum):
    """How much it matters; the order is the order of the members."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Position from 0 (low) to 3 (critical)."""
        return list(Severity).index(self)


class FeatureReason(Message):
    """One feature that made the score.

    Attributes:
        name: the column.
        value: what was measured, in the feature's own unit.
        usual: the benign 5th and 95th percentile of it on this device.
        share: part of the score that it explains, 0–1.
    """

    name: Annotated[str, Field(min_length=1, max_length=COLUMN_NAME_CHARACTERS_MAX)]
    value: float
    usual: tuple[float, float]
    share: Annotated[float, Field(ge=0, le=1)]


class AlertModel(Message):
    """The model that spoke: task, release version and the first 16 hex digits of its digest."""

    task: Name
    version: Annotated[int, Field(ge=0)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Alert(Message):
    """An alert, or an update of one.

    Attributes:
        v: version of this schema.
        id: unique over the site; the same for every update of one alert.
        seq: 0 when opened, counts up with every update.
        time: RFC 3339, UTC: when the triggering window ended.
        site: the site's id.
        device: the device node that saw it.
        entity: what it is about: a local device's address, or a sensor.
        detector: which detector fired.
        kind: how it fired: ``magnitude`` (one extreme window) or ``sustained``.
        severity: see `Severity`.
        confidence: 0–1, from the calibration's size and the strength.
        score: anomaly score of the window, high = anomalous.
        p_value: conformal p-value of the score.
        threshold: score that the calibration asks for.
        window_start: RFC 3339, UTC.
        window_end: RFC 3339, UTC.
        features: top features, strongest first.
        model: the model that scored.
        state: open, updated or closed.
        count: windows that belonged to it so far.
        summary: one sentence for a person.
        evidence: reference to kept evidence, where there is any.
    """

    v: Literal[1] = 1
    id: Id
    seq: Annotated[int, Field(ge=0)]
    time: Time
    site: Id
    device: Id
    entity: Name
    detector: Literal["network", "sensor", "behaviour"]
    kind: Literal["magnitude", "sustained"]
    severity: Annotated[Severity, Field(strict=False)]
    confidence: Annotated[float, Field(ge=0, le=1)]
    score: Annotated[float, Field(ge=0)]
    p_value: Annotated[float, Field(gt=0, le=1)]
    threshold: Annotated[float, Field(ge=0)]
    window_start: Time
    window_end: Time
    features: Annotated[tuple[FeatureReason, ...], Field(max_length=5)]
    model: AlertModel
    state: Annotated[AlertState, Field(strict=False)]
    count: Annotated[int, Field(ge=1)]
    summary: Annotated[str, Field(max_length=200)]
    evidence: Annotated[str, Field(max_length=100)] | None = None


def encode(alert: Alert) -> bytes:
    """Alert as compact JSON of at most `ALERT_BYTES_MAX`.

    What would be too long loses its weakest features first, then the reference to evidence, then the summary's end.

    Raises:
        PeerError: too large even so: its names alone are too long.
    """
    data = codec.pack_json(alert)
    while len(data) > ALERT_BYTES_MAX:
        if alert.features:
            alert = alert.model_copy(update={"features": alert.features[:-1]})
        elif alert.evidence is not None:
            alert = alert.model_copy(update={"evidence": None})
        elif alert.summary:
            # A character is up to 6 bytes (an escape): cutting a sixth of the excess never cuts too much.
            cut = -((ALERT_BYTES_MAX - len(data)) // 6)
            alert = alert.model_copy(update={"summary": alert.summary[:-cut]})
        else:
            raise _too_large(len(data))
        data = codec.pack_json(alert)
    return data


def decode(data: bytes) -> Alert:
    """Alert from JSON.

    Raises:
        PeerError: larger than `ALERT_BYTES_MAX`, or not an alert.
    """
    if len(data) > ALERT_BYTES_MAX:
        raise _too_large(len(data))
    return codec.unpack_json(Alert, data)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the alert, as published in ``schemas/alert.schema.json``."""
    schema = Alert.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:vedette:alert:{ALERT_VERSION}",
        **schema,
    }


def _too_large(size: int) -> PeerError:
    return PeerError(f"alert: found {size} bytes, expected at most {ALERT_BYTES_MAX}", reason="limit")
