"""Sensor readings that arrive over MQTT: from (topic, payload) to samples, and from samples to rows on a time grid.

Nothing here talks to a broker: whoever owns the session hands the messages in.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vedette_device.sources.interface import SampleBatch
from vedette_schemas.errors import ConfigError

PAYLOAD_BYTES_MAX = 65_536
"""Largest reading that is decoded: a document of some thousand values."""

CHANNELS_MAX = 128
"""Most channels: with their first differences they fill the largest feature schema."""

ROWS_MAX = 4_096
"""Most rows that one call returns; a gap in the readings that would give more is cut (``rows_cut``)."""

TIME_S_MAX = 253_402_300_799.0
"""The last second of the year 9999: the number of a row that is much later is none that a float can have."""

BACKWARDS_SAMPLES_MAX = 32
"""Late samples in succession that are refused; then the clock was set back, and the grid starts anew."""

_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d{1,6})\]|\[\"([^\"]{1,128})\"\]")


@dataclass(frozen=True, slots=True)
class ChannelTopic:
    """Where the readings of one channel come from.

    Attributes:
        channel: name of the channel.
        topic_filter: MQTT topic filter, ``+`` and ``#`` allowed.
        path: where in the JSON payload the number lies: ``$``, then ``.name``, ``[0]`` or ``["any name"]``.
        time_path: where its time in seconds since the epoch lies; empty for the time of arrival.
    """

    channel: str
    topic_filter: str
    path: str = "$"
    time_path: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading.

    Attributes:
        channel: name of the channel.
        time_s: seconds since the epoch.
        value: finite.
    """

    channel: str
    time_s: float
    value: float


@dataclass(frozen=True, slots=True)
class _Route:
    channel: str
    levels: tuple[str, ...]
    steps: tuple[str | int, ...]
    time_steps: tuple[str | int, ...] | None = field(default=None)


class TopicDecoder:
    """Turns one MQTT message into samples.

    Args:
        channels: where each channel comes from; several may share a topic.

    Raises:
        ConfigError: a channel named twice, too many of them, a filter or a path that is none.
    """

    COUNTERS = (
        "samples",
        "unmatched_topic",
        "payload_too_large",
        "not_json",
        "path_missing",
        "not_a_number",
        "not_finite",
        "time",
    )

    def __init__(self, channels: Sequence[ChannelTopic]) -> None:
        if not 0 < len(channels) <= CHANNELS_MAX:
            raise ConfigError(f"{len(channels)} sensor channels, expected 1 to {CHANNELS_MAX}")
        self.channels = tuple(channel.channel for channel in channels)
        repeated = sorted({name for name in self.channels if self.channels.count(name) > 1})
        if repeated:
            raise ConfigError(f"sensor channels named more than once: {', '.join(repeated)}")
        self._routes = [
            _Route(
                channel=channel.channel,
                levels=_filter_levels(channel.topic_filter),
                steps=_path_steps(channel.path),
                time_steps=_path_steps(channel.time_path) if channel.time_path else None,
            )
            for channel in channels
        ]
        self._counters: Counter[str] = Counter(dict.fromkeys(self.COUNTERS, 0))

    def decode(self, topic: str, payload: bytes, time_s: float) -> list[Sample]:
        """Read the samples out of one message; what cannot be read is counted, never guessed.

        Args:
            topic: the topic it was published on.
            payload: JSON in UTF-8.
            time_s: time of arrival, seconds since the epoch.

        Returns:
            A sample for each channel that the message carries.
        """
        routes = [route for route in self._routes if _matches(route.levels, topic)]
        if not routes:
            return self._refuse("unmatched_topic")
        if len(payload) > PAYLOAD_BYTES_MAX:
            return self._refuse("payload_too_large")
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            return self._refuse("not_json")
        samples = []
        for route in routes:
            value = self._number(document, route.steps)
            moment = time_s if route.time_steps is None else self._number(document, route.time_steps)
            if moment is not None and not 0 <= moment <= TIME_S_MAX:
                self._counters["time"] += 1
            elif value is not None and moment is not None:
                samples.append(Sample(route.channel, moment, value))
        self._counters["samples"] += len(samples)
        return samples

    def _number(self, document: Any, steps: tuple[str | int, ...]) -> float | None:
        for step in steps:
            try:
                document = document[step]
            except (KeyError, IndexError, TypeError):
                self._counters["path_missing"] += 1
                return None
        if not isinstance(document, int | float):  # a bool is an int: a valve's true and false become 1 and 0
            self._counters["not_a_number"] += 1
            return None
        try:
            number = float(document)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._counters["not_finite"] += 1
            return None
        return number

    def _refuse(self, reason: str) -> list[Sample]:
        self._counters[reason] += 1
        return []

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)


class SampleAligner:
    """Puts the samples of all channels onto one time grid, holding each channel's last value.

    A row stands at a whole multiple of the period. It is complete when a later sample has come (or ``advance`` says
    that time has passed), and is left out when a channel has no value that is young enough: a hole is better than a
    reading that nobody took.

    Args:
        channels: names, in the order of a row's values.
        period_s: seconds from row to row.
        age_max_s: seconds for which a value may be held.

    Raises:
        ConfigError: a number out of range.
    """

    COUNTERS = ("rows", "stale_rows", "late_samples", "unknown_channel", "rows_cut", "clock_steps")

    def __init__(self, channels: Sequence[str], *, period_s: float, age_max_s: float) -> None:
        if not (math.isfinite(period_s) and period_s > 0):
            raise ConfigError(f"sample period is {period_s} s, expected more than 0")
        if not (math.isfinite(age_max_s) and age_max_s >= 0):
            raise ConfigError(f"largest age of a held value is {age_max_s} s, expected 0 or more")
        self.channels = tuple(channels)
        self._place = {name: place for place, name in enumerate(self.channels)}
        self._period_s, self._age_max_s = period_s, age_max_s
        self._counters: Counter[str] = Counter(dict.fromkeys(self.COUNTERS, 0))
        self._restart()

    def _restart(self) -> None:
        self._values = np.zeros(len(self.channels))
        self._times = np.full(len(self.channels), -math.inf)
        self._next_row: int | None = None
        self._late_run = 0

    def push(self, samples: Sequence[Sample]) -> SampleBatch:
        """Take samples in the order of arrival; return the rows that became complete."""
        times: list[float] = []
        rows: list[list[float]] = []
        for sample in samples:
            place = self._place.get(sample.channel)
            if place is None:
                self._counters["unknown_channel"] += 1
                continue
            row = math.ceil(sample.time_s / self._period_s)
            behind = self._next_row is not None and row < self._next_row
            if behind or sample.time_s < self._times[place]:
                self._counters["late_samples"] += 1
                self._late_run += 1
                if self._late_run <= BACKWARDS_SAMPLES_MAX:
                    continue
                self._counters["clock_steps"] += 1
                self._restart()
            self._late_run = 0
            # Rows strictly before this sample are complete; the row at its own time still waits for others.
            self._emit_before(row, times, rows)
            self._values[place], self._times[place] = sample.value, sample.time_s
        return self._batch(times, rows)

    def advance(self, now_s: float) -> SampleBatch:
        """Return the rows before ``now_s``, when nothing has come for a while."""
        times: list[float] = []
        rows: list[list[float]] = []
        if self._next_row is not None:
            self._emit_before(math.ceil(now_s / self._period_s), times, rows)
        return self._batch(times, rows)

    def _emit_before(self, row: int, times: list[float], rows: list[list[float]]) -> None:
        if self._next_row is None:
            self._next_row = row
            return
        # Behind the oldest channel's last value plus its age every row is stale: no need to visit them.
        fresh_until = float(self._times.min()) + self._age_max_s
        while self._next_row < row:
            time_s = self._next_row * self._period_s
            if time_s > fresh_until:
                self._counters["stale_rows"] += row - self._next_row
                break
            if len(times) >= ROWS_MAX:
                self._counters["rows_cut"] += row - self._next_row
                break
            times.append(time_s)
            rows.append(self._values.tolist())
            self._next_row += 1
        self._next_row = max(self._next_row, row)

    def _batch(self, times: list[float], rows: list[list[float]]) -> SampleBatch:
        self._counters["rows"] += len(times)
        values = np.array(rows, dtype=np.float64).reshape(len(times), len(self.channels))
        return SampleBatch(self.channels, np.array(times, dtype=np.float64), values)

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)


def _filter_levels(topic_filter: str) -> tuple[str, ...]:
    levels = tuple(topic_filter.split("/"))
    for place, level in enumerate(levels):
        last = place == len(levels) - 1
        if (level != "#" and "#" in level) or (level == "#" and not last) or (level != "+" and "+" in level):
            raise ConfigError(f"topic filter {topic_filter!r}: wildcard in level {level!r} is not alone or not last")
    if not topic_filter or "\0" in topic_filter:
        raise ConfigError(f"topic filter {topic_filter!r} is empty or has a zero character")
    return levels


def _matches(levels: tuple[str, ...], topic: str) -> bool:
    """Source: MQTT 3.1.1 §4.7."""
    parts = topic.split("/")
    if topic.startswith("$") and levels[0] in ("+", "#"):
        return False
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(parts) or level not in ("+", parts[place]):
            return False
    return len(parts) == len(levels)


def _path_steps(path: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    at = 1
    while path.startswith("$") and at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            break
        name, index, quoted = match.groups()
        steps.append(int(index) if index is not None else (name or quoted))
        at = match.end()
    if not path.startswith("$") or at < len(path):
        raise ConfigError(f'JSON path {path!r}: expected $ followed by .name, [0] or ["any name"]')
    return tuple(steps)
