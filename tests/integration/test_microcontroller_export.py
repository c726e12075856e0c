"""Exported models: compiled by a real compiler, and run by TensorFlow Lite Micro where that is installed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vedette_aggregator.arena import estimate_arena
from vedette_aggregator.artifacts import TFLITE_VARIANTS, Artifact, assumed_ranges, build_artifacts
from vedette_aggregator.graph_reader import read_graph
from vedette_aggregator.microcontroller import MICRO_VARIANTS, Target, export, resolver_calls
from vedette_aggregator.release_check import quantised_ranges
from vedette_aggregator.tflite_writer import embed_metadata, pack_model, read_model
from vedette_core.learning.model_metadata import read_model_metadata
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.presets import Preset, family_spec
from vedette_core.learning.spec import COUNTS, DENSE_AUTOENCODER, SEPARABLE_CNN
from vedette_device.inference import open_model
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant

COUNT_ROWS = FeatureSchema(
    use_case="network", version=1, columns=tuple(f"h{i:02x}" for i in range(32)), window_s=60.0, history=1
)
FAMILIES = {
    "flow": (SEPARABLE_CNN, NETWORK_FLOWS),
    "sensor": (DENSE_AUTOENCODER, sensor_schema(tuple("abcdefg"))),
    "counts": (COUNTS, COUNT_ROWS),
}
MODELS = {f"{name}-{preset.value}": (*case, preset) for name, case in FAMILIES.items() for preset in Preset}

RUN_IN_MICRO = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
model, rows, arena, out = sys.argv[1:]
interpreter = runtime.Interpreter.from_bytes(open(model, "rb").read(), arena_size=int(arena))
shape = interpreter.get_input_details(0)["shape"]
found = []
for row in np.load(rows):
    interpreter.set_input(row.reshape(shape), 0)
    interpreter.invoke()
    found.append(np.array(interpreter.get_output(0)).reshape(-1))
np.save(out, np.stack(found))
interpreter.print_allocations()
"""


class Model:
    """A network with fresh weights, all its artifacts, and rows."""

    def __init__(self, family: str, schema: FeatureSchema, preset: Preset) -> None:
        self.network: Network = build_network(family_spec(family, schema, preset))
        self.weights = self.network.initial_weights(np.random.default_rng(0))
        self.artifacts: dict[Variant, Artifact] = build_artifacts(
            self.network,
            self.weights,
            task="plant-2",
            schema=schema,
            ranges=assumed_ranges(self.network, self.weights),
            variants=TFLITE_VARIANTS,
        )
        rows = np.random.default_rng(1).normal(size=(12, *self.network.input_shape))
        self.rows = np.clip(rows, -8, 8).astype(np.float32)


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def model(request: pytest.FixtureRequest) -> Model:
    return Model(*request.param)


@pytest.fixture(scope="module")
def flow() -> Model:
    return Model(SEPARABLE_CNN, NETWORK_FLOWS, Preset.STANDARD)


def write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def compiled(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("g++") is None, reason="needs gcc and g++")


@needs_gcc
@pytest.mark.parametrize("target", [Target.C_ARRAY, Target.TFLM])
def test_the_compiled_array_is_the_artifact_byte_for_byte_and_aligned(
    model: Model, target: Target, tmp_path: Path
) -> None:
    artifact = model.artifacts[Variant.INT8]
    write(export(artifact.data, target), tmp_path)
    (tmp_path / "main.c").write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include "vedette_plant_2.h"\n'
        "int main(void) {\n"
        "  fwrite(vedette_plant_2, 1, vedette_plant_2_len, stdout);\n"
        "  return sizeof(vedette_plant_2) == vedette_plant_2_len && (uintptr_t)vedette_plant_2 % 16 == 0 ? 0 : 1;\n"
        "}\n"
    )
    flags = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-c")
    compiled("gcc", "-std=c11", *flags, str(tmp_path / "main.c"), "-o", str(tmp_path / "main.o"))
    if target is Target.C_ARRAY:
        source, compiler = tmp_path / "vedette_plant_2.c", ("gcc", "-std=c11")
    else:
        source, compiler = tmp_path / "vedette_plant_2.cc", ("g++", "-std=c++17")
    compiled(*compiler, *flags, str(source), "-o", str(tmp_path / "array.o"))
    compiled("g++", str(tmp_path / "main.o"), str(tmp_path / "array.o"), "-o", str(tmp_path / "main"))
    ran = subprocess.run([tmp_path / "main"], capture_output=True, check=False)
    assert ran.returncode == 0, "size or alignment"
    assert ran.stdout == artifact.data
    assert artifact.sha256 in source.read_text()


@needs_gcc
def test_the_operators_header_adds_each_operator_of_the_graph_once(model: Model, tmp_path: Path) -> None:
    data = model.artifacts[Variant.INT8].data
    write(export(data, Target.TFLM), tmp_path)
    calls = ("AddConv2D", "AddDepthwiseConv2D", "AddDequantize", "AddFullyConnected", "AddQuantize", "AddSoftmax")
    fake = tmp_path / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    fake.parent.mkdir(parents=True)
    methods = "".join(f'  TfLiteStatus {call}() {{ return add("{call}"); }}\n' for call in calls)
    fake.write_text(
        "#include <cstdio>\nenum TfLiteStatus { kTfLiteOk, kTfLiteError };\n"
        "namespace tflite {\ntemplate <unsigned int count> struct MicroMutableOpResolver {\n  unsigned int added = 0;\n"
        "  TfLiteStatus add(const char* name) {\n"
        "    if (added++ == count) return kTfLiteError;\n    std::puts(name);\n    return kTfLiteOk;\n  }\n"
        f"{methods}}};\n}}\n"
    )
    (tmp_path / "main.cc").write_text(
        '#include "vedette_plant_2_ops.h"\nint main() {\n'
        "  tflite::MicroMutableOpResolver<vedette_plant_2_op_count> resolver;\n"
        "  return vedette_plant_2_add_ops(resolver);\n}\n"
    )
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}")
    compiled("g++", *flags, str(tmp_path / "main.cc"), "-o", str(tmp_path / "main"))
    ran = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert tuple(ran.stdout.split()) == resolver_calls(read_graph(data))
    codes = {op.code.replace("_", "").lower() for op in read_graph(data).operators}
    assert {call.removeprefix("Add").lower() for call in ran.stdout.split()} == codes


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="needs TensorFlow Lite Micro: pip install tflite-micro"
)
@pytest.mark.parametrize("variant", MICRO_VARIANTS)
def test_tensorflow_lite_micro_computes_what_the_gateway_does(model: Model, variant: Variant, tmp_path: Path) -> None:
    artifact = model.artifacts[variant]
    estimate = estimate_arena(read_graph(artifact.data))
    (tmp_path / "model.tflite").write_bytes(artifact.data)
    np.save(tmp_path / "rows.npy", model.rows)
    # Pointers are twice as long here as on the boards that the estimate is for, and so are most structures.
    arena = estimate.tensors_bytes + 3 * estimate.structures_bytes
    arguments = [tmp_path / "model.tflite", tmp_path / "rows.npy", arena, tmp_path / "found.npy"]
    ran = subprocess.run(
        [sys.executable, "-c", RUN_IN_MICRO, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    found = np.load(tmp_path / "found.npy").reshape(-1, *model.network.target_shape)
    expected = open_model(artifact.data, sha256=artifact.sha256).backend.reconstruct(model.rows)
    ranges = quantised_ranges(read_graph(artifact.data), model.network)
    low, high = ranges[model.network.layers[-1].name] if ranges else (0.0, 1.0)
    step = (high - low) / {Variant.FLOAT32: 1e5, Variant.INT16X8: 65_535, Variant.INT8: 255}[variant]
    assert np.abs(found - expected).max() <= 8 * step, "kernels round differently, by a few levels"
    assert np.abs(found - expected).mean() <= step
    said = dict(re.findall(r"Arena allocation (\w+) (\d+) bytes", ran.stdout + ran.stderr))
    assert int(said["head"]) == estimate.tensors_bytes, "the planner's own figure"
    assert estimate.structures_bytes <= int(said["tail"]) <= 3 * estimate.structures_bytes


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="needs TensorFlow Lite Micro: pip install tflite-micro"
)
def test_tensorflow_lite_micro_has_no_float16(flow: Model, tmp_path: Path) -> None:
    """The reason why the export refuses it: when this fails, it may stop."""
    (tmp_path / "model.tflite").write_bytes(flow.artifacts[Variant.FLOAT16].data)
    np.save(tmp_path / "rows.npy", flow.rows)
    arguments = [tmp_path / "model.tflite", tmp_path / "rows.npy", 200_000, tmp_path / "found.npy"]
    ran = subprocess.run(
        [sys.executable, "-c", RUN_IN_MICRO, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert "DEQUANTIZE" in ran.stderr


def test_the_readme_says_what_a_board_needs(model: Model) -> None:
    for variant in MICRO_VARIANTS:
        artifact = model.artifacts[variant]
        text = export(artifact.data, Target.TFLM)["README.md"].decode()
        estimate = estimate_arena(read_graph(artifact.data))
        schema = read_model_metadata(artifact.data).schema
        for fact in (
            artifact.sha256,
            f"{len(artifact.data)} bytes",
            f"{estimate.recommended_bytes} bytes",
            *schema.columns,
        ):
            assert fact in text
        assert ("log(1 + count)" in text) is (model.network.spec.kind == COUNTS)


def test_the_same_artifact_gives_the_same_files_and_tflite_is_the_artifact(flow: Model) -> None:
    data = flow.artifacts[Variant.INT8].data
    for target in Target:
        assert export(data, target) == export(data, target)
    assert export(data, Target.TFLITE) == {"vedette_plant_2.tflite": data}


def test_float16_is_refused_for_a_microcontroller_and_kept_as_an_array(flow: Model) -> None:
    data = flow.artifacts[Variant.FLOAT16].data
    with pytest.raises(RefusedError, match="found variant float16, expected one of int8, int16x8, float32"):
        export(data, Target.TFLM)
    assert set(export(data, Target.C_ARRAY)) == {"vedette_plant_2.h", "vedette_plant_2.c"}


@pytest.mark.parametrize(
    ("task", "variant"),
    [("a\nint evil(void);", "int8"), ("", "int8"), ("Plant", "int8"), ("plant", "int8\n#error"), ("plant", "int4")],
)
def test_names_that_would_become_code_are_refused(flow: Model, task: str, variant: str) -> None:
    parsed = read_model(flow.artifacts[Variant.INT8].data)
    metadata = read_model_metadata(flow.artifacts[Variant.INT8].data)
    embed_metadata(parsed, replace(metadata, task=task, variant=variant).to_bytes())
    for target in Target:
        with pytest.raises(PeerError, match="expected names of both"):
            export(pack_model(parsed), target)


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(100), b"\x1c\0\0\0TFL3" + bytes(40)])
def test_what_is_no_artifact_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="model: found"):
        export(data, Target.TFLM)
