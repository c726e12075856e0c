"""What an artifact says of itself: a JSON document in the metadata buffer ``vedette`` of the flatbuffer.

A walk of the few flatbuffer tables that lead to it, with every offset checked: a gateway needs neither the flatbuffers
package nor an interpreter to know what it holds. It verifies nothing: the digest does, and comes first.

Source: FlatBuffers binary format; field numbers of ``Model``, ``Metadata`` and ``Buffer``: TensorFlow Lite's schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from vedette_core.learning.flatbuffer_tables import FlatbufferTables, damaged
from vedette_core.learning.spec import NetworkSpec
from vedette_schemas.features import FeatureSchema

METADATA_NAME: Final = "vedette"
FORMAT: Final = 1
METADATA_BYTES_MAX: Final = 64 * 1024
"""1,024 columns of 30 bytes, twice over."""

_MODEL_BUFFERS, _MODEL_METADATA = 4, 6
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_BUFFER_DATA = 0


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Identity of an artifact.

    Attributes:
        task: the task that it belongs to.
        variant: ``float32``, ``int8``, ``int16x8`` or ``float16``.
        spec: the network that it computes.
        schema: what the rows must hold; its digest travels too and is checked.
    """

    task: str
    variant: str
    spec: NetworkSpec
    schema: FeatureSchema

    def to_bytes(self) -> bytes:
        """Compact JSON with sorted keys: the same metadata give the same bytes, and so the same artifact digest."""
        return json.dumps(
            {
                "format": FORMAT,
                "task": self.task,
                "variant": self.variant,
                "network": self.spec.to_dict(),
                "schema": self.schema.model_dump(mode="json"),
                "schema_digest": self.schema.digest,
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelMetadata:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: not JSON, another format, unknown or missing field, wrong type.
        """
        try:
            plain = json.loads(data)
        except (ValueError, RecursionError) as fault:
            raise damaged(f"metadata that are not JSON ({fault})", "one JSON object") from fault
        keys = {"format", "task", "variant", "network", "schema", "schema_digest"}
        if not isinstance(plain, dict) or set(plain) != keys:
            raise damaged("metadata with another set of fields", str(sorted(keys)))
        if type(plain["format"]) is not int or plain["format"] != FORMAT:
            raise damaged(f"metadata format {plain['format']!r}", str(FORMAT))
        if not all(isinstance(plain[k], str) for k in ("task", "variant", "schema_digest")):
            raise damaged("a task, variant or digest that is no string", "strings")
        spec = NetworkSpec.from_dict(plain["network"])
        schema = read_schema(json.dumps(plain["schema"]).encode())
        if schema.digest != plain["schema_digest"]:
            raise damaged(f"schema digest {plain['schema_digest'][:64]}", f"{schema.digest}, that of its schema")
        check_schema(spec, schema)
        return cls(plain["task"], plain["variant"], spec, schema)


def read_schema(data: bytes) -> FeatureSchema:
    """A feature schema from JSON.

    Raises:
        PeerError: not JSON, or not a schema.
    """
    try:
        return FeatureSchema.model_validate_json(data)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "schema"
        raise damaged(f"a feature schema with {where}: {first['msg']}", "a valid one") from fault


def check_schema(spec: NetworkSpec, schema: FeatureSchema) -> None:
    """Refuse a network that does not take the schema's rows.

    Raises:
        PeerError: their shapes differ; a network of one axis takes a history of 1.
    """
    shape = (schema.history, *spec.input_shape) if len(spec.input_shape) == 1 else spec.input_shape
    if shape != schema.input_shape or (len(spec.input_shape) == 1 and schema.history != 1):
        raise damaged(f"a network for {spec.input_shape}", f"one for the schema's {schema.input_shape}")


def read_model_metadata(model: bytes) -> ModelMetadata:
    """The metadata that a ``.tflite`` artifact carries.

    Args:
        model: flatbuffer, whose digest has been checked.

    Raises:
        PeerError: no flatbuffer of a model, an offset out of bounds, no metadata of ours, or malformed ones.
    """
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise damaged(f"{len(model)} bytes without the identifier TFL3", "a TensorFlow Lite flatbuffer")
    reader = FlatbufferTables(model)
    root = reader.offset(0)
    entries = reader.tables(root, _MODEL_METADATA)
    for entry in entries:
        if reader.bytes_field(entry, _METADATA_NAME) != METADATA_NAME.encode():
            continue
        number = reader.number(entry, _METADATA_BUFFER)
        buffers = reader.tables(root, _MODEL_BUFFERS)
        if number >= len(buffers):
            raise damaged(f"metadata in buffer {number} of {len(buffers)}", "a buffer that exists")
        data = reader.bytes_field(buffers[number], _BUFFER_DATA)
        if len(data) > METADATA_BYTES_MAX:
            raise damaged(f"{len(data)} bytes of metadata", f"at most {METADATA_BYTES_MAX}")
        return ModelMetadata.from_bytes(data)
    raise damaged(f"{len(entries)} metadata entries, none of them {METADATA_NAME!r}", "one of that name")
