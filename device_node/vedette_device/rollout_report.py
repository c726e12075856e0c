"""What a device says about rollouts in its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vedette_device.cohort_machine import CohortMachine
from vedette_device.update_machine import UpdateMachine
from vedette_schemas.telemetry import RolloutProgress


class Updating(Protocol):
    """Whoever applies a task's releases."""

    machine: UpdateMachine


def rollout_progress(
    cohorts: Mapping[str, CohortMachine], updates: Mapping[str, Updating]
) -> tuple[RolloutProgress, ...]:
    """How far this device is with the rollout of every task that has one.

    Args:
        cohorts: by task.
        updates: by task; empty before the node is assembled.
    """
    return tuple(
        RolloutProgress(
            task=task, seq=state.seq, candidate=state.candidate, outcome=updates[task].machine.outcome(state.candidate)
        )
        for task, machine in cohorts.items()
        if task in updates and (state := machine.state) is not None
    )
