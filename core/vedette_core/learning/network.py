"""Sequential reconstruction networks in plain numpy: what a device trains and the aggregator turns into artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from vedette_core.learning.layers import Cache, Dense, DepthwiseConv, Layer, PointwiseConv
from vedette_core.learning.layout import Float32, FloatArray, WeightLayout
from vedette_core.learning.spec import SEPARABLE_CNN, WEIGHTS_MAX, NetworkSpec
from vedette_schemas.errors import PeerError

INPUT = "input"
"""Name of the input tensor, beside the layers' names, in activation ranges and in built artifacts."""

ActivationRanges = Mapping[str, tuple[float, float]]
"""Smallest and largest value of each tensor of the float forward pass, by tensor name."""

BLOCK_ROWS = 256
"""Rows that are evaluated at once: some megabytes of intermediate values for the largest network."""


@dataclass(frozen=True, slots=True)
class Network:
    """A stack of layers that reconstructs (a part of) its own input.

    It has no state: weights are an argument everywhere, one flat float32 vector in `layout`'s order.

    Attributes:
        spec: what it was built from.
        layers: the operators, first to last; the output of one is the input of the next.
        layout: names and places of the weights.
    """

    spec: NetworkSpec
    layers: tuple[Layer, ...]
    layout: WeightLayout

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.spec.input_shape

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one reconstruction: ``(target_windows, channels)`` or ``(columns,)``."""
        return self.spec.target_shape

    def target(self, x: FloatArray) -> FloatArray:
        """The part of ``(n, *input_shape)`` that is reconstructed, as a view ``(n, *target_shape)``."""
        return x[:, -self.spec.target_windows :] if self.spec.target_windows else x

    def initial_weights(self, rng: np.random.Generator) -> Float32:
        """Fresh float32 weights ``(layout.size,)`` from `rng`; the same seed gives the same weights."""
        tensors = [tensor for layer in self.layers for tensor in layer.initial(rng)]
        return self.layout.flatten(tensors).astype(np.float32)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Sorted names of the input and of every layer's output, as in `activation_ranges`."""
        return tuple(sorted((INPUT, *(layer.name for layer in self.layers))))

    def reconstruct(self, x: FloatArray, weights: FloatArray) -> FloatArray:
        """The reconstruction ``(n, *target_shape)`` of ``(n, *input_shape)``.

        Raises:
            PeerError: `weights` do not fit the layout.
            ValueError: `x` has another shape than the network's.
        """
        y, _ = self._forward(x, self.layout.views(weights))
        return y

    def loss(self, x: FloatArray, weights: FloatArray) -> float:
        """Mean squared reconstruction error over all examples and elements."""
        squared = 0.0
        for rows in _blocks(x):
            error = self.reconstruct(rows, weights) - self.target(rows)
            squared += float(np.sum(np.square(error, dtype=np.float64)))
        return squared / (len(x) * prod(self.target_shape))

    def loss_and_gradient(self, x: FloatArray, weights: FloatArray) -> tuple[float, FloatArray]:
        """`loss` and its gradient by every weight, as a flat vector of the weights' dtype."""
        tensors = self.layout.views(weights)
        y, caches = self._forward(x, tensors)
        error = y - self.target(x)
        grad: FloatArray = error * (2.0 / error.size)
        grads: list[FloatArray] = []
        for index in range(len(self.layers) - 1, -1, -1):
            own = tensors[2 * index : 2 * index + 2]
            grad, of_weights = self.layers[index].backward(grad, caches[index], own)
            grads[:0] = of_weights
        return float(np.mean(np.square(error, dtype=np.float64))), self.layout.flatten(grads)

    def input_gradient(self, x: FloatArray, weights: FloatArray, by_output: FloatArray) -> FloatArray:
        """Gradient by the input ``(n, *input_shape)``, from that by the reconstruction ``(n, *target_shape)``."""
        tensors = self.layout.views(weights)
        _, caches = self._forward(x, tensors)
        grad = by_output
        for index in range(len(self.layers) - 1, -1, -1):
            grad, _ = self.layers[index].backward(grad, caches[index], tensors[2 * index : 2 * index + 2])
        return grad.reshape(x.shape)

    def activation_ranges(self, x: FloatArray, weights: FloatArray) -> dict[str, tuple[float, float]]:
        """(min, max) of the input and of every layer's output over ``(n, *input_shape)``, n ≥ 1.

        This is what a device reports for the quantiser's calibration: two numbers a tensor, never a row.
        """
        ranges = {INPUT: (float(x.min()), float(x.max()))}
        for rows in _blocks(x):
            _, caches = self._forward(rows, self.layout.views(weights))
            for layer, (_, y) in zip(self.layers, caches, strict=True):
                low, high = ranges.get(layer.name, (np.inf, -np.inf))
                ranges[layer.name] = (min(low, float(y.min())), max(high, float(y.max())))
        return ranges

    def _forward(self, x: FloatArray, tensors: list[FloatArray]) -> tuple[FloatArray, list[Cache]]:
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"input: found shape {x.shape}, expected (n, {', '.join(map(str, self.input_shape))})")
        caches: list[Cache] = []
        for index, layer in enumerate(self.layers):
            x, cache = layer.forward(x, tensors[2 * index : 2 * index + 2])
            caches.append(cache)
        return x.reshape(len(x), *self.target_shape), caches


def _blocks(x: FloatArray) -> Iterator[FloatArray]:
    """Rows in blocks: a pass over thousands of them at once would cost a gateway tens of megabytes."""
    for start in range(0, len(x), BLOCK_ROWS):
        yield x[start : start + BLOCK_ROWS]


def build_network(spec: NetworkSpec) -> Network:
    """The network that a spec describes.

    Raises:
        PeerError: it would have more than `WEIGHTS_MAX` weights.
    """
    layers = _separable_cnn(spec) if spec.kind == SEPARABLE_CNN else _dense_autoencoder(spec)
    layout = WeightLayout(tuple(entry for layer in layers for entry in layer.weight_shapes))
    if layout.size > WEIGHTS_MAX:
        raise PeerError(f"network spec: found {layout.size} weights, expected at most {WEIGHTS_MAX}", reason="limit")
    return Network(spec, layers, layout)


def _dense_autoencoder(spec: NetworkSpec) -> tuple[Layer, ...]:
    """Flattened input → hidden widths → mirrored back to the target's width; bottleneck and output linear.

    A linear bottleneck loses nothing to dead rectifiers, of which a few units cannot afford one.
    """
    outputs = prod(spec.target_shape)
    widths = (*spec.hidden, *reversed(spec.hidden[:-1]), outputs)
    layers: list[Layer] = []
    shape: tuple[int, ...] = spec.input_shape
    for index, width in enumerate(widths):
        linear = index in (len(spec.hidden) - 1, len(widths) - 1)
        name = f"encode{index}" if index < len(spec.hidden) else f"decode{index - len(spec.hidden)}"
        layers.append(Dense(name, shape, width, None if linear else spec.activation))
        shape = (width,)
    return tuple(layers)


def _separable_cnn(spec: NetworkSpec) -> tuple[Layer, ...]:
    """Separable 1D convolutions of stride 2 over the windows, a linear bottleneck, and a decoder of the newest windows.

    The decoder is dense: 12 units to 4 windows of 24 channels cost 1,248 weights, where transposed convolutions would
    need an operator that the smallest runtimes lack. See `vedette_core.learning.spec.flow_spec` for what is
    reconstructed, and why.
    """
    layers: list[Layer] = []
    shape: tuple[int, ...] = spec.input_shape
    for index, units in enumerate(spec.hidden):
        depthwise = DepthwiseConv(f"depthwise{index}", shape, min(spec.kernel, shape[0]), stride=2)
        pointwise = PointwiseConv(f"pointwise{index}", depthwise.output_shape, units, spec.activation)
        layers += [depthwise, pointwise]
        shape = pointwise.output_shape
    layers.append(Dense("bottleneck", shape, spec.bottleneck))
    shape = (spec.bottleneck,)
    if spec.decoder:
        layers.append(Dense("decode0", shape, spec.decoder, spec.activation))
        shape = (spec.decoder,)
    layers.append(Dense("output", shape, prod(spec.target_shape)))
    return tuple(layers)
