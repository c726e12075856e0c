"""An alert's life on one device and for one detector: scored windows in, one alert an incident out.

=======  ==============================================  ============================================================
state    what happens                                    answer
=======  ==============================================  ============================================================
quiet    one window far beyond everything benign         open an alert, kind ``magnitude``
quiet    smoothed z above the limit in m of n windows    open an alert, kind ``sustained``
quiet    the sum of z − ½ above its limit, if asked for  open an alert, kind ``sustained``
quiet    any of these, but too many were opened an hour  count it as suppressed; try again with the next window
open     active window (above a lower limit)             it belongs to the alert; report on a log scale of their number
open     severity rises, or another column leads         report at once
any      a report, its strongest window not yet kept     keep that window's evidence before the report names it
open     calm windows in a row, or silence               close the alert
cooling  any rule fires soon after the close             the same alert goes on: one incident, one alert
any      the entity was accepted by a person             close what is open, saying so; forget the judgement
any      a window of an entity that is being learnt      only a loud one fires, kind ``magnitude``
any      a window that ends before one already seen      discard it, count it; much earlier: a new time base
=======  ==============================================  ============================================================

All times are event times, in seconds: a capture gives the same alerts at whatever speed it is replayed. Each report
is persisted together with the state that it belongs to before it is published, and is published again after a restart
under the same receipt id: nobody counts it twice, and nothing is lost.

Source: `docs/detection.md`; repeats on a log scale follow Slips 1.1.17.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from vedette_core.learning.calibration import smoothing, z_score
from vedette_core.learning.cusum import REFERENCE, limit_for
from vedette_core.machine import Count, Effect, Event, Note, Persist, Publish, Tick
from vedette_device.alert_record import AlertRecord, Detector, Progress, ScoredWindow, alert_id, severity_of
from vedette_schemas.alert import AlertState, Severity
from vedette_schemas.errors import PeerError
from vedette_schemas.topics import Topics

ENTITIES_MAX: Final = 4096
"""Entities that are followed at once: as many as a /20 network has hosts. Past it the longest unseen quiet one goes."""
OUTBOX_SEVERITY: Final = {Severity.LOW: 40, Severity.MEDIUM: 60, Severity.HIGH: 80, Severity.CRITICAL: 100}
"""What a full outbox gives up last."""
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
SUM_ROOM: Final = 1.5
"""Times its limit that the sum of z grows at most: a long incident must not keep it high long after its end."""
SUM_CLEAR: Final = 0.5
"""Hysteresis of the sum: an alert stays active until it is down to this share of its limit."""
CLOCK_STEP_S: Final = 3600.0
"""Windows that are this much older than one already seen mean that the source's clock was wrong before and was set
right: time starts anew. Otherwise one reading stamped with a far future would end detection for good."""


@dataclass(frozen=True, slots=True)
class WindowScored(Event):
    """A window was scored by the armed detector."""

    window: ScoredWindow


@dataclass(frozen=True, slots=True)
class EntityAccepted(Event):
    """A person said that what an entity does is fine.

    Attributes:
        entity: its name.
        reason: the person's words; may be empty.
    """

    entity: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeepEvidence(Effect):
    """Keep what an alert rests on, durably, before the report behind it leaves; it takes the place of what was kept.

    Attributes:
        alert: the alert's id.
        window: its strongest window so far, with its input.
    """

    alert: str
    window: ScoredWindow


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """When a detector speaks.

    Attributes:
        magnitude_p: a window with a smaller p-value fires at once.
        magnitude_factor: so does one whose score is this many times the largest benign one (or the threshold, if
            that is higher).
        sustained_p: the moving average of z is high above Φ⁻¹(1 − this) …
        sustained_margin: … and above the largest that benign windows reached in the calibration stretch, plus this.
        sustained_windows: m of the rule «m of n».
        sustained_span: n of the rule «m of n».
        half_life_windows: half-life of the moving average, in windows of one entity. A score looks at several windows,
            so that neighbouring scores are about the same data: half as many windows make a good half-life.
        clear_p: hysteresis: an alert stays active until the average is as far below its limit as Φ⁻¹(1 − this) is
            below Φ⁻¹(1 − `sustained_p`).
        clear_windows: calm windows in a row that close an alert.
        cooldown_windows: windows after the close within which the same alert goes on instead of a new one.
        per_hour_max: most alerts that are opened an hour of event time.
        cusum_budget_days: days in which the sum of z may fire falsely once for an entity that is always there; 0 does
            without the sum. It finds shifts that are too small for the other rules, and is slow.
    """

    magnitude_p: float = 1e-5
    magnitude_factor: float = 2.0
    sustained_p: float = 1e-2
    sustained_margin: float = 0.5
    sustained_windows: int = 3
    sustained_span: int = 5
    half_life_windows: float = 2.0
    clear_p: float = 0.1
    clear_windows: int = 6
    cooldown_windows: int = 12
    per_hour_max: int = 30
    cusum_budget_days: float = 0.0


@dataclass(slots=True)
class _Track:
    """What is remembered of one entity; `average` is that of z, `sum` that of what it exceeds `REFERENCE` by."""

    recent: deque[bool]
    average: float = 0.0
    sum: float = 0.0
    last_end_s: float = -inf
    length_s: float = 0.0
    calm: int = 0
    suppressed: bool = False
    alert: AlertRecord | None = None

    @property
    def is_open(self) -> bool:
        return self.alert is not None and self.alert.state is not AlertState.CLOSED


class DetectionMachine:
    """The alerts of one detector.

    Args:
        site: the site's id.
        device: this device's id.
        detector: which detector this is, as alerts name it.
        task: the detector's task, for the metrics and for the keys that are persisted.
        settings: when to speak.
    """

    def __init__(self, site: str, device: str, detector: Detector, task: str, settings: DetectionSettings) -> None:
        self._topic = Topics(site).alert(device)
        self._site, self._device, self._detector, self._task = site, device, detector, task
        self._settings = settings
        self._on = z_score(settings.sustained_p)
        self._hysteresis = max(0.0, self._on - z_score(settings.clear_p))
        self._tracks: dict[str, _Track] = {}
        self._alerting: dict[str, _Track] = {}  # those with an alert that is open or cooling
        self._watermark_s = -inf
        self._tokens = float(settings.per_hour_max)
        self._sum_limit: tuple[tuple[float, float], float] = ((0.0, 0.0), inf)

    @property
    def prefix(self) -> str:
        """What every key that this machine persists starts with."""
        return f"alert/{self._task}/"

    @property
    def open_entities(self) -> frozenset[str]:
        """Entities with an open alert: while there is one, the calibration is frozen."""
        return frozenset(entity for entity, track in self._alerting.items() if track.is_open)

    def next_deadline(self) -> float | None:
        """None: the machine lives on event time, and notices silence by the other entities' windows."""
        return None

    def open_alert(self, entity: str) -> AlertRecord | None:
        """The alert that is open on an entity, or None."""
        track = self._alerting.get(entity)
        return track.alert if track is not None and track.is_open else None

    def handle(self, event: WindowScored | EntityAccepted | Tick, now: float) -> list[Effect]:
        """Take one scored window, or a person's word on an entity.

        Args:
            event: the window, or the word; a `Tick` changes nothing.
            now: the shell's clock; not used, see the module's text.
        """
        if isinstance(event, Tick):
            return []
        if isinstance(event, EntityAccepted):
            return self._accept(event)
        window = event.window
        track = self._track(window.entity)
        if window.end_s <= track.last_end_s:
            if track.last_end_s - window.end_s < CLOCK_STEP_S:
                return [Count("machine_events", "discarded", self._task)]
            track.last_end_s = -inf
        self._advance(window.end_s)
        magnitude, sustained = self._judge(track, window)
        return [*self._answer(track, window, magnitude, sustained), *self._close_silent()]

    def restore(self, persisted: Mapping[str, bytes]) -> list[Effect]:
        """Go on with the alerts that were open when the process ended; call it once, before the first event.

        Args:
            persisted: every stored key that starts with `prefix`, and its value.

        Returns:
            The last report of each, to be published again under its receipt id.
        """
        effects: list[Effect] = []
        for key, value in sorted(persisted.items()):
            try:
                record, progress = AlertRecord.from_bytes(value)
            except PeerError as fault:
                effects += [Note("error", f"{key}: {fault}; it is dropped"), Persist(key, None)]
                continue
            effects.append(self._publication(record))
            if record.state is AlertState.CLOSED:
                effects.append(Persist(key, None))
                continue
            track = self._track(record.entity)
            track.alert = record
            track.average, track.last_end_s, track.length_s = progress.average, progress.last_end_s, progress.length_s
            self._alerting[record.entity] = track
            self._watermark_s = max(self._watermark_s, progress.last_end_s)
        return effects

    def _judge(self, track: _Track, window: ScoredWindow) -> tuple[bool, bool]:
        """Update the average; returns whether the window is extreme, and whether the entity's average stays high."""
        settings, length_s = self._settings, max(window.end_s - window.start_s, 0.0)
        pause_s = window.start_s - track.last_end_s
        if 0.0 < pause_s < inf and length_s > 0.0:
            # What was not seen counts as ordinary: the average decays as with windows of z = 0.
            pause = pause_s / length_s
            track.average *= 1.0 - smoothing(pause, settings.half_life_windows)
            track.sum = max(track.sum - pause * REFERENCE, 0.0)
            track.recent.extend([False] * min(math.ceil(pause), settings.sustained_span))
        track.last_end_s, track.length_s = window.end_s, length_s
        if window.learning_limit is not None:
            track.average = track.sum = 0.0
            track.recent.clear()
            return window.score > window.learning_limit, False
        z = z_score(window.p_value)
        track.average += smoothing(1.0, settings.half_life_windows) * (z - track.average)
        high = track.average >= self._limit(window)
        track.recent.append(high)
        beyond = settings.magnitude_factor * max(window.threshold, window.benign_max)
        magnitude = window.p_value < settings.magnitude_p or window.score > beyond
        sustained = high and sum(track.recent) >= settings.sustained_windows
        limit = self._limit_of_sum(window)
        track.sum = min(max(track.sum + z - REFERENCE, 0.0), SUM_ROOM * limit) if limit < inf else 0.0
        return magnitude, sustained or track.sum > limit

    def _limit(self, window: ScoredWindow) -> float:
        return max(self._on, window.benign_average + self._settings.sustained_margin)

    def _limit_of_sum(self, window: ScoredWindow) -> float:
        length_s = window.end_s - window.start_s
        if self._settings.cusum_budget_days <= 0.0 or length_s <= 0.0:
            return inf
        known = (length_s, window.spread)
        if self._sum_limit[0] != known:
            windows = self._settings.cusum_budget_days * DAY_S / length_s
            self._sum_limit = (known, limit_for(windows, spread=window.spread))
        return self._sum_limit[1]

    def _answer(self, track: _Track, window: ScoredWindow, magnitude: bool, sustained: bool) -> list[Effect]:
        """The transition table; see the module's text."""
        alert = track.alert
        if alert is None or not track.is_open:
            if not (magnitude or sustained):
                track.suppressed = False
                self._cool(track, window.entity)
                return []
            if alert is None:
                return self._open(track, window, magnitude)
            return self._report(track, alert.grown(window, magnitude=magnitude), AlertState.UPDATED)
        active = track.average >= self._limit(window) - self._hysteresis
        if magnitude or active or track.sum > SUM_CLEAR * self._limit_of_sum(window):
            track.calm = 0
            track.alert = grown = alert.grown(window, magnitude=magnitude)
            return self._report(track, grown, AlertState.UPDATED) if self._is_news(grown, window) else []
        track.calm += 1
        return self._close(track, alert) if track.calm >= self._settings.clear_windows else []

    def _open(self, track: _Track, window: ScoredWindow, magnitude: bool) -> list[Effect]:
        if self._tokens < 1.0:
            first, track.suppressed = not track.suppressed, True
            return [Count("alerts_suppressed", "rate_limit", self._task)] if first else []
        self._tokens -= 1.0
        track.suppressed = False
        identity = alert_id(self._device, self._detector, window.entity, window.start_s)
        kind = "magnitude" if magnitude else "sustained"
        record = AlertRecord(identity, -1, kind, Severity.LOW, 1, window)  # type: ignore[arg-type]
        self._alerting[window.entity] = track
        track.alert = record
        return self._report(track, record, AlertState.OPEN)

    def _is_news(self, alert: AlertRecord, window: ScoredWindow) -> bool:
        """Whether an open alert is worth a report: its 2nd, 4th, 8th … window, more severe, or for another reason."""
        if alert.count & (alert.count - 1) == 0 or self._severity(alert).rank > alert.severity.rank:
            return True
        # A reason is news once: one that comes and goes must not report each time.
        lead = window.features[0].name if window.features else ""
        return bool(lead) and lead not in alert.reported and window.p_value <= self._settings.sustained_p

    def _report(self, track: _Track, alert: AlertRecord, state: AlertState, summary: str = "") -> list[Effect]:
        track.calm = 0
        effects: list[Effect] = []
        if alert.lacks_evidence:
            effects.append(KeepEvidence(alert.id, alert.strongest))
            alert = replace(alert, evidence_score=alert.strongest.score)
        alert = alert.reporting(
            state,
            self._severity(alert),
            site=self._site,
            device=self._device,
            detector=self._detector,
            summary=summary,
        )
        track.alert = alert
        stored = alert.to_bytes(Progress(track.average, track.last_end_s, track.length_s))
        return [*effects, Persist(self.prefix + alert.id, stored), self._publication(alert)]

    def _accept(self, event: EntityAccepted) -> list[Effect]:
        track = self._tracks.pop(event.entity, None)
        effects: list[Effect] = []
        if track is not None and track.alert is not None and track.is_open:
            words = f": {event.reason}" if event.reason else "; it is learnt"
            effects = self._close(track, track.alert, f"{event.entity}: accepted by a person{words}")
        self._alerting.pop(event.entity, None)
        return effects

    def _close(self, track: _Track, alert: AlertRecord, summary: str = "") -> list[Effect]:
        # The record goes last: a crash before finds it, publishes the close again, and deletes it then.
        effects = [*self._report(track, alert, AlertState.CLOSED, summary), Persist(self.prefix + alert.id, None)]
        track.recent.clear()
        track.sum = 0.0
        if not self._settings.cooldown_windows:
            self._drop(track, alert.entity)
        return effects

    def _cool(self, track: _Track, entity: str) -> None:
        if track.alert is not None:
            track.calm += 1
            if track.calm >= self._settings.cooldown_windows:
                self._drop(track, entity)

    def _drop(self, track: _Track, entity: str) -> None:
        track.alert, track.calm = None, 0
        self._alerting.pop(entity, None)

    def _close_silent(self) -> list[Effect]:
        """Close what is open on entities that have been silent for as long as it takes to clear."""
        effects: list[Effect] = []
        for entity, track in list(self._alerting.items()):
            alert = track.alert
            if alert is None or self._watermark_s - track.last_end_s <= self._settings.clear_windows * track.length_s:
                continue
            if track.is_open:
                effects += self._close(track, alert)
            self._drop(track, entity)
        return effects

    def _severity(self, alert: AlertRecord) -> Severity:
        return severity_of(alert.strongest, len(self.open_entities))

    def _publication(self, alert: AlertRecord) -> Publish:
        severity = OUTBOX_SEVERITY[alert.severity]
        return Publish(self._topic, alert.payload, qos=1, receipt_id=alert.receipt_id, severity=severity)

    def _advance(self, end_s: float) -> None:
        """Move the watermark, and refill the rate limit by what has passed."""
        passed_s = end_s - self._watermark_s if self._watermark_s > -inf else 0.0
        if passed_s >= 0.0 or -passed_s >= CLOCK_STEP_S:
            self._watermark_s = end_s
        passed_s = max(passed_s, 0.0)
        most = float(self._settings.per_hour_max)
        self._tokens = min(most, self._tokens + passed_s * most / HOUR_S)

    def _track(self, entity: str) -> _Track:
        track = self._tracks.get(entity)
        if track is None:
            if len(self._tracks) >= ENTITIES_MAX:
                quiet = (e for e in self._tracks if e not in self._alerting)
                gone = min(quiet, key=lambda e: self._tracks[e].last_end_s, default=None)
                if gone is not None:
                    del self._tracks[gone]
            track = self._tracks[entity] = _Track(deque(maxlen=self._settings.sustained_span))
        return track
