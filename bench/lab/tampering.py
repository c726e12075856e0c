"""Tampering with readings on their way to the gateway, for the SIMULATED sensor recordings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from bench.lab.tank import CHANNELS, DAY_S, ROW_PERIOD_S, FloatArray, Manipulation

READING_KINDS = ("stuck", "offset", "drift", "replay", "scaling", "noise", "spikes")
"""Kinds that forge readings only; the process itself goes on undisturbed."""
MANIPULATION_KIND = "actuator_spoof"
"""The kind that takes hold of an actuator and reports something else."""
KINDS = (*READING_KINDS, MANIPULATION_KIND)

CASES_PER_GATEWAY = 4
FIRST_CASE_S = int(4.6 * DAY_S)
CASE_SPACING_S = int(0.72 * DAY_S)
CASE_JITTER_S = int(0.35 * DAY_S)
DURATION_MIN_S = 1_200
DURATION_MAX_S = 10_800


@dataclass(frozen=True, slots=True)
class Case:
    """One planned tampering case.

    Attributes:
        kind: One of :data:`KINDS`.
        start_s: Seconds after the recording's start; a manipulation waits from then on for a full tank.
        duration_s: Planned duration; a manipulation may end sooner.
        channels: Forged channels, the main one first.
        strength: Meaning by kind: offset and final drift in units of the channel's own spread, factor of
            ``scaling``, noise and spikes in spreads, rows to go back of ``replay``; unused by the others.
        actuator: What a manipulation takes hold of, else ``""``.
    """

    kind: str
    start_s: int
    duration_s: int
    channels: tuple[str, ...]
    strength: float
    actuator: str = ""


def _sign(rng: np.random.Generator, channels: tuple[str, ...]) -> float:
    """Up or down; a flow only up, because a negative one would give the forgery away at once."""
    return 1.0 if rng.integers(2) or channels == ("outflow_lpm",) else -1.0


def plan_cases(gateway: int, rng: np.random.Generator) -> tuple[Case, ...]:
    """Plans a gateway's cases: four different kinds, every kind four times over eight gateways.

    Args:
        gateway: Number of the gateway, from 1.
        rng: Source of times, channels and strengths.

    Returns:
        Cases in order of time, hours of benign readings between them.
    """
    cases = []
    for slot in range(CASES_PER_GATEWAY):
        kind = KINDS[(gateway + 3 * slot) % len(KINDS)]
        start_s = FIRST_CASE_S + slot * CASE_SPACING_S + int(rng.integers(CASE_JITTER_S))
        start_s -= start_s % ROW_PERIOD_S
        duration_s = int(rng.integers(DURATION_MIN_S, DURATION_MAX_S + 1))
        channels: tuple[str, ...] = (str(rng.choice(["level_m", "outflow_lpm", "pressure_kpa", "water_temp_c"])),)
        strength = 0.0
        actuator = ""
        if kind == "stuck":
            duration_s = max(duration_s, 2_400)
        elif kind == "offset":
            strength = _sign(rng, channels) * float(rng.uniform(2.0, 3.5))
        elif kind == "drift":
            # A ramp needs time to be slow.
            duration_s = max(duration_s, 5_400)
            strength = _sign(rng, channels) * float(rng.uniform(4.0, 6.0))
        elif kind == "replay":
            channels = (("level_m", "inflow_lpm", "outflow_lpm"), ("pressure_kpa", "outflow_lpm"))[gateway % 2]
            strength = float(rng.integers(int(0.8 * DAY_S), int(1.7 * DAY_S)) // ROW_PERIOD_S)
        elif kind == "scaling":
            channels = (str(rng.choice(["level_m", "outflow_lpm", "pressure_kpa"])),)
            strength = float(rng.uniform(0.45, 0.65) if rng.integers(2) else rng.uniform(1.5, 1.9))
        elif kind == "noise":
            strength = float(rng.uniform(0.5, 1.0))
        elif kind == "spikes":
            strength = float(rng.uniform(2.0, 4.0))
        else:
            actuator = ("pump_off", "valve_open")[(gateway // 2) % 2]
            channels = ("inflow_lpm", "pump_kw") if actuator == "pump_off" else ("valve_pct",)
        duration_s = (duration_s // ROW_PERIOD_S) * ROW_PERIOD_S
        cases.append(Case(kind, start_s, duration_s, channels, strength, actuator))
    return tuple(cases)


def manipulations_of(cases: tuple[Case, ...]) -> tuple[Manipulation, ...]:
    """The cases that the process itself must play out.

    Args:
        cases: A gateway's cases.

    Returns:
        Manipulations in order of time.
    """
    return tuple(
        Manipulation("pump_off" if case.actuator == "pump_off" else "valve_open", case.start_s, case.duration_s)
        for case in cases
        if case.kind == MANIPULATION_KIND
    )


def forge(readings: FloatArray, case: Case, rng: np.random.Generator) -> tuple[int, int]:
    """Forges the readings of one case in place.

    Args:
        readings: ``(rows, 7) float64``, in the order of :data:`CHANNELS`.
        case: A case of one of :data:`READING_KINDS`.
        rng: Source of injected noise and spikes.

    Returns:
        First row and one past the last row.
    """
    first = case.start_s // ROW_PERIOD_S
    last = first + case.duration_s // ROW_PERIOD_S
    rows = last - first
    for name in case.channels:
        channel = CHANNELS.index(name)
        span = readings[first:last, channel]
        # The channel's own spread over the benign days is what "large" is measured with.
        spread = float(np.std(readings[: FIRST_CASE_S // ROW_PERIOD_S, channel]))
        if case.kind == "stuck":
            span[:] = readings[first - 1, channel]
        elif case.kind == "offset":
            span += case.strength * spread
        elif case.kind == "drift":
            span += case.strength * spread * np.linspace(0.0, 1.0, rows)
        elif case.kind == "replay":
            back = int(case.strength)
            span[:] = readings[first - back : last - back, channel].copy()
        elif case.kind == "scaling":
            span *= case.strength
        elif case.kind == "noise":
            span += case.strength * spread * rng.standard_normal(rows)
        elif case.kind == "spikes":
            at = np.cumsum(rng.integers(3, 9, size=rows))
            at = at[at < rows]
            span[at] += case.strength * spread * rng.choice([-1.0, 1.0], size=at.size)
        else:
            raise ValueError(f"kind {case.kind!r} is not a forged reading, expected one of {READING_KINDS}")
    return first, last
