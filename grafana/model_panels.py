"""Panels about candidates, their validation, and drift."""

from __future__ import annotations

from typing import Final

from panels import Panel, Query, Section

MODELS: Final = Section(
    "Models and drift",
    (
        Panel(
            "Candidates by verdict",
            "Candidates of rounds by the validation gate's verdict. A rejected one changes nothing: its round fails.",
            "short",
            (Query("sum by (task, outcome) (increase(vedette_candidates_total{@}[rate]))", "{{task}} {{outcome}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Rejections by validator",
            "Validators that rejected a candidate; `vedette model candidates` says what was found and expected.",
            "short",
            (
                Query(
                    "sum by (task, kind) (increase(vedette_candidate_rejections_total{@}[rate]))", "{{task}} {{kind}}"
                ),
            ),
            width=12,
            stacked=True,
        ),
    ),
)
