"""A KitNET-like ensemble, written from its paper: learns row by row as published, scores many rows at once.

Columns are clustered by correlation into groups; each group has a small autoencoder, and an output autoencoder learns
their reconstruction errors.

Source: Mirsky et al. 2018, "Kitsune: An Ensemble of Autoencoders for Online Network Intrusion Detection", NDSS,
sections IV-B to IV-D, and its defaults: m = 10, β = 0.75, learning rate 0.1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

GROUP_MAX: Final = 10
HIDDEN_RATIO: Final = 0.75
RATE: Final = 0.1
SCALED_MAX: Final = 1e3
"""A value this far outside of what was learnt is as far as any: sigmoids are flat long before."""


def cluster_columns(rows: Array, group_max: int) -> list[npt.NDArray[np.intp]]:
    """Columns grouped by correlation distance: a single-linkage tree, cut wherever a branch becomes too large."""
    centred = rows - rows.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    spread[spread == 0] = 1.0
    distance = 1.0 - (centred.T @ centred) / np.outer(spread, spread)
    upper = np.triu_indices(len(distance), 1)
    owner = list(range(len(distance)))
    members = {i: [i] for i in owner}
    closed: set[int] = set()
    for edge in np.argsort(distance[upper], kind="stable"):
        a, b = owner[upper[0][edge]], owner[upper[1][edge]]
        if a == b:
            continue
        if len(members[a]) + len(members[b]) > group_max or a in closed or b in closed:
            closed |= {a, b}
            continue
        for column in members[b]:
            owner[column] = a
        members[a] += members.pop(b)
    return [np.array(sorted(group), dtype=np.intp) for group in members.values()]


class _Autoencoder:
    """One hidden layer, sigmoid, tied weights, inputs scaled to 0…1 by the extremes seen while learning."""

    def __init__(self, width: int, rng: np.random.Generator) -> None:
        hidden = max(1, int(np.ceil(width * HIDDEN_RATIO)))
        self.kernel = rng.uniform(-1.0 / width, 1.0 / width, (width, hidden))
        self.hidden_bias, self.output_bias = np.zeros(hidden), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def learn(self, row: Array) -> float:
        self.low, self.high = np.minimum(self.low, row), np.maximum(self.high, row)
        scaled = self._scale(row)
        hidden = _sigmoid(scaled @ self.kernel + self.hidden_bias)
        error = scaled - _sigmoid(hidden @ self.kernel.T + self.output_bias)
        inner = (error @ self.kernel) * hidden * (1.0 - hidden)
        self.kernel += RATE * (np.outer(scaled, inner) + np.outer(error, hidden))
        self.hidden_bias += RATE * inner
        self.output_bias += RATE * error
        return float(np.sqrt(np.mean(error**2)))

    def score(self, rows: Array) -> Array:
        scaled = self._scale(rows)
        hidden = _sigmoid(scaled @ self.kernel + self.hidden_bias)
        error = scaled - _sigmoid(hidden @ self.kernel.T + self.output_bias)
        result: Array = np.sqrt(np.mean(error**2, axis=-1))
        return result

    def _scale(self, rows: Array) -> Array:
        scaled: Array = (rows - self.low) / np.maximum(self.high - self.low, 1e-9)
        return np.clip(scaled, -SCALED_MAX, SCALED_MAX)


class KitnetEnsemble:
    """Learns benign rows ``(n, columns)`` once, in their order."""

    def __init__(self, rows: Array, rng: np.random.Generator) -> None:
        self.groups = cluster_columns(rows, GROUP_MAX)
        self.ensemble = [_Autoencoder(len(group), rng) for group in self.groups]
        self.output = _Autoencoder(len(self.groups), rng)
        for row in rows:
            errors = [net.learn(row[group]) for net, group in zip(self.ensemble, self.groups, strict=True)]
            self.output.learn(np.array(errors))

    def score(self, rows: Array) -> Array:
        """Scores ``(n,)`` of rows ``(n, columns)``."""
        errors = [net.score(rows[:, group]) for net, group in zip(self.ensemble, self.groups, strict=True)]
        return self.output.score(np.stack(errors, axis=-1))


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
    return out
