"""The reader of artifacts believes no byte: whatever is done to one, it ends in a graph that holds or in a refusal."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_aggregator.arena import estimate_arena
from vedette_aggregator.artifacts import assumed_ranges, build_artifacts
from vedette_aggregator.graph_reader import Graph, read_graph
from vedette_aggregator.microcontroller import Target, export
from vedette_aggregator.tflite_writer import pack_model, read_model
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import SEPARABLE_CNN, NetworkSpec
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant

SCHEMA = FeatureSchema(use_case="sensor", version=1, columns=tuple("abc"), window_s=1.0, history=4)
NETWORK = build_network(NetworkSpec(SEPARABLE_CNN, (4, 3), (5,), bottleneck=2, target_windows=2, kernel=3))
WEIGHTS = NETWORK.initial_weights(np.random.default_rng(0))
BUILT = build_artifacts(
    NETWORK,
    WEIGHTS,
    task="sensor",
    schema=SCHEMA,
    ranges=assumed_ranges(NETWORK, WEIGHTS),
    variants=[Variant.INT8, Variant.FLOAT32, Variant.FLOAT16],
)
INT8 = BUILT[Variant.INT8].data


def test_a_graph_is_what_was_written() -> None:
    graph = read_graph(INT8)
    assert [op.code for op in graph.operators] == [
        "QUANTIZE",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]
    by_name = {tensor.name: tensor for tensor in graph.tensors}
    kernel = by_name["bottleneck/kernel"]
    assert (kernel.shape, kernel.element, kernel.constant_bytes) == ((2, 10), "int8", 20)
    assert len(kernel.scales) == len(kernel.zero_points) == 2
    assert by_name["bottleneck/bias"].element == "int32"
    assert (graph.tensors[graph.inputs[0]].shape, graph.tensors[graph.outputs[0]].shape) == ((1, 1, 4, 3), (1, 6))
    assert graph.tensors[graph.inputs[0]].element == graph.tensors[graph.outputs[0]].element == "float32"


def check(graph: Graph) -> None:
    """What every graph that was read keeps, so that whatever works on it needs no checks of its own."""
    known = {i for i, t in enumerate(graph.tensors) if t.constant_bytes} | set(graph.inputs)
    for op in graph.operators:
        assert set(op.inputs) <= known
        known |= set(op.outputs)
    assert set(graph.outputs) <= known
    assert estimate_arena(graph).tensors_bytes >= 0


@settings(max_examples=300)
@given(st.data())
def test_altered_bytes_are_refused_or_read(data: Any) -> None:
    changed = bytearray(INT8)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(changed)))]) if data.draw(st.booleans()) else bytes(changed)
    try:
        check(read_graph(cut))
        files = export(cut, Target.TFLM)
    except (PeerError, RefusedError):
        return
    assert hashlib.sha256(cut).hexdigest() in files["README.md"].decode()


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_bytes_of_anybody_are_refused(data: bytes) -> None:
    for each in (data, b"\x10\0\0\0TFL3" + data):
        with pytest.raises(PeerError, match="model: found"):
            read_graph(each)


def edited(change: Any) -> bytes:
    model = read_model(INT8)
    change(model)
    return pack_model(model)


def _second_subgraph(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def _unknown_operator(model: Any) -> None:
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 25


def _backwards(model: Any) -> None:
    model.subgraphs[0].operators.reverse()


def _missing_buffer(model: Any) -> None:
    model.subgraphs[0].tensors[1].buffer = 999


def _other_shape(model: Any) -> None:
    model.subgraphs[0].tensors[1].shape = [1, 1, 3, 4]


def _negative_shape(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [1, 1, -4, 3]


def _huge_shape(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = [2**30, 2**30]


def _strings(model: Any) -> None:
    model.subgraphs[0].tensors[0].type = 5


def _lost_zero_points(model: Any) -> None:
    model.subgraphs[0].tensors[1].quantization.zeroPoint = None


def _two_inputs(model: Any) -> None:
    model.subgraphs[0].inputs = [0, 0]


def _wild_tensor(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = [-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_second_subgraph, "2 subgraphs"),
        (_unknown_operator, "operator 25"),
        (_backwards, "out of order"),
        (_missing_buffer, "buffer 999"),
        (_other_shape, "bytes, expected"),
        (_negative_shape, "of shape"),
        (_huge_shape, "of shape"),
        (_strings, "element type 5"),
        (_lost_zero_points, "0 zero points"),
        (_two_inputs, "2 inputs"),
        (_wild_tensor, "a tensor that is not there"),
    ],
)
def test_a_graph_that_is_not_ours_is_refused(change: Any, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        read_graph(edited(change))
