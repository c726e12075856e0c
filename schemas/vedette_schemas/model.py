"""What a release says of itself: the ``custom`` field of its TUF targets.

Canonical JSON has no floats, so that figures travel as decimal strings.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.topics import TASK_PATTERN

MODEL_BYTES_MAX: Final = 4 * 1024 * 1024
"""No target is larger; a device refuses to fetch one that says it is."""
CHUNK_BYTES: Final = 192 * 1024
"""Artifacts above this are published in chunks; leaves room for the MQTT header below 256 KiB."""

Task = Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Figure = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,59}$")]
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,9})?$")]


class Variant(StrEnum):
    """A form of the same model; a device takes the best that its hardware and memory allow."""

    INT8 = "int8"
    INT16X8 = "int16x8"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    WEIGHTS = "weights"
    PLAN = "plan"


class ReleaseDiff(Message):
    """How a target is made from a file that a device may hold already; see `vedette_core.learning.artifact_diff`.

    Attributes:
        parent: sha256 of that file.
        sha256: of the diff; its bytes are an artifact like any other.
        length: bytes of the diff.
    """

    parent: Digest
    sha256: Digest
    length: Annotated[int, Field(ge=1, le=MODEL_BYTES_MAX)]


class ReleaseTarget(Message):
    """Custom part of one target of a release.

    Attributes:
        task: the task.
        version: release version, counts up by one a release.
        parent: sha256 of the weights file that the round started from; empty for the first.
        round: round that made it; 0 for the initial model.
        variant: which form the target's bytes are.
        format: ``tflite`` flatbuffer, Vedette's ``weights`` file, or a ``plan``.
        feature_schema: digest of the feature schema.
        runtime_min: oldest runtime that is known to compute it.
        contributors: how many updates are in it.
        transcript: sha256 over the round's transcript hashes and upload digests.
        plan: sha256 of the round's plan.
        metrics: figures as decimal strings, for example ``loss_after``.
        active: whether this is the release that devices should run.
        diff: a shorter way to the same bytes; absent where there is none.
    """

    task: Task
    version: Annotated[int, Field(ge=0)]
    parent: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    round: Annotated[int, Field(ge=0)]
    variant: Annotated[Variant, Field(strict=False)]
    format: Literal["tflite", "weights", "plan"]
    feature_schema: Digest
    runtime_min: Annotated[str, Field(max_length=20)]
    contributors: Annotated[int, Field(ge=0)]
    transcript: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    plan: Digest
    metrics: Annotated[dict[Figure, Decimal], Field(max_length=32)]
    active: bool
    diff: ReleaseDiff | None = None


def target_path(task: str, version: int, variant: Variant) -> str:
    """A target's path in the TUF repository, for example ``network/12/int8``."""
    return f"{task}/{version}/{variant.value}"


def parse_custom(custom: Any) -> ReleaseTarget:
    """Read the custom field of a verified target.

    Raises:
        PeerError: unknown or missing field, wrong type.
    """
    return codec.unpack_json(ReleaseTarget, codec.canonical_json(custom))


def decimal(value: float) -> str:
    """A figure as a decimal string with at most six places."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
