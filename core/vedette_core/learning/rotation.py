"""The rotation that spreads whatever an update has over all of its coordinates alike.

Two passes of random signs and a block Hadamard transform, with the blocks interleaved between them, are one more than
usual: a single pass leaves an update whose weight lies in one block there, where it would overrun the range.

Source: Suresh et al. 2017, arXiv 1611.00429, section 3 (random rotation).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import FloatArray

BLOCK: Final = 1024
"""Coordinates of one Hadamard transform; vectors are padded to a multiple of it."""
TILE: Final = 32
"""√`BLOCK`: strides below it are transformed in a transposed copy, so that inner loops are long."""


def rotate(vector: FloatArray, seed: bytes) -> FloatArray:
    """The rotated vector, with the norm of the vector.

    Args:
        vector: ``(k · BLOCK,)`` float32 or float64; it is overwritten.
        seed: the rotation's.

    Returns:
        The same shape and type.
    """
    first, second = _signs(seed, len(vector))
    vector *= first
    mixed = _hadamard(vector.reshape(-1, BLOCK)).T.reshape(-1)
    mixed *= second
    return _hadamard(mixed.reshape(-1, BLOCK)).reshape(-1)


def rotate_back(rotated: FloatArray, seed: bytes) -> FloatArray:
    """The vector whose rotation this is.

    Args:
        rotated: ``(k · BLOCK,)`` float32 or float64.
        seed: the rotation's.

    Returns:
        The same shape and type.
    """
    first, second = _signs(seed, len(rotated))
    mixed: FloatArray = _hadamard(rotated.reshape(-1, BLOCK)).reshape(-1)
    mixed *= second
    vector: FloatArray = _hadamard(mixed.reshape(BLOCK, -1).T).reshape(-1)
    vector *= first
    return vector


def _hadamard(blocks: FloatArray) -> FloatArray:
    """Orthonormal Walsh–Hadamard transform of each row of ``(k, BLOCK)``, in its type; it is its own inverse.

    Sums and differences only, of strides 1, 2, 4 … 512 in this order: the same bits come out on every machine, which a
    matrix product does not promise.
    """
    count = len(blocks)
    source = np.ascontiguousarray(blocks.reshape(count, TILE, TILE).transpose(2, 0, 1)).reshape(-1)
    source = _butterflies(source, source.size // TILE, source.size)
    source = np.ascontiguousarray(source.reshape(TILE, count, TILE).transpose(1, 2, 0)).reshape(-1)
    out = _butterflies(source, TILE, BLOCK)
    out *= BLOCK**-0.5
    return out.reshape(count, BLOCK)


def _butterflies(source: FloatArray, half: int, end: int) -> FloatArray:
    """Sum and difference of neighbours at distance half, 2 · half … below end; the argument is overwritten."""
    target = np.empty_like(source)
    while half < end:
        pairs, out = source.reshape(-1, 2, half), target.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        source, target = target, source
        half *= 2
    return source


def _signs(seed: bytes, length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Two vectors of ±1 from the seed, by SHAKE-256: numpy does not promise its streams from version to version."""
    label = b"vedette rotation 1" + len(seed).to_bytes(4, "big") + seed
    raw = hashlib.shake_256(label).digest(2 * length // 8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).astype(np.float32)
    bits *= 2.0
    bits -= 1.0
    first, second = bits.reshape(2, -1)
    return first, second
