"""What a task's rounds show on the metrics page."""

from __future__ import annotations

from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.round_machine import RoundMachine
from vedette_core.runtime.metrics import Metrics
from vedette_schemas.round import Phase


def show_round(metrics: Metrics, task: str, machine: RoundMachine) -> None:
    """The round's number, phase and members."""
    if machine.members:
        metrics.set("round_members", task, value=machine.members)
    metrics.set("round_number", task, value=machine.round)
    for phase in Phase:
        metrics.set("round_phase", task, phase.value, value=float(machine.state.value == phase.value))


def show_release(metrics: Metrics, task: str, version: int, candidate: Candidate) -> None:
    """What a round came to."""
    metrics.inc("releases", task)
    metrics.set("release_version", task, value=version)
    for stage in ("before", "after"):
        loss = candidate.metrics.get(f"loss_{stage}")
        if loss is not None:
            metrics.set("round_loss", task, stage, value=loss)
    metrics.set("round_participants", task, value=len(candidate.contributors))


def epsilon_spent(machine: RoundMachine) -> float:
    """ε of the device that is exposed most, so far; infinite where updates leave without noise."""
    ledger = machine.memory.ledger
    _, exposure = ledger.most_exposed(max(1, machine.round))
    return exposure.epsilon(ledger.budget.delta)


def show_protection(metrics: Metrics, task: str, machine: RoundMachine, suspicion_min: float) -> None:
    """What was spent of the privacy budget, and who stands out.

    Args:
        metrics: the aggregator's.
        task: the task.
        machine: its rounds.
        suspicion_min: from which a device counts as a suspect.
    """
    memory = machine.memory
    metrics.set("privacy_epsilon", task, value=epsilon_spent(machine))
    metrics.set("privacy_epsilon_max", task, value=memory.ledger.budget.epsilon_max)
    ranked = memory.suspicions.ranked()
    metrics.set("suspicion_max", task, value=ranked[0][1] if ranked else 0.0)
    metrics.set("suspects", task, value=len(memory.suspicions.suspects(suspicion_min)))
