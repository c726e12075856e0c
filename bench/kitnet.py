"""A KitNET-like ensemble, written from its paper, as a peer for the scoring benchmark.

Columns are clustered by correlation into groups of at most ``group_max``; each group has a small autoencoder, and an
output autoencoder learns their reconstruction errors. Everything runs row by row, as published: one pass of stochastic
gradient descent while learning, one forward pass a row while scoring.

Source: Mirsky et al. 2018, "Kitsune: An Ensemble of Autoencoders for Online Network Intrusion Detection", NDSS,
sections IV-B to IV-D (feature mapper, anomaly detector), and its defaults: m = 10, β = 0.75, learning rate 0.1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vedette.evaluation.kitnet import cluster_columns

Array = npt.NDArray[np.float64]


class _Autoencoder:
    """One hidden layer, sigmoid, tied weights, inputs scaled to 0…1 by the extremes seen while learning."""

    def __init__(self, width: int, hidden_ratio: float, rng: np.random.Generator) -> None:
        hidden = max(1, int(np.ceil(width * hidden_ratio)))
        self.kernel = rng.uniform(-1.0 / width, 1.0 / width, (width, hidden))
        self.hidden_bias, self.output_bias = np.zeros(hidden), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def learn(self, row: Array, rate: float) -> float:
        self.low, self.high = np.minimum(self.low, row), np.maximum(self.high, row)
        scaled = self._scale(row)
        hidden = _sigmoid(scaled @ self.kernel + self.hidden_bias)
        output = _sigmoid(hidden @ self.kernel.T + self.output_bias)
        error = scaled - output
        inner = (error @ self.kernel) * hidden * (1.0 - hidden)
        self.kernel += rate * (np.outer(scaled, inner) + np.outer(error, hidden))
        self.hidden_bias += rate * inner
        self.output_bias += rate * error
        return float(np.sqrt(np.mean(error**2)))

    def score(self, row: Array) -> float:
        scaled = self._scale(row)
        hidden = _sigmoid(scaled @ self.kernel + self.hidden_bias)
        error = scaled - _sigmoid(hidden @ self.kernel.T + self.output_bias)
        return float(np.sqrt(np.mean(error**2)))

    def _scale(self, row: Array) -> Array:
        scaled: Array = (row - self.low) / (self.high - self.low + 1e-16)
        return scaled


class KitnetEnsemble:
    """Learns one row at a time, then scores one row at a time; high = anomalous."""

    def __init__(self, mapping_rows: Array, *, group_max: int = 10, hidden_ratio: float = 0.75, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.groups = cluster_columns(mapping_rows, group_max)
        self.ensemble = [_Autoencoder(len(group), hidden_ratio, rng) for group in self.groups]
        self.output = _Autoencoder(len(self.groups), hidden_ratio, rng)

    def learn(self, row: Array, rate: float = 0.1) -> float:
        errors = [net.learn(row[group], rate) for net, group in zip(self.ensemble, self.groups, strict=True)]
        return self.output.learn(np.array(errors), rate)

    def score(self, row: Array) -> float:
        errors = [net.score(row[group]) for net, group in zip(self.ensemble, self.groups, strict=True)]
        return self.output.score(np.array(errors))


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out
