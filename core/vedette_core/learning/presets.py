"""How large a task's network may be: presets by the size of its INT8 artifact, for gateways and microcontrollers.

A preset is a promise about bytes, metadata and task name included. Where a use case's own network keeps it, the preset
is that network; else it is the best that we know within the budget:

=========  =======  ==========================  ================================  ================================
preset     INT8 ≤   network flows               sensors                           counts
=========  =======  ==========================  ================================  ================================
standard   28 kB    `flow_spec`                 `dense_spec`; of many channels    `counts_spec`
                                                the four newest windows only
small      16 kB    `flow_spec`                 four newest windows, one layer    `counts_spec`, else one layer
tiny       4 kB     newest window, one layer    newest window, one layer          newest window, one layer
=========  =======  ==========================  ================================  ================================

A layer is a linear bottleneck, at most a quarter of the inputs wide, as `dense_spec` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from math import prod
from typing import Final

from vedette_core.learning.model_metadata import ModelMetadata
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import (
    COUNTS,
    DENSE_AUTOENCODER,
    SEPARABLE_CNN,
    WIDTH_MAX,
    NetworkSpec,
    counts_spec,
    dense_spec,
    flow_spec,
)
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema

NEWEST_WINDOWS: Final = 4
"""Of a sensor's sixteen. On the shipped tanks (19,155 benign rows of eight gateways, 10 epochs, float, two seeds) a
layer of 40 for four windows reaches 0.92 AUC a window, of 24 for eight 0.88, of 16 for all 0.83: each below 16 kB."""
WIDTH_MIN: Final = 2
TASK_LONGEST: Final = "t" * 40
"""The promise holds whatever the task is called."""

# What an INT8 flatbuffer of the writer is made of, apart from weights and metadata; an upper bound, checked by a test.
CONTAINER_BYTES: Final = 840
"""Tables of the model, the subgraph, the signature and the two operators at the ends."""
LAYER_BYTES: Final = 400
"""An operator and its three tensors, with names and padding."""
CONVOLUTION_BYTES: Final = 120
"""What the options and shapes of a convolution need beyond those of a dense layer."""
CHANNEL_BYTES: Final = 28
"""An output channel: its bias (4) and scale and zero point of its kernel and of its bias (4 + 8 each)."""


class Preset(StrEnum):
    """A memory budget for a task's model."""

    TINY = "tiny"
    SMALL = "small"
    STANDARD = "standard"

    @property
    def int8_bytes_max(self) -> int:
        """Largest INT8 artifact, bytes."""
        return {Preset.TINY: 4_000, Preset.SMALL: 16_000, Preset.STANDARD: 28_000}[self]


FAMILIES: Final = {"network": SEPARABLE_CNN, "sensor": DENSE_AUTOENCODER, "behaviour": COUNTS}
"""Kind of network by use case."""
_OWN: Final[Mapping[str, Callable[..., NetworkSpec]]] = {
    SEPARABLE_CNN: flow_spec,
    DENSE_AUTOENCODER: dense_spec,
    COUNTS: counts_spec,
}


def task_spec(schema: FeatureSchema, preset: Preset | None = None) -> NetworkSpec:
    """The network of a task.

    Args:
        schema: the task's rows; its use case picks the kind of network.
        preset: its budget; None takes the use case's own network, whatever it weighs.

    Raises:
        ConfigError: nothing useful for so many columns fits into the budget.
    """
    return family_spec(FAMILIES[schema.use_case], schema, preset)


def family_spec(family: str, schema: FeatureSchema, preset: Preset | None = None) -> NetworkSpec:
    """`task_spec` for a kind of network of the caller's choice."""
    own = _OWN[family](*schema.input_shape)
    if preset is None:
        return own
    # A sensor's own network spends its weights on all windows: where that is small by chance, for few channels, the
    # narrower target is still the better use of the bytes.
    is_candidate = preset is Preset.STANDARD or (preset is Preset.SMALL and family != DENSE_AUTOENCODER)
    if is_candidate and int8_bytes_max(own, schema) <= preset.int8_bytes_max:
        return own
    windows = NEWEST_WINDOWS if family == DENSE_AUTOENCODER and preset is not Preset.TINY else 1
    kind = COUNTS if family == COUNTS else DENSE_AUTOENCODER
    return _widest(kind, schema, min(windows, schema.history), preset)


def int8_bytes_max(spec: NetworkSpec, schema: FeatureSchema) -> int:
    """Upper bound of the INT8 artifact's bytes, without building it."""
    network = build_network(spec)
    metadata = len(ModelMetadata(TASK_LONGEST, "int8", spec, schema).to_bytes())
    channels = sum(prod(shape) for name, shape in network.layout.entries if name.endswith("/bias"))
    weights = network.layout.size - channels
    convolutions = sum(len(layer.output_shape) == 2 for layer in network.layers)
    container = CONTAINER_BYTES + LAYER_BYTES * len(network.layers) + CONVOLUTION_BYTES * convolutions
    return container + metadata + weights + CHANNEL_BYTES * channels


def _widest(kind: str, schema: FeatureSchema, windows: int, preset: Preset) -> NetworkSpec:
    """One linear layer, as wide as the budget allows, that reconstructs the newest windows."""
    shape = schema.input_shape

    def of(width: int) -> NetworkSpec:
        return NetworkSpec(kind=kind, input_shape=shape, hidden=(width,), target_windows=windows)

    budget, width, least = preset.int8_bytes_max, WIDTH_MIN, int8_bytes_max(of(WIDTH_MIN), schema)
    if least > budget:
        raise ConfigError(
            f"preset {preset.value}: found {shape[1]} columns of {shape[0]} windows, for which even {WIDTH_MIN} units "
            f"take up to {least} bytes, expected at most {budget}; take a larger preset or fewer columns"
        )
    widest = min(WIDTH_MAX, max(WIDTH_MIN, prod(shape) // 4))
    while width < widest and int8_bytes_max(of(width + 1), schema) <= budget:
        width += 1
    return of(width)
