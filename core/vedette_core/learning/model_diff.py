"""What lies between two models of the same network: tensor by tensor, and weight by weight where it moved most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vedette_core.learning.layout import Float32, FloatArray
from vedette_core.learning.model_quality import WeightChange, weight_change
from vedette_core.learning.network import Network

MOVES_MAX: Final = 100
"""Most single weights that are named."""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor's part: its name, shape, and how far it moved."""

    name: str
    shape: tuple[int, ...]
    change: WeightChange


@dataclass(frozen=True, slots=True)
class Move:
    """One weight that moved: its tensor, its place in it, and both values."""

    tensor: str
    index: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """All of it.

    Attributes:
        whole: over all weights.
        tensors: in the layout's order.
        moves: the largest differences, largest first.
    """

    whole: WeightChange
    tensors: tuple[TensorChange, ...]
    moves: tuple[Move, ...]


def diff_models(network: Network, before: Float32, after: Float32, moves: int = 10) -> ModelDiff:
    """Compare two weight vectors of a network.

    Args:
        network: what both are weights of.
        before: ``(size,)`` float32.
        after: the same.
        moves: how many single weights are named, 0 to `MOVES_MAX`; equal ones never are.

    Raises:
        PeerError: vectors that do not fit the network.
        ValueError: `moves` out of its range.
    """
    if not 0 <= moves <= MOVES_MAX:
        raise ValueError(f"moves: found {moves}, expected 0 to {MOVES_MAX}")
    old, new = network.layout.named(before), network.layout.named(after)
    tensors = tuple(
        TensorChange(name, tuple(tensor.shape), weight_change(_flat(tensor), _flat(new[name])))
        for name, tensor in old.items()
    )
    distance = np.abs(after.astype(np.float64) - before.astype(np.float64))
    largest = np.argsort(-distance, kind="stable")[:moves]
    starts = np.cumsum([0, *(tensor.size for tensor in old.values())])
    named = list(old.items())
    found = []
    for place in largest.tolist():
        if not distance[place]:
            break
        at = int(np.searchsorted(starts, place, side="right")) - 1
        name, tensor = named[at]
        index = tuple(int(i) for i in np.unravel_index(place - int(starts[at]), tensor.shape))
        found.append(Move(name, index, float(before[place]), float(after[place])))
    return ModelDiff(weight_change(before, after), tensors, tuple(found))


def _flat(tensor: FloatArray) -> Float32:
    return np.asarray(tensor, np.float32).reshape(-1)
