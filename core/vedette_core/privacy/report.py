"""The privacy ledger as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vedette_core.privacy.ledger import Budget, Ledger

NEWCOMER: Final = ""
"""Stands for a device that was in no release; no device has this id."""


@dataclass(frozen=True, slots=True)
class PrivacyRow:
    """One task. Every ε is at `budget.delta`; infinity is ``unbounded`` (`vedette_core.privacy.exposure.epsilon_text`).

    Attributes:
        task: the task.
        round: the round that would be next; its period is the one that is told of.
        period: first and last round of that period.
        releases: counted over the whole history.
        most_exposed: the device that gave away most in the period; empty if none took part.
        participations: of that device in the period.
        epsilon_period: of that device in the period.
        most_exposed_ever: the device that gave away most over the whole history; empty if none took part.
        participations_ever: of that device.
        epsilon_ever: of that device.
        budget: what a device may spend in a period.
        noise_multiplier: z of a further round.
        epsilon_further: of the device in the period that would have most after a further round.
        refused: how many devices a further round would be refused for.
        asked: how many devices a further round was reckoned for.
    """

    task: str
    round: int
    period: tuple[int, int]
    releases: int
    most_exposed: str
    participations: int
    epsilon_period: float
    most_exposed_ever: str
    participations_ever: int
    epsilon_ever: float
    budget: Budget
    noise_multiplier: float
    epsilon_further: float
    refused: int
    asked: int

    @property
    def would_be_refused(self) -> bool:
        """Whether a round with all the devices asked for would be refused."""
        return self.refused > 0


def privacy_row(
    ledger: Ledger, round_number: int, noise_multiplier: float, devices: Sequence[str] | None = None
) -> PrivacyRow:
    """What the ledger says before a round.

    Args:
        ledger: of the task.
        round_number: the round that would be next, ≥ 1.
        noise_multiplier: its z ≥ 0.
        devices: who would take part. Not given, it is everyone who took part in the period, or one new device.

    Raises:
        ValueError: an argument is out of its range.
    """
    delta = ledger.budget.delta
    device, spent = ledger.most_exposed(round_number)
    device_ever, spent_ever = ledger.most_exposed()
    asked = (tuple(sorted(ledger.exposures(round_number))) or (NEWCOMER,)) if devices is None else tuple(devices)
    start = ledger.budget.period_start(round_number)
    return PrivacyRow(
        task=ledger.task,
        round=round_number,
        period=(start, start + ledger.budget.period_rounds - 1),
        releases=ledger.releases,
        most_exposed=device,
        participations=spent.releases,
        epsilon_period=spent.epsilon(delta),
        most_exposed_ever=device_ever,
        participations_ever=spent_ever.releases,
        epsilon_ever=spent_ever.epsilon(delta),
        budget=ledger.budget,
        noise_multiplier=noise_multiplier,
        epsilon_further=ledger.epsilon_with(asked, round_number, noise_multiplier),
        refused=len(asked) - len(ledger.eligible(asked, round_number, noise_multiplier)),
        asked=len(asked),
    )


def privacy_rows(ledgers: Sequence[tuple[Ledger, int, float]]) -> tuple[PrivacyRow, ...]:
    """One row a task, sorted by task.

    Args:
        ledgers: of each task: its ledger, the round that would be next, and that round's z.

    Raises:
        ValueError: an argument is out of its range.
    """
    rows = [privacy_row(ledger, round_number, multiplier) for ledger, round_number, multiplier in ledgers]
    return tuple(sorted(rows, key=lambda row: row.task))
