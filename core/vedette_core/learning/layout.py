"""Where each named weight lies in the one flat vector that travels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError

FloatArray = npt.NDArray[np.floating[Any]]
"""float32 on every path of the product; float64 only where a test checks a gradient numerically."""
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Names and shapes of a network's weights, in the order in which they lie in the flat vector.

    Attributes:
        entries: ``(name, shape)`` a tensor, row-major, one after the other without gaps.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of weights in the flat vector."""
        return sum(prod(shape) for _, shape in self.entries)

    def views(self, flat: FloatArray) -> list[FloatArray]:
        """The tensors as views into `flat` (writing to one writes to the vector).

        Args:
            flat: ``(size,)`` vector.

        Raises:
            PeerError: `flat` has another shape: weights that belong to another network.
        """
        if flat.shape != (self.size,):
            raise PeerError(f"weights: found shape {flat.shape}, expected ({self.size},)", reason="schema")
        out, start = [], 0
        for _, shape in self.entries:
            stop = start + prod(shape)
            out.append(flat[start:stop].reshape(shape))
            start = stop
        return out

    def named(self, flat: FloatArray) -> dict[str, FloatArray]:
        """`views`, by name."""
        return dict(zip((name for name, _ in self.entries), self.views(flat), strict=True))

    def to_list(self) -> list[list[Any]]:
        """Plain form for msgpack: ``[[name, [dims…]], …]``."""
        return [[name, list(shape)] for name, shape in self.entries]

    def flatten(self, tensors: Sequence[FloatArray]) -> FloatArray:
        """One flat vector of the tensors, which must come in the layout's order and shapes."""
        for (name, shape), tensor in zip(self.entries, tensors, strict=True):
            if tensor.shape != shape:
                raise ValueError(f"weight {name}: found shape {tensor.shape}, expected {shape}")
        return np.concatenate([t.reshape(-1) for t in tensors])
