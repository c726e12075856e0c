"""The two files that a device reads from its peers: weights and the metadata of an artifact. Bad bytes only refuse."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_aggregator.tflite_writer import embed_metadata, pack_model, read_model, write_float32
from vedette_core.learning.model_metadata import ModelMetadata, read_model_metadata
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec
from vedette_core.learning.weights_file import FILE_BYTES_MAX, WeightsFile, read_weights, write_weights
from vedette_schemas.errors import PeerError
from vedette_schemas.features import FeatureSchema

NETWORK = build_network(dense_spec(6))
WEIGHTS = NETWORK.initial_weights(np.random.default_rng(0))
SCHEMA = FeatureSchema(use_case="sensor", version=1, columns=tuple("abcdef"), window_s=1.0, history=1)
FILE = write_weights(WeightsFile(NETWORK, WEIGHTS, SCHEMA))
METADATA = ModelMetadata("sensor", "float32", NETWORK.spec, SCHEMA)


def artifact(metadata: bytes) -> bytes:
    model = read_model(write_float32(NETWORK, WEIGHTS))
    embed_metadata(model, metadata)
    return pack_model(model)


ARTIFACT = artifact(METADATA.to_bytes())


def altered(**values: Any) -> bytes:
    return bytes(msgpack.packb({**msgpack.unpackb(FILE), **values}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not msgpack"),
        (FILE[:-1], "not msgpack"),
        (FILE + b"\0", "not msgpack"),
        (msgpack.packb([1]), "found list"),
        (altered(extra=1), "extra"),
        (altered(format=2), "found format 2"),
        (altered(format=True), "found format True"),
        (altered(weights=b""), "found 0 bytes of weights"),
        (altered(weights=b"\0\0"), "found 2 bytes of weights"),
        (altered(weights="text"), "another type"),
        (altered(weights=np.full(NETWORK.layout.size, np.nan, "<f4").tobytes()), "not finite"),
        (altered(layout=[["encode0/kernel", [1, 1]]]), "layout"),
        (altered(schema=b"{}"), "feature schema"),
        (altered(schema=b"\xff"), "feature schema"),
        (altered(schema=SCHEMA.model_copy(update={"history": 2}).model_dump_json().encode()), "found a network for"),
        (altered(spec={}), "network spec"),
        (b"\0" * (FILE_BYTES_MAX + 1), "expected at most"),
    ],
)
def test_a_weights_file_that_is_not_ours_is_refused_with_what_was_found(data: bytes, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        read_weights(data)


def test_weights_that_are_not_finite_or_not_the_networks_are_never_written() -> None:
    with pytest.raises(PeerError, match="not finite"):
        write_weights(WeightsFile(NETWORK, np.full_like(WEIGHTS, np.inf), SCHEMA))
    with pytest.raises(PeerError, match="expected"):
        write_weights(WeightsFile(NETWORK, WEIGHTS[1:], SCHEMA))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(FILE) - 1), st.binary(min_size=1, max_size=8)).map(
            lambda cut: FILE[: cut[0]] + cut[1] + FILE[cut[0] + len(cut[1]) :]
        ),
    )
)
@settings(max_examples=300)
def test_no_bytes_raise_anything_but_a_refusal_from_the_weights_reader(data: bytes) -> None:
    try:
        read = read_weights(data)
    except PeerError:
        return
    assert np.isfinite(read.weights).all()
    assert read.weights.shape == (read.network.layout.size,)


def test_metadata_come_back_from_the_flatbuffer() -> None:
    assert read_model_metadata(ARTIFACT) == METADATA
    replaced = read_model(ARTIFACT)
    embed_metadata(replaced, ModelMetadata("other", "int8", NETWORK.spec, SCHEMA).to_bytes())
    assert read_model_metadata(pack_model(replaced)).task == "other"


def test_a_model_without_metadata_or_that_is_none_is_refused() -> None:
    with pytest.raises(PeerError, match="none of them 'vedette'"):
        read_model_metadata(write_float32(NETWORK, WEIGHTS))
    for data in (b"", b"TFL3", b"\0" * 64, FILE):
        with pytest.raises(PeerError, match="without the identifier"):
            read_model_metadata(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "metadata format 2"),
        ({"task": 5}, "no string"),
        ({"extra": 1}, "another set of fields"),
        ({"schema_digest": "0" * 64}, "that of its schema"),
        ({"schema": {"columns": ["a"]}}, "feature schema"),
        ({"network": dense_spec(7).to_dict()}, "found a network for"),
    ],
)
def test_metadata_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    plain = {**json.loads(METADATA.to_bytes()), **change}
    with pytest.raises(PeerError, match=message):
        read_model_metadata(artifact(json.dumps(plain).encode()))


@given(
    st.one_of(
        st.binary(max_size=300).map(lambda tail: b"\x1c\0\0\0TFL3" + tail),
        st.tuples(st.integers(0, len(ARTIFACT) - 1), st.binary(min_size=1, max_size=4)).map(
            lambda cut: ARTIFACT[: cut[0]] + cut[1] + ARTIFACT[cut[0] + len(cut[1]) :]
        ),
        st.integers(0, len(ARTIFACT)).map(lambda length: ARTIFACT[:length]),
    )
)
@settings(max_examples=400)
def test_no_bytes_raise_anything_but_a_refusal_from_the_metadata_reader(data: bytes) -> None:
    try:
        metadata = read_model_metadata(data)
    except PeerError:
        return
    assert metadata.schema.digest
