"""The poisoning benchmark's synthetic task: 512 devices with uneven shares of ten classes, and a small network.

The network is computed for all devices at once: 512 trainings a round, one after the other, would take minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_core.learning.poisoning import Backdoor, Labels

INPUTS: Final = 32
HIDDEN: Final = 64
CLASSES: Final = 10
SIZE: Final = INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
"""2,762 weights."""
DIRICHLET: Final = 0.5
"""Concentration of a device's classes: half of the devices have at least 3/4 of their rows from three of ten."""
ROWS_A_DEVICE: Final = 48
TEST_ROWS: Final = 4000
ROOT_ROWS: Final = 200
SPREAD: Final = 1.05
"""Standard deviation of the noise around a class's points, in units of their own: classes overlap."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The data of one seed.

    Attributes:
        x: ``(devices, rows, inputs)`` float32.
        y: ``(devices, rows)`` classes.
        root_x: ``(root rows, inputs)``, all classes alike.
        root_y: their classes.
        test_x: ``(test rows, inputs)``.
        test_y: their classes.
    """

    x: Float32
    y: Labels
    root_x: Float32
    root_y: Labels
    test_x: Float32
    test_y: Labels


def make_task(devices: int, rng: np.random.Generator) -> Classification:
    """Classes of three clusters each, in a space that no straight line divides."""
    centres = rng.standard_normal((CLASSES, 3, INPUTS)) * 0.7

    def draw(labels: npt.NDArray[np.int64]) -> Float32:
        which = rng.integers(0, 3, labels.shape)
        return (centres[labels, which] + SPREAD * rng.standard_normal((*labels.shape, INPUTS))).astype(np.float32)

    mixtures = rng.dirichlet(np.full(CLASSES, DIRICHLET), devices)
    y = np.stack([rng.choice(CLASSES, ROWS_A_DEVICE, p=p) for p in mixtures])
    root_y, test_y = np.arange(ROOT_ROWS) % CLASSES, np.arange(TEST_ROWS) % CLASSES
    return Classification(draw(y), y, draw(root_y), root_y, draw(test_y), test_y)


def initial_weights(rng: np.random.Generator) -> Float32:
    """He's initial weights, flat."""
    first = rng.standard_normal((INPUTS, HIDDEN)) * (2 / INPUTS) ** 0.5
    second = rng.standard_normal((HIDDEN, CLASSES)) * (1 / HIDDEN) ** 0.5
    parts = (first.ravel(), np.zeros(HIDDEN), second.ravel(), np.zeros(CLASSES))
    return np.concatenate(parts).astype(np.float32)


def train_all(
    weights: Float32, x: Float32, y: Labels, *, steps: int, batch: int, rate: float, rng: np.random.Generator
) -> Float32:
    """Deltas ``(k, SIZE)`` of k devices after some steps of gradient descent from the same weights.

    Args:
        weights: ``(SIZE,)`` global ones.
        x: ``(k, rows, inputs)``.
        y: ``(k, rows)``.
        steps: ≥ 1.
        batch: rows a step, drawn anew.
        rate: learning rate.
        rng: draws the batches.
    """
    devices = len(x)
    first, bias, second, offset = [np.repeat(part[None], devices, axis=0) for part in _parts(weights)]
    row = np.arange(devices)[:, None]
    for _ in range(steps):
        pick = rng.integers(0, x.shape[1], (devices, batch))
        rows, labels = x[row, pick], y[row, pick]
        hidden = np.maximum(rows @ first + bias[:, None], 0.0)
        error = _softmax(hidden @ second + offset[:, None])
        error[row, np.arange(batch), labels] -= 1.0
        error *= np.float32(rate / batch)
        back = (error @ second.transpose(0, 2, 1)) * (hidden > 0)
        second -= hidden.transpose(0, 2, 1) @ error
        offset -= error.sum(axis=1)
        first -= rows.transpose(0, 2, 1) @ back
        bias -= back.sum(axis=1)
    local = np.concatenate([part.reshape(devices, -1) for part in (first, bias, second, offset)], axis=1)
    return np.asarray(local - weights, dtype=np.float32)


def accuracy(weights: Float32, x: Float32, y: Labels) -> float:
    """Share of ``(n, inputs)`` rows that are put into their class, in points (0–100)."""
    first, bias, second, offset = _parts(weights)
    found = (np.maximum(x @ first + bias, 0.0) @ second + offset).argmax(axis=1)
    return float((found == y).mean() * 100.0)


def backdoor_success(weights: Float32, task: Classification, attack: Backdoor) -> float:
    """Share of stamped test rows of other classes that the attacker's label is given to, in points."""
    others = task.test_y != attack.label
    return accuracy(weights, attack.stamp(task.test_x[others]), np.full(int(others.sum()), attack.label))


def _parts(weights: Float32) -> tuple[Any, Any, Any, Any]:
    a, b, c = INPUTS * HIDDEN, INPUTS * HIDDEN + HIDDEN, SIZE - CLASSES
    return (
        weights[:a].reshape(INPUTS, HIDDEN),
        weights[a:b],
        weights[b:c].reshape(HIDDEN, CLASSES),
        weights[c:],
    )


def _softmax(logits: Any) -> Any:
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)
