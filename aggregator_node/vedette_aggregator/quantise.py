"""Quantised variants of a float32 graph, from activation ranges that devices reported.

ai-edge-quantizer does the arithmetic; its own calibration is never used (a moving average of row extremes, which cost
8 points of AUC in trials): the ranges are handed to it as its calibration result.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager

from vedette_aggregator.tflite_writer import pack_model, read_model
from vedette_core.learning.network import ActivationRanges

INT8: Final = "int8"
INT16X8: Final = "int16x8"
FLOAT16: Final = "float16"

OPERATOR_VERSIONS: Final[Mapping[str, Mapping[str, int]]] = {
    INT8: {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "QUANTIZE": 1, "DEQUANTIZE": 2},
    INT16X8: {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "QUANTIZE": 2, "DEQUANTIZE": 3},
    FLOAT16: {"DEQUANTIZE": 3},
}
"""First version of each operator that computes the variant: the quantiser leaves 1, on which old runtimes return
garbage instead of refusing."""


def quantise(float_model: bytes, variant: str, ranges: ActivationRanges) -> bytes:
    """Quantise a float32 graph, keeping float32 input and output.

    Args:
        float_model: from `vedette_aggregator.tflite_writer.write_float32`.
        variant: `INT8`, `INT16X8` or `FLOAT16`.
        ranges: (min, max) of every tensor by name, as wide as they shall be.

    Returns:
        A flatbuffer with aligned buffers and the operator versions that the variant needs.
    """
    with warnings.catch_warnings():
        # It opens an interpreter that keeps all tensors, only to list them, and is warned of the memory.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*")
        builder = quantizer.Quantizer(bytearray(float_model), _recipe(variant))
        calibration = None
        if builder.need_calibration:
            calibration = {
                name: {"min": np.full((1, 1), low, np.float32), "max": np.full((1, 1), high, np.float32)}
                for name, (low, high) in ranges.items()
            }
        raw = builder.quantize(calibration, enable_progress_report=False).quantized_model
    model = read_model(bytes(raw))
    stamp_versions(model, variant)
    return pack_model(model)


def stamp_versions(model: Any, variant: str) -> None:
    """Set the operator versions of a ``ModelT`` to those that the variant needs."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for code in model.operatorCodes:
        needed = OPERATOR_VERSIONS[variant].get(names[code.builtinCode])
        if needed is not None:
            code.version = needed


def _recipe(variant: str) -> Any:
    if variant == FLOAT16:
        return [
            {
                "regex": ".*",
                "operation": "*",
                "algorithm_key": "float_casting",
                "op_config": {
                    "weight_tensor_config": {
                        "num_bits": 16,
                        "symmetric": True,
                        "granularity": "TENSORWISE",
                        "dtype": "FLOAT",
                    },
                    "compute_precision": "FLOAT",
                    "explicit_dequantize": True,
                    "skip_checks": False,
                },
            }
        ]
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe({INT8: recipe.static_wi8_ai8, INT16X8: recipe.static_wi8_ai16}[variant]())
    # Float in and out: the score compares with the float row, not with its clipped int8 image.
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        manager.add_quantization_config(".*", end, algorithm_key="no_quantize")
    return manager.get_quantization_recipe()
