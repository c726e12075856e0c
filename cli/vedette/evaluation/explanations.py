"""Do the reasons name what was tampered with? Only where a recording says which columns that were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from vedette.evaluation.detectors import Learnt
from vedette.evaluation.stretches import Prepared
from vedette_core.learning.attribution import integrated_gradients
from vedette_core.learning.network import Network
from vedette_device.calibrated_model import CalibratedModel, shaped
from vedette_device.reasons import REASONS_MAX

EXPLAINED_MAX: Final = 200
"""Windows of a device that are explained, evenly spread over those that were found."""


def hits_at_three(
    model: CalibratedModel,
    network: Network,
    learnt: Learnt,
    device: Prepared,
    columns: Sequence[str],
    scores: np.ndarray,
    threshold: float,
) -> tuple[list[bool], list[bool], list[float]]:
    """Whether one of three named columns was tampered with, over anomalous windows above the threshold.

    Args:
        model: the calibrated artifact.
        network: its network.
        learnt: the weights that it was made of.
        device: with `Prepared.truth`.
        columns: their names.
        scores: ``(n,)`` of the test stretch.
        threshold: fixed before it.

    Returns:
        A verdict a window: of the reasons that alerts name, of integrated gradients, and what naming three columns at
        random would get.
    """
    found = [
        i
        for i in np.flatnonzero((device.test.labels == 1) & (scores > threshold)).tolist()
        if device.truth and device.truth[i]
    ]
    if len(found) > EXPLAINED_MAX:
        found = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, EXPLAINED_MAX).astype(np.intp))]
    if not found:
        return [], [], []
    inputs = device.test.inputs[found]
    squared = model.judge(inputs, [device.test.entities[i] for i in found]).squared_ratio
    reasons, gradients, chance = [], [], []
    for place, (i, row) in enumerate(zip(found, shaped(inputs, network), strict=True)):
        truth = device.truth[i]
        reasons.append(_hit(squared[place].sum(axis=0), columns, truth))
        parts = integrated_gradients(network, learnt.weights, row, np.zeros_like(row), model.residuals.scale)
        gradients.append(_hit(parts.reshape(-1, len(columns)).sum(axis=0), columns, truth))
        others = len(columns) - len(truth)
        chance.append(1.0 - math.comb(others, REASONS_MAX) / math.comb(len(columns), REASONS_MAX))
    return reasons, gradients, chance


def _hit(shares: np.ndarray, columns: Sequence[str], truth: frozenset[str]) -> bool:
    return any(columns[j] in truth for j in np.argsort(-shares, kind="stable")[:REASONS_MAX].tolist())
