"""What a device says about itself: retained state (with its will), node reports; and the receipts that it gets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vedette_schemas.codec import Message
from vedette_schemas.features import COLUMN_NAME_CHARACTERS_MAX
from vedette_schemas.topics import ID_PATTERN

Id = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
Task = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
Reason = Annotated[str, Field(min_length=1, max_length=60)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
ColumnName = Annotated[str, Field(min_length=1, max_length=COLUMN_NAME_CHARACTERS_MAX)]

RECEIPT_TYPE = "receipt"
"""Type of the envelope that a receipt travels in."""

SCORE_BUCKETS = 20
"""Score histogram: bucket i counts p-values with −log10(p) in [i/4, (i+1)/4), the last one open to the right."""

SCORE_SKETCH_BYTES_MAX = 1024
"""Most bytes of a device's score sketch: every bucket with a gap of one byte and a count of two, and 65,536 scores."""

DRIFT_COLUMNS_MAX = 8
"""Columns that a drift report names; with more, something is wrong with all of them."""

Columns = Annotated[tuple[ColumnName, ...], Field(max_length=DRIFT_COLUMNS_MAX)]


class ActiveModel(Message):
    """A model in use on a device: release version, variant, sha256 of its bytes, and the back end that runs it."""

    task: Task
    version: Count
    variant: Literal["int8", "int16x8", "float16", "float32", "weights"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    backend: Literal["litert", "tflite", "numpy"]


class RolloutProgress(Message):
    """How far a device is with a rollout's candidate, as it says.

    Attributes:
        task: the task.
        seq: newest rollout state that it took.
        candidate: release that the rollout is about.
        outcome: ``none`` (not asked to run it), ``pending`` (fetching and testing it), ``trial``, ``confirmed``,
            or ``failed`` (it is not tried again here).
    """

    task: Task
    seq: Count
    candidate: Count
    outcome: Literal["none", "pending", "trial", "confirmed", "failed"]


class DeviceState(Message):
    """Retained state of a device (JSON); its will is the same with ``status`` = ``lost``.

    Attributes:
        status: online, stopped (left on purpose) or lost (the will).
        session: random a start, so that a late will is told apart from a new start.
        seq: counts up within a session.
        time: RFC 3339, UTC.
        software: version of Vedette.
        models: active model a task.
        rollouts: how far it is with the rollout of a task, where one is known.
    """

    v: Literal[1] = 1
    device: Id
    status: Literal["online", "stopped", "lost"]
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    seq: Count
    time: Annotated[str, Field(max_length=32)]
    software: Annotated[str, Field(max_length=40)]
    models: Annotated[tuple[ActiveModel, ...], Field(max_length=8)] = ()
    rollouts: Annotated[tuple[RolloutProgress, ...], Field(max_length=8)] = ()


class ColumnDrift(Message):
    """A column whose newest values are spread otherwise than those that were learnt from.

    Attributes:
        name: the column.
        psi: population stability index of its newest values against the training rows.
    """

    name: ColumnName
    psi: NonNegative


class DriftReport(Message):
    """How far what a detector sees is from what it was calibrated on, over its newest windows.

    Attributes:
        windows: scored windows that it is about.
        psi: population stability index of their p-values against even ones; from 0.25 on it is another
            population, if chance does not explain it: few windows give as much.
        ks: largest distance of the distributions of their scores and of the calibration's.
        ks_p: how likely one at least as large is by chance.
        changes: changes of the mean p-value since the start, as the adaptive window found them.
        unreadable_share: share of newest records that had another form.
        missing_share: share of those that lacked a value.
        constant: columns that used to move and do not, the first few.
        shifted: columns that are mostly outside of all that was learnt, the first few.
        calibration_error: largest distance of the p-values' distribution function from that of even ones.
        columns: columns that have drifted, the strongest first.
    """

    windows: Count
    psi: NonNegative
    ks: Share
    ks_p: Share
    changes: Count = 0
    unreadable_share: Share = 0.0
    missing_share: Share = 0.0
    constant: Columns = ()
    shifted: Columns = ()
    calibration_error: Share = 0.0
    columns: Annotated[tuple[ColumnDrift, ...], Field(max_length=DRIFT_COLUMNS_MAX)] = ()


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
        model_version: release version of the model that scores; 0 before there is one.
        sketch: the calibration's scores with that model (`vedette_core.learning.sketch`); empty before there is one.
        drift: see `DriftReport`; none before there is enough to say.
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
    model_version: Count = 0
    sketch: Annotated[bytes, Field(max_length=SCORE_SKETCH_BYTES_MAX)] = b""
    drift: DriftReport | None = None


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

    id: Annotated[str, Field(min_length=1, max_length=140)]
    outcome: Literal["accepted", "rejected"]
    reason: Annotated[str, Field(max_length=200)] = ""


class Receipt(Message):
    """What the aggregator took from a device; the device drops these ids from its outbox."""

    device: Id
    items: Annotated[tuple[ReceiptItem, ...], Field(min_length=1, max_length=256)]
