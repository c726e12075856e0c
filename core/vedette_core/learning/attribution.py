"""Which inputs made a score: integrated gradients of the squared score along the straight way from a usual row.

The exact share of a column in a score (`vedette_device.reasons`) says where the *error* is. A tampered column can also
spoil the reconstruction of its honest neighbours; the integral of the gradient says which *input* did it. It costs some
dozens of passes through the network, so that it is made on request, not for every window.

Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", ICML, §3 and §5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32, FloatArray
from vedette_core.learning.network import Network

STEPS = 64
"""Points of the way: the attributions then add up to the score's change within some per cent."""


def integrated_gradients(
    network: Network,
    weights: Float32,
    row: Float32,
    usual: Float32,
    scale: Float32,
    *,
    steps: int = STEPS,
) -> npt.NDArray[np.float64]:
    """What each input value added to the squared score.

    Args:
        network: the model.
        weights: ``(layout.size,)`` float32; for an INT8 artifact those that it was made of.
        row: ``(*input_shape)`` the input that was scored.
        usual: ``(*input_shape)`` where the way begins; zeros mean the median of every scaled column.
        scale: ``(features,)`` usual error of each feature, as in `ResidualCalibration`.
        steps: points of the way, ≥ 1, in the middle of equal pieces.

    Returns:
        ``(*input_shape)``; positive where an input raised the score. Their sum is close to the difference of the
        squared scores of ``row`` and ``usual``.

    Raises:
        ValueError: another shape than the network's.
    """
    if row.shape != network.input_shape or usual.shape != network.input_shape:
        raise ValueError(f"row: found shapes {row.shape} and {usual.shape}, expected {network.input_shape}")
    if steps < 1:
        raise ValueError(f"steps: found {steps}, expected at least 1")
    way = row.astype(np.float64) - usual
    at = (np.arange(steps) + 0.5) / steps
    points = usual + at.reshape(-1, *(1 for _ in row.shape)) * way
    mean = squared_score_gradient(network, weights.astype(np.float64), points, scale).mean(axis=0)
    parts: npt.NDArray[np.float64] = way * mean
    return parts


def squared_score_gradient(
    network: Network, weights: FloatArray, x: FloatArray, scale: Float32
) -> npt.NDArray[np.float64]:
    """Gradient of each row's squared score by its own input, ``(n, *input_shape)``.

    The squared score is the mean over the target's elements of ((reconstruction − target) / scale)².
    """
    ratio = (network.reconstruct(x, weights) - network.target(x)) / scale
    by_output: FloatArray = 2.0 * ratio / (scale * ratio[0].size)
    gradient = network.input_gradient(x, weights, by_output).astype(np.float64)
    network.target(gradient)[...] -= by_output  # the target is a part of the input itself
    return gradient
