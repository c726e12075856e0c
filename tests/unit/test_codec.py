"""Limits and strictness of the codec. The refusals of whole messages are in ``tests/vectors``."""

from __future__ import annotations

from typing import Annotated, Any

import msgpack
import pytest
from pydantic import Field, ValidationError

from vedette_schemas import codec
from vedette_schemas.codec import CONTAINER_ITEMS_MAX, DEPTH_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, Message
from vedette_schemas.errors import PeerError


class Box(Message):
    value: Any = None
    data: Annotated[bytes, Field(max_length=PAYLOAD_BYTES_MAX)] = b""


def packed(value: Any) -> bytes:
    data: bytes = msgpack.packb({"value": value}, use_bin_type=True)
    return data


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = (value,)
    return value


def refusal(data: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        codec.unpack(Box, data)
    return caught.value


def test_a_payload_at_the_limit_passes_and_one_byte_more_is_refused() -> None:
    overhead = len(codec.pack(Box(data=bytes(70_000)))) - 70_000
    at_limit = codec.pack(Box(data=bytes(PAYLOAD_BYTES_MAX - overhead)))
    assert len(at_limit) == PAYLOAD_BYTES_MAX
    assert codec.unpack(Box, at_limit).data == bytes(PAYLOAD_BYTES_MAX - overhead)
    with pytest.raises(PeerError, match="found 262145 bytes, expected at most 262144; larger bodies are chunked") as e:
        codec.pack(Box(data=bytes(PAYLOAD_BYTES_MAX - overhead + 1)))
    assert e.value.reason == "limit"
    assert refusal(at_limit + b"\x00").reason == "limit"


@pytest.mark.parametrize(
    ("at_limit", "beyond"),
    [
        ([0] * CONTAINER_ITEMS_MAX, [0] * (CONTAINER_ITEMS_MAX + 1)),
        ({str(i): 0 for i in range(CONTAINER_ITEMS_MAX)}, {str(i): 0 for i in range(CONTAINER_ITEMS_MAX + 1)}),
        ("a" * STRING_BYTES_MAX, "a" * (STRING_BYTES_MAX + 1)),
        ("é" * (STRING_BYTES_MAX // 2), "é" * (STRING_BYTES_MAX // 2) + "a"),
    ],
    ids=["array", "map", "text", "text counted in bytes"],
)
def test_each_limit_of_msgpack_holds_to_the_item(at_limit: Any, beyond: Any) -> None:
    codec.unpack(Box, packed(at_limit))
    assert refusal(packed(beyond)).reason == "encoding"


@pytest.mark.parametrize("encode", [packed, lambda v: codec.canonical_json({"value": v})], ids=["msgpack", "json"])
def test_depth_is_limited_in_both_encodings(encode: Any) -> None:
    unpack = codec.unpack if encode is packed else codec.unpack_json
    # The body's own map and the innermost value are levels, too.
    unpack(Box, encode(nested(DEPTH_MAX - 2)))
    with pytest.raises(PeerError, match=f"deeper than {DEPTH_MAX}"):
        unpack(Box, encode(nested(DEPTH_MAX - 1)))


def test_json_that_nests_without_end_is_refused_and_does_not_crash() -> None:
    with pytest.raises(PeerError):
        codec.unpack_json(Box, b"[" * 200_000)


def test_json_with_an_endless_number_is_refused() -> None:
    with pytest.raises(PeerError):
        codec.unpack_json(Box, b'{"value":' + b"9" * 100_000 + b"}")


def test_json_in_another_encoding_is_refused() -> None:
    with pytest.raises(PeerError):
        codec.unpack_json(Box, '{"value":1}'.encode("utf-16"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_anywhere(value: float) -> None:
    assert refusal(packed({"a": [0.0, {"b": value}]})).reason == "schema"
    with pytest.raises(PeerError):
        codec.canonical_json({"a": value})


def test_a_map_key_is_text() -> None:
    for key in (1, None, 1.5, True):
        assert refusal(msgpack.packb({key: 1})).reason == "encoding"
    assert refusal(msgpack.packb({b"value": 1}, use_bin_type=True)).reason == "schema"


def test_text_is_not_bytes_and_bytes_are_not_text() -> None:
    assert refusal(msgpack.packb({"data": "abc"})).reason == "schema"


def test_a_refusal_names_the_message_and_at_most_five_faults() -> None:
    many = msgpack.packb({f"x{i}": i for i in range(9)})
    text = str(refusal(many))
    assert text.startswith("Box: found x0: Extra inputs")
    assert text.count("Extra inputs") == 5


def test_a_refusal_never_repeats_the_value_that_it_found() -> None:
    assert "s3cret" not in str(refusal(msgpack.packb({"data": "s3cret"})))


def test_messages_are_frozen() -> None:
    box = Box(value=1)
    with pytest.raises(ValidationError):
        box.value = 2


def test_canonical_json_sorts_and_is_compact() -> None:
    assert codec.canonical_json({"b": 1, "a": [1, "x"]}) == b'{"a":[1,"x"],"b":1}'
    with pytest.raises(PeerError, match="without a JSON form"):
        codec.canonical_json({"a": b"bytes"})


def test_json_leaves_empty_fields_out() -> None:
    class Note(Message):
        text: str
        more: str | None = None

    assert codec.pack_json(Note(text="x")) == b'{"text":"x"}'
    assert codec.unpack_json(Note, b'{"text":"x"}') == Note(text="x")
