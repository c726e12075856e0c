"""An artifact as source code for a microcontroller: the flatbuffer as an array, its operators, its memory, its use.

The bytes are those of the release, so that the digest in the header is the one that was signed. Float input and output
stay float: the row is compared with its reconstruction as it was before quantisation.

Source: TensorFlow Lite Micro, ``micro_mutable_op_resolver.h``, ``micro_interpreter.h``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from math import prod
from typing import Final

from vedette_aggregator.arena import ArenaEstimate, estimate_arena
from vedette_aggregator.graph_reader import Graph, read_graph
from vedette_core.learning.model_metadata import ModelMetadata, read_model_metadata
from vedette_core.learning.spec import COUNTS
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.model import Variant
from vedette_schemas.topics import TASK_PATTERN

MICRO_VARIANTS: Final = (Variant.INT8, Variant.INT16X8, Variant.FLOAT32)
"""What TensorFlow Lite Micro computes: it refuses float16 weights, for which its DEQUANTIZE has no kernel."""
RESOLVER_CALLS: Final = {
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "FULLY_CONNECTED": "AddFullyConnected",
    "QUANTIZE": "AddQuantize",
}
BYTES_A_LINE: Final = 16
_TASK: Final = re.compile(TASK_PATTERN)
ALIGNMENT: Final = 16
"""Bytes: the flatbuffer's buffers are aligned within it, so that it has to be as well."""


class Target(StrEnum):
    """What an artifact is exported as."""

    TFLM = "tflm"
    C_ARRAY = "c-array"
    TFLITE = "tflite"


def export(data: bytes, target: Target) -> dict[str, bytes]:
    """An artifact as files.

    Args:
        data: a ``.tflite`` artifact; of a release its digest was checked.
        target: ``tflm`` gives C++ with operators and arena, ``c-array`` plain C, ``tflite`` the file itself.

    Returns:
        Contents by file name; the same artifact gives the same bytes.

    Raises:
        PeerError: bytes that are no artifact of ours.
        RefusedError: a variant that TensorFlow Lite Micro does not compute.
    """
    metadata = read_model_metadata(data)
    if not _TASK.fullmatch(metadata.task) or metadata.variant not in set(Variant):
        # Both become part of source code.
        raise PeerError(
            f"model: found task {metadata.task[:60]!r} and variant {metadata.variant[:20]!r}, expected names of both",
            reason="schema",
        )
    graph = read_graph(data)
    name = "vedette_" + re.sub(r"[^a-z0-9]", "_", metadata.task)
    if target is Target.TFLITE:
        return {f"{name}.tflite": data}
    head = _facts(data, metadata)
    if target is Target.C_ARRAY:
        return {
            f"{name}.h": _header(name, data, graph, head, None).encode(),
            f"{name}.c": _array(name, data, f"{name}.h", head, "_Alignas").encode(),
        }
    if metadata.variant not in MICRO_VARIANTS:
        raise RefusedError(
            f"export for TensorFlow Lite Micro: found variant {metadata.variant}, expected one of "
            f"{', '.join(v.value for v in MICRO_VARIANTS)}: it has no kernels for the other",
            rule="variant",
        )
    arena = estimate_arena(graph)
    return {
        f"{name}.h": _header(name, data, graph, head, arena).encode(),
        f"{name}.cc": _array(name, data, f"{name}.h", head, "alignas").encode(),
        f"{name}_ops.h": _operators(name, graph, head).encode(),
        "README.md": _readme(name, data, graph, metadata, arena).encode(),
    }


def resolver_calls(graph: Graph) -> tuple[str, ...]:
    """Methods of ``MicroMutableOpResolver`` that a graph needs, each once, by name."""
    return tuple(sorted({RESOLVER_CALLS[op.code] for op in graph.operators}))


def _facts(data: bytes, metadata: ModelMetadata) -> str:
    return (
        f"// Task {metadata.task}, variant {metadata.variant}, {len(data)} bytes.\n"
        f"// SHA-256 of the artifact: {hashlib.sha256(data).hexdigest()}\n"
        f"// Feature schema: {metadata.schema.digest}\n"
    )


def _array(name: str, data: bytes, header: str, head: str, alignas: str) -> str:
    lines = "\n".join(f"    {line}," for line in _hexadecimal(data))
    return (
        f'{head}#include "{header}"\n\n'
        f"{alignas}({ALIGNMENT}) const unsigned char {name}[{len(data)}] = {{\n{lines}\n}};\n"
        f"const unsigned int {name}_len = {len(data)};\n"
    )


def _hexadecimal(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), BYTES_A_LINE):
        yield ", ".join(f"0x{byte:02x}" for byte in data[start : start + BYTES_A_LINE])


def _header(name: str, data: bytes, graph: Graph, head: str, arena: ArenaEstimate | None) -> str:
    guard, sizes = f"{name.upper()}_H_", _elements(graph)
    memory = ""
    if arena is not None:
        memory = (
            "\n// Arena to begin with, bytes: an estimate, see README.md.\n"
            f"#define {name.upper()}_ARENA_BYTES {arena.recommended_bytes}\n"
        )
    return (
        f"{head}#ifndef {guard}\n#define {guard}\n\n"
        "// Elements (float) of one input, oldest window first, and of one output.\n"
        f"#define {name.upper()}_INPUT_ELEMENTS {sizes[0]}\n#define {name.upper()}_OUTPUT_ELEMENTS {sizes[1]}\n"
        f'{memory}\n#ifdef __cplusplus\nextern "C" {{\n#endif\n\n'
        f"extern const unsigned char {name}[{len(data)}];\nextern const unsigned int {name}_len;\n\n"
        f"#ifdef __cplusplus\n}}\n#endif\n\n#endif  // {guard}\n"
    )


def _operators(name: str, graph: Graph, head: str) -> str:
    guard, calls = f"{name.upper()}_OPS_H_", resolver_calls(graph)
    lines = "".join(f"  if (resolver.{call}() != kTfLiteOk) return kTfLiteError;\n" for call in calls)
    return (
        f"{head}#ifndef {guard}\n#define {guard}\n\n"
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n\n'
        f"constexpr unsigned int {name}_op_count = {len(calls)};\n\n"
        f"inline TfLiteStatus {name}_add_ops(tflite::MicroMutableOpResolver<{name}_op_count>& resolver) {{\n"
        f"{lines}  return kTfLiteOk;\n}}\n\n#endif  // {guard}\n"
    )


def _elements(graph: Graph) -> tuple[int, int]:
    source, result = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    return prod(source.shape), prod(result.shape)


def _readme(name: str, data: bytes, graph: Graph, metadata: ModelMetadata, arena: ArenaEstimate) -> str:
    upper, (source, result) = name.upper(), _elements(graph)
    history, columns = metadata.schema.history, metadata.schema.columns
    return f"""# {metadata.task}, {metadata.variant}, for TensorFlow Lite Micro

| what | |
|---|---|
| flash: the model | {len(data)} bytes, SHA-256 `{hashlib.sha256(data).hexdigest()}` |
| operators | {", ".join(sorted({op.code for op in graph.operators}))}: {len(graph.operators)} steps |
| arena: tensors | {arena.tensors_bytes} bytes, planned from when each tensor is first written and last read |
| arena: structures | about {arena.structures_bytes} bytes with 32-bit pointers and the reference kernels |
| arena to begin with | {arena.recommended_bytes} bytes: both and a reserve of 50 % for the preparation |

The tensors' part is what the runtime's own planner comes to. The structures are estimated; optimised kernels want
scratch memory beside them. Read `interpreter.arena_used_bytes()` on the board, and then make the arena as small as you
like. Build the runtime's code with the operators of `{name}_ops.h` only.

```cpp
#include "{name}.h"
#include "{name}_ops.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

alignas(16) static uint8_t arena[{upper}_ARENA_BYTES];

tflite::MicroMutableOpResolver<{name}_op_count> resolver;
{name}_add_ops(resolver);
tflite::MicroInterpreter interpreter(tflite::GetModel({name}), resolver, arena, sizeof(arena));
interpreter.AllocateTensors();               // each of these returns a status: check it
float* row = interpreter.input(0)->data.f;   // {source} numbers, written before every Invoke()
interpreter.Invoke();
const float* reconstruction = interpreter.output(0)->data.f;   // {result} numbers
```

## Row, and score

A row is {history} window{"s" if history > 1 else ""} of {len(columns)} columns, oldest first, scaled on the device as
`vedette_device.features.scaling` does: median and robust deviation of its own benign windows, clipped to ±8. Columns:

{", ".join(f"`{column}`" for column in columns)}

The reconstruction is that of the last {result} numbers of the row. Divide each column's absolute error by its usual
one, which is to be measured on the board with this very model on benign windows (0.99 quantile); the score is the root
mean square of these ratios, about 1 or less when all is as usual.
{_ENSEMBLE if metadata.spec.kind == COUNTS else ""}"""


_ENSEMBLE: Final = """
Beside it, each count of the newest window is compared with its own median and robust deviation, in log(1 + count)
(`vedette_core.learning.count_ensemble`). The larger of the two scores counts, each divided by its own usual one.
"""
