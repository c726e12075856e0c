"""What the fleet found, judged by the labels and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vedette.demo.recordings import Episode, Recordings, Source

GRACE_S: Final[Mapping[Source, float]] = {"network": 90.0, "sensor": 1800.0}
"""How long after its end an attack still counts: network, the 16 windows an input looks back; tank, its way to rest."""
DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """One alert message: whose, when its window was (epoch seconds of the recording), and whether it opened."""

    gateway: str
    source: Source
    start_s: float
    end_s: float
    opened: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Detection quality of one replay.

    Attributes:
        attacks_total: labelled episodes.
        attacks_detected: episodes with at least one alert.
        missed: the others.
        false_alerts: alerts opened outside every episode and its grace, by gateway.
        benign_days: watched time outside episodes, device-days, by source.
        delay_s: from an episode's start to the end of the window that first alerted, a detected episode.
    """

    attacks_total: int
    attacks_detected: int
    missed: tuple[Episode, ...]
    false_alerts: Mapping[str, int]
    benign_days: Mapping[Source, float]
    delay_s: tuple[float, ...]

    @property
    def false_alerts_total(self) -> int:
        """False alerts of the whole fleet."""
        return sum(self.false_alerts.values())

    @property
    def false_alerts_per_device_day(self) -> float:
        """False alerts a detector-day of benign watching."""
        days = sum(self.benign_days.values())
        return self.false_alerts_total / days if days else 0.0


def judge(
    recordings: Recordings, sightings: Iterable[Sighting], armed_from: Mapping[tuple[str, Source], float]
) -> Verdict:
    """Compare alerts with labels.

    Args:
        recordings: what was replayed.
        sightings: every alert message.
        armed_from: (gateway, source) → recording time from which its detector scored.
    """
    seen = list(sightings)
    missed, delays = [], []
    for episode in recordings.episodes:
        hits = [s.end_s for s in seen if _belongs(s, episode)]
        if hits:
            delays.append(max(0.0, min(hits) - episode.start_s))
        else:
            missed.append(episode)
    false_alerts = {gateway.id: 0 for gateway in recordings.gateways}
    for sighting in seen:
        if sighting.opened and not any(_belongs(sighting, e) for e in recordings.episodes):
            false_alerts[sighting.gateway] = false_alerts.get(sighting.gateway, 0) + 1
    return Verdict(
        attacks_total=len(recordings.episodes),
        attacks_detected=len(delays),
        missed=tuple(missed),
        false_alerts=false_alerts,
        benign_days=_benign_days(recordings, armed_from),
        delay_s=tuple(delays),
    )


def _belongs(sighting: Sighting, episode: Episode) -> bool:
    # A sensor window includes the reading at its end; a network window ends before the packets of the next one.
    reached = sighting.end_s - episode.start_s
    return (
        sighting.gateway == episode.gateway
        and sighting.source == episode.source
        and (reached > 0 or (reached == 0 and episode.source == "sensor"))
        and sighting.start_s < episode.end_s + GRACE_S[episode.source]
    )


def _benign_days(recordings: Recordings, armed_from: Mapping[tuple[str, Source], float]) -> dict[Source, float]:
    days: dict[Source, float] = {"network": 0.0, "sensor": 0.0}
    for gateway in recordings.gateways:
        for source, recording in (("network", gateway.network), ("sensor", gateway.sensor)):
            start = armed_from.get((gateway.id, source))  # type: ignore[arg-type]
            if start is None:
                continue
            attacked = sum(
                min(e.end_s + GRACE_S[e.source], recording.end_s) - max(e.start_s, start)
                for e in recordings.episodes
                if e.gateway == gateway.id and e.source == source and e.end_s > start
            )
            days[source] += max(0.0, recording.end_s - start - attacked) / DAY_S  # type: ignore[index]
    return days
