"""Ties the gate of a task to a running aggregator: its record, its metrics, and what its rounds have cost so far."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Final

from vedette_aggregator.candidate_gate import CandidateGate
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.round_gauges import epsilon_spent
from vedette_aggregator.round_machine import RoundMachine
from vedette_aggregator.validation import GateVerdict, Validator
from vedette_core.runtime.metrics import Metrics

INDEPENDENT: Final = "independent-validator"
"""Label of candidates that passed the gate, and that the second signer refused or did not answer."""


def watch_gate(gate: CandidateGate, lineage: Lineage, metrics: Metrics, machine: Callable[[], RoundMachine]) -> None:
    """Let a gate write into the aggregator's state and metrics.

    Args:
        gate: the task's.
        lineage: the aggregator's record.
        metrics: the aggregator's.
        machine: the task's rounds; asked for once there is a candidate.
    """

    def told(task: str, verdict: GateVerdict) -> None:
        against = "rejected" if gate.settings.mode == "enforce" else "watched"
        metrics.inc("candidates", task, "accepted" if verdict.accepted else against)
        for rejection in verdict.rejections:
            metrics.inc("candidate_rejections", task, rejection.validator.value)

    def spent() -> float | None:
        epsilon = epsilon_spent(machine())
        return epsilon if isfinite(epsilon) else None

    gate.lineage, gate.told, gate.spent = lineage, told, spent
    gate.told_refused = lambda task: metrics.inc("candidate_rejections", task, INDEPENDENT)
    # The first increase of a counter that was not there before is not seen.
    for outcome in ("accepted", "rejected"):
        metrics.inc("candidates", gate.task, outcome, by=0)
    for kind in (*(validator.value for validator in Validator), INDEPENDENT):
        metrics.inc("candidate_rejections", gate.task, kind, by=0)
