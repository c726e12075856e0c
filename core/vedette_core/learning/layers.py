"""Layers with a forward and a backward pass, each of which is exactly one TensorFlow Lite operator.

A layer holds no weights: they come in as arrays, so that one flat vector can be averaged, sent and signed. Forward
and backward keep the dtype of what they are given: float32 in the product, float64 where gradients are checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vedette_core.learning.layout import FloatArray

Cache = tuple[FloatArray, FloatArray]
"""The layer's input and its output after the activation."""


class Layer(Protocol):
    """One operator of a sequential network. Shapes are those of one example, without the batch axis."""

    @property
    def name(self) -> str:
        """Unique within the network; also the name of the output tensor in the built artifact."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example on the way in."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one example on the way out."""

    @property
    def weight_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """``(name, shape)`` of kernel and bias."""

    def initial(self, rng: np.random.Generator) -> list[FloatArray]:
        """Fresh weights: He- or Glorot-scaled kernel, zero bias, float32."""

    def forward(self, x: FloatArray, weights: Sequence[FloatArray]) -> tuple[FloatArray, Cache]:
        """Output ``(n, *output_shape)`` of input ``(n, *input_shape)``, and what `backward` needs."""

    def backward(
        self, grad: FloatArray, cache: Cache, weights: Sequence[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Gradient by the input and by each weight, from the gradient by the output."""


@dataclass(frozen=True, slots=True)
class Dense:
    """FULLY_CONNECTED: flattens its input, kernel ``(units, inputs)``."""

    name: str
    input_shape: tuple[int, ...]
    units: int
    activation: str | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(units,)``."""
        return (self.units,)

    @property
    def weight_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Kernel ``(units, inputs)`` and bias ``(units,)``."""
        return (
            (f"{self.name}/kernel", (self.units, math.prod(self.input_shape))),
            (f"{self.name}/bias", (self.units,)),
        )

    def initial(self, rng: np.random.Generator) -> list[FloatArray]:
        """See `Layer.initial`."""
        inputs = math.prod(self.input_shape)
        return [_kernel(rng, (self.units, inputs), inputs, self.units, self.activation), _zeros(self.units)]

    def forward(self, x: FloatArray, weights: Sequence[FloatArray]) -> tuple[FloatArray, Cache]:
        """See `Layer.forward`."""
        kernel, bias = weights
        flat = x.reshape(len(x), math.prod(self.input_shape))
        y = flat @ kernel.T
        y += bias
        return _activate(y, self.activation), (flat, y)

    def backward(
        self, grad: FloatArray, cache: Cache, weights: Sequence[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """See `Layer.backward`."""
        flat, y = cache
        grad = _through(grad.reshape(y.shape), y, self.activation)
        grad_x = (grad @ weights[0]).reshape(len(flat), *self.input_shape)
        return grad_x, [grad.T @ flat, grad.sum(axis=0)]


@dataclass(frozen=True, slots=True)
class PointwiseConv:
    """CONV_2D of height and width 1: the same dense map for every time step; kernel ``(units, channels)``."""

    name: str
    input_shape: tuple[int, ...]
    units: int
    activation: str | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(steps, units)``."""
        return (self.input_shape[0], self.units)

    @property
    def weight_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Kernel ``(units, channels)`` and bias ``(units,)``."""
        return ((f"{self.name}/kernel", (self.units, self.input_shape[1])), (f"{self.name}/bias", (self.units,)))

    def initial(self, rng: np.random.Generator) -> list[FloatArray]:
        """See `Layer.initial`."""
        channels = self.input_shape[1]
        return [_kernel(rng, (self.units, channels), channels, self.units, self.activation), _zeros(self.units)]

    def forward(self, x: FloatArray, weights: Sequence[FloatArray]) -> tuple[FloatArray, Cache]:
        """See `Layer.forward`."""
        kernel, bias = weights
        flat = x.reshape(-1, self.input_shape[1])
        y = flat @ kernel.T
        y += bias
        return _activate(y, self.activation).reshape(len(x), *self.output_shape), (flat, y)

    def backward(
        self, grad: FloatArray, cache: Cache, weights: Sequence[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """See `Layer.backward`."""
        flat, y = cache
        grad = _through(grad.reshape(y.shape), y, self.activation)
        return (grad @ weights[0]).reshape(-1, *self.input_shape), [grad.T @ flat, grad.sum(axis=0)]


@dataclass(frozen=True, slots=True)
class DepthwiseConv:
    """DEPTHWISE_CONV_2D along time: one filter a channel, kernel ``(taps, channels)``, SAME padding."""

    name: str
    input_shape: tuple[int, ...]
    taps: int
    stride: int = 1
    activation: str | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(ceil(steps / stride), channels)``."""
        return (-(-self.input_shape[0] // self.stride), self.input_shape[1])

    @property
    def padding(self) -> tuple[int, int]:
        """Zero steps before and after the input, as TensorFlow's SAME places them (the odd one at the end)."""
        total = max((self.output_shape[0] - 1) * self.stride + self.taps - self.input_shape[0], 0)
        return total // 2, total - total // 2

    @property
    def weight_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Kernel ``(taps, channels)`` and bias ``(channels,)``."""
        channels = self.input_shape[1]
        return ((f"{self.name}/kernel", (self.taps, channels)), (f"{self.name}/bias", (channels,)))

    def initial(self, rng: np.random.Generator) -> list[FloatArray]:
        """See `Layer.initial`."""
        channels = self.input_shape[1]
        return [_kernel(rng, (self.taps, channels), self.taps, self.taps, self.activation), _zeros(channels)]

    def forward(self, x: FloatArray, weights: Sequence[FloatArray]) -> tuple[FloatArray, Cache]:
        """See `Layer.forward`."""
        kernel, bias = weights
        before, after = self.padding
        padded = np.pad(x, ((0, 0), (before, after), (0, 0)))
        y = np.zeros((len(x), *self.output_shape), dtype=np.result_type(x, kernel))
        for tap in range(self.taps):
            y += padded[:, self._steps(tap)] * kernel[tap]
        y += bias
        return _activate(y, self.activation), (padded, y)

    def backward(
        self, grad: FloatArray, cache: Cache, weights: Sequence[FloatArray]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """See `Layer.backward`."""
        padded, y = cache
        grad = _through(grad, y, self.activation)
        kernel = weights[0]
        grad_kernel, grad_padded = np.empty_like(kernel), np.zeros_like(padded)
        for tap in range(self.taps):
            steps = self._steps(tap)
            grad_kernel[tap] = (padded[:, steps] * grad).sum(axis=(0, 1))
            grad_padded[:, steps] += grad * kernel[tap]
        before = self.padding[0]
        grad_x: FloatArray = grad_padded[:, before : before + self.input_shape[0]]
        return grad_x, [grad_kernel, grad.sum(axis=(0, 1))]

    def _steps(self, tap: int) -> slice:
        return slice(tap, tap + (self.output_shape[0] - 1) * self.stride + 1, self.stride)


def _kernel(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int, activation: str | None
) -> FloatArray:
    """Uniform, with He's variance ahead of a rectifier and Glorot's ahead of a linear output.

    Source: He et al. 2015, arXiv 1502.01852, eq. 10; Glorot & Bengio 2010, eq. 16.
    """
    variance = 2.0 / fan_in if activation else 2.0 / (fan_in + fan_out)
    bound = math.sqrt(3.0 * variance)
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _zeros(size: int) -> FloatArray:
    return np.zeros(size, np.float32)


def _activate(y: FloatArray, activation: str | None) -> FloatArray:
    """In place: the cache keeps the same array, and the sign after a rectifier tells what it let through."""
    if activation == "relu":
        np.maximum(y, 0, out=y)
    elif activation == "relu6":
        np.clip(y, 0, 6, out=y)
    return y


def _through(grad: FloatArray, y: FloatArray, activation: str | None) -> FloatArray:
    if activation == "relu":
        return grad * (y > 0)
    if activation == "relu6":
        return grad * ((y > 0) & (y < 6))
    return grad
