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
        Panel(
            "Most drifted column",
            "Stability index of each device's most drifted column against what was learnt. A daily course gives 0.7.",
            "none",
            (Query("sum by (le) (increase(vedette_fleet_feature_psi_bucket{@}[rate]))", "{{le}}"),),
            "heatmap",
            6,
        ),
        Panel(
            "Calibration error",
            "Distance of the devices' p-values from even ones. From 0.25 on a calibration does not hold any more.",
            "none",
            (Query("sum by (le) (increase(vedette_fleet_calibration_error_bucket{@}[rate]))", "{{le}}"),),
            "heatmap",
            6,
        ),
        Panel(
            "Most drifting cohort",
            "Largest share of drifting devices in a cohort of three or more. One alone: something about its kind.",
            "percentunit",
            (Query("max by (task) (vedette_drifting_cohort_share{@})", "{{task}}"),),
            width=6,
        ),
        Panel(
            "Automatic actions",
            "Recalibrations, extra rounds and rollbacks; watched ones are only written down. And cold starts.",
            "short",
            (
                Query("sum by (kind, outcome) (increase(vedette_actions_total{@}[rate]))", "{{kind}} {{outcome}}"),
                Query("sum by (task) (increase(vedette_cold_starts_sent_total{@}[rate]))", "cold start {{task}}"),
            ),
            width=6,
            stacked=True,
        ),
    ),
)
