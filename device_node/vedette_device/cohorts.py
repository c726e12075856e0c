"""The shell of a device's cohort machines: one a task, and what it says of them in its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from vedette_core.machine import Effect, Event, Persist, Tick
from vedette_core.runtime.storage import StateStore
from vedette_device.cohort_machine import CohortMachine, RolloutReceived
from vedette_device.update_machine import UpdateMachine
from vedette_schemas.telemetry import RolloutProgress


class Updating(Protocol):
    """Whoever applies a task's releases."""

    machine: UpdateMachine


class Cohorts:
    """Which release each task of this device goes to.

    Args:
        device: the device's id.
        tasks: its tasks.
        store: where the machines persist.
        carry_out: carries out their effects.
        changed: called when a rollout state was taken.
    """

    def __init__(
        self,
        device: str,
        tasks: Sequence[str],
        store: StateStore,
        carry_out: Callable[[Sequence[Effect]], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._machines = {task: CohortMachine(task, device, store.get(f"rollout/{task}")) for task in tasks}
        self._carry_out, self._changed = carry_out, changed
        self._turn = asyncio.Lock()

    async def step(self, task: str, event: Event) -> None:
        """Give a task's machine an event."""
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turn:
            effects = self._machines[task].handle(event, time.time())
            await self._carry_out(effects)
        if isinstance(event, RolloutReceived) and any(isinstance(e, Persist) for e in effects):
            self._changed()

    async def tick(self, overdue: bool) -> None:
        """Tick the machines that are due, or all of them."""
        for task, machine in self._machines.items():
            deadline = machine.next_deadline()
            if overdue or (deadline is not None and deadline <= time.time()):
                await self.step(task, Tick())

    def progress(self, updates: Mapping[str, Updating]) -> tuple[RolloutProgress, ...]:
        """How far this device is with the rollout of every task that has one: what it says in its state.

        Args:
            updates: by task; empty before the node is assembled.
        """
        return tuple(
            RolloutProgress(
                task=task,
                seq=state.seq,
                candidate=state.candidate,
                outcome=updates[task].machine.outcome(state.candidate),
            )
            for task, machine in self._machines.items()
            if task in updates and (state := machine.state) is not None
        )
