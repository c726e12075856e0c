"""What the aggregator asks of one device; a device does it only where it may, and never on a stale or repeated word."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from vedette_schemas.codec import Message
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN

COMMAND_TYPE: Final = "command"
"""Type of the envelope that a command travels in."""
LIFETIME_S_MAX: Final = 3600.0
"""Longest life of a command: what waited longer somewhere is about another situation."""


class Command(Message):
    """Something that a device should do now.

    Attributes:
        device: whom it is for.
        seq: counts up over all commands of the aggregator to this device; the same or a lower one is a repetition.
        issued_s: when it was asked, epoch seconds.
        expires_s: from when on it is not done any more; at most `LIFETIME_S_MAX` after `issued_s`.
        action: ``recalibrate``: measure the active model of the task anew, on own recent benign windows.
        task: the task.
        reason: why, for the device's log.
    """

    device: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    seq: Annotated[int, Field(ge=1, le=2**53)]
    issued_s: Annotated[float, Field(ge=0)]
    expires_s: Annotated[float, Field(ge=0)]
    action: Literal["recalibrate"]
    task: Annotated[str, Field(pattern=f"^{TASK_PATTERN}$")]
    reason: Annotated[str, Field(max_length=200)] = ""
