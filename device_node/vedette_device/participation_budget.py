"""What a device is willing to spend on rounds: its own hours, processor time and energy, and how often.

The aggregator does not hear of it: a device that may not take part does not check in. What it spends counts over all of
its tasks; how often it takes part counts a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgpack

from vedette_core.learning.quiet_hours import DAY_S, QuietHours
from vedette_schemas.errors import ConfigError

FORMAT: Final = 1
SPENDINGS_MAX: Final = 256
"""Trainings that are remembered; with more within a day the two oldest are counted as one, at the later time."""
TASKS_MAX: Final = 64
"""Tasks that are remembered: more than a device has; the one that took part the longest ago goes."""
REST_DAYS_MAX: Final = 7
"""Longest rest behind one training, whatever it cost: a cost may be measured wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipationLimits:
    """What the device's operator allows.

    Attributes:
        quiet_hours: stretches of the day in which it does not join, as in `QuietHours.parse`. A training that has begun
            is finished.
        cpu_s_per_day: processor seconds of training in any 24 hours; 0 is no limit.
        energy_wh_per_day: watt-hours of training in any 24 hours; 0 is no limit.
        rounds_every: it takes part in at most every n-th round of a task, ≥ 1.
        battery_min: least charge to join with, 0…1; counts where the platform tells the charge and it is not charging.

    Raises:
        ConfigError: a number out of range, or quiet hours of another form.
    """

    quiet_hours: tuple[str, ...] = ()
    cpu_s_per_day: float = 0.0
    energy_wh_per_day: float = 0.0
    rounds_every: int = 1
    battery_min: float = 0.0
    hours: QuietHours = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("cpu_s_per_day", "energy_wh_per_day"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"participation: found {name}={value}, expected a number ≥ 0; 0 is no limit")
        if self.rounds_every < 1:
            raise ConfigError(f"participation: found rounds_every={self.rounds_every}, expected 1 or more")
        if not 0 <= self.battery_min <= 1:
            raise ConfigError(f"participation: found battery_min={self.battery_min}, expected 0 to 1")
        object.__setattr__(self, "hours", QuietHours.parse(self.quiet_hours, where="participation: quiet_hours"))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training took.

    Attributes:
        cpu_s: processor seconds.
        energy_wh: watt-hours.
        estimated: whether the energy is `estimate_cost`'s and no measurement (RAPL, a fuel gauge).

    Raises:
        ValueError: a number that is negative or not finite.
    """

    cpu_s: float
    energy_wh: float
    estimated: bool

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.cpu_s) and math.isfinite(self.energy_wh) and self.cpu_s >= 0 and self.energy_wh >= 0
        ):
            raise ValueError(f"cost: found {self.cpu_s} s and {self.energy_wh} Wh, expected numbers ≥ 0")

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.energy_wh + other.energy_wh, self.estimated or other.estimated)


NOTHING: Final = Cost(0.0, 0.0, estimated=False)


def estimate_cost(cpu_s: float, core_watts: float) -> Cost:
    """A cost whose energy is processor time × what a busy core draws: a rough guess, and marked as one.

    Args:
        cpu_s: processor seconds, ≥ 0.
        core_watts: watts of one busy core above idle, from the data sheet or a plug meter, ≥ 0.
    """
    return Cost(cpu_s, cpu_s * core_watts / 3600.0, estimated=True)


@dataclass(frozen=True, slots=True)
class ParticipationBudget:
    """What is left of the limits. Immutable: `record` gives the next one, to be persisted.

    No clock can lock the device out: what lies in the future was written before the clock was set back, and does not
    count until its time comes. So a jump frees the budget early at worst; the limits protect a battery, and not against
    an attacker.

    Attributes:
        limits: the operator's.
        spendings: (epoch seconds, cost) of the trainings that may still count, oldest first.
        last: task → (round, cost) of its last training.
    """

    limits: ParticipationLimits
    spendings: tuple[tuple[float, Cost], ...] = ()
    last: Mapping[str, tuple[int, Cost]] = field(default_factory=dict)

    def may_join(
        self, now: float, task: str, round_number: int, *, battery: float | None = None, charging: bool = False
    ) -> str | None:
        """Why the device does not check in for a round, in words for its log; None if it does.

        Of the budget, what its last training of the task cost must be left. If one training alone costs more than
        a day's budget, half of that must be left, and the device rests behind it for as many days as it cost budgets,
        `REST_DAYS_MAX` at most. Another attempt of a round that it was in is not another round.

        Args:
            now: epoch seconds.
            task: the task.
            round_number: the round that it would be in.
            battery: charge, 0…1; None if the platform does not tell.
            charging: whether it runs on external power.
        """
        limits = self.limits
        if limits.hours.is_quiet(now):
            return f"quiet hours ({', '.join(limits.quiet_hours)})"
        if battery is not None and not charging and battery < limits.battery_min:
            return f"battery at {battery:.0%}, at least {limits.battery_min:.0%} wanted"
        last_round, expected = self.last.get(task, (0, NOTHING))
        # A task that starts again counts from 1: then the last round lies ahead, and says nothing.
        if 0 < last_round < round_number < last_round + limits.rounds_every:
            return f"took part in round {last_round}, every {limits.rounds_every} rounds at most"
        spent = self.spent(now)
        for what, unit, used, more, most in (
            ("processor time", "s", spent.cpu_s, expected.cpu_s, limits.cpu_s_per_day),
            ("energy", "Wh", spent.energy_wh, expected.energy_wh, limits.energy_wh_per_day),
        ):
            needed = more if more <= most else most / 2  # else a second task's small costs would lock this one out
            if most and (used >= most or used + needed > most):
                mark = " (estimated)" if unit == "Wh" and (spent.estimated or expected.estimated) else ""
                return (
                    f"{what}: {used:.6g} {unit}{mark} of {most:.6g} {unit} a day spent, about {more:.6g} {unit} a round"
                )
        return None

    def spent(self, now: float) -> Cost:
        """What counts at `now`: trainings of the last 24 hours, and longer those that cost more than a day's budget."""
        return sum((cost for at, cost in self.spendings if 0 <= now - at < self._rest_s(cost)), NOTHING)

    def record(self, now: float, task: str, round_number: int, cost: Cost) -> ParticipationBudget:
        """The budget after a training, finished or not.

        Args:
            now: epoch seconds.
            task: the task.
            round_number: the round it was for.
            cost: what it took.
        """
        counts = ((at, c) for at, c in self.spendings if -DAY_S < now - at < self._rest_s(c))
        kept = sorted([*counts, (now, cost)], key=lambda spending: spending[0])
        while len(kept) > SPENDINGS_MAX:
            kept[:2] = [(kept[1][0], kept[0][1] + kept[1][1])]
        last = {name: at for name, at in self.last.items() if name != task} | {task: (round_number, cost)}
        while len(last) > TASKS_MAX:
            del last[next(iter(last))]
        return replace(self, spendings=tuple(kept), last=last)

    def _rest_s(self, cost: Cost) -> float:
        budgets = [
            used / most
            for used, most in (
                (cost.cpu_s, self.limits.cpu_s_per_day),
                (cost.energy_wh, self.limits.energy_wh_per_day),
            )
            if most
        ]
        return DAY_S * min(float(REST_DAYS_MAX), max([1.0, *budgets]))

    def to_bytes(self) -> bytes:
        """msgpack of what was spent; the limits are settings and are not in it."""
        return bytes(
            msgpack.packb(
                {
                    "format": FORMAT,
                    "spendings": [[at, *_plain(cost)] for at, cost in self.spendings],
                    "last": [[task, number, *_plain(cost)] for task, (number, cost) in self.last.items()],
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, limits: ParticipationLimits) -> ParticipationBudget:
        """Read `to_bytes`'s form back, under limits that may have changed.

        Raises:
            ConfigError: the store holds something else.
        """
        try:
            plain = msgpack.unpackb(
                data, max_array_len=max(SPENDINGS_MAX, TASKS_MAX), max_map_len=3, max_str_len=60, max_bin_len=0
            )
            if set(plain) != {"format", "spendings", "last"} or plain["format"] != FORMAT:
                raise ValueError("another set of fields or format")
            spendings = tuple((_number(at), _cost(rest)) for at, *rest in plain["spendings"])
            last = {}
            for task, number, *rest in plain["last"]:
                if type(task) is not str or type(number) is not int:
                    raise ValueError(f"task {task!r} in round {number!r}")
                last[task] = (number, _cost(rest))
        except (msgpack.UnpackException, ValueError, TypeError) as fault:
            raise ConfigError(
                f"stored participation budget: found {fault}, expected format {FORMAT}; delete it: the device then "
                "begins with a full budget"
            ) from fault
        return cls(limits, spendings, last)


def _plain(cost: Cost) -> list[Any]:
    return [float(cost.cpu_s), float(cost.energy_wh), cost.estimated]


def _cost(plain: list[Any]) -> Cost:
    cpu_s, energy_wh, estimated = plain
    if type(estimated) is not bool:
        raise ValueError(f"a mark {estimated!r}")
    return Cost(_number(cpu_s), _number(energy_wh), estimated)


def _number(plain: object) -> float:
    if type(plain) is not float or not math.isfinite(plain):
        raise ValueError(f"a number {plain!r}")
    return plain
