"""The weights file: a model as it is trained, averaged and run by the numpy back end. msgpack, read strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.model_metadata import check_schema, read_schema
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.spec import WEIGHTS_MAX, NetworkSpec
from vedette_schemas.errors import PeerError
from vedette_schemas.features import FeatureSchema

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 4 * WEIGHTS_MAX + 64 * 1024
"""The largest weights plus names and schema."""
SCHEMA_BYTES_MAX: Final = 32 * 1024
"""JSON of a feature schema: 256 columns of at most 64 characters, some of them escaped."""
_KEYS: Final = {"format", "spec", "schema", "layout", "weights"}


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A model in full precision.

    Attributes:
        network: built from the file's spec.
        weights: ``(size,)`` float32, finite.
        schema: what the rows must hold.
    """

    network: Network
    weights: Float32
    schema: FeatureSchema


def write_weights(model: WeightsFile) -> bytes:
    """Encode a model: ``{format, spec, schema, layout, weights}``, schema as JSON, weights as little-endian float32.

    The same model gives the same bytes, and so the same digest.

    Raises:
        PeerError: weights that the network's layout does not fit, not finite, or a schema of another shape.
    """
    network = model.network
    _check_weights(network, model.weights)
    check_schema(network.spec, model.schema)
    packed = msgpack.packb(
        {
            "format": FORMAT,
            "spec": network.spec.to_dict(),
            "schema": model.schema.model_dump_json().encode(),
            "layout": network.layout.to_list(),
            "weights": model.weights.astype("<f4").tobytes(),
        }
    )
    return bytes(packed)


def read_weights(data: bytes) -> WeightsFile:
    """Decode `write_weights`'s form.

    Raises:
        PeerError: too large, not this form or format, a spec out of its limits, a layout that is not the spec's,
            a wrong number of weights, or a weight that is not finite.
    """
    if len(data) > FILE_BYTES_MAX:
        raise _refusal(f"{len(data)} bytes", f"at most {FILE_BYTES_MAX}", "limit")
    try:
        plain: Any = msgpack.unpackb(
            data,
            max_bin_len=4 * WEIGHTS_MAX,
            max_str_len=256,
            max_array_len=256,
            max_map_len=32,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as fault:
        raise _refusal(f"{len(data)} bytes that are not msgpack ({fault})", "one msgpack map", "encoding") from fault
    if not isinstance(plain, dict) or set(plain) != _KEYS:
        raise _refusal(str(sorted(plain) if isinstance(plain, dict) else type(plain).__name__), str(sorted(_KEYS)))
    if plain["format"] is True or plain["format"] != FORMAT:
        raise _refusal(f"format {plain['format']!r}", f"format {FORMAT}")
    described, raw = plain["schema"], plain["weights"]
    if not isinstance(described, bytes) or len(described) > SCHEMA_BYTES_MAX or not isinstance(raw, bytes):
        raise _refusal("schema or weights of another type or size", "two byte strings")
    schema = read_schema(described)
    network = build_network(NetworkSpec.from_dict(plain["spec"]))
    check_schema(network.spec, schema)
    if plain["layout"] != network.layout.to_list():
        raise _refusal("a layout that is not the spec's", str(network.layout.to_list()))
    if len(raw) != 4 * network.layout.size:
        raise _refusal(f"{len(raw)} bytes of weights", f"{4 * network.layout.size}")
    weights = np.frombuffer(raw, "<f4").astype(np.float32)
    _check_weights(network, weights)
    return WeightsFile(network, weights, schema)


def _check_weights(network: Network, weights: Float32) -> None:
    size = network.layout.size
    if weights.shape != (size,):
        raise _refusal(f"weights of shape {weights.shape}", f"({size},)")
    bad = int((~np.isfinite(weights)).sum())
    if bad:
        raise _refusal(f"{bad} weights of {size} that are not finite", "finite ones", "finite")


def _refusal(found: str, expected: str, reason: str = "schema") -> PeerError:
    return PeerError(f"weights file: found {found}, expected {expected}", reason=reason)
