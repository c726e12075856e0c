"""What the aggregator asks of one device; a device does it only where it may, and never on a stale or repeated word."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from vedette_schemas.codec import Message
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN

COMMAND_TYPE: Final = "command"
"""Type of the envelope that a command travels in."""
SKETCH_BYTES_MAX: Final = 4096
"""Most bytes of a fleet's sketch: every bucket with the largest count would be 2,325."""
LIFETIME_S_MAX: Final = 3600.0
"""Longest life of a command: what waited longer somewhere is about another situation."""


class Command(Message):
    """Something that a device should do now.

    Attributes:
        device: whom it is for.
        seq: counts up over all commands of the aggregator to this device; the same or a lower one is a repetition.
        issued_s: when it was asked, epoch seconds.
        expires_s: from when on it is not done any more; at most `LIFETIME_S_MAX` after `issued_s`.
        action: ``recalibrate``: measure the active model of the task anew, on own recent benign windows;
            ``cold-start``: score with the fleet's scores until an own calibration is complete.
        task: the task.
        version: release that `sketch` is about; 0 for a recalibration.
        sketch: the fleet's benign scores with that release (`vedette_core.learning.sketch`); only for a cold start.
        reason: why, for the device's log.
    """

    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    seq: Annotated[int, Field(ge=1, le=2**53)]
    issued_s: Annotated[float, Field(ge=0)]
    expires_s: Annotated[float, Field(ge=0)]
    action: Literal["recalibrate", "cold-start"]
    task: Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
    version: Annotated[int, Field(ge=0, le=2**53)] = 0
    sketch: Annotated[bytes, Field(max_length=SKETCH_BYTES_MAX)] = b""
    reason: Annotated[str, Field(max_length=200)] = ""
