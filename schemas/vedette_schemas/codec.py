"""msgpack and JSON, decoded with limits: what does not fit the contract is refused before anything reads it."""

from __future__ import annotations

import json
import math
from typing import Any, Final, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

from vedette_schemas.errors import PeerError

PAYLOAD_BYTES_MAX: Final = 256 * 1024
"""Largest MQTT payload of the contract; larger bodies are chunked. Every broker is configured for it."""
CONTAINER_ITEMS_MAX: Final = 4096
STRING_BYTES_MAX: Final = 16 * 1024
DEPTH_MAX: Final = 16

M = TypeVar("M", bound="Message")


class Message(BaseModel):
    """Base of every message body: frozen, strict types, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def pack(message: Message) -> bytes:
    """Encode a message body as msgpack.

    Raises:
        PeerError: if it is larger than `PAYLOAD_BYTES_MAX`: a fault of the sender, found before it is sent.
    """
    data: bytes = msgpack.packb(message.model_dump(mode="python"), use_bin_type=True)
    return check_size(data, type(message).__name__)


def unpack(cls: type[M], data: bytes) -> M:
    """Decode a message body from msgpack.

    Raises:
        PeerError: too large, not msgpack, trailing bytes, unknown or missing field, wrong type, NaN.
    """
    return validate(cls, unpack_plain(data, cls.__name__))


def unpack_plain(data: bytes, what: str) -> Any:
    """Decode msgpack with every limit set, into plain Python objects.

    Raises:
        PeerError: too large, not msgpack, too deep, too many items, trailing bytes, duplicate keys.
    """
    check_size(data, what)
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=False,
            max_str_len=STRING_BYTES_MAX,
            max_bin_len=PAYLOAD_BYTES_MAX,
            max_array_len=CONTAINER_ITEMS_MAX,
            max_map_len=CONTAINER_ITEMS_MAX,
            max_ext_len=0,
            ext_hook=_no_extension,
            object_pairs_hook=_unique,
        )
    except PeerError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as fault:
        raise PeerError(
            f"{what}: found {len(data)} bytes that are not msgpack within the limits ({fault}), "
            "expected one msgpack map",
            reason="encoding",
        ) from fault
    _check_depth(plain, what)
    return plain


def pack_json(message: Message) -> bytes:
    """Encode a message body as compact JSON, for the topics that people read; empty fields are left out."""
    data = message.model_dump_json(exclude_none=True).encode()
    return check_size(data, type(message).__name__)


def unpack_json(cls: type[M], data: bytes) -> M:
    """Decode a message body from JSON.

    Raises:
        PeerError: too large, not JSON, duplicate keys, unknown or missing field, wrong type, NaN.
    """
    check_size(data, cls.__name__)
    try:
        plain = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except PeerError:
        raise
    except (ValueError, RecursionError) as fault:
        raise PeerError(
            f"{cls.__name__}: found {len(data)} bytes that are not JSON ({fault}), expected one JSON object",
            reason="encoding",
        ) from fault
    _check_depth(plain, cls.__name__)
    try:
        return cls.model_validate_json(data)
    except ValidationError as fault:
        raise _refusal(cls, fault) from fault


def canonical_json(plain: Any) -> bytes:
    """Plain objects as compact JSON with sorted keys.

    Raises:
        PeerError: something in it has no JSON form.
    """
    try:
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as fault:
        raise PeerError(f"found a value without a JSON form ({fault})", reason="encoding") from fault


def validate(cls: type[M], plain: Any) -> M:
    """Check plain Python objects against a message class.

    Raises:
        PeerError: unknown or missing field, wrong type or range; the first five faults are named.
    """
    try:
        return cls.model_validate(plain)
    except ValidationError as fault:
        raise _refusal(cls, fault) from fault


def check_size(data: bytes, what: str) -> bytes:
    """Return `data` if it is within `PAYLOAD_BYTES_MAX`.

    Raises:
        PeerError: if it is larger.
    """
    if len(data) > PAYLOAD_BYTES_MAX:
        raise PeerError(
            f"{what}: found {len(data)} bytes, expected at most {PAYLOAD_BYTES_MAX}; larger bodies are chunked",
            reason="limit",
        )
    return data


def _refusal(cls: type[BaseModel], fault: ValidationError) -> PeerError:
    faults = [
        f"{'.'.join(str(p) for p in e['loc']) or 'body'}: {e['msg']}"
        for e in fault.errors(include_url=False, include_input=False)[:5]
    ]
    return PeerError(f"{cls.__name__}: found {'; '.join(faults)}", reason="schema")


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise PeerError("found a map with duplicate keys, expected unique keys", reason="encoding")
    return out


def _no_extension(code: int, _data: bytes) -> Any:
    # max_ext_len=0 lets an empty extension through, and it would come out as a tuple.
    raise PeerError(f"found msgpack extension {code}, expected plain types", reason="encoding")


def _no_constant(name: str) -> float:
    raise PeerError(f"found {name} in JSON, expected finite numbers", reason="encoding")


def _check_depth(plain: Any, what: str) -> None:
    level, depth = [plain], 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise PeerError(f"{what}: found nesting deeper than {DEPTH_MAX}", reason="limit")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, (list, tuple)):
                below.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise PeerError(f"{what}: found {item}, expected finite numbers", reason="schema")
        level = below
