"""A round's result as artifacts that devices can run: the weights file and the ``.tflite`` variants, each checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vedette_aggregator import tflite_writer
from vedette_core.learning.layout import Float32
from vedette_core.learning.model_metadata import ModelMetadata, check_schema, read_model_metadata
from vedette_core.learning.network import INPUT, ActivationRanges, Network
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant

TFLITE_VARIANTS: Final = (Variant.FLOAT32, Variant.INT8, Variant.INT16X8, Variant.FLOAT16)
DEFAULT_VARIANTS: Final = (Variant.WEIGHTS, Variant.INT8, Variant.FLOAT32)
"""What a release has unless asked otherwise; int16x8 misses the fast kernels and is 6–85 times slower in batches."""

RANGE_WIDENING: Final = 2.0
"""Anomalies lie outside the benign ranges; at twice the range they are still told apart, for ≤ 0.0006 AUC."""
SCALED_VALUE_MAX: Final = 8.0
"""Devices clip scaled rows to ±8. No input is beyond, and no output need be, so that widening these two further than
what is clipped or was reported would only make their INT8 steps coarser."""
CHECK_ROWS: Final = 64
ASSUMED_ROWS: Final = 512
ASSUMED_SPREAD: Final = 2.0
"""Standard deviation of made-up rows. Real ones have 1, but their columns move together, and reach further in the
middle of a network than independent ones do: with 1, INT8 lost 0.02 AUC on two of five networks, and with 2 at most
0.001 against ranges that devices reported."""
CHECK_SEED: Final = 20_260_301
SHRINK_STEPS: Final = 24
"""The rows shrink to 1/5000: whatever is still out of range then is so for a row of zeros."""
CHECK_ERROR_MAX: Final = {
    Variant.FLOAT32: 1e-4,
    Variant.FLOAT16: 2e-3,
    Variant.INT16X8: 1e-2,
    Variant.INT8: 5e-2,
}
"""Largest root-mean-square difference from the numpy result, as a part of the widened output range. Built right, INT8
measures 0.002 to 0.005 (a level is 0.004); a wrong scale, a lost bias or an operator that an old kernel computes
wrongly is off by a tenth and more."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One form of a model, as it is published.

    Attributes:
        variant: which form.
        data: the file's bytes.
        sha256: hex digest of `data`.
        error: root-mean-square difference from the numpy result, as a part of the output's range; 0 for weights.
    """

    variant: Variant
    data: bytes
    sha256: str
    error: float


def assumed_ranges(network: Network, weights: Float32) -> ActivationRanges:
    """Ranges of a network on made-up windows, for rounds whose participants report none (with noise on their updates).

    Devices scale their rows to unit spread and clip them, so that normal rows, a little wider, are what a quantiser can
    be calibrated with; what is built is checked against the numpy result all the same.
    """
    rng = np.random.default_rng(CHECK_SEED)
    rows = rng.normal(scale=ASSUMED_SPREAD, size=(ASSUMED_ROWS, *network.input_shape))
    x = np.clip(rows, -SCALED_VALUE_MAX, SCALED_VALUE_MAX).astype(np.float32)
    return network.activation_ranges(x, weights)


def build_artifacts(
    network: Network,
    weights: Float32,
    *,
    task: str,
    schema: FeatureSchema,
    ranges: ActivationRanges,
    variants: Iterable[Variant] = DEFAULT_VARIANTS,
) -> dict[Variant, Artifact]:
    """Build and check every variant of a model. The same arguments give the same bytes.

    Args:
        network: what the weights belong to.
        weights: ``(size,)`` float32, finite.
        task: goes into the artifacts' metadata.
        schema: feature schema that devices must have.
        ranges: (min, max) by tensor name; every tensor of the network must be there.
        variants: what to build.

    Raises:
        PeerError: ranges, weights or schema that do not fit the network.
        RefusedError: a built variant does not load, or its results are not near the numpy ones: it is not published.
    """
    wanted = {INPUT, *(layer.name for layer in network.layers)}
    if set(ranges) != wanted:
        raise PeerError(f"activation ranges: found {sorted(ranges)}, expected {sorted(wanted)}", reason="schema")
    check_schema(network.spec, schema)
    encoded = write_weights(WeightsFile(network, weights, schema))
    float_model = tflite_writer.write_float32(network, weights)
    widened = widen(ranges, ends=(INPUT, network.layers[-1].name))
    built: dict[Variant, Artifact] = {}
    for variant in variants:
        if variant is Variant.WEIGHTS:
            built[variant] = _artifact(variant, encoded, 0.0)
            continue
        model = tflite_writer.read_model(_tflite(float_model, variant, widened))
        metadata = ModelMetadata(task, variant.value, network.spec, schema)
        tflite_writer.embed_metadata(model, metadata.to_bytes())
        data = tflite_writer.pack_model(model)
        if read_model_metadata(data) != metadata:
            raise RefusedError(f"artifact {task} {variant.value}: its metadata do not read back", rule="artifact")
        built[variant] = _artifact(variant, data, check_artifact(network, weights, widened, variant, data))
    return built


def widen(ranges: ActivationRanges, *, ends: Sequence[str] = ()) -> dict[str, tuple[float, float]]:
    """Ranges `RANGE_WIDENING` times as far from zero, which each of them then contains.

    Args:
        ranges: (min, max) by tensor name.
        ends: tensors that hold scaled rows: these are not widened past `SCALED_VALUE_MAX`.
    """
    widened = {}
    for name, (low, high) in ranges.items():
        below, above = min(low, 0.0), max(high, 0.0)
        limit = SCALED_VALUE_MAX if name in ends else float("inf")
        widened[name] = (
            min(below, max(below * RANGE_WIDENING, -limit)),
            max(above, min(above * RANGE_WIDENING, limit)),
        )
    return widened


def _tflite(float_model: bytes, variant: Variant, widened: ActivationRanges) -> bytes:
    if variant is Variant.FLOAT32:
        return float_model
    try:
        from vedette_aggregator import quantise  # 0.3 s and scipy: only where a quantised variant is built
    except ImportError as fault:
        raise ConfigError(
            f"variant {variant.value}: {fault}; quantised variants need the aggregator's packages: "
            "pip install 'vedette[aggregator]'"
        ) from fault
    return quantise.quantise(float_model, variant.value, widened)


def _artifact(variant: Variant, data: bytes, error: float) -> Artifact:
    return Artifact(variant, data, hashlib.sha256(data).hexdigest(), error)


def check_artifact(
    network: Network, weights: Float32, widened: ActivationRanges, variant: Variant, data: bytes
) -> float:
    """Run an artifact on synthetic rows within its ranges; its error against numpy, as `Artifact.error`.

    Args:
        network: what it should compute.
        weights: ``(size,)`` float32.
        widened: ranges that it was quantised for, by tensor name.
        variant: which form it is; says how near the result has to be.
        data: the flatbuffer: built here, or of a digest that was checked.

    Raises:
        RefusedError: it does not load, or its results are not near the numpy ones.
    """
    x = _rows_within(network, weights, widened)
    expected = network.reconstruct(x, weights)
    try:
        found = run_artifact(data, x).reshape(expected.shape)
    except (ValueError, RuntimeError) as fault:
        raise RefusedError(f"artifact {variant.value}: it does not run: {fault}", rule="artifact") from fault
    low, high = widened[network.layers[-1].name]
    error = float(np.sqrt(np.mean((found - expected) ** 2))) / max(high - low, 1e-6)
    if not error <= CHECK_ERROR_MAX[variant]:
        raise RefusedError(
            f"artifact {variant.value}: found results off by {error:.3g} of the output's range, "
            f"expected at most {CHECK_ERROR_MAX[variant]:.3g}",
            rule="artifact",
        )
    return error


def _rows_within(network: Network, weights: Float32, widened: ActivationRanges) -> Float32:
    """Random rows that keep every tensor within its range: beyond it INT8 saturates, which is no fault of the build."""
    low, high = widened[INPUT]
    rng = np.random.default_rng(CHECK_SEED)
    x = rng.standard_normal((CHECK_ROWS, *network.input_shape)) * (high - low) / 6
    for _ in range(SHRINK_STEPS):
        found = network.activation_ranges(x, weights)
        if all(widened[name][0] <= a and b <= widened[name][1] for name, (a, b) in found.items()):
            break
        x *= 0.7
    return x.astype(np.float32)


def run_artifact(data: bytes, x: Float32) -> Float32:
    """What a ``.tflite`` artifact makes of windows ``(n, *input_shape)``; its bytes are the caller's own, or checked.

    Raises:
        ValueError, RuntimeError: it does not load, or does not run.
    """
    from ai_edge_litert.interpreter import Interpreter  # 60 MB: only where artifacts are built

    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], [len(x), *source["shape"][1:]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x.reshape(len(x), *source["shape"][1:]))
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(result["index"]), dtype=np.float32)
