"""What a device says about itself: retained state (with its will), node reports; and the receipts that it gets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vedette_schemas.codec import Message
from vedette_schemas.topics import ID_PATTERN

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Task = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
Reason = Annotated[str, Field(min_length=1, max_length=60)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=2**53)]

RECEIPT_TYPE = "receipt"
"""Type of the envelope that a receipt travels in."""

SCORE_BUCKETS = 20
"""Score histogram: bucket i counts p-values with −log10(p) in [i/4, (i+1)/4), the last one open to the right."""


class ActiveModel(Message):
    """A model in use on a device: release version, variant, sha256 of its bytes, and the back end that runs it."""

    task: Task
    version: Count
    variant: Literal["int8", "int16x8", "float16", "float32", "weights"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    backend: Literal["litert", "tflite", "numpy"]


class DeviceState(Message):
    """Retained state of a device (JSON); its will is the same with ``status`` = ``lost``.

    Attributes:
        status: online, stopped (left on purpose) or lost (the will).
        session: random a start, so that a late will is told apart from a new start.
        seq: counts up within a session.
        time: RFC 3339, UTC.
        software: version of Vedette.
        models: active model a task.
    """

    v: Literal[1] = 1
    device: Id
    status: Literal["online", "stopped", "lost"]
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seq: Count
    time: Annotated[str, Field(max_length=32)]
    software: Annotated[str, Field(max_length=40)]
    models: Annotated[tuple[ActiveModel, ...], Field(max_length=8)] = ()


class DetectorReport(Message):
    """What one detector did since the start.

    Attributes:
        task: its task.
        phase: learning (collecting), calibrating, or armed.
        windows: windows that were scored.
        refused: records refused by reason.
        p_histogram: counts of `SCORE_BUCKETS` buckets of −log10(p).
        score_us_p50: median time of one scored window, microseconds; 0 before the first.
        score_us_p99: 99th percentile of the same.
        alerts_opened: alerts opened.
        first_scored_s: end of the first window that was scored, epoch seconds of the source; 0 before it.
        last_scored_s: end of the newest one.
    """

    task: Task
    phase: Literal["learning", "calibrating", "armed"]
    windows: Count
    refused: Annotated[dict[Reason, Count], Field(max_length=32)]
    p_histogram: Annotated[tuple[Count, ...], Field(max_length=SCORE_BUCKETS)] = ()
    score_us_p50: NonNegative = 0.0
    score_us_p99: NonNegative = 0.0
    alerts_opened: Count = 0
    first_scored_s: NonNegative = 0.0
    last_scored_s: NonNegative = 0.0


class Telemetry(Message):
    """A node report (msgpack, QoS 0): everything the fleet metrics are made of.

    Attributes:
        rss_bytes: resident memory of the process.
        cpu_s: processor time used since the start, seconds.
        spool_messages: messages that wait for their receipt.
        spool_bytes: their size.
        bytes_up: bytes published for federated learning since the start, payloads only.
        detectors: a report a detector.
    """

    device: Id
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seq: Count
    time_s: NonNegative
    uptime_s: NonNegative
    rss_bytes: Count
    cpu_s: NonNegative
    spool_messages: Count
    spool_bytes: Count
    spool_dropped: Count
    bytes_up: Count
    detectors: Annotated[tuple[DetectorReport, ...], Field(max_length=8)]


class ReceiptItem(Message):
    """One message's fate: accepted (or already known), or rejected for good with the reason."""

    id: Annotated[str, Field(min_length=1, max_length=120)]
    outcome: Literal["accepted", "rejected"]
    reason: Annotated[str, Field(max_length=200)] = ""


class Receipt(Message):
    """What the aggregator took from a device; the device drops these ids from its outbox."""

    device: Id
    items: Annotated[tuple[ReceiptItem, ...], Field(min_length=1, max_length=256)]
