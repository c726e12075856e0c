"""What is simple, and may be enough: peers that a detector must beat, each on the newest scaled row of an input.

They learn from the same rows of each device, get the same calibration and the same alert rules.

Source: Liu et al. 2008, "Isolation Forest", ICDM; Tan et al. 2011, "Fast Anomaly Detection for Streaming Data", IJCAI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation.kitnet import KitnetEnsemble
from vedette.evaluation.stretches import Prepared, Stretch
from vedette_device.features.scaling import CLIP
from vedette_schemas.features import FeatureSchema

Array = npt.NDArray[np.float64]
Score = Callable[[Array], Array]
"""Scores ``(n,)`` of rows ``(n, columns)``."""
Fit = Callable[[Array, np.random.Generator], Score]

TREES: Final = 100
SAMPLE: Final = 256
SPACE_TREES: Final = 25
SPACE_DEPTH: Final = 10
RIDGE: Final = 1e-3
"""Added to each variance, in scaled units: constant columns must not make a covariance singular."""
KEPT_ENERGY: Final = 0.95
KITNET_ROWS_MAX: Final = 2048
"""Rows that the ensemble learns from, evenly spread: it takes a millisecond for each."""
EULER: Final = 0.5772156649


def mahalanobis(rows: Array, rng: np.random.Generator) -> Score:
    """Distance from the mean in the metric of the benign covariance."""
    mean = rows.mean(axis=0)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False)) + RIDGE * np.eye(rows.shape[1])
    inverse = np.linalg.inv(covariance)
    return lambda x: np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", x - mean, inverse, x - mean), 0.0))


def pca(rows: Array, rng: np.random.Generator) -> Score:
    """Length of what the leading components leave over."""
    mean = rows.mean(axis=0)
    _, singular, components = np.linalg.svd(rows - mean, full_matrices=False)
    energy = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-12)
    kept = components[: min(int(np.searchsorted(energy, KEPT_ENERGY)) + 1, max(1, rows.shape[1] - 1))]

    def score(x: Array) -> Array:
        centred = x - mean
        left: Array = np.linalg.norm(centred - centred @ kept.T @ kept, axis=1)
        return left

    return score


def isolation_forest(rows: Array, rng: np.random.Generator) -> Score:
    """Rows that few random cuts set apart."""
    size = min(SAMPLE, len(rows))
    depth = int(np.ceil(np.log2(max(size, 2))))
    trees = [_grow(rows[rng.choice(len(rows), size, replace=False)], depth, rng) for _ in range(TREES)]
    usual = _path_length(size)

    def score(x: Array) -> Array:
        lengths = np.zeros(len(x))
        for tree in trees:
            _descend(tree, x, np.arange(len(x)), 0.0, lengths)
        result: Array = 2.0 ** (-lengths / TREES / max(usual, 1e-9))
        return result

    return score


@dataclass(frozen=True, slots=True)
class _Cut:
    column: int
    at: float
    below: _Cut | int
    above: _Cut | int


def _grow(rows: Array, depth: int, rng: np.random.Generator) -> _Cut | int:
    spread = np.flatnonzero(np.ptp(rows, axis=0) > 0) if len(rows) > 1 else np.zeros(0, np.intp)
    if depth == 0 or not len(spread):
        return len(rows)
    column = int(rng.choice(spread))
    at = float(rng.uniform(rows[:, column].min(), rows[:, column].max()))
    below = rows[:, column] < at
    return _Cut(column, at, _grow(rows[below], depth - 1, rng), _grow(rows[~below], depth - 1, rng))


def _descend(node: _Cut | int, x: Array, places: npt.NDArray[np.intp], depth: float, lengths: Array) -> None:
    if not len(places):
        return
    if isinstance(node, int):
        lengths[places] += depth + _path_length(node)
        return
    below = x[places, node.column] < node.at
    _descend(node.below, x, places[below], depth + 1.0, lengths)
    _descend(node.above, x, places[~below], depth + 1.0, lengths)


def _path_length(size: int) -> float:
    return 2.0 * (np.log(size - 1) + EULER) - 2.0 * (size - 1) / size if size > 2 else float(size == 2)


def half_space_trees(rows: Array, rng: np.random.Generator) -> Score:
    """Rows that fall where few benign ones did, in trees that halve a random column's range again and again."""
    low, high = -CLIP, CLIP
    trees = []
    for _ in range(SPACE_TREES):
        cuts = rng.integers(rows.shape[1], size=2**SPACE_DEPTH)
        centre = rng.uniform(low, high, rows.shape[1])
        reach = 2.0 * np.maximum(centre - low, high - centre)
        trees.append((cuts, centre - reach, centre + reach))
    masses = [np.zeros(2 ** (SPACE_DEPTH + 1)) for _ in trees]
    for tree, mass in zip(trees, masses, strict=True):
        for nodes in _path(rows, *tree):
            np.add.at(mass, nodes, 1.0)
    enough = 0.1 * len(rows)
    densest = np.log1p(SPACE_TREES * len(rows) * 2.0**SPACE_DEPTH)

    def score(x: Array) -> Array:
        total = np.zeros(len(x))
        for tree, mass in zip(trees, masses, strict=True):
            done = np.zeros(len(x), bool)
            for depth, nodes in enumerate(_path(x, *tree)):
                ends = ~done & ((mass[nodes] <= enough) | (depth == SPACE_DEPTH))
                total[ends] += mass[nodes][ends] * 2.0**depth
                done |= ends
        result: Array = densest - np.log1p(total)  # from 0 on, as alerts have it
        return result

    return score


def _path(x: Array, cuts: npt.NDArray[np.int64], low: Array, high: Array) -> list[npt.NDArray[np.intp]]:
    """Nodes that rows pass, from the root (1) down; node i has the children 2i and 2i + 1."""
    nodes = np.ones(len(x), np.intp)
    lows, highs = np.tile(low, (len(x), 1)), np.tile(high, (len(x), 1))
    passed, every = [nodes], np.arange(len(x))
    for _ in range(SPACE_DEPTH):
        columns = cuts[nodes]
        middle = (lows[every, columns] + highs[every, columns]) / 2.0
        above = x[every, columns] >= middle
        lows[every[above], columns[above]] = middle[above]
        highs[every[~above], columns[~above]] = middle[~above]
        nodes = 2 * nodes + above
        passed.append(nodes)
    return passed


def kitnet(rows: Array, rng: np.random.Generator) -> Score:
    """See `vedette.evaluation.kitnet`."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), KITNET_ROWS_MAX)).astype(np.intp))
    return KitnetEnsemble(rows[places], rng).score


FITS: Final[Mapping[str, Fit]] = {
    "mahalanobis": mahalanobis,
    "pca": pca,
    "isolation_forest": isolation_forest,
    "half_space_trees": half_space_trees,
    "kitnet": kitnet,
}


def fit_on(device: Prepared, fit: Fit, seed: int) -> tuple[Array, Array]:
    """Scores of a device's calibration stretch and of its test stretch, by what was fitted to its training stretch."""
    score = fit(device.train.rows.astype(np.float64), np.random.default_rng([seed, 3]))
    return score(device.calibrate.rows.astype(np.float64)), score(device.test.rows.astype(np.float64))


def one_column(device: Prepared, column: int) -> tuple[Array, Array]:
    """The same by how far one column is from its median."""
    return (
        np.abs(device.calibrate.rows[:, column]).astype(np.float64),
        np.abs(device.test.rows[:, column]).astype(np.float64),
    )


def volume(device: Prepared, schema: FeatureSchema) -> tuple[Array, Array] | None:
    """The same by the number of packets a window, or None where windows do not count any."""
    names = [n for n in ("packets_in", "packets_out", "IN_PKTS", "OUT_PKTS") if n in schema.columns]
    if not names:
        return None
    places = [schema.index(name) for name in names]

    def packets(stretch: Stretch) -> Array:
        return np.array([float(window.values[places].sum()) for window in stretch.windows])

    return packets(device.calibrate), packets(device.test)
