"""The privacy ledgers of an aggregator, read beside it."""

from __future__ import annotations

from vedette_aggregator.round_memory import read_ledger
from vedette_aggregator.round_state import RoundKeys, RoundRecord
from vedette_aggregator.settings import AggregatorSettings
from vedette_aggregator.state_file import open_state
from vedette_core.privacy.ledger import Budget
from vedette_core.privacy.report import PrivacyRow, privacy_rows
from vedette_core.runtime.storage import StateStore
from vedette_schemas.round import PrivacyPlan


def privacy_rows_of(settings: AggregatorSettings) -> tuple[PrivacyRow, ...]:
    """One row a task, under the budget that the settings ask for.

    Raises:
        ConfigError: there is no state, or it cannot be read.
    """
    with open_state(settings) as database:
        store = StateStore(database)
        rows = []
        for task in settings.tasks:
            keys = RoundKeys(task.task)
            stored = store.get(keys.state)
            number = RoundRecord.from_bytes(stored, keys.state).round if stored is not None else 0
            promised = task.privacy
            budget = Budget.of(
                PrivacyPlan(
                    noise_multiplier=promised.noise_multiplier,
                    delta=promised.delta,
                    epsilon_max=promised.epsilon_max,
                    participations_max=promised.participations_max,
                    period_rounds=promised.period_rounds,
                )
            )
            ledger = read_ledger(keys, budget, store.all(f"privacy/{task.task}/"))
            rows.append((ledger, number + 1, promised.noise_multiplier))
    return privacy_rows(rows)
