"""Clipping: what bounds how far one update can move a sum."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import RefusedError

Float64 = npt.NDArray[np.float64]


class Clipped(NamedTuple):
    """An update within its norm.

    Attributes:
        vector: float64, same shape, a copy; L2 norm ≤ C(1 + 1e-6).
        norm: L2 norm before, the largest float64 where it is above that. For local use: the norm itself gives away
            what clipping hides.
        clipped: whether the norm was above C.
    """

    vector: Float64
    norm: float
    clipped: bool


def clip(vector: npt.NDArray[np.floating], clip_norm: float) -> Clipped:
    """Shorten a vector to the clip norm if it is longer; its direction stays.

    The norm is taken relative to the largest value, so that squares neither overflow nor vanish.

    Args:
        vector: one-dimensional, any length, any float type.
        clip_norm: C > 0, largest L2 norm.

    Raises:
        RefusedError: a value is not finite: such an update is not contributed.
        ValueError: not one-dimensional, or C is not a number above 0.
    """
    if vector.ndim != 1:
        raise ValueError(f"vector: found shape {vector.shape}, expected one dimension")
    if not (clip_norm > 0.0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip norm: found {clip_norm}, expected more than 0")
    out: Float64 = vector.astype(np.float64)
    bad = int((~np.isfinite(out)).sum())
    if bad:
        raise RefusedError(f"update: found {bad} of {len(out)} values that are not finite", rule="finite")
    largest = float(np.abs(out).max(initial=0.0))
    if largest == 0.0:
        return Clipped(out, 0.0, False)
    relative = out / largest
    length = float(np.linalg.norm(relative))  # 1…√d
    norm = min(largest * length, sys.float_info.max)
    if norm <= clip_norm:
        return Clipped(out, norm, False)
    return Clipped(relative * (clip_norm / length), norm, True)
