"""One alert as its device remembers it: what belongs to it, what was said of it, and the JSON that says it."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgpack

from vedette_device.reasons import SUMMARY_CHARACTERS_MAX, summarise
from vedette_device.scored_input import ScoredInput
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert, AlertModel, AlertState, FeatureReason, Severity
from vedette_schemas.errors import PeerError

Detector = Literal["network", "sensor", "behaviour"]
Kind = Literal["magnitude", "sustained"]

STRENGTH_SCALE: Final = ((8.0, Severity.CRITICAL), (3.0, Severity.HIGH), (1.5, Severity.MEDIUM))
"""Severity by the strongest score over the threshold; below the last line it is low."""
SPREAD_ENTITIES: Final = 3
"""With this many entities in alert at once, severity is one step higher: several devices are no coincidence."""
CONFIDENCE_HALF_SIZE: Final = 100
"""Calibration scores at which confidence is halved: a hundred benign windows say little about one in a thousand."""
CONFIDENCE_DECADES: Final = 5.0
"""p = 10⁻⁵ or less is as much evidence as there can be."""
REPORTED_MAX: Final = 32
"""Columns that an alert remembers to have named; beyond, the oldest may be named anew."""
EVENT_S_MAX: Final = 253_402_300_799.0
"""The last second of the year 9999, and of RFC 3339."""
RECORD_BYTES_MAX: Final = 64 * 1024
"""A stored record is a few kB."""
P_VALUE_MIN: Final = 1e-300
"""The alert's p-value is > 0 by its schema."""
STATE_FORMAT: Final = 1
EVIDENCE_SCHEME: Final = "device:"
"""What a reference to evidence begins with: it lies on the device, which is the only place where it ever is."""

_NOT_OF_AN_ID: Final = re.compile(r"[^a-z0-9-]")


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """What a detector thinks of one window.

    Attributes:
        entity: what it is about: a local device's address, or a process.
        start_s: event time at which it starts, seconds since 1970 UTC.
        end_s: event time at which it ends.
        score: anomaly score ≥ 0, high = anomalous.
        p_value: calibrated p-value of the score, in (0, 1].
        threshold: score that p = α asks for.
        benign_max: largest score among the calibration's benign windows.
        benign_average: largest moving average of z that those windows reached.
        calibration_size: number of those windows.
        features: columns that made the score; empty for an unremarkable window.
        model: the model that scored.
        spread: long-run standard deviation of z a window, ≥ 1; it is not stored with an alert.
        input: what was scored, where evidence is kept; it is not stored with an alert, either.
        learning_limit: score that it takes to be heard, of an entity that is being learnt because a person accepted it;
            None of any other, and not stored with an alert.
    """

    entity: str
    start_s: float
    end_s: float
    score: float
    p_value: float
    threshold: float
    benign_max: float
    benign_average: float
    calibration_size: int
    features: tuple[FeatureReason, ...]
    model: AlertModel
    spread: float = 1.0
    input: ScoredInput | None = field(default=None, repr=False, compare=False)
    learning_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the judgement of an entity stood when an alert on it was last reported.

    Attributes:
        average: moving average of z.
        last_end_s: event time up to which it was judged, seconds.
        length_s: length of its windows, seconds.
    """

    average: float
    last_end_s: float
    length_s: float


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert, while it is open, or cooling after its close.

    Attributes:
        id: the alert's id.
        seq: number of the last report; −1 before the first.
        kind: ``magnitude`` once any of its windows was extreme.
        severity: highest that was reported.
        count: windows that belonged to it.
        strongest: the one with the highest score.
        since_report: the strongest since the last report; None right after one.
        reported: columns that were named.
        state: as in the last report.
        payload: the last report, JSON.
        evidence_score: score of the window that evidence was kept of; None where none was.
    """

    id: str
    seq: int
    kind: Kind
    severity: Severity
    count: int
    strongest: ScoredWindow
    since_report: ScoredWindow | None = None
    reported: tuple[str, ...] = ()
    state: AlertState = AlertState.OPEN
    payload: bytes = field(default=b"", repr=False)
    evidence_score: float | None = None

    @property
    def entity(self) -> str:
        """What it is about."""
        return self.strongest.entity

    @property
    def receipt_id(self) -> str:
        """Under which the last report waits for its receipt; the same whenever it is sent again."""
        return f"{self.id}.{self.seq}"

    @property
    def lacks_evidence(self) -> bool:
        """Whether its strongest window is at hand, and stronger than the one that evidence was kept of."""
        kept = self.evidence_score
        return self.strongest.input is not None and (kept is None or self.strongest.score > kept)

    def grown(self, window: ScoredWindow, *, magnitude: bool) -> AlertRecord:
        """With one more window that belongs to it."""
        latest = self.since_report
        return replace(
            self,
            kind="magnitude" if magnitude else self.kind,
            count=self.count + 1,
            strongest=window if window.score > self.strongest.score else self.strongest,
            since_report=window if latest is None or window.score >= latest.score else latest,
        )

    def reporting(
        self,
        state: AlertState,
        severity: Severity,
        *,
        site: str,
        device: str,
        detector: Detector,
        summary: str = "",
    ) -> AlertRecord:
        """With its next report in `payload`.

        Args:
            state: what the report says.
            severity: as it is now; an alert's severity never falls.
            site: the site's id.
            device: this device's id.
            detector: which detector the alert is of.
            summary: what it says to a person; empty for what its columns say. Past 200 characters it is cut.
        """
        # A closing report sums the incident up; the others tell what is new since the last one.
        window = self.strongest if state is AlertState.CLOSED else self.since_report or self.strongest
        severity = max(self.severity, severity, key=lambda s: s.rank)
        names = (*self.reported, *(f.name for f in window.features))
        seq = self.seq + 1
        report = Alert(
            id=self.id,
            seq=seq,
            time=rfc3339(window.end_s),
            site=site,
            device=device,
            entity=window.entity[:60] or "-",
            detector=detector,
            kind=self.kind,
            severity=severity,
            confidence=confidence(window.calibration_size, self.strongest.p_value),
            score=_short(window.score),
            p_value=max(_short(window.p_value), P_VALUE_MIN),
            threshold=_short(max(window.threshold, 0.0)),
            window_start=rfc3339(window.start_s),
            window_end=rfc3339(window.end_s),
            features=window.features,
            model=window.model,
            state=state,
            count=self.count,
            summary=summary[:SUMMARY_CHARACTERS_MAX] or summarise(window.entity, window.features),
            evidence=None if self.evidence_score is None else evidence_reference(self.id),
        )
        return replace(
            self,
            seq=seq,
            severity=severity,
            since_report=None,
            reported=tuple(dict.fromkeys(names))[-REPORTED_MAX:],
            state=state,
            payload=alerts.encode(report),
        )

    def to_bytes(self, progress: Progress) -> bytes:
        """msgpack of the record as it was just reported, and of the judgement beside it."""
        plain = {
            "format": STATE_FORMAT,
            "id": self.id,
            "seq": self.seq,
            "kind": self.kind,
            "severity": self.severity.value,
            "count": self.count,
            "strongest": _plain(self.strongest),
            "reported": list(self.reported),
            "state": self.state.value,
            "payload": self.payload,
            "evidence_score": self.evidence_score,
            "progress": [progress.average, progress.last_end_s, progress.length_s],
        }
        return bytes(msgpack.packb(plain))

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[AlertRecord, Progress]:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: not this form, or another format number.
        """
        try:
            if len(data) > RECORD_BYTES_MAX:
                raise ValueError("too large")
            plain = msgpack.unpackb(data)
            if plain["format"] != STATE_FORMAT:
                raise ValueError(f"format {plain['format']!r}")
            kept = plain.get("evidence_score")  # a record of a node from before has none
            record = cls(
                id=str(plain["id"]),
                seq=int(plain["seq"]),
                kind="magnitude" if plain["kind"] == "magnitude" else "sustained",
                severity=Severity(plain["severity"]),
                count=int(plain["count"]),
                strongest=_window(plain["strongest"]),
                reported=tuple(str(name) for name in plain["reported"]),
                state=AlertState(plain["state"]),
                payload=bytes(plain["payload"]),
                evidence_score=None if kept is None else float(kept),
            )
            average, last_end_s, length_s = (float(v) for v in plain["progress"])
        except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as fault:
            raise PeerError(
                f"alert record: found {len(data)} bytes that are not one ({fault!r}), expected format {STATE_FORMAT}"
            ) from fault
        return record, Progress(average, last_end_s, length_s)


def severity_of(strongest: ScoredWindow, entities_in_alert: int) -> Severity:
    """How much an incident matters: by strength (`STRENGTH_SCALE`), one step more when it spreads (`SPREAD_ENTITIES`).

    Args:
        strongest: its strongest window.
        entities_in_alert: entities of the same detector that are in alert now, this one included.
    """
    strength = strongest.score / strongest.threshold if strongest.threshold > 0 else math.inf
    severity = next((s for limit, s in STRENGTH_SCALE if strength >= limit), Severity.LOW)
    if entities_in_alert >= SPREAD_ENTITIES:
        severity = list(Severity)[min(severity.rank + 1, Severity.CRITICAL.rank)]
    return severity


def confidence(calibration_size: int, p_value: float) -> float:
    """How sure an alert is, 0–1: n / (n + 100) of the calibration's n scores, times 0.5 to 1 as p falls to 10⁻⁵.

    Args:
        calibration_size: number n of benign scores behind the p-value.
        p_value: smallest p-value of the alert's windows, in (0, 1].
    """
    decades = -math.log10(p_value) / CONFIDENCE_DECADES
    size = calibration_size / (calibration_size + CONFIDENCE_HALF_SIZE)
    return round(size * (0.5 + 0.5 * min(decades, 1.0)), 3)


def alert_id(device: str, detector: str, entity: str, start_s: float) -> str:
    """Id of the alert that a window opens: the same window gives the same id, on every replay."""
    digest = hashlib.sha256("\x00".join((device, detector, entity, repr(float(start_s)))).encode()).hexdigest()
    opened = _moment(start_s).strftime("%Y%m%d-%H%M%S")
    return f"{_NOT_OF_AN_ID.sub('-', device)[:20]}-{detector}-{opened}-{digest[:12]}"


def evidence_reference(alert: str) -> str:
    """How an alert names the evidence that is kept for it: on its device, under the alert's own id."""
    return f"{EVIDENCE_SCHEME}{alert}"


def rfc3339(event_s: float) -> str:
    """Event time as RFC 3339 in UTC, to the millisecond."""
    return _moment(event_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(event_s: float) -> datetime:
    return datetime.fromtimestamp(min(max(event_s, 0.0), EVENT_S_MAX), UTC)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _plain(window: ScoredWindow) -> dict[str, Any]:
    return {
        "entity": window.entity,
        "numbers": [
            window.start_s,
            window.end_s,
            window.score,
            window.p_value,
            window.threshold,
            window.benign_max,
            window.benign_average,
        ],
        "calibration_size": window.calibration_size,
        "features": [f.model_dump(mode="python") for f in window.features],
        "model": window.model.model_dump(mode="python"),
    }


def _window(plain: dict[str, Any]) -> ScoredWindow:
    start_s, end_s, score, p_value, threshold, benign_max, benign_average = (float(v) for v in plain["numbers"])
    return ScoredWindow(
        entity=str(plain["entity"]),
        start_s=start_s,
        end_s=end_s,
        score=score,
        p_value=p_value,
        threshold=threshold,
        benign_max=benign_max,
        benign_average=benign_average,
        calibration_size=int(plain["calibration_size"]),
        features=tuple(FeatureReason.model_validate({**f, "usual": tuple(f["usual"])}) for f in plain["features"]),
        model=AlertModel.model_validate(plain["model"]),
    )
