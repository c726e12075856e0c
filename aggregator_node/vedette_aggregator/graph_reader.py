"""What a ``.tflite`` artifact computes, read without an interpreter: its tensors, its operators and their order.

For tools that look at artifacts and do not run them: what they need on a microcontroller, in which ranges they compute.

Source: field numbers and enumerations of TensorFlow Lite's ``schema.fbs`` (version 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from vedette_core.learning.flatbuffer_tables import FlatbufferTables, damaged

ELEMENTS: Final = {
    0: ("float32", 4),
    1: ("float16", 2),
    2: ("int32", 4),
    4: ("int64", 8),
    7: ("int16", 2),
    9: ("int8", 1),
}
"""Name and bytes of the element types that the writer and the quantizer use, by the schema's number."""
OPERATORS: Final = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 114: "QUANTIZE"}
"""The same of operators."""
TENSOR_BYTES_MAX: Final = 4 * 1024 * 1024
"""No tensor of a model within `vedette_schemas.model.MODEL_BYTES_MAX` is larger."""
AXES_MAX: Final = 4

_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_CODE_OLD, _CODE_NEW = 0, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTIZATION = 0, 1, 2, 3, 4
_QUANTIZATION_SCALE, _QUANTIZATION_ZERO = 2, 3
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2
_BUFFER_DATA = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
        name: as the network's layers are called, with the quantizer's endings.
        shape: with the batch axis, which is 1.
        element: ``float32``, ``float16``, ``int8``, ``int16``, ``int32`` or ``int64``.
        constant_bytes: bytes of data in the file; 0 for what is computed.
        scales: one for the tensor, or one a channel; empty without quantisation.
        zero_points: one a scale.
    """

    name: str
    shape: tuple[int, ...]
    element: str
    constant_bytes: int = 0
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * dict(ELEMENTS.values())[self.element]


@dataclass(frozen=True, slots=True)
class Operator:
    """One step: places of what it reads and writes in `Graph.tensors`."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A model's only subgraph, operators in the order of their execution."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(model: bytes) -> Graph:
    """Read an artifact.

    Args:
        model: bytes of anybody; nothing in them is believed.

    Raises:
        PeerError: no flatbuffer of a model, an offset out of bounds, an element type or operator that artifacts do not
            have, data that are not of the shape that a tensor says, or a step that reads what is not there.
    """
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise damaged(f"{len(model)} bytes without the identifier TFL3", "a TensorFlow Lite flatbuffer")
    reader = FlatbufferTables(model)
    root = reader.offset(0)
    subgraphs = reader.tables(root, _MODEL_SUBGRAPHS)
    if len(subgraphs) != 1:
        raise damaged(f"{len(subgraphs)} subgraphs", "one")
    (place,) = subgraphs
    lengths = [len(reader.bytes_field(b, _BUFFER_DATA)) for b in reader.tables(root, _MODEL_BUFFERS)]
    tensors = tuple(_tensor(reader, table, lengths) for table in reader.tables(place, _GRAPH_TENSORS))
    codes = [_code(reader, table) for table in reader.tables(root, _MODEL_CODES)]
    operators = tuple(_operator(reader, table, codes) for table in reader.tables(place, _GRAPH_OPERATORS))
    ends = (reader.integers(place, _GRAPH_INPUTS), reader.integers(place, _GRAPH_OUTPUTS))
    graph = Graph(tensors, operators, *ends)
    _check_order(graph)
    return graph


def _tensor(reader: FlatbufferTables, table: int, lengths: list[int]) -> Tensor:
    name = reader.bytes_field(table, _TENSOR_NAME).decode(errors="replace")[:80]
    kind = reader.number(table, _TENSOR_TYPE, "<b")
    if kind not in ELEMENTS:
        raise damaged(f"tensor {name!r} of element type {kind}", f"one of {sorted(ELEMENTS)}")
    shape = reader.integers(table, _TENSOR_SHAPE)
    if len(shape) > AXES_MAX or not all(n >= 1 for n in shape) or prod(shape) * 8 > TENSOR_BYTES_MAX:
        raise damaged(f"tensor {name!r} of shape {list(shape)[:8]}", f"1 to {AXES_MAX} positive numbers")
    buffer = reader.number(table, _TENSOR_BUFFER)
    if buffer >= len(lengths):
        raise damaged(f"tensor {name!r} in buffer {buffer} of {len(lengths)}", "a buffer that exists")
    quantization = reader.table(table, _TENSOR_QUANTIZATION)
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    if quantization is not None:
        scales = reader.floats(quantization, _QUANTIZATION_SCALE)
        zero_points = reader.integers(quantization, _QUANTIZATION_ZERO, "<q")
    if len(scales) != len(zero_points):
        raise damaged(f"tensor {name!r} with {len(scales)} scales and {len(zero_points)} zero points", "one each")
    tensor = Tensor(name, shape, ELEMENTS[kind][0], lengths[buffer], scales, zero_points)
    if tensor.constant_bytes not in (0, tensor.size_bytes):
        raise damaged(f"tensor {name!r} with {tensor.constant_bytes} bytes", f"{tensor.size_bytes} of its shape")
    return tensor


def _code(reader: FlatbufferTables, table: int) -> str:
    # Small numbers are in the old field, which is a byte; a reader takes the larger of the two.
    number = max(reader.number(table, _CODE_OLD, "<b"), reader.number(table, _CODE_NEW, "<i"))
    if number not in OPERATORS:
        raise damaged(f"operator {number}", f"one of {', '.join(OPERATORS.values())}")
    return OPERATORS[number]


def _operator(reader: FlatbufferTables, table: int, codes: list[str]) -> Operator:
    index = reader.number(table, _OPERATOR_CODE)
    if index >= len(codes):
        raise damaged(f"an operator of kind {index} of {len(codes)}", "a kind that exists")
    inputs, outputs = reader.integers(table, _OPERATOR_INPUTS), reader.integers(table, _OPERATOR_OUTPUTS)
    return Operator(codes[index], inputs, outputs)


def _check_order(graph: Graph) -> None:
    """Every step reads constants and what was written before it; nothing is written twice."""
    used = [i for op in graph.operators for i in (*op.inputs, *op.outputs)]
    if not all(0 <= i < len(graph.tensors) for i in (*used, *graph.inputs, *graph.outputs)):
        raise damaged("a tensor that is not there", f"0 to {len(graph.tensors) - 1}")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise damaged(f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs", "one of each")
    known = {i for i, tensor in enumerate(graph.tensors) if tensor.constant_bytes} | set(graph.inputs)
    for place, op in enumerate(graph.operators):
        if not set(op.inputs) <= known or len(op.outputs) != 1 or set(op.outputs) & known:
            raise damaged(f"operator {place} ({op.code}) out of order", "it to read what is there, and write once")
        known |= set(op.outputs)
    if not set(graph.outputs) <= known:
        raise damaged("an output that nothing computes", "the last operator's")
