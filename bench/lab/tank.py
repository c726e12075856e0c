"""A water tank with a pump and an outlet valve: the process behind the SIMULATED sensor recordings.

The model is a mass and heat balance, integrated with a fixed step. Everything is a plain ``float`` computed with
:mod:`math`, so that the same seed gives the same readings on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

ROW_PERIOD_S = 30
"""Seconds between two rows: what a small PLC logger commonly stores."""
STEPS_PER_ROW = 3
"""Integration steps a row; 10 s is well below the shortest time constant (the pump's 20 s spin-up)."""
STEP_S = ROW_PERIOD_S / STEPS_PER_ROW
DAY_S = 86_400

CHANNELS = (
    "level_m",
    "inflow_lpm",
    "outflow_lpm",
    "pump_kw",
    "valve_pct",
    "pressure_kpa",
    "water_temp_c",
)
"""Channel names, unit last: metres, litres a minute, kilowatts, per cent, kilopascals, degrees Celsius."""

RESOLUTION = (0.001, 0.5, 0.5, 0.01, 0.1, 0.05, 0.02)
"""Least significant step of each channel's transmitter, in the channel's unit."""
DECIMALS = (3, 1, 1, 2, 1, 2, 2)
"""Digits after the point with which each channel is written."""
NOISE_SD = (0.003, 1.2, 1.2, 0.02, 0.25, 0.12, 0.05)
"""Standard deviation of each transmitter's white noise, in the channel's unit; at least two resolution steps, so that
a healthy channel never shows a flat line."""
DRIFT_SD = (0.002, 0.4, 0.4, 0.006, 0.12, 0.08, 0.04)
"""Standard deviation of each transmitter's slow, mean-reverting zero drift (time constant one day)."""

WATER_KPA_PER_M = 9.81


@dataclass(frozen=True, slots=True)
class Tank:
    """One gateway's process: geometry, pump, consumers and surroundings.

    Attributes:
        area_m2: Cross-section of the tank.
        level_low_m: The pump starts below this level.
        level_high_m: The pump stops above this level.
        pump_lpm: Flow of the pump when new and at rated voltage.
        pump_rated_kw: Its electrical power then.
        demand_lpm: The consumers' average draw.
        valve_gain: Outflow in L/min of the fully open valve under one metre of water.
        weekend_factor: Demand on Saturday and Sunday against weekdays.
        supply_temp_c: Temperature of the water that is pumped in.
        ambient_mean_c: Mean temperature of the surroundings.
        ambient_swing_c: Amplitude of their day cycle.
        morning_peak_h: Hour of the morning peak of demand.
        evening_peak_h: Hour of the evening peak of demand.
    """

    area_m2: float
    level_low_m: float
    level_high_m: float
    pump_lpm: float
    pump_rated_kw: float
    demand_lpm: float
    valve_gain: float
    weekend_factor: float
    supply_temp_c: float
    ambient_mean_c: float
    ambient_swing_c: float
    morning_peak_h: float
    evening_peak_h: float


@dataclass(frozen=True, slots=True)
class Manipulation:
    """Somebody takes hold of an actuator and forges what it reports.

    The manipulation begins at the first moment from ``earliest_s`` on at which the tank is full, and ends after
    ``duration_max_s``, or sooner when the level has fallen to the low mark (the plant's own safety stop).

    Attributes:
        actuator: ``pump_off`` keeps the pump off while power and inflow are reported as running;
            ``valve_open`` opens the outlet wide while the position is reported as commanded.
        earliest_s: Seconds after the start of the recording.
        duration_max_s: Longest duration.
    """

    actuator: Literal["pump_off", "valve_open"]
    earliest_s: float
    duration_max_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation gives back.

    Attributes:
        readings: Readings before quantisation, ``(rows, 7) float64``, in the order of :data:`CHANNELS`.
        manipulated: For each manipulation, first row and one past the last row, in the order they were given.
    """

    readings: FloatArray
    manipulated: tuple[tuple[int, int], ...]


def draw_tank(rng: np.random.Generator) -> Tank:
    """Draws one gateway's tank.

    Args:
        rng: Source of the differences between gateways.

    Returns:
        A tank whose pump is always stronger than the peak of demand.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    demand = between(60.0, 105.0)
    low = between(1.1, 1.5)
    return Tank(
        area_m2=between(7.0, 13.0),
        level_low_m=low,
        level_high_m=low + between(0.6, 0.9),
        pump_lpm=demand * between(2.5, 3.0),
        pump_rated_kw=between(1.4, 3.2),
        demand_lpm=demand,
        valve_gain=demand * between(2.3, 2.7),
        weekend_factor=between(0.8, 1.1),
        supply_temp_c=between(9.5, 12.5),
        ambient_mean_c=between(13.0, 19.0),
        ambient_swing_c=between(3.0, 6.0),
        morning_peak_h=between(6.5, 8.5),
        evening_peak_h=between(18.0, 20.0),
    )


def demand_share(tank: Tank, time_s: float) -> float:
    """The day cycle of demand.

    Args:
        tank: The tank.
        time_s: Seconds after the recording's start, which is a Friday's midnight.

    Returns:
        Demand against its average, about 0.5 at night to 1.7 at the peaks.
    """
    hour = (time_s % DAY_S) / 3600.0
    day = int(time_s // DAY_S) % 7
    share = 0.5
    for peak_h, height, width_h in (
        (tank.morning_peak_h, 1.1, 1.5),
        (13.0, 0.5, 2.5),
        (tank.evening_peak_h, 1.2, 2.0),
    ):
        apart_h = abs(hour - peak_h)
        apart_h = min(apart_h, 24.0 - apart_h)
        share += height * math.exp(-0.5 * (apart_h / width_h) ** 2)
    return share * (tank.weekend_factor if day in (1, 2) else 1.0)


class _Wander:
    """A mean-reverting random walk (Ornstein-Uhlenbeck), stepped exactly."""

    def __init__(self, sd: float, time_constant_s: float, step_s: float, noise: FloatArray) -> None:
        self._keep = math.exp(-step_s / time_constant_s)
        self._push = sd * math.sqrt(1.0 - self._keep * self._keep)
        self._noise = noise
        self._value = sd * float(noise[0])

    def step(self, index: int) -> float:
        self._value = self._keep * self._value + self._push * float(self._noise[index])
        return self._value


def _draws(rng: np.random.Generator, steps: int) -> FloatArray:
    """Extra draws of consumers (a filling washer, a hose): litres a minute for each step, ``(steps,) float64``."""
    extra = np.zeros(steps)
    at_s = float(rng.exponential(2400.0))
    while at_s < steps * STEP_S:
        first = int(at_s / STEP_S)
        last = first + int(float(rng.uniform(180.0, 720.0)) / STEP_S)
        extra[first:last] += float(rng.uniform(12.0, 35.0))
        at_s += float(rng.exponential(2400.0))
    return extra


def simulate(tank: Tank, rows: int, rng: np.random.Generator, manipulations: tuple[Manipulation, ...] = ()) -> Run:
    """Runs the process and reads its transmitters.

    The random numbers do not depend on the manipulations: until the first of them, the readings are the same with
    and without.

    Args:
        tank: The process.
        rows: Rows to make, one each :data:`ROW_PERIOD_S`.
        rng: Source of demand, weather and noise.
        manipulations: Actuator manipulations, in order of time.

    Returns:
        Readings and the rows that each manipulation covered.
    """
    steps = rows * STEPS_PER_ROW
    walks = rng.standard_normal((4, steps))
    demand_walk = _Wander(0.09, 1200.0, STEP_S, walks[0])
    back_pressure = _Wander(0.015, 300.0, STEP_S, walks[1])
    voltage = _Wander(0.006, 600.0, STEP_S, walks[2])
    weather = _Wander(0.8, 1.5 * DAY_S, STEP_S, walks[3])
    extra = _draws(rng, steps)
    noise = rng.standard_normal((rows, len(CHANNELS)))
    drift_noise = rng.standard_normal((len(CHANNELS), rows))
    drifts = [_Wander(sd, float(DAY_S), ROW_PERIOD_S, drift_noise[c]) for c, sd in enumerate(DRIFT_SD)]

    level = (tank.level_low_m + tank.level_high_m) / 2.0
    inflow = 0.0
    valve = 40.0
    temp = (tank.supply_temp_c + tank.ambient_mean_c) / 2.0
    pump_on = False
    was_on = False
    readings = np.empty((rows, len(CHANNELS)))
    spans: list[tuple[int, int]] = []
    waiting = list(manipulations)
    active: Manipulation | None = None
    active_row = 0
    filled = False
    litres = tank.area_m2 * 1000.0

    for row in range(rows):
        # A manipulation starts and ends on a row, so that its label is exact.
        if active is not None:
            span_s = (row - active_row) * ROW_PERIOD_S
            drained = level <= tank.level_low_m and span_s >= 1200.0
            if span_s >= active.duration_max_s or drained:
                spans.append((active_row, row))
                active = None
        if active is None and waiting and filled and row * ROW_PERIOD_S >= waiting[0].earliest_s:
            active, active_row = waiting.pop(0), row
        filled = False

        for sub in range(STEPS_PER_ROW):
            step = row * STEPS_PER_ROW + sub
            now_s = step * STEP_S
            swing = math.sin(2.0 * math.pi * (now_s / DAY_S - 0.4))
            mains = 1.0 + 0.012 * math.sin(2.0 * math.pi * (now_s / DAY_S + 0.1)) + voltage.step(step)
            wear = 1.0 - 0.01 * now_s / (8.0 * DAY_S)

            if level <= tank.level_low_m:
                pump_on = True
            elif level >= tank.level_high_m:
                pump_on = False
            filled = filled or (was_on and not pump_on)
            was_on = pump_on
            running = pump_on and not (active is not None and active.actuator == "pump_off")

            head = max(level, 0.05)
            wanted = tank.demand_lpm * demand_share(tank, now_s) * math.exp(demand_walk.step(step)) + extra[step]
            command = min(100.0, 100.0 * wanted / (tank.valve_gain * math.sqrt(head)))
            if active is not None and active.actuator == "valve_open":
                command = 97.0
            if abs(command - valve) > 0.4:
                valve += max(-6.0, min(6.0, command - valve))
            outflow = tank.valve_gain * valve / 100.0 * math.sqrt(head) * (1.0 + back_pressure.step(step))

            target = tank.pump_lpm * wear * mains * (1.0 - 0.05 * (level - tank.level_low_m)) if running else 0.0
            inflow += (target - inflow) * (1.0 - math.exp(-STEP_S / 20.0))
            power = tank.pump_rated_kw * mains * (0.55 + 0.45 * inflow / tank.pump_lpm) if running else 0.04
            level = max(0.05, level + (inflow - outflow) * STEP_S / 60.0 / litres)
            ambient = tank.ambient_mean_c + tank.ambient_swing_c * swing + weather.step(step)
            temp += (tank.supply_temp_c - temp) * inflow * STEP_S / 60.0 / (litres * head)
            temp += (ambient - temp) * STEP_S / (14.0 * 3600.0)

        pressure = WATER_KPA_PER_M * level + 2.5 * (inflow / tank.pump_lpm) ** 2
        pressure -= 2.0 * (outflow / (2.0 * tank.demand_lpm)) ** 2
        reported_power, reported_inflow, reported_valve = power, inflow, valve
        if active is not None and active.actuator == "pump_off":
            reported_power, reported_inflow = tank.pump_rated_kw, 0.98 * tank.pump_lpm
        elif active is not None:
            reported_valve = min(100.0, 100.0 * wanted / (tank.valve_gain * math.sqrt(head)))
        truth = (level, reported_inflow, outflow, reported_power, reported_valve, pressure, temp)
        for channel, value in enumerate(truth):
            error = NOISE_SD[channel] * float(noise[row, channel]) + drifts[channel].step(row)
            readings[row, channel] = value + error
    if active is not None:
        spans.append((active_row, rows))
    return Run(readings, tuple(spans))
