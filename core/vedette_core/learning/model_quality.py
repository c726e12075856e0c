"""How good a model is on windows that somebody vouches for: the figures that a validation gate compares.

A device calibrates on its own windows and ranks new ones among them. The same is done here with the windows of a kind
of device: one part calibrates, the other is judged, so that the false positives are those at the very threshold that a
device would have. Reconstructions are not bounded by what a device saw while it learnt, and the count ensemble of a
behaviour task is not in the score: both belong to the device. Figures are therefore for comparing two models, and a
little worse than what a device reaches with either.

Source: Vovk et al. 2005, *Algorithmic Learning in a Random World*, §4.2; Kolmogorov's distance as calibration error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vedette_core.learning.calibration import SCORES_MIN, Calibration, calibrate
from vedette_core.learning.drift import distance_from_even
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import BLOCK_ROWS, Network
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.tail import Float64

WINDOWS_MIN: Final = 2 * SCORES_MIN
"""Fewest benign windows that can be measured: half of them calibrate."""
MADE_UP_ROWS: Final = 256
MADE_UP_SEED: Final = 20_261_127
SCALED_VALUE_MAX: Final = 8.0
"""Devices clip scaled rows there."""

Reconstruct = Callable[[Float32], Float32]


@dataclass(frozen=True, slots=True, eq=False)
class BenignFigures:
    """What a model makes of benign windows of one kind of device.

    Attributes:
        loss: mean squared reconstruction error over all of them.
        false_positives: share of the judged half with p ≤ α, 0–1.
        calibration_error: largest distance of the judged half's p-values from even ones, 0–1.
        judged: windows in that half.
        scores: ``(judged,) float64`` their scores.
        scorer: scores further windows on the same scale.
        calibration: ranks them.
    """

    loss: float
    false_positives: float
    calibration_error: float
    judged: int
    scores: Float64 = field(repr=False)
    scorer: ResidualScorer = field(repr=False)
    calibration: Calibration = field(repr=False)


def measure_benign(network: Network, reconstruct: Reconstruct, x: Float32, alpha: float) -> BenignFigures:
    """Calibrate on the first half of benign windows, and judge the second.

    Args:
        network: names the target.
        reconstruct: runs the model, in blocks of at most `BLOCK_ROWS`.
        x: ``(n, *input_shape)`` float32 scaled windows, oldest first, n ≥ `WINDOWS_MIN`.
        alpha: significance of the threshold, 0 < α < 1.

    Raises:
        RefusedError: reconstructions that are not finite.
        ValueError: too few windows.
    """
    if len(x) < WINDOWS_MIN:
        raise ValueError(f"benign windows: found {len(x)}, expected at least {WINDOWS_MIN}")
    y = in_blocks(reconstruct, x)
    half = len(x) // 2
    residuals = calibrate_residuals(network, x[:half], y[:half])
    scorer = ResidualScorer(network, residuals)
    calibration = calibrate(scorer.score(x[:half], y[:half]))
    scores = scorer.score(x[half:], y[half:]).astype(np.float64)
    p_values = calibration.p_values(np.where(np.isfinite(scores), scores, np.inf))
    return BenignFigures(
        loss=float(np.mean(np.square(y - network.target(x), dtype=np.float64))),
        false_positives=float(np.mean(p_values <= alpha)),
        calibration_error=distance_from_even(p_values),
        judged=len(scores),
        scores=scores,
        scorer=scorer,
        calibration=calibration,
    )


def attack_scores(reconstruct: Reconstruct, benign: BenignFigures, x: Float32) -> Float64:
    """Scores ``(n,) float64`` of an attack's windows, on the scale of the benign ones that they happened among.

    Args:
        reconstruct: runs the model.
        benign: of the same model.
        x: ``(n, *input_shape)`` float32 scaled windows.
    """
    scores = benign.scorer.score(x, in_blocks(reconstruct, x)).astype(np.float64)
    return np.where(np.isfinite(scores), scores, np.inf)


def detected_share(benign: BenignFigures, scores: Float64, alpha: float) -> float:
    """Share of an attack's windows with p ≤ α: the rate of true positives, 0–1."""
    return float(np.mean(benign.calibration.p_values(scores) <= alpha))


def area_under_roc(benign: Float64, attack: Float64) -> float:
    """Probability that an attack's score is above a benign one's; ties count half."""
    ordered = np.sort(benign)
    below = np.searchsorted(ordered, attack, side="left")
    at_most = np.searchsorted(ordered, attack, side="right")
    return float((below + at_most).mean() / (2.0 * len(ordered)))


@dataclass(frozen=True, slots=True)
class WeightChange:
    """How far weights are from those that they were made of.

    Attributes:
        norm: L2 norm of the new ones.
        change: L2 norm of the difference.
        relative: `change` over the norm of the old ones; infinite where those are zero and the new ones are not.
        cosine: of the angle between old and new, −1 to 1; 0 where one of them is zero.
    """

    norm: float
    change: float
    relative: float
    cosine: float


def weight_change(before: Float32, after: Float32) -> WeightChange:
    """Compare two weight vectors ``(n,)`` float32 of the same length.

    Raises:
        ValueError: other lengths.
    """
    if before.shape != after.shape:
        raise ValueError(f"weights: found {after.shape}, expected {before.shape}")
    old, new = before.astype(np.float64), after.astype(np.float64)
    size, norm = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    change = float(np.linalg.norm(new - old))
    relative = change / size if size else (0.0 if not change else float("inf"))
    cosine = float(old @ new) / (size * norm) if size and norm else 0.0
    return WeightChange(norm, change, relative, min(max(cosine, -1.0), 1.0))


def made_up_windows(network: Network) -> Float32:
    """Random windows as scaled rows usually look, where no real ones are at hand: ``(MADE_UP_ROWS, *input_shape)``."""
    rows = np.random.default_rng(MADE_UP_SEED).standard_normal((MADE_UP_ROWS, *network.input_shape))
    return np.clip(rows, -SCALED_VALUE_MAX, SCALED_VALUE_MAX).astype(np.float32)


def prediction_shift(found: Float32, before: Float32, target: Float32) -> float:
    """How far two models' reconstructions of the same windows are apart, over the root mean square of the windows.

    Args:
        found: ``(n, *target_shape)`` float32 of the new model.
        before: the same of the old one.
        target: what both reconstruct.

    Returns:
        ≥ 0; infinite where the new model's are not finite.
    """
    if not np.isfinite(found).all():
        return float("inf")
    size = float(np.sqrt(np.mean(np.square(target, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(found - before, dtype=np.float64)))) / max(size, 1e-9)


def in_blocks(reconstruct: Reconstruct, x: Float32) -> Float32:
    """Reconstruct many windows, `BLOCK_ROWS` at a time."""
    return np.concatenate([reconstruct(x[start : start + BLOCK_ROWS]) for start in range(0, len(x), BLOCK_ROWS)])
