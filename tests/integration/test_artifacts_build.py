"""Artifacts built from numpy weights, run by the real interpreter."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite
from ai_edge_litert.interpreter import Interpreter

from vedette_aggregator import artifacts, quantise, tflite_writer
from vedette_aggregator.artifacts import TFLITE_VARIANTS, assumed_ranges, build_artifacts
from vedette_core.learning.local_training import train
from vedette_core.learning.model_metadata import read_model_metadata
from vedette_core.learning.network import INPUT, Network, build_network
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import DENSE_AUTOENCODER, SEPARABLE_CNN, NetworkSpec, dense_spec, flow_spec
from vedette_core.learning.statistics_slots import (
    LocalStatistics,
    merge_range_histograms,
    read_statistics,
    statistics_length,
    statistics_slots,
)
from vedette_core.learning.weights_file import read_weights
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant

WIDE = FeatureSchema(
    use_case="network",
    version=1,
    columns=tuple(f"stream_{i:03d}_magnitude" for i in range(115)),
    window_s=1.0,
    history=1,
)
SENSOR = sensor_schema(tuple("abcdefg"))
CASES: dict[str, tuple[NetworkSpec, FeatureSchema]] = {
    "flow": (flow_spec(), NETWORK_FLOWS),
    "flow deep": (
        NetworkSpec(SEPARABLE_CNN, (16, 24), (16, 16), bottleneck=8, decoder=24, target_windows=4, kernel=3),
        NETWORK_FLOWS,
    ),
    "sensor": (dense_spec(*SENSOR.input_shape), SENSOR),
    "wide": (dense_spec(115), WIDE),
    "wide and deep": (NetworkSpec(DENSE_AUTOENCODER, (115,), (48, 12)), WIDE),
}


class Case:
    """A trained network with benign and anomalous rows."""

    def __init__(self, spec: NetworkSpec, schema: FeatureSchema) -> None:
        self.schema = schema
        self.network: Network = build_network(spec)
        rng = np.random.default_rng(0)
        width = int(np.prod(spec.input_shape))
        mixing = rng.standard_normal((6, width)) / 6**0.5

        def rows(count: int) -> np.ndarray:
            x = rng.standard_normal((count, 6)) @ mixing + 0.3 * rng.standard_normal((count, width))
            return x.reshape(count, *spec.input_shape).astype(np.float32)

        start = self.network.initial_weights(rng)
        x = rows(1500)
        result = train(self.network, start, x, epochs=8, batch_size=32, learning_rate=3e-3, prox_mu=0.0, rng=rng)
        self.weights = start + result.delta
        self.ranges = result.activation_ranges
        self.benign, self.held_out, usual = rows(800), rows(800), rows(800)
        # The more columns, the easier a given noise is to see: this leaves every case something to lose.
        noise = 2.5 * int(np.prod(self.network.target_shape)) ** -0.5
        self.anomalous = usual + (noise * rng.standard_normal(usual.shape)).astype(np.float32)

    def build(self, *variants: Variant) -> dict[Variant, artifacts.Artifact]:
        return build_artifacts(
            self.network, self.weights, task="t", schema=self.schema, ranges=self.ranges, variants=variants
        )


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def run(data: bytes, x: np.ndarray) -> np.ndarray:
    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    out = []
    for row in x:
        interpreter.set_tensor(source["index"], row.reshape(source["shape"]))
        interpreter.invoke()
        out.append(interpreter.get_tensor(result["index"])[0])
    return np.stack(out)


def auc(usual: np.ndarray, anomalous: np.ndarray) -> float:
    order = np.concatenate([usual, anomalous]).argsort().argsort()
    return float((order[len(usual) :].sum() - len(anomalous) * (len(anomalous) - 1) / 2) / len(usual) / len(anomalous))


def area(case: Case, artifact: artifacts.Artifact) -> float:
    """How well an artifact tells anomalous rows from benign ones."""
    shape = (-1, *case.network.target_shape)
    reconstructions = [run(artifact.data, x).reshape(shape) for x in (case.benign, case.held_out, case.anomalous)]
    scorer = ResidualScorer(case.network, calibrate_residuals(case.network, case.benign, reconstructions[0]))
    return auc(scorer.score(case.held_out, reconstructions[1]), scorer.score(case.anomalous, reconstructions[2]))


def model_of(data: bytes) -> Any:
    return tflite_writer.read_model(data)


def test_the_float_graph_computes_what_numpy_computes(case: Case) -> None:
    data = tflite_writer.write_float32(case.network, case.weights)
    expected = case.network.reconstruct(case.benign[:50], case.weights)
    assert run(data, case.benign[:50]).reshape(expected.shape) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_only_operators_that_every_runtime_has(case: Case) -> None:
    allowed = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    names = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
    for variant, built in case.build(Variant.FLOAT32, Variant.INT8, Variant.INT16X8).items():
        extra = set() if variant is Variant.FLOAT32 else {"QUANTIZE", "DEQUANTIZE"}
        assert {names[c.builtinCode] for c in model_of(built.data).operatorCodes} <= allowed | extra


def test_int8_loses_at_most_a_hundredth_of_auc(case: Case) -> None:
    found = {variant: area(case, artifact) for variant, artifact in case.build(*TFLITE_VARIANTS).items()}
    assert 0.6 < found[Variant.FLOAT32] < 0.9999, "the rows must leave something to lose"
    for variant, value in found.items():
        assert value >= found[Variant.FLOAT32] - 0.01, (variant, found)


def test_sizes_fit_a_small_device(case: Case) -> None:
    size = len(case.build(Variant.INT8)[Variant.INT8].data)
    limit = 17_000 if case.network.spec.kind == "separable_cnn" else 28_000
    assert size <= limit


def test_every_buffer_is_aligned_for_a_microcontroller(case: Case) -> None:
    for artifact in case.build(*TFLITE_VARIANTS).values():
        model = tflite.Model.GetRootAs(artifact.data, 0)
        for index in range(model.BuffersLength()):
            buffer = model.Buffers(index)
            if buffer.DataLength() and not isinstance(buffer.DataAsNumpy(), int):
                offset = buffer._tab.Vector(buffer._tab.Offset(4))
                assert offset % 16 == 0, (artifact.variant, index)


def test_operators_carry_the_version_that_can_compute_them(case: Case) -> None:
    names = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
    for variant, artifact in case.build(Variant.INT8, Variant.INT16X8, Variant.FLOAT16).items():
        for code in model_of(artifact.data).operatorCodes:
            name = names[code.builtinCode]
            assert code.version == quantise.OPERATOR_VERSIONS[variant.value].get(name, 1), (variant, name)
            assert variant is not Variant.INT8 or code.version > 1 or name == "QUANTIZE"


def test_ends_stay_float_and_the_middle_is_int8(case: Case) -> None:
    graph = model_of(case.build(Variant.INT8)[Variant.INT8].data).subgraphs[0]
    assert graph.tensors[graph.inputs[0]].type == tflite.TensorType.FLOAT32
    assert graph.tensors[graph.outputs[0]].type == tflite.TensorType.FLOAT32
    kernels = [t for t in graph.tensors if t.name.endswith(b"/kernel")]
    assert len(kernels) == len(case.network.layers)
    assert all(t.type == tflite.TensorType.INT8 for t in kernels)
    assert all(len(t.quantization.scale) > 1 for t in kernels), "one scale a channel"


def test_ranges_of_the_devices_are_what_the_tensors_say_twice_as_wide(case: Case) -> None:
    graph = model_of(case.build(Variant.INT8)[Variant.INT8].data).subgraphs[0]
    scales = {t.name.decode(): t.quantization.scale[0] for t in graph.tensors if t.quantization and t.type == 9}
    for layer in case.network.layers:
        low, high = artifacts.widen(case.ranges, ends=(case.network.layers[-1].name,))[layer.name]
        expected = (high - low) / 255
        quantised = [s for name, s in scales.items() if name.startswith(layer.name) and "/" not in name]
        assert quantised == pytest.approx([expected], rel=1e-3), layer.name


def test_metadata_say_what_the_artifact_is(case: Case) -> None:
    for variant, artifact in case.build(*TFLITE_VARIANTS).items():
        metadata = read_model_metadata(artifact.data)
        assert metadata.task == "t"
        assert metadata.variant == variant.value
        assert metadata.schema == case.schema
        assert metadata.spec == case.network.spec
        assert artifact.sha256 == hashlib.sha256(artifact.data).hexdigest()
        assert artifact.error <= artifacts.CHECK_ERROR_MAX[variant]


def test_the_same_weights_give_the_same_bytes(case: Case) -> None:
    first, second = (case.build(*artifacts.DEFAULT_VARIANTS) for _ in range(2))
    assert {v: a.sha256 for v, a in first.items()} == {v: a.sha256 for v, a in second.items()}
    assert np.array_equal(read_weights(first[Variant.WEIGHTS].data).weights, case.weights)


@pytest.fixture(scope="module")
def flow() -> Case:
    return Case(*CASES["flow"])


def test_a_build_that_went_wrong_is_not_published(flow: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = flow.weights.copy()
    flow.network.layout.named(wrong)["output/bias"] += 20.0
    other = tflite_writer.write_float32(flow.network, wrong)
    monkeypatch.setattr(tflite_writer, "write_float32", lambda *_: other)
    for variant in (Variant.FLOAT32, Variant.INT8):
        with pytest.raises(RefusedError, match=f"artifact {variant.value}: found results off by"):
            flow.build(variant)


def test_a_range_that_is_far_too_small_is_not_published(flow: Case) -> None:
    ranges = {**flow.ranges, "output": (-0.001, 0.001)}
    with pytest.raises(RefusedError, match="artifact int8"):
        build_artifacts(
            flow.network, flow.weights, task="t", schema=flow.schema, ranges=ranges, variants=[Variant.INT8]
        )


def test_a_build_that_does_not_load_is_not_published(flow: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tflite_writer.read_model(tflite_writer.write_float32(flow.network, flow.weights))
    model.subgraphs[0].operators[0].inputs[0] = 3
    broken = tflite_writer.pack_model(model)
    monkeypatch.setattr(tflite_writer, "write_float32", lambda *_: broken)
    with pytest.raises(RefusedError, match="artifact float32"):
        flow.build(Variant.FLOAT32)


def test_ranges_must_be_those_of_the_network(flow: Case) -> None:
    missing = {k: v for k, v in flow.ranges.items() if k != "bottleneck"}
    with pytest.raises(PeerError, match="activation ranges"):
        build_artifacts(flow.network, flow.weights, task="t", schema=flow.schema, ranges=missing)


def reported(case: Case, *shares: float) -> dict[str, tuple[float, float]]:
    """What the sum of several devices' reports says, each with so much of the case's ranges."""
    tensors = tuple(sorted(case.ranges))
    total = np.zeros(statistics_length(tensors), np.int64)
    for share in shares:
        ranges = {name: (share * low, share * high) for name, (low, high) in case.ranges.items()}
        total += statistics_slots(LocalStatistics(False, 1.0, 1.0, 1.0, ranges), 1, 1.0, tensors)
    found = read_statistics(total, len(shares), len(shares), tensors)
    return merge_range_histograms(found.ranges, found.survivors)


def test_ranges_of_several_devices_are_merged_to_their_outermost_bins(flow: Case) -> None:
    merged = reported(flow, 1.0, 0.5, 0.25)
    assert set(merged) == set(flow.ranges)
    for name, (low, high) in flow.ranges.items():
        # Every bin's edge is at most a quarter of an octave beyond what is in it; zero belongs to every range.
        assert 2**0.25 * min(low, 0.0) - 2**-5.75 <= merged[name][0] <= min(low, 0.0), name
        assert max(high, 0.0) <= merged[name][1] <= 2**0.25 * max(high, 0.0) + 2**-5.75, name


def test_int8_on_merged_ranges_is_as_good_as_on_a_devices_own(case: Case) -> None:
    merged = reported(case, 1.0, 0.5, 0.25)
    built = build_artifacts(
        case.network, case.weights, task="t", schema=case.schema, ranges=merged, variants=[Variant.INT8]
    )
    assert built[Variant.INT8].error <= 2 * case.build(Variant.INT8)[Variant.INT8].error + 1e-3


def test_a_network_can_be_quantised_on_ranges_that_nobody_reported(case: Case) -> None:
    ranges = assumed_ranges(case.network, case.weights)
    assert set(ranges) == set(case.ranges)
    assert ranges == assumed_ranges(case.network, case.weights), "the same for whoever builds it again"
    low, high = ranges[INPUT]
    assert -artifacts.SCALED_VALUE_MAX <= low < 0 < high <= artifacts.SCALED_VALUE_MAX
    built = build_artifacts(
        case.network, case.weights, task="t", schema=case.schema, ranges=ranges, variants=[Variant.INT8]
    )
    assert built[Variant.INT8].error <= artifacts.CHECK_ERROR_MAX[Variant.INT8]
    assumed, own = (area(case, each[Variant.INT8]) for each in (built, case.build(Variant.INT8)))
    assert assumed >= own - 0.005, "against ranges that the devices reported"


def test_ranges_are_widened_from_zero_and_scaled_rows_no_further_than_they_are_clipped() -> None:
    ranges = {"input": (-3.0, 8.0), "hidden": (0.0, 7.0), "bias": (2.0, 5.0), "output": (-9.0, 1.0)}
    assert artifacts.widen(ranges, ends=("input", "output")) == {
        "input": (-6.0, 8.0),
        "hidden": (0.0, 14.0),
        "bias": (0.0, 10.0),
        "output": (-9.0, 2.0),
    }


def test_a_tensor_that_no_device_reported_is_missed_before_anything_is_built(flow: Case) -> None:
    merged = reported(flow, 1.0, 1.0)
    missing = {k: v for k, v in merged.items() if k != "bottleneck"}
    with pytest.raises(PeerError, match="activation ranges: found"):
        build_artifacts(flow.network, flow.weights, task="t", schema=flow.schema, ranges=missing)


@pytest.mark.parametrize(
    ("ranges", "fault"),
    [
        ({"a": (1.0, 0.0)}, ValueError),
        ({"a": (0.0, float("inf"))}, RefusedError),
        ({"b": (0.0, 1.0)}, ValueError),
    ],
    ids=["upside down", "infinite", "another tensor"],
)
def test_ranges_that_are_none_are_not_reported(ranges: dict[str, tuple[float, float]], fault: type[Exception]) -> None:
    with pytest.raises(fault, match="statistics: found"):
        statistics_slots(LocalStatistics(False, 1.0, 1.0, 1.0, ranges), 1, 1.0, ("a",))


@pytest.mark.parametrize("changes", [{0: 2}, {-1: 2}, {-60: 2}], ids=["norms", "upper ends", "lower ends"])
def test_counts_that_no_devices_can_have_are_refused(changes: dict[int, int]) -> None:
    slots = statistics_slots(LocalStatistics(False, 0.0, 1.0, 1.0, {"a": (-1.0, 300.0)}), 1, 1.0, ("a",))
    for place, count in changes.items():
        slots[place] = count
    with pytest.raises(PeerError, match="statistics of a group"):
        read_statistics(slots, 1, 1, ("a",))


def test_the_quantiser_and_the_interpreter_are_loaded_only_where_they_are_used() -> None:
    code = (
        "import sys, vedette_core.learning.weights_file, vedette_device.inference, vedette_device.training\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('ai_edge_litert', 'ai_edge_quantizer', 'scipy')])\n"
        "import vedette_aggregator.artifacts\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('ai_edge_quantizer', 'scipy')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "[]"]
