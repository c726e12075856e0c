"""What a task's releases have cost its devices, and whether another may happen.

The ledger keeps what happened; how much that is, the accountant says. The order in which it is used is the promise:

1. `check` the event: policy may refuse it.
2. `record` it, and write ``event.to_bytes()`` down.
3. Add the noise, write the noised sum down, and only then let anything read it.

A crash in between counts a release that did not happen; no crash can leave one uncounted. Afterwards the same attempt
may go on with what was written down. If its noised sum was not, the very same event is checked again, and passes.

`fold` makes one record of the periods that are over. Write the history first, then delete its events: those that are
still there at the next start are recognised by their round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vedette_core.privacy.accountant import DELTA_MIN
from vedette_core.privacy.events import FoldedHistory, PrivacyEvent
from vedette_core.privacy.exposure import NOTHING, Exposure, epsilon_text, exposure_of
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.round import PrivacyPlan


@dataclass(frozen=True, slots=True)
class Budget:
    """What a device may spend in each period.

    Attributes:
        epsilon_max: largest ε of a device in a period; infinity is no limit.
        delta: δ at which ε is taken.
        participations_max: most releases that a device is in within a period; 0 is no limit.
        period_rounds: rounds of a period, ≥ 1: rounds 1…n, n+1…2n, and so on.
    """

    epsilon_max: float
    delta: float
    participations_max: int
    period_rounds: int

    def __post_init__(self) -> None:
        if not (self.epsilon_max >= 0.0 and DELTA_MIN <= self.delta < 1.0):
            raise ConfigError(
                f"privacy budget: found epsilon_max={self.epsilon_max}, delta={self.delta}; "
                f"expected epsilon_max ≥ 0, and delta from {DELTA_MIN:g} to below 1"
            )
        if self.participations_max < 0 or self.period_rounds < 1:
            raise ConfigError(
                f"privacy budget: found participations_max={self.participations_max}, "
                f"period_rounds={self.period_rounds}; expected at least 0 and 1"
            )

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Budget:
        """The budget that a plan promises; its zero for ε is no limit.

        Raises:
            ConfigError: δ is below what can be computed.
        """
        return cls(plan.epsilon_max or math.inf, plan.delta, plan.participations_max, plan.period_rounds)

    def period_start(self, round_number: int) -> int:
        """First round of the period that a round is in.

        Raises:
            ValueError: rounds count from 1.
        """
        if round_number < 1:
            raise ValueError(f"round: found {round_number}, expected at least 1")
        return (round_number - 1) // self.period_rounds * self.period_rounds + 1


class Ledger:
    """The releases of one task, folded over.

    Attributes:
        task: the task.
        budget: in force now. Another one may have been when the events were written; they are counted as they are.
    """

    def __init__(
        self, task: str, budget: Budget, history: FoldedHistory | None = None, events: Iterable[PrivacyEvent] = ()
    ) -> None:
        """From what was stored.

        Args:
            task: the task.
            budget: in force now.
            history: of the periods that were folded.
            events: in any order; those that the history holds are passed over. The same event twice counts once, two
                different ones of one attempt count both: each may have been released.

        Raises:
            ValueError: something belongs to another task.
        """
        self.task = task
        self.budget = budget
        self._history = history or FoldedHistory(task)
        self._events: dict[tuple[int, int], list[PrivacyEvent]] = {}
        if self._history.task != task:
            raise ValueError(f"history: found task {self._history.task}, expected {task}")
        self._ever = dict(self._history.devices)
        self._window: tuple[int, int, dict[str, Exposure]] = (0, -1, {})  # the period asked for last: summed up once
        for event in events:
            if event.round > self._history.through:
                self.record(event)
            elif event.task != task:
                raise ValueError(f"event: found task {event.task}, expected {task}")

    @property
    def history(self) -> FoldedHistory:
        """What was folded."""
        return self._history

    @property
    def releases(self) -> int:
        """Releases of the whole history."""
        return self._history.releases + sum(len(same) for same in self._events.values())

    @property
    def last_round(self) -> int:
        """Newest round with a release, folded ones included; 0 before the first."""
        return max((number for number, _ in self._events), default=self._history.through)

    def spent(self, device: str, round_number: int) -> Exposure:
        """Of a device in the period that a round is in, whether before or after that round."""
        return self._in_period(round_number).get(device, NOTHING)

    def spent_ever(self, device: str) -> Exposure:
        """Of a device over the whole history."""
        return self._ever.get(device, NOTHING)

    def exposures(self, round_number: int | None = None) -> dict[str, Exposure]:
        """Of every device in the period that a round is in, or ever.

        Where folded rounds reach into the period (its length was changed, or the round is an old one), all that was
        folded counts: more than was spent, never less.

        Raises:
            ValueError: rounds count from 1.
        """
        return dict(self._ever if round_number is None else self._in_period(round_number))

    def most_exposed(self, round_number: int | None = None) -> tuple[str, Exposure]:
        """The device that gave away most in the period that a round is in, or ever; an empty name if none did."""
        exposures = self._ever if round_number is None else self._in_period(round_number)
        device = max(sorted(exposures), key=lambda name: exposures[name].rank, default="")
        return device, exposures.get(device, NOTHING)

    def epsilon_with(self, devices: Iterable[str], round_number: int, noise_multiplier: float) -> float:
        """Largest ε that one of these devices would have in the period, if they took part in a further release.

        Args:
            devices: who would take part; none is 0.
            round_number: the round.
            noise_multiplier: z ≥ 0 of the release.

        Raises:
            ValueError: an argument is out of its range.
        """
        exposures, further = self._in_period(round_number), exposure_of(noise_multiplier)
        after = [exposures.get(device, NOTHING) + further for device in devices]
        return max(after, key=lambda e: e.rank, default=NOTHING).epsilon(self.budget.delta)

    def eligible(self, devices: Iterable[str], round_number: int, noise_multiplier: float) -> tuple[str, ...]:
        """Those that a further release would leave within the budget, in the order given.

        Args:
            devices: who would take part.
            round_number: the round; in a folded period nobody may.
            noise_multiplier: z ≥ 0 of the release.

        Raises:
            ValueError: an argument is out of its range.
        """
        listed = tuple(devices)
        excess = self._excess(listed, round_number, noise_multiplier)
        if round_number <= self._history.through:
            return ()
        return tuple(device for device in listed if device not in excess)

    def check(self, event: PrivacyEvent) -> None:
        """Whether a release may happen. One that was recorded already, as it is, passes: it is that release again.

        Raises:
            RefusedError: rule ``budget``: a device would pass its ε or its participations; rule ``attempt``: something
                else was recorded for this attempt; rule ``period``: the round lies in a folded period.
            ValueError: an event of another task.
        """
        self._same_task(event)
        same = self._events.get(event.key, [])
        if event in same:
            return
        where = f"round {event.round}, attempt {event.attempt} of {event.task}"
        if event.round <= self._history.through:
            raise RefusedError(
                f"privacy: found {where}, expected a round after {self._history.through}: that period is closed",
                rule="period",
            )
        if same:
            raise RefusedError(
                f"privacy: found another release for {where}, expected the one that was recorded, or a new attempt",
                rule="attempt",
            )
        excess = self._excess(event.devices, event.round, event.noise_multiplier)
        if excess:
            device = max(sorted(excess), key=lambda name: excess[name].rank)
            worst = excess[device]
            raise RefusedError(
                f"privacy: found {len(excess)} of {len(event.devices)} devices that {where} would take past the budget "
                f"of their period: {device} to participation {worst.releases} with "
                f"ε = {epsilon_text(worst.epsilon(self.budget.delta))}, expected at most {self._limits()}",
                rule="budget",
            )

    def record(self, event: PrivacyEvent) -> None:
        """Count a release, allowed or not; the same one counts once.

        Raises:
            ValueError: an event of another task, or of a folded period: `check` would have said so.
        """
        self._same_task(event)
        if event.round <= self._history.through:
            raise ValueError(f"event: found round {event.round}, expected one after {self._history.through}")
        same = self._events.setdefault(event.key, [])
        if event in same:
            return
        same.append(event)
        _add(self._ever, event)
        first, last, exposures = self._window
        if first <= event.round <= last:
            _add(exposures, event)

    def fold(self, round_number: int) -> tuple[PrivacyEvent, ...]:
        """Make one record of all that lies before the period of a round, and close those periods.

        Returns:
            The events that `history` stands for from now on: to be deleted once it is written.

        Raises:
            ConfigError: there are too many devices.
            ValueError: rounds count from 1.
        """
        through = self.budget.period_start(round_number) - 1
        if through <= self._history.through:
            return ()
        over = [key for key in sorted(self._events) if key[0] <= through]
        events = tuple(event for key in over for event in self._events[key])
        self._history = self._history.with_events(events, through)
        for key in over:
            del self._events[key]
        self._window = (0, -1, {})
        return events

    def _in_period(self, round_number: int) -> dict[str, Exposure]:
        """As `exposures`, but not to be changed."""
        first = self.budget.period_start(round_number)
        last = first + self.budget.period_rounds - 1
        if self._window[:2] != (first, last):
            exposures = dict(self._history.devices) if first <= self._history.through else {}
            for (number, _), same in self._events.items():
                if first <= number <= last:
                    for event in same:
                        _add(exposures, event)
            self._window = (first, last, exposures)
        return self._window[2]

    def _excess(self, devices: Iterable[str], round_number: int, noise_multiplier: float) -> dict[str, Exposure]:
        """What those devices would have that a further release takes past the budget."""
        exposures, further = self._in_period(round_number), exposure_of(noise_multiplier)
        epsilons: dict[Exposure, float] = {}
        out: dict[str, Exposure] = {}
        for device in devices:
            after = exposures.get(device, NOTHING) + further
            if after not in epsilons:
                epsilons[after] = after.epsilon(self.budget.delta)
            too_often = 0 < self.budget.participations_max < after.releases
            if too_often or epsilons[after] > self.budget.epsilon_max:
                out[device] = after
        return out

    def _limits(self) -> str:
        count = self.budget.participations_max
        epsilon = "any ε" if math.isinf(self.budget.epsilon_max) else f"ε = {self.budget.epsilon_max:g}"
        return f"{count if count else 'any number of'} participations with {epsilon}"

    def _same_task(self, event: PrivacyEvent) -> None:
        if event.task != self.task:
            raise ValueError(f"event: found task {event.task}, expected {self.task}")


def _add(exposures: dict[str, Exposure], event: PrivacyEvent) -> None:
    exposure = event.exposure
    for device in event.devices:
        exposures[device] = exposures.get(device, NOTHING) + exposure
