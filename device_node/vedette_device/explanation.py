"""Why an alert was raised: two attributions of its score, side by side, and whether they agree.

The *share* of a column says where the error is: it is exact, and of the very artifact that scored. The *gradient* says
which input raised the score: a tampered column can spoil the reconstruction of its honest neighbours, so that the error
is theirs and the fault is not. It is computed on request, with the float weights of the release, which the artifact was
made of (`vedette_core.learning.attribution`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.attribution import integrated_gradients
from vedette_core.learning.layout import Float32
from vedette_core.learning.weights_file import read_weights
from vedette_device.calibrated_model import shaped
from vedette_device.evidence import Evidence
from vedette_device.reasons import REASONS_MAX, top_reasons
from vedette_device.scored_input import ENSEMBLE
from vedette_schemas.alert import FeatureReason
from vedette_schemas.errors import PeerError, RefusedError, VedetteError

Agreement = Literal["agree", "partly", "differ"]
Method = Literal["gradients", "ensemble", "shares"]

SCORE_TOLERANCE: Final = 0.25
"""Relative difference of the float weights' score from that of the artifact from which on it is said: what INT8
rounding makes of a score is a few per cent, a bounded reconstruction more."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column's part in a score.

    Attributes:
        name: as in the feature schema.
        value: what was measured in the window where its error is largest, in the column's own unit.
        usual: benign 5th and 95th percentile on this device, same unit.
        share: exact part of the squared score that is the column's error, 0–1; all of them add up to 1.
        gradient: what its values added to the squared score (negative: took from it); None without gradients.
        gradient_share: the same as a part of all that was added or taken, −1 to 1; the absolute ones add up to 1.
        behind: of a hashed column, the name that the alert gave for it.
    """

    name: str
    value: float
    usual: tuple[float, float]
    share: float
    gradient: float | None = None
    gradient_share: float | None = None
    behind: FeatureReason | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One window of the time course.

    Attributes:
        end_s: event time at which it ends, seconds since 1970 UTC.
        score: as it was scored; None where that is not known any more.
        p_value: of the score.
        values: ``(columns,)`` in the columns' own units.
        scored: whether it is the window that the alert rests on.
    """

    end_s: float
    score: float | None
    p_value: float | None
    values: npt.NDArray[np.float32]
    scored: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """An alert, explained.

    Attributes:
        evidence: what it was explained from.
        method: ``gradients`` beside the shares; ``ensemble``: the count ensemble decided, where gradients do not
            apply; ``shares``: the release's weights are not there, and `missing` says why.
        columns: all of them, largest share first.
        course: the entity's newest windows, oldest first.
        agreement: whether both attributions name the same columns; None without gradients.
        missing: why there are no gradients, for people; empty where there are.
        float_score: root mean square of the errors by the float weights; None without gradients.
        artifact_score: the same by the artifact that scored, before the device's own factors.
    """

    evidence: Evidence
    method: Method
    columns: tuple[Column, ...]
    course: tuple[Moment, ...]
    agreement: Agreement | None
    missing: str
    float_score: float | None
    artifact_score: float

    @property
    def leading_share(self) -> Column:
        """The column whose error is the largest part."""
        return self.columns[0]

    @property
    def leading_gradient(self) -> Column | None:
        """The column whose values added most; None without gradients."""
        if self.method != "gradients":
            return None
        return max(self.columns, key=lambda column: column.gradient or 0.0)

    @property
    def is_rough(self) -> bool:
        """Whether the float weights score the input so differently that the gradients tell only part of it."""
        if self.float_score is None:
            return False
        return abs(self.float_score - self.artifact_score) > SCORE_TOLERANCE * self.artifact_score


def explain(evidence: Evidence, weights: bytes | VedetteError) -> Explanation:
    """Explain an alert.

    Args:
        evidence: what was kept for it.
        weights: weights file of the release that scored, or why it is not there.
    """
    squared = evidence.input.squared_ratio.astype(np.float64)
    by_column = squared.sum(axis=0)
    shares = by_column / max(float(by_column.sum()), np.finfo(np.float64).tiny)
    artifact_score = float(np.sqrt(squared.mean()))
    method: Method = "gradients"
    missing, float_score = "", None
    gradients: npt.NDArray[np.float64] | None = None
    if evidence.input.head == ENSEMBLE:
        method = "ensemble"
        missing = (
            "the count ensemble decided, which looks at each count by itself; it has no gradients, and its shares are "
            "the squared distances from the usual counts"
        )
    else:
        try:
            gradients, float_score = _gradients(evidence, weights)
        except VedetteError as fault:
            method, missing = "shares", str(fault)
    columns = _columns(evidence, shares, gradients)
    return Explanation(
        evidence=evidence,
        method=method,
        columns=columns,
        course=_course(evidence),
        agreement=None if gradients is None else _agreement(columns),
        missing=missing,
        float_score=float_score,
        artifact_score=artifact_score,
    )


def _gradients(evidence: Evidence, weights: bytes | VedetteError) -> tuple[npt.NDArray[np.float64], float]:
    """Integrated gradients by column, and the score that the float weights give."""
    if isinstance(weights, VedetteError):
        raise weights
    file = read_weights(weights)
    if file.schema.digest != evidence.schema.digest:
        raise PeerError(
            f"weights of {evidence.model.task} {evidence.model.version}: {evidence.schema.difference(file.schema)}",
            reason="schema",
        )
    network, scale = file.network, evidence.input.scale
    if scale.shape != (network.target_shape[-1],):
        raise PeerError(
            f"weights of {evidence.model.task} {evidence.model.version}: found {network.target_shape[-1]} features, "
            f"expected the {len(scale)} that were scored",
            reason="schema",
        )
    row = shaped(evidence.input.scaled[None], network)
    usual: Float32 = np.zeros_like(row[0])
    parts = integrated_gradients(network, file.weights, row[0], usual, scale)
    error = (network.reconstruct(row, file.weights) - network.target(row)) / scale
    found = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
    if not (np.isfinite(parts).all() and np.isfinite(found)):
        raise RefusedError("weights: found gradients that are not finite, expected numbers", rule="finite")
    return parts.reshape(-1, len(evidence.schema.columns)).sum(axis=0), found


def _columns(
    evidence: Evidence, shares: npt.NDArray[np.float64], gradients: npt.NDArray[np.float64] | None
) -> tuple[Column, ...]:
    given, names = evidence.input, evidence.schema.columns
    worst = given.squared_ratio.argmax(axis=0)
    rows = given.values[-len(given.squared_ratio) :]
    behind = _names_behind(evidence)
    whole = 0.0 if gradients is None else float(np.abs(gradients).sum())
    order: list[int] = np.argsort(-shares, kind="stable").tolist()
    return tuple(
        Column(
            name=names[j],
            value=float(rows[worst[j], j]),
            usual=(float(given.usual[0, j]), float(given.usual[1, j])),
            share=float(shares[j]),
            gradient=None if gradients is None else float(gradients[j]),
            gradient_share=None if gradients is None else float(gradients[j]) / whole if whole else 0.0,
            behind=behind.get(names[j]),
        )
        for j in order
    )


def _names_behind(evidence: Evidence) -> Mapping[str, FeatureReason]:
    """The alert's own reasons by the columns that they stand for, where they are named otherwise."""
    given = evidence.input
    rows = given.values[-len(given.squared_ratio) :]
    by_column = top_reasons(given.squared_ratio, rows, given.usual, evidence.schema.columns)
    if len(by_column) != len(evidence.reasons):
        return {}
    pairs = zip(by_column, evidence.reasons, strict=True)
    return {column.name: reason for column, reason in pairs if column.name != reason.name}


def _agreement(columns: tuple[Column, ...]) -> Agreement:
    by_share = [column.name for column in columns[:REASONS_MAX]]
    ordered = sorted(columns, key=lambda column: -(column.gradient or 0.0))
    by_gradient = [column.name for column in ordered[:REASONS_MAX]]
    if by_share[0] == by_gradient[0]:
        return "agree"
    return "partly" if by_gradient[0] in by_share and by_share[0] in by_gradient else "differ"


def _course(evidence: Evidence) -> tuple[Moment, ...]:
    """The windows of the input, and those that were remembered beside them."""
    length_s = evidence.end_s - evidence.start_s
    found: dict[float, Moment] = {}
    for back, values in enumerate(evidence.input.values[::-1]):
        end_s = evidence.end_s - back * length_s
        found[round(end_s, 3)] = Moment(end_s, None, None, values, False)
    newest = evidence.input.values[-1]
    found[round(evidence.end_s, 3)] = Moment(evidence.end_s, evidence.score, evidence.p_value, newest, True)
    past = evidence.past
    for end_s, score, p_value, row in zip(
        past.end_s.tolist(), past.scores.tolist(), past.p_values.tolist(), past.rows, strict=True
    ):
        is_scored = round(end_s, 3) == round(evidence.end_s, 3)
        found[round(end_s, 3)] = Moment(end_s, score, p_value, row, is_scored)
    return tuple(found[at] for at in sorted(found))
