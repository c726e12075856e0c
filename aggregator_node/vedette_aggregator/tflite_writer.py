"""Writes a network's float32 graph as a TensorFlow Lite flatbuffer, without TensorFlow.

Shapes: time is the width of an image of height 1, so that every 1D operator is the 2D one that all runtimes have
(TensorFlow Lite Micro included): a window of ``(windows, channels)`` is a tensor ``(n, 1, windows, channels)``.
FULLY_CONNECTED flattens its input, so that no RESHAPE is needed. The batch axis is dynamic; tensors are named as the
network's layers are, which is how activation ranges find them.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from vedette_core.learning.layers import Dense, DepthwiseConv, Layer, PointwiseConv
from vedette_core.learning.layout import Float32, FloatArray
from vedette_core.learning.model_metadata import METADATA_NAME
from vedette_core.learning.network import INPUT, Network

BUFFER_ALIGNMENT = 16
"""Bytes: what the schema asks of buffers (``force_align``), and NEON loads and TFLM rely on."""
SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"

_ACTIVATIONS = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}


class _AligningBuilder(flatbuffers.Builder):  # type: ignore[misc, unused-ignore]
    """The object API drops the schema's ``force_align``; the only byte vectors of a model are its buffers."""

    def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802  (flatbuffers' own name)
        """Start byte vectors on a multiple of `BUFFER_ALIGNMENT`."""
        if x.dtype == np.uint8:
            self.Prep(BUFFER_ALIGNMENT, x.nbytes)
        return super().CreateNumpyVector(x)


class _Graph:
    """Tensors, buffers and operators while they are gathered."""

    def __init__(self) -> None:
        self.buffers: list[Any] = [schema.BufferT()]  # buffer 0 is empty by convention: "no data"
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def activation(self, name: str, shape: tuple[int, ...]) -> int:
        """Add a tensor without data and with a dynamic batch axis; its index."""
        return self._tensor(name, shape=[1, *shape], shapeSignature=[-1, *shape])

    def constant(self, name: str, data: FloatArray) -> int:
        """Add a weight tensor; its index."""
        raw = np.frombuffer(data.astype("<f4").tobytes(), np.uint8)
        self.buffers.append(schema.BufferT(data=raw))
        return self._tensor(name, shape=list(data.shape), buffer=len(self.buffers) - 1)

    def operator(self, code: int, inputs: list[int], output: int, kind: int, options: Any) -> None:
        """Add an operator."""
        if code not in self.codes:
            self.codes.append(code)
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self.codes.index(code),
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def _tensor(self, name: str, **attributes: Any) -> int:
        tensor = schema.TensorT(name=name, type=schema.TensorType.FLOAT32, hasRank=True, **attributes)
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def write_float32(network: Network, weights: Float32) -> bytes:
    """The float32 graph of a network.

    Args:
        network: its layers become operators one to one.
        weights: ``(size,)`` float32.

    Returns:
        A flatbuffer of one subgraph and one signature ``x`` → ``y``; all operators at version 1.
    """
    graph = _Graph()
    tensors = network.layout.views(weights)
    current = first = graph.activation(INPUT, _image_shape(network.input_shape))
    for index, layer in enumerate(network.layers):
        kernel, bias = tensors[2 * index : 2 * index + 2]
        current = _add_layer(graph, layer, current, kernel, bias)
    signature = schema.SignatureDefT(
        signatureKey=SIGNATURE,
        inputs=[schema.TensorMapT(name="x", tensorIndex=first)],
        outputs=[schema.TensorMapT(name="y", tensorIndex=current)],
    )
    subgraph = schema.SubGraphT(
        name="main", tensors=graph.tensors, inputs=[first], outputs=[current], operators=graph.operators
    )
    codes = [schema.OperatorCodeT(builtinCode=c, deprecatedBuiltinCode=c, version=1) for c in graph.codes]
    model = schema.ModelT(
        version=SCHEMA_VERSION,
        buffers=graph.buffers,
        operatorCodes=codes,
        subgraphs=[subgraph],
        signatureDefs=[signature],
        description="vedette",
    )
    return pack_model(model)


def read_model(data: bytes) -> Any:
    """The object form (``ModelT``) of a flatbuffer that this process has built itself; never of a received one."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))


def pack_model(model: Any) -> bytes:
    """Serialise a ``ModelT`` with its buffers aligned."""
    builder = _AligningBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def embed_metadata(model: Any, data: bytes) -> None:
    """Put `data` into a ``ModelT`` as the metadata buffer `METADATA_NAME`, replacing an earlier one."""
    kept = [m for m in model.metadata or [] if m.name not in (METADATA_NAME, METADATA_NAME.encode())]
    model.buffers.append(schema.BufferT(data=np.frombuffer(data, np.uint8)))
    model.metadata = [*kept, schema.MetadataT(name=METADATA_NAME, buffer=len(model.buffers) - 1)]


def _add_layer(graph: _Graph, layer: Layer, source: int, kernel: FloatArray, bias: FloatArray) -> int:
    op, kinds = schema.BuiltinOperator, schema.BuiltinOptions
    if isinstance(layer, Dense):
        code, kind = op.FULLY_CONNECTED, kinds.FullyConnectedOptions
        options = schema.FullyConnectedOptionsT(fusedActivationFunction=_ACTIVATIONS[layer.activation])
        shape = layer.output_shape
    elif isinstance(layer, PointwiseConv):
        code, kind = op.CONV_2D, kinds.Conv2DOptions
        options = schema.Conv2DOptionsT(
            padding=schema.Padding.SAME,
            strideW=1,
            strideH=1,
            fusedActivationFunction=_ACTIVATIONS[layer.activation],
        )
        kernel, shape = kernel[:, None, None, :], _image_shape(layer.output_shape)  # OHWI
    elif isinstance(layer, DepthwiseConv):
        code, kind = op.DEPTHWISE_CONV_2D, kinds.DepthwiseConv2DOptions
        options = schema.DepthwiseConv2DOptionsT(
            padding=schema.Padding.SAME,
            strideW=layer.stride,
            strideH=layer.stride,
            depthMultiplier=1,
            fusedActivationFunction=_ACTIVATIONS[layer.activation],
        )
        kernel, shape = kernel[None, None], _image_shape(layer.output_shape)  # 1HWC, H = 1
    else:
        raise TypeError(f"layer {layer.name}: found {type(layer).__name__}, which has no operator here")
    inputs = [source, graph.constant(f"{layer.name}/kernel", kernel), graph.constant(f"{layer.name}/bias", bias)]
    output = graph.activation(layer.name, shape)
    graph.operator(code, inputs, output, kind, options)
    return output


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Two axes get a height of 1 in front; one stays."""
    return (1, *shape) if len(shape) == 2 else shape
