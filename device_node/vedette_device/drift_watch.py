"""Whether what a detector sees still is what it was calibrated on: its scores, and the form of its records.

Everything is about the newest stretch of windows and since the start of the process: nothing of it is persisted. Scores
of neighbouring windows share most of their data, so that whatever counts independent values takes every n-th one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.drift import (
    AdaptiveWindow,
    column_stability,
    distance_from_even,
    kolmogorov_smirnov,
    psi_of_p_values,
)
from vedette_core.learning.layout import Float32
from vedette_core.learning.tail import Float64
from vedette_device.baseline import RANGE_MARGIN, Baseline
from vedette_schemas.features import FeatureSchema
from vedette_schemas.telemetry import DRIFT_COLUMNS_MAX, ColumnDrift, DriftReport

STRETCH: Final = 2048
"""Scores that are compared with the calibration: with inputs of 16 windows 128 independent ones, 17 hours of a process
at 30 s. The PSI of 32 such benign stretches of the shipped tanks was 0.013 in the median and 0.073 at most."""
INDEPENDENT_MIN: Final = 32
"""Fewest independent scores that a report is made of."""
ROWS_KEPT: Final = 128
"""Rows behind what is said of columns; a column that moves in a twentieth of all windows is constant in so many with a
probability of 0.0014."""
SHIFTED_SHARE: Final = 0.5
"""A column is shifted when more than this share of its values lies outside of what the learning phase saw."""
COLUMN_PSI_MIN: Final = 0.1
"""Columns with less are not named: chance gives 0.07 to `ROWS_KEPT` rows."""
LEARNT_ROWS: Final = 512
"""Rows, and not twice as many, that columns are compared with: 4,096 with 256 columns took 0.2 s of a node report."""
REPORTS_KEPT: Final = 60
"""Node reports over which shares of records are taken: an hour at the default pace."""
UNREADABLE: Final = frozenset(
    {
        "address",
        "count",
        "duration",
        "field_count",
        "length",
        "link_type",
        "not_a_number",
        "not_finite",
        "not_json",
        "not_text",
        "timestamp",
    }
)
"""Counters of records that had another form than the source expects."""
MISSING: Final = frozenset({"missing", "missing_value", "path_missing", "row_stale_rows"})
"""Counters of records in which a value was absent."""
DELIVERED: Final = frozenset({"flows", "packets", "rows", "samples"})
"""Counters of records that were good."""


class DriftWatch:
    """Watches one detector.

    Args:
        schema: of its windows.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self._schema = schema
        self._records: deque[tuple[int, int, int]] = deque([(0, 0, 0)], maxlen=REPORTS_KEPT + 1)
        self.restart()

    def restart(self) -> None:
        """Begin anew: another model scores, or the calibration is another."""
        columns = len(self._schema.columns)
        self._scores: deque[float] = deque(maxlen=STRETCH)
        self._p_values: deque[float] = deque(maxlen=STRETCH)
        self._seen = 0
        self._block = 0.0
        self._mean = AdaptiveWindow()
        self._rows = np.zeros((ROWS_KEPT, columns), np.float32)
        self._scaled = np.zeros((ROWS_KEPT, columns), np.float32)
        self._outside = np.zeros((ROWS_KEPT, columns), np.bool_)
        self._rows_seen = 0

    def observe(
        self, score: float, p_value: float, values: npt.NDArray[np.float32], scaled: Float32, baseline: Baseline
    ) -> None:
        """Take one scored window.

        Args:
            score: its score, finite or not.
            p_value: its p-value, in (0, 1].
            values: ``(columns,)`` float32 in the columns' own units.
            scaled: the same, scaled.
            baseline: what the learning phase saw.
        """
        self._p_values.append(p_value)
        if np.isfinite(score):
            self._scores.append(score)
        self._seen += 1
        self._block += p_value
        if self._seen % self._schema.history:
            return
        self._mean.push(min(self._block / self._schema.history, 1.0))
        self._block = 0.0
        place = self._rows_seen % ROWS_KEPT
        self._rows[place], self._scaled[place] = values, scaled
        self._outside[place] = (scaled < baseline.lowest - RANGE_MARGIN) | (scaled > baseline.highest + RANGE_MARGIN)
        self._rows_seen += 1

    def take_records(self, counters: Mapping[str, int]) -> None:
        """Take the source's counters, once a node report."""
        self._records.append(
            (
                sum(counters.get(name, 0) for name in DELIVERED),
                sum(counters.get(name, 0) for name in UNREADABLE),
                sum(counters.get(name, 0) for name in MISSING),
            )
        )

    def report(
        self, calibration: Float64, baseline: Baseline, learnt: npt.NDArray[np.floating[Any]] | None = None
    ) -> DriftReport | None:
        """What has changed; None before there is enough to say.

        Args:
            calibration: ``(n,)`` benign scores that p-values are taken from.
            baseline: what the learning phase saw.
            learnt: ``(n, columns)`` scaled rows that the model learns from here; without them no column's own drift
                is said.
        """
        independent = np.array(self._scores)[:: self._schema.history]
        if len(independent) < INDEPENDENT_MIN:
            return None
        distance, chance = kolmogorov_smirnov(independent, calibration)
        delivered, unreadable, missing = (
            max(new - old, 0) for new, old in zip(self._records[-1], self._records[0], strict=True)
        )
        records = max(delivered + unreadable + missing, 1)
        return DriftReport(
            windows=len(self._p_values),
            psi=psi_of_p_values(np.array(self._p_values)),
            ks=distance,
            ks_p=chance,
            changes=self._mean.changes,
            unreadable_share=unreadable / records,
            missing_share=missing / records,
            constant=self._names(self._is_constant(baseline)),
            shifted=self._names(self._is_shifted()),
            calibration_error=distance_from_even(np.array(self._p_values)),
            columns=self._drifted(learnt),
        )

    def _drifted(self, learnt: npt.NDArray[np.floating[Any]] | None) -> tuple[ColumnDrift, ...]:
        if learnt is None or not len(learnt) or self._rows_seen < ROWS_KEPT:
            return ()
        psi = column_stability(learnt[:: max(1, len(learnt) // LEARNT_ROWS)], self._scaled)
        order = np.argsort(-psi, kind="stable")[:DRIFT_COLUMNS_MAX].tolist()
        return tuple(
            ColumnDrift(name=self._schema.columns[i], psi=float(psi[i])) for i in order if psi[i] >= COLUMN_PSI_MIN
        )

    def _is_constant(self, baseline: Baseline) -> npt.NDArray[np.bool_]:
        if self._rows_seen < ROWS_KEPT:
            return np.zeros(len(self._schema.columns), np.bool_)
        low, high = baseline.usual[""]
        return np.asarray((self._rows.max(axis=0) == self._rows.min(axis=0)) & (high > low))

    def _is_shifted(self) -> npt.NDArray[np.bool_]:
        known = min(self._rows_seen, ROWS_KEPT)
        return np.asarray(self._outside[:known].mean(axis=0) > SHIFTED_SHARE)

    def _names(self, which: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(self._schema.columns[i] for i in np.flatnonzero(which)[:DRIFT_COLUMNS_MAX])
